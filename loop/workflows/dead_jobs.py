"""Dead jobs: list what failed too often to be tried again, and have it tried again once its cause is mended."""

from typing import Final

from loop.domain.audit import AuditAction
from loop.domain.errors import LoopError, not_found
from loop.storage import jobs
from loop.storage.jobs import Job
from loop.telemetry import get_logger
from loop.workflows import audit
from loop.workflows.context import Context

log = get_logger(__name__)

REVIVED_MAX: Final = 1_000
"""How many jobs of a kind are revived at once."""

AUDITED: Final = ("kind", "subject", "last_error")
"""The fields of a revived job that the audit log holds."""


async def list_dead(context: Context, limit: int) -> list[Job]:
    """Return up to `limit` dead jobs, those that died last first."""
    async with context.database.reading() as reader:
        return await jobs.list_dead(reader, kind=None, limit=limit)


async def revive(context: Context, job_id: str) -> Job:
    """Make a dead job due now, with all its tries before it, and return it; raises `not_found`."""
    async with context.database.transaction() as session:
        job = await jobs.revive(session, job_id, context.now())
        if job is None:
            raise not_found("dead job")
        # Jobs are Loop's own and belong to no merchant.
        await audit.record(
            context, session, AuditAction.JOB_REVIVED, job.id, merchant_id=None, after=audit.facts_of(job, AUDITED)
        )
    log.info("job.revived", job_id=job.id, kind=job.kind, subject=job.subject)
    context.runner.wake()
    return job


async def revive_kind(context: Context, kind: str) -> int:
    """Make the dead jobs of a kind due now, up to `REVIVED_MAX` of them; return how many there were."""
    async with context.database.reading() as reader:
        dead = await jobs.list_dead(reader, kind=kind, limit=REVIVED_MAX)
    count = 0
    for job in dead:
        try:
            await revive(context, job.id)
        except LoopError as error:
            if error.code != "not_found":  # somebody else has revived it meanwhile
                raise
        else:
            count += 1
    return count
