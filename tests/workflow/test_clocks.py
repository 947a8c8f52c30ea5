"""Clocks that are off: of nodes ten minutes apart one alone writes, and one that is turned back loses nothing."""

from dataclasses import replace
from datetime import timedelta

import pytest

from loop.domain.errors import LoopError
from loop.storage import jobs
from loop.storage.jobs import LeaseLostError
from loop.workflows.context import Context
from loop.workflows.tokens import SKEW, Claims, issue_access_token, verify
from tests.builders import Clock, Shop, job, work_off

OFF = timedelta(minutes=10)
CLAIMS = Claims("mer_1", "fam_1")


async def _finish(context: Context, held: jobs.Job) -> None:
    async with context.database.transaction() as session:
        jobs.require_held((await session.run_together([jobs.finishing(held)]))[0])


async def test_a_node_whose_clock_is_ahead_takes_a_lease_over_and_its_holder_changes_nothing_any_more(
    context: Context, clock: Clock
) -> None:
    await context.database.write_at_once([jobs.insertion(job(run_at=clock.at))])
    async with context.database.transaction() as session:
        (held,) = await jobs.claim(session, clock.at, 10)
    async with context.database.transaction() as session:
        (taken,) = await jobs.claim(session, clock.at + OFF, 10)
    with pytest.raises(LeaseLostError):
        await _finish(context, held)
    await _finish(context, taken)


async def test_a_node_whose_clock_is_behind_takes_no_lease_over(context: Context, clock: Clock) -> None:
    await context.database.write_at_once([jobs.insertion(job(run_at=clock.at))])
    async with context.database.transaction() as session:
        (held,) = await jobs.claim(session, clock.at, 10)
    async with context.database.transaction() as session:
        assert await jobs.claim(session, clock.at - OFF, 10) == []
    await _finish(context, held)


async def test_a_clock_that_is_turned_back_loses_no_job(shop: Shop, clock: Clock) -> None:
    """The clock jumps back while a refund is under way, whose process dies: it is made once, if later than it might."""
    order = (await shop.paid()).order
    shop.wait_s = 0
    shop.hang_next("refund")
    await shop.refund(order.id, 400)
    await shop.until_called("refund")
    clock.at -= OFF
    await shop.lose_process()
    await work_off(shop.context)
    assert shop.moved("refund") == []
    clock.at += OFF + jobs.LEASE
    await work_off(shop.context)
    assert shop.moved("refund") == [400]


async def test_a_token_lasts_its_time_and_no_longer_and_may_be_a_moment_ahead(context: Context, clock: Clock) -> None:
    token = issue_access_token(context, CLAIMS, clock.at)
    lifetime = timedelta(seconds=context.settings.access_token_ttl_s)

    def seen_after(off: timedelta) -> Claims:
        return verify(replace(context, now=lambda: clock.at + off), token)

    second = timedelta(seconds=1)
    assert seen_after(lifetime - second) == seen_after(second - SKEW) == CLAIMS
    for off in (lifetime + second, lifetime + OFF, -OFF):
        with pytest.raises(LoopError, match="invalid_token"):
            seen_after(off)
