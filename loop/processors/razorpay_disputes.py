"""Razorpay's disputes: what one's status means for Loop, in the phase that it is in."""

from datetime import UTC, datetime
from typing import Final

from loop.domain.attempts import Unknown
from loop.domain.disputes import DisputeOutcome, DisputeStatus
from loop.domain.money import Money
from loop.processors.razorpay_answers import text_of
from loop.processors.razorpay_session import JsonObject

_ASKING: Final = frozenset({"fraud", "retrieval"})
"""Phases in which a bank only asks. What it then takes back is a dispute of its own, in the phase `chargeback`."""

_UNDECIDED: Final = frozenset({"open", "under_review", "action_required"})


def dispute_outcome_of(dispute: JsonObject, *, order_id: str) -> DisputeOutcome | Unknown:
    """Return what a dispute of a payment on this order is; ValueError when it is none.

    `amount` is what is disputed, in the payment's currency; `amount_deducted` may be counted in the account's own, so
    that it only tells whether anything was taken.
    """
    dispute_id, status = text_of(dispute, "id"), _status_of(dispute)
    if status is None:
        return Unknown(f"Razorpay's dispute is {dispute.get('status')}, which this version does not know.", dispute_id)
    return DisputeOutcome(
        reference=dispute_id,
        payment_reference=order_id,
        status=status,
        amount=Money(_whole(dispute, "amount"), text_of(dispute, "currency")),
        reason=text_of(dispute, "reason_code") if dispute.get("reason_code") else None,
        due_by=datetime.fromtimestamp(_whole(dispute, "respond_by"), UTC) if dispute.get("respond_by") else None,
    )


def _status_of(dispute: JsonObject) -> DisputeStatus | None:
    is_asking, status = dispute.get("phase") in _ASKING, dispute.get("status")
    is_taken = bool(dispute.get("amount_deducted"))
    if status in _UNDECIDED:
        return DisputeStatus.INQUIRY if is_asking else DisputeStatus.OPENED
    if status == "won":
        return DisputeStatus.WON
    if status == "closed" or (status == "lost" and is_asking):
        return DisputeStatus.LOST if is_taken else DisputeStatus.CLOSED
    return DisputeStatus.LOST if status == "lost" else None


def _whole(dispute: JsonObject, name: str) -> int:
    value = dispute.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"Razorpay left out {name}")
