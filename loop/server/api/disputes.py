"""Disputes: what customers' banks took back, or ask about, of one order."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from loop.domain.disputes import Dispute, DisputeStatus
from loop.domain.errors import not_found
from loop.server.auth import authenticate
from loop.server.operations import Operation, describes
from loop.server.request import context_of, json_response, path_id, time_text
from loop.storage import disputes as dispute_rows
from loop.storage import orders as order_rows


class DisputeJson(TypedDict):
    """A dispute; `amount` in minor units of its own currency."""

    disputeId: str
    orderId: str
    status: DisputeStatus
    amount: int
    currency: str
    reason: str | None
    dueBy: str | None
    processor: str
    processorDisputeId: str
    createdAt: str
    updatedAt: str


@describes(Operation("listDisputes", answer=list[DisputeJson]))
async def list_disputes(request: Request) -> Response:
    """List an order's disputes, newest first."""
    caller = await authenticate(request)
    order_id = path_id(request, "order_id", noun="order")
    async with context_of(request).database.reading() as reader:
        if await order_rows.get(reader, caller.merchant_id, order_id, is_test=caller.is_test) is None:
            raise not_found("order")
        found = await dispute_rows.of_order(reader, caller.merchant_id, order_id)
    return json_response([_dispute_json(row) for row in found])


def _dispute_json(row: Dispute) -> DisputeJson:
    return {
        "disputeId": row.id,
        "orderId": row.order_id,
        "status": row.status,
        "amount": row.amount_minor,
        "currency": row.currency,
        "reason": row.reason,
        "dueBy": time_text(row.due_by),
        "processor": row.processor,
        "processorDisputeId": row.processor_reference,
        "createdAt": time_text(row.created_at),
        "updatedAt": time_text(row.updated_at),
    }


routes = [Route("/v1/orders/{order_id}/disputes", list_disputes, methods=["GET"])]
