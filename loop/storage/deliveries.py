"""Deliveries: what is due at an endpoint, how each try went, what is sent again, and the log of tries."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, bindparam, delete, func, insert, or_, select, text, tuple_, update
from sqlalchemy.dialects import postgresql

from loop.domain.deliveries import Delivery, DeliveryAttempt, DeliveryStatus
from loop.domain.events import Event, EventType
from loop.storage.columns import UtcTime
from loop.storage.database import Reader, Session
from loop.storage.statements import Parameters, Statement, Write, columns_of, field_names, parameters_for, values_of
from loop.storage.tables import table
from loop.storage.webhook_tables import DeliveryAttempts, WebhookDeliveries, WebhookEvents

LISTED_MAX = 1_000
"""How many deliveries of an order, or tries of an event, are read."""

_deliveries = table(WebhookDeliveries)
_events = table(WebhookEvents)
_attempts = table(DeliveryAttempts)


@dataclass(frozen=True, slots=True)
class EventWithDelivery:
    """An event and where its delivery to one endpoint stands."""

    event: Event
    delivery: Delivery


def _event_with_delivery(*values: object) -> EventWithDelivery:
    events = len(field_names(Event))
    return EventWithDelivery(Event(*values[:events]), Delivery(*values[events:]))  # type: ignore[arg-type]


_JOINED = _deliveries.join(_events, _events.c.id == _deliveries.c.event_id)
_BOTH = select(*columns_of(_events, Event), *columns_of(_deliveries, Delivery)).select_from(_JOINED)
_OF_ENDPOINT = _deliveries.c.endpoint_id == bindparam("endpoint_id")
_THIS = _deliveries.c.event_id == bindparam("of_event")
_MUTABLE = [
    "status", "attempts", "last_attempt_at", "delivered_at", "last_status_code", "last_error", "next_attempt_at",
]  # fmt: skip
# Literal, as in the partial indexes.
_IS_QUEUED = text("webhook_deliveries.status = 'pending' AND webhook_deliveries.next_attempt_at IS NOT NULL")
_HAS_FAILED = text("webhook_deliveries.status = 'failed'")

_GET = Statement(_BOTH.where(_THIS, _OF_ENDPOINT), _event_with_delivery)
_DUE = Statement(
    _BOTH.where(_OF_ENDPOINT, _IS_QUEUED, _deliveries.c.next_attempt_at <= bindparam("now", type_=UtcTime))
    .order_by(_deliveries.c.next_attempt_at, _deliveries.c.event_id)
    .limit(bindparam("limit")),
    _event_with_delivery,
)
_NEXT_DUE = Statement(
    select(func.min(_deliveries.c.next_attempt_at, type_=UtcTime)).where(_OF_ENDPOINT, _IS_QUEUED), lambda at: at
)
_UPDATE = Write(update(_deliveries).where(_THIS, _OF_ENDPOINT).values(parameters_for(_deliveries, _MUTABLE)))
_insert = postgresql.insert(_deliveries).values(parameters_for(_deliveries, field_names(Delivery)))
_SEND = Write(
    _insert.on_conflict_do_update(
        index_elements=["event_id", "endpoint_id"],
        set_={"status": _insert.excluded.status, "next_attempt_at": _insert.excluded.next_attempt_at},
    )
)
_KEY = tuple_(_deliveries.c.event_id, _deliveries.c.endpoint_id)
_QUEUED = (
    select(_deliveries.c.event_id, _deliveries.c.endpoint_id)
    .where(_OF_ENDPOINT, _IS_QUEUED)
    .order_by(_deliveries.c.next_attempt_at, _deliveries.c.event_id)
    .limit(bindparam("limit"))
)
_GIVE_UP = Write(
    update(_deliveries)
    .where(_KEY.in_(_QUEUED))
    .values(status=DeliveryStatus.FAILED, last_error=bindparam("reason", type_=_deliveries.c.last_error.type))
)
_FAILED = (
    select(_deliveries.c.event_id, _deliveries.c.endpoint_id)
    .where(_OF_ENDPOINT, _HAS_FAILED, _deliveries.c.event_id >= bindparam("from_event"))
    .order_by(_deliveries.c.event_id)
    .limit(bindparam("limit"))
)
_REPLAY = Write(
    update(_deliveries)
    .where(_KEY.in_(_FAILED))
    .values(status=DeliveryStatus.PENDING, next_attempt_at=bindparam("now", type_=UtcTime))
)
_OF_MODE = or_(_events.c.is_test.is_(None), _events.c.is_test == bindparam("is_test"))


def _asked(*, has_status: bool, has_mode: bool) -> list[ColumnElement[bool]]:
    return [
        _deliveries.c.merchant_id == bindparam("merchant_id"),
        *([_deliveries.c.status == bindparam("status")] if has_status else []),
        *([_OF_MODE] if has_mode else []),
    ]


_BY = [(has_status, has_mode) for has_status in (False, True) for has_mode in (False, True)]
_PAGE = {
    (has_status, has_mode): Statement(
        _BOTH.where(*_asked(has_status=has_status, has_mode=has_mode))
        .order_by(_deliveries.c.event_id.desc(), _deliveries.c.endpoint_id)
        .limit(bindparam("limit"))
        .offset(bindparam("offset")),
        _event_with_delivery,
    )
    for has_status, has_mode in _BY
}
_COUNT = {
    (has_status, has_mode): Statement(
        select(func.count())
        .select_from(_JOINED if has_mode else _deliveries)
        .where(*_asked(has_status=has_status, has_mode=has_mode)),
        int,
    )
    for has_status, has_mode in _BY
}


@dataclass(frozen=True, slots=True)
class DeliveryFilter:
    """Which of a merchant's deliveries; None leaves a condition out."""

    is_test: bool | None = None
    status: DeliveryStatus | None = None
    endpoint_id: str | None = None
    event_type: EventType | None = None


@dataclass(frozen=True, slots=True)
class DeliveryCount:
    """How many of an endpoint's deliveries stand so."""

    endpoint_id: str
    status: DeliveryStatus
    count: int


_CONDITIONS: dict[str, ColumnElement[bool]] = {
    "is_test": _OF_MODE,
    "status": _deliveries.c.status == bindparam("status"),
    "endpoint_id": _OF_ENDPOINT,
    "event_type": _events.c.event_type == bindparam("event_type", type_=_events.c.event_type.type),
}
_AFTER = or_(
    _deliveries.c.event_id < bindparam("before_event"),
    and_(_deliveries.c.event_id == bindparam("before_event"), _deliveries.c.endpoint_id < bindparam("before_endpoint")),
)
_LISTS: dict[tuple[str, ...], Statement[EventWithDelivery]] = {}
_COUNTS = Statement(
    select(_deliveries.c.endpoint_id, _deliveries.c.status, func.count())
    .where(_deliveries.c.merchant_id == bindparam("merchant_id"), _deliveries.c.event_id >= bindparam("from_event"))
    .group_by(_deliveries.c.endpoint_id, _deliveries.c.status)
    .limit(LISTED_MAX),
    DeliveryCount,
)
_OF_ORDER = Statement(
    select(*columns_of(_deliveries, Delivery))
    .select_from(_JOINED)
    .where(_events.c.order_id == bindparam("order_id"), _events.c.merchant_id == bindparam("merchant_id"))
    .order_by(_events.c.created_at, _events.c.id)
    .limit(LISTED_MAX),
    Delivery,
)
_OF_EVENT = Statement(
    select(*columns_of(_deliveries, Delivery))
    .where(_THIS, _deliveries.c.merchant_id == bindparam("merchant_id"))
    .limit(LISTED_MAX),
    Delivery,
)
_INSERT_ATTEMPT = Write(insert(_attempts).values(parameters_for(_attempts, field_names(DeliveryAttempt))))
_ATTEMPTS = Statement(
    select(*columns_of(_attempts, DeliveryAttempt))
    .where(_attempts.c.event_id == bindparam("event_id"), _attempts.c.merchant_id == bindparam("merchant_id"))
    .order_by(_attempts.c.tried_at.desc(), _attempts.c.endpoint_id)
    .limit(LISTED_MAX),
    DeliveryAttempt,
)
_OLD = (  # a CTE: Postgres may run a subquery again for each row, and then deletes more than the limit
    select(_attempts.c.event_id, _attempts.c.endpoint_id, _attempts.c.number)
    .where(_attempts.c.tried_at < bindparam("before", type_=UtcTime))
    .order_by(_attempts.c.tried_at, _attempts.c.event_id, _attempts.c.endpoint_id)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)  # several processes purge at the same time
    .cte("old")
)
_PURGE_ATTEMPTS = Write(
    delete(_attempts).where(tuple_(_attempts.c.event_id, _attempts.c.endpoint_id, _attempts.c.number).in_(select(_OLD)))
)


async def get(reader: Reader, event_id: str, endpoint_id: str) -> EventWithDelivery | None:
    """Return an event with its delivery to an endpoint, or None."""
    return await reader.first(_GET, {"of_event": event_id, "endpoint_id": endpoint_id})


async def due(reader: Reader, endpoint_id: str, *, now: datetime, limit: int) -> list[EventWithDelivery]:
    """Return what an endpoint is to be sent by now, the longest due first."""
    return await reader.all(_DUE, {"endpoint_id": endpoint_id, "now": now, "limit": limit})


async def next_due(reader: Reader, endpoint_id: str) -> datetime | None:
    """Return when an endpoint is to be sent something next, or None when nothing waits."""
    return await reader.first(_NEXT_DUE, {"endpoint_id": endpoint_id})


def updating(delivery: Delivery) -> tuple[Write, Parameters]:
    """Return the write that stores where a delivery stands, for `Session.run_together`."""
    changed = {name: getattr(delivery, name) for name in _MUTABLE}
    return _UPDATE, {"of_event": delivery.event_id, "endpoint_id": delivery.endpoint_id, **changed}


def sending(delivery: Delivery) -> tuple[Write, Parameters]:
    """Return the write that has an event sent to an endpoint once more, or for the first time."""
    return _SEND, values_of(delivery)


async def give_up(session: Session, endpoint_id: str, *, reason: str, limit: int) -> int:
    """Mark up to `limit` of what waits for an endpoint as failed; return how many there were."""
    return await session.run(_GIVE_UP, {"endpoint_id": endpoint_id, "reason": reason, "limit": limit})


async def replay(session: Session, endpoint_id: str, *, from_event: str, now: datetime, limit: int) -> int:
    """Make up to `limit` failed deliveries of events from an id on due now; return how many there were."""
    return await session.run(
        _REPLAY, {"endpoint_id": endpoint_id, "from_event": from_event, "now": now, "limit": limit}
    )


async def list_page(
    reader: Reader,
    merchant_id: str,
    status: DeliveryStatus | None,
    *,
    offset: int,
    limit: int,
    is_test: bool | None = None,
) -> tuple[list[EventWithDelivery], int]:
    """Return a page of a merchant's deliveries, newest event first, and how many there are in all.

    With `is_test` none of the other mode is among them.
    """
    key = (status is not None, is_test is not None)
    parameters = {"merchant_id": merchant_id, "status": status, "is_test": is_test}
    rows = await reader.all(_PAGE[key], {**parameters, "offset": offset, "limit": limit})
    return rows, await reader.first(_COUNT[key], parameters) or 0


async def list_after(
    reader: Reader, merchant_id: str, wanted: DeliveryFilter, *, before: tuple[str, str] | None, limit: int
) -> list[EventWithDelivery]:
    """Return a merchant's deliveries, newest event first, that come after `before`: an event's to an endpoint."""
    given = {name: value for name, value in values_of(wanted).items() if value is not None}
    key = (*given, "" if before is None else "before")
    if key not in _LISTS:
        _LISTS[key] = Statement(_listing(given, has_cursor=before is not None), _event_with_delivery)
    event_id, endpoint_id = before or (None, None)
    place = {"before_event": event_id, "before_endpoint": endpoint_id, "limit": limit}
    return await reader.all(_LISTS[key], {"merchant_id": merchant_id, **place, **given})


def _listing(names: Iterable[str], *, has_cursor: bool) -> Select[Any]:
    conditions = [_CONDITIONS[name] for name in names] + ([_AFTER] if has_cursor else [])
    return (
        _BOTH.where(_deliveries.c.merchant_id == bindparam("merchant_id"), *conditions)
        .order_by(_deliveries.c.event_id.desc(), _deliveries.c.endpoint_id.desc())
        .limit(bindparam("limit"))
    )


async def counts_since(reader: Reader, merchant_id: str, *, from_event: str) -> list[DeliveryCount]:
    """Return how the deliveries of a merchant's events from an id on stand, for each endpoint."""
    return await reader.all(_COUNTS, {"merchant_id": merchant_id, "from_event": from_event})


async def of_order(reader: Reader, merchant_id: str, order_id: str) -> list[Delivery]:
    """Return the deliveries of an order's events."""
    return await reader.all(_OF_ORDER, {"merchant_id": merchant_id, "order_id": order_id})


async def of_event(reader: Reader, merchant_id: str, event_id: str) -> list[Delivery]:
    """Return the deliveries of one event."""
    return await reader.all(_OF_EVENT, {"merchant_id": merchant_id, "of_event": event_id})


def attempt_insertion(attempt: DeliveryAttempt) -> tuple[Write, Parameters]:
    """Return the write that logs a try, for `Session.run_together`."""
    return _INSERT_ATTEMPT, values_of(attempt)


async def attempts_of(reader: Reader, merchant_id: str, event_id: str) -> list[DeliveryAttempt]:
    """Return the logged tries of an event's deliveries, newest first."""
    return await reader.all(_ATTEMPTS, {"merchant_id": merchant_id, "event_id": event_id})


async def purge_attempts(session: Session, before: datetime, limit: int) -> int:
    """Delete up to `limit` logged tries from before a moment; return how many."""
    return await session.run(_PURGE_ATTEMPTS, {"before": before, "limit": limit})
