"""Fixtures for tests of whole processes: the one that Loops are forked off."""

from collections.abc import Iterator

import pytest

from tests.e2e.houses import Nursery, nursery_of_loops


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Yield the process that Loops are forked off, for all tests of a worker."""
    with nursery_of_loops() as process:
        yield process
