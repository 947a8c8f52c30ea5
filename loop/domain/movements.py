"""Movements: money that moved at a processor's account, as the processor's own list tells it."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from loop.domain.money import Money


class MovementKind(StrEnum):
    """Which way the money went. A hold moves nothing, and neither does its release."""

    CHARGE = "charge"
    """From a customer, at once or by a capture."""
    CHARGE_REVERSAL = "charge_reversal"
    """Back to the customer without a refund: a charge that was listed has failed after all."""
    REFUND = "refund"
    REFUND_REVERSAL = "refund_reversal"
    """Back to the merchant: a refund that was listed has failed after all."""


@dataclass(frozen=True, slots=True)
class Movement:
    """One row of a processor's list.

    `reference` is the processor's own id of the charge or refund that moved it: for a refund the same as
    `RefundOutcome.reference`. `payment_reference` names the payment as the reference of an `Outcome` does.
    `attempt_id` and `refund_id` are Loop's own ids, where the processor was told them and lists them.
    """

    kind: MovementKind
    reference: str
    amount: Money
    """What moved, never negative, in the currency of the charge where the processor can tell it."""
    occurred_at: datetime
    payment_reference: str | None = None
    attempt_id: str | None = None
    refund_id: str | None = None
    fee: Money | None = None
    """What the processor keeps for it, in the currency in which it keeps it."""
    is_as_settled: bool = False
    """Whether `amount` may be in the currency of the payout instead: then another currency is no difference."""
