"""One payment that two processes had a hand in is one trace, and each process answers figures of its own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.collectors import attributes_of, collecting, free_port
from tests.e2e.roles import Estate, Part, estate
from tests.merchant_server import merchant_server

TOKEN = "reads the metrics 0123456789abcdef"
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
