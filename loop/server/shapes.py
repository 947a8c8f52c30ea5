"""Shapes: the JSON of what several resources answer, and the filter of orders that several of them take."""

from collections.abc import Mapping
from typing import Final, Literal, NotRequired

from typing_extensions import TypedDict

from loop.domain.attempts import AttemptStatus
from loop.domain.declines import DeclineClass, unified
from loop.domain.money import MAX_AMOUNT_MINOR
from loop.domain.orders import Order, OrderStatus
from loop.server.request import moment, time_text, validation_failed, whole_number
from loop.storage.orders import OrderFilter, OrderInHand

MAX_FILTER_CHARACTERS: Final = 255
_STATUSES: Final = frozenset(status.value for status in OrderStatus)


class LastErrorJson(TypedDict):
    """Why the last attempt to pay an order failed."""

    code: str
    message: str | None


class OrderJson(TypedDict):
    """An order as merchants see it; amounts in minor units."""

    id: str
    externalId: str
    amount: int
    currency: str
    testMode: bool
    status: OrderStatus
    processor: str | None
    processorOrderId: str | None
    metadata: Mapping[str, object] | None
    createdAt: str
    updatedAt: str
    customerId: str | None
    customerEmail: str | None
    description: str | None
    returnUrl: str | None
    cancelUrl: str | None
    captureMethod: Literal["automatic", "manual"]
    amountAuthorized: int
    amountCaptured: int
    amountRefunded: int
    amountDisputed: int
    disputed: bool
    attemptCount: int
    lastError: LastErrorJson | None
    needsReview: bool
    expiresAt: str | None


class OrderListJson(TypedDict):
    """Orders, newest first, from a cursor on."""

    data: list[OrderJson]
    hasMore: bool
    nextCursor: str | None


class PaymentJson(TypedDict):
    """How the payment of an order stands: what the customer must do now, or why it failed."""

    orderId: str
    status: OrderStatus
    processor: str | None
    workflowId: str
    attempt: int
    redirectUrl: NotRequired[str]
    clientSecret: NotRequired[str]
    processorData: NotRequired[Mapping[str, object]]
    errorCode: NotRequired[str]
    errorMessage: NotRequired[str | None]
    declineCategory: NotRequired[DeclineClass | None]
    customerMessage: NotRequired[str]


def order_json(order: Order) -> OrderJson:
    """Return an order as merchants see it; amounts in minor units."""
    failure: LastErrorJson | None = None
    if order.last_error_code is not None:
        failure = {"code": order.last_error_code, "message": order.last_error_message}
    return {
        "id": order.id,
        "externalId": order.external_id,
        "amount": order.amount_minor,
        "currency": order.currency,
        "testMode": order.is_test,
        "status": order.status,
        "processor": order.processor,
        "processorOrderId": order.processor_order_id,
        "metadata": order.metadata,
        "createdAt": time_text(order.created_at),
        "updatedAt": time_text(order.updated_at),
        "customerId": order.customer_id,
        "customerEmail": order.customer_email,
        "description": order.description,
        "returnUrl": order.return_url,
        "cancelUrl": order.cancel_url,
        "captureMethod": "manual" if order.is_manual_capture else "automatic",
        "amountAuthorized": order.amount_authorized_minor,
        "amountCaptured": order.amount_captured_minor,
        "amountRefunded": order.amount_refunded_minor,
        "amountDisputed": order.amount_disputed_minor,
        "disputed": order.amount_disputed_minor > 0,
        "attemptCount": order.attempt_count,
        "lastError": failure,
        "needsReview": order.needs_review,
        "expiresAt": time_text(order.expires_at),
    }


def payment_json(in_hand: OrderInHand) -> dict[str, object]:
    """Return how the payment of an order stands: what the customer must do now, or why it failed."""
    order, attempt = in_hand.order, in_hand.attempt
    result: dict[str, object] = {
        "orderId": order.id,
        "status": order.status,
        "processor": order.processor,
        "workflowId": f"payment-{order.id}",
        "attempt": order.attempt_count,
    }
    if attempt is None:
        return result
    if order.status is OrderStatus.REQUIRES_ACTION and attempt.status is AttemptStatus.REQUIRES_ACTION:
        result.update(attempt.action or {})
    if order.status is OrderStatus.FAILED and attempt.error_code is not None:
        result["errorCode"] = attempt.error_code
        result["errorMessage"] = attempt.error_message
        result["declineCategory"] = attempt.decline_class
        result["customerMessage"] = unified(attempt.error_code).customer_message
    return result


def order_filter_of(query: Mapping[str, str]) -> OrderFilter:
    """Return the filter that a list's query asks for; raises `validation_failed`."""
    for name in ("processor", "currency", "externalId"):
        if len(query.get(name, "")) > MAX_FILTER_CHARACTERS:
            raise validation_failed((name, f"must have at most {MAX_FILTER_CHARACTERS} characters"))
    status = query.get("status")
    if status is not None and status not in _STATUSES:
        raise validation_failed(("status", f"must be one of {', '.join(OrderStatus)}"))
    currency = query.get("currency")
    return OrderFilter(
        status=status,
        processor=query.get("processor"),
        currency=None if currency is None else currency.upper(),
        external_id=query.get("externalId"),
        created_from=moment(query, "createdFrom"),
        created_to=moment(query, "createdTo"),
        amount_min=whole_number(query, "amountMin", low=0, high=MAX_AMOUNT_MINOR),
        amount_max=whole_number(query, "amountMax", low=0, high=MAX_AMOUNT_MINOR),
    )
