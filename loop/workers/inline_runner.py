"""The inline runner: claims due jobs inside this process, woken by commits, by the clock and by a bounded nap."""

import asyncio
from contextlib import suppress

from loop.storage import jobs
from loop.storage.jobs import Job
from loop.telemetry import get_logger
from loop.workers.execute import execute
from loop.workflows.context import Context

log = get_logger(__name__)

NAP_S = 1.0
"""The longest the runner sleeps without looking: what another process commits is seen by then."""
SHUTDOWN_S = 20.0
"""How long a stop waits for running jobs; what is still running then is taken over when its lease ends."""


class InlineRunner:
    """Runs jobs as tasks of the event loop, a bounded number at a time."""

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._woken = asyncio.Event()
        self._running: set[asyncio.Task[object]] = set()
        self._claimed = 0
        self._is_stopping = False
        self._claiming = asyncio.Lock()

    def start(self, context: Context, job: Job) -> asyncio.Task[object]:
        """See `JobRunner.start`."""
        task = asyncio.create_task(execute(context, job), name=f"job {job.kind}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def wake(self) -> None:
        """See `JobRunner.wake`."""
        self._woken.set()

    async def run(self, context: Context) -> None:
        """Claim and run jobs until `stop`."""
        while not self._is_stopping:
            self._woken.clear()
            async with self._claiming:
                nap_s = await self._claim_or_nap(context)
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
        free = self._concurrency - self._claimed
        if free <= 0 or self._is_stopping:
            return NAP_S
        now = context.now()
        async with context.database.reading() as reader:
            due_at = await jobs.next_due(reader)
        if due_at is None or due_at > now:
            return NAP_S if due_at is None else min(NAP_S, (due_at - now).total_seconds())
        async with context.database.transaction() as session:
            claimed = await jobs.claim(session, context.now(), free)  # the lease begins after the wait for the writer
        for job in claimed:
            self._claimed += 1
            self.start(context, job).add_done_callback(self._release)
        return 0.0 if claimed else NAP_S

    def _release(self, _: asyncio.Task[object]) -> None:
        self._claimed -= 1
        self._woken.set()

    async def stop(self) -> None:
        """Stop claiming and let running jobs end, for a bounded time."""
        self._is_stopping = True
        self._woken.set()
        async with self._claiming:  # what is being claimed just now is waited for as well
            pass
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=SHUTDOWN_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
