"""Redis goes away while Loop serves: it says so, and everything else is answered as before."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import aiohttp
import pytest
from redis.asyncio import Redis

from loop.config import Settings
from loop.domain.roles import Role
from loop.runtime import running
from loop.workers import arq_runner, exports, redis_breakers
from loop.workflows import vitals
from tests.api.client import open_shop
from tests.collectors import Collector, attributes_of, collecting, free_port
from tests.servers import running_redis


@pytest.fixture
def database_url(postgres_database_url: str) -> str:
    return postgres_database_url


@pytest.fixture
def redis() -> Iterator[str]:
    with running_redis() as url:
        yield url


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def flags(redis: str, port: int) -> dict[str, object]:
    return {"redis_url": redis, "otel_exporter_otlp_endpoint": f"http://127.0.0.1:{port}"}


async def test_a_collector_is_told_of_redis_by_a_loop_that_nobody_asks(
    settings: Settings, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "METRICS_EVERY_S", 0.2)
    monkeypatch.setattr(vitals, "KEPT_S", 0.0)
    monkeypatch.setattr(arq_runner, "SENT_EVERY_S", 0.2)
    monkeypatch.setattr(redis_breakers, "RETRY_AFTER_S", 0.2)
    url = str(settings.redis_url)
    async with collecting(port) as collector, running(settings, roles={Role.API}):

        async def tells(wanted: float) -> None:
            def is_told(sent: Collector) -> bool:
                told = sent.metrics["loop_redis_up"].gauge.data_points if "loop_redis_up" in sent.metrics else []
                found = {attributes_of(each)["used_for"]: each.as_double for each in told}
                return found == dict.fromkeys(("limits", "wake_ups", "breakers"), wanted)

            await collector.until(is_told)

        await tells(1)
        async with Redis.from_url(url) as client:
            await client.shutdown(nosave=True)
        await tells(0)
        with running_redis(urlsplit(url).port):
            await tells(1)


async def test_ready_tells_of_redis_and_orders_go_on(settings: Settings, session: aiohttp.ClientSession) -> None:
    with ExitStack() as stack:
        async with running(settings) as served:
            shop = await open_shop(session, served.url, served.context)
            await shop.use_sandbox()

            async def checks() -> object:
                ready = await shop.get("/health/ready", auth={})
                assert (ready.status, ready.body["status"]) == (200, "ok")
                return ready.body["checks"]

            assert await checks() == {"database": "ok", "redis": "ok"}
            assert settings.redis_url is not None
            client = Redis.from_url(settings.redis_url)
            await client.shutdown(nosave=True)
            await client.aclose()
            assert await checks() == {"database": "ok", "redis": "down"}
            for _ in range(5):
                order = await shop.post("/v1/orders", {"amount": 1_000, "currency": "EUR"})
                assert order.status in (200, 201), order.body
                token = {"paymentMethod": {"type": "card", "token": "tok_approve"}}
                paid = await shop.post(f"/v1/orders/{order.body['id']}/pay", token)
                assert (paid.status, paid.body["status"]) == (200, "captured")
            stack.enter_context(running_redis(urlsplit(settings.redis_url).port))
            async with asyncio.timeout(10):
                while await checks() != {"database": "ok", "redis": "ok"}:  # noqa: ASYNC110 - of another process
                    await asyncio.sleep(0.05)
