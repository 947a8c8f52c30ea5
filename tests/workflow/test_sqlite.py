"""SQLite alone: many transactions in one commit, a commit that fails, and a file that another process holds."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from loop.domain.errors import ErrorKind, LoopError
from loop.storage import attempts, merchants, orders, sqlite
from loop.storage.database import ConstraintError
from loop.storage.migrate import migrate
from loop.storage.sqlite import SqliteDatabase
from tests.builders import attempt, merchant, order


@pytest.fixture
def path(sqlite_database_url: str) -> Path:
    return Path(sqlite_database_url.removeprefix("sqlite:///"))


@pytest.fixture
async def database(path: Path) -> AsyncIterator[SqliteDatabase]:
    opened = SqliteDatabase(path)
    yield opened
    await opened.close()


@pytest.fixture
def outsider(path: Path) -> Iterator[sqlite3.Connection]:
    """Yield the file as another program has it open."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


async def add(database: SqliteDatabase, number: int) -> None:
    await database.write_at_once([merchants.insertion(merchant(number))])


def kept(path: Path) -> set[int]:
    """Read with a connection of our own which merchants are in the file."""
    with closing(sqlite3.connect(path)) as connection:
        return {int(row[0].removeprefix("mer_")) for row in connection.execute("SELECT id FROM merchants")}


async def test_the_file_is_written_ahead_and_synced_and_holds_foreign_keys(database: SqliteDatabase) -> None:
    settings = {
        name: database._writer.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "foreign_keys", "temp_store")
    }
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "temp_store": 2}


async def test_many_transactions_share_a_commit(database: SqliteDatabase, path: Path) -> None:
    commits: list[str] = []
    database._writer.set_trace_callback(lambda text: commits.append(text) if text.startswith("COMMIT") else None)
    await asyncio.gather(*(add(database, number) for number in range(100)))
    assert kept(path) == set(range(100))
    assert 1 <= len(commits) <= 3


async def test_nobody_is_told_of_success_before_the_commit(database: SqliteDatabase, path: Path) -> None:
    async def add_and_look(number: int) -> set[int]:
        await add(database, number)
        return kept(path)

    seen = await asyncio.gather(*(add_and_look(number) for number in range(50)))
    assert all(number in numbers for number, numbers in enumerate(seen))


async def test_a_commit_that_fails_fails_all_its_members(database: SqliteDatabase, path: Path) -> None:
    await add(database, 1)

    async def break_the_commit() -> None:
        async with database.transaction() as session:
            # SQLite then looks at foreign keys when it commits, and not before.
            database._writer.execute("PRAGMA defer_foreign_keys = ON")
            await session.run_together([attempts.insertion(attempt(order_id="ord_of_nobody"), [])])

    outcomes = await asyncio.gather(
        *(add(database, number) for number in range(2, 10)),
        break_the_commit(),
        *(add(database, number) for number in range(10, 20)),
        return_exceptions=True,
    )
    for outcome in outcomes:
        assert isinstance(outcome, LoopError)
        assert (outcome.code, outcome.kind) == ("database_unavailable", ErrorKind.UNAVAILABLE)
    assert kept(path) == {1}
    await add(database, 2)
    assert kept(path) == {1, 2}


async def test_a_member_that_fails_takes_only_itself(database: SqliteDatabase, path: Path) -> None:
    outcomes = await asyncio.gather(*(add(database, number) for number in (1, 2, 1, 3, 2, 4)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [
        type(None), type(None), ConstraintError, type(None), ConstraintError, type(None),
    ]  # fmt: skip
    assert kept(path) == {1, 2, 3, 4}


async def test_a_member_s_writes_are_undone_together(database: SqliteDatabase, path: Path) -> None:
    async def add_two(one: int, other: int) -> None:
        await database.write_at_once([merchants.insertion(merchant(one)), merchants.insertion(merchant(other))])

    outcomes = await asyncio.gather(add_two(1, 2), add_two(3, 1), add_two(4, 5), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(None), ConstraintError, type(None)]
    assert kept(path) == {1, 2, 4, 5}


async def test_a_full_disk_is_unavailable_and_passes(database: SqliteDatabase, path: Path) -> None:
    await add(database, 1)
    await database.write_at_once([orders.insertion(order())])
    (pages,) = database._writer.execute("PRAGMA page_count").fetchone()
    database._writer.execute(f"PRAGMA max_page_count = {pages}")
    large = order(id="ord_2", description="x" * 200_000)
    outcomes = await asyncio.gather(
        add(database, 2), database.write_at_once([orders.insertion(large)]), add(database, 3), return_exceptions=True
    )
    refused = outcomes[1]
    assert isinstance(refused, LoopError)
    assert refused.code == "database_unavailable"
    for number, outcome in ((2, outcomes[0]), (3, outcomes[2])):
        assert (outcome is None) is (number in kept(path))
    database._writer.execute("PRAGMA max_page_count = 1000000")
    await database.write_at_once([orders.insertion(large)])
    await add(database, 4)
    assert 4 in kept(path)


async def test_sqlite_that_gave_the_transaction_up_fails_the_whole_group(database: SqliteDatabase, path: Path) -> None:
    async def lose_it_all() -> None:
        async with database.transaction():
            database._writer.execute("ROLLBACK")  # as SQLite does by itself on an I/O error
            raise sqlite3.OperationalError("disk I/O error")

    outcomes = await asyncio.gather(
        add(database, 1), lose_it_all(), add(database, 2), add(database, 3), return_exceptions=True
    )
    assert all(isinstance(outcome, Exception) for outcome in outcomes)
    assert kept(path) == set()
    await add(database, 4)
    assert kept(path) == {4}


async def test_who_is_refused_because_of_what_is_lost_then_hears_of_the_loss(
    database: SqliteDatabase, path: Path
) -> None:
    async def lose_it_all() -> None:
        await asyncio.sleep(0)  # behind the others, in their group
        async with database.transaction():
            database._writer.execute("ROLLBACK")  # as SQLite does by itself on an I/O error

    twice = [database.write_at_once([merchants.insertion(merchant(1))]) for _ in range(2)]
    *outcomes, _ = await asyncio.gather(*twice, lose_it_all(), return_exceptions=True)
    codes = [outcome.code for outcome in outcomes if isinstance(outcome, LoopError)]
    assert codes == ["database_unavailable"] * 2  # and for the second no `ConstraintError`: there is no first one
    assert kept(path) == set()


async def test_who_is_cancelled_while_waiting_for_the_commit_hurts_nobody(database: SqliteDatabase, path: Path) -> None:
    tasks = [asyncio.create_task(add(database, number)) for number in range(20)]
    await asyncio.sleep(0)  # all of them have begun
    for task in tasks[::2]:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(outcome is None for outcome in outcomes[1::2])
    assert kept(path) >= set(range(1, 20, 2))
    await add(database, 20)
    assert 20 in kept(path)


async def test_an_outside_writer_delays_but_loses_nothing(
    database: SqliteDatabase, outsider: sqlite3.Connection, path: Path
) -> None:
    await add(database, 0)
    outsider.execute("BEGIN IMMEDIATE")
    outsider.execute("UPDATE merchants SET name = 'renamed'")
    tasks = [asyncio.create_task(add(database, number)) for number in range(1, 30)]
    done, _ = await asyncio.wait(tasks, timeout=0.1)
    assert not done
    async with database.reading() as reader:  # reading goes on meanwhile
        assert [each.name for each in await merchants.list_all(reader, 10)] == ["Shop 0"]
    outsider.execute("COMMIT")
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks)
    assert kept(path) == set(range(30))
    async with database.reading() as reader:
        assert (await merchants.list_all(reader, 1))[0].name == "renamed"


async def test_who_is_cancelled_while_another_process_writes_does_not_jam_the_writer(
    database: SqliteDatabase, outsider: sqlite3.Connection, path: Path
) -> None:
    outsider.execute("BEGIN IMMEDIATE")
    tasks = [asyncio.create_task(add(database, number)) for number in range(5)]
    await asyncio.wait(tasks, timeout=0.03)
    tasks[0].cancel()  # the one that tries to begin for all
    await asyncio.wait(tasks[:1])
    outsider.execute("COMMIT")
    async with asyncio.timeout(5):
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert outcomes[1:] == [None] * 4
    assert kept(path) == {1, 2, 3, 4}


async def test_an_outside_writer_that_stays_makes_everybody_give_up_together(
    database: SqliteDatabase, outsider: sqlite3.Connection, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.3)
    outsider.execute("BEGIN IMMEDIATE")
    async with asyncio.timeout(2):  # not one after the other: ten of them, ten waits
        outcomes = await asyncio.gather(*(add(database, number) for number in range(10)), return_exceptions=True)
    assert [outcome.code for outcome in outcomes if isinstance(outcome, LoopError)] == ["database_unavailable"] * 10
    outsider.execute("COMMIT")
    await add(database, 1)
    assert kept(path) == {1}


async def test_two_processes_take_turns(path: Path) -> None:
    databases = [SqliteDatabase(path) for _ in range(2)]
    await asyncio.gather(*(add(databases[number % 2], number) for number in range(60)))
    for each in databases:
        await each.close()
    assert kept(path) == set(range(60))


async def test_a_transaction_that_runs_is_waited_for_when_the_database_closes(path: Path) -> None:
    database = SqliteDatabase(path)
    has_begun = asyncio.Event()

    async def add_slowly() -> None:
        async with database.transaction() as session:
            has_begun.set()
            await asyncio.sleep(0)
            await session.run_together([merchants.insertion(merchant(1))])

    adding = asyncio.create_task(add_slowly())
    await has_begun.wait()
    await database.close()
    await adding
    assert kept(path) == {1}


async def test_long_reads_leave_the_event_loop_alone_and_see_everything(database: SqliteDatabase) -> None:
    await asyncio.gather(*(add(database, number) for number in range(2_000)))
    async with database.reading() as reader:
        seen = await asyncio.gather(*(merchants.list_all(reader, 5_000) for _ in range(10)))
    assert [len(each) for each in seen] == [2_000] * 10


async def test_a_path_may_have_any_characters(tmp_path: Path) -> None:
    path = tmp_path / "a b?c#d%20é" / "loop?mode=ro.db"
    path.parent.mkdir()
    await migrate(f"sqlite:///{path}")
    database = SqliteDatabase(path)
    await add(database, 1)
    async with database.reading() as reader:
        assert len(await merchants.list_all(reader, 10)) == 1
    await database.close()
    assert kept(path) == {1}
