"""Postgres alone: connections that break, that are all in use, and transactions that get in each other's way."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from loop.domain.errors import ErrorKind, LoopError
from loop.storage import merchants, orders, postgres
from loop.storage.postgres import PostgresDatabase, open_postgres
from tests.builders import merchant, order
from tests.locks import Outsider, find_out_last, outside, until_somebody_waits

POOL_SIZE = 3


@pytest.fixture
async def database(postgres_database_url: str) -> AsyncIterator[PostgresDatabase]:
    opened = await open_postgres(postgres_database_url, POOL_SIZE)
    yield opened
    await opened.close()


@pytest.fixture
async def outsider(postgres_database_url: str) -> AsyncIterator[Outsider]:
    async with outside(postgres_database_url) as connection:
        yield connection


async def add(database: PostgresDatabase, number: int) -> None:
    await database.write_at_once([merchants.insertion(merchant(number))])


async def count(database: PostgresDatabase) -> int:
    async with database.reading() as reader:
        return len(await merchants.list_all(reader, 1_000))


async def kick_everybody_else(outsider: Outsider) -> None:
    await outsider.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


def assert_unavailable(error: BaseException | None) -> None:
    assert isinstance(error, LoopError)
    assert (error.code, error.kind) == ("database_unavailable", ErrorKind.UNAVAILABLE)


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(LoopError) as refused:
        await open_postgres("postgresql://nobody@127.0.0.1:1/nothing", 1)
    assert_unavailable(refused.value)


async def test_connections_that_were_cut_are_replaced(database: PostgresDatabase, outsider: Outsider) -> None:
    await asyncio.gather(*(add(database, number) for number in range(POOL_SIZE)))
    await kick_everybody_else(outsider)
    outcomes = await asyncio.gather(*(add(database, number) for number in range(10, 20)), return_exceptions=True)
    for outcome in outcomes:
        if outcome is not None:  # at most the first on each cut connection
            assert_unavailable(outcome)
    assert sum(outcome is not None for outcome in outcomes) <= POOL_SIZE
    await add(database, 30)


async def test_a_connection_that_is_cut_in_a_transaction_leaves_nothing(
    database: PostgresDatabase, outsider: Outsider
) -> None:
    async def work() -> None:
        async with database.transaction() as session:
            await session.run_together([merchants.insertion(merchant(1))])
            await kick_everybody_else(outsider)
            await session.run_together([merchants.insertion(merchant(2))])

    with pytest.raises(LoopError) as refused:
        await work()
    assert_unavailable(refused.value)
    assert await count(database) == 0


async def test_more_callers_than_connections_wait_for_their_turn(database: PostgresDatabase) -> None:
    async with asyncio.timeout(10):
        await asyncio.gather(*(add(database, number) for number in range(20 * POOL_SIZE)))
    assert await count(database) == 20 * POOL_SIZE


async def test_waiting_for_a_connection_is_bounded(
    database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(postgres, "ACQUIRE_TIMEOUT_S", 0.05)
    release = asyncio.Event()

    async def hold() -> None:
        async with database.transaction():
            await release.wait()

    holders = [asyncio.create_task(hold()) for _ in range(POOL_SIZE)]
    await asyncio.sleep(0)
    with pytest.raises(LoopError, match="in use") as refused:
        await add(database, 1)
    assert_unavailable(refused.value)
    assert [record.getMessage() for record in caplog.records] == ["database.connections_in_use"]
    release.set()
    await asyncio.gather(*holders)
    await add(database, 1)


async def test_who_is_cancelled_gives_the_connection_back(database: PostgresDatabase) -> None:
    async def hang() -> None:
        async with database.transaction() as session:
            await session.run_together([merchants.insertion(merchant(1))])
            await asyncio.Event().wait()

    for _ in range(3 * POOL_SIZE):
        hanging = asyncio.create_task(hang())
        await asyncio.wait({hanging}, timeout=0.02)
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
    async with asyncio.timeout(5):
        await add(database, 1)
    assert await count(database) == 1


async def test_a_statement_that_waits_too_long_is_unavailable(
    postgres_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "COMMAND_TIMEOUT_S", 0.5)
    database = await open_postgres(postgres_database_url, POOL_SIZE)
    await add(database, 1)
    await database.write_at_once([orders.insertion(order())])

    async def lock_as_well() -> None:
        async with database.transaction() as session:
            await orders.lock(session, "mer_1", "ord_1")

    async with database.transaction() as session:
        await orders.lock(session, "mer_1", "ord_1")
        with pytest.raises(LoopError) as refused:
            await lock_as_well()
    assert_unavailable(refused.value)
    await lock_as_well()
    await database.close()


async def test_of_two_that_wait_for_each_other_one_is_told_to_come_again(database: PostgresDatabase) -> None:
    await add(database, 1)
    await database.write_at_once([orders.insertion(order())])
    await database.write_at_once([orders.insertion(order(id="ord_2"))])
    both = asyncio.Barrier(2)

    async def rename(first: str, second: str) -> None:
        async with database.transaction() as session:
            for order_id in (first, second):
                found = await orders.lock(session, "mer_1", order_id)
                assert found is not None
                changed = replace(found.order, last_error_message=f"{first} first")
                await session.run_together([orders.updating(changed)])
                if order_id == first:
                    await both.wait()

    outcomes = await asyncio.gather(rename("ord_1", "ord_2"), rename("ord_2", "ord_1"), return_exceptions=True)
    refused = [outcome for outcome in outcomes if outcome is not None]
    assert len(refused) == 1
    assert_unavailable(refused[0])
    async with database.reading() as reader:
        one, other = [await orders.get(reader, "mer_1", order_id) for order_id in ("ord_1", "ord_2")]
    assert one is not None
    assert other is not None
    assert one.last_error_message == other.last_error_message


async def backend(database: PostgresDatabase) -> int:
    """Return which of the server's processes the only connection has."""
    connection = await database._connections.take()
    found = await connection.fetchval("SELECT pg_backend_pid()")
    database._connections.give_back(connection, is_usable=True)
    return int(found)


async def add_and_lock(database: PostgresDatabase) -> None:
    async with database.transaction() as session:
        await session.run_together([merchants.insertion(merchant(2))])
        await merchants.lock(session, "mer_1")


async def test_waiting_for_another_s_row_is_bounded_by_the_server_and_costs_no_connection(
    postgres_database_url: str, outsider: Outsider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "LOCK_TIMEOUT_S", 0.1)
    database = await open_postgres(postgres_database_url, 1)
    await add(database, 1)
    before = await backend(database)
    async with outsider.transaction():
        await outsider.execute("SELECT 1 FROM merchants FOR UPDATE")
        with pytest.raises(LoopError) as refused:
            await add_and_lock(database)
    assert_unavailable(refused.value)
    assert await count(database) == 1
    assert await backend(database) == before
    await database.close()


async def test_a_statement_that_takes_too_long_is_ended_by_the_server(
    postgres_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "STATEMENT_TIMEOUT_S", 0.1)
    database = await open_postgres(postgres_database_url, 1)
    before = await backend(database)
    with pytest.raises(LoopError) as refused:
        async with database.reading() as reader:
            await reader._connection.execute("SELECT pg_sleep(5)")
    assert_unavailable(refused.value)
    assert await backend(database) == before
    await database.close()


async def test_a_process_that_froze_in_a_transaction_lets_go_of_its_rows(
    postgres_database_url: str, monkeypatch: pytest.MonkeyPatch, database: PostgresDatabase
) -> None:
    await add(database, 1)
    await database.write_at_once([orders.insertion(order())])
    monkeypatch.setattr(postgres, "IDLE_TRANSACTION_S", 0.2)
    frozen = await open_postgres(postgres_database_url, 1)

    async def freeze() -> None:
        async with frozen.transaction() as session:
            found = await orders.lock(session, "mer_1", "ord_1")
            async with database.transaction() as other:
                assert await orders.lock(other, "mer_1", "ord_1") == found
            await session.run_together([merchants.insertion(merchant(2))])

    with pytest.raises(LoopError) as refused:
        await freeze()
    assert_unavailable(refused.value)
    assert await count(database) == 1
    await add(frozen, 2)
    await frozen.close()


async def test_writes_of_their_own_that_meet_a_deadlock_are_run_again(
    database: PostgresDatabase, outsider: Outsider
) -> None:
    """The outsider has the second row, and wants the first, which the writes have."""
    await add(database, 1)
    for order_id in ("ord_1", "ord_2"):
        await database.write_at_once([orders.insertion(order(id=order_id))])
    async with database.reading() as reader:
        both = [await orders.get(reader, "mer_1", order_id) for order_id in ("ord_1", "ord_2")]
    changes = [orders.updating(replace(found, description="x", last_error_message="me")) for found in both if found]
    async with outsider.transaction():
        await find_out_last(outsider)
        await outsider.execute("UPDATE orders SET updated_at = updated_at WHERE id = 'ord_2'")
        writing = asyncio.create_task(database.write_at_once(changes))
        await until_somebody_waits(outsider)
        await outsider.execute("UPDATE orders SET updated_at = updated_at WHERE id = 'ord_1'")
        assert not writing.done()
    assert await writing == [1, 1]
    assert await outsider.fetchval("SELECT count(*) FROM orders WHERE last_error_message = 'me'") == 2
