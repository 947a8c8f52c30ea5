"""Leases: a processor is called only by a job that is its worker's for longer than the call may take."""

import asyncio
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta

import pytest

from loop.domain.errors import unavailable
from loop.storage import jobs
from loop.storage.jobs import LEASE, Job, LeaseLostError
from loop.workers.execute import execute
from loop.workflows.context import Context
from loop.workflows.leases import Lease
from tests.builders import Clock, Shop, job

FROZEN = timedelta(minutes=4)


async def claimed(shop: Shop, kind: str) -> Job:
    """Claim the one job of a kind that is due."""
    async with shop.context.database.transaction() as session:
        (found,) = [each for each in await jobs.claim(session, shop.clock.now(), 10) if each.kind == kind]
    return found


async def refund_to_send(shop: Shop) -> Job:
    """Claim the job of a refund whose first worker died in the middle of its call."""
    order = (await shop.paid()).order
    shop.wait_s = 0
    shop.hang_next("refund")
    await shop.refund(order.id, 400)
    await shop.until_called("refund")
    await shop.lose_process()
    shop.clock.at += LEASE
    held = await claimed(shop, "send_refund")
    shop.sandbox.calls.clear()
    return held


async def lease_end(context: Context, held: Job) -> datetime:
    async with context.database.reading() as reader:
        (found,) = await jobs.of_subject(reader, held.subject)
    return found.run_at


async def test_who_was_frozen_does_not_call_beside_its_successor(
    shop: Shop, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    frozen = await refund_to_send(shop)
    clock.at += FROZEN
    successor = await claimed(shop, "send_refund")
    shop.hang_next("refund")
    calling = asyncio.create_task(execute(shop.context, successor))
    await shop.until_called("refund")
    assert await execute(shop.context, frozen) is None
    assert len(shop.sandbox.called("refund")) == 1
    assert [each.message for each in caplog.records if "lost" in each.message] == ["job.lease_lost"]
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)


async def test_a_lease_that_is_nearly_over_is_renewed_before_the_call(shop: Shop, clock: Clock) -> None:
    held = await refund_to_send(shop)
    clock.forward(seconds=LEASE.total_seconds() - shop.context.settings.processor_timeout_s - 1)
    shop.hang_next("refund")
    calling = asyncio.create_task(execute(shop.context, held))
    await shop.until_called("refund")
    assert await lease_end(shop.context, held) == held.run_at  # just enough is left
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)

    clock.forward(seconds=2)
    shop.sandbox.calls.clear()
    shop.hang_next("refund")
    calling = asyncio.create_task(execute(shop.context, held))
    await shop.until_called("refund")
    assert await lease_end(shop.context, held) > held.run_at
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)


async def test_who_only_overslept_its_lease_holds_it_again_and_calls(shop: Shop, clock: Clock) -> None:
    held = await refund_to_send(shop)
    clock.at += FROZEN
    await execute(shop.context, held)
    assert len(shop.sandbox.called("refund")) == 1
    assert shop.moved("refund") == [400]


async def test_without_a_database_that_renews_the_lease_nobody_is_called(
    shop: Shop, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = await refund_to_send(shop)
    clock.at += FROZEN

    def refuse() -> AbstractAsyncContextManager[object]:
        raise unavailable("database_unavailable", "It is away.")

    monkeypatch.setattr(shop.context.database, "transaction", refuse)
    assert await execute(shop.context, held) is None
    assert shop.sandbox.calls == []


async def test_a_lease_that_is_known_to_be_lost_covers_no_call_any_more(context: Context, clock: Clock) -> None:
    await context.database.write_at_once([jobs.insertion(job())])
    async with context.database.transaction() as session:
        (held,) = await jobs.claim(session, clock.now(), 10)
    lease = Lease(held, context.database, context.now, call_s=20)
    await lease.cover_call()
    await context.database.write_at_once([jobs.finishing(held)])
    await lease.cover_call()  # it is not asked for before it has to be
    with pytest.raises(LeaseLostError):
        await lease.renew()
    with pytest.raises(LeaseLostError):
        await lease.cover_call()
