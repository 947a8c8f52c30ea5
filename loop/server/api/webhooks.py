"""Webhooks out: what was sent to a merchant and how it went, and sending it again."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loop.domain.deliveries import DeliveryStatus
from loop.server.auth import authenticate
from loop.server.dashboard_shapes import pagination_json
from loop.server.request import (
    context_of,
    json_response,
    page_of,
    path_id,
    query_of,
    time_text,
    validation_failed,
)
from loop.storage import webhooks as webhook_rows
from loop.storage.webhooks import EventWithDelivery
from loop.workflows import webhooks


async def list_page(request: Request) -> Response:
    """Answer a page of the merchant's events with their deliveries, newest first."""
    caller = await authenticate(request)
    page, status = page_of(request), _status_of(request)
    async with context_of(request).database.reading() as reader:
        rows, total = await webhook_rows.list_page(
            reader, caller.merchant_id, status, offset=page.offset, limit=page.limit
        )
    return json_response({"data": [_webhook_json(row) for row in rows], "pagination": pagination_json(page, total)})


def _status_of(request: Request) -> DeliveryStatus | None:
    status = query_of(request).get("status")
    if status is None:
        return None
    if status not in list(DeliveryStatus):
        raise validation_failed(("status", f"must be one of {', '.join(DeliveryStatus)}"))
    return DeliveryStatus(status)


async def retry(request: Request) -> Response:
    """Send an event again, delivered before or not."""
    caller = await authenticate(request)
    await webhooks.retry(context_of(request), caller.merchant_id, path_id(request, "event_id", noun="event"))
    return json_response({"success": True})


def _webhook_json(row: EventWithDelivery) -> dict[str, object]:
    event, delivery = row.event, row.delivery
    return {
        "id": event.id,
        "orderId": event.order_id,
        "eventType": event.event_type,
        "status": delivery.status,
        "attempts": delivery.attempts,
        "lastAttemptAt": time_text(delivery.last_attempt_at),
        "lastStatusCode": delivery.last_status_code,
        "lastError": delivery.last_error,
        "deliveredAt": time_text(delivery.delivered_at),
        "createdAt": time_text(event.created_at),
    }


routes: Final = [
    Route("/api/webhooks", list_page, methods=["GET"]),
    Route("/api/webhooks/{event_id}/retry", retry, methods=["POST"]),
]
