"""Jobs as rows: inserted by the transaction that makes them necessary, claimed under a lease, fenced at every write."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import and_, bindparam, delete, func, select, update
from sqlalchemy.dialects import postgresql

from loop.config import JOB_LEASE_S
from loop.storage.columns import UtcTime
from loop.storage.database import Reader, Session
from loop.storage.statements import Parameters, Statement, Write, columns_of, field_names, parameters_for, values_of
from loop.storage.tables import Jobs, table

LEASE = timedelta(seconds=JOB_LEASE_S)
"""How long a claim lasts without renewal; a processor call's deadline lies below it."""

_jobs = table(Jobs)


class LeaseLostError(Exception):
    """Another worker has claimed this job since: whatever was about to be written is rolled back."""


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed job. (`id`, `fence`) is the claim: every write that the job makes ends with a check of it."""

    id: str
    kind: str
    subject: str
    arguments: Mapping[str, object]
    dedupe_key: str
    lane: str
    run_at: datetime
    fence: int
    failures: int
    is_leased: bool
    is_dead: bool
    last_error: str | None
    correlation_id: str | None
    created_at: datetime


_INSERT = Write(
    postgresql.insert(_jobs)
    .values(parameters_for(_jobs, field_names(Job)))
    .on_conflict_do_nothing(index_elements=["dedupe_key"])
)

_DUE = (
    select(_jobs.c.id)
    .where(_jobs.c.is_dead.is_(False), _jobs.c.run_at <= bindparam("now", type_=UtcTime))
    .order_by(_jobs.c.run_at)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
    .cte("due")  # never IN (SELECT …): Postgres may run that again for each row, and then claims more than the limit
)
_CLAIM = Statement(
    update(_jobs)
    .where(_jobs.c.id.in_(select(_DUE.c.id)))
    .values(run_at=bindparam("lease_ends_at", type_=UtcTime), fence=_jobs.c.fence + 1, is_leased=True)
    .returning(*columns_of(_jobs, Job)),
    Job,
)
_HELD = and_(_jobs.c.id == bindparam("job_id"), _jobs.c.fence == bindparam("held_fence"))
_FINISH = Write(delete(_jobs).where(_HELD))
_RENEW = Write(update(_jobs).where(_HELD).values(run_at=bindparam("lease_ends_at", type_=UtcTime)))
_RESCHEDULE = Write(
    update(_jobs)
    .where(_HELD)
    .values(
        run_at=bindparam("next_run_at", type_=UtcTime),
        is_leased=False,
        failures=bindparam("new_failures"),
        is_dead=bindparam("new_is_dead"),
        last_error=bindparam("new_last_error"),
    )
)
_NEXT_DUE = Statement(select(func.min(_jobs.c.run_at, type_=UtcTime)).where(_jobs.c.is_dead.is_(False)), lambda at: at)
_FREE_LEASES = Write(
    update(_jobs)
    .where(_jobs.c.is_leased.is_(True), _jobs.c.is_dead.is_(False))
    .values(run_at=bindparam("now", type_=UtcTime), is_leased=False)
)
_RUN_SOON = Write(
    update(_jobs)
    .where(_jobs.c.dedupe_key == bindparam("key"), _jobs.c.is_leased.is_(False))
    .values(run_at=bindparam("now", type_=UtcTime), is_dead=False, failures=0)
)
_BY_SUBJECT = Statement(select(*columns_of(_jobs, Job)).where(_jobs.c.subject == bindparam("subject")).limit(100), Job)
_COUNT = Statement(
    select(func.count().filter(_jobs.c.is_dead.is_(False)), func.count().filter(_jobs.c.is_dead.is_(True))),
    lambda live, dead: (int(live), int(dead)),
)


def insertion(job: Job) -> tuple[Write, Parameters]:
    """Return the write that inserts a job, unless one with its dedupe key is live: for `Session.run_together`."""
    return _INSERT, values_of(job)


def finishing(job: Job) -> tuple[Write, Parameters]:
    """Return the write that ends a job, for `Session.run_together`; it must change one row (`require_held`)."""
    return _FINISH, {"job_id": job.id, "held_fence": job.fence}


def rescheduling(
    job: Job, run_at: datetime, *, failures: int = 0, is_dead: bool = False, last_error: str | None = None
) -> tuple[Write, Parameters]:
    """Return the write that gives a job back, to run at `run_at`; it must change one row (`require_held`)."""
    return _RESCHEDULE, {
        "job_id": job.id,
        "held_fence": job.fence,
        "next_run_at": run_at,
        "new_failures": failures,
        "new_is_dead": is_dead,
        "new_last_error": last_error,
    }


def require_held(changed_rows: int) -> None:
    """Raise `LeaseLostError` unless the write that carries the fence changed its row."""
    if changed_rows != 1:
        raise LeaseLostError


async def renew(session: Session, job: Job, now: datetime) -> None:
    """Extend a lease; raises `LeaseLostError` when it is another's by now."""
    require_held(await session.run(_RENEW, {"job_id": job.id, "held_fence": job.fence, "lease_ends_at": now + LEASE}))


async def claim(session: Session, now: datetime, limit: int) -> Sequence[Job]:
    """Claim up to `limit` jobs that are due or whose lease has ended."""
    return await session.all(_CLAIM, {"now": now, "lease_ends_at": now + LEASE, "limit": limit})


async def next_due(reader: Reader) -> datetime | None:
    """Return when the next job may be claimed, or None when there is none."""
    return await reader.first(_NEXT_DUE, {})


async def free_leases(session: Session, now: datetime) -> int:
    """Make every leased job due now: only for the one process that holds a SQLite file alone."""
    return await session.run(_FREE_LEASES, {"now": now})


async def run_soon(session: Session, dedupe_key: str, now: datetime) -> bool:
    """Make a waiting (or dead) job due now; tell whether there was one."""
    return await session.run(_RUN_SOON, {"key": dedupe_key, "now": now}) == 1


async def of_subject(reader: Reader, subject: str) -> list[Job]:
    """Return the live and dead jobs about one thing."""
    return await reader.all(_BY_SUBJECT, {"subject": subject})


async def count(reader: Reader) -> tuple[int, int]:
    """Return how many jobs are live and how many are dead."""
    return await reader.first(_COUNT, {}) or (0, 0)
