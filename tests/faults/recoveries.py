"""Recoveries: what was interrupted by a fault, and how long after the fault's end each of it went on."""

import asyncio
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from time import gmtime, monotonic, strftime
from typing import Any

from loop.storage.jobs import LEASE
from loop.workers.inline_runner import NAP_S
from tests.faults.databases import Rows

GRACE_S = 10.0
"""How much longer a recovery may take here, where the next fault has begun by then and the machine is busy."""

RECOVERED_WITHIN_S = LEASE.total_seconds() + NAP_S + GRACE_S
"""A lease, and the nap of whoever takes over; while the database is away, or a worker, nobody can."""

LOOK_EVERY_S = 0.25
_HELD = "SELECT id, kind, subject, fence, run_at FROM jobs WHERE is_leased AND NOT is_dead"


@dataclass
class Tally:
    """What is known of one kind of fault."""

    times: int = 0
    interrupted: int = 0
    worst_s: float = 0.0


Claim = tuple[int, datetime]
"""A job's fence, and the end of its lease: one of them changes when anybody goes on with it."""


@dataclass
class Recoveries:
    """Watches every job that was under way when a fault ended, until somebody goes on with it.

    Faults overlap: a job counts for the first one after which it stood still.
    """

    rows: Rows
    tallies: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    _seen: dict[str, "Claim"] = field(default_factory=dict)
    _hindrances: list[tuple[float, float]] = field(default_factory=list)
    _watches: set["asyncio.Task[None]"] = field(default_factory=set)

    def ended(self, fault: str, times: int = 1, *, surely: Collection[str] = ()) -> None:
        """Note that a fault has just ended, and watch what it may have interrupted; `surely` are jobs that it did."""
        self.tallies[fault].times += times
        for job_id in surely:
            self._seen.pop(job_id, None)
        sys.stdout.write(f"{strftime('%T', gmtime())} {fault}\n")
        self._watches.add(asyncio.create_task(self._watch(fault, monotonic()), name=fault))

    @asynccontextmanager
    async def hindered(self) -> AsyncIterator[None]:
        """Note that nobody can take anything over in this block, or fewer can."""
        began = monotonic()
        self._hindrances.append((began, float("inf")))
        try:
            yield
        finally:
            self._hindrances.remove((began, float("inf")))
            self._hindrances.append((began, monotonic()))

    def _hindered_s(self, since: float) -> float:
        now = monotonic()
        return sum(max(0.0, min(end, now) - max(begin, since)) for begin, end in self._hindrances)

    async def settled(self) -> None:
        """Wait until everything that was interrupted has gone on; AssertionError for what has not."""
        await asyncio.gather(*self._watches)
        self._watches.clear()
        self._seen.clear()

    async def held(self) -> dict[str, dict[str, Any]]:
        """Return the jobs that are somebody's just now, by id."""
        return {row["id"]: row for row in await self.rows.fetch(_HELD)}

    async def _watch(self, fault: str, ended_at: float) -> None:
        left = {key: row for key, row in (await self.held()).items() if self._seen.get(key) != _claim(row)}
        self._seen.update({key: _claim(row) for key, row in left.items()})
        tally = self.tallies[fault]
        tally.interrupted += len(left)
        while left:
            await asyncio.sleep(LOOK_EVERY_S)
            now = await self.held()
            waited_s = monotonic() - ended_at
            left = {key: row for key, row in left.items() if key in now and _claim(now[key]) == _claim(row)}
            tally.worst_s = max(tally.worst_s, waited_s)
            late_s = waited_s - self._hindered_s(ended_at) - RECOVERED_WITHIN_S
            assert not left or late_s < 0, (fault, waited_s, list(left.values())[:3])

    def text(self) -> str:
        """Return a table, the slowest recovery first."""
        lines = [f"{'fault':<58} times  jobs held  worst recovery"]
        for name, tally in sorted(self.tallies.items(), key=lambda item: -item[1].worst_s):
            lines.append(f"{name:<58} {tally.times:>5}  {tally.interrupted:>9}  {tally.worst_s:>12.1f} s")
        return "\n".join(lines)


def _claim(row: dict[str, Any]) -> Claim:
    return row["fence"], row["run_at"]
