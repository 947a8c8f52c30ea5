"""The evidence on which a payment goes on at another processor: every kind of outcome, every class of decline."""

from dataclasses import replace
from itertools import product

import pytest

from loop.domain.attempts import (
    ActionRequired,
    Approved,
    Cancelled,
    Declined,
    NotSent,
    Outcome,
    Pending,
    Unknown,
    Voided,
)
from loop.domain.declines import DeclineClass
from loop.domain.events import EventType
from loop.domain.failover import DeclineFinality, Step, failed_after_all, going_on, may_go_elsewhere, step_after
from loop.domain.orders import Change, OrderStatus, apply_outcome
from tests.builders import MIDNIGHT, attempt, order

ELSEWHERE = {DeclineClass.CASCADE, DeclineClass.TECH, DeclineClass.CONFIG}
NEXT = {
    DeclineFinality.FINAL: Step.GO_ON,
    DeclineFinality.UNTIL_CANCELLED: Step.FENCE,
    DeclineFinality.OPEN: Step.STOP,
}
NEVER: list[Outcome] = [
    Unknown("read timeout"),
    Unknown("5xx", "pi_1"),
    Pending("pi_1"),
    ActionRequired("pi_1", redirect_url="https://bank.example"),
    Approved("pi_1", is_captured=True, amount_minor=1),
    Approved("pi_1", is_captured=False, amount_minor=1),
    Cancelled("pi_1"),
    Voided("pi_1"),
]


def declined(kind: DeclineClass, reference: str | None = "pi_1") -> Declined:
    return Declined("declined", kind, "No.", reference=reference)


@pytest.mark.parametrize(("kind", "finality"), list(product(DeclineClass, DeclineFinality)))
def test_a_decline_goes_on_by_its_class_and_by_what_it_leaves_open(
    kind: DeclineClass, finality: DeclineFinality
) -> None:
    wanted = NEXT[finality] if kind in ELSEWHERE else Step.STOP
    assert step_after(declined(kind), finality=finality, has_token=True) is wanted
    assert step_after(declined(kind), finality=finality, has_token=False) is Step.STOP


@pytest.mark.parametrize(("outcome", "finality", "has_token"), list(product(NEVER, DeclineFinality, [True, False])))
def test_what_may_have_taken_money_never_goes_on(outcome: Outcome, finality: DeclineFinality, has_token: bool) -> None:
    assert step_after(outcome, finality=finality, has_token=has_token) is Step.STOP


@pytest.mark.parametrize(("finality", "has_token"), list(product(DeclineFinality, [True, False])))
def test_what_was_never_executed_goes_on(finality: DeclineFinality, has_token: bool) -> None:
    not_sent = NotSent("processor_unreachable", "Nobody was there.")
    assert step_after(not_sent, finality=finality, has_token=has_token) is Step.GO_ON


def test_a_payment_that_the_processor_never_made_cannot_be_paid_later() -> None:
    unmade = declined(DeclineClass.CONFIG, reference=None)
    assert step_after(unmade, finality=DeclineFinality.OPEN, has_token=True) is Step.GO_ON
    # It may have made one without saying so.
    assert step_after(unmade, finality=DeclineFinality.UNTIL_CANCELLED, has_token=True) is Step.FENCE


@pytest.mark.parametrize("before", [OrderStatus.PROCESSING, OrderStatus.REQUIRES_ACTION])
def test_an_order_that_goes_on_is_still_being_paid_and_fails_for_its_last_reason(before: OrderStatus) -> None:
    paid, tried = order(status=before, attempt_count=1), attempt()
    change: Change = apply_outcome(paid, tried, outcome=declined(DeclineClass.CASCADE), now=MIDNIGHT)
    assert change.events == (EventType.PAYMENT_FAILED,)
    on = going_on(paid, change)
    assert (on.order.status, on.order.last_error_code, on.events) == (OrderStatus.PROCESSING, None, ())
    assert (on.attempt, on.transactions) == (replace(change.attempt, is_given_up=True), change.transactions)
    failed = failed_after_all(on.order, on.attempt, now=MIDNIGHT)
    assert (failed.status, failed.last_error_code) == (OrderStatus.FAILED, "declined")


@pytest.mark.parametrize(("kind", "finality"), list(product([*DeclineClass, None], DeclineFinality)))
def test_a_customer_goes_elsewhere_only_where_the_decline_is_no_word_on_them_and_can_be_made_final(
    kind: DeclineClass | None, finality: DeclineFinality
) -> None:
    assert may_go_elsewhere(kind, finality) is (kind in ELSEWHERE and finality is not DeclineFinality.OPEN)
