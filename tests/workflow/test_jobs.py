"""Jobs as rows: one holder at a time, a fence at every write, and nothing lost or done by two."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import timedelta

import asyncpg
import pytest

from loop.storage import jobs, merchants
from loop.storage.database import Database
from loop.storage.jobs import LEASE, Job, LeaseLostError
from loop.storage.tables import DELIVER
from loop.workers import execute as executing
from loop.workers.execute import execute
from loop.workflows.context import Context
from loop.workflows.jobs import JOBS, MAX_BACKOFF_S, JobKind, backoff_s
from tests.builders import MIDNIGHT, Clock, job, merchant, work_off
from tests.servers import run_sql


async def insert(database: Database, *new: Job) -> list[int]:
    return [(await database.write_at_once([jobs.insertion(each)]))[0] for each in new]


async def claim(database: Database, clock: Clock, limit: int = 10) -> list[Job]:
    async with database.transaction() as session:
        return [*await jobs.claim(session, clock.now(), limit)]


async def the_job(database: Database) -> Job:
    async with database.reading() as reader:
        (only,) = await jobs.of_subject(reader, "ord_1")
    return only


# The rows.


async def test_a_claim_takes_what_is_due_raises_the_fence_and_sets_the_lease(database: Database, clock: Clock) -> None:
    await insert(database, job("due"), job("later", run_at=MIDNIGHT + timedelta(hours=1)), job("dead", is_dead=True))
    (claimed,) = await claim(database, clock)
    assert (claimed.id, claimed.fence, claimed.is_leased) == ("due", 1, True)
    assert claimed.run_at == clock.at + LEASE
    assert await claim(database, clock) == []


async def test_due_and_lease_ended_are_one(database: Database, clock: Clock) -> None:
    await insert(database, job())
    (first,) = await claim(database, clock)
    clock.forward(seconds=LEASE.total_seconds() - 1)
    assert await claim(database, clock) == []
    clock.forward(seconds=1)
    (second,) = await claim(database, clock)
    assert (second.id, second.fence) == (first.id, 2)


async def test_the_longest_due_come_first_and_never_more_than_asked_for(database: Database, clock: Clock) -> None:
    await insert(database, *(job(f"j{n}", run_at=MIDNIGHT - timedelta(minutes=n)) for n in range(10)))
    claimed = await claim(database, clock, limit=3)
    assert {each.id for each in claimed} == {"j9", "j8", "j7"}


async def test_claimers_never_get_the_same_job(database: Database, same_database: Database, clock: Clock) -> None:
    await database.write_at_once([jobs.insertion(job(f"j{n}")) for n in range(150)])

    async def claim_all(side: Database) -> list[str]:
        ids = []
        while claimed := await claim(side, clock, limit=7):
            assert len(claimed) <= 7
            ids += [each.id for each in claimed]
        return ids

    async def until_nothing_is_left(side: Database) -> list[str]:
        ids = await claim_all(side)
        return ids + await claim_all(side)  # the other side may have held locked rows meanwhile

    found = await asyncio.gather(*(until_nothing_is_left(side) for side in (database, same_database) * 3))
    ids = [each for part in found for each in part]
    assert sorted(ids) == sorted(f"j{n}" for n in range(150))
    assert sum(bool(part) for part in found) > 1


async def test_a_stale_holder_s_write_is_rolled_back_with_all_that_came_with_it(
    database: Database, same_database: Database, clock: Clock
) -> None:
    await insert(database, job())
    (stale,) = await claim(database, clock)
    clock.forward(minutes=1)
    (holder,) = await claim(same_database, clock)

    async def write(side: Database, held: Job, number: int) -> None:
        async with side.transaction() as session:
            counts = await session.run_together([merchants.insertion(merchant(number)), jobs.finishing(held)])
            jobs.require_held(counts[-1])

    with pytest.raises(LeaseLostError):
        await write(database, stale, 1)
    await write(same_database, holder, 2)
    with pytest.raises(LeaseLostError):
        await write(same_database, holder, 3)
    async with database.reading() as reader:
        assert [each.id for each in await merchants.list_all(reader, 10)] == ["mer_2"]
        assert await jobs.count(reader) == (0, 0)


async def test_a_stale_holder_can_neither_renew_nor_give_back(database: Database, clock: Clock) -> None:
    await insert(database, job())
    (stale,) = await claim(database, clock)
    clock.forward(minutes=1)
    (holder,) = await claim(database, clock)
    async with database.transaction() as session:
        assert await session.run_together([jobs.rescheduling(stale, MIDNIGHT)]) == [0]
        with pytest.raises(LeaseLostError):
            await jobs.renew(session, stale, clock.now())
        await jobs.renew(session, holder, clock.now())
    assert (await the_job(database)).run_at == clock.at + LEASE


async def test_a_live_job_keeps_its_key_to_itself(database: Database, clock: Clock) -> None:
    twin = job("twin", dedupe_key="job_1")
    assert await insert(database, job(), twin) == [1, 0]
    (claimed,) = await claim(database, clock)
    assert await insert(database, twin) == [0]
    await database.write_at_once([jobs.finishing(claimed)])
    assert await insert(database, twin) == [1]


async def test_a_job_can_be_made_to_run_soon(database: Database, clock: Clock) -> None:
    await insert(database, job(run_at=MIDNIGHT + timedelta(days=1)))

    async def run_soon(key: str) -> bool:
        async with database.transaction() as session:
            return await jobs.run_soon(session, key, clock.now())

    assert not await run_soon("another")
    assert await run_soon("job_1")
    (claimed,) = await claim(database, clock)
    assert not await run_soon("job_1")  # it is being run
    await database.write_at_once([jobs.rescheduling(claimed, clock.now(), failures=20, is_dead=True)])
    assert await claim(database, clock) == []
    assert await run_soon("job_1")
    (revived,) = await claim(database, clock)
    assert (revived.is_dead, revived.failures, revived.fence) == (False, 0, 2)


async def test_who_is_alone_frees_old_leases_at_once(database: Database, clock: Clock) -> None:
    await insert(database, job(), job("later", run_at=MIDNIGHT + timedelta(hours=1)), job("dead", is_dead=True))
    (held,) = await claim(database, clock)
    async with database.transaction() as session:
        assert await jobs.free_leases(session, clock.now(), taken_until=clock.at - timedelta(seconds=1)) == 0
        assert await jobs.free_leases(session, clock.now(), taken_until=clock.now()) == 1
    (again,) = await claim(database, clock)
    assert (again.id, again.fence) == (held.id, 2)


async def test_when_the_next_is_due_and_how_many_there_are(database: Database) -> None:
    async with database.reading() as reader:
        assert await jobs.next_due(reader) is None
        assert await jobs.count(reader) == (0, 0)
    in_an_hour = MIDNIGHT + timedelta(hours=1)
    await insert(database, job("later", run_at=in_an_hour), job("dead", is_dead=True))
    async with database.reading() as reader:
        assert await jobs.next_due(reader) == in_an_hour
        assert await jobs.count(reader) == (1, 1)


# Running them.

Handler = Callable[[Context, Job], Awaitable[object]]


class BoomError(Exception):
    """What a handler raises."""


@pytest.fixture
def handle(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that says how jobs of the kind `test` are handled."""

    def register(handler: Handler, *, deadline_s: float = 10, max_failures: int = 20) -> None:
        monkeypatch.setitem(JOBS, "test", JobKind(handler, deadline_s, max_failures))

    return register


async def fail(_: Context, job: Job) -> None:
    raise BoomError(f"could not do {job.id}")


async def finish(context: Context, held: Job) -> str:
    async with context.database.transaction() as session:
        jobs.require_held((await session.run_together([jobs.finishing(held)]))[0])
    return "done"


async def claimed_job(context: Context, clock: Clock) -> Job:
    await insert(context.database, job())
    (claimed,) = await claim(context.database, clock)
    return claimed


async def test_a_handler_s_result_is_the_result(context: Context, clock: Clock, handle: Callable[..., None]) -> None:
    handle(finish)
    assert await execute(context, await claimed_job(context, clock)) == "done"
    async with context.database.reading() as reader:
        assert await jobs.count(reader) == (0, 0)


async def test_a_failure_is_tried_again_later(context: Context, clock: Clock, handle: Callable[..., None]) -> None:
    handle(fail)
    claimed = await claimed_job(context, clock)
    assert await execute(context, claimed) is None
    after = await the_job(context.database)
    assert (after.failures, after.is_leased, after.is_dead) == (1, False, False)
    assert after.last_error is not None
    assert "could not do job_1" in after.last_error
    assert after.run_at <= clock.at + timedelta(seconds=backoff_s(1, 1))


async def test_after_too_many_failures_a_job_is_dead_and_kept(
    context: Context, clock: Clock, handle: Callable[..., None]
) -> None:
    handle(fail, max_failures=3)
    await insert(context.database, job())
    for _ in range(10):
        await work_off(context)
        clock.forward(seconds=MAX_BACKOFF_S)
    after = await the_job(context.database)
    assert (after.failures, after.fence, after.is_dead) == (3, 3, True)
    async with context.database.reading() as reader:
        assert await jobs.next_due(reader) is None


async def test_a_kind_that_is_not_asked_for_is_neither_claimed_nor_on_the_agenda(
    database: Database, clock: Clock
) -> None:
    known = frozenset({"test", DELIVER})
    await insert(database, job("later s", kind="of a later version"), job("known"), job("line", kind=DELIVER))
    async with database.transaction() as session:
        claimed = await jobs.claim(session, clock.now(), 10, kinds=known)
        assert {each.id for each in claimed} == {"known", "line"}
        agenda = await jobs.agenda(session, known)
        assert (agenda.jobs_at, agenda.deliveries_at) == (clock.at + LEASE, clock.at + LEASE)
        (left,) = await jobs.claim(session, clock.now(), 10)
    assert (left.id, left.fence) == ("later s", 1)


async def test_of_a_full_lane_nothing_is_claimed_nor_on_the_agenda(database: Database, clock: Clock) -> None:
    in_an_hour = clock.at + timedelta(hours=1)
    line = job("line", kind=DELIVER, lane="pcf_2")
    await insert(database, *(job(f"{lane} due", lane=lane) for lane in ("pcf_1", "pcf_2", "pcf_3")), line)
    await insert(database, job("later", lane="pcf_4", run_at=in_an_hour))
    full = ("pcf_1", "pcf_2")
    async with database.transaction() as session:
        claimed = await jobs.claim(session, clock.now(), 10, full_lanes=full)
        assert {each.id for each in claimed} == {"pcf_3 due", "line"}
        assert (await jobs.agenda(session, full_lanes=(*full, "pcf_3"))).jobs_at == in_an_hour
        assert (await jobs.agenda(session)).jobs_at == MIDNIGHT


CLAIMS = [
    jobs._claiming_of(frozenset({"test", "another"}), has_full_lanes=False),
    jobs._claiming_of(frozenset({"test", "another"}), has_full_lanes=True),
    jobs._CLAIM_DELIVERIES,
]
BOUNDS = {
    "now": MIDNIGHT,
    "lease_ends_at": MIDNIGHT + LEASE,
    "limit": 24,
    "full_lanes": ["pcf_1", "pcf_2"],
}
ROWS = """
    INSERT INTO jobs (id, kind, subject, arguments, dedupe_key, lane, run_at, is_leased, is_dead, fence, created_at)
    SELECT 'j' || n, 'test', 'ord_1', '{}', 'k' || n, 'pcf_' || n % 5, '2027-01-01', false, false, 0, '2026-01-01'
    FROM """


async def test_postgres_claims_by_index(postgres_database_url: str) -> None:
    run_sql(postgres_database_url, f"{ROWS} generate_series(1, 20000) AS n; ANALYZE jobs")
    connection = await asyncpg.connect(postgres_database_url)
    for statement in CLAIMS:
        compiled = statement.for_postgres()
        plan = [line[0] for line in await connection.fetch("EXPLAIN " + compiled.text, *compiled.arguments(BOUNDS))]
        assert any("Index Scan using ix_jobs_due" in line for line in plan), "\n".join(plan)
        assert not [line for line in plan if "Seq Scan" in line], "\n".join(plan)
    await connection.close()


def test_sqlite_claims_by_index(sqlite_database_url: str) -> None:
    with closing(sqlite3.connect(sqlite_database_url.removeprefix("sqlite:///"))) as connection:
        for statement in CLAIMS:
            compiled = statement.for_sqlite()
            plan = connection.execute("EXPLAIN QUERY PLAN " + compiled.text, compiled.arguments(BOUNDS)).fetchall()
            steps = [row[3] for row in plan]
            assert [step for step in steps if "INDEX ix_jobs_due" in step], steps
            assert not [step for step in steps if step.startswith("SCAN jobs")], steps


async def test_a_handler_that_takes_too_long_has_failed(
    context: Context, clock: Clock, handle: Callable[..., None]
) -> None:
    async def hang(_: Context, __: Job) -> None:
        await asyncio.Event().wait()

    handle(hang, deadline_s=0.02)
    assert await execute(context, await claimed_job(context, clock)) is None
    after = await the_job(context.database)
    assert (after.failures, after.last_error) == (1, "TimeoutError()")


async def test_a_lease_is_renewed_while_the_handler_runs(
    context: Context, clock: Clock, handle: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executing, "RENEW_EVERY_S", 0.01)
    claimed = await claimed_job(context, clock)

    async def wait_for_renewal(context: Context, held: Job) -> object:
        clock.forward(seconds=20)
        while (await the_job(context.database)).run_at == claimed.run_at:  # noqa: ASYNC110 - a row has no event
            await asyncio.sleep(0.005)
        clock.forward(seconds=20)  # the first lease would be over
        assert await claim(context.database, clock) == []
        return await finish(context, held)

    handle(wait_for_renewal)
    assert await execute(context, claimed) == "done"


async def test_a_holder_that_froze_and_thawed_finds_its_lease_lost(
    context: Context, clock: Clock, handle: Callable[..., None]
) -> None:
    thaw, frozen = asyncio.Event(), asyncio.Event()

    async def add_merchant(context: Context, held: Job) -> str:
        if held.fence == 1:
            frozen.set()
            await thaw.wait()
        async with context.database.transaction() as session:
            writes = [merchants.insertion(merchant(held.fence)), jobs.finishing(held)]
            jobs.require_held((await session.run_together(writes))[-1])
        return "done"

    handle(add_merchant)
    stale = asyncio.create_task(execute(context, await claimed_job(context, clock)))
    await frozen.wait()
    clock.forward(minutes=5)
    assert await work_off(context) == 1
    thaw.set()
    assert await stale is None
    async with context.database.reading() as reader:
        assert [each.id for each in await merchants.list_all(reader, 10)] == ["mer_2"]
        assert await jobs.count(reader) == (0, 0)


async def test_a_stale_holder_s_failure_does_not_touch_the_row(
    context: Context, clock: Clock, handle: Callable[..., None]
) -> None:
    handle(fail)
    stale = await claimed_job(context, clock)
    clock.forward(minutes=5)
    (holder,) = await claim(context.database, clock)
    assert await execute(context, stale) is None
    assert await the_job(context.database) == holder


async def test_being_cancelled_is_no_failure(context: Context, clock: Clock, handle: Callable[..., None]) -> None:
    started = asyncio.Event()

    async def hang(_: Context, __: Job) -> None:
        started.set()
        await asyncio.Event().wait()

    handle(hang)
    claimed = await claimed_job(context, clock)
    running = asyncio.create_task(execute(context, claimed))
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await the_job(context.database) == claimed
    clock.forward(minutes=1)
    (successor,) = await claim(context.database, clock)
    assert (successor.fence, successor.failures) == (2, 0)


def test_backoff_grows_to_a_bound_and_is_spread_from_nothing_to_all_of_it() -> None:
    assert [backoff_s(failures, 1) for failures in (1, 2, 3, 9)] == [2, 4, 8, 512]
    assert backoff_s(10, 1) == backoff_s(10_000, 1) == MAX_BACKOFF_S
    assert backoff_s(5, 0) == 0
    assert backoff_s(5, 0.5) == 16


def test_every_kind_ends_in_time_and_may_fail_more_than_once() -> None:
    longest = {name: kind.deadline_s for name, kind in JOBS.items() if kind.deadline_s > 60}
    assert longest == {"reconcile": 900}  # which reads a processor's pages, and no customer waits for
    assert all(kind.deadline_s > 0 and kind.max_failures > 1 for kind in JOBS.values())
