"""Webhooks out: what was sent to a merchant, how each try of it went, and sending it again."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from loop.domain.deliveries import DeliveryAttempt, DeliveryStatus
from loop.domain.errors import not_found
from loop.domain.events import EventType
from loop.server.auth import acting, authenticate
from loop.server.dashboard_shapes import PaginationJson, pagination_json
from loop.server.idempotency import once
from loop.server.operations import PAGE, Link, Operation, describes
from loop.server.request import (
    Body,
    Text255,
    context_of,
    json_response,
    page_of,
    parse,
    path_id,
    query_of,
    read_json,
    time_text,
    validation_failed,
)
from loop.storage import deliveries as delivery_rows
from loop.storage import webhooks as webhook_rows
from loop.storage.deliveries import EventWithDelivery
from loop.workflows import deliveries
from loop.workflows.idempotency import Claim


class Destination(Body):
    """Where to send an event again: one endpoint, or all that hear of it."""

    endpoint_id: Text255 | None = None


class WebhookJson(TypedDict):
    """An event with its delivery to one endpoint."""

    id: str
    orderId: str | None
    eventType: EventType
    endpointId: str
    status: DeliveryStatus
    attempts: int
    lastAttemptAt: str | None
    lastStatusCode: int | None
    lastError: str | None
    nextAttemptAt: str | None
    deliveredAt: str | None
    createdAt: str


class WebhookPageJson(TypedDict):
    """A page of events with their deliveries, newest first."""

    data: list[WebhookJson]
    pagination: PaginationJson


class TryJson(TypedDict):
    """How one try of a delivery went."""

    endpointId: str
    attempt: int
    statusCode: int | None
    durationMs: int
    address: str | None
    answer: str | None
    error: str | None
    createdAt: str


class DoneJson(TypedDict):
    """It is done."""

    success: bool


_QUERY: Final = {**PAGE, "status": {"type": "string", "enum": list(DeliveryStatus)}}
_NEXT: Final = [Link(name, {"event_id": "/data/0/id"}) for name in ("listWebhookAttempts", "retryWebhook")]


@describes(Operation("listWebhooks", answer=WebhookPageJson, query=_QUERY, links=_NEXT))
async def list_page(request: Request) -> Response:
    """Answer a page of the merchant's events with their deliveries, newest first."""
    caller = await authenticate(request)
    page, status = page_of(request), _status_of(request)
    async with context_of(request).database.reading() as reader:
        rows, total = await delivery_rows.list_page(
            reader, caller.merchant_id, status, offset=page.offset, limit=page.limit, is_test=caller.is_test
        )
    return json_response({"data": [webhook_json(row) for row in rows], "pagination": pagination_json(page, total)})


def _status_of(request: Request) -> DeliveryStatus | None:
    status = query_of(request).get("status")
    if status is None:
        return None
    if status not in list(DeliveryStatus):
        raise validation_failed(("status", f"must be one of {', '.join(DeliveryStatus)}"))
    return DeliveryStatus(status)


@describes(Operation("listWebhookAttempts", answer=list[TryJson]))
async def list_attempts(request: Request) -> Response:
    """Answer how each try of an event's deliveries went, newest first, as far as that is kept."""
    caller = await authenticate(request)
    event_id = path_id(request, "event_id", noun="event")
    async with context_of(request).database.reading() as reader:
        if await webhook_rows.event(reader, caller.merchant_id, event_id, is_test=caller.is_test) is None:
            raise not_found("event")
        attempts = await delivery_rows.attempts_of(reader, caller.merchant_id, event_id)
    return json_response([attempt_json(attempt) for attempt in attempts])


@describes(
    Operation(
        "retryWebhook",
        answer=DoneJson,
        body=Destination,
        errors=("no_endpoint", "invalid_status"),
        is_keyed=True,
        example={},
    )
)
async def retry(request: Request) -> Response:
    """Send an event again, delivered before or not."""
    caller = await authenticate(request)
    event_id = path_id(request, "event_id", noun="event")
    content = await read_json(request)
    destination = parse(Destination, content)
    context = acting(request, caller)

    async def run(_: Claim | None) -> Response:
        await deliveries.retry(context, caller.merchant_id, event_id, endpoint_id=destination.endpoint_id)
        return json_response({"success": True})

    return await once(request, caller, content=content, operation=run)


def webhook_json(row: EventWithDelivery) -> WebhookJson:
    """Return an event with its delivery to one endpoint."""
    event, delivery = row.event, row.delivery
    is_waiting = delivery.status is DeliveryStatus.PENDING
    return {
        "id": event.id,
        "orderId": event.order_id,
        "eventType": event.event_type,
        "endpointId": delivery.endpoint_id,
        "status": delivery.status,
        "attempts": delivery.attempts,
        "lastAttemptAt": time_text(delivery.last_attempt_at),
        "lastStatusCode": delivery.last_status_code,
        "lastError": delivery.last_error,
        "nextAttemptAt": time_text(delivery.next_attempt_at) if is_waiting else None,
        "deliveredAt": time_text(delivery.delivered_at),
        "createdAt": time_text(event.created_at),
    }


def attempt_json(attempt: DeliveryAttempt) -> TryJson:
    """Return how one try of a delivery went."""
    return {
        "endpointId": attempt.endpoint_id,
        "attempt": attempt.number,
        "statusCode": attempt.status_code,
        "durationMs": attempt.duration_ms,
        "address": attempt.address,
        "answer": attempt.answer,
        "error": attempt.error,
        "createdAt": time_text(attempt.tried_at),
    }


routes: Final = [
    Route("/api/webhooks", list_page, methods=["GET"]),
    Route("/api/webhooks/{event_id}/attempts", list_attempts, methods=["GET"]),
    Route("/api/webhooks/{event_id}/retry", retry, methods=["POST"]),
]
