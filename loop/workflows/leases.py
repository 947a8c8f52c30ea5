"""Leases: how long the job that runs is still its worker's, so that no call begins which might outlast that."""

from collections.abc import Callable
from datetime import datetime, timedelta

from loop.storage import jobs
from loop.storage.database import Database
from loop.storage.jobs import LEASE, Job, LeaseLostError


class Lease:
    """What a worker knows of its hold on one job.

    `call_s` is the deadline of one call to a processor, which is below what a renewed lease lasts.
    """

    def __init__(self, job: Job, database: Database, now: Callable[[], datetime], *, call_s: float) -> None:
        self._job = job
        self._database = database
        self._now = now
        self._call = timedelta(seconds=call_s)
        self._ends_at = job.run_at
        self._is_lost = False

    async def renew(self) -> None:
        """Hold the job for longer; raises `LeaseLostError` when it is another's by now."""
        try:
            async with self._database.transaction() as session:
                now = self._now()  # after the wait for the writer
                await jobs.renew(session, self._job, now)
        except LeaseLostError:
            self._is_lost = True
            raise
        self._ends_at = now + LEASE

    async def cover_call(self) -> None:
        """Return once a call that begins now must end within the lease, which is renewed for it if need be.

        Nobody then calls about the same thing meanwhile. Raises `LeaseLostError` when the job is another's by now.
        """
        if self._is_lost:
            raise LeaseLostError
        while self._now() + self._call > self._ends_at:  # once, unless that takes long; the job's deadline is the bound
            await self.renew()
