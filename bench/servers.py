"""The servers under load: Loop and the floors as processes of their own, with what they cost."""

import asyncio
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from bench.floors import MERCHANT
from loop.storage import merchants
from loop.storage.database import Database
from loop.storage.merchants import Merchant
from loop.storage.migrate import migrate
from loop.storage.postgres import open_postgres
from loop.storage.sqlite import SqliteDatabase

STARTED_WITHIN_S = 20.0
STOPPED_WITHIN_S = 30.0
COMMAND_WITHIN_S = 60.0
NEVER_REACHED = "1000000"
"""A rate at which requests are counted, as they always are, and none is refused."""
MERCHANT_EMAIL = "bench@a.example"
ROOT = Path(__file__).parents[1]
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class ServerError(Exception):
    """A server did not start, or a command failed."""


@dataclass(frozen=True, slots=True)
class Server:
    """A process that serves `url`; `key` and `password` are of its merchant, empty for a floor."""

    url: str
    key: str
    pid: int
    password: str = field(default="", repr=False)

    def cpu_s(self) -> float:
        """Return the CPU seconds that the process has used, user and system, all threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S

    def memory_mb(self) -> float:
        """Return the resident memory of the process in megabytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        kilobytes = next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]
        return int(kilobytes) / 1024


@asynccontextmanager
async def floor(database_url: str, folder: Path) -> AsyncIterator[Server]:
    """Run the bare floor over a database of its own."""
    await migrate(database_url)
    database = await _open(database_url)
    try:
        now = datetime.now(UTC)  # noqa: TID251 - a bench has no context that could hand it a clock
        async with database.transaction() as session:
            await session.run_together(
                [merchants.insertion(Merchant(MERCHANT, "Floor", "floor@a.example", "", now, now))]
            )
    finally:
        await database.close()
    port = _free_port()
    arguments = [sys.executable, "-m", "bench.floors", database_url, str(port)]
    async with _running(arguments, port, log=folder / "floor.log") as pid:
        yield Server(f"http://127.0.0.1:{port}", "", pid)


async def _open(database_url: str) -> Database:
    if database_url.startswith("sqlite"):
        return SqliteDatabase(Path(database_url.removeprefix("sqlite:///")))
    return await open_postgres(database_url, 1)


@dataclass(frozen=True, slots=True)
class Installation:
    """A Loop that can be served: its settings by variable, its merchant's key, and the merchant's sandbox account."""

    folder: Path
    environment: Mapping[str, str] = field(repr=False)
    key: str = field(repr=False)
    account_id: str

    @property
    def webhook_secret(self) -> str:
        """What the sandbox's webhooks are signed with."""
        return self.environment["LOOP_SANDBOX_WEBHOOK_SECRET"]


async def install(database_url: str, folder: Path, *, settings: Mapping[str, str] | None = None) -> Installation:
    """Migrate a database and make one merchant with the sandbox; `settings` are more of Loop's, by variable."""
    environment = {
        "LOOP_DATA_DIR": str(folder),
        "LOOP_DATABASE_URL": database_url,
        "LOOP_JWT_SECRET": secrets.token_hex(32),
        "LOOP_ENCRYPTION_KEY": secrets.token_hex(32),
        "LOOP_LOG_FILE": str(folder / "loop.log"),
        **{f"LOOP_LIMIT_{each}_PER_S": NEVER_REACHED for each in ("READ", "WRITE", "PAY", "WEBHOOK")},
        "LOOP_MERCHANT_PASSWORD": secrets.token_hex(16),
        "LOOP_SANDBOX_WEBHOOK_SECRET": secrets.token_hex(16),
        **(settings or {}),
    }
    await _command(environment, "migrate")
    made = await _command(environment, "merchant", "create", "--name", "Bench", "--email", MERCHANT_EMAIL, "--json")
    merchant = json.loads(made)
    account = json.loads(await _command(environment, "processor", "set", merchant["id"], "sandbox", "--json"))
    return Installation(folder, environment, merchant["apiKey"], account["id"])


@asynccontextmanager
async def serve(installation: Installation, *, only: Sequence[str] = ()) -> AsyncIterator[Server]:
    """Run `loop serve` as it is installed, its log in a file; `only` some of its parts, else all."""
    port = _free_port()
    parts = [word for part in only for word in ("--only", part)]
    arguments = [sys.executable, "-m", "loop", "serve", "--port", str(port), *parts]
    log = installation.folder / f"{'-'.join(['serve', *only])}.log"
    async with _running(arguments, port, log=log, environment=installation.environment) as pid:
        password = installation.environment["LOOP_MERCHANT_PASSWORD"]
        yield Server(f"http://127.0.0.1:{port}", installation.key, pid, password)


@asynccontextmanager
async def loop(database_url: str, folder: Path) -> AsyncIterator[Server]:
    """Install Loop over a database of its own, and serve all of it."""
    async with serve(await install(database_url, folder)) as server:
        yield server


async def _command(environment: Mapping[str, str], *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loop", *arguments, env={**os.environ, **environment},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(COMMAND_WITHIN_S):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        raise ServerError(f"loop {' '.join(arguments)} failed: {errors.decode()[-1000:]}")
    return output.decode()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def _running(
    arguments: Sequence[str], port: int, *, log: Path, environment: Mapping[str, str] | None = None
) -> AsyncIterator[int]:
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *arguments, cwd=ROOT, env={**os.environ, **(environment or {})}, stdout=output, stderr=output
        )
    try:
        await _until_it_listens(process, port, log)
        yield process.pid
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(STOPPED_WITHIN_S):
                await process.wait()
        except TimeoutError:
            process.kill()


async def _until_it_listens(process: asyncio.subprocess.Process, port: int, log: Path) -> None:
    end = time.monotonic() + STARTED_WITHIN_S
    while process.returncode is None and time.monotonic() < end:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
    raise ServerError(f"a server did not start: {_end_of(log)}")


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-1000:]
