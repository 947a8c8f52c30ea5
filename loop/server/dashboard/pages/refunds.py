"""Refunds: the list of what was given back, of all orders."""

from typing import Final

from starlette.requests import Request
from starlette.routing import Route

from loop.domain.refunds import RefundStatus
from loop.server.dashboard.frames import Page, page_routes
from loop.server.dashboard.listing import listed
from loop.server.dashboard.viewers import Viewer
from loop.server.request import context_of, time_text
from loop.storage import refunds
from loop.storage.refunds import ListedRefund


async def show(request: Request, viewer: Viewer) -> Page:
    """Show a page of refunds, newest first."""
    asked = listed(request, RefundStatus)
    async with context_of(request).database.reading() as reader:
        found = await refunds.list_after(
            reader,
            viewer.merchant_id,
            is_test=viewer.is_test,
            status=asked.status,
            before_id=asked.before_id,
            limit=asked.rows_to_read,
        )
    page = asked.page(found)
    values = {"page": page, "statuses": [each.value for each in RefundStatus]}
    return Page("refunds.html", "refunds", values, page.json(_json))


def _json(listed_row: ListedRefund) -> dict[str, object]:
    row = listed_row.refund
    return {
        "refundId": row.id,
        "orderId": row.order_id,
        "externalId": listed_row.external_id,
        "amount": row.amount_minor,
        "currency": row.currency,
        "status": row.status,
        "reason": row.reason,
        "errorCode": row.error_code,
        "createdAt": time_text(row.created_at),
        "updatedAt": time_text(row.updated_at),
    }


routes: Final[list[Route]] = page_routes("/dashboard/refunds", show)
