"""Failover: on which evidence a payment that one processor did not take may go on at another."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from enum import StrEnum

from loop.domain.attempts import Attempt, Declined, NotSent, Outcome
from loop.domain.declines import DeclineClass
from loop.domain.events import EventType
from loop.domain.orders import Change, Fact, Next, Order, OrderStatus, decide


class DeclineFinality(StrEnum):
    """What a processor's decline means for the payment it declined."""

    FINAL = "final"
    """Nobody can pay it any more."""
    UNTIL_CANCELLED = "until_cancelled"
    """It can still be paid, by whoever holds its secret, until the processor confirms that it is cancelled."""
    OPEN = "open"
    """It may be paid later, and nothing that Loop can do rules it out."""


class LateSuccess(StrEnum):
    """What a merchant wants of money that arrives after Loop had given its order up."""

    ACCEPT = "accept"
    """The order is paid after all."""
    REFUND = "refund"
    """It goes back to the customer at once."""


class Step(StrEnum):
    """What may follow a payment that ended without money."""

    STOP = "stop"
    """Nothing by itself: the merchant or the customer decides."""
    FENCE = "fence"
    """The next processor, once this one has confirmed that the payment is cancelled."""
    GO_ON = "go_on"
    """The next processor, at once."""


_ELSEWHERE = frozenset({DeclineClass.CASCADE, DeclineClass.TECH, DeclineClass.CONFIG})
"""Declines that speak of this processor or this try; the others speak of the card or the customer."""

_AFTER_DECLINE: Mapping[DeclineFinality, Step] = {
    DeclineFinality.FINAL: Step.GO_ON,
    DeclineFinality.UNTIL_CANCELLED: Step.FENCE,
    DeclineFinality.OPEN: Step.STOP,
}

RESENT_CODES = frozenset({"processor_unreachable", "rate_limited"})
"""Why a request was surely not executed, where the same request may well be a moment later."""


def step_after(outcome: Outcome, *, finality: DeclineFinality, has_token: bool) -> Step:
    """Return what may follow an outcome of an attempt.

    Only what surely took no money goes on: a request that was never executed, or a definite decline for which the
    next processor may decide otherwise. A timeout, an open challenge, a pending payment never do. A customer who pays
    in the browser (`has_token` false) is asked again on the page, not charged elsewhere.
    """
    match outcome:
        case NotSent():
            return Step.GO_ON
        case Declined(decline_class=kind) if kind in _ELSEWHERE and has_token:
            # Without a reference the processor never made a payment that could still be paid.
            is_unmade = finality is DeclineFinality.OPEN and outcome.reference is None
            return Step.GO_ON if is_unmade else _AFTER_DECLINE[finality]
        case _:
            return Step.STOP


def may_go_elsewhere(decline_class: str | None, finality: DeclineFinality) -> bool:
    """Tell whether a customer whose payment was declined so may try again at another processor."""
    return decline_class in _ELSEWHERE and finality is not DeclineFinality.OPEN


def going_on(order: Order, change: Change) -> Change:
    """Return a change that failed its order as one after which the order is still being paid.

    `order` is as it was before. The attempt and its transaction stay failed, and the attempt is given up for the next
    one; nobody is told that the order failed.
    """
    cell = decide(order.status, Fact.PROCESSING)
    status = cell.status if isinstance(cell, Next) else OrderStatus.PROCESSING
    paying = replace(change.order, status=status, last_error_code=None, last_error_message=None)
    return replace(change, order=paying, attempt=replace(change.attempt, is_given_up=True), events=())


def left_to_the_next(order: Order, change: Change) -> Change:
    """Return a change of late money that paid its order as one of money that goes back, since nobody wants it late.

    `order` is as it was before: a newer attempt is still to pay it.
    """
    return replace(
        change,
        order=replace(order, updated_at=change.order.updated_at),
        attempt=replace(change.attempt, is_duplicate=True),
        events=(EventType.PAYMENT_LATE_SUCCESS,),
        ignored="another attempt is to pay the order",
    )


def failed_after_all(order: Order, attempt: Attempt, *, now: datetime) -> Order:
    """Return an order that was to go on, and cannot, as failed for the reason of its last attempt."""
    cell = decide(order.status, Fact.FAILED)
    return replace(
        order,
        status=cell.status if isinstance(cell, Next) else order.status,
        last_error_code=attempt.error_code,
        last_error_message=attempt.error_message,
        updated_at=now,
    )
