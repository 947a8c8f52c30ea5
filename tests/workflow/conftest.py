"""Fixtures for everything that runs over a database: the database itself, a Loop on it, and a shop in that Loop."""

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from loop.runtime import Chance, opened
from loop.storage.database import Database
from loop.storage.postgres import open_postgres
from loop.storage.sqlite import SqliteDatabase
from loop.storage.tables import metadata
from loop.testing.stub_psp import StubProcessor
from loop.workflows.context import Context
from tests.builders import Clock, Shop, open_shop, settings_for
from tests.canaries import aviary
from tests.servers import rows_of, run_sql, with_database

END_OTHERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
WITHOUT_TRIGGERS = "SET session_replication_role = replica"
"""Among them those that keep the audit log from being emptied."""
EMPTY_ALL = "; ".join(f"DELETE FROM {table.name}" for table in reversed(metadata.sorted_tables))  # noqa: S608 - our own


@pytest.fixture(scope="session")
def reused_postgres_url(postgres_url: str, postgres_template: str) -> Iterator[str]:
    """Yield a migrated PostgreSQL database that one test after the other uses: making one takes longer than a test."""
    name = f"loop_reused_{secrets.token_hex(4)}"
    run_sql(postgres_url, f"CREATE DATABASE {name} TEMPLATE {postgres_template}")
    yield with_database(postgres_url, name)
    run_sql(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def postgres_database_url(reused_postgres_url: str) -> Iterator[str]:
    """Yield the URL of a migrated PostgreSQL database without a row, which holds no secret in the end."""
    run_sql(reused_postgres_url, END_OTHERS, WITHOUT_TRIGGERS, EMPTY_ALL)
    yield reused_postgres_url
    aviary.require_none_in_rows(rows_of(reused_postgres_url))


async def open_database(database_url: str) -> Database:
    """Open a migrated database of either kind."""
    if database_url.startswith("sqlite"):
        return SqliteDatabase(Path(database_url.removeprefix("sqlite:///")))
    return await open_postgres(database_url, 8)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """Yield this test's own database, once of each kind."""
    opened_database = await open_database(database_url)
    yield opened_database
    await opened_database.close()


@pytest.fixture
async def same_database(database_url: str, database: Database) -> AsyncIterator[Database]:
    """Yield the same database as another process has it open."""
    del database  # opened before this one
    opened_database = await open_database(database_url)
    yield opened_database
    await opened_database.close()


@pytest.fixture
def clock() -> Clock:
    """Return the clock that the test turns."""
    return Clock()


@pytest.fixture
async def context(database_url: str, tmp_path: Path, clock: Clock) -> AsyncIterator[Context]:
    """Yield a Loop without server and schedule, on this test's own database and clock."""
    async with opened(settings_for(database_url, tmp_path), Chance(now=clock.now)) as context:
        yield context


@pytest.fixture
async def shop(context: Context, clock: Clock) -> Shop:
    """Return a merchant of that Loop with a sandbox account."""
    return await open_shop(context, clock)


@pytest.fixture
async def stub(tmp_path: Path, clock: Clock) -> AsyncIterator[StubProcessor]:
    """Yield a stand-in for the processors that goes by the test's clock."""
    async with StubProcessor(
        ledger_path=tmp_path / "stub.ledger", clock_ns=lambda: int(clock.at.timestamp() * 1e9)
    ) as running:
        yield running
