"""Houses: one installation of Loop whose processes are killed and begun anew, and the merchant's server beside it."""

import asyncio
import json
import os
import secrets
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import aiohttp
from aiohttp import web

from tests.e2e.clocks import SharedClock
from tests.e2e.crash_child import Life

ROOT = Path(__file__).parents[2]
TIME_S = 60.0
"""How long anything may take that takes a second or two on an idle machine."""

Nursery: TypeAlias = "subprocess.Popen[str]"
"""The process that Loops are forked off."""

GONE = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, ConnectionError)
"""What a client sees of a server that was killed."""


@contextmanager
def nursery_of_loops() -> Iterator[Nursery]:
    """Run the process that Loops are forked off."""
    with subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "e2e" / "crash_child.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def free_port() -> int:
    """Return a port that no outgoing connection is given between the lives of a Loop: the system's begin at 32768."""
    for _ in range(100):
        port = 20_000 + secrets.randbelow(10_000)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


@asynccontextmanager
async def listening(app: web.Application) -> AsyncIterator[str]:
    """Serve an application on a free port and yield its address."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


NEWS = frozenset(
    {
        "payment.requires_action", "payment.authorized", "payment.captured", "payment.failed", "payment.cancelled",
    }
)  # fmt: skip
"""Events after which a merchant has something to do."""


@dataclass
class MerchantServer:
    """Takes webhooks and remembers their bodies by event id."""

    url: str = ""
    received: dict[str, list[bytes]] = field(default_factory=dict)

    async def take(self, request: web.Request) -> web.StreamResponse:
        self.received.setdefault(request.headers["webhook-id"], []).append(await request.read())
        return web.Response()


@dataclass
class AttentiveMerchant(MerchantServer):
    """A merchant's server that wakes who waits for news of an order."""

    taken: set[str] = field(default_factory=set)
    _news: dict[str, asyncio.Event] = field(default_factory=dict)

    async def take(self, request: web.Request) -> web.StreamResponse:
        answer = await super().take(request)
        self.heed(request.headers["webhook-id"], json.loads(await request.read()))
        return answer

    def heed(self, event_id: str, event: Mapping[str, Any]) -> None:
        """Take note of an event, and tell who waits for it."""
        self.taken.add(event_id)
        if event["eventType"] in NEWS:
            self.news(event["orderId"]).set()

    def news(self, order_id: str) -> asyncio.Event:
        """Return what is set when there is something to do for an order."""
        return self._news.setdefault(order_id, asyncio.Event())


NEW_DELIVERIES = "SELECT event_id FROM webhook_deliveries WHERE status = 'pending' AND next_attempt_at IS NULL"
"""What no job knows of yet: a delivery that was committed with its event gets its endpoint's job by the next claim."""


class Premises(Protocol):
    """An installation of Loop, as its merchant and an auditor know it."""

    @property
    def key(self) -> str: ...

    @property
    def url(self) -> str: ...

    def rows(self, query: str, *arguments: object) -> list[dict[str, Any]]:
        """Read what is committed."""
        ...


@dataclass
class House:
    """One installation of Loop: its files outlive its processes."""

    nursery: Nursery
    flags: dict[str, object]
    path: Path
    url: str
    key: str = ""
    clock: SharedClock | None = None
    log_level: str = "info"
    pid: int = 0
    _ending: "asyncio.Task[int] | None" = None

    @classmethod
    def on(cls, nursery: Nursery, database_url: str, **flags: object) -> "House":
        """Return a house on a SQLite file, with its other files beside it."""
        path, port = Path(database_url.removeprefix("sqlite:///")), free_port()
        usual: dict[str, object] = {
            "database_url": database_url,
            "data_dir": str(path.parent),
            "port": port,
            "jwt_secret": "signs 0123456789abcdef0123456789abcdef",
            "encryption_key": "seals 0123456789abcdef0123456789abcdef",
            "webhook_allow_networks": "127.0.0.0/8",
        }
        return cls(nursery, {**usual, **flags}, path, f"http://127.0.0.1:{port}")

    @property
    def lives(self) -> bool:
        """Whether the process that was begun last has not ended."""
        return self._ending is not None and not self._ending.done()

    async def _line(self) -> int:
        assert self.nursery.stdout is not None
        return int(await asyncio.to_thread(self.nursery.stdout.readline))

    async def end(self, timeout_s: float = TIME_S) -> int:
        """Wait for the process to end and return its exit code; TimeoutError, and it lives on, when it does not."""
        assert self._ending is not None
        code = await asyncio.wait_for(asyncio.shield(self._ending), timeout_s)
        self.pid = 0
        return code

    async def begin(self, session: aiohttp.ClientSession, point: str | None = None, nth: int = 1) -> bool:
        """Start a process and wait until it answers; return whether it does, or is gone already."""
        assert self.nursery.stdin is not None
        clock = None if self.clock is None else str(self.clock.path)
        self.nursery.stdin.write(json.dumps(asdict(Life(self.flags, point, nth, clock, self.log_level))) + "\n")
        self.nursery.stdin.flush()
        self.pid = await asyncio.wait_for(self._line(), TIME_S)
        self._ending = asyncio.create_task(self._line())
        async with asyncio.timeout(TIME_S):
            while not self._ending.done():
                try:
                    async with session.get(f"{self.url}/health") as answer:
                        assert answer.status == 200
                        return True
                except GONE:
                    await asyncio.sleep(0.01)
        return False

    async def kill(self) -> None:
        """Kill the process, unless it is gone already."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        assert await self.end() == -signal.SIGKILL, self.log()

    def hurry(self) -> None:
        """Tell the process that the clock was set forward."""
        os.kill(self.pid, signal.SIGUSR1)

    async def stop(self) -> int:
        """Ask the process to stop and return its exit code."""
        os.kill(self.pid, signal.SIGTERM)
        return await self.end()

    async def clear(self) -> None:
        """End what a failed test has left running."""
        if self.pid:
            await self.kill()

    def rows(self, query: str, *arguments: object) -> list[dict[str, Any]]:
        """Read what is committed."""
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(query, arguments)]

    def log(self) -> str:
        return (self.path.parent / "loop.log").read_text("utf-8")[-5_000:]


async def until_at_rest(house: House) -> None:
    """Wait until nothing is left to be done."""
    try:
        async with asyncio.timeout(TIME_S):
            while house.rows(f"SELECT id FROM jobs UNION ALL {NEW_DELIVERIES}"):  # noqa: ASYNC110, S608 - the rows of another process
                await asyncio.sleep(0.02)
    except TimeoutError:
        left = house.rows("SELECT * FROM jobs")
        raise AssertionError(f"{left}\n{house.log()}") from None
