"""The benchmark: Loop and the bare floor by turns, round after round, and one table of what came out."""

import argparse
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path

import uvloop
from rich.console import Console

from bench import load, servers
from bench.report import Result, Round, Side, print_report
from bench.servers import Server
from tests.servers import run_sql, running_postgres, with_database

REQUESTS = ("create", "get", "pay")
DATABASES = ("sqlite", "postgres")
FULL_ROUNDS, FULL_SECONDS = 6, 5.0
QUICK_ROUNDS, QUICK_SECONDS = 3, 2.0
MAX_ROUNDS, MAX_SECONDS = 50, 60.0
WARM_UP_S = 1.0
ORDERS_TO_GET = 1_000
LOW_LOAD = 0.2
"""The part of the full rate of payments at which the time that Loop adds to a processor's call is taken."""
WIDTH = 150

console = Console(width=WIDTH)


class Pair:
    """Loop and the floor, each over its own database of one kind."""

    def __init__(self, database: str, loop: Server, floor: Server) -> None:
        self.database = database
        self.idle_mb = loop.memory_mb()
        self._loop = loop
        self._floor = floor
        self._order_ids: dict[Server, list[str]] = {}

    async def warm_up(self) -> None:
        """Fill the caches of statements and plans, and make the orders that will be got."""
        for server in (self._floor, self._loop):
            self._order_ids[server] = await load.create_orders(server.url, server.key, count=ORDERS_TO_GET)
            await self._measure(server, "get", WARM_UP_S)
            await self._measure(server, "create", WARM_UP_S)

    async def run(self, request: str, number: int, *, seconds: float) -> Round:
        """Take one round of one request; who goes first changes from round to round."""
        if request == "pay":
            return Round(await self._measure(self._loop, request, seconds))
        if number % 2:
            loop = await self._measure(self._loop, request, seconds)
            return Round(loop, await self._measure(self._floor, request, seconds))
        floor = await self._measure(self._floor, request, seconds)
        return Round(await self._measure(self._loop, request, seconds), floor)

    async def pay_slowly(self, rate_per_s: float, seconds: float) -> load.Measured:
        """Create and pay at a rate that leaves the machine idle most of the time."""
        return await load.drive_payments(self._loop.url, self._loop.key, seconds=seconds, rate_per_s=rate_per_s)

    async def _measure(self, server: Server, request: str, seconds: float) -> Side:
        used_s = server.cpu_s()
        if request == "pay":
            measured = await load.drive_payments(server.url, server.key, seconds=seconds)
        elif request == "create":
            measured = await load.drive(server.url, load.create_traffic(server.key), seconds=seconds)
        else:
            measured = await load.drive(
                server.url, load.get_traffic(server.key, self._order_ids[server]), seconds=seconds
            )
        return Side(measured, (server.cpu_s() - used_s) / measured.count * 1000, server.memory_mb())


async def measure(
    urls: dict[str, tuple[str, str]], requests: Sequence[str], *, folder: Path, rounds: int, seconds: float
) -> list[Result]:
    """Run all rounds; `urls` are of the two databases of each kind, Loop's and the floor's."""
    async with AsyncExitStack() as stack:
        pairs = [await stack.enter_async_context(_pair(name, *urls[name], folder)) for name in urls]
        for pair in pairs:
            await pair.warm_up()
        results = {
            (pair, request): Result(request, pair.database, pair.idle_mb) for request in requests for pair in pairs
        }
        for number in range(rounds):
            console.print(f"round {number + 1} of {rounds}", style="dim")
            for (pair, request), result in results.items():
                result.rounds.append(await pair.run(request, number, seconds=seconds))
        for (pair, request), result in results.items():
            if request == "pay":
                rate_per_s = max(each.loop.measured.per_s for each in result.rounds) * LOW_LOAD
                result.paced = await pair.pay_slowly(rate_per_s, seconds)
        return list(results.values())


@asynccontextmanager
async def _pair(database: str, loop_url: str, floor_url: str, folder: Path) -> AsyncIterator[Pair]:
    folder = folder / database
    folder.mkdir()
    async with servers.floor(floor_url, folder) as floor, servers.loop(loop_url, folder) as loop:
        yield Pair(database, loop, floor)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure Loop against the bare floor.")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds of {QUICK_SECONDS:g} s")
    parser.add_argument("--rounds", type=_bounded(int, MAX_ROUNDS), help=f"how many, {FULL_ROUNDS} by default")
    parser.add_argument(
        "--seconds", type=_bounded(float, MAX_SECONDS), help=f"of each load, {FULL_SECONDS:g} by default"
    )
    parser.add_argument("--only", choices=REQUESTS, action="append", help="this request; may be given again")
    parser.add_argument("--database", choices=DATABASES, action="append", help="this one; may be given again")
    return parser.parse_args()


def _bounded(kind: Callable[[str], float], most: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = kind(text)
        if not 1 <= value <= most:
            raise argparse.ArgumentTypeError(f"must be from 1 to {most:g}")
        return value

    return read


def main() -> None:
    """Start the databases, measure, and print."""
    wanted = _arguments()
    rounds = int(wanted.rounds or (QUICK_ROUNDS if wanted.quick else FULL_ROUNDS))
    seconds = wanted.seconds or (QUICK_SECONDS if wanted.quick else FULL_SECONDS)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loop-bench-")))
        urls: dict[str, tuple[str, str]] = {}
        if "sqlite" in (wanted.database or DATABASES):
            urls["sqlite"] = (f"sqlite:///{folder}/loop.db", f"sqlite:///{folder}/floor.db")
        if "postgres" in (wanted.database or DATABASES):
            server = stack.enter_context(running_postgres())
            run_sql(server, "CREATE DATABASE bench_loop", "CREATE DATABASE bench_floor")
            urls["postgres"] = (with_database(server, "bench_loop"), with_database(server, "bench_floor"))
        results = uvloop.run(measure(urls, wanted.only or REQUESTS, folder=folder, rounds=rounds, seconds=seconds))
    print_report(console, results)


if __name__ == "__main__":
    main()
