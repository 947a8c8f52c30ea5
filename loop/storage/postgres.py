"""Postgres: a pool of asyncpg connections whose prepared statements are Loop's compiled ones."""

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

import asyncpg

from loop.domain.errors import LoopError, unavailable
from loop.storage.database import ConstraintError
from loop.storage.statements import Parameters, Statement, Write
from loop.telemetry import open_transaction

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0
ACQUIRE_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 10.0
STATEMENT_CACHE = 512
_PLACEHOLDER = re.compile(r"\$(\d+)")

_AWAY = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    OSError,
    TimeoutError,
)


class PostgresSession:
    """Statements on one connection, inside a transaction or as a single statement of their own."""

    def __init__(self, connection: "PoolConnectionProxy[asyncpg.Record]") -> None:
        self._connection = connection

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


class PostgresDatabase:
    """A Postgres database as a `Database`."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[PostgresSession]:
        """See `Database.transaction`."""
        async with self._connection() as connection:
            await connection.execute("BEGIN")
            try:
                with open_transaction():
                    yield PostgresSession(connection)
            except BaseException:
                # A connection that is gone or mid-command is closed by the pool, which rolls back as well.
                if not connection.is_closed():
                    await connection.execute("ROLLBACK")
                raise
            await connection.execute("COMMIT")

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[PostgresSession]:
        """See `Database.reading`."""
        async with self._connection() as connection:
            yield PostgresSession(connection)

    async def write_at_once(self, writes: Sequence[tuple[Write, Parameters]]) -> list[int]:
        """See `Database.write_at_once`: one statement is a transaction of its own."""
        async with self._connection() as connection:
            return await PostgresSession(connection).run_together(writes)

    @asynccontextmanager
    async def _connection(self) -> "AsyncIterator[PoolConnectionProxy[asyncpg.Record]]":
        try:
            async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
                yield connection
        except LoopError:
            raise
        except _AWAY as error:
            raise unavailable("database_unavailable", "The database did not answer; try again.") from error

    async def close(self) -> None:
        """See `Database.close`."""
        await self._pool.close()


async def open_postgres(url: str, pool_size: int) -> PostgresDatabase:
    """Connect; raises `unavailable` when the server is away."""
    try:
        pool = await asyncpg.create_pool(
            url,
            min_size=1,
            max_size=pool_size,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=COMMAND_TIMEOUT_S,
            statement_cache_size=STATEMENT_CACHE,
            max_cached_statement_lifetime=0,
        )
    except _AWAY as error:
        raise unavailable(
            "database_unavailable", "Postgres did not answer; check DATABASE_URL and the server."
        ) from error
    return PostgresDatabase(pool)
