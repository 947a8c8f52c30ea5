"""Fixtures for tests of whole processes: the one that Loops are forked off, and a Loop in several with its merchant."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.e2e.houses import Nursery, nursery_of_loops
from tests.e2e.roles import Estate, estate
from tests.e2e.shells import Desk, desk_over
from tests.merchant_server import MerchantServer, merchant_server


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Yield the process that Loops are forked off, for all tests of a worker."""
    with nursery_of_loops() as process:
        yield process


@pytest.fixture
async def here(tmp_path: Path, postgres_database_url: str, redis_url: str) -> AsyncIterator[Estate]:
    """Yield a Loop of several processes, none of which is begun yet."""
    async with estate(tmp_path, postgres_database_url, redis_url) as made:
        yield made


@pytest.fixture
async def server() -> AsyncIterator[MerchantServer]:
    """Yield a merchant's server that takes webhooks."""
    async with merchant_server() as server:
        yield server


@pytest.fixture
def desk(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Desk]:
    """Yield what runs commands at a Loop of their own, on each database."""
    with desk_over(database_url, tmp_path / "home", monkeypatch=monkeypatch, capsys=capsys) as made:
        yield made


@pytest.fixture
def shop(desk: Desk) -> str:
    """Return the address of a merchant who takes payments there."""
    return desk.merchant()
