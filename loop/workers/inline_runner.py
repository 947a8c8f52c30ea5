"""The inline runner: claims due jobs inside this process, woken by commits, by the clock and by a bounded nap."""

import asyncio
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial

from loop.domain.audit import SYSTEM
from loop.storage import jobs
from loop.storage.jobs import Job
from loop.storage.tables import DELIVER
from loop.telemetry import get_logger
from loop.workers.execute import execute, hand_back
from loop.workers.lanes import Lanes
from loop.workflows.context import Context
from loop.workflows.jobs import JOBS

log = get_logger(__name__)

NAP_S = 1.0
"""The longest the runner sleeps without looking: what another process commits is seen by then."""
JITTER = 0.2
"""Which part of that is left to chance, so that processes do not look all at once."""
SHUTDOWN_S = 20.0
"""How long after a stop has begun jobs may run; what is still running then is cancelled, and another process's."""

PAUSE_S = 0.01
"""How long it sleeps when another process is just taking notice of the deliveries that are new."""

ENDPOINTS_AT_ONCE = 100
"""How many endpoints one process delivers to at once; the next in line wait, and every other job does not."""


class InlineRunner:
    """Runs jobs as tasks of the event loop, a bounded number at a time, and those that deliver beside the others."""

    def __init__(self, concurrency: int) -> None:
        self._lanes = Lanes(concurrency)
        self._woken = asyncio.Event()
        self._running: dict[asyncio.Task[object], tuple[Context, Job]] = {}
        self._delivering = 0
        self._is_stopping = False
        self._stopped_by = 0.0
        self._claiming = asyncio.Lock()

    def start(self, context: Context, job: Job) -> asyncio.Task[object]:
        """See `JobRunner.start`."""
        if context.actor is not SYSTEM:  # who asked for the job does not do all that comes of it
            context = replace(context, actor=SYSTEM)
        task = asyncio.create_task(execute(context, job), name=f"job {job.kind}")
        self._running[task] = (context, job)
        task.add_done_callback(self._running.pop)
        return task

    def wake(self) -> None:
        """See `JobRunner.wake`."""
        self._woken.set()

    async def send(self) -> None:
        """Tell other processes of wake-ups, until cancelled; this runner knows no way to, and ends at once."""

    @property
    def has_room(self) -> bool:
        """Whether it would claim something if it were due."""
        has_any = self._lanes.room > 0 or self._delivering < ENDPOINTS_AT_ONCE
        return has_any and not self._is_stopping

    async def run(self, context: Context) -> None:
        """Claim and run jobs until `stop`."""
        while not self._is_stopping:
            self._woken.clear()
            async with self._claiming:
                nap_s = min(await self._claim_or_nap(context), NAP_S * (1 - JITTER * context.random_unit()))
            # Not asyncio.wait_for: up to Python 3.11 it loses a cancellation that comes together with the wake-up.
            with suppress(TimeoutError):
                async with asyncio.timeout(nap_s):
                    await self._woken.wait()

    async def _claim_or_nap(self, context: Context) -> float:
        try:
            return await self._claim(context)
        except Exception:
            log.exception("jobs.not_claimed")
            return NAP_S

    async def _claim(self, context: Context) -> float:
        """Start what is due and there is room for; return for how many seconds nothing more can be."""
        # No more at a time than any lane may have; the next look, which follows at once, leaves out those full by then.
        room, full_lanes = self._lanes.left, self._lanes.full
        room_to_deliver = ENDPOINTS_AT_ONCE - self._delivering
        if not self.has_room:
            return NAP_S
        kinds = frozenset(JOBS)
        async with context.database.reading() as reader:
            agenda = await jobs.agenda(reader, kinds, full_lanes=full_lanes)
        now = context.now()
        wait_s = _seconds_until(agenda.jobs_at, now, room)
        wait_to_deliver_s = 0.0 if agenda.has_new else _seconds_until(agenda.deliveries_at, now, room_to_deliver)
        if wait_s > 0 and (wait_to_deliver_s > 0 or room_to_deliver <= 0):
            return min(wait_s, wait_to_deliver_s or NAP_S)
        async with context.database.transaction() as session:
            # The lease begins after the wait for the writer.
            claimed = await jobs.claim(
                session,
                context.now(),
                0 if wait_s > 0 else room,
                deliveries=0 if wait_to_deliver_s > 0 else room_to_deliver,
                kinds=kinds,
                full_lanes=full_lanes,
            )
        for job in claimed:
            if job.kind == DELIVER:
                self._delivering += 1
                release = self._release_delivery
            else:
                self._lanes.take(job.lane)
                release = partial(self._release, job.lane)
            self.start(context, job).add_done_callback(release)
        return 0.0 if claimed else PAUSE_S if agenda.has_new else NAP_S

    def _release(self, lane: str, _: asyncio.Task[object]) -> None:
        self._lanes.give_back(lane)
        self._woken.set()

    def _release_delivery(self, _: asyncio.Task[object]) -> None:
        self._delivering -= 1
        self._woken.set()

    def stop_claiming(self) -> None:
        """Begin the stop: leave what becomes due from now on to other processes; what is started here still runs.

        That is what the requests need which are being answered yet: it has as long as is left until `SHUTDOWN_S`.
        """
        if not self._is_stopping:
            self._stopped_by = asyncio.get_running_loop().time() + SHUTDOWN_S
        self._is_stopping = True
        self._woken.set()

    async def stop(self) -> None:
        """Stop claiming and let running jobs end, until `SHUTDOWN_S`; then cancel them, and hand back what may be."""
        self.stop_claiming()
        async with self._claiming:  # what is being claimed just now is waited for as well
            pass
        clock, until = asyncio.get_running_loop().time, self._stopped_by
        while self._running and clock() < until:  # a job that ends may have started the one that follows from it
            await asyncio.wait(self._running, timeout=until - clock())
        late = dict(self._running)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        if late:
            held = [job for _, job in late.values()]
            log.warning("jobs.cut_short", count=len(held), kinds=sorted({job.kind for job in held}))
            context, _ = next(iter(late.values()))
            await hand_back(context, held)


def _seconds_until(due_at: datetime | None, now: datetime, room: int) -> float:
    """Return how long there is nothing of a kind to claim or no room for it; room is made with a wake-up."""
    if due_at is None or room <= 0:
        return NAP_S
    return min(NAP_S, max(0.0, (due_at - now).total_seconds()))
