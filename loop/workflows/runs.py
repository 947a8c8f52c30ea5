"""Runs: jobs that the process which makes them runs at once, under their lease; another takes them over if it dies."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from loop.storage import jobs
from loop.storage.jobs import LEASE, Job
from loop.storage.orders import OrderInHand
from loop.telemetry import correlation_id
from loop.traces import carried
from loop.workflows.context import Context

FIRST_FENCE = 1
"""The fence of a job that is inserted with its lease; whoever takes it over has a higher one."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """An order as a recorded fact left it; `following` is the run of the job that the fact made necessary."""

    in_hand: OrderInHand
    following: asyncio.Task[object] | None = None


def leased_job(
    context: Context, kind: str, subject: str, *, key: str, lane: str, arguments: Mapping[str, object]
) -> Job:
    """Return a job that is inserted already claimed: the process that makes it runs it, another takes it over.

    Its lane is the processor account that it calls: whoever takes it over leaves room for the other accounts' jobs.
    """
    now = context.now()
    return Job(
        id=context.new_id("job"),
        kind=kind,
        subject=subject,
        arguments=arguments,
        dedupe_key=key,
        lane=lane,
        run_at=now + LEASE,
        fence=FIRST_FENCE,
        failures=0,
        is_leased=True,
        is_dead=False,
        last_error=None,
        correlation_id=correlation_id(),
        created_at=now,
        trace_context=carried(),
    )


def waiting(job: Job, run_at: datetime) -> Job:
    """Return a job as one that whoever is free claims, at `run_at` or later; it is then not the first call."""
    return replace(job, run_at=run_at, is_leased=False)


def is_first_call(job: Job) -> bool:
    """Tell whether nobody can have made a job's call before: its own process runs it as soon as it is inserted."""
    return job.fence == FIRST_FENCE


async def run_now(context: Context, job: Job, wait_s: float) -> object:
    """Run a job that was inserted with its lease, and wait for it; None if it has not ended well by then.

    Where a job leads to another that is run at once, both are waited for.
    """
    context.runner.wake()
    return await result_of(context.runner.start(context, job), wait_s)


async def result_of(task: asyncio.Task[object], wait_s: float) -> object:
    """Return what a run ends with, and the runs that follow from it, within `wait_s` seconds; else None."""
    clock = asyncio.get_running_loop().time
    until = clock() + wait_s
    while True:  # ends with the order's attempts, or with the time
        left_s = until - clock()
        if left_s <= 0:
            return None
        await asyncio.wait({task}, timeout=left_s)
        if not task.done() or task.cancelled():
            return None
        result = task.result()
        if not isinstance(result, Recorded):
            return result
        if result.following is None:
            return result.in_hand
        task = result.following


async def finish(context: Context, job: Job) -> None:
    """End a job that has nothing (more) to do."""
    async with context.database.transaction() as session:
        jobs.require_held((await session.run_together([jobs.finishing(job)]))[0])
