"""Events: what webhooks carried, for merchants who catch up."""

from collections.abc import Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from loop.domain.errors import not_found
from loop.domain.events import EventType
from loop.server.auth import authenticate
from loop.server.operations import CURSOR, Link, Operation, describes
from loop.server.request import context_of, cursor_of, json_text, path_id
from loop.storage import webhooks


class EventJson(TypedDict):
    """What a webhook carried; `payload` depends on `eventType`, and what is about no order has none of an order."""

    id: str
    eventType: EventType
    orderId: str | None
    externalId: str | None
    amount: int | None
    currency: str | None
    status: str | None
    processor: str | None
    createdAt: str
    seq: int | None
    testMode: bool | None
    payload: Mapping[str, object]


class EventListJson(TypedDict):
    """Events, newest first, from a cursor on."""

    data: list[EventJson]
    hasMore: bool
    nextCursor: str | None


_GET: Final = [Link("getEvent", {"event_id": "/data/0/id"})]


@describes(Operation("listEvents", answer=EventListJson, query=CURSOR, links=_GET))
async def list_events(request: Request) -> Response:
    """List a merchant's events, newest first, from a cursor on; each is the very text that its webhook carried."""
    caller = await authenticate(request)
    cursor = cursor_of(request)
    async with context_of(request).database.reading() as reader:
        found = await webhooks.events_after(
            reader,
            caller.merchant_id,
            before_id=cursor.before_id,
            limit=cursor.limit + 1,
            is_test=caller.is_test,
        )
    page = found[: cursor.limit]
    has_more = len(found) > len(page)
    end = json_text({"hasMore": has_more, "nextCursor": page[-1].id if has_more else None})
    return _raw_json(f'{{"data":[{",".join(event.body for event in page)}],{end[1:]}')


@describes(Operation("getEvent", answer=EventJson))
async def get(request: Request) -> Response:
    """Answer one event, as its webhook carried it."""
    caller = await authenticate(request)
    event_id = path_id(request, "event_id", noun="event")
    async with context_of(request).database.reading() as reader:
        event = await webhooks.event(reader, caller.merchant_id, event_id, is_test=caller.is_test)
    if event is None:
        raise not_found("event")
    return _raw_json(event.body)


def _raw_json(text: str) -> Response:
    return Response(text, media_type="application/json")


routes = [
    Route("/v1/events", list_events, methods=["GET"]),
    Route("/v1/events/{event_id}", get, methods=["GET"]),
]
