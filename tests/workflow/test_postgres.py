"""Postgres alone: connections that break, that are all in use, and transactions that get in each other's way."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TypeAlias

import asyncpg
import pytest

from loop.domain.errors import ErrorKind, LoopError
from loop.storage import merchants, orders, postgres
from loop.storage.postgres import PostgresDatabase, open_postgres
from tests.builders import merchant, order

POOL_SIZE = 3


@pytest.fixture
async def database(postgres_database_url: str) -> AsyncIterator[PostgresDatabase]:
    opened = await open_postgres(postgres_database_url, POOL_SIZE)
    yield opened
    await opened.close()


@pytest.fixture
async def outsider(postgres_database_url: str) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
    connection = await asyncpg.connect(postgres_database_url)
    yield connection
    await connection.close()


Outsider: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


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


async def test_waiting_for_a_connection_is_bounded(database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "ACQUIRE_TIMEOUT_S", 0.05)
    release = asyncio.Event()

    async def hold() -> None:
        async with database.transaction():
            await release.wait()

    holders = [asyncio.create_task(hold()) for _ in range(POOL_SIZE)]
    await asyncio.sleep(0)
    with pytest.raises(LoopError) as refused:
        await add(database, 1)
    assert_unavailable(refused.value)
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
