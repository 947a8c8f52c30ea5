"""Lists of jobs for the operator: what waits, is due, runs, or failed too often."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import Boolean, Text, and_, bindparam, or_, select, tuple_

from loop.storage.columns import UtcTime
from loop.storage.database import Reader
from loop.storage.jobs import Job
from loop.storage.statements import Parameters, Statement, columns_of
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
_AFTER = or_(
    and_(_jobs.c.is_dead.is_(False), bindparam("after_dead", type_=Boolean)),
    and_(
        _jobs.c.is_dead == bindparam("after_dead", type_=Boolean),
        tuple_(_jobs.c.run_at, _jobs.c.id)
        > tuple_(bindparam("after_run_at", type_=UtcTime), bindparam("after_id", type_=Text)),
    ),
)
_LIST = {
    (state, has_cursor): Statement(
        select(*columns_of(_jobs, Job))
        .where(_OF_KIND, *conditions, *([_AFTER] if has_cursor else []))
        .order_by(_jobs.c.is_dead.desc(), _jobs.c.run_at, _jobs.c.id)
        .limit(bindparam("limit")),
        Job,
    )
    for state, conditions in _STANDS.items()
    for has_cursor in (False, True)
}
_GET = Statement(select(*columns_of(_jobs, Job)).where(_jobs.c.id == bindparam("job_id")), Job)


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs a list has, and after which it begins; None leaves a condition out."""

    state: JobState | None = None
    kind: str | None = None
    after: Job | None = None


async def list_jobs(reader: Reader, wanted: JobFilter, *, now: datetime, limit: int) -> list[Job]:
    """Return jobs, the dead ones first and then by when they run."""
    last = wanted.after
    place: Parameters = (
        {} if last is None else {"after_dead": last.is_dead, "after_run_at": last.run_at, "after_id": last.id}
    )
    statement = _LIST[wanted.state, last is not None]
    return await reader.all(statement, {"kind": wanted.kind, "now": now, "limit": limit, **place})


async def get(reader: Reader, job_id: str) -> Job | None:
    """Return a job, or None."""
    return await reader.first(_GET, {"job_id": job_id})
