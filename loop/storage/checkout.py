"""Checkout sessions: hosted pages for orders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, insert, select, text, update

from loop.storage.columns import UtcTime
from loop.storage.database import Reader, Session
from loop.storage.statements import Parameters, Statement, Write, columns_of, field_names, parameters_for, values_of
from loop.storage.tables import CheckoutSessions, table

_sessions = table(CheckoutSessions)


@dataclass(frozen=True, slots=True)
class CheckoutSession:
    """One row of checkout_sessions. Line amounts are in minor units of the order's currency."""

    id: str
    merchant_id: str
    order_id: str
    url: str
    success_url: str
    cancel_url: str | None
    line_items: Sequence[Mapping[str, Any]]
    expires_at: datetime
    completed_at: datetime | None
    expired_at: datetime | None
    created_at: datetime


_INSERT = Write(insert(_sessions).values(parameters_for(_sessions, field_names(CheckoutSession))))
_GET = Statement(
    select(*columns_of(_sessions, CheckoutSession)).where(_sessions.c.id == bindparam("session_id")), CheckoutSession
)
_DUE = Statement(
    select(*columns_of(_sessions, CheckoutSession))
    .where(
        _sessions.c.expires_at <= bindparam("now", type_=UtcTime),
        text("completed_at IS NULL AND expired_at IS NULL"),  # literal, as in the partial index
    )
    .order_by(_sessions.c.expires_at)
    .limit(bindparam("limit")),
    CheckoutSession,
)
_OF_ORDER = Statement(
    select(*columns_of(_sessions, CheckoutSession)).where(_sessions.c.order_id == bindparam("order_id")).limit(100),
    CheckoutSession,
)
_COMPLETE = Write(
    update(_sessions)
    .where(_sessions.c.id == bindparam("session_id"), _sessions.c.completed_at.is_(None))
    .values(completed_at=bindparam("now", type_=UtcTime))
)
_EXPIRE = Write(
    update(_sessions)
    .where(
        _sessions.c.id == bindparam("session_id"),
        _sessions.c.completed_at.is_(None),
        _sessions.c.expired_at.is_(None),
    )
    .values(expired_at=bindparam("now", type_=UtcTime))
)


def insertion(session: CheckoutSession) -> tuple[Write, Parameters]:
    """Return the write that inserts a checkout session, for `Session.run_together`."""
    return _INSERT, values_of(session)


def completing(session_id: str, now: datetime) -> tuple[Write, Parameters]:
    """Return the write that marks a checkout session as paid."""
    return _COMPLETE, {"session_id": session_id, "now": now}


async def expire(session: Session, session_id: str, now: datetime) -> bool:
    """Mark an open checkout session as expired; tell whether it was open."""
    return await session.run(_EXPIRE, {"session_id": session_id, "now": now}) == 1


async def get(reader: Reader, session_id: str) -> CheckoutSession | None:
    """Return a checkout session, or None."""
    return await reader.first(_GET, {"session_id": session_id})


async def of_order(reader: Reader, order_id: str) -> list[CheckoutSession]:
    """Return the checkout sessions of an order."""
    return await reader.all(_OF_ORDER, {"order_id": order_id})


async def due(reader: Reader, now: datetime, limit: int) -> list[CheckoutSession]:
    """Return open checkout sessions whose time is up, of all merchants, oldest first."""
    return await reader.all(_DUE, {"now": now, "limit": limit})
