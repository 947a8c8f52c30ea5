"""Postgres: asyncpg connections whose prepared statements are Loop's compiled ones."""

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    nullcontext,
    suppress,
)
from functools import lru_cache
from types import TracebackType
from typing import TypeAlias, TypeVar

import asyncpg

from loop.domain.errors import LoopError, unavailable
from loop.storage.database import ConstraintError, PoolUse
from loop.storage.statements import Parameters, Statement, Write
from loop.telemetry import get_logger, open_transaction

log = get_logger(__name__)

T = TypeVar("T")
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

CONNECT_TIMEOUT_S = 5.0
ACQUIRE_TIMEOUT_S = 5.0
LOCK_TIMEOUT_S = 5.0
"""How long a statement waits for a row that another transaction holds."""
STATEMENT_TIMEOUT_S = 10.0
IDLE_TRANSACTION_S = 15.0
"""After so long without a statement the server ends a transaction, whose process may be frozen, and frees its rows."""
COMMAND_TIMEOUT_S = 12.0
"""Longer than the server's own bounds, so that a connection is given up only when the server does not say a word."""
CLOSE_TIMEOUT_S = 5.0
WRITE_TRIES = 3
"""How often writes that are a transaction of their own are run when others get in their way."""
IDLE_S = 300.0
"""A connection that nobody used for so long is replaced: a firewall on the way may have forgotten it."""
STATEMENT_CACHE = 512
APPLICATION_NAME = "loop"
"""By which the server, and a migration, know whose connection it is."""
_PLACEHOLDER = re.compile(r"\$(\d+)")

_UNDONE = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.InsufficientResourcesError,
)
"""The server has undone what was asked for, and says so: the connection is sound."""

_AWAY = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # what comes of a farewell that the server sent while nobody was listening
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError,  # this server is the main one no more
    OSError,
    TimeoutError,
)

_IN_THE_WAY = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)


def _settings() -> dict[str, str]:
    """Return what a connection of Loop's own tells the server; `migrate` looks for the name."""
    return {"application_name": APPLICATION_NAME, **_bounds()}


def _bounds() -> dict[str, str]:
    """Return the server's settings that bound how long anything takes, in milliseconds."""
    bounds_s = {
        "lock_timeout": LOCK_TIMEOUT_S,
        "statement_timeout": STATEMENT_TIMEOUT_S,
        "idle_in_transaction_session_timeout": IDLE_TRANSACTION_S,
    }
    return {name: str(int(seconds * 1000)) for name, seconds in bounds_s.items()}


class PostgresSession:
    """Statements on one connection, inside a transaction or as a single statement of their own."""

    def __init__(self, connection: Connection, beginning: str = "BEGIN") -> None:
        self._connection = connection
        self._beginning = beginning

    async def first(self, statement: Statement[T], parameters: Parameters) -> T | None:
        """See `Reader.first`."""
        compiled = statement.for_postgres()
        row = await self._connection.fetchrow(compiled.text, *compiled.arguments(parameters))
        return None if row is None else statement.row(*compiled.convert(tuple(row)))

    async def all(self, statement: Statement[T], parameters: Parameters) -> list[T]:
        """See `Reader.all`."""
        compiled = statement.for_postgres()
        rows = await self._connection.fetch(compiled.text, *compiled.arguments(parameters))
        return [statement.row(*compiled.convert(tuple(row))) for row in rows]

    async def run(self, write: Write, parameters: Parameters) -> int:
        """See `Session.run`."""
        return (await self.run_together([(write, parameters)]))[0]

    async def run_together(self, writes: Sequence[tuple[Write, Parameters]]) -> list[int]:
        """See `Session.run_together`: one statement whose CTEs are the writes."""
        if not writes:
            return []
        text = _joined(tuple(write.for_postgres().text for write, _ in writes))
        arguments = [a for write, parameters in writes for a in write.for_postgres().arguments(parameters)]
        try:
            row = await self._connection.fetchrow(text, *arguments)
        except asyncpg.IntegrityConstraintViolationError as error:
            raise ConstraintError(error.constraint_name or str(error)) from error
        return [] if row is None else list(row)

    async def begin(self) -> None:
        """Begin a transaction."""
        await self._connection.execute(self._beginning)

    async def commit(self) -> None:
        """End the transaction, durably; raises RuntimeError when a statement of it failed and nobody let that through.

        Postgres then rolls back, and says so only in the name of what it did.
        """
        if await self._connection.execute("COMMIT") != "COMMIT":
            raise RuntimeError("a statement failed inside the transaction, and its error was swallowed")

    async def roll_back(self) -> None:
        """End the transaction without a trace; when the connection is gone, the server has done so."""
        if not self._connection.is_closed():
            await self._connection.execute("ROLLBACK")


@lru_cache(maxsize=STATEMENT_CACHE)
def _joined(texts: tuple[str, ...]) -> str:
    """Join writes into one statement that answers how many rows each changed; placeholders are numbered on."""
    parts, counts, offset = [], [], 0
    for index, text in enumerate(texts):
        shifted = _shifted(text, offset)
        parts.append(f"w{index} AS ({shifted} RETURNING 1)")
        counts.append(f"(SELECT count(*) FROM w{index})")  # noqa: S608 - numbers of our own
        offset += max((int(number) for number in _PLACEHOLDER.findall(text)), default=0)
    return f"WITH {', '.join(parts)} SELECT {', '.join(counts)}"


def _shifted(text: str, offset: int) -> str:
    return _PLACEHOLDER.sub(lambda match: f"${int(match[1]) + offset}", text)


class _Connections:
    """Up to `size` connections, given out in the order in which they are asked for.

    asyncpg's own pool sends a query of its own after each use, to undo settings that Loop never makes, starts tasks
    around it, and lets who comes at the right moment overtake who waits (docs/adr/0003).
    """

    def __init__(self, url: str, size: int, *, is_pooled: bool) -> None:
        self._url = url
        self._size = size
        self.is_pooled = is_pooled
        set_for_each = "".join(f"; SET LOCAL {name} = {value}" for name, value in _bounds().items())
        self.beginning = f"BEGIN{set_for_each}" if is_pooled else "BEGIN"
        self._free = size
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._idle: list[tuple[float, Connection]] = []
        self._loop = asyncio.get_running_loop()

    async def take(self) -> Connection:
        """Return a connection once there is one; raises one of `_AWAY`."""
        await self._wait_for_turn(ACQUIRE_TIMEOUT_S)
        try:
            while self._idle:
                used_at, connection = self._idle.pop()
                if self._loop.time() - used_at < IDLE_S and not connection.is_closed():
                    return connection
                connection.terminate()
            return await self.connect()
        except BaseException:
            self._end_turn()
            raise

    async def _wait_for_turn(self, timeout_s: float) -> None:
        if self._free:
            self._free -= 1
            return
        turn = self._loop.create_future()
        self._waiting.append(turn)
        # Cheaper than asyncio.timeout, which counts here: under load every request waits.
        late = self._loop.call_later(timeout_s, _time_out, turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled() and turn.exception() is None:  # given and cancelled at once
                self._end_turn()
            raise
        finally:
            late.cancel()

    def _end_turn(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    async def connect(self) -> Connection:
        """Open a connection."""
        return await asyncpg.connect(
            self._url,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=COMMAND_TIMEOUT_S,
            statement_cache_size=0 if self.is_pooled else STATEMENT_CACHE,
            max_cached_statement_lifetime=0,
            server_settings={} if self.is_pooled else _settings(),
        )

    def give_back(self, connection: Connection, *, is_usable: bool) -> None:
        """Take a connection back. One that is in the middle of something is closed, and the server rolls back."""
        if is_usable and not connection.is_closed() and not connection.is_in_transaction():
            self._idle.append((self._loop.time(), connection))
        else:
            connection.terminate()
        self._end_turn()

    def use(self) -> PoolUse:
        """Return how many are in use just now."""
        waiting = sum(not turn.done() for turn in self._waiting)
        return PoolUse(self._size - self._free, self._free, waiting)

    async def close(self) -> None:
        """Wait until every connection is back, for a bounded time, and close them."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                for _ in range(self._size):
                    await self._wait_for_turn(CLOSE_TIMEOUT_S)
        for _, connection in self._idle:
            with suppress(*_AWAY):
                await connection.close(timeout=CLOSE_TIMEOUT_S)


class _AllInUseError(TimeoutError):
    """No connection became free in time: it is not the database that is slow to answer."""


def _time_out(turn: "asyncio.Future[None]") -> None:
    if not turn.done():
        turn.set_exception(_AllInUseError())


class _Use:
    """One use of a connection, as a session; a class, since a generator's context costs as much as a small row."""

    __slots__ = ("_connection", "_connections")

    def __init__(self, connections: _Connections) -> None:
        self._connections = connections

    async def __aenter__(self) -> PostgresSession:
        try:
            self._connection = await self._connections.take()
        except (*_AWAY, asyncpg.PostgresError) as error:  # whatever keeps it from connecting, a new password too
            raise _lost(error) from error
        return PostgresSession(self._connection, self._connections.beginning)

    async def __aexit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        # A task that was cancelled, or waited too long, has left a command running.
        is_usable = error is None or (isinstance(error, Exception) and not isinstance(error, _AWAY))
        self._connections.give_back(self._connection, is_usable=is_usable)
        if isinstance(error, _AWAY):
            raise _lost(error) from error
        if isinstance(error, _UNDONE):
            raise _undone(error) from error


def _lost(error: Exception) -> LoopError:
    if isinstance(error, _AllInUseError):
        log.warning("database.connections_in_use", hint="raise database_pool_size, or run more processes")
        return unavailable("database_unavailable", "All connections to the database are in use; try again.")
    log.warning("database.away", error=type(error).__name__)
    return unavailable("database_unavailable", "The database did not answer; try again.")


def _undone(error: Exception) -> LoopError:
    log.warning("database.undone", error=type(error).__name__)
    return unavailable("database_unavailable", "The database was too busy for this and has undone it; try again.")


class PostgresDatabase:
    """A Postgres database as a `Database`."""

    def __init__(self, connections: _Connections) -> None:
        self._connections = connections

    def transaction(self) -> AbstractAsyncContextManager[PostgresSession]:
        """See `Database.transaction`."""
        return self._begun(open_transaction)

    @asynccontextmanager
    async def _begun(self, marking: Callable[[], AbstractContextManager[None]]) -> AsyncIterator[PostgresSession]:
        async with _Use(self._connections) as session:
            await session.begin()
            try:
                with marking():
                    yield session
            except Exception:
                await session.roll_back()
                raise
            await session.commit()

    def _alone(self) -> AbstractAsyncContextManager[PostgresSession]:
        """Return a session whose every statement is a transaction of its own, unless all of them have to be one."""
        return self._begun(nullcontext) if self._connections.is_pooled else _Use(self._connections)

    def reading(self) -> AbstractAsyncContextManager[PostgresSession]:
        """See `Database.reading`."""
        return self._alone()

    async def write_at_once(self, writes: Sequence[tuple[Write, Parameters]]) -> list[int]:
        """See `Database.write_at_once`: one statement is a transaction of its own, and so may be run once more."""
        for _ in range(WRITE_TRIES - 1):
            try:
                return await self._write_once(writes)
            except LoopError as error:
                if not isinstance(error.__cause__, _IN_THE_WAY):
                    raise
        return await self._write_once(writes)

    async def _write_once(self, writes: Sequence[tuple[Write, Parameters]]) -> list[int]:
        async with self._alone() as session:
            return await session.run_together(writes)

    def pool_use(self) -> PoolUse:
        """See `Database.pool_use`."""
        return self._connections.use()

    async def close(self) -> None:
        """See `Database.close`."""
        await self._connections.close()


async def open_postgres(url: str, pool_size: int, *, is_pooled: bool = False) -> PostgresDatabase:
    """Connect; raises `unavailable` when the server is away.

    `is_pooled` says that a pooler gives each transaction any of its connections, as PgBouncer does: then nothing stays
    prepared or set from one transaction to the next, and everything is done in one.
    """
    connections = _Connections(url, pool_size, is_pooled=is_pooled)
    try:
        connections.give_back(await connections.take(), is_usable=True)
    except (*_AWAY, asyncpg.PostgresError) as error:
        raise unavailable(
            "database_unavailable",
            f"Postgres did not let Loop in ({type(error).__name__}); check DATABASE_URL, the server, and, if PgBouncer "
            "lies before it, that is_database_pooled is set.",
        ) from error
    return PostgresDatabase(connections)
