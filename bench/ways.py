"""The ways to run statements that Loop was not given: each is measured beside the one that was chosen (ADR 0003)."""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import aiosqlite
import asyncpg
from sqlalchemy import CursorResult, Executable
from sqlalchemy import event as listeners
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from bench.workload import MERCHANT, alteration, creation, decide, locked
from loop.domain.events import Event
from loop.domain.orders import Order
from loop.storage import orders
from loop.storage.postgres import PostgresSession
from loop.storage.sqlite import SqliteSession, connect
from loop.storage.statements import Parameters, Statement, Write, field_names, values_of
from loop.storage.tables import Orders
from loop.storage.webhook_tables import WebhookEndpoints, WebhookEvents

T = TypeVar("T")
Writes = Sequence[tuple[Write, Parameters]]
POOL_SIZE = 16


class StatementByStatement:
    """Runs writes that belong together one after another, each with a round trip of its own."""

    async def run(self, write: Write, parameters: Parameters) -> int:
        """Run one write; overridden by what knows a driver."""
        raise NotImplementedError

    async def run_together(self, writes: Writes) -> list[int]:
        """See `Session.run_together`."""
        return [await self.run(write, parameters) for write, parameters in writes]


class HoppingSession(StatementByStatement):
    """aiosqlite: every statement goes to the connection's thread and back."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    async def all(self, statement: Statement[T], parameters: Parameters) -> list[T]:
        """See `Reader.all`."""
        compiled = statement.for_sqlite()
        rows = await self._connection.execute_fetchall(compiled.text, compiled.arguments(parameters))
        return [statement.row(*compiled.convert(tuple(row))) for row in rows]

    async def first(self, statement: Statement[T], parameters: Parameters) -> T | None:
        """See `Reader.first`."""
        rows = await self.all(statement, parameters)
        return rows[0] if rows else None

    async def run(self, write: Write, parameters: Parameters) -> int:
        """See `Session.run`."""
        compiled = write.for_sqlite()
        return (await self._connection.execute(compiled.text, compiled.arguments(parameters))).rowcount


class HoppingDatabase:
    """One aiosqlite connection that writes, a transaction at a time, and one that reads."""

    def __init__(self, writer: aiosqlite.Connection, reader: aiosqlite.Connection) -> None:
        self._writer = writer
        self._reader = reader
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[HoppingSession]:
        """See `Database.transaction`."""
        async with self._turn:
            await self._writer.execute("BEGIN IMMEDIATE")
            yield HoppingSession(self._writer)
            await self._writer.execute("COMMIT")

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[HoppingSession]:
        """See `Database.reading`."""
        yield HoppingSession(self._reader)

    async def write_at_once(self, writes: Writes) -> list[int]:
        """See `Database.write_at_once`."""
        async with self.transaction() as session:
            return await session.run_together(writes)

    def pool_use(self) -> None:
        """See `Database.pool_use`: nobody asks here."""

    async def close(self) -> None:
        """See `Database.close`."""
        await self._writer.close()
        await self._reader.close()


async def open_hopping(path: str) -> HoppingDatabase:
    """Open a SQLite file through aiosqlite."""
    opened = [await aiosqlite.connect(path, isolation_level=None, cached_statements=256) for _ in range(2)]
    for connection in opened:
        for pragma in ("synchronous=FULL", "foreign_keys=ON"):
            await connection.execute(f"PRAGMA {pragma}")
    return HoppingDatabase(*opened)


class FunctionThread:
    """One thread that runs whole functions on SQLite, and commits as many together as wait."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._waiting: queue.SimpleQueue[tuple[Callable[[SqliteSession], Any], asyncio.Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        connection = connect(self._path)  # type: ignore[arg-type]
        while (first := self._waiting.get()) is not None:  # ends when `close` says so
            group = [first]
            while not self._waiting.empty() and (more := self._waiting.get()) is not None:
                group.append(more)
            connection.execute("BEGIN IMMEDIATE")
            results = [(self._apart(connection, function), told) for function, told in group]
            connection.execute("COMMIT")
            self._loop.call_soon_threadsafe(_tell, results)
        connection.close()

    def _apart(self, connection: sqlite3.Connection, function: Callable[[SqliteSession], Any]) -> Any:  # noqa: ANN401
        connection.execute("SAVEPOINT one")
        result = function(SqliteSession(connection))
        connection.execute("RELEASE one")
        return result

    async def _run(self, function: Callable[[SqliteSession], T]) -> T:
        told: asyncio.Future[T] = self._loop.create_future()
        self._waiting.put((function, told))
        return await told

    async def create(self, order: Order, event: Event) -> None:
        """See `Mechanism.create`."""
        await self._run(lambda session: session.run_now(creation(order, event)))

    async def change(self, order_id: str, event: Event) -> None:
        """See `Mechanism.change`."""
        await self._run(lambda session: session.run_now(alteration(at_once(locked(session, order_id)), event)))

    async def get(self, order_id: str) -> Order | None:
        """See `Mechanism.get`."""
        return await self._run(lambda session: at_once(orders.get(session, MERCHANT, order_id)))

    async def close(self) -> None:
        """See `Mechanism.close`."""
        self._waiting.put(None)
        await asyncio.to_thread(self._thread.join)


def _tell(results: Sequence[tuple[Any, "asyncio.Future[Any]"]]) -> None:
    for result, told in results:
        told.set_result(result)


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as ended:
        result: T = ended.value
        return result
    raise RuntimeError("the coroutine waits")


class SeparateSession(StatementByStatement, PostgresSession):
    """asyncpg with a round trip for each statement."""

    async def run(self, write: Write, parameters: Parameters) -> int:
        """See `Session.run`."""
        compiled = write.for_postgres()
        tag = await self._connection.execute(compiled.text, *compiled.arguments(parameters))
        return int(tag.rpartition(" ")[2])


class PooledDatabase:
    """asyncpg's own pool, with the statements of a transaction joined or one by one."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", session: type[PostgresSession]) -> None:
        self._pool = pool
        self._session = session

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[PostgresSession]:
        """See `Database.transaction`."""
        async with self._pool.acquire() as connection, connection.transaction():
            yield self._session(connection)  # type: ignore[arg-type]

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[PostgresSession]:
        """See `Database.reading`."""
        async with self._pool.acquire() as connection:
            yield self._session(connection)  # type: ignore[arg-type]

    async def write_at_once(self, writes: Writes) -> list[int]:
        """See `Database.write_at_once`."""
        if self._session is PostgresSession:
            async with self.reading() as session:
                return await session.run_together(writes)
        async with self.transaction() as session:
            return await session.run_together(writes)

    def pool_use(self) -> None:
        """See `Database.pool_use`: nobody asks here."""

    async def close(self) -> None:
        """See `Database.close`."""
        await self._pool.close()


async def open_pooled(url: str, session: type[PostgresSession]) -> PooledDatabase:
    """Connect through asyncpg's pool."""
    return PooledDatabase(await asyncpg.create_pool(url, min_size=POOL_SIZE, max_size=POOL_SIZE), session)


class CoreSession(StatementByStatement):
    """SQLAlchemy Core on an async connection: the same clauses, compiled from its cache at each call."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def all(self, statement: Statement[T], parameters: Parameters) -> list[T]:
        """See `Reader.all`."""
        return [statement.row(*row) for row in await self._execute(statement.clause, parameters)]

    async def first(self, statement: Statement[T], parameters: Parameters) -> T | None:
        """See `Reader.first`."""
        row = (await self._execute(statement.clause, parameters)).first()
        return None if row is None else statement.row(*row)

    async def run(self, write: Write, parameters: Parameters) -> int:
        """See `Session.run`."""
        return (await self._execute(write.clause, parameters)).rowcount

    async def _execute(self, clause: object, parameters: Parameters) -> CursorResult[Any]:
        return await self._connection.execute(cast("Executable", clause), dict(parameters))


class CoreDatabase:
    """SQLAlchemy's async engine and its pool."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[CoreSession]:
        """See `Database.transaction`."""
        async with self._engine.begin() as connection:
            yield CoreSession(connection)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[CoreSession]:
        """See `Database.reading`."""
        async with self._engine.connect() as connection:
            yield CoreSession(connection)

    async def write_at_once(self, writes: Writes) -> list[int]:
        """See `Database.write_at_once`."""
        async with self.transaction() as session:
            return await session.run_together(writes)

    def pool_use(self) -> None:
        """See `Database.pool_use`: nobody asks here."""

    async def close(self) -> None:
        """See `Database.close`."""
        await self._engine.dispose()


class ModelSessions:
    """SQLModel's sessions, tuned: nothing expires at a commit and nothing is read back."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        # SQLite has one writer: who waits here does not wait in a thread, by trying again and again.
        self._turn = asyncio.Semaphore(1 if engine.dialect.name == "sqlite" else POOL_SIZE)

    def _session(self) -> AsyncSession:
        return AsyncSession(self._engine, expire_on_commit=False)

    async def create(self, order: Order, event: Event) -> None:
        """See `Mechanism.create`."""
        async with self._turn, self._session() as session:
            session.add(Orders(**_attributes(order)))
            await self._tell(session, event)

    async def change(self, order_id: str, event: Event) -> None:
        """See `Mechanism.change`."""
        async with self._turn, self._session() as session:
            row = await session.get_one(Orders, order_id, with_for_update=True)
            row.sqlmodel_update(_attributes(decide(_order(row))))
            session.add(row)
            await self._tell(session, event)

    async def _tell(self, session: AsyncSession, event: Event) -> None:
        session.add(WebhookEvents(**_attributes(event)))
        found = await session.exec(select(WebhookEndpoints).where(WebhookEndpoints.merchant_id == MERCHANT))
        if [each for each in found if each.url is not None and each.is_enabled]:
            raise LookupError("the merchant of the bench has no endpoint")
        await session.commit()

    async def get(self, order_id: str) -> Order | None:
        """See `Mechanism.get`."""
        async with self._session() as session:
            row = await session.get(Orders, order_id)
            return None if row is None else _order(row)

    async def close(self) -> None:
        """See `Mechanism.close`."""
        await self._engine.dispose()


def _attributes(row: Order | Event) -> dict[str, Any]:
    return {"metadata_" if name == "metadata" else name: value for name, value in values_of(row).items()}


def _order(row: Orders) -> Order:
    return Order(*(getattr(row, "metadata_" if name == "metadata" else name) for name in field_names(Order)))


def open_engine(url: str) -> AsyncEngine:
    """Return SQLAlchemy's engine, which on SQLite syncs and checks as Loop does."""
    if not url.startswith("sqlite"):
        return create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://", 1), pool_size=POOL_SIZE)
    engine = create_async_engine(url.replace("sqlite://", "sqlite+aiosqlite://", 1), connect_args={"timeout": 30})

    @listeners.listens_for(engine.sync_engine, "connect")
    def _set_up(connection: Any, _: object) -> None:  # noqa: ANN401 - SQLAlchemy's adapter of a driver
        connection.isolation_level = None
        for pragma in ("synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @listeners.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Any) -> None:  # noqa: ANN401 - as above
        connection.exec_driver_sql("BEGIN")

    return engine
