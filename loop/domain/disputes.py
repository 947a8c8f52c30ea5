"""Disputes: a customer's bank takes a payment back; the table of how that goes on, and what it does to the order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from loop.domain.attempts import Attempt
from loop.domain.events import EventType
from loop.domain.money import Money
from loop.domain.orders import Order


class DisputeStatus(StrEnum):
    """Where a dispute stands, as merchants see it too."""

    INQUIRY = "inquiry"
    """The bank only asks: no money is taken, and a refund may end it."""
    OPENED = "opened"
    """The bank takes the money, or has it held, until it decides."""
    WON = "won"
    LOST = "lost"
    CLOSED = "closed"
    """It ended undecided, and no money was taken."""


AT_STAKE = frozenset({DisputeStatus.OPENED, DisputeStatus.LOST})
"""Disputes whose money the merchant does not have, for now or for good."""

DECIDED = frozenset({DisputeStatus.WON, DisputeStatus.LOST, DisputeStatus.CLOSED})
"""Disputes of which no more is to be expected; should a bank think again all the same, it is believed."""

MAX_REASON_CHARACTERS = 255
"""How much of a processor's own word for the reason is kept."""


@dataclass(frozen=True, slots=True)
class Moved:
    """The dispute takes the status that is claimed, and the merchant is told by this event."""

    event: EventType


@dataclass(frozen=True, slots=True)
class Ignored:
    """The claim moves nothing, for this reason."""

    reason: str


Cell = Moved | Ignored

S = DisputeStatus

_OPENED = Moved(EventType.DISPUTE_OPENED)
_WON = Moved(EventType.DISPUTE_WON)
_LOST = Moved(EventType.DISPUTE_LOST)
_SAME = Ignored("already so")
_BEHIND = Ignored("the dispute is further on")
_OVER = Ignored("the dispute is decided")

TABLE: Mapping[DisputeStatus | None, Mapping[DisputeStatus, Cell]] = {
    None: {S.INQUIRY: _OPENED, S.OPENED: _OPENED, S.WON: _WON, S.LOST: _LOST, S.CLOSED: _WON},
    S.INQUIRY: {S.INQUIRY: _SAME, S.OPENED: _OPENED, S.WON: _WON, S.LOST: _LOST, S.CLOSED: _WON},
    S.OPENED: {S.INQUIRY: _BEHIND, S.OPENED: _SAME, S.WON: _WON, S.LOST: _LOST, S.CLOSED: _WON},
    S.WON: {S.INQUIRY: _OVER, S.OPENED: _OVER, S.WON: _SAME, S.LOST: _LOST, S.CLOSED: _OVER},
    S.LOST: {S.INQUIRY: _OVER, S.OPENED: _OVER, S.WON: _WON, S.LOST: _SAME, S.CLOSED: _OVER},
    S.CLOSED: {S.INQUIRY: _OVER, S.OPENED: _OVER, S.WON: _OVER, S.LOST: _LOST, S.CLOSED: _SAME},
}  # fmt: skip
"""status (None: not heard of yet) -> claimed status -> what follows, every cell explicit.

Answers may be recorded in another order than they were given in, so a dispute does not go back to being undecided. A
decision does change (an appeal is won, a bank tries again), and the last one heard counts. For the merchant an inquiry
begins like a dispute, with a day to answer by, and ends like one that is won: the event's `disputeStatus` tells them
apart.
"""


@dataclass(frozen=True, slots=True)
class Dispute:
    """One row of disputes; amounts in minor units, `amount_minor` of the dispute's own currency."""

    id: str
    merchant_id: str
    order_id: str
    attempt_id: str
    processor_config_id: str
    processor: str
    processor_reference: str
    status: DisputeStatus
    amount_minor: int
    currency: str
    counted_minor: int
    """How much of its order's money it keeps from the merchant, in the order's currency."""
    reason: str | None
    due_by: datetime | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class DisputeOutcome:
    """What a processor says of a dispute.

    `payment_reference` is the disputed payment as `PaymentReference.reference` names it, `reason` the processor's own
    word, `due_by` (UTC) until when the merchant may answer.
    """

    reference: str
    payment_reference: str
    status: DisputeStatus
    amount: Money
    reason: str | None = None
    due_by: datetime | None = None


@dataclass(frozen=True, slots=True)
class DisputeChange:
    """What one answer about a dispute changes, to be written in one commit. `ignored` says why it moves nothing."""

    order: Order
    dispute: Dispute
    events: tuple[EventType, ...] = ()
    ignored: str | None = None


def decide(status: DisputeStatus | None, claimed: DisputeStatus) -> Cell:
    """Look a claim up in the table."""
    return TABLE[status][claimed]


def claimed_by(order: Order, attempt: Attempt, *, outcome: DisputeOutcome, dispute_id: str, now: datetime) -> Dispute:
    """Return the row that an answer would make if nothing was known of its dispute.

    Money of a second payment never was the order's, so its dispute takes nothing from the order. What is disputed in
    another currency counts as all that was captured: too little could be refunded and lost at once.
    """
    counted = outcome.amount.amount_minor if outcome.amount.currency == order.currency else order.amount_captured_minor
    return Dispute(
        id=dispute_id,
        merchant_id=order.merchant_id,
        order_id=order.id,
        attempt_id=attempt.id,
        processor_config_id=attempt.processor_config_id,
        processor=attempt.processor,
        processor_reference=outcome.reference,
        status=outcome.status,
        amount_minor=outcome.amount.amount_minor,
        currency=outcome.amount.currency,
        counted_minor=counted if outcome.status in AT_STAKE and not attempt.is_duplicate else 0,
        reason=_printable(outcome.reason),
        due_by=outcome.due_by,
        created_at=now,
        updated_at=now,
    )


def _printable(reason: str | None) -> str | None:
    kept = "".join(each for each in reason or "" if each.isprintable())
    return kept[:MAX_REASON_CHARACTERS] or None


def apply_dispute(order: Order, known: Sequence[Dispute], *, claimed: Dispute) -> DisputeChange:
    """Apply what a processor says of a dispute (`claimed_by`), to it and to its order's total and flag.

    `known` are the order's disputes so far, `claimed`'s own among them. Never refused: what does not add up, such as
    the loss of what was refunded already, is written down and shown to a person.
    """
    before = next((each for each in known if _names_same(each, claimed)), None)
    cell = decide(None if before is None else before.status, claimed.status)
    after = claimed if before is None else replace(claimed, id=before.id, created_at=before.created_at)
    if before is not None and isinstance(cell, Ignored):
        is_news = before.status is after.status and replace(after, updated_at=before.updated_at) != before
        if not is_news:
            return DisputeChange(order, before, ignored=cell.reason)
    disputed = after.counted_minor + sum(each.counted_minor for each in known if each is not before)
    changed = replace(
        order,
        amount_disputed_minor=disputed,
        needs_review=order.needs_review or _does_not_add_up(order, after, disputed),
        updated_at=claimed.updated_at,
    )
    if isinstance(cell, Ignored):
        return DisputeChange(changed, after, ignored=cell.reason)
    return DisputeChange(changed, after, (cell.event,))


def _names_same(known: Dispute, claimed: Dispute) -> bool:
    return (known.processor_config_id, known.processor_reference) == (
        claimed.processor_config_id, claimed.processor_reference,
    )  # fmt: skip


def _does_not_add_up(order: Order, dispute: Dispute, disputed_minor: int) -> bool:
    if dispute.status not in AT_STAKE:
        return False
    is_of_order = dispute.counted_minor == dispute.amount_minor and dispute.currency == order.currency
    return not is_of_order or disputed_minor + order.amount_refund_reserved_minor > order.amount_captured_minor
