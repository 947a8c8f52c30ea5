"""Disputes: the list of what customers' banks take back, or ask about."""

from typing import Final

from starlette.requests import Request
from starlette.routing import Route

from loop.domain.disputes import DisputeStatus
from loop.server.dashboard.frames import Page, page_routes
from loop.server.dashboard.listing import listed
from loop.server.dashboard.viewers import Viewer
from loop.server.request import context_of, time_text
from loop.storage import disputes
from loop.storage.disputes import ListedDispute


async def show(request: Request, viewer: Viewer) -> Page:
    """Show a page of disputes, newest first."""
    asked = listed(request, DisputeStatus)
    async with context_of(request).database.reading() as reader:
        found = await disputes.list_after(
            reader,
            viewer.merchant_id,
            is_test=viewer.is_test,
            status=asked.status,
            before_id=asked.before_id,
            limit=asked.rows_to_read,
        )
    page = asked.page(found)
    values = {"page": page, "statuses": [each.value for each in DisputeStatus]}
    return Page("disputes.html", "disputes", values, page.json(_json))


def _json(listed_row: ListedDispute) -> dict[str, object]:
    row = listed_row.dispute
    return {
        "disputeId": row.id,
        "orderId": row.order_id,
        "externalId": listed_row.external_id,
        "amount": row.amount_minor,
        "currency": row.currency,
        "status": row.status,
        "reason": row.reason,
        "dueBy": time_text(row.due_by),
        "processor": row.processor,
        "processorDisputeId": row.processor_reference,
        "createdAt": time_text(row.created_at),
        "updatedAt": time_text(row.updated_at),
    }


routes: Final[list[Route]] = page_routes("/dashboard/disputes", show)
