"""Payment attempts: one try at one processor, the outcomes of a call to it, and the ranked table of their states."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from loop.domain.declines import DeclineClass


class AttemptStatus(StrEnum):
    """What is known of one try. A higher rank never goes back to a lower one."""

    SUBMITTING = "submitting"
    """The intent is recorded; the processor may or may not have heard of it."""
    UNKNOWN = "unknown"
    """The processor was called and did not answer clearly: it is asked until it does."""
    REQUIRES_ACTION = "requires_action"
    PENDING = "pending"
    FAILED = "failed"
    CANCELLED = "cancelled"
    AUTHORIZED = "authorized"
    CAPTURED = "captured"
    VOIDED = "voided"


LIVE_STATUSES = frozenset(
    {AttemptStatus.SUBMITTING, AttemptStatus.UNKNOWN, AttemptStatus.REQUIRES_ACTION, AttemptStatus.PENDING}
)
"""An order has at most one attempt in these: the next one could pay a second time."""

UNPAID_STATUSES = frozenset({AttemptStatus.FAILED, AttemptStatus.CANCELLED, AttemptStatus.VOIDED})
"""Attempts that have ended without money."""

_LADDER = list(AttemptStatus)
_TO_AND_FRO = frozenset({AttemptStatus.REQUIRES_ACTION, AttemptStatus.PENDING})
"""A payment may go from its customer to the bank and back: a debit that fails after days can be paid otherwise."""

RANKS: Mapping[AttemptStatus, int] = {
    status: _LADDER.index(AttemptStatus.REQUIRES_ACTION if status in _TO_AND_FRO else status) for status in _LADDER
}
"""The order in which knowledge grows: facts of a lower rank are recorded as ignored, of one rank the latest counts."""


@dataclass(frozen=True, slots=True)
class Approved:
    """The money is held (`is_captured` false) or taken. `amount_minor` is what the processor says it is."""

    reference: str
    is_captured: bool
    amount_minor: int
    transaction_reference: str | None = None


@dataclass(frozen=True, slots=True)
class ActionRequired:
    """The customer must do something: follow `redirect_url`, or let the processor's script use the other fields.

    `decline` is what became of the customer's latest try, where the payment still waits for another.
    """

    reference: str
    redirect_url: str | None = None
    client_secret: str | None = field(default=None, repr=False)
    processor_data: Mapping[str, object] | None = field(default=None, repr=False)
    decline: "Declined | None" = None


@dataclass(frozen=True, slots=True)
class Pending:
    """The processor has it and will know later."""

    reference: str


@dataclass(frozen=True, slots=True)
class Declined:
    """A definite no. `code` is Loop's own decline code, `raw_code` the processor's; nothing was charged."""

    code: str
    decline_class: DeclineClass
    message: str
    raw_code: str | None = None
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The payment was cancelled at the processor before money moved; it can no longer be paid."""

    reference: str | None = None


@dataclass(frozen=True, slots=True)
class Voided:
    """A held amount was released at the processor."""

    reference: str
    transaction_reference: str | None = None


@dataclass(frozen=True, slots=True)
class NotSent:
    """Surely nothing happened: the connection never opened, or the processor refused to look at the request."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """It may have happened. Never retried with a new key, never failed over, never called failed."""

    reason: str
    reference: str | None = None
    is_absent: bool = False
    """Whether the processor answered, and all that it has from the attempt's time on has no such payment (yet)."""


Outcome = Approved | ActionRequired | Pending | Declined | Cancelled | Voided | NotSent | Unknown
"""All that a call about a payment can end with."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One row of payment_attempts. Amounts in minor units of the order's currency."""

    id: str
    order_id: str
    merchant_id: str
    processor_config_id: str
    processor: str
    number: int
    status: AttemptStatus
    amount_minor: int
    currency: str
    is_manual_capture: bool
    request: Mapping[str, object] = field(repr=False)
    """The exact request, kept so that a repeat under the same key is identical."""
    processor_reference: str | None
    action: Mapping[str, object] | None = field(repr=False)
    """What the customer needs: redirectUrl, clientSecret, processorData."""
    error_code: str | None
    error_message: str | None
    decline_class: str | None
    raw_error_code: str | None
    asked_count: int
    """How often the processor was asked about it since its status last changed, and did not know the outcome."""
    unclear_since: datetime | None
    """Since when the processor has not said how it stands; None while it says so, be it that it is pending."""
    created_at: datetime
    updated_at: datetime
    is_duplicate: bool = False
    """Whether its money came for an order that another attempt has paid, or is to pay: it goes back, and is not the
    order's.
    """
    is_given_up: bool = False
    """Whether Loop ends it so that another may follow: its cancellation is then not its order's, only its money is."""


def status_of(outcome: Outcome) -> AttemptStatus:
    """Return the status that an outcome claims for its attempt."""
    match outcome:
        case Approved(is_captured=True):
            return AttemptStatus.CAPTURED
        case Approved():
            return AttemptStatus.AUTHORIZED
        case ActionRequired():
            return AttemptStatus.REQUIRES_ACTION
        case Pending():
            return AttemptStatus.PENDING
        case Declined() | NotSent():
            return AttemptStatus.FAILED
        case Cancelled():
            return AttemptStatus.CANCELLED
        case Voided():
            return AttemptStatus.VOIDED
        case Unknown():
            return AttemptStatus.UNKNOWN


@dataclass(frozen=True, slots=True)
class Moved:
    """The attempt takes the status that the outcome claims."""

    status: AttemptStatus


@dataclass(frozen=True, slots=True)
class Unmoved:
    """The outcome tells nothing new; it is recorded with this reason."""

    reason: str


def _cell(current: AttemptStatus, claimed: AttemptStatus) -> Moved | Unmoved:
    if current is claimed:
        return Unmoved("already so")
    if current is AttemptStatus.VOIDED:
        return Unmoved("voided is the end")
    if RANKS[claimed] < RANKS[current]:
        return Unmoved(f"{current} outranks {claimed}")
    if claimed is AttemptStatus.VOIDED and current is AttemptStatus.CAPTURED:
        return Unmoved("captured money is refunded, not voided")
    return Moved(claimed)


TABLE: Mapping[tuple[AttemptStatus, AttemptStatus], Moved | Unmoved] = {
    (current, claimed): _cell(current, claimed) for current in AttemptStatus for claimed in AttemptStatus
}
"""(status, claimed status) -> what follows, every cell explicit: the same table for every door a fact comes in by."""


def advance(current: AttemptStatus, claimed: AttemptStatus) -> Moved | Unmoved:
    """Look a claim up in the table."""
    return TABLE[current, claimed]


def is_overtaken(outcome: Outcome, *, asked: Attempt, current: Attempt) -> bool:
    """Tell whether an answer may be older than what is known, where its rank does not say so.

    `asked` is the attempt as it was before the question: if another answer was recorded since, it may be the newer one.
    """
    claimed = status_of(outcome)
    return {claimed, current.status} == _TO_AND_FRO and asked != current
