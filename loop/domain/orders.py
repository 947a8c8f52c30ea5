"""Orders: what is owed, the table that decides every change of status, and how a processor's answer is applied."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Final

from loop.domain import attempts
from loop.domain.attempts import (
    Approved,
    Attempt,
    AttemptStatus,
    Cancelled,
    Declined,
    NotSent,
    Outcome,
    Voided,
)
from loop.domain.declines import DECLINES, DeclineClass
from loop.domain.errors import invalid
from loop.domain.events import EventType
from loop.domain.money import Money
from loop.domain.transactions import NewTransaction, TransactionStatus, TransactionType


class OrderStatus(StrEnum):
    """The nine words that merchants see."""

    PENDING = "pending"
    PROCESSING = "processing"
    REQUIRES_ACTION = "requires_action"
    AUTHORIZED = "authorized"
    CAPTURED = "captured"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REFUNDED = "refunded"
    PARTIALLY_REFUNDED = "partially_refunded"


class Command(StrEnum):
    """What a merchant, a customer or an operator asks for; the table may refuse it."""

    PAY = "pay"
    RETRY = "retry"
    CAPTURE = "capture"
    CANCEL = "cancel"
    EXPIRE = "expire"
    REFUND = "refund"


class Fact(StrEnum):
    """What a processor says has happened; it is applied or recorded as ignored, never refused."""

    PROCESSING = "payment processing"
    ACTION_REQUIRED = "action required"
    FAILED = "payment failed"
    CANCELLED = "payment cancelled"
    AUTHORIZED = "payment authorized"
    CAPTURED = "payment captured"
    VOIDED = "payment voided"
    PARTLY_REFUNDED = "partly refunded"
    FULLY_REFUNDED = "fully refunded"
    REFUNDS_REVERSED = "refunds reversed"


@dataclass(frozen=True, slots=True)
class Next:
    """The order takes this status. `is_late` marks money that arrives after the order was given up."""

    status: OrderStatus
    is_late: bool = False


@dataclass(frozen=True, slots=True)
class Ignored:
    """The fact changes nothing, for this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The command is not allowed; `message` says what to do."""

    message: str


Cell = Next | Ignored | Refused

MAX_RAW_CODE_CHARACTERS = 120
"""How much of a processor's own error code is kept."""

S, C, F = OrderStatus, Command, Fact

_NOT_CAPTURED = Refused("Only a captured or partially refunded order can be refunded.")
_NOT_AUTHORIZED = Refused("Only an authorized order can be captured.")
_NOT_FAILED = Refused("Only a failed order can be tried again.")
_NOT_PENDING = Refused("Only a pending order can be paid; `retry` tries a failed one again.")
_UNCLEAR = Refused("The payment's outcome is not known yet; wait for it, then cancel or refund.")
_PAID = Refused("The order is paid; refund it instead.")
_OVER = Refused("The order is cancelled; create a new one.")
_SAME = Ignored("already so")
_BEHIND = Ignored("the order is further on")
_NO_MONEY = Ignored("nothing was captured")

TABLE: Mapping[OrderStatus, Mapping[Command | Fact, Cell]] = {
    S.PENDING: {
        C.PAY: Next(S.PROCESSING), C.RETRY: _NOT_FAILED, C.CAPTURE: _NOT_AUTHORIZED,
        C.CANCEL: Next(S.CANCELLED), C.EXPIRE: Next(S.CANCELLED), C.REFUND: _NOT_CAPTURED,
        F.PROCESSING: Next(S.PROCESSING), F.ACTION_REQUIRED: Next(S.REQUIRES_ACTION),
        F.FAILED: Next(S.FAILED), F.CANCELLED: Next(S.CANCELLED),
        F.AUTHORIZED: Next(S.AUTHORIZED), F.CAPTURED: Next(S.CAPTURED), F.VOIDED: Next(S.CANCELLED),
        F.PARTLY_REFUNDED: _NO_MONEY, F.FULLY_REFUNDED: _NO_MONEY, F.REFUNDS_REVERSED: _NO_MONEY,
    },
    S.PROCESSING: {
        C.PAY: _NOT_PENDING, C.RETRY: _NOT_FAILED, C.CAPTURE: _NOT_AUTHORIZED,
        C.CANCEL: _UNCLEAR, C.EXPIRE: _UNCLEAR, C.REFUND: _NOT_CAPTURED,
        F.PROCESSING: _SAME, F.ACTION_REQUIRED: Next(S.REQUIRES_ACTION),
        F.FAILED: Next(S.FAILED), F.CANCELLED: Next(S.CANCELLED),
        F.AUTHORIZED: Next(S.AUTHORIZED), F.CAPTURED: Next(S.CAPTURED), F.VOIDED: Next(S.CANCELLED),
        F.PARTLY_REFUNDED: _NO_MONEY, F.FULLY_REFUNDED: _NO_MONEY, F.REFUNDS_REVERSED: _NO_MONEY,
    },
    S.REQUIRES_ACTION: {
        C.PAY: _NOT_PENDING, C.RETRY: _NOT_FAILED, C.CAPTURE: _NOT_AUTHORIZED,
        C.CANCEL: Next(S.CANCELLED), C.EXPIRE: Next(S.CANCELLED), C.REFUND: _NOT_CAPTURED,
        F.PROCESSING: Next(S.PROCESSING), F.ACTION_REQUIRED: _SAME,
        F.FAILED: Next(S.FAILED), F.CANCELLED: Next(S.CANCELLED),
        F.AUTHORIZED: Next(S.AUTHORIZED), F.CAPTURED: Next(S.CAPTURED), F.VOIDED: Next(S.CANCELLED),
        F.PARTLY_REFUNDED: _NO_MONEY, F.FULLY_REFUNDED: _NO_MONEY, F.REFUNDS_REVERSED: _NO_MONEY,
    },
    S.AUTHORIZED: {
        C.PAY: _NOT_PENDING, C.RETRY: _NOT_FAILED, C.CAPTURE: Next(S.CAPTURED),
        C.CANCEL: Next(S.CANCELLED), C.EXPIRE: Refused("The payment is authorized; capture or cancel it."),
        C.REFUND: _NOT_CAPTURED,
        F.PROCESSING: _BEHIND, F.ACTION_REQUIRED: _BEHIND, F.FAILED: _BEHIND, F.CANCELLED: _BEHIND,
        F.AUTHORIZED: _SAME, F.CAPTURED: Next(S.CAPTURED), F.VOIDED: Next(S.CANCELLED),
        F.PARTLY_REFUNDED: _NO_MONEY, F.FULLY_REFUNDED: _NO_MONEY, F.REFUNDS_REVERSED: _NO_MONEY,
    },
    S.CAPTURED: {
        C.PAY: _NOT_PENDING, C.RETRY: _NOT_FAILED, C.CAPTURE: _NOT_AUTHORIZED,
        C.CANCEL: _PAID, C.EXPIRE: _PAID, C.REFUND: Next(S.CAPTURED),
        F.PROCESSING: _BEHIND, F.ACTION_REQUIRED: _BEHIND, F.FAILED: _BEHIND, F.CANCELLED: _BEHIND,
        F.AUTHORIZED: _BEHIND, F.CAPTURED: _SAME, F.VOIDED: _BEHIND,
        F.PARTLY_REFUNDED: Next(S.PARTIALLY_REFUNDED), F.FULLY_REFUNDED: Next(S.REFUNDED),
        F.REFUNDS_REVERSED: _SAME,
    },
    S.PARTIALLY_REFUNDED: {
        C.PAY: _NOT_PENDING, C.RETRY: _NOT_FAILED, C.CAPTURE: _NOT_AUTHORIZED,
        C.CANCEL: _PAID, C.EXPIRE: _PAID, C.REFUND: Next(S.PARTIALLY_REFUNDED),
        F.PROCESSING: _BEHIND, F.ACTION_REQUIRED: _BEHIND, F.FAILED: _BEHIND, F.CANCELLED: _BEHIND,
        F.AUTHORIZED: _BEHIND, F.CAPTURED: _BEHIND, F.VOIDED: _BEHIND,
        F.PARTLY_REFUNDED: _SAME, F.FULLY_REFUNDED: Next(S.REFUNDED), F.REFUNDS_REVERSED: Next(S.CAPTURED),
    },
    S.REFUNDED: {
        C.PAY: _NOT_PENDING, C.RETRY: _NOT_FAILED, C.CAPTURE: _NOT_AUTHORIZED,
        C.CANCEL: _PAID, C.EXPIRE: _PAID, C.REFUND: Refused("All that was captured is refunded already."),
        F.PROCESSING: _BEHIND, F.ACTION_REQUIRED: _BEHIND, F.FAILED: _BEHIND, F.CANCELLED: _BEHIND,
        F.AUTHORIZED: _BEHIND, F.CAPTURED: _BEHIND, F.VOIDED: _BEHIND,
        F.PARTLY_REFUNDED: Next(S.PARTIALLY_REFUNDED), F.FULLY_REFUNDED: _SAME,
        F.REFUNDS_REVERSED: Next(S.CAPTURED),
    },
    S.FAILED: {
        C.PAY: _NOT_PENDING, C.RETRY: Next(S.PROCESSING), C.CAPTURE: _NOT_AUTHORIZED,
        C.CANCEL: Next(S.CANCELLED), C.EXPIRE: Next(S.CANCELLED), C.REFUND: _NOT_CAPTURED,
        F.PROCESSING: _BEHIND, F.ACTION_REQUIRED: _BEHIND, F.FAILED: _SAME, F.CANCELLED: Next(S.CANCELLED),
        F.AUTHORIZED: Next(S.AUTHORIZED, is_late=True), F.CAPTURED: Next(S.CAPTURED, is_late=True),
        F.VOIDED: Next(S.CANCELLED),
        F.PARTLY_REFUNDED: _NO_MONEY, F.FULLY_REFUNDED: _NO_MONEY, F.REFUNDS_REVERSED: _NO_MONEY,
    },
    S.CANCELLED: {
        C.PAY: _OVER, C.RETRY: _OVER, C.CAPTURE: _NOT_AUTHORIZED,
        C.CANCEL: Refused("The order is cancelled already."), C.EXPIRE: _OVER, C.REFUND: _NOT_CAPTURED,
        F.PROCESSING: _BEHIND, F.ACTION_REQUIRED: _BEHIND, F.FAILED: _BEHIND, F.CANCELLED: _SAME,
        F.AUTHORIZED: Next(S.AUTHORIZED, is_late=True), F.CAPTURED: Next(S.CAPTURED, is_late=True),
        F.VOIDED: _SAME,
        F.PARTLY_REFUNDED: _NO_MONEY, F.FULLY_REFUNDED: _NO_MONEY, F.REFUNDS_REVERSED: _NO_MONEY,
    },
}  # fmt: skip
"""status -> input -> what follows. Every cell is written down; docs/reference/order-states.md is drawn from it."""

_FACT_OF_ATTEMPT: Mapping[AttemptStatus, Fact] = {
    AttemptStatus.SUBMITTING: Fact.PROCESSING,
    AttemptStatus.UNKNOWN: Fact.PROCESSING,
    AttemptStatus.PENDING: Fact.PROCESSING,
    AttemptStatus.REQUIRES_ACTION: Fact.ACTION_REQUIRED,
    AttemptStatus.FAILED: Fact.FAILED,
    AttemptStatus.CANCELLED: Fact.CANCELLED,
    AttemptStatus.AUTHORIZED: Fact.AUTHORIZED,
    AttemptStatus.CAPTURED: Fact.CAPTURED,
    AttemptStatus.VOIDED: Fact.VOIDED,
}

_HOLDING = frozenset({AttemptStatus.AUTHORIZED, AttemptStatus.CAPTURED})

PAID_OR_HELD = frozenset({S.AUTHORIZED, S.CAPTURED, S.PARTIALLY_REFUNDED, S.REFUNDED})
"""Orders that one attempt has paid, or holds the money for: another attempt's money is a second payment."""

EXPIRED: Final = "expired"
"""The `last_error_code` of an order that nobody tried to pay in time; one that had failed keeps the reason."""

PAYMENT_EVENTS: Mapping[OrderStatus, EventType] = {
    S.PROCESSING: EventType.PAYMENT_PROCESSING,
    S.REQUIRES_ACTION: EventType.PAYMENT_REQUIRES_ACTION,
    S.AUTHORIZED: EventType.PAYMENT_AUTHORIZED,
    S.CAPTURED: EventType.PAYMENT_CAPTURED,
    S.FAILED: EventType.PAYMENT_FAILED,
    S.CANCELLED: EventType.PAYMENT_CANCELLED,
}
"""Which event tells the merchant of a payment's new status."""


@dataclass(frozen=True, slots=True)
class Order:
    """One row of orders. Amounts in minor units of `currency`."""

    id: str
    merchant_id: str
    external_id: str
    amount_minor: int
    currency: str
    status: OrderStatus
    processor: str | None
    processor_order_id: str | None
    is_manual_capture: bool
    country: str | None
    customer_id: str | None
    customer_email: str | None = field(repr=False)
    description: str | None = field(repr=False)
    metadata: Mapping[str, object] = field(repr=False)
    return_url: str | None = field(repr=False)
    cancel_url: str | None = field(repr=False)
    amount_authorized_minor: int
    amount_captured_minor: int
    amount_refunded_minor: int
    amount_refund_reserved_minor: int
    """The sum of refunds that have not failed; the schema holds it between 0 and what was captured."""
    attempt_count: int
    last_error_code: str | None
    last_error_message: str | None
    needs_review: bool
    expires_at: datetime | None
    created_at: datetime
    updated_at: datetime
    is_test: bool = True
    """Whether it moves test money: it never changes, and only accounts of that mode take the order."""
    amount_disputed_minor: int = 0
    """What disputes keep from the merchant, while they are open and once they are lost."""
    revision: int = field(default=1, compare=False)
    """Grows with each change: the order's events carry it, so that a merchant can tell an old one from a new one."""

    @property
    def amount(self) -> Money:
        """What is owed."""
        return Money(self.amount_minor, self.currency)


def decide(status: OrderStatus, order_input: Command | Fact) -> Cell:
    """Look an input up in the table."""
    return TABLE[status][order_input]


def require(status: OrderStatus, command: Command) -> OrderStatus:
    """Return the status that a command leads to, or raise `invalid_status` saying what to do."""
    match decide(status, command):
        case Next(status=following):
            return following
        case Refused(message=message) | Ignored(reason=message):
            raise invalid("invalid_status", f"The order is {status}. {message}")


def require_in_time(order: Order, now: datetime) -> None:
    """Raise `order_expired` for an order that is not to be paid any more, whether or not that was noticed yet."""
    if order.expires_at is not None and order.expires_at <= now:
        raise invalid("order_expired", "The order's time to be paid is up; create a new one.")


@dataclass(frozen=True, slots=True)
class Change:
    """What one outcome changes, to be written in one commit. `ignored` says why when it changes nothing.

    `is_late` marks money that came after Loop had given the payment up; the merchant's policy says what becomes of it.
    """

    order: Order
    attempt: Attempt
    transactions: tuple[NewTransaction, ...] = ()
    events: tuple[EventType, ...] = ()
    ignored: str | None = None
    is_late: bool = False

    @property
    def is_second_payment(self) -> bool:
        """Whether the outcome is money for an order that another attempt has paid, or is to pay: it must go back."""
        return self.is_late and self.attempt.is_duplicate


def apply_outcome(order: Order, attempt: Attempt, *, outcome: Outcome, now: datetime) -> Change:
    """Apply what a processor says of an attempt: to the attempt by rank, then, if that moved, to its order."""
    step = attempts.advance(attempt.status, attempts.status_of(outcome))
    learned = _learn_reference(attempt, outcome, now)
    if isinstance(step, attempts.Unmoved):
        if isinstance(outcome, Declined) and attempt.status is AttemptStatus.CANCELLED and attempt.error_code is None:
            learned = _with_failure(learned, outcome)
            order = _learn_failure(order, learned, now)
        if isinstance(outcome, attempts.ActionRequired) and attempt.status is AttemptStatus.REQUIRES_ACTION:
            learned = _with_failure(learned, outcome)  # of the customer's latest try; the payment waits for another
        return Change(_learn_order_id(order, learned, now), learned, ignored=step.reason)
    moved = _moved_attempt(learned, outcome, step.status, now)
    transactions = _transactions(attempt, outcome)
    is_money, had_money = step.status in _HOLDING, attempt.status in _HOLDING
    if attempt.is_duplicate or (is_money and not had_money and order.status in PAID_OR_HELD):
        events = (EventType.PAYMENT_LATE_SUCCESS,) if is_money and not attempt.is_duplicate else ()
        second = replace(moved, is_duplicate=True)
        same, reason = replace(order, updated_at=now), "another attempt paid the order"
        return Change(same, second, transactions, events, ignored=reason, is_late=is_money)
    cell = decide(order.status, _FACT_OF_ATTEMPT[step.status])
    is_current = attempt.number == order.attempt_count
    # What becomes of an attempt without money says nothing of an order that another attempt has paid, or is to pay.
    is_awaited = is_current and not attempt.is_given_up and order.status not in PAID_OR_HELD
    counts = is_money or had_money or is_awaited
    if isinstance(cell, Next) and counts:
        is_late = cell.is_late or (is_money and not had_money and not is_current)
        events = (PAYMENT_EVENTS[cell.status], *((EventType.PAYMENT_LATE_SUCCESS,) if is_late else ()))
        paid = _moved_order(order, moved, outcome, cell.status, now)
        return Change(paid, moved, transactions, events, is_late=is_late)
    left = "given up for another attempt" if attempt.is_given_up else "superseded by a later attempt"
    reason = left if isinstance(cell, Next) else _reason(cell)
    return Change(replace(_learn_order_id(order, moved, now), updated_at=now), moved, transactions, ignored=reason)


def _moved_attempt(attempt: Attempt, outcome: Outcome, status: AttemptStatus, now: datetime) -> Attempt:
    moved = replace(
        attempt,
        status=status,
        action=_action(outcome),
        unclear_since=now if status is AttemptStatus.UNKNOWN else None,
        asked_count=0,
        updated_at=now,
    )
    is_only_ended = isinstance(outcome, Cancelled) and attempt.status is AttemptStatus.FAILED
    return moved if is_only_ended else _with_failure(moved, outcome)  # what a cancelled one had failed of stays known


def _with_failure(attempt: Attempt, outcome: Outcome) -> Attempt:
    failure = _failure(outcome)
    return replace(
        attempt,
        error_code=failure.code,
        error_message=failure.message,
        decline_class=failure.decline_class,
        raw_error_code=failure.raw_code,
    )


def _reason(cell: Cell) -> str:
    return cell.reason if isinstance(cell, Ignored) else "not in this status"


def _moved_order(order: Order, attempt: Attempt, outcome: Outcome, status: OrderStatus, now: datetime) -> Order:
    authorized, captured, needs_review = (
        order.amount_authorized_minor, order.amount_captured_minor, order.needs_review
    )  # fmt: skip
    if isinstance(outcome, Approved):
        amount, wanted = outcome.amount_minor, attempt.amount_minor
        if outcome.is_captured:
            # All of it was held before a part was taken, whether or not that was heard of first.
            held = (authorized or wanted) if attempt.is_manual_capture else 0
            authorized, captured = max(held, amount), amount
        else:
            authorized = amount
        is_part_allowed = outcome.is_captured and attempt.is_manual_capture
        needs_review = needs_review or amount > wanted or (amount < wanted and not is_part_allowed)
    if isinstance(outcome, Voided):
        authorized = 0
    return replace(
        order,
        status=status,
        processor=attempt.processor,
        processor_order_id=attempt.processor_reference,
        amount_authorized_minor=authorized,
        amount_captured_minor=captured,
        needs_review=needs_review,
        last_error_code=attempt.error_code,
        last_error_message=attempt.error_message,
        updated_at=now,
    )


def _learn_order_id(order: Order, attempt: Attempt, now: datetime) -> Order:
    is_known = order.processor_order_id is not None or attempt.processor_reference is None
    if is_known or attempt.is_duplicate or attempt.number != order.attempt_count:
        return order
    return replace(order, processor_order_id=attempt.processor_reference, updated_at=now)


def _learn_failure(order: Order, attempt: Attempt, now: datetime) -> Order:
    """Return an order that says why its attempt failed before it was cancelled, which was heard of first."""
    is_its_end = order.status is OrderStatus.CANCELLED and attempt.number == order.attempt_count
    if not is_its_end or order.last_error_code is not None:
        return order
    return replace(order, last_error_code=attempt.error_code, last_error_message=attempt.error_message, updated_at=now)


def _learn_reference(attempt: Attempt, outcome: Outcome, now: datetime) -> Attempt:
    reference = None if isinstance(outcome, NotSent) else outcome.reference
    if reference is None or attempt.processor_reference is not None:
        return attempt
    return replace(attempt, processor_reference=reference, updated_at=now)


@dataclass(frozen=True, slots=True)
class _Failure:
    code: str | None = None
    message: str | None = None
    decline_class: str | None = None
    raw_code: str | None = None


def _failure(outcome: Outcome) -> _Failure:
    match outcome:
        case attempts.ActionRequired(decline=Declined() as decline):
            return _failure(decline)
        case Declined():
            raw_code = None if outcome.raw_code is None else outcome.raw_code[:MAX_RAW_CODE_CHARACTERS]
            return _Failure(outcome.code, outcome.message, outcome.decline_class, raw_code)
        case NotSent():
            known = DECLINES.get(outcome.code)
            return _Failure(outcome.code, outcome.message, known.decline_class if known else DeclineClass.TECH)
        case _:
            return _Failure()


def _action(outcome: Outcome) -> Mapping[str, object] | None:
    if not isinstance(outcome, attempts.ActionRequired):
        return None
    named = {
        "redirectUrl": outcome.redirect_url,
        "clientSecret": outcome.client_secret,
        "processorData": outcome.processor_data,
    }
    return {name: value for name, value in named.items() if value is not None}


def _transactions(attempt: Attempt, outcome: Outcome) -> tuple[NewTransaction, ...]:
    wanted = TransactionType.AUTHORIZATION if attempt.is_manual_capture else TransactionType.CAPTURE
    match outcome:
        case Approved():
            kind = TransactionType.CAPTURE if outcome.is_captured else TransactionType.AUTHORIZATION
            reference = outcome.transaction_reference or outcome.reference
            return (NewTransaction(kind, TransactionStatus.SUCCESS, outcome.amount_minor, reference),)
        case Voided():
            reference = outcome.transaction_reference or outcome.reference
            return (NewTransaction(TransactionType.VOID, TransactionStatus.SUCCESS, attempt.amount_minor, reference),)
        case Declined():
            return (
                NewTransaction(
                    wanted, TransactionStatus.FAILED, attempt.amount_minor, outcome.reference, outcome.code,
                    outcome.message,
                ),
            )  # fmt: skip
        case NotSent():
            return (
                NewTransaction(
                    wanted,
                    TransactionStatus.FAILED,
                    attempt.amount_minor,
                    None,
                    outcome.code,
                    outcome.message,
                ),
            )
        case Cancelled() | attempts.ActionRequired() | attempts.Pending() | attempts.Unknown():
            return ()
