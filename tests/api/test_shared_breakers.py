"""Two processes on one PostgreSQL and one Redis: an account that one of them gives up gets nothing from the other."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from loop.config import Settings
from loop.domain.attempts import Unknown
from loop.domain.breakers import MIN_CALLS
from loop.runtime import Running, running
from tests.api.client import Shop
from tests.servers import running_redis

CARD = {"paymentMethod": {"type": "card", "token": "tok_approve"}}


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with running_redis() as url:
        yield url


@pytest.fixture
def database_url(postgres_database_url: str) -> str:
    return postgres_database_url


@pytest.fixture
def flags(redis_url: str) -> dict[str, object]:
    return {"redis_url": redis_url}


@pytest.fixture
async def second(served: Running, settings: Settings) -> AsyncIterator[Running]:
    """Yield another process beside the one that `served` is."""
    assert served.context.settings is settings
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with running(replace(settings, port=port)) as loop:
        yield loop


async def test_an_account_that_one_process_gives_up_gets_nothing_from_the_other(
    shop: Shop, served: Running, second: Running
) -> None:
    beside = replace(shop, url=second.url)
    assert (await beside.paid_order())["status"] == "captured"
    (account,) = (await shop.get("/api/processors")).body
    for _ in range(MIN_CALLS):
        served.context.breakers.hear(account["id"], Unknown("no answer"), now=served.context.now())
    order = await beside.order()
    async with asyncio.timeout(5):
        while second.context.breakers.not_closed() == []:  # noqa: ASYNC110 - being told is the event
            await asyncio.sleep(0.05)
    refused = await beside.post(f"/v1/orders/{order['id']}/pay", CARD)
    assert (refused.status, refused.code) == (400, "no_eligible_processor")
    assert "its circuit is open" in refused.text
