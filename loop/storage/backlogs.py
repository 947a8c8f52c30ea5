"""Backlogs: how much waits, by counts that look at a bounded number of rows; the process's own figures, nobody's."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Boolean, TextClause, bindparam, func, literal_column, select, text

from loop.storage.columns import UtcTime
from loop.storage.database import Reader
from loop.storage.statements import Statement
from loop.storage.tables import DELIVER, Jobs, Orders, table
from loop.storage.webhook_tables import WebhookDeliveries

COUNTED_MAX = 10_000
"""How many rows one count looks at; a backlog that is longer is shown as this."""

_jobs = table(Jobs)
_deliveries = table(WebhookDeliveries)
_orders = table(Orders)


@dataclass(frozen=True, slots=True)
class DueJobs:
    """The jobs of one kind that could run now, and since when the oldest of them could."""

    kind: str
    count: int
    oldest_at: datetime


def _due(condition: TextClause) -> Statement[DueJobs]:
    due = (
        select(_jobs.c.kind, _jobs.c.run_at)
        .where(_jobs.c.is_dead.is_(False), condition, _jobs.c.run_at <= bindparam("now", type_=UtcTime))
        .order_by(_jobs.c.run_at)
        .limit(COUNTED_MAX)
        .subquery("due")
    )
    oldest = func.min(due.c.run_at, type_=UtcTime)
    return Statement(select(due.c.kind, func.count(), oldest).group_by(due.c.kind), DueJobs)


# Literal, as in the partial indexes.
_DUE = _due(text(f"kind <> '{DELIVER}'"))
_DUE_DELIVERIES = _due(text(f"kind = '{DELIVER}'"))
_dead = select(_jobs.c.kind).where(_jobs.c.is_dead.is_(True)).limit(COUNTED_MAX).subquery("dead")
_DEAD = Statement(
    select(_dead.c.kind, func.count()).group_by(_dead.c.kind), lambda kind, count: (str(kind), int(count))
)


def _waiting(condition: str) -> Statement[int]:
    is_pending = text(f"webhook_deliveries.status = 'pending' AND webhook_deliveries.next_attempt_at {condition}")
    waiting = select(_deliveries.c.event_id).where(is_pending).limit(COUNTED_MAX).subquery("waiting")
    return Statement(select(func.count()).select_from(waiting), int)


_NEW = _waiting("IS NULL")
_QUEUED = _waiting("IS NOT NULL")
_needs_review = literal_column("orders.needs_review", Boolean)
_reviewed = select(_orders.c.id).where(_needs_review).limit(COUNTED_MAX).subquery("in_review")
_IN_REVIEW = Statement(select(func.count()).select_from(_reviewed), int)


async def due_jobs(reader: Reader, now: datetime) -> list[DueJobs]:
    """Return what could run now, by kind; those that deliver are counted beside the others."""
    return [*await reader.all(_DUE, {"now": now}), *await reader.all(_DUE_DELIVERIES, {"now": now})]


async def dead_jobs(reader: Reader) -> Mapping[str, int]:
    """Return how many jobs were given up, by kind."""
    return dict(await reader.all(_DEAD, {}))


async def waiting_deliveries(reader: Reader) -> int:
    """Return how many deliveries have yet to arrive."""
    return (await reader.first(_NEW, {}) or 0) + (await reader.first(_QUEUED, {}) or 0)


async def orders_in_review(reader: Reader) -> int:
    """Return how many orders wait for a person's look."""
    return await reader.first(_IN_REVIEW, {}) or 0
