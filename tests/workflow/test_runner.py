"""Both runners: woken at once, by the clock, never too much at a time, and ended in any way without losing anything.

The inline one on SQLite and on PostgreSQL, the one whose wake-ups arq carries on PostgreSQL with Redis.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from loop.domain.errors import unavailable
from loop.runtime import Chance, opened, system_now
from loop.storage import jobs
from loop.storage.jobs import LEASE, Job
from loop.workers import inline_runner
from loop.workers.arq_runner import ArqRunner
from loop.workers.inline_runner import NAP_S, InlineRunner
from loop.workflows.context import Context
from loop.workflows.jobs import JOBS, JobKind
from tests.builders import job, running_jobs, settings_for

CONCURRENCY = 3


@dataclass(frozen=True)
class Installation:
    """A database, and a Redis where there is one, over which processes of Loop are opened."""

    database_url: str
    redis_url: str | None
    folder: Path

    def runner(self) -> InlineRunner:
        if self.redis_url is None:
            return InlineRunner(CONCURRENCY)
        return ArqRunner(CONCURRENCY, self.redis_url)

    def opened(self, *, ahead: timedelta = timedelta(0)) -> AbstractAsyncContextManager[Context]:
        """Open a process whose clock is the machine's, by which its runner sleeps, or ahead of it."""
        settings = settings_for(self.database_url, self.folder)
        return opened(settings, Chance(now=lambda: system_now() + ahead), runner=self.runner())


@pytest.fixture(params=["inline-sqlite", "inline-postgres", "arq-postgres"])
def here(request: pytest.FixtureRequest, tmp_path: Path) -> Installation:
    runner, database = request.param.split("-")
    redis_url = request.getfixturevalue("redis_url") if runner == "arq" else None
    return Installation(request.getfixturevalue(f"{database}_database_url"), redis_url, tmp_path)


@pytest.fixture
async def context(here: Installation) -> AsyncIterator[Context]:
    async with here.opened() as context:
        yield context


@pytest.fixture
async def wake(here: Installation, context: Context) -> AsyncIterator[Callable[[], None]]:
    """Yield what says that a job may be due: in another process, where those can tell one another."""
    async with AsyncExitStack() as stack:
        other = runner_of(context) if here.redis_url is None else here.runner()
        sending = asyncio.create_task(other.send())
        stack.push_async_callback(other.stop)
        yield other.wake
    await sending


class Bench:
    """Handles jobs of the kind `test`, and knows how many at a time."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.changed = asyncio.Condition()
        self.running = 0
        self.most = 0
        self.hold: asyncio.Event | None = None

    async def handle(self, context: Context, held: Job) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            async with self.changed:
                self.changed.notify_all()
            if self.hold is not None:
                await self.hold.wait()
            async with context.database.transaction() as session:
                jobs.require_held((await session.run_together([jobs.finishing(held)]))[0])
        finally:
            self.running -= 1
        self.done.append(held.id)
        async with self.changed:
            self.changed.notify_all()

    async def until(self, is_so: Callable[[], bool], timeout_s: float = 5) -> None:
        async with asyncio.timeout(timeout_s), self.changed:
            await self.changed.wait_for(is_so)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench()
    monkeypatch.setitem(JOBS, "test", JobKind(made.handle, deadline_s=10))
    return made


async def insert(context: Context, *keys: str, in_s: float = 0, **changes: object) -> None:
    run_at = system_now() + timedelta(seconds=in_s)
    for key in keys:
        await context.database.write_at_once([jobs.insertion(job(key, run_at=run_at, **changes))])


def runner_of(context: Context) -> InlineRunner:
    assert isinstance(context.runner, InlineRunner)
    return context.runner


@asynccontextmanager
async def working(context: Context) -> AsyncIterator[InlineRunner]:
    runner = runner_of(context)
    running = asyncio.create_task(runner.run(context))
    try:
        yield runner
    finally:
        await runner.stop()
        async with asyncio.timeout(5):
            await running  # it ends by itself


async def napping(context: Context) -> None:
    """Wait until the runner has found nothing to do, and sleeps."""
    runner = runner_of(context)
    looks = 0
    async with asyncio.timeout(5):
        while looks < 10:  # between two claims it waits as well, but not for long
            looks = looks + 1 if runner._woken._waiters and not runner._claiming.locked() else 0
            await asyncio.sleep(0.002)


async def test_a_wake_up_is_heard_at_once(
    context: Context, wake: Callable[[], None], bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline_runner, "NAP_S", 60)
    async with working(context):
        await napping(context)
        await insert(context, "a")
        wake()
        await bench.until(lambda: bench.done == ["a"])


async def test_wake_ups_without_number_run_a_job_once(
    context: Context, wake: Callable[[], None], bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline_runner, "NAP_S", 60)
    bench.hold = asyncio.Event()
    async with working(context) as runner:
        await insert(context, "a")
        for _ in range(20):
            wake()
            runner.wake()
            await asyncio.sleep(0.005)
        await bench.until(lambda: bench.running == 1)
        bench.hold.set()
        await bench.until(lambda: bench.done == ["a"])
        await napping(context)
    assert (bench.done, bench.most) == (["a"], 1)


async def test_what_becomes_due_runs_when_it_is_due(
    context: Context, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline_runner, "NAP_S", 60)
    began = system_now()
    await insert(context, "soon", in_s=0.2)
    await insert(context, "sooner", in_s=0.1)
    async with working(context):
        await bench.until(lambda: len(bench.done) == 2)
        assert system_now() - began >= timedelta(seconds=0.2)
    assert set(bench.done) == {"soon", "sooner"}  # a busy machine claims both at once


async def test_what_another_process_commits_is_found_without_a_wake_up(context: Context, bench: Bench) -> None:
    async with working(context):
        await napping(context)
        await insert(context, "a")
        await bench.until(lambda: bench.done == ["a"], timeout_s=NAP_S + 4)


async def insert_for_accounts(context: Context, count: int) -> None:
    """Insert jobs each of which has a lane of its own, so that only the places of the process bound them."""
    for number in range(count):
        await insert(context, f"j{number}", lane=f"pcf_{number}")


async def test_no_more_run_at_a_time_than_may(context: Context, bench: Bench) -> None:
    bench.hold = asyncio.Event()
    await insert_for_accounts(context, 20)
    async with working(context):
        await bench.until(lambda: bench.running == CONCURRENCY)
        bench.hold.set()
        await bench.until(lambda: len(bench.done) == 20)
    assert sorted(bench.done) == sorted(f"j{number}" for number in range(20))
    assert bench.most == CONCURRENCY


async def test_what_there_is_no_room_for_is_not_claimed(context: Context, bench: Bench) -> None:
    bench.hold = asyncio.Event()
    await insert_for_accounts(context, 10)
    async with working(context):
        await bench.until(lambda: bench.running == CONCURRENCY)
        await napping(context)
        async with context.database.reading() as reader:
            assert sum(each.is_leased for each in await jobs.of_subject(reader, "ord_1")) == CONCURRENCY
        bench.hold.set()
        await bench.until(lambda: len(bench.done) == 10)


async def test_jobs_that_hang_at_one_account_leave_room_for_another_s(
    context: Context, wake: Callable[[], None], bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline_runner, "NAP_S", 60)
    sick = Bench()
    sick.hold = asyncio.Event()
    monkeypatch.setitem(JOBS, "sick", JobKind(sick.handle, deadline_s=10))
    await insert(context, *(f"s{number}" for number in range(10)), kind="sick", lane="pcf_sick", in_s=-9)
    async with working(context):
        await sick.until(lambda: sick.running == CONCURRENCY - 1)
        await napping(context)
        await insert(context, *(f"w{number}" for number in range(3)), lane="pcf_well")
        wake()
        await bench.until(lambda: len(bench.done) == 3)
        assert (sick.most, sick.done) == (CONCURRENCY - 1, [])
        sick.hold.set()
        await sick.until(lambda: len(sick.done) == 10)
    assert sick.most == CONCURRENCY - 1


async def test_what_becomes_due_at_a_healthy_account_runs_when_it_is_due(
    context: Context, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline_runner, "NAP_S", 60)
    sick = Bench()
    sick.hold = asyncio.Event()
    monkeypatch.setitem(JOBS, "sick", JobKind(sick.handle, deadline_s=10))
    await insert(context, "s1", "s2", "s3", kind="sick", lane="pcf_sick", in_s=-9)
    await insert(context, "soon", lane="pcf_well", in_s=0.5)
    async with working(context):
        await bench.until(lambda: bench.done == ["soon"])
        sick.hold.set()


async def test_a_database_that_is_away_for_a_while_does_not_end_the_runner(
    context: Context, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline_runner, "NAP_S", 0.01)
    reading = context.database.reading
    refusals = 3

    def refuse_for_a_while() -> AbstractAsyncContextManager[object]:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise unavailable("database_unavailable", "It is away.")
        return reading()

    monkeypatch.setattr(context.database, "reading", refuse_for_a_while)
    await insert(context, "a")
    async with working(context):
        await bench.until(lambda: bench.done == ["a"])
    assert refusals == 0


async def test_a_stop_lets_what_runs_end(context: Context, bench: Bench) -> None:
    bench.hold = asyncio.Event()
    await insert(context, "a", "b")
    async with working(context) as runner:
        await bench.until(lambda: bench.running == 2)
        await napping(context)
        stopping = asyncio.create_task(runner.stop())
        await insert(context, "late")
        runner.wake()
        await asyncio.sleep(0.02)
        assert not stopping.done()
        bench.hold.set()
        await stopping
    assert sorted(bench.done) == ["a", "b"]
    async with context.database.reading() as reader:
        assert [each.id for each in await jobs.of_subject(reader, "ord_1")] == ["late"]


async def test_a_stop_waits_for_what_a_running_job_leads_to(
    context: Context, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.hold = asyncio.Event()
    following = job("following", run_at=system_now() + timedelta(seconds=30), fence=1, is_leased=True)

    async def lead(context: Context, held: Job) -> None:
        await bench.handle(context, held)
        await context.database.write_at_once([jobs.insertion(following)])
        context.runner.start(context, following)

    monkeypatch.setitem(JOBS, "leading", JobKind(lead, deadline_s=10))
    await insert(context, "leading", kind="leading")
    async with working(context) as runner:
        await bench.until(lambda: bench.running == 1)
        stopping = asyncio.create_task(runner.stop())
        await asyncio.sleep(0.02)
        bench.hold.set()
        await stopping
        assert bench.done == ["leading", "following"]


async def test_a_stop_waits_for_what_is_just_being_claimed(context: Context, bench: Bench) -> None:
    await insert(context, "a")
    runner = runner_of(context)
    running = asyncio.create_task(runner.run(context))
    async with asyncio.timeout(5):
        while not runner._claiming.locked():  # noqa: ASYNC110 - the lock has no event
            await asyncio.sleep(0)
    await runner.stop()
    await running
    async with context.database.reading() as reader:
        left = await jobs.of_subject(reader, "ord_1")
    assert [each.id for each in left] == ([] if bench.done else ["a"])
    assert not any(each.is_leased for each in left)


async def test_what_does_not_end_in_time_is_left_to_a_successor(
    context: Context, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline_runner, "SHUTDOWN_S", 0.05)
    bench.hold = asyncio.Event()
    await insert(context, "a")
    async with working(context):
        await bench.until(lambda: bench.running == 1)
    assert (bench.running, bench.done) == (0, [])
    async with context.database.transaction() as session:
        (left,) = await jobs.of_subject(session, "ord_1")
        assert (left.is_leased, left.failures) == (True, 0)
        assert await jobs.claim(session, system_now(), 10) == []
        await jobs.free_leases(session, system_now(), taken_until=system_now())
        (successor,) = await jobs.claim(session, system_now(), 10)
    assert successor.fence == left.fence + 1


async def test_a_job_that_was_just_inserted_with_its_lease_is_run_by_who_starts_it(
    context: Context, bench: Bench
) -> None:
    await insert(context, "mine", in_s=30, fence=1, is_leased=True)
    async with context.database.reading() as reader:
        (mine,) = await jobs.of_subject(reader, "ord_1")
    async with working(context) as runner:
        await runner.start(context, mine)
    assert bench.done == ["mine"]


async def test_two_runners_share_the_work(here: Installation, context: Context, bench: Bench) -> None:
    await insert(context, *(f"j{number}" for number in range(40)))
    async with here.opened() as other, working(context), working(other):
        await bench.until(lambda: len(bench.done) >= 40, timeout_s=10)
    assert sorted(bench.done) == sorted(f"j{number}" for number in range(40))


AFTER_THE_LEASE = LEASE + timedelta(seconds=1)


async def test_what_a_crashed_process_held_is_done_by_another_when_the_lease_ends(
    here: Installation, context: Context, bench: Bench
) -> None:
    bench.hold = asyncio.Event()
    await insert(context, "a")
    running = asyncio.create_task(runner_of(context).run(context))
    await bench.until(lambda: bench.running == 1)
    running.cancel()
    for task in running_jobs(context):  # nothing of it does anything any more, as if it had been killed
        task.cancel()
    await asyncio.gather(running, *running_jobs(context), return_exceptions=True)
    bench.hold.set()
    async with here.opened() as too_early, working(too_early):
        await napping(too_early)
        assert bench.done == []
    async with here.opened(ahead=AFTER_THE_LEASE) as successor, working(successor):
        await bench.until(lambda: bench.done == ["a"])
        async with successor.database.reading() as reader:
            assert await jobs.count(reader) == (0, 0)


async def test_what_a_frozen_process_held_is_another_s_and_stays_so_when_it_thaws(
    here: Installation, context: Context, bench: Bench
) -> None:
    bench.hold = asyncio.Event()
    await insert(context, "a")
    async with working(context):
        await bench.until(lambda: bench.running == 1)
        frozen, bench.hold = bench.hold, None
        async with here.opened(ahead=AFTER_THE_LEASE) as successor, working(successor):
            await bench.until(lambda: bench.done == ["a"])
        (thawing,) = running_jobs(context)
        frozen.set()
        assert await thawing is None
    assert bench.done == ["a"]


async def test_what_is_of_a_later_version_is_left_to_it(
    here: Installation, context: Context, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await insert(context, *(f"new{number}" for number in range(2 * CONCURRENCY)), kind="of a later version")
    await insert(context, "known")
    async with working(context):
        await bench.until(lambda: bench.done == ["known"])
        await napping(context)
    async with context.database.reading() as reader:
        left = await jobs.of_subject(reader, "ord_1")
    assert {(each.fence, each.failures, each.is_dead) for each in left} == {(0, 0, False)}
    monkeypatch.setitem(JOBS, "of a later version", JOBS["test"])
    async with here.opened() as later, working(later):
        await bench.until(lambda: len(bench.done) == 1 + 2 * CONCURRENCY)


async def test_what_a_stop_cut_short_is_handed_back_where_that_is_safe(
    here: Installation, context: Context, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline_runner, "SHUTDOWN_S", 0.05)
    monkeypatch.setitem(JOBS, "safe", JobKind(bench.handle, deadline_s=10, is_handed_back=True))
    bench.hold = asyncio.Event()
    await insert(context, "safe", kind="safe", failures=2, last_error="before")
    await insert(context, "money")
    async with working(context):
        await bench.until(lambda: bench.running == 2)
    async with context.database.reading() as reader:
        left = {each.id: each for each in await jobs.of_subject(reader, "ord_1")}
    assert (left["safe"].is_leased, left["safe"].failures, left["safe"].last_error) == (False, 2, "before")
    assert left["safe"].run_at <= system_now() < left["money"].run_at
    assert left["money"].is_leased
    bench.hold = None
    async with here.opened() as successor, working(successor):
        await bench.until(lambda: bench.done == ["safe"])


async def test_a_stop_ends_also_when_nothing_can_be_handed_back(
    context: Context, bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(inline_runner, "SHUTDOWN_S", 0.05)
    monkeypatch.setitem(JOBS, "safe", JobKind(bench.handle, deadline_s=10, is_handed_back=True))
    bench.hold = asyncio.Event()
    await insert(context, "a", kind="safe")
    async with working(context):
        await bench.until(lambda: bench.running == 1)
        await context.database.close()
    assert sum("jobs.not_handed_back" in record.getMessage() for record in caplog.records) == 1
