"""Locks on Postgres: a connection from outside, and how it waits until somebody waits for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeAlias

import asyncpg

Outsider: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

_WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@asynccontextmanager
async def outside(postgres_url: str) -> AsyncIterator[Outsider]:
    """Yield a connection that Loop knows nothing of."""
    connection = await asyncpg.connect(postgres_url)
    try:
        yield connection
    finally:
        await connection.close()


async def find_out_last(outsider: Outsider) -> None:
    """Have the other one of a deadlock find out first, and so be undone; call inside a transaction."""
    await outsider.execute("SET LOCAL deadlock_timeout = '10s'")


async def until_somebody_waits(outsider: Outsider) -> None:
    """Wait until another connection to this database waits for a row that somebody holds."""
    async with asyncio.timeout(10):
        while not await outsider.fetchval(_WAITING):
            await outsider.execute("SELECT pg_stat_clear_snapshot()")  # inside a transaction it would stay the same
            await asyncio.sleep(0.01)
