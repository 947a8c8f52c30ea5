"""Fixtures for tests of whole processes: the one that Loops are forked off, and a Loop in several with its merchant."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.e2e.houses import Nursery, nursery_of_loops
from tests.e2e.roles import Estate, estate
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
