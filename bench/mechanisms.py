"""The mechanisms of storage by turns: `python -m bench.mechanisms` prints each as a ratio to the one that Loop has."""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

import uvloop
from rich.console import Console
from rich.table import Table

from bench import ways
from bench.workload import Mechanism, OnDatabase, prepare
from loop.storage.migrate import migrate
from loop.storage.postgres import PostgresSession, open_postgres
from loop.storage.sqlite import SqliteDatabase
from tests.servers import running_postgres

CALLERS = 64
ROUNDS, SECONDS = 7, 1.5
MAX_ROUNDS, MAX_SECONDS = 50, 60.0
WIDTH = 120

Open = Callable[[str], Awaitable[Mechanism]]


async def _sqlite_of_loop(url: str) -> Mechanism:
    return OnDatabase(SqliteDatabase(Path(_path(url))))


async def _sqlite_hopping(url: str) -> Mechanism:
    return OnDatabase(await ways.open_hopping(_path(url)))


async def _sqlite_functions(url: str) -> Mechanism:
    return ways.FunctionThread(_path(url))


async def _models(url: str) -> Mechanism:
    return ways.ModelSessions(ways.open_engine(url))


async def _core(url: str) -> Mechanism:
    return OnDatabase(ways.CoreDatabase(ways.open_engine(url)))


async def _postgres_of_loop(url: str) -> Mechanism:
    return OnDatabase(await open_postgres(url, ways.POOL_SIZE))


async def _postgres_pooled(url: str) -> Mechanism:
    return OnDatabase(await ways.open_pooled(url, PostgresSession))


async def _postgres_separate(url: str) -> Mechanism:
    return OnDatabase(await ways.open_pooled(url, ways.SeparateSession))


def _path(url: str) -> str:
    return url.removeprefix("sqlite:///")


MECHANISMS: dict[str, dict[str, Open]] = {
    "sqlite": {
        "Loop: statements on the loop's thread, commits in groups": _sqlite_of_loop,
        "whole functions in one writer's thread, commits in groups": _sqlite_functions,
        "aiosqlite, a hop for each statement": _sqlite_hopping,
        "SQLModel sessions on aiosqlite": _models,
    },
    "postgres": {
        "Loop: compiled, joined, own connections": _postgres_of_loop,
        "compiled, joined, asyncpg's pool": _postgres_pooled,
        "compiled, one by one, asyncpg's pool": _postgres_separate,
        "SQLAlchemy Core, async": _core,
        "SQLModel sessions": _models,
    },
}
"""database -> mechanism -> how it is opened; the first is the one that Loop has."""


async def compare(database: str, url: str, *, rounds: int, seconds: float) -> Table:
    """Measure every mechanism on one database in turn, round after round."""
    await migrate(url)
    opened = {name: await opens(url) for name, opens in MECHANISMS[database].items()}
    preparing = SqliteDatabase(Path(_path(url))) if database == "sqlite" else await open_postgres(url, 1)
    work = await prepare(preparing)
    await preparing.close()
    kinds: dict[str, Callable[[Mechanism], Awaitable[None]]] = {
        "create": work.create,
        "create, busy": work.create_busily,
        "change": work.change,
        "get": work.get,
    }
    seen: dict[tuple[str, str], list[tuple[float, float]]] = {(kind, name): [] for kind in kinds for name in opened}
    for number in range(rounds + 1):
        for kind, task in kinds.items():
            for name in list(opened)[:: 1 if number % 2 else -1]:
                measured = await _measure(task, opened[name], seconds)
                if number:  # the first round warms caches
                    seen[kind, name].append(measured)
    for mechanism in opened.values():
        await mechanism.close()
    return _table(database, seen)


async def _measure(
    task: Callable[[Mechanism], Awaitable[None]], mechanism: Mechanism, seconds: float
) -> tuple[float, float]:
    """Return how often in a second the task was done, and CPU milliseconds of this process for each."""
    count = 0
    begun, used_s = time.perf_counter(), time.process_time()

    async def call() -> None:
        nonlocal count
        while time.perf_counter() < begun + seconds:
            await task(mechanism)
            count += 1

    await asyncio.gather(*(call() for _ in range(CALLERS)))
    return count / (time.perf_counter() - begun), (time.process_time() - used_s) / count * 1000


def _table(database: str, seen: dict[tuple[str, str], list[tuple[float, float]]]) -> Table:
    table = Table("work", "mechanism", title=f"{database}: rate and CPU of this process, as ratios to Loop's mechanism")
    for column in ("rate ÷ Loop's", "CPU ÷ Loop's"):
        table.add_column(column, justify="right", no_wrap=True)
    chosen = next(iter(MECHANISMS[database]))
    for (kind, name), measured in seen.items():
        pairs = list(zip(measured, seen[kind, chosen], strict=True))
        table.add_row(kind, name, *(_spread([one[i] / other[i] for one, other in pairs]) for i in (0, 1)))
    return table


def _spread(ratios: list[float]) -> str:
    return f"{median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"


def main() -> None:
    """Measure on both databases and print a table for each."""
    parser = argparse.ArgumentParser(prog="python -m bench.mechanisms", description=__doc__)
    parser.add_argument("--rounds", type=int, choices=range(1, MAX_ROUNDS + 1), default=ROUNDS, metavar="N")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each mechanism in each round")
    parser.add_argument("--database", choices=MECHANISMS)
    wanted = parser.parse_args()
    seconds = min(wanted.seconds, MAX_SECONDS)
    console = Console(width=WIDTH)
    if wanted.database != "postgres":
        with tempfile.TemporaryDirectory(prefix="loop-bench-") as folder:
            url = f"sqlite:///{folder}/mechanisms.db"
            console.print(uvloop.run(compare("sqlite", url, rounds=wanted.rounds, seconds=seconds)))
    if wanted.database != "sqlite":
        with running_postgres() as url:
            console.print(uvloop.run(compare("postgres", url, rounds=wanted.rounds, seconds=seconds)))


if __name__ == "__main__":
    main()
