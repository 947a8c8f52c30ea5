"""Redis goes away while Loop serves: it says so, and everything else is answered as before."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import aiohttp
import pytest
from redis.asyncio import Redis

from loop.config import Settings
from loop.runtime import running
from tests.api.client import open_shop
from tests.servers import running_redis


@pytest.fixture
def database_url(postgres_database_url: str) -> str:
    return postgres_database_url


@pytest.fixture
def redis() -> Iterator[str]:
    with running_redis() as url:
        yield url


@pytest.fixture
def flags(redis: str) -> dict[str, object]:
    return {"redis_url": redis}


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
