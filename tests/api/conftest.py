"""Fixtures of the API's tests: a whole Loop on a free port over each database, and merchants who call it."""

import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest

from loop.config import Settings, load
from loop.domain.errors import LoopError
from loop.runtime import Running, running
from loop.storage import audit
from tests.api.client import Shop, open_shop


@pytest.fixture
def flags() -> dict[str, object]:
    """Return the settings that a test module wants."""
    return {}


@pytest.fixture
def settings(database_url: str, tmp_path: Path, flags: dict[str, object]) -> Settings:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return load(
        {
            "data_dir": str(tmp_path),
            "database_url": database_url,
            "database_pool_size": "8",
            "jwt_secret": secrets.token_hex(32),
            "encryption_key": secrets.token_hex(32),
            "port": str(port),
            **flags,
        },
        environ={},
    )


@pytest.fixture
async def served(settings: Settings) -> AsyncIterator[Running]:
    async with running(settings) as loop:
        yield loop
        with suppress(LoopError):  # the database is away
            await _require_actors(loop)


async def _require_actors(loop: Running) -> None:
    """Require that what requests did, which has their correlation ids, does not pass for Loop's own doing."""
    async with loop.context.database.reading() as reader:
        found = await audit.newest_of_all(reader, 1_000)
    nobody_s = [entry.action for entry in found if entry.correlation_id is not None and entry.actor_kind == "system"]
    assert not nobody_s, "a handler's context does not say who acts: use auth.acting"


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as client:
        yield client


@pytest.fixture
async def shop(served: Running, session: aiohttp.ClientSession) -> Shop:
    """Return a merchant who pays through the sandbox."""
    made = await open_shop(session, served.url, served.context)
    await made.use_sandbox()
    return made


@pytest.fixture
async def bare_shop(served: Running, session: aiohttp.ClientSession) -> Shop:
    """Return a merchant without any processor."""
    return await open_shop(session, served.url, served.context, name="bare")
