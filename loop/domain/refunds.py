"""Refunds: money given back, the table of their states, and what they do to their order."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Literal

from loop.domain.errors import invalid
from loop.domain.events import EventType
from loop.domain.orders import Command, Fact, Next, Order, decide, require
from loop.domain.transactions import NewTransaction, TransactionStatus, TransactionType


class RefundStatus(StrEnum):
    """Where a refund stands; merchants see it through `PUBLIC_STATUS`."""

    SUBMITTING = "submitting"
    UNKNOWN = "unknown"
    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


PublicStatus = Literal["pending", "success", "failed"]
"""The words that merchants see."""

PUBLIC_STATUS: Mapping[RefundStatus, PublicStatus] = {
    RefundStatus.SUBMITTING: "pending",
    RefundStatus.UNKNOWN: "pending",
    RefundStatus.PENDING: "pending",
    RefundStatus.SUCCEEDED: "success",
    RefundStatus.FAILED: "failed",
}

TABLE: Mapping[tuple[RefundStatus, RefundStatus], bool] = {
    (current, claimed): {
        RefundStatus.SUBMITTING: claimed is not RefundStatus.SUBMITTING,
        RefundStatus.UNKNOWN: claimed in (RefundStatus.PENDING, RefundStatus.SUCCEEDED, RefundStatus.FAILED),
        RefundStatus.PENDING: claimed in (RefundStatus.SUCCEEDED, RefundStatus.FAILED),
        RefundStatus.SUCCEEDED: claimed is RefundStatus.FAILED,
        RefundStatus.FAILED: False,
    }[current]
    for current in RefundStatus
    for claimed in RefundStatus
}
"""(status, claimed status) -> whether it moves. A bank may return money after success, so success can still fail."""


@dataclass(frozen=True, slots=True)
class Refund:
    """One row of refunds; amount in minor units of the order's currency."""

    id: str
    merchant_id: str
    order_id: str
    attempt_id: str
    amount_minor: int
    currency: str
    status: RefundStatus
    reason: str | None
    processor_reference: str | None
    error_code: str | None
    error_message: str | None
    asked_count: int
    created_at: datetime
    updated_at: datetime
    is_reversal: bool = False
    """Whether it gives a second payment back: that money never was the order's, and its totals leave it out."""


@dataclass(frozen=True, slots=True)
class RefundOutcome:
    """What a processor says of a refund. `Unknown` is `status` UNKNOWN: it may have happened."""

    status: RefundStatus
    reference: str | None = None
    error_code: str | None = None
    error_message: str | None = None


@dataclass(frozen=True, slots=True)
class RefundChange:
    """What one outcome of a refund changes, to be written in one commit."""

    order: Order
    refund: Refund
    transactions: tuple[NewTransaction, ...] = ()
    events: tuple[EventType, ...] = ()
    ignored: str | None = None


def reserve(order: Order, amount_minor: int | None, *, now: datetime) -> tuple[Order, int]:
    """Return the order with a refund's amount reserved, and that amount; None asks for all that is left.

    What is left is captured, not being refunded and not disputed. Raises `invalid_status` when nothing is captured and
    `refund_exceeds_captured` when too little is left.
    """
    require(order.status, Command.REFUND)
    # What is disputed is with the customer's bank, also while it decides: a refund of it would give the money back
    # twice, since no processor takes the dispute back for it. A dispute that is won frees it again.
    disputed = order.amount_disputed_minor
    left = max(0, order.amount_captured_minor - order.amount_refund_reserved_minor - disputed)
    wanted = left if amount_minor is None else amount_minor
    if wanted > left or wanted <= 0:
        besides = f" ({disputed} are disputed)" if disputed else ""
        raise invalid(
            "refund_exceeds_captured",
            f"Only {left} (in minor units of {order.currency}) can still be refunded{besides}; ask for that or less.",
        )
    return replace(
        order, amount_refund_reserved_minor=order.amount_refund_reserved_minor + wanted, updated_at=now
    ), wanted


def apply_refund_outcome(order: Order, refund: Refund, *, outcome: RefundOutcome, now: datetime) -> RefundChange:
    """Apply what a processor says of a refund to it and to its order's totals and status."""
    learned = replace(
        refund,
        processor_reference=refund.processor_reference or outcome.reference,
        updated_at=now,
    )
    if not TABLE[refund.status, outcome.status]:
        return RefundChange(order, learned, ignored=f"{refund.status} does not become {outcome.status}")
    moved = replace(learned, status=outcome.status, error_code=outcome.error_code, error_message=outcome.error_message)
    if outcome.status not in (RefundStatus.SUCCEEDED, RefundStatus.FAILED):
        return RefundChange(order, moved)
    has_succeeded = outcome.status is RefundStatus.SUCCEEDED
    if refund.is_reversal:
        totals = replace(order, needs_review=order.needs_review or not has_succeeded)
    elif has_succeeded:
        totals = replace(order, amount_refunded_minor=order.amount_refunded_minor + refund.amount_minor)
    else:
        totals = replace(
            order,
            amount_refund_reserved_minor=order.amount_refund_reserved_minor - refund.amount_minor,
            amount_refunded_minor=order.amount_refunded_minor
            - (refund.amount_minor if refund.status is RefundStatus.SUCCEEDED else 0),
        )
    cell = decide(totals.status, refund_fact(totals))
    status = cell.status if isinstance(cell, Next) and not refund.is_reversal else totals.status
    transaction = NewTransaction(
        TransactionType.REFUND,
        TransactionStatus.SUCCESS if has_succeeded else TransactionStatus.FAILED,
        refund.amount_minor,
        moved.processor_reference,
        outcome.error_code,
        outcome.error_message,
    )
    event = EventType.REFUND_PROCESSED if has_succeeded else EventType.REFUND_FAILED
    return RefundChange(replace(totals, status=status, updated_at=now), moved, (transaction,), (event,))


def refund_fact(order: Order) -> Fact:
    """Return the fact that an order's refunded total amounts to."""
    if order.amount_refunded_minor <= 0:
        return Fact.REFUNDS_REVERSED
    if order.amount_refunded_minor < order.amount_captured_minor:
        return Fact.PARTLY_REFUNDED
    return Fact.FULLY_REFUNDED
