"""Orders: create, list, read, pay, capture, cancel, and what happened to one."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Annotated, Final, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from loop.domain.errors import not_found
from loop.domain.money import Money
from loop.domain.orders import Order, OrderStatus
from loop.domain.transactions import Transaction, TransactionStatus, TransactionType
from loop.server.auth import acting, authenticate
from loop.server.idempotency import Created, create_once, once
from loop.server.operations import CURSOR, ORDER_FILTER, Link, Operation, describes
from loop.server.payment_methods import Country, PaymentMethod, ProcessorName
from loop.server.request import (
    Amount,
    Body,
    Currency,
    Email,
    Text255,
    Time,
    WebUrl,
    context_of,
    cursor_of,
    json_response,
    parse,
    path_id,
    query_of,
    read_json,
    time_text,
    validation_failed,
)
from loop.server.shapes import OrderJson, OrderListJson, PaymentJson, order_filter_of, order_json, payment_json
from loop.storage import orders as order_rows
from loop.storage import transactions as transaction_rows
from loop.workflows import captures, orders, payments, timeline
from loop.workflows.attempts import PayRequest
from loop.workflows.context import Context
from loop.workflows.idempotency import Claim
from loop.workflows.orders import NewOrder

WAIT_S: Final = 10
MAX_WAIT_S: Final = 30
MAX_EXPIRY: Final = timedelta(days=366)

Wait = Annotated[int, Field(ge=0, le=MAX_WAIT_S)]
"""Whole seconds that an answer may wait for the processor."""

PAID: Final = frozenset({OrderStatus.CAPTURED, OrderStatus.PARTIALLY_REFUNDED, OrderStatus.REFUNDED})


class CreateOrder(Body):
    """The body of `POST /v1/orders`."""

    amount: Amount
    currency: Currency = "USD"
    external_id: Text255 | None = None
    customer_id: Text255 | None = None
    customer_email: Email | None = None
    description: Annotated[str, Field(max_length=1000)] | None = None
    metadata: dict[str, object] | None = None
    return_url: WebUrl | None = None
    cancel_url: WebUrl | None = None
    capture_method: Literal["automatic", "manual"] = "automatic"
    country: Country | None = None
    expires_at: Time | None = None


class PayOrder(Body):
    """The body of `POST /v1/orders/:id/pay`; `wait` in seconds."""

    processor: ProcessorName | None = None
    payment_method: PaymentMethod | None = None
    return_url: WebUrl | None = None
    retry: bool = False
    wait: Wait = WAIT_S


class CaptureOrder(Body):
    """The body of `POST /v1/orders/:id/capture`; without an amount all that is authorized is taken."""

    amount: Amount | None = None


class CancelOrder(Body):
    """The body of `POST /v1/orders/:id/cancel`."""

    reason: Annotated[str, Field(max_length=500)] | None = None


class TransactionJson(TypedDict):
    """One movement of an order's money; amount in minor units."""

    id: str
    orderId: str
    type: TransactionType
    amount: int
    status: TransactionStatus
    processor: str
    processorTransactionId: str | None
    errorCode: str | None
    errorMessage: str | None
    createdAt: str


class EntryJson(TypedDict):
    """One thing that happened to an order; `details` depends on `kind`."""

    at: str
    kind: Literal["attempt", "transaction", "refund", "dispute", "event", "delivery"]
    title: str
    details: Mapping[str, object]


_OF_ORDER: Final = {"order_id": "/id"}
_NEXT: Final = [
    Link(name, _OF_ORDER)
    for name in (
        "getOrder",
        "payOrder",
        "captureOrder",
        "cancelOrder",
        "refundOrder",
        "listRefunds",
        "listDisputes",
        "listTransactions",
        "getTimeline",
    )
]
_PAY_ERRORS: Final = (
    "invalid_status",
    "order_expired",
    "no_processor",
    "no_eligible_processor",
    "attempts_exhausted",
    "previous_attempt_open",
    "retry_pointless",
    "processor_removed",
)
_CAPTURE_ERRORS: Final = ("invalid_status", "operation_in_progress", "unsupported_by_processor", "processor_removed")


@describes(
    Operation(
        "createOrder",
        answer=OrderJson,
        status=201,
        body=CreateOrder,
        errors=("invalid_currency",),
        is_keyed=True,
        example={"amount": 4999, "currency": "USD", "externalId": "order-1001"},
        links=_NEXT,
    )
)
async def create(request: Request) -> Response:
    """Create an order; under an Idempotency-Key only once."""
    caller = await authenticate(request)
    content = await read_json(request)
    wanted = parse(CreateOrder, content)
    context = acting(request, caller)

    async def creation() -> Created:
        _require_future(context, wanted.expires_at)
        order, writes = orders.creating(context, caller.merchant_id, _new_order(wanted))
        return writes, order_json(order)

    return await create_once(request, caller, content=content, creation=creation)


def _require_future(context: Context, expires_at: datetime | None) -> None:
    if expires_at is None:
        return
    now = context.now()
    if not now < expires_at <= now + MAX_EXPIRY:
        raise validation_failed(("expiresAt", f"must be a time within the next {MAX_EXPIRY.days} days"))


def _new_order(wanted: CreateOrder) -> NewOrder:
    return NewOrder(
        amount=Money(wanted.amount, wanted.currency),
        external_id=wanted.external_id,
        customer_id=wanted.customer_id,
        customer_email=wanted.customer_email,
        description=wanted.description,
        metadata=wanted.metadata,
        return_url=wanted.return_url,
        cancel_url=wanted.cancel_url,
        is_manual_capture=wanted.capture_method == "manual",
        country=wanted.country,
        expires_at=wanted.expires_at,
    )


@describes(
    Operation(
        "listOrders",
        answer=OrderListJson,
        query={**CURSOR, **ORDER_FILTER},
        links=[Link("getOrder", {"order_id": "/data/0/id"})],
    )
)
async def list_orders(request: Request) -> Response:
    """List a merchant's orders, newest first, from a cursor on."""
    caller = await authenticate(request)
    cursor = cursor_of(request)
    order_filter = replace(order_filter_of(query_of(request)), is_test=caller.is_test)
    async with context_of(request).database.reading() as reader:
        found = await order_rows.list_after(
            reader, caller.merchant_id, order_filter, before_id=cursor.before_id, limit=cursor.limit + 1
        )
    page = found[: cursor.limit]
    has_more = len(found) > len(page)
    return json_response(
        {
            "data": [order_json(order) for order in page],
            "hasMore": has_more,
            "nextCursor": page[-1].id if has_more else None,
        }
    )


@describes(Operation("getOrder", answer=OrderJson))
async def get(request: Request) -> Response:
    """Answer one order."""
    caller = await authenticate(request)
    order_id = path_id(request, "order_id", noun="order")
    return json_response(order_json(await orders.get(acting(request, caller), caller.merchant_id, order_id)))


@describes(
    Operation(
        "payOrder",
        answer=PaymentJson,
        body=PayOrder,
        errors=_PAY_ERRORS,
        is_keyed=True,
        example={"paymentMethod": {"type": "card", "token": "tok_approve"}},
    )
)
async def pay(request: Request) -> Response:
    """Start a payment and answer what is true of it after `wait` seconds at most."""
    caller = await authenticate(request)
    order_id = path_id(request, "order_id", noun="order")
    content = await read_json(request)
    wanted = parse(PayOrder, content)
    method = wanted.payment_method or PaymentMethod(type="card")
    pay_request = PayRequest(
        payment_method=method.type,
        token=method.token,
        tokens=method.tokens or {},
        brand=method.brand,
        country=method.country,
        processor=wanted.processor,
        is_retry=wanted.retry,
        return_url=wanted.return_url,
    )
    context = acting(request, caller)

    async def run(claim: Claim | None) -> Response:
        if claim is not None and claim.began_at is not None:
            in_hand = await orders.get_in_hand(context, caller.merchant_id, order_id)
            if in_hand.attempt is not None and in_hand.attempt.created_at >= claim.began_at:
                return json_response(payment_json(in_hand))
        paid = await payments.pay(context, caller.merchant_id, order_id, request=pay_request, wait_s=wanted.wait)
        return json_response(payment_json(paid))

    return await once(request, caller, content=content, operation=run)


@describes(
    Operation(
        "captureOrder",
        answer=OrderJson,
        body=CaptureOrder,
        errors=(*_CAPTURE_ERRORS, "capture_failed", "capture_exceeds_authorized"),
        is_keyed=True,
        example={"amount": 4999},
    )
)
async def capture(request: Request) -> Response:
    """Take an authorized order's money."""
    caller = await authenticate(request)
    order_id = path_id(request, "order_id", noun="order")
    content = await read_json(request)
    wanted = parse(CaptureOrder, content)
    context = acting(request, caller)

    async def run(claim: Claim | None) -> Response:
        order = await _order_if(context, caller.merchant_id, order_id, claim=claim, statuses=PAID)
        if order is None:
            order = await captures.capture(
                context, caller.merchant_id, order_id, amount_minor=wanted.amount, wait_s=WAIT_S
            )
        return json_response(order_json(order))

    return await once(request, caller, content=content, operation=run)


@describes(
    Operation(
        "cancelOrder",
        answer=OrderJson,
        body=CancelOrder,
        errors=(*_CAPTURE_ERRORS, "cancel_failed"),
        is_keyed=True,
        example={"reason": "out of stock"},
    )
)
async def cancel(request: Request) -> Response:
    """Cancel an order, at the processor first."""
    caller = await authenticate(request)
    order_id = path_id(request, "order_id", noun="order")
    content = await read_json(request)
    wanted = parse(CancelOrder, content)
    context = acting(request, caller)

    async def run(claim: Claim | None) -> Response:
        ended = frozenset({OrderStatus.CANCELLED})
        order = await _order_if(context, caller.merchant_id, order_id, claim=claim, statuses=ended)
        if order is None:
            order = await captures.cancel(context, caller.merchant_id, order_id, reason=wanted.reason, wait_s=WAIT_S)
        return json_response(order_json(order))

    return await once(request, caller, content=content, operation=run)


async def _order_if(
    context: Context, merchant_id: str, order_id: str, *, claim: Claim | None, statuses: frozenset[OrderStatus]
) -> Order | None:
    """Return the order if an earlier run of the request has already brought it where it was to go."""
    if claim is None or claim.began_at is None:
        return None
    order = await orders.get(context, merchant_id, order_id)
    return order if order.status in statuses and order.updated_at >= claim.began_at else None


@describes(Operation("listTransactions", answer=list[TransactionJson]))
async def list_transactions(request: Request) -> Response:
    """List an order's money movements, newest first."""
    caller = await authenticate(request)
    order_id = path_id(request, "order_id", noun="order")
    async with context_of(request).database.reading() as reader:
        if await order_rows.get(reader, caller.merchant_id, order_id, is_test=caller.is_test) is None:
            raise not_found("order")
        found = await transaction_rows.of_order(reader, caller.merchant_id, order_id)
    return json_response([_transaction_json(transaction) for transaction in found])


def _transaction_json(transaction: Transaction) -> TransactionJson:
    return {
        "id": transaction.id,
        "orderId": transaction.order_id,
        "type": transaction.type,
        "amount": transaction.amount_minor,
        "status": transaction.status,
        "processor": transaction.processor,
        "processorTransactionId": transaction.processor_transaction_id,
        "errorCode": transaction.error_code,
        "errorMessage": transaction.error_message,
        "createdAt": time_text(transaction.created_at),
    }


@describes(Operation("getTimeline", answer=list[EntryJson]))
async def get_timeline(request: Request) -> Response:
    """List everything that happened to an order, in time order."""
    caller = await authenticate(request)
    order_id = path_id(request, "order_id", noun="order")
    _, entries = await timeline.of_order(acting(request, caller), caller.merchant_id, order_id)
    return json_response(
        [{"at": time_text(e.at), "kind": e.kind, "title": e.title, "details": e.details} for e in entries]
    )


routes = [
    Route("/v1/orders", create, methods=["POST"]),
    Route("/v1/orders/{order_id}", get, methods=["GET"]),
    Route("/v1/orders/{order_id}/pay", pay, methods=["POST"]),
    Route("/v1/orders", list_orders, methods=["GET"]),
    Route("/v1/orders/{order_id}/capture", capture, methods=["POST"]),
    Route("/v1/orders/{order_id}/cancel", cancel, methods=["POST"]),
    Route("/v1/orders/{order_id}/transactions", list_transactions, methods=["GET"]),
    Route("/v1/orders/{order_id}/timeline", get_timeline, methods=["GET"]),
]
