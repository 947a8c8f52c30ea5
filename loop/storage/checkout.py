"""Checkout sessions: hosted pages for orders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import and_, bindparam, insert, not_, null, or_, select, text, update

from loop.domain.orders import Order, OrderStatus
from loop.storage.columns import UtcTime
from loop.storage.database import Reader, Session
from loop.storage.statements import Parameters, Statement, Write, columns_of, field_names, parameters_for, values_of
from loop.storage.tables import CheckoutSessions, Orders, table

_sessions = table(CheckoutSessions)
_orders = table(Orders)

PAID: Final = frozenset(
    {OrderStatus.AUTHORIZED, OrderStatus.CAPTURED, OrderStatus.PARTIALLY_REFUNDED, OrderStatus.REFUNDED}
)
"""The statuses of an order that is paid, or whose money is held, whatever was given back since."""


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


@dataclass(frozen=True, slots=True)
class ListedSession:
    """A checkout session with the order that it is a page of."""

    session: CheckoutSession
    order: Order

    @property
    def id(self) -> str:
        """The session's id, which sorts by time."""
        return self.session.id


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
_SESSION_FIELDS = len(field_names(CheckoutSession))
_IS_PAID = or_(*(_orders.c.status == status for status in sorted(PAID)))
_IS_OVER = or_(
    _sessions.c.expired_at.is_not(None),
    _sessions.c.expires_at <= bindparam("now", type_=UtcTime),
    _orders.c.status == OrderStatus.CANCELLED,
)
_STANDING = {
    "": None,
    "open": and_(not_(_IS_PAID), not_(_IS_OVER)),
    "completed": _IS_PAID,
    "expired": and_(not_(_IS_PAID), _IS_OVER),
}


def _listed(*row: Any) -> "ListedSession":  # noqa: ANN401 - one row of two tables
    return ListedSession(CheckoutSession(*row[:_SESSION_FIELDS]), Order(*row[_SESSION_FIELDS:]))


_LISTS = {
    (status, has_cursor): Statement(
        select(*columns_of(_sessions, CheckoutSession), *columns_of(_orders, Order))
        .select_from(_sessions.join(_orders, _orders.c.id == _sessions.c.order_id))
        .where(
            _sessions.c.merchant_id == bindparam("merchant_id"),
            _orders.c.is_test == bindparam("is_test"),
            *([] if condition is None else [condition]),
            *([_sessions.c.id < bindparam("before_id")] if has_cursor else []),
        )
        .order_by(_sessions.c.id.desc())
        .limit(bindparam("limit")),
        _listed,
    )
    for status, condition in _STANDING.items()
    for has_cursor in (False, True)
}
_COMPLETE = Write(
    update(_sessions)
    .where(_sessions.c.id == bindparam("session_id"), _sessions.c.completed_at.is_(None))
    .values(completed_at=bindparam("now", type_=UtcTime))
)
_TAKE_BACK = Write(update(_sessions).where(_sessions.c.id == bindparam("session_id")).values(completed_at=null()))
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


def taking_back(session_id: str) -> tuple[Write, Parameters]:
    """Return the write that marks a checkout session as not paid after all."""
    return _TAKE_BACK, {"session_id": session_id}


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


@dataclass(frozen=True, slots=True)
class SessionFilter:
    """Which of a merchant's sessions: of one mode, and `open`, `completed`, `expired` or any (None) by `now`."""

    is_test: bool
    status: str | None
    now: datetime


async def list_after(
    reader: Reader, merchant_id: str, wanted: SessionFilter, *, before_id: str | None, limit: int
) -> list[ListedSession]:
    """Return a merchant's sessions, newest first, that come after `before_id` in that order: a cursor page."""
    statement = _LISTS[wanted.status or "", before_id is not None]
    place = {"before_id": before_id, "limit": limit}
    return await reader.all(
        statement, {"merchant_id": merchant_id, "is_test": wanted.is_test, "now": wanted.now, **place}
    )
