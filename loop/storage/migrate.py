"""Migrations: bring a database's schema to this version's, or say how far it is from it."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from sqlalchemy import (
    URL,
    Column,
    Connection,
    MetaData,
    String,
    Table,
    create_engine,
    delete,
    event,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

from loop.domain.errors import LoopError, configuration, unavailable
from loop.storage.postgres import APPLICATION_NAME
from loop.storage.sqlite import BUSY_TIMEOUT_S, trouble_with
from loop.telemetry import get_logger

log = get_logger(__name__)

LOCK_WAIT_S = 2.0
"""How long a migration waits for a table that others use, since whoever comes after it waits behind it. Longer than
PostgreSQL's `deadlock_timeout` of a second, after which an autovacuum makes way."""
LOCK_PAUSE_S = 1.0
"""Between two tries: those who waited behind the migration have their turn."""
LOCK_TRIES = 15
_IN_USE = frozenset({"55P03", "40P01"})
"""A lock that did not come in time, and two that waited for each other: PostgreSQL has undone everything."""

_POSTGRES_LOCK = 7_461_150
"""An advisory lock, so that two processes that migrate together take turns."""

_OTHERS = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = :name")

_UNPREPARED = {"statement_cache_size": 0, "prepared_statement_cache_size": 0, "prepared_statement_name_func": str}
"""Statements without names: behind PgBouncer the next one on the same connection is somebody else's."""


_SUPPORTED = Table("supported_revisions", MetaData(), Column("revision", String(32), primary_key=True))
"""The revisions whose code may run on the schema: a table beside Alembic's own (docs/adr/0016)."""


@dataclass(frozen=True, slots=True)
class SchemaState:
    """`current` is None for an empty database, `wanted` is this version's."""

    current: str | None
    wanted: str | None
    supported: frozenset[str] = frozenset()
    """The revisions whose code may run on the schema."""

    @property
    def is_current(self) -> bool:
        """Whether the schema is this version's."""
        return self.current == self.wanted

    @property
    def is_fit(self) -> bool:
        """Whether this version may run on it: it is its own, or has only been expanded since."""
        return self.is_current or self.wanted in self.supported


@dataclass(frozen=True, slots=True)
class Step:
    """One migration, and in a sentence what it does."""

    revision: str
    about: str
    is_expanding: bool
    """Whether code that ran before it goes on running after it."""


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(files("loop.storage") / "migrations"))
    return config


def pending(state: SchemaState) -> list[Step]:
    """Return the migrations that this version needs and the schema lacks, in their order; raises `schema_newer`."""
    if state.is_fit:
        return []
    scripts = ScriptDirectory.from_config(_config())
    try:
        found = [*scripts.iterate_revisions("head", state.current or "base")]
    except RevisionError as error:
        raise configuration(
            "schema_newer",
            f"The schema is {state.current}, which this version does not know: run the version of Loop that made it, "
            "or a newer one.",
        ) from error
    return [
        Step(
            each.revision,
            (each.module.__doc__ or "").strip().splitlines()[0],
            is_expanding=getattr(each.module, "is_expanding", False),
        )
        for each in reversed(found)
    ]


def require_fit(state: SchemaState) -> None:
    """Raise `schema_outdated` or `schema_newer` unless this version may run on the schema."""
    if pending(state):
        raise configuration(
            "schema_outdated",
            f"The schema is {state.current or 'empty'}, this version needs {state.wanted}: run `loop migrate`.",
        )


def _upgrade(connection: Connection) -> SchemaState:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_POSTGRES_LOCK})")
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(LOCK_WAIT_S * 1000)}")
    before = _state(connection)
    steps = pending(before)
    if not steps:
        return before
    if before.current is not None and not all(step.is_expanding for step in steps):
        _require_alone(connection)
    config = _config()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) in _IN_USE:
            raise unavailable(
                "schema_locked",
                "The migration needs a table that somebody uses without end, and has changed nothing. End long queries "
                "and backups, and run it again.",
            ) from error
        raise
    _remember(connection, _supported_after(before.supported, steps))
    return _state(connection)


def _require_alone(connection: Connection) -> None:
    """Raise `schema_in_use` where processes of Loop are connected: what is to come takes away what they use.

    Those that come through PgBouncer are not seen: it keeps connections of processes that have ended long ago.
    """
    if connection.dialect.name != "postgresql":
        return
    others = connection.scalar(_OTHERS, {"name": APPLICATION_NAME})
    if others:
        raise unavailable(
            "schema_in_use",
            f"A migration takes away what running processes of Loop use, which hold {others} connections: stop them "
            "all, then run `loop migrate`. `loop migrate plan` says which one it is. Nothing was changed.",
        )


def _supported_after(supported: frozenset[str], steps: Iterable[Step]) -> frozenset[str]:
    for step in steps:
        supported = frozenset({step.revision}) | (supported if step.is_expanding else frozenset())
    return supported


def _remember(connection: Connection, supported: frozenset[str]) -> None:
    _SUPPORTED.create(connection, checkfirst=True)
    connection.execute(delete(_SUPPORTED))
    connection.execute(insert(_SUPPORTED), [{"revision": each} for each in sorted(supported)])


def _state(connection: Connection) -> SchemaState:
    current = MigrationContext.configure(connection).get_current_revision()
    wanted = ScriptDirectory.from_config(_config()).get_current_head()
    if current is None:
        return SchemaState(current, wanted)
    return SchemaState(current, wanted, _supported(connection, current))


def _supported(connection: Connection, current: str) -> frozenset[str]:
    if inspect(connection).has_table(_SUPPORTED.name):
        told = frozenset(connection.scalars(select(_SUPPORTED.c.revision)))
        if current in told:  # else it is of another schema, which something other than `migrate` has changed
            return told
    return frozenset({current})


async def migrate(database_url: str, *, tries: int = LOCK_TRIES) -> SchemaState:
    """Bring the schema to what this version needs, in one transaction, and return where it stands.

    Raises `unavailable` when the database is away, or when after so many tries others still use a table that it needs;
    `schema_newer` when a newer version of Loop made it and this one may not run on it.
    """
    for _ in range(tries - 1):
        try:
            return await _with_connection(database_url, _upgrade)
        except LoopError as error:
            if error.code != "schema_locked":
                raise
        log.warning("migration.waits", hint="somebody uses a table that it needs")
        await asyncio.sleep(LOCK_PAUSE_S)
    return await _with_connection(database_url, _upgrade)


async def schema_state(database_url: str) -> SchemaState:
    """Return where the schema stands, changing nothing; raises `unavailable` when the database is away."""
    if database_url.startswith("sqlite") and not _sqlite_path(database_url).exists():
        return SchemaState(None, ScriptDirectory.from_config(_config()).get_current_head())
    return await _with_connection(database_url, _state)


async def _with_connection(database_url: str, work: Callable[[Connection], SchemaState]) -> SchemaState:
    """Run `work` in one transaction on a connection of its own."""
    if database_url.startswith("sqlite"):
        return _with_sqlite_connection(database_url, work)
    try:
        # asyncpg reads the URL, here as everywhere: SQLAlchemy does not know sslmode and its like.
        connect = partial(asyncpg.connect, database_url)
        engine = create_async_engine("postgresql+asyncpg://", connect_args={**_UNPREPARED, "async_creator_fn": connect})
        try:
            async with engine.begin() as connection:
                return await connection.run_sync(work)
        finally:
            await engine.dispose()
    except (OSError, OperationalError, InterfaceError, asyncpg.PostgresError) as error:
        raise unavailable(
            "database_unavailable", "The database did not answer; check DATABASE_URL and the server."
        ) from error


def _with_sqlite_connection(database_url: str, work: Callable[[Connection], SchemaState]) -> SchemaState:
    # Not the text itself: SQLAlchemy would take a ? or % of the path for its own.
    url = URL.create("sqlite", database=str(_sqlite_path(database_url)))
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _take_over_transactions)
    event.listen(engine, "begin", _begin_immediately)
    try:
        with engine.begin() as connection:
            return work(connection)
    except DBAPIError as error:
        cause = error.orig
        if isinstance(cause, sqlite3.Error) and (told := trouble_with(_sqlite_path(database_url), cause)):
            raise told from error
        raise
    finally:
        engine.dispose()


def _take_over_transactions(connection: sqlite3.Connection, _: object) -> None:
    """Keep Python's driver from beginning transactions: it leaves DDL outside them, and a kill half of it behind."""
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode=WAL")


def _begin_immediately(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _sqlite_path(database_url: str) -> Path:
    return Path(database_url.removeprefix("sqlite:///"))
