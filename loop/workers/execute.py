"""Execute: run one claimed job under its lease, then see it ended, rescheduled or dead; nothing else runs jobs."""

import asyncio
from datetime import timedelta

from loop.storage import jobs
from loop.storage.jobs import LEASE, Job, LeaseLostError
from loop.telemetry import bind, get_logger
from loop.workflows.context import Context
from loop.workflows.jobs import JOBS, backoff_s

log = get_logger(__name__)

RENEW_EVERY_S = LEASE.total_seconds() / 3


async def execute(context: Context, job: Job) -> object:
    """Run a job's handler and return what it returns; None when it failed or its lease was lost.

    Handlers end or reschedule their job in their own last transaction, where the fence is checked. A failure is
    rescheduled here with backoff. Cancellation (shutdown) leaves the job to whoever claims it after its lease.
    """
    with bind(correlation_id=job.correlation_id, job=job.kind, subject=job.subject):
        kind = JOBS.get(job.kind)
        if kind is None:
            await _give_back(context, job, f"no handler for {job.kind}", is_dead=True)
            return None
        renewing = asyncio.create_task(_renew(context, job))
        try:
            async with asyncio.timeout(kind.deadline_s):
                return await kind.handler(context, job)
        except LeaseLostError:
            log.warning("job.lease_lost", job_id=job.id, fence=job.fence)
        except Exception as error:
            log.exception("job.failed", job_id=job.id, failures=job.failures + 1)
            await _give_back(context, job, repr(error), is_dead=job.failures + 1 >= kind.max_failures)
        finally:
            renewing.cancel()
        return None


async def _renew(context: Context, job: Job) -> None:
    while True:  # ends with the job: its deadline is the bound
        await asyncio.sleep(RENEW_EVERY_S)
        try:
            async with context.database.transaction() as session:
                await jobs.renew(session, job, context.now())
        except Exception:  # noqa: BLE001 - the fence decides at the job's own write; a missed renewal is only logged
            log.warning("job.not_renewed", job_id=job.id)


async def _give_back(context: Context, job: Job, error: str, *, is_dead: bool) -> None:
    failures = job.failures + 1
    run_at = context.now() + timedelta(seconds=backoff_s(failures, context.random_unit()))
    back = jobs.rescheduling(job, run_at, failures=failures, is_dead=is_dead, last_error=error[:1000])
    try:
        async with context.database.transaction() as session:
            jobs.require_held((await session.run_together([back]))[0])
    except LeaseLostError:
        return
    except Exception:
        log.exception("job.not_given_back", job_id=job.id)
        return
    if is_dead:
        log.error("job.dead", job_id=job.id, error=error[:1000])
