"""Clocks that are off: of nodes ten minutes apart one alone writes, and one that is turned back loses nothing."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from loop import runtime
from loop.domain.errors import LoopError
from loop.runtime import opened, system_now
from loop.storage import database_clock, jobs
from loop.storage.database import Database
from loop.storage.database_clock import SLOW_LOOK_S, DatabaseClock
from loop.storage.jobs import LeaseLostError
from loop.workflows.context import Context
from loop.workflows.tokens import SKEW, Claims, issue_access_token, verify
from tests.builders import Clock, Shop, job, settings_for, work_off

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


# On PostgreSQL the processes go by the database's clock.


async def claimed(context: Context) -> list[str]:
    async with context.database.transaction() as session:
        return [each.id for each in await jobs.claim(session, context.now(), 10)]


async def test_of_two_processes_whose_clocks_are_apart_neither_takes_the_other_s_lease(
    postgres_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "LEASE", timedelta(seconds=2))
    settings = settings_for(postgres_database_url, tmp_path)
    monkeypatch.setattr(runtime, "system_now", lambda: system_now() + OFF)
    async with opened(settings) as ahead:
        monkeypatch.setattr(runtime, "system_now", lambda: system_now() - OFF)
        async with opened(settings) as behind:
            assert abs(ahead.now() - behind.now()) < timedelta(seconds=1)
            for first, second in ((ahead, behind), (behind, ahead)):
                await first.database.write_at_once([jobs.insertion(job(run_at=first.now()))])
                async with first.database.transaction() as session:
                    (held,) = await jobs.claim(session, first.now(), 10)
                assert await claimed(second) == []
                async with first.database.transaction() as session:
                    await jobs.renew(session, held, first.now())
                assert await claimed(second) == []
                await _finish(first, held)
            await ahead.database.write_at_once([jobs.insertion(job(run_at=ahead.now()))])
            assert await claimed(ahead) == ["job_1"]
            async with asyncio.timeout(10):
                while await claimed(behind) != ["job_1"]:  # noqa: ASYNC110 - it is the time that ends the lease
                    await asyncio.sleep(0.05)


async def test_a_machine_s_clock_that_is_off_is_told_of(
    postgres_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runtime, "system_now", lambda: system_now() + OFF)
    async with opened(settings_for(postgres_database_url, tmp_path)):
        pass
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == ["clock.off"]


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_the_time_goes_on_between_looks_and_a_slow_look_changes_nothing(database: Database) -> None:
    seconds = [100.0]
    clock = DatabaseClock(monotonic=lambda: seconds.pop(0) if len(seconds) > 1 else seconds[0])
    with pytest.raises(RuntimeError):
        clock.now()
    await clock.look(database)
    first = clock.now()
    assert abs(first - system_now()) < OFF / 10
    seconds[0] += 60
    assert clock.now() == first + timedelta(seconds=60)
    seconds[:] = [200, 200 + 2 * SLOW_LOOK_S]
    await clock.look(database)
    assert clock.now() == first + timedelta(seconds=100 + 2 * SLOW_LOOK_S)
    seconds[:] = [300, 300 + SLOW_LOOK_S]
    await clock.look(database)
    assert abs(clock.now() - system_now()) < OFF / 10


async def test_it_is_looked_at_again_and_again(
    postgres_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_clock, "LOOK_EVERY_S", 0.01)
    looks: list[Database] = []
    look = DatabaseClock.look

    async def counted(self: DatabaseClock, database: Database) -> None:
        looks.append(database)
        await look(self, database)

    monkeypatch.setattr(DatabaseClock, "look", counted)
    async with opened(settings_for(postgres_database_url, tmp_path)), asyncio.timeout(5):
        while len(looks) < 3:  # noqa: ASYNC110 - each look is the event
            await asyncio.sleep(0.01)
