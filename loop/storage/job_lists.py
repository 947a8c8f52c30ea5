"""Lists of jobs for the operator: what waits, is due, runs, or failed too often."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import Text, bindparam, or_, select

from loop.storage.columns import UtcTime
from loop.storage.database import Reader
from loop.storage.jobs import Job
from loop.storage.statements import Statement, columns_of
from loop.storage.tables import Jobs, table

_jobs = table(Jobs)


class JobState(StrEnum):
    """Where a job stands: it waits for its time, it is due, somebody runs it, or it failed too often."""

    WAITING = "waiting"
    DUE = "due"
    RUNNING = "running"
    DEAD = "dead"


def state_of(job: Job, now: datetime) -> JobState:
    """Return where a job stands; a lease that has ended makes it due again."""
    if job.is_dead:
        return JobState.DEAD
    if job.run_at <= now:
        return JobState.DUE
    return JobState.RUNNING if job.is_leased else JobState.WAITING


_LIVE = _jobs.c.is_dead.is_(False)
_DUE = _jobs.c.run_at <= bindparam("now", type_=UtcTime)
_LATER = _jobs.c.run_at > bindparam("now", type_=UtcTime)
_STANDS = {
    None: (),
    JobState.WAITING: (_LIVE, _LATER, _jobs.c.is_leased.is_(False)),
    JobState.DUE: (_LIVE, _DUE),
    JobState.RUNNING: (_LIVE, _LATER, _jobs.c.is_leased.is_(True)),
    JobState.DEAD: (_jobs.c.is_dead.is_(True),),
}
_OF_KIND = or_(bindparam("kind", type_=Text).is_(None), _jobs.c.kind == bindparam("kind", type_=Text))
_LIST = {
    state: Statement(
        select(*columns_of(_jobs, Job))
        .where(_OF_KIND, *conditions)
        .order_by(_jobs.c.is_dead.desc(), _jobs.c.run_at, _jobs.c.id)
        .limit(bindparam("limit")),
        Job,
    )
    for state, conditions in _STANDS.items()
}
_GET = Statement(select(*columns_of(_jobs, Job)).where(_jobs.c.id == bindparam("job_id")), Job)


async def list_jobs(
    reader: Reader, *, state: JobState | None, kind: str | None, now: datetime, limit: int
) -> list[Job]:
    """Return jobs, the dead ones first and then by when they run: of one state and kind, or of all."""
    return await reader.all(_LIST[state], {"kind": kind, "now": now, "limit": limit})


async def get(reader: Reader, job_id: str) -> Job | None:
    """Return a job, or None."""
    return await reader.first(_GET, {"job_id": job_id})
