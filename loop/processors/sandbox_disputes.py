"""The sandbox's disputes: a token says that there is one, and being asked about it is what makes it go on."""

from collections.abc import Mapping
from datetime import timedelta

from loop.domain.disputes import DisputeOutcome, DisputeStatus
from loop.domain.ids import PREFIX_ATTEMPT
from loop.domain.money import Money
from loop.processors.base import AuthorizeRequest

TOKENS: Mapping[str, str] = {
    "tok_dispute": "Approved; then disputed, and never decided.",
    "tok_dispute_won": "Approved; then disputed, and won when next asked about.",
    "tok_dispute_lost": "Approved; then disputed, and lost when next asked about.",
    "tok_dispute_inquiry": "Approved; then the bank inquires, and is content when next asked about.",
}
"""Token -> what happens."""

ANSWER_WITHIN = timedelta(days=7)
"""Until when a dispute may be answered, from when its payment was made."""

_WAYS: Mapping[str | None, tuple[DisputeStatus, DisputeStatus]] = {
    "tok_dispute": (DisputeStatus.OPENED, DisputeStatus.OPENED),
    "tok_dispute_won": (DisputeStatus.OPENED, DisputeStatus.WON),
    "tok_dispute_lost": (DisputeStatus.OPENED, DisputeStatus.LOST),
    "tok_dispute_inquiry": (DisputeStatus.INQUIRY, DisputeStatus.CLOSED),
}


def is_disputed(request: AuthorizeRequest) -> bool:
    """Tell whether a payment is one that is disputed once it is paid."""
    return request.token in _WAYS


def dispute_reference_of(attempt_id: str) -> str:
    """Return how the sandbox calls the dispute of an attempt's payment."""
    return f"sbxd_{attempt_id.removeprefix(f'{PREFIX_ATTEMPT}_')}"


def dispute_status_after(told: DisputeStatus | None, request: AuthorizeRequest) -> DisputeStatus:
    """Return how a dispute stands at this question, which is the first when nothing was told."""
    first, next_one = _WAYS[request.token]
    return first if told is None else next_one


def dispute_outcome_of(
    status: DisputeStatus, request: AuthorizeRequest, *, payment_reference: str, amount_minor: int
) -> DisputeOutcome:
    """Return a dispute of all that was captured: a bank does not know what was refunded."""
    return DisputeOutcome(
        reference=dispute_reference_of(request.attempt_id),
        payment_reference=payment_reference,
        status=status,
        amount=Money(amount_minor, request.amount.currency),
        reason="fraudulent",
        due_by=request.created_at + ANSWER_WITHIN,
    )
