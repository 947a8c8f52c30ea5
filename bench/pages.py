"""The pages' benchmark: how long a dashboard with a large merchant's orders takes to answer, page by page."""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table

from bench import crowd, servers
from bench.servers import Server
from tests.servers import run_sql, running_postgres, with_database

SIZES = {"sqlite": 100_000, "postgres": 1_000_000}
MOST_P95_MS = 150.0
REQUESTS = 40
"""How often each page is asked for, one request after another."""

console = Console(width=120)


async def _sign_in(server: Server, session: aiohttp.ClientSession) -> None:
    form = {"email": servers.MERCHANT_EMAIL, "password": server.password}
    async with session.post(
        f"{server.url}/dashboard/sign-in", data=form, headers={"Origin": server.url}, allow_redirects=False
    ) as answer:
        if answer.status != 303:
            raise servers.ServerError(f"signing in was answered {answer.status}")


async def _time(url: str, session: aiohttp.ClientSession) -> list[float]:
    """Return the milliseconds of each answer, sorted; the first, which fills caches, is not counted."""
    timings = []
    for _ in range(REQUESTS + 1):
        begun = time.perf_counter()
        async with session.get(url, allow_redirects=False) as answer:
            await answer.read()
            if answer.status != 200:
                raise servers.ServerError(f"{url} was answered {answer.status}")
        timings.append((time.perf_counter() - begun) * 1000)
    return sorted(timings[1:])


def _pages(order_id: str, size: int) -> dict[str, str]:
    some = size // 2
    return {
        "overview, 7 days": "/dashboard?days=7",
        "overview, 30 days": "/dashboard?days=30",
        "overview, 90 days": "/dashboard?days=90",
        "orders": "/dashboard/orders",
        "orders, failed": "/dashboard/orders?status=failed",
        "orders of a processor": "/dashboard/orders?processor=sandbox",
        "search by order": f"/dashboard/orders?q={order_id}",
        "search by the shop's id": f"/dashboard/orders?q=cart-{some}",
        "search by e-mail": f"/dashboard/orders?q=shopper{some}@example.com",
        "search by amount": "/dashboard/orders?q=11.37",
        "search for nothing": "/dashboard/orders?q=nobody@example.com",
        "order": f"/dashboard/orders/{order_id}",
        "refunds": "/dashboard/refunds",
    }


async def _measure(database_url: str, size: int, folder: Path) -> dict[str, list[float]]:
    async with (
        servers.loop(database_url, folder) as server,
        aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session,
    ):
        await crowd.make_templates(server, session)
        begun = time.perf_counter()
        now = datetime.now(UTC)  # noqa: TID251 - a bench has no context that could hand it a clock
        count, order_id = await asyncio.to_thread(crowd.gather, database_url, size, now=now)
        console.print(f"{count:,} orders in {time.perf_counter() - begun:.0f} s", style="dim")
        await _sign_in(server, session)
        return {name: await _time(server.url + path, session) for name, path in _pages(order_id, size).items()}


def _print(database: str, size: int, timings: Mapping[str, list[float]]) -> None:
    table = Table(title=f"Dashboard on {database} with {size:,} orders")
    table.add_column("page")
    for name in ("p50 ms", "p95 ms", "slowest ms"):
        table.add_column(name, justify="right")
    for page, each in timings.items():
        p95 = each[int(len(each) * 0.95)]
        style = None if p95 <= MOST_P95_MS else "red"
        table.add_row(page, f"{each[len(each) // 2]:.0f}", f"{p95:.0f}", f"{each[-1]:.0f}", style=style)
    console.print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.pages", description="Time the dashboard's pages.")
    parser.add_argument("--database", choices=SIZES, action="append", help="this one; may be given again")
    parser.add_argument("--orders", type=int, help="how many instead of the usual number")
    parser.add_argument("--json", action="store_true", help="print the milliseconds as JSON as well")
    return parser.parse_args()


def main() -> None:
    """Fill the databases, ask for the pages, and print."""
    wanted = _arguments()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loop-bench-")))
        for database in wanted.database or SIZES:
            size = wanted.orders or SIZES[database]
            url = f"sqlite:///{folder}/loop.db"
            if database == "postgres":
                server = stack.enter_context(running_postgres())
                run_sql(server, "CREATE DATABASE bench_pages")
                url = with_database(server, "bench_pages")
            (folder / database).mkdir()
            timings = asyncio.run(_measure(url, size, folder / database))
            _print(database, size, timings)
            if wanted.json:
                console.print_json(json.dumps({database: timings}))


if __name__ == "__main__":
    main()
