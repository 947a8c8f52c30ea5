"""Stripe's disputes: what one's status and its movements of money mean for Loop."""

from collections.abc import Mapping
from datetime import UTC, datetime

import stripe

from loop.domain.attempts import Unknown
from loop.domain.disputes import DisputeOutcome, DisputeStatus
from loop.domain.money import Money
from loop.processors.stripe_answers import loop_amount

_STATUSES: Mapping[str, DisputeStatus] = {
    "warning_needs_response": DisputeStatus.INQUIRY,
    "warning_under_review": DisputeStatus.INQUIRY,
    "warning_closed": DisputeStatus.CLOSED,
    "needs_response": DisputeStatus.OPENED,
    "under_review": DisputeStatus.OPENED,
    "appeal_needs_response": DisputeStatus.OPENED,
    "appeal_under_review": DisputeStatus.OPENED,
    "won": DisputeStatus.WON,
    "lost": DisputeStatus.LOST,
}


def dispute_outcome_of(dispute: stripe.Dispute) -> DisputeOutcome | Unknown:
    """Return what a dispute is, and of which intent; ValueError for one that no intent made."""
    status = _status_of(dispute)
    if status is None:
        return Unknown(f"Stripe's dispute is {dispute.status}, which this version does not know.", dispute.id)
    intent = dispute.payment_intent
    if intent is None:
        raise ValueError("the dispute is of no payment intent")
    currency = dispute.currency.upper()
    return DisputeOutcome(
        reference=dispute.id,
        payment_reference=intent if isinstance(intent, str) else intent.id,
        status=status,
        amount=Money(loop_amount(dispute.amount, currency), currency),
        reason=dispute.reason,
        due_by=_due_by(dispute),
    )


def _status_of(dispute: stripe.Dispute) -> DisputeStatus | None:
    if dispute.status == "prevented":
        # Blocked, so that nothing happened, or settled by giving in, which took the money: only the money tells.
        is_taken = sum(movement.amount for movement in dispute.balance_transactions) < 0
        return DisputeStatus.LOST if is_taken else DisputeStatus.CLOSED
    return _STATUSES.get(dispute.status)


def _due_by(dispute: stripe.Dispute) -> datetime | None:
    seconds = dispute.evidence_details.due_by
    return datetime.fromtimestamp(seconds, UTC) if seconds else None  # 0: the bank takes no answer
