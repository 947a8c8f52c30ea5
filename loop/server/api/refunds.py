"""Refunds: give captured money back, and list what was given back."""

from typing import Annotated, Final

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from loop.domain.errors import not_found
from loop.domain.ids import PREFIX_REFUND
from loop.domain.refunds import PUBLIC_STATUS, PublicStatus, Refund
from loop.server.auth import acting, authenticate
from loop.server.idempotency import once
from loop.server.operations import Link, Operation, describes
from loop.server.request import Amount, Body, context_of, json_response, parse, path_id, read_json, time_text
from loop.storage import orders as order_rows
from loop.storage import refunds as refund_rows
from loop.workflows import refunds
from loop.workflows.context import Context
from loop.workflows.idempotency import Claim

WAIT_S: Final = 10
"""How long an answer may wait for the processor, in seconds."""


class RefundOrder(Body):
    """The body of `POST /v1/orders/:id/refund`; without an amount all that is left is given back."""

    amount: Amount | None = None
    reason: Annotated[str, Field(max_length=500)] | None = None


class RefundJson(TypedDict):
    """A refund as it is answered when it is made; amount in minor units."""

    refundId: str
    orderId: str
    amount: int
    status: PublicStatus


class ListedRefundJson(RefundJson):
    """A refund in the list of its order."""

    reason: str | None
    createdAt: str


@describes(
    Operation(
        "refundOrder",
        answer=RefundJson,
        status=201,
        body=RefundOrder,
        errors=("invalid_status", "refund_exceeds_captured", "unsupported_by_processor", "processor_removed"),
        is_keyed=True,
        example={"amount": 1000, "reason": "damaged"},
        links=[Link("listRefunds", {"order_id": "/orderId"})],
    )
)
async def create(request: Request) -> Response:
    """Give back captured money."""
    caller = await authenticate(request)
    order_id = path_id(request, "order_id", noun="order")
    content = await read_json(request)
    wanted = parse(RefundOrder, content)
    context = acting(request, caller)

    async def run(claim: Claim | None) -> Response:
        made = None
        if claim is not None and claim.began_at is not None:
            made = await _made(context, caller.merchant_id, claim.row.subject_id)
        if made is None:
            made = await refunds.refund(
                context,
                caller.merchant_id,
                order_id,
                amount_minor=wanted.amount,
                reason=wanted.reason,
                wait_s=WAIT_S,
                refund_id=None if claim is None else claim.row.subject_id,
            )
        return json_response(_answer(made), 201)

    subject_id = context.new_id(PREFIX_REFUND)
    return await once(request, caller, content=content, operation=run, subject_id=subject_id)


async def _made(context: Context, merchant_id: str, refund_id: str | None) -> Refund | None:
    """Return the refund that a run which died has made, if it came so far."""
    if refund_id is None:
        return None
    async with context.database.reading() as reader:
        found = await refund_rows.get(reader, refund_id)
    return found if found is not None and found.merchant_id == merchant_id else None


def _answer(refund: Refund) -> RefundJson:
    return {
        "refundId": refund.id,
        "orderId": refund.order_id,
        "amount": refund.amount_minor,
        "status": PUBLIC_STATUS[refund.status],
    }


@describes(Operation("listRefunds", answer=list[ListedRefundJson]))
async def list_refunds(request: Request) -> Response:
    """List an order's refunds, newest first."""
    caller = await authenticate(request)
    order_id = path_id(request, "order_id", noun="order")
    async with context_of(request).database.reading() as reader:
        if await order_rows.get(reader, caller.merchant_id, order_id, is_test=caller.is_test) is None:
            raise not_found("order")
        found = await refund_rows.of_order(reader, caller.merchant_id, order_id)
    return json_response(
        [{**_answer(row), "reason": row.reason, "createdAt": time_text(row.created_at)} for row in found]
    )


routes = [
    Route("/v1/orders/{order_id}/refund", create, methods=["POST"]),
    Route("/v1/orders/{order_id}/refunds", list_refunds, methods=["GET"]),
]
