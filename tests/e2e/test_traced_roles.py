"""What two processes had a hand in is one trace under one correlation id, and each answers figures of its own."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.collectors import Collector, attributes_of, collecting, free_port
from tests.e2e.roles import Estate, Part, estate
from tests.merchant_server import merchant_server

TOKEN = "reads the metrics 0123456789abcdef"
CORRELATION = "basket-page-17"
PAID, DELIVERED = "POST /v1/orders/{order_id}/pay", "deliver payment.captured"


@pytest.fixture
async def made(tmp_path: Path, postgres_database_url: str, redis_url: str) -> AsyncIterator[Estate]:
    async with estate(tmp_path, postgres_database_url, redis_url) as installation:
        yield installation


async def metrics_of(made: Estate, part: Part) -> str:
    async with made.session.get(f"{part.url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}) as answer:
        assert answer.status == 200
        return await answer.text()


async def test_a_trace_goes_on_in_another_process(made: Estate) -> None:
    port = free_port()
    told = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "LOOP_OTEL_SAMPLE_PERCENT": "100",
        "LOOP_METRICS_TOKEN": TOKEN,
    }
    async with collecting(port) as collector, merchant_server() as merchant:
        api = await made.begin("--only", "api", **told, OTEL_SERVICE_NAME="loop-api")
        worker = await made.begin("--only", "worker", **told, OTEL_SERVICE_NAME="loop-worker")
        key = await made.open_shop(api, f"{merchant.url}/hook")
        order = await made.call(api, key, "POST", "/v1/orders", {"amount": 4999, "currency": "USD"})
        content = {"paymentMethod": {"type": "card", "token": "tok_approve"}}
        await made.call(api, key, "POST", f"/v1/orders/{order['id']}/pay", content)
        await collector.until(lambda sent: bool(sent.named(DELIVERED)) and bool(sent.named(PAID)))
        [request], [delivery] = collector.named(PAID), collector.named(DELIVERED)
        assert delivery.trace_id == request.trace_id
        assert attributes_of(delivery)["loop.correlation_id"] == attributes_of(request)["loop.correlation_id"]
        # The request was one process's, the delivery the other's.
        assert 'route="/v1/orders/{order_id}/pay"' in await metrics_of(made, api)
        delivered = 'loop_webhook_tries_total{result="delivered"}'
        assert delivered in await metrics_of(made, worker)
        assert delivered not in await metrics_of(made, api)
        assert 'loop_redis_up{used_for="limits"} 1.0' in await metrics_of(made, api)
        for part in (api, worker):
            assert await part.end() == 0, part.said()


async def shown(made: Estate, *command: str) -> Any:
    """Return what a command of the operator's prints as JSON."""
    code, out, said = await made.run(*command, "--json")
    assert code == 0, said
    return json.loads(out)


def logged(part: Part) -> set[str]:
    """Return the events that a process has logged under the correlation id."""
    lines = [json.loads(line) for line in part.said().splitlines() if line.startswith("{")]
    return {line["event"] for line in lines if line.get("correlation_id") == CORRELATION}


def spans_of(collector: Collector) -> set[str]:
    """Return the names of the spans with the correlation id."""
    return {each.name for each in collector.spans if attributes_of(each).get("loop.correlation_id") == CORRELATION}


async def test_one_correlation_id_is_found_in_header_log_trace_job_event_and_webhook(made: Estate) -> None:
    port = free_port()
    told = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "LOOP_OTEL_SAMPLE_PERCENT": "100"}
    async with collecting(port) as collector, merchant_server() as merchant:
        api = await made.begin("--only", "api", **told)
        token = await made.open_shop(api, f"{merchant.url}/hook")
        order = await made.call(api, token, "POST", "/v1/orders", {"amount": 4999, "currency": "USD"})
        headers = {"Authorization": f"Bearer {token}", "X-Correlation-ID": CORRELATION}
        content = {"paymentMethod": {"type": "card", "token": "tok_pending"}}
        async with made.session.post(f"{api.url}/v1/orders/{order['id']}/pay", json=content, headers=headers) as paid:
            assert (paid.status, paid.headers["X-Correlation-ID"]) == (200, CORRELATION)
            assert (await paid.json())["status"] == "processing"

        # Nobody is there yet to ask what became of the payment, so its job waits.
        (job,) = await shown(made, "jobs", "list", "--kind", "advance_payment")
        assert (await shown(made, "jobs", "show", job["id"]))["correlationId"] == CORRELATION

        worker = await made.begin("--only", "worker", **told)
        await collector.until(lambda sent: {PAID, "job advance_payment", DELIVERED} <= spans_of(sent))
        for part in (api, worker):
            assert await part.end() == 0, part.said()

        assert {"http.request"} <= logged(api)
        assert {"payment.recorded", "webhook.delivery_tried"} <= logged(worker)
        rows = await shown(made, "event", "list", "a@example.com")
        events = {row["eventType"]: row for row in rows}
        assert {name for name, row in events.items() if row["correlationId"] == CORRELATION} == {
            "payment.processing",  # of the request
            "payment.captured",  # of the job, in the other process
        }
        show = ("event", "show", "a@example.com", events["payment.captured"]["id"])
        assert (await shown(made, *show))["correlationId"] == CORRELATION
        assert f"correlationId  {CORRELATION}\n" in (await made.run(*show))[1]
        (received,) = merchant.of(events["payment.captured"]["id"])
        assert received.headers["X-Correlation-ID"] == CORRELATION
        assert CORRELATION not in received.body.decode(), "the body is the contract's"
