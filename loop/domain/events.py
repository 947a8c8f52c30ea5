"""Events: what merchants are told, by name, and the body that every delivery of one carries."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache


class EventType(StrEnum):
    """`noun.past`, as merchants' endpoints receive it."""

    ORDER_CREATED = "order.created"
    PAYMENT_PROCESSING = "payment.processing"
    PAYMENT_REQUIRES_ACTION = "payment.requires_action"
    PAYMENT_AUTHORIZED = "payment.authorized"
    PAYMENT_CAPTURED = "payment.captured"
    PAYMENT_FAILED = "payment.failed"
    PAYMENT_CANCELLED = "payment.cancelled"
    PAYMENT_LATE_SUCCESS = "payment.late_success"
    REFUND_CREATED = "refund.created"
    REFUND_PROCESSED = "refund.processed"
    REFUND_FAILED = "refund.failed"
    DISPUTE_OPENED = "dispute.opened"
    DISPUTE_WON = "dispute.won"
    DISPUTE_LOST = "dispute.lost"
    CHECKOUT_COMPLETED = "checkout.completed"
    CHECKOUT_EXPIRED = "checkout.expired"
    ENDPOINT_DISABLED = "endpoint.disabled"
    ENDPOINT_TESTED = "endpoint.tested"
    RECONCILIATION_MISMATCH = "reconciliation.mismatch"


@dataclass(frozen=True, slots=True)
class Event:
    """One row of webhook_events; `body` is the exact text that every delivery sends.

    `is_test` is its order's, None for what concerns both modes. `correlation_id` is that of the request or job which it
    happened in, None where it happened by the clock or by an operator's command.
    """

    id: str
    merchant_id: str
    order_id: str | None
    event_type: EventType
    body: str
    created_at: datetime
    is_test: bool | None = None
    correlation_id: str | None = None


@dataclass(frozen=True, slots=True)
class EventSubject:
    """The order fields that every body carries; amount in minor units.

    `seq` grows with each change of the order, so that of two events the one with the higher number is newer.
    """

    order_id: str | None
    external_id: str | None
    amount_minor: int | None
    currency: str | None
    status: str | None
    processor: str | None
    seq: int | None = None
    is_test: bool | None = None


NO_ORDER = EventSubject(None, None, None, None, None, None)
"""The subject of an event that is about no order."""


@lru_cache(maxsize=64)
def timestamp(moment: datetime) -> str:
    """Return ISO 8601 UTC with milliseconds and `Z`, the one form of time in Loop's JSON."""
    at = moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    return f"{at.isoformat(timespec='milliseconds')[:-6]}Z"


def body_of(
    event_id: str,
    event_type: EventType,
    *,
    subject: EventSubject,
    created_at: datetime,
    payload: Mapping[str, object],
) -> dict[str, object]:
    """Return what an event says; its JSON text is made once and sent byte for byte on every try."""
    return {
        "id": event_id,
        "eventType": event_type,
        "orderId": subject.order_id,
        "externalId": subject.external_id,
        "amount": subject.amount_minor,
        "currency": subject.currency,
        "status": subject.status,
        "processor": subject.processor,
        "createdAt": timestamp(created_at),
        "seq": subject.seq,
        "testMode": subject.is_test,
        "payload": payload,
    }
