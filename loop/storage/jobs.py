"""Jobs as rows: inserted by the transaction that makes them necessary, claimed under a lease, fenced at every write."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    ScalarSelect,
    Text,
    TextClause,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    text,
    true,
    tuple_,
    type_coerce,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

from loop.config import JOB_LEASE_S
from loop.storage.columns import Document, UtcTime
from loop.storage.database import Reader, Session
from loop.storage.statements import Parameters, Statement, Write, columns_of, field_names, parameters_for, values_of
from loop.storage.tables import DELIVER, Jobs, table
from loop.storage.webhook_tables import WebhookDeliveries, WebhookEndpoints

LEASE = timedelta(seconds=JOB_LEASE_S)
"""How long a claim lasts without renewal; a processor call's deadline lies below it."""

QUEUED_MAX = 500
"""How many new deliveries one claim takes notice of."""

_jobs = table(Jobs)
_deliveries = table(WebhookDeliveries)
_endpoints = table(WebhookEndpoints)


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
    trace_context: str | None = None
    """The span that made it, as W3C Trace Context names it, if that was traced."""


_INSERT = Write(
    postgresql.insert(_jobs)
    .values(parameters_for(_jobs, field_names(Job)))
    .on_conflict_do_nothing(index_elements=["dedupe_key"])
)

Kinds = frozenset[str]
"""Kinds of jobs."""

KINDS_KEPT = 8
"""For how many sets of kinds the statements are kept; a process has one, and two of each with it."""


class elements(GenericFunction[str]):  # noqa: N801 - SQLAlchemy names functions by their class
    """The rows of a JSON array of texts, whose one column is `value`."""

    type = Text()
    inherit_cache = True


@compiles(elements, "sqlite")
def _elements_sqlite(element: elements, compiler: SQLCompiler, **kw: Any) -> str:  # noqa: ANN401 - SQLAlchemy's signature
    return f"json_each({compiler.process(element.clauses, **kw)})"


@compiles(elements, "postgresql")
def _elements_postgres(element: elements, compiler: SQLCompiler, **kw: Any) -> str:  # noqa: ANN401 - as above
    return f"json_array_elements_text(({compiler.process(element.clauses, **kw)})::json)"


_FULL_LANES = elements(bindparam("full_lanes", type_=Document)).table_valued("value")
"""The lanes of which nothing is claimed; a statement that has none names none, and stays as quick as it is."""

# Literal, as in the partial indexes.
_DELIVERS = text(f"kind = '{DELIVER}'")
_DOES_ANYTHING_ELSE = text(f"kind <> '{DELIVER}'")
_IS_NEW = text("webhook_deliveries.status = 'pending' AND webhook_deliveries.next_attempt_at IS NULL")


def _is_one_of(kinds: Kinds | None) -> ColumnElement[bool]:
    return true() if kinds is None else or_(*(_jobs.c.kind == kind for kind in sorted(kinds)))


def _is_open(*, has_full_lanes: bool) -> ColumnElement[bool]:
    return _jobs.c.lane.not_in(select(_FULL_LANES.c.value)) if has_full_lanes else true()


def _claiming(condition: TextClause, kinds: Kinds | None = None, *, has_full_lanes: bool = False) -> Statement[Job]:
    due = (  # a CTE: Postgres may run a subquery again for each row, and then claims more than the limit
        select(_jobs.c.id)
        .where(
            _jobs.c.is_dead.is_(False),
            condition,
            _is_one_of(kinds),
            _is_open(has_full_lanes=has_full_lanes),
            _jobs.c.run_at <= bindparam("now", type_=UtcTime),
        )
        .order_by(_jobs.c.run_at)
        .limit(bindparam("limit"))
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    return Statement(
        update(_jobs)
        .where(_jobs.c.id.in_(select(due.c.id)))
        .values(run_at=bindparam("lease_ends_at", type_=UtcTime), fence=_jobs.c.fence + 1, is_leased=True)
        .returning(*columns_of(_jobs, Job)),
        Job,
    )


@lru_cache(maxsize=2 * KINDS_KEPT)
def _claiming_of(kinds: Kinds | None, *, has_full_lanes: bool) -> Statement[Job]:
    return _claiming(_DOES_ANYTHING_ELSE, kinds, has_full_lanes=has_full_lanes)


_CLAIM_DELIVERIES = _claiming(_DELIVERS)
_NEW = (
    select(_deliveries.c.event_id, _deliveries.c.endpoint_id)
    .where(_IS_NEW)
    .order_by(_deliveries.c.event_id)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
    .cte("new")
)
_TAKE_NEW = Statement(
    update(_deliveries)
    .where(tuple_(_deliveries.c.event_id, _deliveries.c.endpoint_id).in_(select(_NEW.c.event_id, _NEW.c.endpoint_id)))
    .values(next_attempt_at=bindparam("now", type_=UtcTime))
    .returning(_deliveries.c.endpoint_id, _deliveries.c.event_id),
    lambda endpoint_id, event_id: (str(endpoint_id), str(event_id)),
)
_NOW = bindparam("now", type_=UtcTime)
_delivering = postgresql.insert(_jobs).from_select(
    ["id", "kind", "subject", "arguments", "dedupe_key", "lane", "run_at", "is_leased", "is_dead", "created_at"],
    select(
        bindparam("job_id", type_=Text),
        literal(DELIVER, Text),
        _endpoints.c.id,
        bindparam("arguments", type_=Document),
        _endpoints.c.id,
        _endpoints.c.id,
        case((_endpoints.c.paused_until > _NOW, _endpoints.c.paused_until), else_=_NOW),
        literal(False),
        literal(False),
        _NOW,
    ).where(_endpoints.c.id == bindparam("endpoint_id")),
)
_DELIVER_SOON = Write(
    _delivering.on_conflict_do_update(
        index_elements=["dedupe_key"],
        set_={"run_at": _delivering.excluded.run_at, "is_dead": False, "failures": 0},
        where=and_(
            _jobs.c.is_leased.is_(False),  # whoever holds it looks again before it ends
            or_(_jobs.c.run_at > _delivering.excluded.run_at, _jobs.c.is_dead.is_(True)),
        ),
    )
)
_LOOKS = "looks"
_HELD = and_(_jobs.c.id == bindparam("job_id"), _jobs.c.fence == bindparam("held_fence"))
_FINISH = Write(delete(_jobs).where(_HELD))
_RENEW = Write(update(_jobs).where(_HELD).values(run_at=bindparam("lease_ends_at", type_=UtcTime)))
_RESCHEDULE = Write(
    update(_jobs)
    .where(_HELD)
    .values(
        run_at=bindparam("next_run_at", type_=UtcTime),
        is_leased=False,
        arguments=bindparam("new_arguments", type_=Document),
        failures=bindparam("new_failures"),
        is_dead=bindparam("new_is_dead"),
        last_error=bindparam("new_last_error"),
    )
)
_LOCK_HELD = Statement(select(_jobs.c.id).where(_HELD).with_for_update(), str)


def _next_run(
    condition: TextClause, kinds: Kinds | None = None, *, has_full_lanes: bool = False
) -> ScalarSelect[datetime]:
    return (
        select(func.min(_jobs.c.run_at, type_=UtcTime))
        .where(_jobs.c.is_dead.is_(False), condition, _is_one_of(kinds), _is_open(has_full_lanes=has_full_lanes))
        .scalar_subquery()
    )


@dataclass(frozen=True, slots=True)
class Agenda:
    """When the next job may be claimed, and the next one that delivers; and whether deliveries are new."""

    jobs_at: datetime | None
    deliveries_at: datetime | None
    has_new: bool


@lru_cache(maxsize=2 * KINDS_KEPT)
def _agenda_of(kinds: Kinds | None, *, has_full_lanes: bool) -> Statement[Agenda]:
    return Statement(
        select(
            _next_run(_DOES_ANYTHING_ELSE, kinds, has_full_lanes=has_full_lanes),
            _next_run(_DELIVERS),
            type_coerce(exists(select(_deliveries.c.event_id).where(_IS_NEW)), Boolean),
        ),
        Agenda,
    )


_FREE_LEASES = Write(
    update(_jobs)
    .where(
        _jobs.c.is_leased.is_(True),
        _jobs.c.is_dead.is_(False),
        _jobs.c.run_at <= bindparam("lease_ends_at", type_=UtcTime),
    )
    .values(run_at=bindparam("now", type_=UtcTime), is_leased=False)
)
_RUN_SOON = Write(
    update(_jobs)
    .where(_jobs.c.dedupe_key == bindparam("key"), _jobs.c.is_leased.is_(False))
    .values(run_at=bindparam("now", type_=UtcTime), is_dead=False, failures=0)
)
_DEAD = Statement(
    select(*columns_of(_jobs, Job))
    .where(_jobs.c.dedupe_key == bindparam("key"), _jobs.c.is_dead.is_(True))
    .with_for_update(),
    Job,
)
_REPLACE = Write(
    update(_jobs)
    .where(_jobs.c.id == bindparam("dead_id"), _jobs.c.fence == bindparam("dead_fence"), _jobs.c.is_dead.is_(True))
    .values(parameters_for(_jobs, field_names(Job)))
)
_IS_OF_KIND = or_(bindparam("kind", type_=Text).is_(None), _jobs.c.kind == bindparam("kind", type_=Text))
_LIST_DEAD = Statement(
    select(*columns_of(_jobs, Job))
    .where(_jobs.c.is_dead.is_(True), _IS_OF_KIND)
    .order_by(_jobs.c.run_at.desc(), _jobs.c.id)
    .limit(bindparam("limit")),
    Job,
)
_REVIVE = Statement(
    update(_jobs)
    .where(_jobs.c.id == bindparam("job_id"), _jobs.c.is_dead.is_(True))
    .values(run_at=bindparam("now", type_=UtcTime), is_dead=False, failures=0)
    .returning(*columns_of(_jobs, Job)),
    Job,
)
_BY_SUBJECT = Statement(select(*columns_of(_jobs, Job)).where(_jobs.c.subject == bindparam("subject")).limit(100), Job)
_COUNT = Statement(
    select(func.count().filter(_jobs.c.is_dead.is_(False)), func.count().filter(_jobs.c.is_dead.is_(True))),
    lambda live, dead: (int(live), int(dead)),
)


_LIVE_OF_KIND = Statement(
    select(func.count()).select_from(_jobs).where(_jobs.c.kind == bindparam("kind"), _jobs.c.is_dead.is_(False)), int
)


def insertion(job: Job) -> tuple[Write, Parameters]:
    """Return the write that inserts a job, unless one with its dedupe key is live: for `Session.run_together`."""
    return _INSERT, values_of(job)


def finishing(job: Job) -> tuple[Write, Parameters]:
    """Return the write that ends a job, for `Session.run_together`; it must change one row (`require_held`)."""
    return _FINISH, {"job_id": job.id, "held_fence": job.fence}


def renewing(job: Job, now: datetime) -> tuple[Write, Parameters]:
    """Return the write that extends a lease, for `Session.run_together`; it must change one row (`require_held`)."""
    return _RENEW, {"job_id": job.id, "held_fence": job.fence, "lease_ends_at": now + LEASE}


async def lock_held(session: Session, job: Job) -> None:
    """Keep everybody else from a job until the transaction ends; raises `LeaseLostError` when it is another's."""
    require_held(1 if await session.first(_LOCK_HELD, {"job_id": job.id, "held_fence": job.fence}) else 0)


def rescheduling(
    job: Job, run_at: datetime, *, failures: int = 0, is_dead: bool = False, last_error: str | None = None
) -> tuple[Write, Parameters]:
    """Return the write that gives a job back, to run at `run_at`; it must change one row (`require_held`)."""
    return _RESCHEDULE, {
        "job_id": job.id,
        "held_fence": job.fence,
        "next_run_at": run_at,
        "new_arguments": job.arguments,
        "new_failures": failures,
        "new_is_dead": is_dead,
        "new_last_error": last_error,
    }


def looks_of(job: Job) -> int:
    """Return how often a job has looked in vain; its failures are another count, which ends when it finds out."""
    return int(str(job.arguments.get(_LOOKS, 0)))


def looking_again(job: Job, run_at: datetime, *, last_error: str | None = None) -> tuple[Write, Parameters]:
    """Return the write that gives a job back which has looked in vain; it must change one row (`require_held`)."""
    looked = replace(job, arguments={**job.arguments, _LOOKS: looks_of(job) + 1})
    return rescheduling(looked, run_at, last_error=last_error)


def require_held(changed_rows: int) -> None:
    """Raise `LeaseLostError` unless the write that carries the fence changed its row."""
    if changed_rows != 1:
        raise LeaseLostError


async def renew(session: Session, job: Job, now: datetime) -> None:
    """Extend a lease; raises `LeaseLostError` when it is another's by now."""
    require_held(await session.run(*renewing(job, now)))


async def claim(
    session: Session,
    now: datetime,
    limit: int,
    *,
    deliveries: int | None = None,
    kinds: Kinds | None = None,
    full_lanes: Collection[str] = (),
) -> Sequence[Job]:
    """Claim up to `limit` jobs that are due or whose lease has ended, and up to `deliveries` (or `limit`) that deliver.

    Of the former only those of these kinds, where kinds are given, and none of a lane that is full. New deliveries get
    their endpoints' jobs before.
    """
    lease: Parameters = {"now": now, "lease_ends_at": now + LEASE}
    claimed: list[Job] = []
    if limit > 0:
        statement = _claiming_of(kinds, has_full_lanes=bool(full_lanes))
        claimed += await session.all(statement, {**lease, "limit": limit, "full_lanes": [*full_lanes]})
    deliveries = limit if deliveries is None else deliveries
    if deliveries > 0:
        await _queue_new(session, now)
        claimed += await session.all(_CLAIM_DELIVERIES, {**lease, "limit": deliveries})
    return claimed


async def _queue_new(session: Session, now: datetime) -> None:
    taken = await session.all(_TAKE_NEW, {"now": now, "limit": QUEUED_MAX})
    for endpoint_id, event_id in dict(taken).items():
        # An id that no job had before: a holder of an earlier one must not take this one for its own.
        await deliver_soon(session, endpoint_id, job_id=f"{endpoint_id}:{event_id}", now=now)


async def deliver_soon(session: Session, endpoint_id: str, *, job_id: str, now: datetime) -> None:
    """Have an endpoint's job run now, or at the end of the endpoint's pause; without one, `job_id` is made."""
    await session.run(_DELIVER_SOON, {"endpoint_id": endpoint_id, "job_id": job_id, "arguments": {}, "now": now})


async def agenda(reader: Reader, kinds: Kinds | None = None, *, full_lanes: Collection[str] = ()) -> Agenda:
    """Return what `claim` would claim, and when: of these kinds, where any are given, and of no lane that is full."""
    statement = _agenda_of(kinds, has_full_lanes=bool(full_lanes))
    return await reader.first(statement, {"full_lanes": [*full_lanes]}) or Agenda(None, None, has_new=False)


async def next_due(reader: Reader) -> datetime | None:
    """Return when the next job may be claimed, or None when there is none."""
    found = await agenda(reader)
    moments = (found.jobs_at, found.deliveries_at, datetime.min.replace(tzinfo=UTC) if found.has_new else None)
    return min((at for at in moments if at is not None), default=None)


async def free_leases(session: Session, now: datetime, *, taken_until: datetime) -> int:
    """Make jobs due now whose leases were taken by then: only for who knows that their holders have ended since."""
    return await session.run(_FREE_LEASES, {"now": now, "lease_ends_at": taken_until + LEASE})


async def run_soon(session: Session, dedupe_key: str, now: datetime) -> bool:
    """Make a waiting (or dead) job due now; tell whether there was one."""
    return await session.run(_RUN_SOON, {"key": dedupe_key, "now": now}) == 1


async def dead(session: Session, dedupe_key: str) -> Job | None:
    """Return the dead job with this key, its row locked, or None."""
    return await session.first(_DEAD, {"key": dedupe_key})


async def list_dead(reader: Reader, *, kind: str | None, limit: int) -> list[Job]:
    """Return dead jobs, of one kind or of all, those that died last first."""
    return await reader.all(_LIST_DEAD, {"kind": kind, "limit": limit})


async def revive(session: Session, job_id: str, now: datetime) -> Job | None:
    """Make a dead job due now, with all its tries before it, and return it; None when no dead job has this id."""
    return await session.first(_REVIVE, {"job_id": job_id, "now": now})


def replacing(dead_job: Job, job: Job) -> tuple[Write, Parameters]:
    """Return the write that puts a job in a dead one's place; it changes no row if that was revived meanwhile."""
    return _REPLACE, {"dead_id": dead_job.id, "dead_fence": dead_job.fence, **values_of(job)}


async def of_subject(reader: Reader, subject: str) -> list[Job]:
    """Return the live and dead jobs about one thing."""
    return await reader.all(_BY_SUBJECT, {"subject": subject})


async def live_of_kind(reader: Reader, kind: str) -> int:
    """Return how many jobs of a kind are live."""
    return await reader.first(_LIVE_OF_KIND, {"kind": kind}) or 0


async def count(reader: Reader) -> tuple[int, int]:
    """Return how many jobs are live and how many are dead."""
    return await reader.first(_COUNT, {}) or (0, 0)
