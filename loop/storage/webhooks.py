"""Webhooks out: where each merchant listens, and events as frozen text with a delivery for each who hears of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Text,
    and_,
    bindparam,
    delete,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    text,
    type_coerce,
    update,
)

from loop.domain.deliveries import DeliveryStatus
from loop.domain.endpoint_health import EndpointHealth
from loop.domain.events import Event
from loop.storage.columns import UtcTime
from loop.storage.database import Reader, Session
from loop.storage.statements import Parameters, Statement, Write, columns_of, field_names, parameters_for, values_of
from loop.storage.tables import Orders, table
from loop.storage.webhook_tables import DeliveryAttempts, WebhookDeliveries, WebhookEndpoints, WebhookEvents

ENDPOINTS_MAX = 1_000
"""How many of a merchant's endpoints are read: more than it may have."""

EVENTS_MAX = 1_000
"""How many of an order's events are read."""

ALL_EVENTS = "*"
"""What stands for every type of event in an endpoint's list."""

_endpoints = table(WebhookEndpoints)
_events = table(WebhookEvents)
_deliveries = table(WebhookDeliveries)
_attempts = table(DeliveryAttempts)
_orders = table(Orders)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a merchant listens, to `event_types`; secrets are ciphertext, the pending one is to take over."""

    id: str
    merchant_id: str
    url: str | None
    secret: str = field(repr=False)
    is_enabled: bool
    created_at: datetime
    updated_at: datetime
    description: str | None = None
    event_types: Sequence[str] = (ALL_EVENTS,)
    pending_secret: str | None = field(default=None, repr=False)
    pending_since: datetime | None = None
    disabled_reason: str | None = None
    failure_streak: int = 0
    failing_since: datetime | None = None
    pause_s: int = 0
    paused_until: datetime | None = None

    @property
    def is_listening(self) -> bool:
        """Whether anything is sent to it."""
        return self.is_enabled and self.url is not None

    @property
    def health(self) -> EndpointHealth:
        """What its latest tries tell of it."""
        return EndpointHealth(
            self.failure_streak, self.failing_since, timedelta(seconds=self.pause_s), self.paused_until
        )

    def hears_of(self, event_type: str) -> bool:
        """Tell whether it is to be told of events of a type."""
        return ALL_EVENTS in self.event_types or event_type in self.event_types


_PLACE_OF_TYPES = field_names(Endpoint).index("event_types")


def _endpoint(*values: Any) -> Endpoint:  # noqa: ANN401 - one row
    cells = list(values)
    cells[_PLACE_OF_TYPES] = tuple(cells[_PLACE_OF_TYPES])
    return Endpoint(*cells)


_MUTABLE = [
    "url", "secret", "is_enabled", "updated_at", "description", "event_types", "pending_secret", "pending_since",
    "disabled_reason", "failure_streak", "failing_since", "pause_s", "paused_until",
]  # fmt: skip
_HEALTH = ["failure_streak", "failing_since", "pause_s", "paused_until"]
_OF_ENDPOINT = _endpoints.c.id == bindparam("endpoint_id")
_OF_MERCHANT = and_(_endpoints.c.merchant_id == bindparam("merchant_id"), _endpoints.c.removed_at.is_(None))
# The list is JSON: each of its words stands in quotation marks, which no word holds.
_WORDS = type_coerce(_endpoints.c.event_types, Text)
# Not `like(bindparam(…))`: SQLite prepares a statement anew whenever the pattern of a LIKE is bound.
_HEARS = or_(_WORDS.contains(f'"{ALL_EVENTS}"'), _WORDS.contains(bindparam("word_of_event_type", type_=Text)))

_INSERT_ENDPOINT = Write(insert(_endpoints).values(parameters_for(_endpoints, field_names(Endpoint))))
_FIND_ENDPOINT = Statement(select(*columns_of(_endpoints, Endpoint)).where(_OF_ENDPOINT), _endpoint)
_GET_ENDPOINT = Statement(select(*columns_of(_endpoints, Endpoint)).where(_OF_ENDPOINT, _OF_MERCHANT), _endpoint)
_LOCK_ENDPOINT = Statement(  # not FOR UPDATE, which new deliveries would have to wait for
    select(*columns_of(_endpoints, Endpoint)).where(_OF_ENDPOINT, _OF_MERCHANT).with_for_update(key_share=True),
    _endpoint,
)
_ENDPOINTS = Statement(
    select(*columns_of(_endpoints, Endpoint)).where(_OF_MERCHANT).order_by(_endpoints.c.id).limit(bindparam("limit")),
    _endpoint,
)
_UPDATE_ENDPOINT = Write(update(_endpoints).where(_OF_ENDPOINT).values(parameters_for(_endpoints, _MUTABLE)))
_UPDATE_HEALTH = Write(update(_endpoints).where(_OF_ENDPOINT).values(parameters_for(_endpoints, _HEALTH)))
_END_PAUSE = Write(update(_endpoints).where(_OF_ENDPOINT).values(paused_until=null()))
_DISABLE = Write(
    update(_endpoints)
    .where(_OF_ENDPOINT, _endpoints.c.url == bindparam("tried_url"), _endpoints.c.is_enabled.is_(True))
    .values(is_enabled=False, **parameters_for(_endpoints, ["disabled_reason", "updated_at"]))
)
_REMOVE = Write(
    update(_endpoints)
    .where(_OF_ENDPOINT, _OF_MERCHANT)
    .values(url=null(), is_enabled=False, removed_at=bindparam("now", type_=UtcTime))
)
_INSERT_EVENT = Write(insert(_events).values(parameters_for(_events, field_names(Event))))
_INSERT_DELIVERIES = Write(
    insert(_deliveries).from_select(
        ["event_id", "endpoint_id", "merchant_id", "status", "attempts", "correlation_id", "trace_context"],
        select(
            bindparam("event_id", type_=_events.c.id.type),
            _endpoints.c.id,
            _endpoints.c.merchant_id,
            literal(DeliveryStatus.PENDING.value, _events.c.id.type),
            literal(0),
            bindparam("correlation_id", type_=_deliveries.c.correlation_id.type),
            bindparam("trace_context", type_=_deliveries.c.trace_context.type),
        ).where(
            _endpoints.c.merchant_id == bindparam("merchant_id"),
            _endpoints.c.url.is_not(None),
            _endpoints.c.is_enabled.is_(True),
            _HEARS,
        ),
    )
)
_OF_MODE = or_(_events.c.is_test.is_(None), _events.c.is_test == bindparam("is_test"))
_EVENT = Statement(
    select(*columns_of(_events, Event)).where(
        _events.c.id == bindparam("event_id"), _events.c.merchant_id == bindparam("merchant_id")
    ),
    Event,
)
_EVENTS = {
    (has_cursor, has_mode): Statement(
        select(*columns_of(_events, Event))
        .where(
            _events.c.merchant_id == bindparam("merchant_id"),
            *([_events.c.id < bindparam("before_id")] if has_cursor else []),
            *([_OF_MODE] if has_mode else []),
        )
        .order_by(_events.c.id.desc())
        .limit(bindparam("limit")),
        Event,
    )
    for has_cursor in (False, True)
    for has_mode in (False, True)
}
_OF_ORDER = Statement(
    select(*columns_of(_events, Event))
    .where(_events.c.order_id == bindparam("order_id"), _events.c.merchant_id == bindparam("merchant_id"))
    .order_by(_events.c.created_at, _events.c.id)
    .limit(EVENTS_MAX),
    Event,
)
# Scalar subqueries, which are looked up by key for each row: Postgres would make a join of EXISTS, over all rows.
_PENDING = (
    select(func.count())
    .where(_deliveries.c.event_id == _events.c.id, text("webhook_deliveries.status = 'pending'"))
    .scalar_subquery()
)
_UNSETTLED = (
    select(func.count())
    .where(
        _orders.c.id == _events.c.order_id,
        text("(orders.needs_review OR orders.status IN ('processing', 'requires_action', 'authorized'))"),
    )
    .scalar_subquery()
)
_IS_DONE = and_(_PENDING == 0, _UNSETTLED == 0)
"""Everybody has been told or given up on, and the order's money is where it stays."""
_OLD_EVENTS = Statement(
    select(_events.c.id)
    .where(_events.c.id < bindparam("before_id"), _IS_DONE)
    .order_by(_events.c.id)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True),
    str,
)


def _between(event_id: ColumnElement[str]) -> ColumnElement[bool]:
    return event_id.between(bindparam("first_id"), bindparam("last_id"))


_THEIRS = select(_events.c.id).where(_between(_events.c.id), _IS_DONE)
_PURGE_EVENTS = (
    Write(delete(_attempts).where(_between(_attempts.c.event_id), _attempts.c.event_id.in_(_THEIRS))),
    Write(delete(_deliveries).where(_between(_deliveries.c.event_id), _deliveries.c.event_id.in_(_THEIRS))),
    Write(delete(_events).where(_between(_events.c.id), _IS_DONE)),
)


def endpoint_insertion(endpoint: Endpoint) -> tuple[Write, Parameters]:
    """Return the write that inserts an endpoint, for `Session.run_together`."""
    return _INSERT_ENDPOINT, {**values_of(endpoint), "event_types": list(endpoint.event_types)}


def endpoint_updating(endpoint: Endpoint) -> tuple[Write, Parameters]:
    """Return the write that stores an endpoint as its merchant wants it, for `Session.run_together`."""
    changed = {name: getattr(endpoint, name) for name in _MUTABLE}
    return _UPDATE_ENDPOINT, {"endpoint_id": endpoint.id, **changed, "event_types": list(endpoint.event_types)}


def health_updating(endpoint_id: str, health: EndpointHealth) -> tuple[Write, Parameters]:
    """Return the write that stores what an endpoint's latest tries tell of it, for `Session.run_together`."""
    return _UPDATE_HEALTH, {
        "endpoint_id": endpoint_id,
        "failure_streak": health.failure_streak,
        "failing_since": health.failing_since,
        "pause_s": int(health.pause.total_seconds()),
        "paused_until": health.paused_until,
    }


async def end_pause(session: Session, endpoint_id: str) -> None:
    """Let a sick endpoint have its probe now."""
    await session.run(_END_PAUSE, {"endpoint_id": endpoint_id})


async def disable(session: Session, endpoint: Endpoint, reason: str, *, now: datetime) -> bool:
    """Disable an endpoint that was tried in vain; tell whether it still listened there."""
    parameters = {"endpoint_id": endpoint.id, "tried_url": endpoint.url, "disabled_reason": reason, "updated_at": now}
    return await session.run(_DISABLE, parameters) == 1


async def remove_endpoint(session: Session, merchant_id: str, endpoint_id: str, *, now: datetime) -> bool:
    """Remove an endpoint, which from then on nobody finds; tell whether the merchant had it."""
    return await session.run(_REMOVE, {"merchant_id": merchant_id, "endpoint_id": endpoint_id, "now": now}) == 1


async def find_endpoint(reader: Reader, endpoint_id: str) -> Endpoint | None:
    """Return any merchant's endpoint, a removed one too, or None."""
    return await reader.first(_FIND_ENDPOINT, {"endpoint_id": endpoint_id})


async def endpoint(reader: Reader, merchant_id: str, endpoint_id: str) -> Endpoint | None:
    """Return a merchant's endpoint, or None."""
    return await reader.first(_GET_ENDPOINT, {"merchant_id": merchant_id, "endpoint_id": endpoint_id})


async def lock_endpoint(session: Session, merchant_id: str, endpoint_id: str) -> Endpoint | None:
    """Return a merchant's endpoint, its row locked until the transaction ends, or None."""
    return await session.first(_LOCK_ENDPOINT, {"merchant_id": merchant_id, "endpoint_id": endpoint_id})


async def endpoints_of(reader: Reader, merchant_id: str) -> list[Endpoint]:
    """Return a merchant's endpoints, oldest first."""
    return await reader.all(_ENDPOINTS, {"merchant_id": merchant_id, "limit": ENDPOINTS_MAX})


async def first_endpoint(reader: Reader, merchant_id: str) -> Endpoint | None:
    """Return a merchant's first endpoint, the oldest: the one that `webhookUrl` sets."""
    return await reader.first(_ENDPOINTS, {"merchant_id": merchant_id, "limit": 1})


def event_insertions(event: Event, *, trace_context: str | None = None) -> list[tuple[Write, Parameters]]:
    """Return the writes that record an event, and a new delivery to each endpoint that is to hear of it."""
    return [
        (_INSERT_EVENT, values_of(event)),
        (
            _INSERT_DELIVERIES,
            {
                "event_id": event.id,
                "merchant_id": event.merchant_id,
                "correlation_id": event.correlation_id,
                "trace_context": trace_context,
                "word_of_event_type": f'"{event.event_type}"',
            },
        ),
    ]


def event_insertion(event: Event) -> tuple[Write, Parameters]:
    """Return the write that records an event, for whoever sends it to one endpoint only."""
    return _INSERT_EVENT, values_of(event)


async def event(reader: Reader, merchant_id: str, event_id: str, *, is_test: bool | None = None) -> Event | None:
    """Return a merchant's event, or None; with `is_test` none of the other mode."""
    found = await reader.first(_EVENT, {"merchant_id": merchant_id, "event_id": event_id})
    is_other = found is not None and None not in (found.is_test, is_test) and found.is_test is not is_test
    return None if is_other else found


async def events_after(
    reader: Reader, merchant_id: str, *, before_id: str | None, limit: int, is_test: bool | None = None
) -> list[Event]:
    """Return a merchant's events, newest first, that come after `before_id` in that order.

    With `is_test` none of the other mode is among them.
    """
    parameters = {"merchant_id": merchant_id, "limit": limit, "before_id": before_id, "is_test": is_test}
    return await reader.all(_EVENTS[before_id is not None, is_test is not None], parameters)


async def events_of_order(reader: Reader, merchant_id: str, order_id: str) -> list[Event]:
    """Return an order's events, oldest first."""
    return await reader.all(_OF_ORDER, {"merchant_id": merchant_id, "order_id": order_id})


async def purge_events(session: Session, before_id: str, limit: int) -> int:
    """Delete up to `limit` events before an id that are done with, and their deliveries; return how many events."""
    old = await session.all(_OLD_EVENTS, {"before_id": before_id, "limit": limit})
    if old:
        for write in _PURGE_EVENTS:
            await session.run(write, {"first_id": old[0], "last_id": old[-1]})
    return len(old)
