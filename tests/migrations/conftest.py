"""Fixtures for migrations: databases without a table."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import run_sql, with_database


@pytest.fixture
def empty_postgres_url(postgres_url: str) -> Iterator[str]:
    """Yield the URL of a PostgreSQL database without a table."""
    name = f"loop_empty_{secrets.token_hex(4)}"
    run_sql(postgres_url, f"CREATE DATABASE {name}")
    yield with_database(postgres_url, name)
    run_sql(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a database without a table, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'loop.db'}"
    url: str = request.getfixturevalue("empty_postgres_url")
    return url
