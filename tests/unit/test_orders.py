"""The order table: every cell is defined, a fact twice equals once, and any truthful order of facts ends the same."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from docs import order_states
from loop.domain.attempts import (
    LIVE_STATUSES,
    UNPAID_STATUSES,
    ActionRequired,
    Approved,
    Attempt,
    AttemptStatus,
    Cancelled,
    Declined,
    NotSent,
    Outcome,
    Pending,
    Unknown,
    Voided,
)
from loop.domain.declines import DeclineClass
from loop.domain.errors import ErrorKind, LoopError
from loop.domain.events import EventType
from loop.domain.orders import (
    MAX_RAW_CODE_CHARACTERS,
    TABLE,
    Command,
    Fact,
    Ignored,
    Next,
    Order,
    OrderStatus,
    Refused,
    apply_outcome,
    decide,
    require,
)
from loop.domain.transactions import TransactionStatus, TransactionType
from tests.builders import MIDNIGHT, Clock, attempt, order

S, C, F = OrderStatus, Command, Fact
MONEY_FACTS = {F.AUTHORIZED, F.CAPTURED}
REFUND_FACTS = {F.PARTLY_REFUNDED, F.FULLY_REFUNDED, F.REFUNDS_REVERSED}
PAID = {S.CAPTURED, S.PARTIALLY_REFUNDED, S.REFUNDED}

CAPTURED = Approved("pi_1", is_captured=True, amount_minor=1_000, transaction_reference="ch_1")
HELD = Approved("pi_1", is_captured=False, amount_minor=1_000, transaction_reference="ch_1")
DECLINED = Declined("insufficient_funds", DeclineClass.LATER, "No.", raw_code="51")
NOT_SENT = NotSent("processor_unreachable", "Nobody was there.")
ACTION = ActionRequired("pi_1", redirect_url="https://bank.example/3ds")
OUTCOMES: list[Outcome] = [
    CAPTURED, HELD, DECLINED, NOT_SENT, ACTION, Pending("pi_1"), Cancelled("pi_1"), Voided("pi_1"), Unknown("silence"),
]  # fmt: skip


def test_every_cell_is_defined() -> None:
    assert set(TABLE) == set(OrderStatus)
    for row in TABLE.values():
        assert set(row) == {*Command, *Fact}


@pytest.mark.parametrize(("status", "fact"), list(product(OrderStatus, Fact)))
def test_facts_are_never_refused(status: OrderStatus, fact: Fact) -> None:
    cell = decide(status, fact)
    assert isinstance(cell, Next | Ignored)
    assert isinstance(cell, Next) or cell.reason


@pytest.mark.parametrize(("status", "command"), list(product(OrderStatus, Command)))
def test_commands_are_allowed_or_say_what_to_do(status: OrderStatus, command: Command) -> None:
    cell = decide(status, command)
    if isinstance(cell, Next):
        assert require(status, command) is cell.status
        return
    assert isinstance(cell, Refused)
    with pytest.raises(LoopError) as refused:
        require(status, command)
    assert (refused.value.code, refused.value.kind) == ("invalid_status", ErrorKind.INVALID)
    assert refused.value.message == f"The order is {status}. {cell.message}"


def allowed(command: Command) -> set[OrderStatus]:
    return {status for status in OrderStatus if isinstance(decide(status, command), Next)}


def test_commands_are_allowed_where_the_contract_says() -> None:
    assert allowed(C.PAY) == {S.PENDING}
    assert allowed(C.RETRY) == {S.FAILED}
    assert allowed(C.CAPTURE) == {S.AUTHORIZED}
    assert allowed(C.REFUND) == {S.CAPTURED, S.PARTIALLY_REFUNDED}
    assert allowed(C.CANCEL) == {S.PENDING, S.REQUIRES_ACTION, S.AUTHORIZED, S.FAILED}
    assert allowed(C.EXPIRE) == {S.PENDING, S.REQUIRES_ACTION, S.FAILED}


@pytest.mark.parametrize(("status", "fact"), list(product(sorted(PAID), Fact)))
def test_money_that_was_taken_stays_taken(status: OrderStatus, fact: Fact) -> None:
    cell = decide(status, fact)
    if isinstance(cell, Next):
        assert cell.status in PAID
        assert fact in REFUND_FACTS


def test_only_money_after_the_end_is_late() -> None:
    late = {
        (status, fact)
        for status, fact in product(OrderStatus, Fact)
        if isinstance(cell := decide(status, fact), Next) and cell.is_late
    }
    assert late == set(product({S.FAILED, S.CANCELLED}, MONEY_FACTS))


@pytest.mark.parametrize(("status", "fact"), list(product(sorted(set(OrderStatus) - PAID), sorted(REFUND_FACTS))))
def test_refunds_mean_nothing_where_nothing_was_captured(status: OrderStatus, fact: Fact) -> None:
    assert isinstance(decide(status, fact), Ignored)


def test_a_status_that_a_fact_leads_to_takes_that_fact_as_old_news() -> None:
    for status, fact in product(OrderStatus, Fact):
        cell = decide(status, fact)
        if isinstance(cell, Next):
            assert decide(cell.status, fact) == Ignored("already so")


def test_the_tables_are_drawn_as_they_are() -> None:
    drawn = Path(__file__).parents[2] / "docs" / "reference" / "order-states.md"
    assert drawn.read_text("utf-8") == order_states.markdown()


# What an outcome does to an order and its attempt.


def being_paid(*, is_manual: bool = False) -> tuple[Order, Attempt]:
    return (
        order(status=S.PROCESSING, processor="sandbox", attempt_count=1, is_manual_capture=is_manual),
        attempt(is_manual_capture=is_manual),
    )


def timeless(paid: Order, tried: Attempt) -> tuple[Order, Attempt]:
    """Return both without the times at which facts were heard of."""
    return replace(paid, updated_at=MIDNIGHT), replace(tried, updated_at=MIDNIGHT, unclear_since=None)


def after(facts: Sequence[Outcome], *, is_manual: bool = False) -> tuple[Order, Attempt]:
    clock = Clock()
    paid, tried = being_paid(is_manual=is_manual)
    for fact in facts:
        change = apply_outcome(paid, tried, outcome=fact, now=clock.now())
        paid, tried = change.order, change.attempt
    return timeless(paid, tried)


@pytest.mark.parametrize(
    ("outcome", "status", "event", "transactions"),
    [
        (CAPTURED, S.CAPTURED, EventType.PAYMENT_CAPTURED, [("capture", "success", 1_000, "ch_1")]),
        (HELD, S.AUTHORIZED, EventType.PAYMENT_AUTHORIZED, [("authorization", "success", 1_000, "ch_1")]),
        (DECLINED, S.FAILED, EventType.PAYMENT_FAILED, [("capture", "failed", 1_000, None)]),
        (NOT_SENT, S.FAILED, EventType.PAYMENT_FAILED, [("capture", "failed", 1_000, None)]),
        (ACTION, S.REQUIRES_ACTION, EventType.PAYMENT_REQUIRES_ACTION, []),
        (Cancelled("pi_1"), S.CANCELLED, EventType.PAYMENT_CANCELLED, []),
        (Voided("pi_1"), S.CANCELLED, EventType.PAYMENT_CANCELLED, [("void", "success", 1_000, "pi_1")]),
    ],
)
def test_what_each_outcome_changes(
    outcome: Outcome, status: OrderStatus, event: EventType, transactions: list[tuple[object, ...]]
) -> None:
    change = apply_outcome(*being_paid(), outcome=outcome, now=MIDNIGHT)
    assert (change.order.status, change.events, change.ignored) == (status, (event,), None)
    rows = [(t.type, t.status, t.amount_minor, t.processor_transaction_id) for t in change.transactions]
    assert rows == transactions


@pytest.mark.parametrize("outcome", [Pending("pi_1"), Unknown("silence")])
def test_what_is_not_known_yet_keeps_the_order_in_processing(outcome: Outcome) -> None:
    change = apply_outcome(*being_paid(), outcome=outcome, now=MIDNIGHT)
    assert (change.order.status, change.events, change.transactions) == (S.PROCESSING, (), ())
    assert (change.attempt.unclear_since is not None) is isinstance(outcome, Unknown)


def test_a_decline_is_kept_with_its_class_and_the_processor_s_own_code() -> None:
    long_code = "x" * 500
    paid, tried = being_paid()
    change = apply_outcome(paid, tried, outcome=replace(DECLINED, raw_code=long_code), now=MIDNIGHT)
    assert (change.order.last_error_code, change.order.last_error_message) == ("insufficient_funds", "No.")
    assert (change.attempt.error_code, change.attempt.decline_class) == ("insufficient_funds", "later")
    assert change.attempt.raw_error_code == "x" * MAX_RAW_CODE_CHARACTERS


@pytest.mark.parametrize(
    ("code", "decline_class"), [("configuration", "config"), ("rate_limited", "tech"), ("new_to_us", "tech")]
)
def test_a_request_that_was_not_sent_has_the_class_of_its_code(code: str, decline_class: str) -> None:
    change = apply_outcome(*being_paid(), outcome=NotSent(code, "No."), now=MIDNIGHT)
    assert change.attempt.decline_class == decline_class


def test_the_latest_try_s_decline_is_kept_while_the_payment_waits_for_another() -> None:
    paid, tried = after([ActionRequired("pi_1", client_secret="s")])
    decline = Declined("insufficient_funds", DeclineClass.LATER, "No.", raw_code="nsf", reference="pi_1")
    still = ActionRequired("pi_1", client_secret="s", decline=decline)
    refused = apply_outcome(paid, tried, outcome=still, now=MIDNIGHT)
    assert (refused.order, refused.events, refused.transactions) == (paid, (), ())
    kept = refused.attempt
    assert (kept.status, kept.error_code, kept.decline_class, kept.raw_error_code) == (
        AttemptStatus.REQUIRES_ACTION, "insufficient_funds", "later", "nsf",
    )  # fmt: skip
    assert kept.action == tried.action
    trying = apply_outcome(paid, kept, outcome=ActionRequired("pi_1", client_secret="s"), now=MIDNIGHT)
    assert replace(trying.attempt, updated_at=MIDNIGHT) == tried
    taken = apply_outcome(paid, kept, outcome=Approved("pi_1", is_captured=True, amount_minor=1_000), now=MIDNIGHT)
    assert (taken.attempt.status, taken.attempt.error_code, taken.order.last_error_code) == (
        AttemptStatus.CAPTURED, None, None,
    )  # fmt: skip


def test_what_the_customer_needs_is_kept_until_it_is_over() -> None:
    _, tried = after([ACTION])
    assert tried.action == {"redirectUrl": "https://bank.example/3ds"}
    _, tried = after([ACTION, CAPTURED])
    assert tried.action is None


def test_the_amounts_are_what_the_processor_says() -> None:
    paid, _ = after([HELD], is_manual=True)
    assert (paid.amount_authorized_minor, paid.amount_captured_minor) == (1_000, 0)
    part = replace(CAPTURED, amount_minor=600)
    paid, _ = after([HELD, part], is_manual=True)
    assert (paid.amount_authorized_minor, paid.amount_captured_minor, paid.needs_review) == (1_000, 600, False)
    paid, _ = after([HELD, Voided("pi_1")], is_manual=True)
    assert (paid.status, paid.amount_authorized_minor) == (S.CANCELLED, 0)


@pytest.mark.parametrize(
    ("outcome", "is_manual"),
    [
        (replace(CAPTURED, amount_minor=999), False),
        (replace(CAPTURED, amount_minor=1_001), False),
        (replace(CAPTURED, amount_minor=1_001), True),
        (replace(HELD, amount_minor=999), True),
        (replace(HELD, amount_minor=1_001), True),
    ],
)
def test_another_amount_than_was_asked_for_needs_a_person(outcome: Outcome, is_manual: bool) -> None:
    paid, _ = after([outcome], is_manual=is_manual)
    assert paid.needs_review


ALL_STATUSES = list(product(OrderStatus, AttemptStatus, range(len(OUTCOMES))))


@pytest.mark.parametrize("number", [1, 2])
def test_a_fact_twice_equals_once_in_every_state(number: int) -> None:
    clock = Clock()
    for status, tried, which in ALL_STATUSES:
        before = order(status=status, attempt_count=2)
        once = apply_outcome(before, attempt(status=tried, number=number), outcome=OUTCOMES[which], now=clock.now())
        twice = apply_outcome(once.order, once.attempt, outcome=OUTCOMES[which], now=clock.now())
        assert timeless(twice.order, twice.attempt) == timeless(once.order, once.attempt)
        assert (twice.transactions, twice.events) == ((), ())
        assert twice.ignored is not None


def test_no_fact_raises_whatever_the_state() -> None:
    for status, tried, which in ALL_STATUSES:
        change = apply_outcome(
            order(status=status, attempt_count=1), attempt(status=tried), outcome=OUTCOMES[which], now=MIDNIGHT
        )
        assert change.order.status in OrderStatus


# Histories: what one payment can truthfully go through, in the order in which it happened.

PRELUDES: list[Outcome] = [Unknown("silence"), Unknown("silence", "pi_1"), ACTION, Pending("pi_1")]
AUTOMATIC_ENDS: list[list[Outcome]] = [
    [], [DECLINED], [replace(DECLINED, reference="pi_1")], [Cancelled("pi_1")], [Cancelled()], [CAPTURED],
    [DECLINED, CAPTURED], [Cancelled("pi_1"), CAPTURED], [DECLINED, Cancelled()],
]  # fmt: skip
MANUAL_ENDS: list[list[Outcome]] = [
    [], [DECLINED], [Cancelled("pi_1")], [HELD], [HELD, CAPTURED], [HELD, replace(CAPTURED, amount_minor=600)],
    [HELD, Voided("pi_1")], [DECLINED, HELD, CAPTURED], [Cancelled(), HELD, Voided("pi_1")],
]  # fmt: skip


@st.composite
def histories(draw: st.DrawFn) -> tuple[bool, list[Outcome], list[Outcome]]:
    """Return whether the capture is manual, a truthful history, and the same facts shuffled, some of them twice."""
    is_manual = draw(st.booleans())
    prelude = [fact for fact in PRELUDES if draw(st.booleans())]
    ending = draw(st.sampled_from(MANUAL_ENDS if is_manual else AUTOMATIC_ENDS))
    history = [*prelude, *ending]
    again = [fact for fact in history if draw(st.booleans())]
    return is_manual, history, draw(st.permutations([*history, *again]))


@settings(max_examples=500)
@given(histories())
def test_any_truthful_order_of_facts_ends_the_same(case: tuple[bool, list[Outcome], list[Outcome]]) -> None:
    """Waiting for the customer and for the bank are of one rank: with neither the end, the next question tells."""
    is_manual, history, shuffled = case
    wanted = after(history, is_manual=is_manual)
    is_settled = wanted[1].status not in LIVE_STATUSES
    assert after(shuffled if is_settled else [*shuffled, *history[-1:]], is_manual=is_manual) == wanted


@pytest.mark.parametrize("ending", MANUAL_ENDS)
def test_every_permutation_of_a_short_history_ends_the_same(ending: list[Outcome]) -> None:
    history: list[Outcome] = [ACTION, Pending("pi_1"), *ending]
    wanted = after(history, is_manual=True)
    for shuffled in permutations(history):
        assert after(shuffled if ending else [*shuffled, history[-1]], is_manual=True) == wanted


@given(histories())
def test_each_movement_of_money_is_written_down_once(case: tuple[bool, list[Outcome], list[Outcome]]) -> None:
    is_manual, _, shuffled = case
    paid, tried = being_paid(is_manual=is_manual)
    moved = []
    for fact in shuffled:
        change = apply_outcome(paid, tried, outcome=fact, now=MIDNIGHT)
        paid, tried = change.order, change.attempt
        moved += [(t.type, t.amount_minor) for t in change.transactions if t.status is TransactionStatus.SUCCESS]
    assert len(moved) == len(set(moved))
    captures = sum(amount for kind, amount in moved if kind is TransactionType.CAPTURE)
    assert captures == paid.amount_captured_minor
    assert 0 <= paid.amount_captured_minor <= paid.amount_authorized_minor


# Two attempts: the first was given up, and its money came all the same.


def given_up_and_tried_again() -> tuple[Order, Attempt, Attempt]:
    first = attempt(status=AttemptStatus.FAILED, processor_reference="pi_1")
    second = attempt(id="att_2", number=2)
    return order(status=S.PROCESSING, attempt_count=2), first, second


def test_money_of_a_given_up_attempt_pays_the_order_and_is_late() -> None:
    paid, first, _ = given_up_and_tried_again()
    change = apply_outcome(paid, first, outcome=CAPTURED, now=MIDNIGHT)
    assert (change.order.status, change.order.processor_order_id) == (S.CAPTURED, "pi_1")
    assert change.events == (EventType.PAYMENT_CAPTURED, EventType.PAYMENT_LATE_SUCCESS)
    assert (change.is_late, change.is_second_payment) == (True, False)


def test_a_late_failure_of_a_given_up_attempt_does_not_touch_the_order() -> None:
    paid, first, _ = given_up_and_tried_again()
    change = apply_outcome(paid, first, outcome=Cancelled("pi_1"), now=MIDNIGHT)
    assert (change.order.status, change.events) == (S.PROCESSING, ())
    assert change.attempt.status is AttemptStatus.CANCELLED
    assert change.ignored == "superseded by a later attempt"


@pytest.mark.parametrize("outcome", [Cancelled("pi_1"), Voided("pi_1")])
@pytest.mark.parametrize("status", [S.FAILED, S.PROCESSING])
def test_the_end_of_an_attempt_that_was_given_up_for_another_is_not_its_order_s(
    status: OrderStatus, outcome: Outcome
) -> None:
    paid = order(status=status, attempt_count=1)
    tried = attempt(status=AttemptStatus.FAILED, processor_reference="pi_1", is_given_up=True)
    change = apply_outcome(paid, tried, outcome=outcome, now=MIDNIGHT)
    assert (change.order.status, change.events) == (status, ())
    assert change.attempt.status in UNPAID_STATUSES - {AttemptStatus.FAILED}
    assert change.ignored == "given up for another attempt"
    taken = apply_outcome(paid, tried, outcome=CAPTURED, now=MIDNIGHT)
    assert (taken.order.status, taken.is_late) == (S.CAPTURED, status is S.FAILED)


def test_a_release_of_the_newer_attempt_leaves_the_money_of_the_older_with_the_order() -> None:
    paid, first, second = given_up_and_tried_again()
    held = apply_outcome(paid, replace(first, is_manual_capture=True), outcome=HELD, now=MIDNIGHT)
    assert held.order.status is S.AUTHORIZED
    second = replace(second, status=AttemptStatus.FAILED, processor_reference="pi_2")
    released = apply_outcome(held.order, second, outcome=Voided("pi_2"), now=MIDNIGHT)
    assert released.attempt.status is AttemptStatus.VOIDED
    assert (released.order.status, released.events) == (S.AUTHORIZED, ())
    assert released.order.amount_authorized_minor == held.order.amount_authorized_minor


@pytest.mark.parametrize("is_first_heard_first", [True, False])
def test_a_second_payment_is_written_down_told_and_not_the_order_s(is_first_heard_first: bool) -> None:
    paid, first, second = given_up_and_tried_again()
    other = replace(CAPTURED, reference="pi_2", transaction_reference="ch_2")
    facts = [(first, CAPTURED), (second, other)]
    told: list[EventType] = []
    captured, second_payments = 0, []
    for tried, fact in facts if is_first_heard_first else reversed(facts):
        change = apply_outcome(paid, tried, outcome=fact, now=MIDNIGHT)
        paid = change.order
        told += change.events
        captured += sum(t.amount_minor for t in change.transactions)
        second_payments += [change.attempt.id] if change.is_second_payment else []
    assert (paid.status, paid.amount_captured_minor) == (S.CAPTURED, 1_000)
    assert second_payments == ["att_2" if is_first_heard_first else "att_1"]
    assert captured == 2_000
    assert told.count(EventType.PAYMENT_CAPTURED) == 1
    assert EventType.PAYMENT_LATE_SUCCESS in told


def test_money_after_a_cancellation_is_late_but_true() -> None:
    change = apply_outcome(
        order(status=S.CANCELLED, attempt_count=1), attempt(status=AttemptStatus.CANCELLED), outcome=CAPTURED,
        now=MIDNIGHT,
    )  # fmt: skip
    assert change.order.status is S.CAPTURED
    assert change.events == (EventType.PAYMENT_CAPTURED, EventType.PAYMENT_LATE_SUCCESS)


def test_what_is_private_is_not_shown() -> None:
    shown = repr(order(customer_email="zoe@example.com", description="canary", metadata={"k": "canary"}))
    assert "zoe" not in shown
    assert "canary" not in shown
