"""Three hundred seeds of a simulated Loop: whatever dies, fails or comes late at any await, all books agree.

A seed decides everything: who buys what, what goes wrong, and at which step of which task the process dies. A failure
names its seed, and `LOOP_SIMULATION_SEED=17 pytest -n0 tests/workflow/test_simulation.py` takes the same course again,
step by step. `LOOP_SIMULATION_SEEDS=3000` runs more of them.
"""

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest

from loop.domain.orders import Command, OrderStatus
from tests.builders import settings_for
from tests.servers import run_to_end
from tests.workflow.order_processors import Fate
from tests.workflow.order_world import Standing, Template
from tests.workflow.simulation import ACCIDENTS, leads_to
from tests.workflow.simulation_runs import Ground, simulate

SEED_VARIABLE: Final = "LOOP_SIMULATION_SEED"
"""Names the one seed to run again."""

SEEDS_VARIABLE: Final = "LOOP_SIMULATION_SEEDS"
"""How many seeds are run, where not the usual number."""

SEEDS: Final = 300
PARTS: Final = 6
"""Into how many tests they are shared out, so that as many processes can run them."""

PLACES_MIN: Final = 30
"""At how many different awaits and points a process must have died in one part."""

SEEN: Final = (
    *ACCIDENTS, "a job or request is cancelled", *(f"call {fate}" for fate in Fate), "authorize: lost",
    *(f"shop {standing}" for standing in Standing), "disk full", "outside writer", "answers replayed", "asked again",
    "letters taken", "paid late", "customer stays away", "customer comes back: approved", "create: accepted",
    *(f"{command}: accepted" for command in Command if command is not Command.EXPIRE),
    *(f"{command}: invalid_status" for command in Command if command is not Command.EXPIRE),
    "refund: refund_exceeds_captured",
    *(f"order ended {status}" for status in OrderStatus if status not in ("processing", "requires_action")),
)  # fmt: skip
"""What must have happened in a part, for it to have tried what it is for."""


def parts() -> list[Sequence[int]]:
    """Return the seeds of each part."""
    if seed := os.environ.get(SEED_VARIABLE):
        return [[int(seed)]]
    count = int(os.environ.get(SEEDS_VARIABLE, SEEDS))
    return [range(part, count, PARTS) for part in range(PARTS)]


@pytest.fixture(scope="module")
def ground(sqlite_template: Path) -> Iterator[Ground]:
    """Yield what each run begins with, in memory where this machine has files there."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of our own in it
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield prepared(Path(shutil.copy(sqlite_template, Path(folder) / "template.db")))


def prepared(migrated: Path) -> Ground:
    """Return a migrated database as the ground of runs."""
    return Ground.prepare(Template.make(migrated, settings_for(f"sqlite:///{migrated}", migrated.parent)))


@pytest.mark.slow
@pytest.mark.parametrize("seeds", parts(), ids=lambda seeds: f"from {seeds[0]}")
def test_whatever_happens_at_any_await_the_books_agree(ground: Ground, seeds: Sequence[int]) -> None:
    tally, places = Counter[str](), Counter[str]()
    for seed in seeds:
        ended = simulate(ground, seed)
        tally += ended.tally
        places += ended.places
    sys.stdout.writelines(f"{count:6} {what}\n" for what, count in sorted(tally.items()))
    sys.stdout.writelines(f"{count:6} died at {place}\n" for place, count in places.most_common())
    if len(seeds) >= SEEDS // PARTS:
        assert [what for what in SEEN if tally[what] == 0] == []
        assert len(places) >= PLACES_MIN
        assert tally["last order paid"] == len(seeds)


def test_a_seed_takes_the_same_course_again_in_another_process_too(ground: Ground) -> None:
    first, second = simulate(ground, 1), simulate(ground, 1)
    assert first.course == second.course
    assert first.course != simulate(ground, 2).course
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.workflow.test_simulation", "1"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert child.stdout.split() == [first.digest]


def test_what_does_not_hold_is_told_with_its_seed(ground: Ground) -> None:
    """A key that is not good is refused in a way that no client here expects."""
    with pytest.raises(AssertionError, match=r"seed 3 fails .*401.*\n.*LOOP_SIMULATION_SEED=3 "):
        simulate(replace(ground, api_key="sk_test_of_nobody"), 3)


@pytest.mark.parametrize(
    ("before", "after", "steps", "is_way"),
    [
        ("pending", "processing", 1, True),
        ("pending", "captured", 2, True),
        ("captured", "captured", 0, True),
        ("captured", "refunded", 0, False),
        ("captured", "processing", 9, False),
        ("cancelled", "processing", 9, False),
        ("refunded", "cancelled", 9, False),
    ],
)
def test_statuses_move_along_the_table_only(before: str, after: str, steps: int, is_way: bool) -> None:
    assert leads_to(before, after, steps) is is_way


def main() -> None:
    """Print the digest of one seed's course, run in a process of its own."""
    from loop.storage.migrate import migrate  # noqa: PLC0415 - pytest gets its database from a fixture

    with TemporaryDirectory() as folder:
        path = Path(folder) / "template.db"
        run_to_end(migrate(f"sqlite:///{path}"))
        sys.stdout.write(simulate(prepared(path), int(sys.argv[1])).digest)


if __name__ == "__main__":
    main()
