"""The report: medians over the rounds, Loop's ratio to the floor with its spread, and the goals, in one table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from rich.console import Console
from rich.table import Table

from bench.load import GENERATOR, Measured

LEAST_RATIO = 0.6
LEAST_PAYMENTS_PER_S = 250.0
"""Orders created and paid in a second, on Postgres and two cores."""
MOST_P99_TO_P50 = 5.0
MOST_ADDED_MS = 10.0


@dataclass(frozen=True, slots=True)
class Side:
    """One load on one server. CPU in milliseconds for each request (each order, of payments), memory afterwards."""

    measured: Measured
    cpu_ms: float
    memory_mb: float


@dataclass(frozen=True, slots=True)
class Round:
    """The two sides of one round; payments have no floor."""

    loop: Side
    floor: Side | None = None


@dataclass(slots=True)
class Result:
    """All rounds of one request on one database; `paced` are payments at a part of the full rate."""

    request: str
    database: str
    idle_mb: float
    rounds: list[Round] = field(default_factory=list)
    paced: Measured | None = None


def print_report(console: Console, results: Sequence[Result]) -> None:
    """Print the table; medians, and for the ratio the least and the greatest of all rounds as well."""
    table = Table(title=f"Loop and the bare floor by turns, load from {GENERATOR}")
    table.add_column("request")
    for name in ("Loop", "floor", "Loop ÷ floor"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("goal", no_wrap=True)
    for name in (
        "p50 ms\nLoop / floor",
        "p99 ms\nLoop / floor",
        "CPU ms each\nLoop / floor",
        "memory MB\nidle, loaded",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        table.add_row(*_cells(result))
        if result.paced is not None:
            table.add_row(*_paced_cells(result, result.paced))
    console.print(table)


def _cells(result: Result) -> list[str]:
    loops = [each.loop for each in result.rounds]
    floors = [each.floor for each in result.rounds if each.floor is not None]
    ratios = [each.loop.measured.per_s / each.floor.measured.per_s for each in result.rounds if each.floor is not None]
    memory = f"{result.idle_mb:.0f}, {max(side.memory_mb for side in loops):.0f}"

    def both(digits: int, of: Callable[[Side], float]) -> str:
        sides = [loops, floors] if floors else [loops]
        return " / ".join(f"{median(of(side) for side in each):.{digits}f}" for each in sides)

    return [
        f"{result.request}, {result.database}",
        _rate(loops),
        _rate(floors) if floors else "",
        f"{median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]" if ratios else "",
        _goal_of_ratio(ratios) if ratios else _goal_of_payments(result, loops),
        both(1, lambda side: side.measured.p50_ms),
        both(1, lambda side: side.measured.p99_ms),
        both(3, lambda side: side.cpu_ms),
        memory,
    ]


def _rate(sides: Sequence[Side]) -> str:
    return f"{median(side.measured.per_s for side in sides):,.0f}/s"


def _goal_of_ratio(ratios: Sequence[float]) -> str:
    return verdict(f"≥ {LEAST_RATIO}", is_met=median(ratios) >= LEAST_RATIO)


def _goal_of_payments(result: Result, loops: Sequence[Side]) -> str:
    if result.database != "postgres":
        return ""
    rate = median(side.measured.per_s for side in loops)
    spread = median(side.measured.p99_ms / side.measured.p50_ms for side in loops)
    return "\n".join(
        [
            verdict(f"≥ {LEAST_PAYMENTS_PER_S:.0f} orders/s", is_met=rate >= LEAST_PAYMENTS_PER_S),
            verdict(f"p99 ≤ {MOST_P99_TO_P50:.0f} p50", is_met=spread <= MOST_P99_TO_P50),
        ]
    )


def _paced_cells(result: Result, paced: Measured) -> list[str]:
    goal = verdict(f"adds ≤ {MOST_ADDED_MS:.0f} ms at p50", is_met=paced.p50_ms <= MOST_ADDED_MS)
    name = f"pay at low load, {result.database}"
    return [name, f"{paced.per_s:,.0f}/s", "", "", goal, f"{paced.p50_ms:.1f}", f"{paced.p99_ms:.1f}", "", ""]


def verdict(goal: str, *, is_met: bool) -> str:
    """Return a goal with whether it is met, as rich marks it up."""
    return f"[green]{goal}: met[/green]" if is_met else f"[red]{goal}: missed[/red]"
