"""Execute: run one claimed job under its lease, then see it ended, rescheduled or dead; nothing else runs jobs."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from loop import metrics
from loop.metrics import of
from loop.storage import jobs
from loop.storage.jobs import LEASE, Job, LeaseLostError
from loop.telemetry import bind, get_logger
from loop.traces import Attributes, SpanKind, note, resumed
from loop.workflows.context import Context
from loop.workflows.jobs import JOBS, backoff_s
from loop.workflows.leases import Lease

log = get_logger(__name__)

RENEW_EVERY_S = LEASE.total_seconds() / 3
HANDED_BACK_WITHIN_S = 2.0


async def execute(context: Context, job: Job) -> object:
    """Run a job's handler and return what it returns; None when it failed or its lease was lost.

    Handlers end or reschedule their job in their own last transaction, where the fence is checked. A failure is
    rescheduled here with backoff. Cancellation (shutdown) leaves the job to whoever claims it after its lease.
    """
    kind = JOBS[job.kind]  # a kind that this version does not know is claimed by none of its processes
    began, ending = time.perf_counter(), "cut_short"
    with (
        bind(correlation_id=job.correlation_id, job=job.kind, subject=job.subject),
        resumed(job.trace_context, f"job {job.kind}", kind=SpanKind.CONSUMER, attributes=_ids_of(job)),
    ):
        lease = Lease(job, context.database, context.now, call_s=context.settings.processor_timeout_s)
        renewing = asyncio.create_task(_renew(lease, job))
        try:
            async with asyncio.timeout(kind.deadline_s):
                result = await kind.handler(replace(context, lease=lease), job)
            ending = "ended"
        except LeaseLostError:
            ending = "lease_lost"
            log.warning("job.lease_lost", job_id=job.id, fence=job.fence)
        except Exception as error:
            log.exception("job.failed", job_id=job.id, failures=job.failures + 1)
            is_dead = job.failures + 1 >= kind.max_failures
            ending = "dead" if is_dead else "failed"
            await _give_back(context, job, repr(error), is_dead=is_dead)
        else:
            return result
        finally:
            renewing.cancel()
            note({"loop.ending": ending})
            of(metrics.JOBS, job.kind, ending).observe(time.perf_counter() - began)
        return None


def _ids_of(job: Job) -> Attributes:
    attempt_id = {"loop.attempt_id": str(job.arguments["attemptId"])} if "attemptId" in job.arguments else {}
    return {
        "loop.job_id": job.id,
        "loop.subject_id": job.subject,
        "loop.correlation_id": job.correlation_id or "",
        **attempt_id,
    }


async def _renew(lease: Lease, job: Job) -> None:
    while True:  # ends with the job: its deadline is the bound
        await asyncio.sleep(RENEW_EVERY_S)
        try:
            await lease.renew()
        except LeaseLostError:
            return  # the handler ends before its next call, or at its next commit
        except Exception:  # noqa: BLE001 - the fence decides at the job's own write; a missed renewal is only logged
            log.warning("job.not_renewed", job_id=job.id)


async def hand_back(context: Context, cut_short: Sequence[Job]) -> None:
    """Give up the leases of jobs whose runs were cancelled, where that is safe (`JobKind.is_handed_back`)."""
    back = [
        jobs.rescheduling(job, context.now(), failures=job.failures, last_error=job.last_error)
        for job in cut_short
        if JOBS[job.kind].is_handed_back
    ]
    if not back:
        return
    try:
        async with asyncio.timeout(HANDED_BACK_WITHIN_S):
            await context.database.write_at_once(back)  # no row: it has ended, or another has it by now
    except Exception:
        log.exception("jobs.not_handed_back", count=len(back))


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
