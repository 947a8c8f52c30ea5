"""The load: wrk where it is installed, else a small HTTP client of our own, which also drives whole payments."""

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import httptools

CONNECTIONS = 64
LATE_S = 30.0
"""How long after its planned end a load is given up."""

CREATE_BODY = json.dumps(
    {
        "amount": 4999,
        "currency": "USD",
        "customerId": "customer-1842",
        "customerEmail": "shopper@example.com",
        "description": "Two shirts and a hat",
        "metadata": {"cart": "b1f7", "channel": "web"},
    }
)
PAY_BODY = json.dumps({"processor": "sandbox", "paymentMethod": {"type": "card", "token": "tok_approve"}})

WRK = shutil.which("wrk")
GENERATOR = "wrk" if WRK else "bench/load.py (wrk is not installed)"
"""What sends creates and gets; payments are always sent by this module."""

_WRK_SCRIPT = """
local requests = {}
local at = 0
function init(_)
  for path in io.lines(os.getenv("BENCH_PATHS")) do requests[#requests + 1] = wrk.format(nil, path) end
end
function request()
  at = at % #requests + 1
  return requests[at]
end
function done(summary, latency, _)
  local e = summary.errors
  io.write(string.format('\\nBENCH {"requests": %d, "duration_us": %d, "failed": %d, "p50_us": %d, "p99_us": %d}\\n',
    summary.requests, summary.duration, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


class LoadError(Exception):
    """The load could not be driven to its end, or an answer was not the wanted one."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What to send again and again: one method and body, over these paths in turn."""

    method: str
    paths: Sequence[str]
    headers: dict[str, str]
    body: str = ""

    def raw(self, host: str, path: str) -> bytes:
        """Return one whole HTTP request."""
        body = self.body.encode()
        length = {"Content-Length": str(len(body))} if body else {}
        lines = [f"{name}: {value}" for name, value in {"Host": host, **self.headers, **length}.items()]
        return "\r\n".join([f"{self.method} {path} HTTP/1.1", *lines, "", ""]).encode() + body


@dataclass(frozen=True, slots=True)
class Measured:
    """What one load saw. Latencies in milliseconds."""

    count: int
    per_s: float
    p50_ms: float
    p99_ms: float


def create_traffic(key: str) -> Traffic:
    """Return creates of orders."""
    return Traffic("POST", ["/v1/orders"], _headers(key, has_body=True), CREATE_BODY)


def get_traffic(key: str, order_ids: Sequence[str]) -> Traffic:
    """Return gets of these orders."""
    return Traffic("GET", [f"/v1/orders/{each}" for each in order_ids], _headers(key))


def _headers(key: str, *, has_body: bool = False) -> dict[str, str]:
    return {"X-API-Key": key, **({"Content-Type": "application/json"} if has_body else {})}


async def drive(url: str, traffic: Traffic, *, seconds: float) -> Measured:
    """Keep every connection busy for so long; raises LoadError unless each answer is a success."""
    return await (_drive_wrk if WRK else _drive_own)(url, traffic, seconds)


async def _drive_wrk(url: str, traffic: Traffic, seconds: float) -> Measured:
    with tempfile.TemporaryDirectory(prefix="loop-bench-wrk-") as folder:
        script, paths = _write_script(Path(folder), traffic)
        flags = [flag for name, value in traffic.headers.items() for flag in ("-H", f"{name}: {value}")]
        process = await asyncio.create_subprocess_exec(
            str(WRK), "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", "-s", str(script), *flags, url,
            env={"BENCH_PATHS": str(paths)}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            async with asyncio.timeout(seconds + LATE_S):
                output = (await process.communicate())[0].decode()
        finally:
            if process.returncode is None:
                process.kill()
    lines = [line for line in output.splitlines() if line.startswith("BENCH ")]
    if not lines:
        raise LoadError(f"wrk ended without a result: {output[-500:]}")
    seen = json.loads(lines[0].removeprefix("BENCH "))
    if seen["failed"] or not seen["requests"]:
        raise LoadError(f"{seen['failed']} of {seen['requests']} answers of {url} were not a success")
    return Measured(
        seen["requests"],
        seen["requests"] / seen["duration_us"] * 1e6,
        seen["p50_us"] / 1000,
        seen["p99_us"] / 1000,
    )


def _write_script(folder: Path, traffic: Traffic) -> tuple[Path, Path]:
    script, paths = folder / "script.lua", folder / "paths"
    body = f"wrk.body = {json.dumps(traffic.body)}\n" if traffic.body else ""
    script.write_text(f"wrk.method = {json.dumps(traffic.method)}\n{body}{_WRK_SCRIPT}")
    paths.write_text("\n".join(traffic.paths))
    return script, paths


class Connection(asyncio.Protocol):
    """One keep-alive connection with one request on it at a time."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""
        self._answered: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way out."""
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        """Read on."""
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Collect a part of the answer's body."""
        self._body += body

    def on_message_complete(self) -> None:
        """Hand the answer over."""
        body, self._body = self._body, b""
        if self._answered is not None and not self._answered.done():
            self._answered.set_result((self._parser.get_status_code(), body))

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request that waits."""
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(LoadError(f"the server closed a connection ({exc})"))

    async def send(self, raw: bytes) -> bytes:
        """Send a request and return the body of its answer; raises LoadError unless it is a success."""
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(raw)
        status, body = await self._answered
        if not 200 <= status < 300:
            raise LoadError(f"answered {status}: {body[:300]!r}")
        return body


@asynccontextmanager
async def _connections(url: str, count: int) -> AsyncIterator[list[Connection]]:
    host, _, port = urlsplit(url).netloc.partition(":")
    opened = [await asyncio.get_running_loop().create_connection(Connection, host, int(port)) for _ in range(count)]
    try:
        yield [connection for _, connection in opened]
    finally:
        for transport, _ in opened:
            transport.close()


async def _drive_own(url: str, traffic: Traffic, seconds: float) -> Measured:
    requests = cycle([traffic.raw(urlsplit(url).netloc, path) for path in traffic.paths])

    async def one(connection: Connection) -> float:
        return await _timed(connection, next(requests))

    return await _repeat(url, one, seconds=seconds, connections=CONNECTIONS)


async def drive_payments(url: str, key: str, *, seconds: float, rate_per_s: float | None = None) -> Measured:
    """Create and pay orders for so long; count orders, time only the pays.

    Without `rate_per_s` every connection is kept busy; with it orders come evenly, as many as that in a second.
    """
    create = create_traffic(key).raw(urlsplit(url).netloc, "/v1/orders")
    pay = Traffic("POST", [], _headers(key, has_body=True), PAY_BODY)

    async def one(connection: Connection) -> float:
        order_id = json.loads(await connection.send(create))["id"]
        return await _timed(connection, pay.raw(urlsplit(url).netloc, f"/v1/orders/{order_id}/pay"))

    return await _repeat(url, one, seconds=seconds, connections=CONNECTIONS, rate_per_s=rate_per_s)


def list_traffic(key: str) -> Traffic:
    """Return gets of the newest orders, a page of them."""
    return Traffic("GET", ["/v1/orders?limit=20"], _headers(key))


async def drive_each(
    url: str, requests: Iterator[bytes], *, seconds: float, rate_per_s: float | None = None
) -> Measured:
    """Send whole requests, none of them twice, for so long: as fast as they are answered, or so many in a second."""

    async def one(connection: Connection) -> float:
        return await _timed(connection, next(requests))

    return await _repeat(url, one, seconds=seconds, connections=CONNECTIONS, rate_per_s=rate_per_s)


async def send(url: str, traffic: Traffic) -> list[dict[str, Any]]:
    """Send the traffic once, one request after another, and return the answers' JSON."""
    async with _connections(url, 1) as (connection,):
        host = urlsplit(url).netloc
        return [json.loads(await connection.send(traffic.raw(host, path))) for path in traffic.paths]


async def pay_orders(url: str, key: str, *, count: int) -> list[str]:
    """Create and pay orders with the sandbox, and return what it calls their payments."""
    ids = await create_orders(url, key, count=count)
    paths = [f"/v1/orders/{each}/pay" for each in ids]
    await send(url, Traffic("POST", paths, _headers(key, has_body=True), PAY_BODY))
    return [order["processorOrderId"] for order in await send(url, get_traffic(key, ids))]


async def create_orders(url: str, key: str, *, count: int) -> list[str]:
    """Create orders one after another and return their ids."""
    create = create_traffic(key)
    return [answer["id"] for answer in await send(url, replace(create, paths=list(create.paths) * count))]


async def _timed(connection: Connection, raw: bytes) -> float:
    begun = time.perf_counter()
    await connection.send(raw)
    return (time.perf_counter() - begun) * 1000


async def _repeat(
    url: str,
    one: Callable[[Connection], Awaitable[float]],
    *,
    seconds: float,
    connections: int,
    rate_per_s: float | None = None,
) -> Measured:
    """Repeat `one`, which returns milliseconds, on each connection until the time is over."""
    timings: list[float] = []

    async def work(connection: Connection, turn: int) -> None:
        at = begun + turn / (rate_per_s or 1)
        while time.perf_counter() < begun + seconds:
            if rate_per_s is not None:
                await asyncio.sleep(max(0.0, at - time.perf_counter()))
                at += connections / rate_per_s
            timings.append(await one(connection))

    async with _connections(url, connections) as opened, asyncio.timeout(seconds + LATE_S):
        begun = time.perf_counter()
        await asyncio.gather(*(work(connection, turn) for turn, connection in enumerate(opened)))
        elapsed = time.perf_counter() - begun
    if not timings:
        raise LoadError(f"{url} answered nothing")
    timings.sort()
    return Measured(len(timings), len(timings) / elapsed, timings[len(timings) // 2], timings[int(len(timings) * 0.99)])
