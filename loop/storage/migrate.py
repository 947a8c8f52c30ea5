"""Migrations: bring a database's schema to this version's, or say how far it is from it."""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection, create_engine, event
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

from loop.domain.errors import LoopError, configuration, unavailable
from loop.storage.sqlite import BUSY_TIMEOUT_S, is_away

_POSTGRES_LOCK = 7_461_150
"""An advisory lock, so that two processes that migrate together take turns."""

_UNPREPARED = {"statement_cache_size": 0, "prepared_statement_cache_size": 0, "prepared_statement_name_func": str}
"""Statements without names: behind PgBouncer the next one on the same connection is somebody else's."""


@dataclass(frozen=True, slots=True)
class SchemaState:
    """`current` is None for an empty database; the schema fits when it equals `wanted`."""

    current: str | None
    wanted: str | None

    @property
    def is_current(self) -> bool:
        """Whether this version of Loop fits the schema."""
        return self.current == self.wanted


@dataclass(frozen=True, slots=True)
class Step:
    """One migration, and in a sentence what it does."""

    revision: str
    about: str


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(files("loop.storage") / "migrations"))
    return config


def pending(state: SchemaState) -> list[Step]:
    """Return the migrations that lie between a schema and this version's, in their order; raises `schema_newer`."""
    scripts = ScriptDirectory.from_config(_config())
    try:
        found = [*scripts.iterate_revisions("head", state.current or "base")]
    except CommandError as error:
        raise _newer(state) from error
    return [Step(each.revision, (each.module.__doc__ or "").strip().splitlines()[0]) for each in reversed(found)]


def _newer(state: SchemaState) -> LoopError:
    return configuration(
        "schema_newer",
        f"The schema is {state.current}, which this version does not know: run the version of Loop that made it, or a "
        "newer one.",
    )


def _upgrade(connection: Connection) -> SchemaState:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_POSTGRES_LOCK})")
    config = _config()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise _newer(_state(connection)) from error
    return _state(connection)


def _state(connection: Connection) -> SchemaState:
    current = MigrationContext.configure(connection).get_current_revision()
    return SchemaState(current, ScriptDirectory.from_config(_config()).get_current_head())


async def migrate(database_url: str) -> SchemaState:
    """Bring the schema to this version's, in one transaction, and return where it stands.

    Raises `unavailable` when the database is away and `schema_newer` when a newer version of Loop made it.
    """
    return await _with_connection(database_url, _upgrade)


async def schema_state(database_url: str) -> SchemaState:
    """Return where the schema stands, changing nothing; raises `unavailable` when the database is away."""
    if database_url.startswith("sqlite") and not _sqlite_path(database_url).exists():
        return SchemaState(None, ScriptDirectory.from_config(_config()).get_current_head())
    return await _with_connection(database_url, _state)


async def _with_connection(database_url: str, work: Callable[[Connection], SchemaState]) -> SchemaState:
    """Run `work` in one transaction on a connection of its own."""
    try:
        if database_url.startswith("sqlite"):
            return _with_sqlite_connection(database_url, work)
        # asyncpg reads the URL, here as everywhere: SQLAlchemy does not know sslmode and its like.
        connect = partial(asyncpg.connect, database_url)
        engine = create_async_engine("postgresql+asyncpg://", connect_args={**_UNPREPARED, "async_creator_fn": connect})
        try:
            async with engine.begin() as connection:
                return await connection.run_sync(work)
        finally:
            await engine.dispose()
    except (OSError, OperationalError, InterfaceError, asyncpg.PostgresError) as error:
        cause = getattr(error, "orig", None)
        if isinstance(cause, sqlite3.Error) and not is_away(cause):
            raise
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
