"""Migrations: bring a database's schema to this version's, or say how far it is from it."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

_POSTGRES_LOCK = 7_461_150
"""An advisory lock, so that two processes that migrate together take turns."""


@dataclass(frozen=True, slots=True)
class SchemaState:
    """`current` is None for an empty database; the schema fits when it equals `wanted`."""

    current: str | None
    wanted: str | None

    @property
    def is_current(self) -> bool:
        """Whether this version of Loop fits the schema."""
        return self.current == self.wanted


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(files("loop.storage") / "migrations"))
    return config


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_POSTGRES_LOCK})")
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _state(connection: Connection) -> SchemaState:
    current = MigrationContext.configure(connection).get_current_revision()
    return SchemaState(current, ScriptDirectory.from_config(_config()).get_current_head())


async def migrate(database_url: str) -> SchemaState:
    """Bring the schema to this version's, in one transaction, and return where it stands."""
    if database_url.startswith("sqlite"):
        engine = create_engine(_sqlalchemy_url(database_url))
        try:
            with engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
                connection.commit()
            with engine.begin() as connection:
                _upgrade(connection)
                return _state(connection)
        finally:
            engine.dispose()
    async_engine = create_async_engine(_sqlalchemy_url(database_url))
    try:
        async with async_engine.begin() as async_connection:
            await async_connection.run_sync(_upgrade)
            return await async_connection.run_sync(_state)
    finally:
        await async_engine.dispose()


async def schema_state(database_url: str) -> SchemaState:
    """Return where the schema stands, changing nothing."""
    if database_url.startswith("sqlite"):
        if not _file_exists(database_url):
            return SchemaState(None, ScriptDirectory.from_config(_config()).get_current_head())
        engine = create_engine(_sqlalchemy_url(database_url))
        try:
            with engine.connect() as connection:
                return _state(connection)
        finally:
            engine.dispose()
    async_engine = create_async_engine(_sqlalchemy_url(database_url))
    try:
        async with async_engine.connect() as async_connection:
            return await async_connection.run_sync(_state)
    finally:
        await async_engine.dispose()


def _file_exists(database_url: str) -> bool:
    return Path(database_url.removeprefix("sqlite:///")).exists()


def _sqlalchemy_url(database_url: str) -> str:
    return database_url.replace("postgresql://", "postgresql+asyncpg://", 1)
