"""Deadlocks on Postgres: what a job was about to write is undone, and done once when the job runs again."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from loop.domain.attempts import Approved
from loop.domain.orders import OrderStatus
from tests.builders import Clock, Mood, Shop, work_off
from tests.locks import Outsider, find_out_last, outside, until_somebody_waits

pytestmark = pytest.mark.parametrize("database_url", ["postgres"], indirect=True)


@pytest.fixture
async def outsider(postgres_database_url: str) -> AsyncIterator[Outsider]:
    async with outside(postgres_database_url) as connection:
        yield connection


async def test_a_payment_whose_record_meets_a_deadlock_is_charged_and_told_once(
    shop: Shop, clock: Clock, outsider: Outsider, caplog: pytest.LogCaptureFixture
) -> None:
    """The outsider holds the job's row, which is written last, and then wants the order's."""
    order = await shop.order()
    thawed = asyncio.Event()
    answer = Approved("lost", is_captured=True, amount_minor=1_000)
    shop.sandbox.moods.append(Mood("authorize", answer, is_done=True, thawed=thawed))
    paying = asyncio.create_task(shop.pay(order.id))
    await shop.until_called("authorize")
    async with outsider.transaction():
        await find_out_last(outsider)
        await outsider.execute("UPDATE jobs SET lane = lane")
        thawed.set()
        await until_somebody_waits(outsider)
        await outsider.execute("UPDATE orders SET updated_at = updated_at")
    assert (await paying).order.status is OrderStatus.PROCESSING
    assert "DeadlockDetectedError" in caplog.text
    (job,) = await shop.jobs(order.id)
    assert (job.failures, job.is_dead, job.is_leased) == (1, False, False)
    clock.forward(minutes=1)
    await work_off(shop.context)
    assert (await shop.now(order.id)).order.status is OrderStatus.CAPTURED
    assert shop.moved("charge") == [1_000]
    assert (await shop.event_types(order.id)).count("payment.captured") == 1
    assert len(await shop.transactions(order.id)) == 1
