"""What one Loop takes besides requests: webhooks, jobs that other processes begin, being observed, having grown."""

import argparse
import asyncio
import hashlib
import hmac
import json
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from statistics import median
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import uvloop
from rich.console import Console
from rich.table import Table

from bench import crowd, load, servers
from bench.load import Measured, Traffic
from bench.report import verdict
from bench.servers import Server
from bench.sinks import sink
from loop.processors.sandbox import SIGNATURE_HEADER
from tests.servers import run_sql, running_postgres, running_redis, with_database

ROUNDS, SECONDS = 6, 4.0
INGEST_PER_S: Final = 500.0
MOST_INGEST_P99_MS: Final = 100.0
PAYMENTS: Final = 1_000
"""Of how many orders the processor's webhooks tell; each is told of many times, as in a bad hour of a processor's."""

ENDPOINTS: Final = 10
"""As many as a merchant may have."""
EVENTS: Final = 2_000
"""How many events wait for each endpoint when the worker begins."""
LEAST_DELIVERIES_PER_S: Final = 1_000.0
DELIVERED_WITHIN_S: Final = 240.0

WAKE_UPS: Final = 500
NOT_COUNTED: Final = 20
"""The first wake-ups, for which connections are opened and statements prepared."""
PAUSES_MS: Final = 37
"""The greatest of the pauses between two, so that they fall everywhere between two looks of the worker's at Redis."""
BEGUN_WITHIN_S: Final = 10.0
MOST_WAKE_MS: Final = 50.0

LEAST_OBSERVED: Final = 0.8
SMALL, LARGE = 10_000, 1_000_000
MOST_GROWTH: Final = 1.3
ORDERS_TO_GET: Final = 500

console = Console(width=110)


@dataclass(frozen=True, slots=True)
class Place:
    """A database and a folder that nobody has used, and how many seconds each load lasts."""

    url: str
    folder: Path
    seconds: float


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    what: str
    measured: str
    goal: str = ""


async def webhooks_in(place: Place) -> list[Finding]:
    """Send a processor's signed webhooks, none twice, at a steady rate and then as fast as they are taken."""
    installation = await servers.install(place.url, place.folder)
    async with servers.serve(installation) as server:
        references = await load.pay_orders(server.url, server.key, count=PAYMENTS)
        path = f"/webhooks/sandbox/{installation.account_id}"
        events = _events(server.url, path, references, installation.webhook_secret)
        steady = await load.drive_each(server.url, events, seconds=place.seconds * ROUNDS, rate_per_s=INGEST_PER_S)
        most = await load.drive_each(server.url, events, seconds=place.seconds)
    return [
        Finding(
            f"processors' webhooks, {INGEST_PER_S:.0f}/s",
            f"{steady.per_s:,.0f}/s, p50 {steady.p50_ms:.1f} ms, p99 {steady.p99_ms:.1f} ms",
            verdict(f"p99 < {MOST_INGEST_P99_MS:.0f} ms", is_met=steady.p99_ms < MOST_INGEST_P99_MS),
        ),
        Finding("… as many as it takes", f"{most.per_s:,.0f}/s, p99 {most.p99_ms:.0f} ms"),
    ]


def _events(url: str, path: str, references: Sequence[str], secret: str) -> Iterator[bytes]:
    for number in count():
        event = {"id": f"evt_{number}", "type": "payment.captured", "payment": references[number % len(references)]}
        body = json.dumps(event)
        signature = hmac.new(secret.encode(), body.encode(), hashlib.sha256).hexdigest()
        headers = {SIGNATURE_HEADER: signature, "Content-Type": "application/json"}
        yield Traffic("POST", [path], headers, body).raw(urlsplit(url).netloc, path)


async def webhooks_out(place: Place) -> list[Finding]:
    """Have deliveries wait while there is no worker, then begin one and count what arrives."""
    settings = {"LOOP_WEBHOOK_ALLOW_NETWORKS": "127.0.0.0/8"}
    installation = await servers.install(place.url, place.folder, settings=settings)
    async with sink() as shop:
        async with servers.serve(installation, only=["api"]) as api:
            await _add_endpoints(api, shop.url, count=ENDPOINTS)
            await load.create_orders(api.url, api.key, count=EVENTS)
        async with servers.serve(installation, only=["worker"]) as worker:
            used_s = worker.cpu_s()
            await shop.until(EVENTS * ENDPOINTS, within_s=DELIVERED_WITHIN_S)
            cpu_ms = (worker.cpu_s() - used_s) / len(shop.arrivals) * 1000
            memory_mb = worker.memory_mb()
        rate = shop.per_s()
    return [
        Finding(
            f"deliveries of one worker, {len(shop.arrivals):,} to {ENDPOINTS} endpoints",
            f"{rate:,.0f}/s, {cpu_ms:.2f} ms of CPU each, {memory_mb:.0f} MB",
            verdict(f"≥ {LEAST_DELIVERIES_PER_S:,.0f}/s", is_met=rate >= LEAST_DELIVERIES_PER_S),
        )
    ]


async def _add_endpoints(api: Server, url: str, *, count: int) -> None:
    async with aiohttp.ClientSession(headers={"X-API-Key": api.key}) as session:
        for number in range(count):
            body = {"url": f"{url}/{number}", "events": "*"}
            async with session.post(f"{api.url}/api/webhook-endpoints", json=body) as answer:
                if answer.status != 201:
                    raise servers.ServerError(f"an endpoint was answered {answer.status}: {await answer.text()}")


async def woken(place: Place) -> list[Finding]:
    """Create orders one after another at one process, and see how soon another begins to tell of each."""
    with running_redis() as redis_url:
        settings = {"LOOP_WEBHOOK_ALLOW_NETWORKS": "127.0.0.0/8", "LOOP_REDIS_URL": redis_url}
        installation = await servers.install(place.url, place.folder, settings=settings)
        async with (
            sink() as shop,
            servers.serve(installation, only=["api"]) as api,
            servers.serve(installation, only=["worker"]) as worker,
        ):
            await _add_endpoints(api, shop.url, count=1)
            used_s, began = worker.cpu_s(), time.perf_counter()
            for number in range(1, WAKE_UPS + 1):
                await load.create_orders(api.url, api.key, count=1)
                await shop.until(number, within_s=BEGUN_WITHIN_S)
                await asyncio.sleep(number % (PAUSES_MS + 1) / 1000)
            busy = (worker.cpu_s() - used_s) / (time.perf_counter() - began)
    waits_ms = sorted((await _waits_ms(place.url))[NOT_COUNTED:])
    goals = []
    for name, part in (("p50", 0.5), ("p99", 0.99)):
        wait_ms = waits_ms[int(len(waits_ms) * part)]
        goals.append((name, wait_ms, verdict(f"{name} ≤ {MOST_WAKE_MS:.0f} ms", is_met=wait_ms <= MOST_WAKE_MS)))
    measured = ", ".join(f"{name} {wait_ms:.1f} ms" for name, wait_ms, _ in goals)
    return [
        Finding(
            f"commit here to start there, {len(waits_ms)} jobs",
            f"{measured}, {busy:.0%} of a core",
            "\n".join(goal for *_, goal in goals),
        )
    ]


async def _waits_ms(url: str) -> list[float]:
    """Return from before each event's commit until its delivery began, as the rows have it, the oldest first."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(
            "SELECT extract(epoch FROM a.tried_at - e.created_at) * 1000 FROM delivery_attempts a"
            " JOIN webhook_events e ON e.id = a.event_id WHERE a.number = 1 ORDER BY e.created_at"
        )
    finally:
        await connection.close()
    return [float(wait_ms) for (wait_ms,) in rows]


async def observed(place: Place) -> list[Finding]:
    """Send requests to a Loop that sends spans and metrics to a collector, and to one that does not, by turns."""
    findings = []
    async with sink() as collector:
        settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        async with _two(place, settings) as (plain, traced):
            for name, drive in (("create", _sending(_create)), ("create and pay", _paying)):
                ratios = await _by_turns(plain, traced, drive, seconds=place.seconds)
                met = verdict(f"≥ {LEAST_OBSERVED}", is_met=median(ratios) >= LEAST_OBSERVED)
                findings.append(Finding(f"{name}, one of ten traced", f"{_spread(ratios)} x the rate untraced", met))
        if not collector.arrivals:
            raise servers.ServerError("the collector was sent nothing")
    return findings


async def grown(place: Place) -> list[Finding]:
    """Send the same requests to a Loop with few orders and to one with many, by turns; times, so more is worse."""
    findings = []
    async with _two(place) as (small, large):
        for server, size, name in ((small, SMALL, "first"), (large, LARGE, "second")):
            async with aiohttp.ClientSession() as session:
                await crowd.make_templates(server, session)
            now = datetime.now(UTC)  # noqa: TID251 - a bench has no context that could hand it a clock
            made, _ = await asyncio.to_thread(crowd.gather, with_database(place.url, f"bench_{name}"), size, now=now)
            console.print(f"{made:,} orders in bench_{name}", style="dim")
        ids = {each: await load.create_orders(each.url, each.key, count=ORDERS_TO_GET) for each in (small, large)}
        for name, drive in _requests(ids).items():
            ratios = [1 / ratio for ratio in await _by_turns(small, large, drive, seconds=place.seconds)]
            met = verdict(f"≤ {MOST_GROWTH}", is_met=median(ratios) <= MOST_GROWTH)
            findings.append(Finding(f"{name}, {LARGE:,} orders to {SMALL:,}", f"{_spread(ratios)} x the time", met))
    return findings


Drive = Callable[[Server, float], Awaitable[Measured]]


async def _paying(server: Server, seconds: float) -> Measured:
    return await load.drive_payments(server.url, server.key, seconds=seconds)


def _create(server: Server) -> Traffic:
    return load.create_traffic(server.key)


def _sending(traffic_of: Callable[[Server], Traffic]) -> Drive:
    async def drive(server: Server, seconds: float) -> Measured:
        return await load.drive(server.url, traffic_of(server), seconds=seconds)

    return drive


def _requests(ids: Mapping[Server, Sequence[str]]) -> Mapping[str, Drive]:
    return {
        "create": _sending(_create),
        "get": _sending(lambda server: load.get_traffic(server.key, ids[server])),
        "list": _sending(lambda server: load.list_traffic(server.key)),
        "create and pay": _paying,
    }


async def _by_turns(first: Server, second: Server, drive: Drive, *, seconds: float) -> list[float]:
    """Return for each round the second's rate by the first's; who goes first changes from round to round."""
    ratios = []
    for server in (first, second):
        await drive(server, 1.0)
    for number in range(ROUNDS):
        pair = (first, second) if number % 2 else (second, first)
        rates = {each: (await drive(each, seconds)).per_s for each in pair}
        ratios.append(rates[second] / rates[first])
    return ratios


@asynccontextmanager
async def _two(
    place: Place, settings_of_second: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[Server, Server]]:
    installed = []
    for name, settings in (("first", None), ("second", settings_of_second)):
        folder = place.folder / name
        folder.mkdir()
        installed.append(await servers.install(with_database(place.url, f"bench_{name}"), folder, settings=settings))
    async with servers.serve(installed[0]) as first, servers.serve(installed[1]) as second:
        yield first, second


def _spread(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"


MEASURES: Final = {"in": webhooks_in, "out": webhooks_out, "wake": woken, "observed": observed, "grown": grown}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.capacity", description="Measure what Loop takes.")
    parser.add_argument("--only", choices=MEASURES, action="append", help="this measure; may be given again")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of each load, {SECONDS:g} by default")
    return parser.parse_args()


def main() -> None:
    """Start a PostgreSQL, measure, and print."""
    wanted = _arguments()
    table = Table(title="One Loop and its PostgreSQL on one machine")
    table.add_column("what")
    table.add_column("measured")
    table.add_column("goal", no_wrap=True)
    for name in wanted.only or MEASURES:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loop-bench-")))
            server = stack.enter_context(running_postgres())
            run_sql(server, *(f"CREATE DATABASE bench_{each}" for each in ("first", "second")))
            place = Place(with_database(server, "bench_first"), folder, wanted.seconds)
            for each in uvloop.run(MEASURES[name](place)):
                table.add_row(each.what, each.measured, each.goal)
    console.print(table)


if __name__ == "__main__":
    main()
