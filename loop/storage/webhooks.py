"""Webhooks out: endpoints, events as frozen text, and each event's delivery to each endpoint."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import and_, bindparam, func, insert, literal, select, update
from sqlalchemy.dialects import postgresql

from loop.domain.deliveries import Delivery, DeliveryStatus
from loop.domain.events import Event
from loop.storage.columns import Document, UtcTime
from loop.storage.database import Reader, Session
from loop.storage.jobs import Job
from loop.storage.statements import Parameters, Statement, Write, columns_of, field_names, parameters_for, values_of
from loop.storage.tables import Jobs, WebhookDeliveries, WebhookEndpoints, WebhookEvents, table

DELIVER = "deliver_webhook"
"""The kind of the jobs that deliver."""

_endpoints = table(WebhookEndpoints)
_events = table(WebhookEvents)
_deliveries = table(WebhookDeliveries)
_jobs = table(Jobs)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a merchant listens; `secret` is ciphertext."""

    id: str
    merchant_id: str
    url: str | None
    secret: str
    is_enabled: bool
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Dispatch:
    """All that one try of a delivery needs."""

    event: Event
    delivery: Delivery
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class EventWithDelivery:
    """An event and where its delivery stands."""

    event: Event
    delivery: Delivery


_LISTENING = and_(
    _endpoints.c.merchant_id == bindparam("merchant_id"),
    _endpoints.c.url.is_not(None),
    _endpoints.c.is_enabled.is_(True),
)
_INSERT_ENDPOINT = Write(insert(_endpoints).values(parameters_for(_endpoints, field_names(Endpoint))))
_INSERT_EVENT = Write(insert(_events).values(parameters_for(_events, field_names(Event))))
_INSERT_DELIVERIES = Write(
    insert(_deliveries).from_select(
        ["event_id", "endpoint_id", "merchant_id", "status", "attempts"],
        select(
            bindparam("event_id", type_=_events.c.id.type),
            _endpoints.c.id,
            _endpoints.c.merchant_id,
            literal(DeliveryStatus.PENDING.value, _events.c.id.type),
            literal(0),
        ).where(_LISTENING),
    )
)
_INSERT_DELIVERY = Write(
    postgresql.insert(_deliveries)
    .values(parameters_for(_deliveries, field_names(Delivery)))
    .on_conflict_do_nothing(index_elements=["event_id", "endpoint_id"])
)


def job_key(event_id: str, endpoint_id: str) -> str:
    """Return the dedupe key of the job that delivers an event to an endpoint."""
    return f"{event_id}:{endpoint_id}"


_JOB_KEY = bindparam("event_id", type_=_events.c.id.type) + literal(":") + _endpoints.c.id
_INSERT_DELIVERY_JOBS = Write(
    insert(_jobs).from_select(
        ["id", "kind", "subject", "arguments", "dedupe_key", "lane", "run_at", "is_leased", "is_dead",
         "correlation_id", "created_at"],
        select(
            _JOB_KEY, literal(DELIVER), _JOB_KEY, bindparam("arguments", type_=Document), _JOB_KEY, _endpoints.c.id,
            bindparam("created_at", type_=UtcTime), literal(False), literal(False),
            bindparam("correlation_id", type_=_jobs.c.correlation_id.type), bindparam("created_at", type_=UtcTime),
        ).where(_LISTENING),
    ),
    is_void_alone=True,  # after the deliveries: no delivery, no job
)  # fmt: skip
_ENDPOINT_OF = Statement(
    select(*columns_of(_endpoints, Endpoint))
    .where(_endpoints.c.merchant_id == bindparam("merchant_id"))
    .order_by(_endpoints.c.id)
    .limit(1),
    Endpoint,
)
_SET_URL = Write(
    update(_endpoints)
    .where(_endpoints.c.id == bindparam("endpoint_id"), _endpoints.c.merchant_id == bindparam("owner"))
    .values(parameters_for(_endpoints, ["url", "updated_at"]))
)


def _dispatch(*values: object) -> Dispatch:
    events, deliveries = len(field_names(Event)), len(field_names(Delivery))
    return Dispatch(
        Event(*values[:events]),  # type: ignore[arg-type]
        Delivery(*values[events : events + deliveries]),  # type: ignore[arg-type]
        Endpoint(*values[events + deliveries :]),  # type: ignore[arg-type]
    )


_DISPATCH = Statement(
    select(*columns_of(_events, Event), *columns_of(_deliveries, Delivery), *columns_of(_endpoints, Endpoint))
    .select_from(
        _deliveries.join(_events, _events.c.id == _deliveries.c.event_id).join(
            _endpoints, _endpoints.c.id == _deliveries.c.endpoint_id
        )
    )
    .where(_deliveries.c.event_id == bindparam("event_id"), _deliveries.c.endpoint_id == bindparam("endpoint_id")),
    _dispatch,
)
_UPDATE_DELIVERY = Write(
    update(_deliveries)
    .where(_deliveries.c.event_id == bindparam("of_event"), _deliveries.c.endpoint_id == bindparam("of_endpoint"))
    .values(
        parameters_for(
            _deliveries, ["status", "attempts", "last_attempt_at", "delivered_at", "last_status_code", "last_error"]
        )
    )
)
_JOINED = _deliveries.join(_events, _events.c.id == _deliveries.c.event_id)


def _event_with_delivery(*values: object) -> EventWithDelivery:
    events = len(field_names(Event))
    return EventWithDelivery(Event(*values[:events]), Delivery(*values[events:]))  # type: ignore[arg-type]


_PAGE = {
    has_status: Statement(
        select(*columns_of(_events, Event), *columns_of(_deliveries, Delivery))
        .select_from(_JOINED)
        .where(
            _deliveries.c.merchant_id == bindparam("merchant_id"),
            *([_deliveries.c.status == bindparam("status")] if has_status else []),
        )
        .order_by(_deliveries.c.event_id.desc())
        .limit(bindparam("limit"))
        .offset(bindparam("offset")),
        _event_with_delivery,
    )
    for has_status in (False, True)
}
_COUNT = {
    has_status: Statement(
        select(func.count())
        .select_from(_deliveries)
        .where(
            _deliveries.c.merchant_id == bindparam("merchant_id"),
            *([_deliveries.c.status == bindparam("status")] if has_status else []),
        ),
        int,
    )
    for has_status in (False, True)
}
_EVENT = Statement(
    select(*columns_of(_events, Event)).where(
        _events.c.id == bindparam("event_id"), _events.c.merchant_id == bindparam("merchant_id")
    ),
    Event,
)
_EVENTS = {
    has_cursor: Statement(
        select(*columns_of(_events, Event))
        .where(
            _events.c.merchant_id == bindparam("merchant_id"),
            *([_events.c.id < bindparam("before_id")] if has_cursor else []),
        )
        .order_by(_events.c.id.desc())
        .limit(bindparam("limit")),
        Event,
    )
    for has_cursor in (False, True)
}
_OF_ORDER = Statement(
    select(*columns_of(_events, Event))
    .where(_events.c.order_id == bindparam("order_id"), _events.c.merchant_id == bindparam("merchant_id"))
    .order_by(_events.c.created_at, _events.c.id)
    .limit(1000),
    Event,
)
_DELIVERIES_OF_ORDER = Statement(
    select(*columns_of(_deliveries, Delivery))
    .select_from(_JOINED)
    .where(_events.c.order_id == bindparam("order_id"), _events.c.merchant_id == bindparam("merchant_id"))
    .order_by(_events.c.created_at, _events.c.id)
    .limit(1000),
    Delivery,
)


def endpoint_insertion(endpoint: Endpoint) -> tuple[Write, Parameters]:
    """Return the write that inserts an endpoint, for `Session.run_together`."""
    return _INSERT_ENDPOINT, values_of(endpoint)


def event_insertions(event: Event, correlation_id: str | None) -> list[tuple[Write, Parameters]]:
    """Return the writes that record an event, a delivery to each listening endpoint, and the jobs that deliver."""
    return [
        (_INSERT_EVENT, values_of(event)),
        (_INSERT_DELIVERIES, {"event_id": event.id, "merchant_id": event.merchant_id}),
        (
            _INSERT_DELIVERY_JOBS,
            {
                "event_id": event.id,
                "merchant_id": event.merchant_id,
                "arguments": {},
                "correlation_id": correlation_id,
                "created_at": event.created_at,
            },
        ),
    ]


def delivery_insertion(delivery: Delivery) -> tuple[Write, Parameters]:
    """Return the write that adds a delivery unless it is there already."""
    return _INSERT_DELIVERY, values_of(delivery)


def delivery_job(event_id: str, endpoint_id: str, *, job_id: str, now: datetime, correlation_id: str | None) -> Job:
    """Return a job that delivers an event to an endpoint again."""
    key = job_key(event_id, endpoint_id)
    return Job(job_id, DELIVER, key, {}, key, endpoint_id, now, 0, 0, False, False, None, correlation_id, now)


async def first_endpoint(reader: Reader, merchant_id: str) -> Endpoint | None:
    """Return a merchant's first endpoint: the one that `webhookUrl` sets."""
    return await reader.first(_ENDPOINT_OF, {"merchant_id": merchant_id})


async def set_url(session: Session, endpoint: Endpoint, url: str | None, *, now: datetime) -> None:
    """Point an endpoint elsewhere, or nowhere."""
    await session.run(
        _SET_URL, {"endpoint_id": endpoint.id, "owner": endpoint.merchant_id, "url": url, "updated_at": now}
    )


async def dispatch(reader: Reader, event_id: str, endpoint_id: str) -> Dispatch | None:
    """Return what one try needs, or None when event or endpoint are gone."""
    return await reader.first(_DISPATCH, {"event_id": event_id, "endpoint_id": endpoint_id})


def delivery_updating(delivery: Delivery) -> tuple[Write, Parameters]:
    """Return the write that stores where a delivery stands, for `Session.run_together`."""
    return _UPDATE_DELIVERY, {
        "of_event": delivery.event_id,
        "of_endpoint": delivery.endpoint_id,
        "status": delivery.status,
        "attempts": delivery.attempts,
        "last_attempt_at": delivery.last_attempt_at,
        "delivered_at": delivery.delivered_at,
        "last_status_code": delivery.last_status_code,
        "last_error": delivery.last_error,
    }


async def list_page(
    reader: Reader, merchant_id: str, status: DeliveryStatus | None, *, offset: int, limit: int
) -> tuple[list[EventWithDelivery], int]:
    """Return a page of a merchant's deliveries, newest event first, and how many there are in all."""
    parameters: dict[str, object] = {"merchant_id": merchant_id}
    if status is not None:
        parameters["status"] = status
    rows = await reader.all(_PAGE[status is not None], {**parameters, "offset": offset, "limit": limit})
    return rows, await reader.first(_COUNT[status is not None], parameters) or 0


async def event(reader: Reader, merchant_id: str, event_id: str) -> Event | None:
    """Return a merchant's event, or None."""
    return await reader.first(_EVENT, {"merchant_id": merchant_id, "event_id": event_id})


async def events_after(reader: Reader, merchant_id: str, *, before_id: str | None, limit: int) -> list[Event]:
    """Return a merchant's events, newest first, that come after `before_id` in that order."""
    parameters: dict[str, object] = {"merchant_id": merchant_id, "limit": limit}
    if before_id is not None:
        parameters["before_id"] = before_id
    return await reader.all(_EVENTS[before_id is not None], parameters)


async def events_of_order(reader: Reader, merchant_id: str, order_id: str) -> list[Event]:
    """Return an order's events, oldest first."""
    return await reader.all(_OF_ORDER, {"merchant_id": merchant_id, "order_id": order_id})


async def deliveries_of_order(reader: Reader, merchant_id: str, order_id: str) -> list[Delivery]:
    """Return the deliveries of an order's events."""
    return await reader.all(_DELIVERIES_OF_ORDER, {"merchant_id": merchant_id, "order_id": order_id})
