"""SQLite: one writer that commits many requests' transactions together, and readers beside it.

A statement on SQLite takes some ten microseconds and a durable commit takes milliseconds. So statements run at once on
the event loop's own thread, where handing each to another thread would cost more than the work itself, and only what
waits, COMMIT with its fsync, runs in the writer's thread. While one group commits, the next forms: the first
transaction of a group queues for the writer behind all that are waiting, and commits them with itself. Nobody is told
of success before that commit. Measured in docs/adr/0003.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import aiosqlite

from loop.domain.errors import LoopError, configuration, unavailable
from loop.storage.database import ConstraintError
from loop.storage.statements import Parameters, Statement, Write
from loop.telemetry import open_transaction

T = TypeVar("T")

BUSY_TIMEOUT_S = 10.0
"""How long a transaction waits to begin while another process holds the file, such as a CLI command."""
BUSY_PAUSE_S = 0.01
"""How long it pauses between two tries to begin."""
READERS = 4
"""How many long statements read at the same time, each on a thread of its own."""
SHORT_READ_STEPS = 10_000
"""How many instructions of SQLite's machine (up to twice as many) a statement may run on the event loop's thread.

A row found by its key takes about a hundred. More is done again on a thread of its own, so that counting a million
orders holds up nobody; this many take less than a millisecond.
"""
STATEMENT_CACHE = 256


def connect(path: Path) -> sqlite3.Connection:
    """Open the file as Loop uses it: WAL, fsync at each commit, foreign keys held, transactions begun by hand.

    What a savepoint could have to undo is kept in memory, where SQLite would write it to a file in /var/tmp.
    """
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, cached_statements=STATEMENT_CACHE, timeout=0
    )
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "temp_store=MEMORY"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


class _Waiting:
    """Writes of one caller, who waits for how many rows each has changed."""

    def __init__(self, writes: Sequence[tuple[Write, Parameters]]) -> None:
        self.writes = writes
        self.counts: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()

    def succeed(self, counts: list[int]) -> None:
        """Tell the caller, unless it has gone or was told of an error."""
        if not self.counts.done():
            self.counts.set_result(counts)

    def fail(self, error: Exception) -> None:
        """Tell the caller of an error, unless it has gone or was told of one."""
        if not self.counts.done():
            self.counts.set_exception(error)


class _Group:
    """Transactions that one COMMIT makes durable."""

    def __init__(self) -> None:
        self.committed: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class SqliteSession:
    """One transaction on the writer's connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def first(self, statement: Statement[T], parameters: Parameters) -> T | None:
        """See `Reader.first`."""
        compiled = statement.for_sqlite()
        cursor = _execute(self._connection, compiled.text, compiled.arguments(parameters))
        row = cursor.fetchone()
        cursor.close()
        return None if row is None else statement.row(*compiled.convert(row))

    async def all(self, statement: Statement[T], parameters: Parameters) -> list[T]:
        """See `Reader.all`."""
        compiled = statement.for_sqlite()
        rows = _execute(self._connection, compiled.text, compiled.arguments(parameters)).fetchall()
        return [statement.row(*compiled.convert(row)) for row in rows]

    async def run(self, write: Write, parameters: Parameters) -> int:
        """See `Session.run`."""
        return self._run(write, parameters)

    async def run_together(self, writes: Sequence[tuple[Write, Parameters]]) -> list[int]:
        """See `Session.run_together`."""
        return self.run_now(writes)

    def run_now(self, writes: Sequence[tuple[Write, Parameters]]) -> list[int]:
        """Run writes one after another, since nothing is saved by joining them; return how many rows each changed."""
        return [self._run(write, parameters) for write, parameters in writes]

    def _run(self, write: Write, parameters: Parameters) -> int:
        compiled = write.for_sqlite()
        changed = _execute(self._connection, compiled.text, compiled.arguments(parameters)).rowcount
        if changed >= 0:
            return changed
        # Python's driver does not count the rows of a write that begins with WITH.
        return int(_execute(self._connection, "SELECT changes()", []).fetchone()[0])


_AWAY = frozenset(
    {
        sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN,
    }
)  # fmt: skip


def _result_of(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF


def is_away(error: sqlite3.Error) -> bool:
    """Tell whether SQLite failed for want of its file or disk, and not for what it was asked."""
    return _result_of(error) in _AWAY


_DAMAGED = frozenset({sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT})
_DENIED = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM})


def is_damaged(error: sqlite3.Error) -> bool:
    """Tell whether SQLite found its file to be none, or not as it was written."""
    return _result_of(error) in _DAMAGED


def trouble_with(path: Path, error: sqlite3.Error) -> LoopError | None:
    """Return what to tell the operator of an error that is the file's or the disk's; None for one of what was asked."""
    if is_damaged(error):
        return configuration(
            "database_damaged",
            f"{path} is damaged or no SQLite database ({error}): stop Loop, and bring a backup back by "
            "`loop restore FILE --replace`, which puts this file aside.",
        )
    if _result_of(error) in _DENIED:
        return unavailable(
            "database_unavailable",
            f"{path} cannot be opened for reading and writing ({error}): the user that runs this needs both, for the "
            "file and for its directory.",
        )
    if is_away(error):
        return unavailable("database_unavailable", f"SQLite could not use {path} ({error}); see to its disk.")
    return None


@contextmanager
def telling_of(path: Path) -> Iterator[None]:
    """Tell the operator what is wrong with a file, where an error of SQLite's ends the block."""
    try:
        yield
    except sqlite3.Error as error:
        if told := trouble_with(path, error):
            raise told from error
        raise


def _lost(why: str) -> LoopError:
    return unavailable("database_unavailable", f"SQLite could not write ({why}); nothing was changed.")


def _unread(error: sqlite3.OperationalError) -> Exception:
    if is_away(error):
        return unavailable("database_unavailable", f"SQLite could not read ({error}); try again.")
    return error


def _execute(connection: sqlite3.Connection, text: str, arguments: list[object]) -> sqlite3.Cursor:
    try:
        return connection.execute(text, arguments)
    except sqlite3.IntegrityError as error:
        raise ConstraintError(str(error)) from error
    except sqlite3.OperationalError as error:
        if is_away(error):
            raise _lost(str(error)) from error
        raise


class SqliteReader:
    """Statements that read: at once on a connection of the event loop's own thread, or beside it when they are long."""

    def __init__(self, database: "SqliteDatabase") -> None:
        self._database = database

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def first(self, statement: Statement[T], parameters: Parameters) -> T | None:
        """See `Reader.first`."""
        rows = await self.all(statement, parameters)
        return rows[0] if rows else None

    async def all(self, statement: Statement[T], parameters: Parameters) -> list[T]:
        """See `Reader.all`."""
        compiled = statement.for_sqlite()
        rows = await self._database.read(compiled.text, compiled.arguments(parameters))
        return [statement.row(*compiled.convert(row)) for row in rows]


class _ShortReads:
    """A connection on the event loop's own thread, whose statements are interrupted once they turn out to be long."""

    def __init__(self, uri: str) -> None:
        self._connection = sqlite3.connect(
            uri, uri=True, isolation_level=None, cached_statements=STATEMENT_CACHE, timeout=0
        )
        self._connection.set_progress_handler(self._is_long, SHORT_READ_STEPS)
        self._looks = 0

    def _is_long(self) -> bool:
        # SQLite counts the steps of all runs of a statement, so the first look may come at any of its steps.
        self._looks += 1
        return self._looks > 1

    def read(self, text: str, arguments: list[object]) -> list[Any]:
        """Return all rows; raises OperationalError with SQLITE_INTERRUPT when that takes more than a moment."""
        self._looks = 0
        return self._connection.execute(text, arguments).fetchall()

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()


class SqliteDatabase:
    """A SQLite file as a `Database`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer = connect(path)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loop-sqlite-writer")
        self._turn = asyncio.Lock()
        self._group: _Group | None = None
        self._committing: asyncio.Task[None] | None = None
        self._readers: asyncio.Queue[aiosqlite.Connection] = asyncio.Queue(READERS)
        self._opened: list[aiosqlite.Connection] = []
        self._waiting: list[_Waiting] = []
        self._writing: asyncio.Task[None] | None = None
        self._short_reads: _ShortReads | None = None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[SqliteSession]:
        """See `Database.transaction`."""
        deadline = asyncio.get_running_loop().time() + BUSY_TIMEOUT_S
        async with self._turn:
            group = await self._join_group(deadline)
            with self._savepoint(), open_transaction():
                yield SqliteSession(self._writer)
        await asyncio.shield(group.committed)

    @contextmanager
    def _savepoint(self) -> Iterator[None]:
        """Undo what the block wrote, and nothing else, if it raises."""
        if not self._writer.in_transaction:  # SQLite has rolled the group back: a full disk, an I/O error
            raise _lost("an earlier statement failed")
        self._writer.execute("SAVEPOINT one")
        try:
            yield
            self._writer.execute("RELEASE one")
        except BaseException:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK TO one")
                self._writer.execute("RELEASE one")
            raise

    async def _join_group(self, deadline: float) -> _Group:
        if self._group is None:
            await self._begin(deadline)
            self._group = _Group()
            # The commit queues for the turn behind all that wait now: they are its group.
            self._committing = asyncio.create_task(self._commit(self._group))
        return self._group

    async def _begin(self, deadline: float) -> None:
        while True:  # until the deadline
            try:
                self._writer.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if not is_away(error):
                    raise
                is_busy = _result_of(error) == sqlite3.SQLITE_BUSY
                if not is_busy or asyncio.get_running_loop().time() >= deadline:
                    raise _lost(str(error)) from error
            else:
                return
            await asyncio.sleep(BUSY_PAUSE_S)

    async def _commit(self, group: _Group) -> None:
        async with self._turn:
            self._group = None
            why = "it was interrupted"
            try:
                if self._writer.in_transaction:
                    await asyncio.get_running_loop().run_in_executor(self._thread, self._writer.commit)
                    group.committed.set_result(None)
                else:
                    why = "an earlier statement failed"
            except sqlite3.Error as error:
                why = str(error)
            finally:
                if not group.committed.done():
                    self._roll_back()
                    group.committed.set_exception(_lost(why))
                    group.committed.exception()  # a group whose members were all cancelled has nobody left to hear it

    def _roll_back(self) -> None:
        if self._writer.in_transaction:
            self._writer.rollback()

    async def write_at_once(self, writes: Sequence[tuple[Write, Parameters]]) -> list[int]:
        """See `Database.write_at_once`; all that are called while a group commits share one turn afterwards."""
        waiting = _Waiting(writes)
        self._waiting.append(waiting)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_waiting())
        return await waiting.counts

    async def _write_waiting(self) -> None:
        while self._waiting:  # each pass takes all of them; who comes later has a pass of its own
            taken: list[_Waiting] = []
            deadline = asyncio.get_running_loop().time() + BUSY_TIMEOUT_S
            try:
                async with self._turn:
                    taken, self._waiting = self._waiting, []
                    group = await self._join_group(deadline)
                    written = self._write_all([each for each in taken if not each.counts.done()])
                await asyncio.shield(group.committed)
            except Exception as error:  # noqa: BLE001 - whoever waits hears of it
                for each in taken:
                    each.fail(error)
            else:
                for each, outcome in written:
                    if isinstance(outcome, Exception):
                        each.fail(outcome)
                    else:
                        each.succeed(outcome)

    def _write_all(self, taken: Sequence[_Waiting]) -> list[tuple[_Waiting, list[int] | Exception]]:
        """Write for all under one savepoint, which costs more than the writes, and only if one fails for each alone.

        Who made a mistake is told once the group is committed: another's write may have made it one, and may be lost.
        """
        try:
            with self._savepoint():
                session = SqliteSession(self._writer)
                return [(each, session.run_now(each.writes)) for each in taken]
        except Exception:  # noqa: BLE001 - the one who made the mistake hears of it below
            return [(each, self._write(each)) for each in taken]

    def _write(self, waiting: _Waiting) -> list[int] | Exception:
        try:
            with self._savepoint():
                return SqliteSession(self._writer).run_now(waiting.writes)
        except Exception as error:  # noqa: BLE001 - a mistake in one request's writes is that request's
            return error

    def reading(self) -> SqliteReader:
        """See `Database.reading`."""
        return SqliteReader(self)

    async def read(self, text: str, arguments: list[object]) -> list[Any]:
        """Return all rows of a statement, for `SqliteReader`."""
        try:
            if self._short_reads is None:
                self._short_reads = _ShortReads(self._read_only_uri())
            return self._short_reads.read(text, arguments)
        except sqlite3.OperationalError as error:
            if _result_of(error) not in (sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_BUSY):
                raise _unread(error) from error
        connection = await self._take_reader()
        try:
            return [*await connection.execute_fetchall(text, arguments)]
        except sqlite3.OperationalError as error:
            raise _unread(error) from error
        finally:
            self._readers.put_nowait(connection)

    def _read_only_uri(self) -> str:
        return f"{self._path.absolute().as_uri()}?mode=ro"

    async def _take_reader(self) -> aiosqlite.Connection:
        if self._readers.empty() and len(self._opened) < READERS:
            opening = aiosqlite.connect(
                self._read_only_uri(), uri=True, isolation_level=None, cached_statements=STATEMENT_CACHE
            )
            self._opened.append(opening)
            try:
                return await opening
            except BaseException:
                self._opened.remove(opening)
                raise
        return await self._readers.get()

    def pool_use(self) -> None:
        """See `Database.pool_use`: there is one writer."""

    async def close(self) -> None:
        """See `Database.close`."""
        for running in (self._writing, self._committing):
            if running is not None:
                await asyncio.wait({running})
        async with self._turn:
            if self._short_reads is not None:
                self._short_reads.close()
            for reader in self._opened:
                await reader.close()
            self._thread.shutdown()
            self._writer.close()
