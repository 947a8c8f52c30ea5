"""Refunds: reserved before they are sent, never more than was captured, and the same in any truthful order."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loop.domain.errors import LoopError
from loop.domain.events import EventType
from loop.domain.orders import Order, OrderStatus
from loop.domain.refunds import (
    PUBLIC_STATUS,
    TABLE,
    Refund,
    RefundOutcome,
    RefundStatus,
    apply_refund_outcome,
    reserve,
)
from loop.domain.transactions import TransactionStatus, TransactionType
from tests.builders import MIDNIGHT, Clock, order, refund

S = RefundStatus

MOVES: dict[RefundStatus, set[RefundStatus]] = {
    S.SUBMITTING: {S.UNKNOWN, S.PENDING, S.SUCCEEDED, S.FAILED},
    S.UNKNOWN: {S.PENDING, S.SUCCEEDED, S.FAILED},
    S.PENDING: {S.SUCCEEDED, S.FAILED},
    S.SUCCEEDED: {S.FAILED},  # the bank sent it back
    S.FAILED: set(),
}


def test_every_cell_is_defined() -> None:
    assert set(TABLE) == set(product(RefundStatus, RefundStatus))
    assert set(PUBLIC_STATUS) == set(RefundStatus)
    assert set(PUBLIC_STATUS.values()) == {"pending", "success", "failed"}


@pytest.mark.parametrize("current", RefundStatus)
def test_each_status_moves_where_the_table_of_this_test_says(current: RefundStatus) -> None:
    assert {claimed for claimed in RefundStatus if TABLE[current, claimed]} == MOVES[current]


def captured(**changes: object) -> Order:
    return order(
        **{"status": OrderStatus.CAPTURED, "amount_authorized_minor": 1_000, "amount_captured_minor": 1_000, **changes}
    )


@pytest.mark.parametrize(
    ("reserved", "asked", "wanted"), [(0, None, 1_000), (0, 400, 400), (300, None, 700), (300, 700, 700)]
)
def test_a_refund_reserves_what_it_asks_for_or_all_that_is_left(reserved: int, asked: int | None, wanted: int) -> None:
    after, amount = reserve(captured(amount_refund_reserved_minor=reserved), asked, now=MIDNIGHT)
    assert amount == wanted
    assert after.amount_refund_reserved_minor == reserved + wanted


@pytest.mark.parametrize(("reserved", "asked"), [(0, 1_001), (300, 701), (1_000, 1), (1_000, None), (0, 0), (0, -1)])
def test_more_than_is_left_is_refused(reserved: int, asked: int | None) -> None:
    with pytest.raises(LoopError) as refused:
        reserve(captured(amount_refund_reserved_minor=reserved), asked, now=MIDNIGHT)
    assert refused.value.code == "refund_exceeds_captured"


@pytest.mark.parametrize("status", sorted(set(OrderStatus) - {OrderStatus.CAPTURED, OrderStatus.PARTIALLY_REFUNDED}))
def test_only_captured_money_is_refunded(status: OrderStatus) -> None:
    with pytest.raises(LoopError) as refused:
        reserve(captured(status=status), 1, now=MIDNIGHT)
    assert refused.value.code == "invalid_status"


def refunding(*amounts: int) -> tuple[Order, list[Refund]]:
    """Return a captured order with these refunds reserved and not sent yet."""
    paid, rows = captured(), []
    for number, amount in enumerate(amounts):
        paid, _ = reserve(paid, amount, now=MIDNIGHT)
        rows.append(refund(id=f"ref_{number}", amount_minor=amount))
    return paid, rows


@pytest.mark.parametrize(("amount", "status"), [(400, OrderStatus.PARTIALLY_REFUNDED), (1_000, OrderStatus.REFUNDED)])
def test_a_refund_that_succeeds(amount: int, status: OrderStatus) -> None:
    paid, (row,) = refunding(amount)
    change = apply_refund_outcome(paid, row, outcome=RefundOutcome(S.SUCCEEDED, "re_1"), now=MIDNIGHT)
    assert (change.order.status, change.order.amount_refunded_minor) == (status, amount)
    assert change.order.amount_refund_reserved_minor == amount
    assert change.refund.processor_reference == "re_1"
    assert change.events == (EventType.REFUND_PROCESSED,)
    (moved,) = change.transactions
    assert (moved.type, moved.status, moved.amount_minor, moved.processor_transaction_id) == (
        TransactionType.REFUND, TransactionStatus.SUCCESS, amount, "re_1",
    )  # fmt: skip


def test_a_refund_that_fails_gives_its_amount_free_again() -> None:
    paid, (row,) = refunding(400)
    outcome = RefundOutcome(S.FAILED, error_code="refund_refused", error_message="No.")
    change = apply_refund_outcome(paid, row, outcome=outcome, now=MIDNIGHT)
    assert (change.order.status, change.order.amount_refund_reserved_minor) == (OrderStatus.CAPTURED, 0)
    assert (change.refund.error_code, change.events) == ("refund_refused", (EventType.REFUND_FAILED,))
    assert change.transactions[0].status is TransactionStatus.FAILED


def test_a_refund_that_the_bank_sends_back_is_undone() -> None:
    paid, (row,) = refunding(1_000)
    first = apply_refund_outcome(paid, row, outcome=RefundOutcome(S.SUCCEEDED, "re_1"), now=MIDNIGHT)
    second = apply_refund_outcome(first.order, first.refund, outcome=RefundOutcome(S.FAILED, "re_1"), now=MIDNIGHT)
    assert second.order.status is OrderStatus.CAPTURED
    assert (second.order.amount_refunded_minor, second.order.amount_refund_reserved_minor) == (0, 0)


@pytest.mark.parametrize("status", [S.UNKNOWN, S.PENDING])
def test_what_is_not_known_yet_keeps_its_reservation(status: RefundStatus) -> None:
    paid, (row,) = refunding(400)
    change = apply_refund_outcome(paid, row, outcome=RefundOutcome(status, "re_1"), now=MIDNIGHT)
    assert change.order == paid
    assert (change.events, change.transactions) == ((), ())
    assert change.refund.status is status


# Histories: what refunds can truthfully go through, several of them at once.

HISTORIES: list[list[RefundStatus]] = [
    [], [S.SUCCEEDED], [S.FAILED], [S.PENDING], [S.UNKNOWN], [S.PENDING, S.SUCCEEDED], [S.PENDING, S.FAILED],
    [S.UNKNOWN, S.PENDING, S.SUCCEEDED], [S.SUCCEEDED, S.FAILED], [S.PENDING, S.SUCCEEDED, S.FAILED],
]  # fmt: skip

Said = tuple[int, RefundStatus]


@st.composite
def told(draw: st.DrawFn) -> tuple[list[int], list[Said], list[Said]]:
    """Return the amounts of refunds, what truthfully happens to them, and the same shuffled, some of it twice."""
    amounts = draw(st.lists(st.integers(1, 250), min_size=1, max_size=4))
    facts = [(number, status) for number in range(len(amounts)) for status in draw(st.sampled_from(HISTORIES))]
    again = [fact for fact in facts if draw(st.booleans())]
    return amounts, facts, draw(st.permutations([*facts, *again]))


def after(amounts: Sequence[int], facts: Sequence[Said]) -> tuple[Order, list[Refund]]:
    clock = Clock()
    paid, rows = refunding(*amounts)
    for number, status in facts:
        change = apply_refund_outcome(
            paid, rows[number], outcome=RefundOutcome(status, f"re_{number}"), now=clock.now()
        )
        paid, rows[number] = change.order, change.refund
        assert 0 <= paid.amount_refunded_minor <= paid.amount_refund_reserved_minor <= paid.amount_captured_minor
    return replace(paid, updated_at=MIDNIGHT), [replace(row, updated_at=MIDNIGHT) for row in rows]


@settings(max_examples=400)
@given(told())
def test_any_truthful_order_of_facts_ends_the_same(case: tuple[list[int], list[Said], list[Said]]) -> None:
    amounts, facts, shuffled = case
    assert after(amounts, shuffled) == after(amounts, facts)


@given(told())
def test_the_totals_are_the_sums_of_the_refunds(case: tuple[list[int], list[Said], list[Said]]) -> None:
    amounts, _, shuffled = case
    paid, rows = after(amounts, shuffled)
    assert paid.amount_refunded_minor == sum(row.amount_minor for row in rows if row.status is S.SUCCEEDED)
    assert paid.amount_refund_reserved_minor == sum(row.amount_minor for row in rows if row.status is not S.FAILED)


@given(st.sampled_from(RefundStatus), st.sampled_from(RefundStatus))
def test_a_fact_twice_equals_once(current: RefundStatus, claimed: RefundStatus) -> None:
    paid = captured(amount_refund_reserved_minor=400, amount_refunded_minor=400 if current is S.SUCCEEDED else 0)
    outcome = RefundOutcome(claimed, "re_1")
    once = apply_refund_outcome(paid, refund(status=current), outcome=outcome, now=MIDNIGHT)
    twice = apply_refund_outcome(once.order, once.refund, outcome=outcome, now=MIDNIGHT)
    assert (twice.order, twice.refund) == (once.order, once.refund)
    assert (twice.transactions, twice.events) == ((), ())


ASKS = st.lists(st.tuples(st.integers(-5, 1_200) | st.none(), st.sampled_from(HISTORIES)), max_size=8)


@given(ASKS)
def test_no_row_of_requests_and_answers_refunds_more_than_was_captured(
    asks: list[tuple[int | None, list[RefundStatus]]],
) -> None:
    paid = captured()
    for asked, history in asks:
        try:
            paid, amount = reserve(paid, asked, now=MIDNIGHT)
        except LoopError:
            continue
        assert amount > 0
        row = refund(amount_minor=amount)
        for status in history:
            change = apply_refund_outcome(paid, row, outcome=RefundOutcome(status), now=MIDNIGHT)
            paid, row = change.order, change.refund
        assert 0 <= paid.amount_refunded_minor <= paid.amount_refund_reserved_minor <= paid.amount_captured_minor
        assert (paid.status is OrderStatus.REFUNDED) is (paid.amount_refunded_minor == paid.amount_captured_minor)
