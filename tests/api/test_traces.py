"""Traces: one payment is one trace, from its request to the delivered webhook, and nobody pays for what is off."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from sqlalchemy import select

from loop import otlp
from loop.config import Settings
from loop.domain.errors import LoopError
from loop.runtime import Running, running
from loop.storage import jobs
from loop.storage.statements import Statement
from loop.storage.tables import table
from loop.storage.webhook_tables import WebhookDeliveries
from loop.workers import exports
from tests.api.client import Shop, open_shop
from tests.canaries import aviary, listening
from tests.collectors import Collector, attributes_of, collecting, free_port
from tests.merchant_server import MerchantServer, merchant_server

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = f"{CALLER[:-2]}00"
CORRELATION = "correlates-0001"

PAID = "POST /v1/orders/{order_id}/pay"
DELIVERED = "deliver payment.captured"


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def flags(port: int) -> dict[str, object]:
    return {
        "otel_exporter_otlp_endpoint": f"http://127.0.0.1:{port}",
        "otel_exporter_otlp_headers": "x-token=Basic%20canary-of-a-collector",
        "otel_sample_percent": "100",
        "webhook_allow_networks": "127.0.0.0/8",
    }


@pytest.fixture
async def collector(port: int) -> AsyncIterator[Collector]:
    async with collecting(port) as collector:
        yield collector


@pytest.fixture
async def merchant() -> AsyncIterator[MerchantServer]:
    async with merchant_server() as server:
        yield server


async def pay(shop: Shop, merchant: MerchantServer) -> str:
    """Have the merchant listen, and pay an order; return its id."""
    listens = await shop.post("/api/webhook-endpoints", {"url": f"{merchant.url}/hook"})
    assert listens.status == 201, listens.text
    order = await shop.order()
    content = {"paymentMethod": {"type": "card", "token": "tok_approve"}}
    paid = await shop.post(f"/v1/orders/{order['id']}/pay", content, headers={"X-Correlation-ID": CORRELATION})
    assert paid.status == 200, paid.text
    return str(order["id"])


def parent_of(span: Span, trace: list[Span]) -> Span:
    return next(each for each in trace if each.span_id == span.parent_span_id)


async def test_a_payment_is_one_trace_from_its_request_to_the_delivered_webhook(
    collector: Collector, shop: Shop, merchant: MerchantServer
) -> None:
    with listening() as lines:
        order_id = await pay(shop, merchant)
        await collector.until(lambda sent: bool(sent.named(DELIVERED)) and bool(sent.named(PAID)))
    [request] = collector.named(PAID)
    trace = collector.trace_of(request)
    [job], [call], [delivery] = (
        [each for each in trace if each.name == name]
        for name in ("job advance_payment", "sandbox authorize", DELIVERED)
    )
    assert not request.parent_span_id
    assert parent_of(job, trace) is request
    assert parent_of(call, trace) is job
    assert parent_of(delivery, trace) is job
    assert (request.kind, job.kind, call.kind) == (
        Span.SPAN_KIND_SERVER,
        Span.SPAN_KIND_CONSUMER,
        Span.SPAN_KIND_CLIENT,
    )
    seen = attributes_of(request) | attributes_of(call) | attributes_of(delivery)
    assert seen["http.route"] == "/v1/orders/{order_id}/pay"
    assert seen["http.response.status_code"] == 200
    assert seen["loop.order_id"] == order_id
    assert seen["loop.merchant_id"] == shop.merchant.id
    assert seen["loop.outcome"] == "approved"
    assert str(seen["loop.attempt_id"]).startswith("att_")

    # One correlation id in the spans, in the log with the trace's id, in the delivery's row, and at the merchant.
    trace_id = request.trace_id.hex()
    assert {attributes_of(each)["loop.correlation_id"] for each in (request, job, delivery)} == {CORRELATION}
    told = [json.loads(line) for line in lines]
    recorded = next(line for line in told if line["event"] == "payment.recorded")
    assert (recorded["correlation_id"], recorded["trace_id"]) == (CORRELATION, trace_id)
    [received] = [each for each in merchant.received if each.event_type == "payment.captured"]
    assert received.headers["X-Correlation-ID"] == CORRELATION
    assert received.headers["traceparent"] == f"00-{trace_id}-{delivery.span_id.hex()}-01"
    deliveries = table(WebhookDeliveries)
    row = Statement(
        select(deliveries.c.correlation_id, deliveries.c.trace_context).where(
            deliveries.c.event_id == received.event_id
        ),
        lambda *both: both,
    )
    async with shop.context.database.reading() as reader:
        stored = await reader.first(row, {})
    assert stored == (CORRELATION, f"00-{trace_id}-{job.span_id.hex()}-01")
    aviary.require_none_in(collector.text(), where="what the collector was sent")


async def test_a_strangers_traceparent_is_linked_to_and_not_gone_on_with(collector: Collector, shop: Shop) -> None:
    await shop.get("/v1/orders", headers={"traceparent": CALLER})
    await shop.get("/v1/events", headers={"traceparent": "00-nonsense-01"})
    await collector.until(lambda sent: bool(sent.named("GET /v1/orders")) and bool(sent.named("GET /v1/events")))
    [request], [other] = collector.named("GET /v1/orders"), collector.named("GET /v1/events")
    assert request.trace_id.hex() not in CALLER
    assert [link.trace_id.hex() for link in request.links] == [CALLER[3:35]]
    assert not other.links


async def test_an_unexpected_address_is_a_span_without_its_path(collector: Collector, shop: Shop) -> None:
    await shop.get("/v1/somewhere-else")
    await collector.until(lambda sent: bool(sent.named("GET unmatched")))
    assert "somewhere-else" not in collector.text()


class TestTrusted:
    @pytest.fixture
    def flags(self, port: int) -> dict[str, object]:
        return {
            "otel_exporter_otlp_endpoint": f"http://127.0.0.1:{port}",
            "otel_sample_percent": "0",
            "is_traceparent_trusted": "true",
        }

    async def test_a_trusted_callers_trace_goes_on_as_it_says(self, collector: Collector, shop: Shop) -> None:
        await shop.get("/v1/events", headers={"traceparent": UNSAMPLED})
        await shop.get("/v1/refunds")
        await shop.get("/v1/orders", headers={"traceparent": CALLER})
        await collector.until(lambda sent: bool(sent.spans))
        [request] = collector.spans
        assert request.name == "GET /v1/orders"
        assert (request.trace_id.hex(), request.parent_span_id.hex()) == (CALLER[3:35], CALLER[36:52])


class TestMetrics:
    async def test_the_metrics_are_pushed_as_they_are_scraped(
        self, monkeypatch: pytest.MonkeyPatch, collector: Collector, settings: Settings, session: aiohttp.ClientSession
    ) -> None:
        monkeypatch.setattr(exports, "METRICS_EVERY_S", 0.2)
        async with running(settings) as served:
            shop = await open_shop(session, served.url, served.context)
            await shop.use_sandbox()
            await shop.paid_order()
            await collector.until(lambda sent: "loop_payment_outcomes_total" in sent.metrics)
        outcomes = collector.metrics["loop_payment_outcomes_total"].sum
        assert outcomes.is_monotonic
        assert {attributes_of(each)["processor"] for each in outcomes.data_points} >= {"sandbox"}
        [point] = [
            each
            for each in collector.metrics["loop_http_request_seconds"].histogram.data_points
            if attributes_of(each) == {"method": "POST", "route": PAID[5:], "status": "200"}
        ]
        assert point.count == sum(point.bucket_counts)
        assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
        assert point.sum > 0
        assert collector.metrics["loop_database_up"].gauge.data_points[0].as_double == 1


async def test_a_collector_that_is_away_costs_one_warning(shop: Shop) -> None:
    with listening("loop.otlp") as lines:
        for _ in range(3):
            await shop.get("/v1/orders")
        async with asyncio.timeout(30):
            while not lines:  # noqa: ASYNC110 - the exporter's thread logs it
                await asyncio.sleep(0.05)
        await shop.get("/v1/orders")
    assert [json.loads(line)["event"] for line in lines] == ["otlp.unreachable"]


class TestHanging:
    """A collector that takes what it is sent, notes the headers, and answers only when it is told to."""

    @pytest.fixture
    async def heard(self, port: int) -> AsyncIterator[list[str]]:
        heard: list[str] = []
        may_answer = asyncio.Event()

        async def take(request: web.Request) -> web.Response:
            heard.append(request.headers["x-token"])
            await may_answer.wait()
            return web.Response()

        app = web.Application()
        app.router.add_post("/{path:.*}", take)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield heard
        may_answer.set()
        await runner.cleanup()

    @pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
    async def test_a_collector_that_hangs_holds_up_no_request(
        self, heard: list[str], settings: Settings, session: aiohttp.ClientSession
    ) -> None:
        clock = asyncio.get_running_loop().time
        async with running(settings) as served:
            shop = await open_shop(session, served.url, served.context)
            async with asyncio.timeout(30):
                while not heard:
                    await shop.get("/v1/orders")
                    await asyncio.sleep(0.05)
            began = clock()
            for _ in range(20):
                assert (await shop.get("/v1/orders")).status == 200
            assert clock() - began < otlp.SEND_WITHIN_S, "requests waited for the collector"
            began = clock()
        assert clock() - began < otlp.STOP_WITHIN_S + 2 * otlp.SEND_WITHIN_S + 5
        assert set(heard) == {"Basic canary-of-a-collector"}


async def test_a_job_that_waits_keeps_the_correlation_and_the_trace(collector: Collector, shop: Shop) -> None:
    order = await shop.order()
    content = {"paymentMethod": {"type": "card", "token": "tok_pending"}}
    await shop.post(f"/v1/orders/{order['id']}/pay", content, headers={"X-Correlation-ID": CORRELATION})
    async with shop.context.database.reading() as reader:
        [job] = await jobs.of_subject(reader, order["id"])
    await collector.until(lambda sent: bool(sent.named(PAID)))
    [request] = collector.named(PAID)
    assert job.correlation_id == CORRELATION
    assert job.trace_context == f"00-{request.trace_id.hex()}-{request.span_id.hex()}-01"


async def test_without_the_extra_nothing_starts_and_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, served: Running
) -> None:
    monkeypatch.setitem(sys.modules, "loop.otlp", None)
    with pytest.raises(LoopError, match="it is Loop's extra `otel`") as refused:
        async with exports.exporting(served.context):
            pass
    assert refused.value.code == "otel_not_installed"
