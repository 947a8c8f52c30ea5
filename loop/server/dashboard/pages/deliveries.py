"""Deliveries: what was sent to which endpoint, how each try of it went, and sending it again."""

from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Final, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loop.domain.deliveries import Delivery, DeliveryStatus
from loop.domain.errors import ErrorKind, LoopError, invalid, not_found
from loop.domain.events import Event, EventType
from loop.domain.ids import PREFIX_ENDPOINT
from loop.server.api.webhooks import attempt_json, webhook_json
from loop.server.dashboard.frames import Page, acts, page_routes, render
from loop.server.dashboard.keyed_forms import done_once
from loop.server.dashboard.listing import PAGE_ROWS, page_after
from loop.server.dashboard.viewers import Sent, Viewer, acting_as, new_form_key
from loop.server.errors import STATUS_OF
from loop.server.pages import see_other
from loop.server.request import context_of, cursor_of, path_id, query_of, validation_failed
from loop.storage import deliveries as rows
from loop.storage import webhooks
from loop.storage.deliveries import DeliveryFilter, EventWithDelivery
from loop.workflows import deliveries
from loop.workflows.context import Context

HERE: Final = "/dashboard/webhooks/deliveries"
NOTICES: Final = {
    "tested": "The test was sent. It says nothing; whatever the endpoint answers is shown below.",
    "resent": "The event is being sent again.",
}
SOON: Final = timedelta(seconds=60)
"""A page whose next try is due so soon looks again by itself."""

_BETWEEN: Final = f"_{PREFIX_ENDPOINT}_"
FILTERS: Final[tuple[str, ...]] = ("status", "endpoint", "type")

W = TypeVar("W", DeliveryStatus, EventType)


@dataclass(frozen=True, slots=True)
class ListedDelivery:
    """A row of the list; its id, the event's and the endpoint's, is the cursor."""

    found: EventWithDelivery

    @property
    def id(self) -> str:
        """The ids of both, which sort by time."""
        return f"{self.found.event.id}_{self.found.delivery.endpoint_id}"


def _before(cursor: str | None) -> tuple[str, str] | None:
    if cursor is None:
        return None
    event_id, between, rest = cursor.partition(_BETWEEN)
    if not between:
        raise validation_failed(("cursor", "must be a nextCursor that a list has answered"))
    return event_id, f"{PREFIX_ENDPOINT}_{rest}"


def _one_of(words: type[W], name: str, value: str | None) -> W | None:
    if value is not None and value not in list(words):
        raise validation_failed((name, f"must be one of {', '.join(words)}"))
    return None if value is None else words(value)


async def show(request: Request, viewer: Viewer) -> Page:
    """Show a page of deliveries, newest event first."""
    query = query_of(request)
    cursor = cursor_of(request).before_id
    wanted = DeliveryFilter(
        is_test=viewer.is_test,
        status=_one_of(DeliveryStatus, "status", query.get("status")),
        endpoint_id=query.get("endpoint"),
        event_type=_one_of(EventType, "type", query.get("type")),
    )
    async with context_of(request).database.reading() as reader:
        found = await rows.list_after(reader, viewer.merchant_id, wanted, before=_before(cursor), limit=PAGE_ROWS + 1)
        endpoints = await webhooks.endpoints_of(reader, viewer.merchant_id)
    given = {name: query[name] for name in FILTERS if name in query}
    page = page_after([ListedDelivery(each) for each in found], given, before_id=cursor)
    values = {
        "page": page,
        "addresses": {each.id: each.url for each in endpoints if each.url},
        "statuses": list(DeliveryStatus),
        "event_types": list(EventType),
    }
    return Page("deliveries.html", "webhooks", values, page.json(lambda row: webhook_json(row.found)))


def _ids(request: Request) -> tuple[str, str]:
    return path_id(request, "event_id", noun="delivery"), path_id(request, "endpoint_id", noun="delivery")


async def _found(context: Context, viewer: Viewer, event_id: str, endpoint_id: str) -> tuple[Event, Delivery]:
    async with context.database.reading() as reader:
        event = await webhooks.event(reader, viewer.merchant_id, event_id, is_test=viewer.is_test)
        of_event = [] if event is None else await rows.of_event(reader, viewer.merchant_id, event_id)
    delivery = next((each for each in of_event if each.endpoint_id == endpoint_id), None)
    if event is None or delivery is None:
        raise not_found("delivery")
    return event, delivery


async def show_one(request: Request, viewer: Viewer, *, problem: LoopError | None = None) -> Page:
    """Show one delivery with its tries and the exact body, or, after a refusal, the same with what was wrong."""
    context = acting_as(request, viewer)
    event, delivery = await _found(context, viewer, *_ids(request))
    async with context.database.reading() as reader:
        endpoint = await webhooks.endpoint(reader, viewer.merchant_id, delivery.endpoint_id)
        tries = [
            each
            for each in await rows.attempts_of(reader, viewer.merchant_id, event.id)
            if each.endpoint_id == delivery.endpoint_id
        ]
    is_waiting = delivery.status is DeliveryStatus.PENDING
    next_at = delivery.next_attempt_at if is_waiting else None
    values = {
        "event": event,
        "delivery": delivery,
        "endpoint": endpoint,
        "tries": tries,
        "next_at": next_at,
        "is_under_way": is_waiting and (next_at is None or next_at - context.now() <= SOON),
        "kept_days": context.settings.keep_attempts_days,
        "problem": problem,
        "notice": NOTICES.get(query_of(request).get("notice", "")) if problem is None else None,
        "new_key": partial(new_form_key, context),
    }
    told = {
        **webhook_json(EventWithDelivery(event, delivery)),
        "correlationId": event.correlation_id,
        "tries": [attempt_json(each) for each in tries],
        "body": orjson.loads(event.body),
    }
    return Page("delivery.html", "webhooks", values, told, 200 if problem is None else STATUS_OF[problem.kind])


async def resend(request: Request, sent: Sent) -> Response:
    """Send a delivery again, delivered before or not, once for each form that was shown."""
    event_id, endpoint_id = _ids(request)

    async def send(context: Context) -> str:
        await deliveries.retry(context, sent.viewer.merchant_id, event_id, endpoint_id=endpoint_id)
        return f"{HERE}/{event_id}/{endpoint_id}?notice=resent"

    try:
        await _found(acting_as(request, sent.viewer), sent.viewer, event_id, endpoint_id)
        return see_other(await done_once(request, sent, doing=send))
    except LoopError as error:
        if error.kind is ErrorKind.NOT_FOUND:
            error = invalid("no_endpoint", "The endpoint was removed, so nothing can be sent to it.")
        return render(await show_one(request, sent.viewer, problem=error), sent.viewer)


_ONE: Final = f"{HERE}/{{event_id}}/{{endpoint_id}}"
routes: Final[list[Route]] = [
    *page_routes(HERE, show),
    *page_routes(_ONE, show_one),
    Route(f"{_ONE}/resend", acts(resend), methods=["POST"]),
]
