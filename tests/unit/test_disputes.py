"""Disputes: the table cell by cell, what counts on the order, and the same end in any truthful order."""

from dataclasses import replace
from datetime import timedelta
from itertools import permutations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.domain.disputes import (
    AT_STAKE,
    DECIDED,
    MAX_REASON_CHARACTERS,
    TABLE,
    Dispute,
    DisputeOutcome,
    DisputeStatus,
    Ignored,
    Moved,
    apply_dispute,
    claimed_by,
    decide,
)
from loop.domain.errors import LoopError
from loop.domain.events import EventType
from loop.domain.money import Money
from loop.domain.orders import Order, OrderStatus
from loop.domain.refunds import reserve
from tests.builders import MIDNIGHT, attempt, dispute, order

S = DisputeStatus
OPENED, WON, LOST = EventType.DISPUTE_OPENED, EventType.DISPUTE_WON, EventType.DISPUTE_LOST
SAME, BEHIND, OVER = "already so", "the dispute is further on", "the dispute is decided"

CELLS: dict[DisputeStatus | None, dict[DisputeStatus, EventType | str]] = {
    None: {S.INQUIRY: OPENED, S.OPENED: OPENED, S.WON: WON, S.LOST: LOST, S.CLOSED: WON},
    S.INQUIRY: {S.INQUIRY: SAME, S.OPENED: OPENED, S.WON: WON, S.LOST: LOST, S.CLOSED: WON},
    S.OPENED: {S.INQUIRY: BEHIND, S.OPENED: SAME, S.WON: WON, S.LOST: LOST, S.CLOSED: WON},
    S.WON: {S.INQUIRY: OVER, S.OPENED: OVER, S.WON: SAME, S.LOST: LOST, S.CLOSED: OVER},
    S.LOST: {S.INQUIRY: OVER, S.OPENED: OVER, S.WON: WON, S.LOST: SAME, S.CLOSED: OVER},
    S.CLOSED: {S.INQUIRY: OVER, S.OPENED: OVER, S.WON: OVER, S.LOST: LOST, S.CLOSED: SAME},
}


def test_every_cell_is_defined() -> None:
    assert set(TABLE) == {None, *S}
    assert all(set(cells) == set(S) for cells in TABLE.values())
    assert set(S) - {S.INQUIRY} == AT_STAKE | DECIDED


@pytest.mark.parametrize(("status", "claimed"), [*product([None, *S], S)])
def test_each_cell_is_what_the_table_of_this_test_says(status: DisputeStatus | None, claimed: DisputeStatus) -> None:
    cell = decide(status, claimed)
    expected = CELLS[status][claimed]
    assert cell == (Moved(expected) if isinstance(expected, EventType) else Ignored(expected))


def captured(**changes: object) -> Order:
    return order(
        **{"status": OrderStatus.CAPTURED, "amount_authorized_minor": 1_000, "amount_captured_minor": 1_000, **changes}
    )


def claim(status: DisputeStatus, paid: Order | None = None, **changes: object) -> Dispute:
    outcome = DisputeOutcome("sbxd_1", "sbx_1", status, Money(1_000, "EUR"), "fraudulent", MIDNIGHT)
    told = replace(outcome, **changes)  # type: ignore[arg-type] # any field
    paid = paid or captured()
    return claimed_by(paid, attempt(), outcome=told, dispute_id=f"dsp_{status}", now=MIDNIGHT + timedelta(hours=1))


@pytest.mark.parametrize("status", S)
def test_only_what_is_open_or_lost_counts(status: DisputeStatus) -> None:
    paid = captured()
    change = apply_dispute(paid, [], claimed=claim(status))
    assert change.order.amount_disputed_minor == (1_000 if status in (S.OPENED, S.LOST) else 0)
    assert change.order.status is paid.status
    assert not change.order.needs_review
    assert change.dispute == claim(status)
    assert len(change.events) == 1


@pytest.mark.parametrize(("status", "claimed"), [*product(S, S)])
def test_what_is_ignored_changes_nothing(status: DisputeStatus, claimed: DisputeStatus) -> None:
    before = replace(claim(status), id="dsp_1", created_at=MIDNIGHT, updated_at=MIDNIGHT)
    paid = captured(amount_disputed_minor=before.counted_minor)
    change = apply_dispute(paid, [before], claimed=claim(claimed))
    if isinstance(decide(status, claimed), Ignored):
        assert (change.order, change.dispute, change.events) == (paid, before, ())
        assert change.ignored
        return
    assert (change.dispute.id, change.dispute.created_at) == ("dsp_1", MIDNIGHT)
    assert (change.dispute.status, change.dispute.updated_at) == (claimed, MIDNIGHT + timedelta(hours=1))
    assert change.order.amount_disputed_minor == change.dispute.counted_minor
    assert len(change.events) == 1


def test_new_details_of_the_same_status_are_learnt_without_an_event() -> None:
    before = claim(S.OPENED)
    paid = captured(amount_disputed_minor=1_000)
    later = MIDNIGHT + timedelta(days=3)
    change = apply_dispute(paid, [before], claimed=claim(S.OPENED, amount=Money(400, "EUR"), due_by=later))
    assert (change.dispute.amount_minor, change.dispute.due_by, change.events) == (400, later, ())
    assert change.order.amount_disputed_minor == 400


def test_old_details_of_a_status_that_is_past_are_not() -> None:
    before = claim(S.LOST)
    change = apply_dispute(captured(), [before], claimed=claim(S.OPENED, amount=Money(400, "EUR")))
    assert change.dispute == before


def test_several_disputes_of_one_order_add_up() -> None:
    first = dispute(processor_reference="sbxd_0", amount_minor=300, counted_minor=300)
    second = claim(S.OPENED, amount=Money(500, "EUR"))
    paid = captured(amount_disputed_minor=300)
    change = apply_dispute(paid, [first], claimed=second)
    assert change.order.amount_disputed_minor == 800
    won = apply_dispute(change.order, [first, change.dispute], claimed=claim(S.WON, amount=Money(500, "EUR")))
    assert (won.order.amount_disputed_minor, won.dispute.id) == (300, change.dispute.id)


def test_another_account_s_dispute_of_the_same_name_is_another() -> None:
    first = replace(claim(S.OPENED), processor_config_id="pcf_2", counted_minor=300)
    change = apply_dispute(captured(), [first], claimed=claim(S.OPENED, amount=Money(200, "EUR")))
    assert (change.dispute.id, change.order.amount_disputed_minor) == ("dsp_opened", 500)


@pytest.mark.parametrize("status", S)
@pytest.mark.parametrize("reserved", [0, 400, 1_000])
def test_what_was_refunded_and_is_taken_again_needs_a_person(status: DisputeStatus, reserved: int) -> None:
    refunded = captured(amount_refund_reserved_minor=reserved, amount_refunded_minor=reserved)
    change = apply_dispute(refunded, [], claimed=claim(status))
    assert change.order.needs_review is (status in (S.OPENED, S.LOST) and reserved > 0)
    assert change.order.amount_refunded_minor == reserved


def test_more_than_was_captured_needs_a_person() -> None:
    assert apply_dispute(captured(), [], claimed=claim(S.LOST, amount=Money(1_001, "EUR"))).order.needs_review
    unpaid = order(amount_captured_minor=0)
    change = apply_dispute(unpaid, [], claimed=claim(S.LOST, unpaid))
    assert (change.order.needs_review, change.order.amount_disputed_minor) == (True, 1_000)


def test_a_review_that_was_wanted_stays_wanted() -> None:
    assert apply_dispute(captured(needs_review=True), [], claimed=claim(S.WON)).order.needs_review


def test_another_currency_counts_as_all_that_was_captured_and_needs_a_person() -> None:
    change = apply_dispute(captured(), [], claimed=claim(S.OPENED, amount=Money(70, "USD")))
    assert (change.dispute.amount_minor, change.dispute.currency) == (70, "USD")
    assert (change.order.amount_disputed_minor, change.order.needs_review) == (1_000, True)
    won = apply_dispute(change.order, [change.dispute], claimed=claim(S.WON, amount=Money(70, "USD")))
    assert won.order.amount_disputed_minor == 0


def test_a_second_payment_s_dispute_takes_nothing_from_the_order_and_needs_a_person() -> None:
    outcome = DisputeOutcome("sbxd_1", "sbx_1", S.LOST, Money(1_000, "EUR"))
    second = attempt(is_duplicate=True)
    claimed = claimed_by(captured(), second, outcome=outcome, dispute_id="dsp_1", now=MIDNIGHT)
    change = apply_dispute(captured(), [], claimed=claimed)
    assert (change.order.amount_disputed_minor, change.order.needs_review) == (0, True)
    assert change.events == (LOST,)


@pytest.mark.parametrize(
    ("reason", "kept"),
    [(None, None), ("", None), ("\x00\n", None), ("frau\x00dulent", "fraudulent"),
     ("x" * 300, "x" * MAX_REASON_CHARACTERS)],
)  # fmt: skip
def test_a_reason_is_kept_as_far_as_it_can_be_stored(reason: str | None, kept: str | None) -> None:
    assert claim(S.OPENED, reason=reason).reason == kept


@pytest.mark.parametrize("truth", [(S.INQUIRY, S.OPENED, S.LOST), (S.OPENED, S.WON), (S.INQUIRY, S.CLOSED)])
def test_repeated_and_in_any_order_the_last_truth_stays(truth: tuple[DisputeStatus, ...]) -> None:
    for heard in permutations([*truth, *truth]):
        paid, known, events = captured(), list[Dispute](), list[EventType]()
        for status in heard:
            change = apply_dispute(paid, known, claimed=claim(status))
            paid, known = change.order, [change.dispute]
            events += change.events
        assert known[0].status is truth[-1]
        assert paid.amount_disputed_minor == (1_000 if truth[-1] is S.LOST else 0)
        assert events.count(events[-1]) == 1
        assert len(events) <= len(truth)


@pytest.mark.parametrize(
    ("disputed", "reserved", "asked", "wanted"),
    [(0, 0, None, 1_000), (400, 0, None, 600), (400, 100, None, 500), (400, 0, 600, 600), (999, 0, 1, 1)],
)
def test_what_is_disputed_is_not_refunded(disputed: int, reserved: int, asked: int | None, wanted: int) -> None:
    paid = captured(amount_disputed_minor=disputed, amount_refund_reserved_minor=reserved)
    after, amount = reserve(paid, asked, now=MIDNIGHT)
    assert amount == wanted
    assert after.amount_refund_reserved_minor == reserved + wanted


@pytest.mark.parametrize(
    ("disputed", "reserved", "asked"), [(1_000, 0, None), (1_000, 0, 1), (400, 0, 601), (400, 600, 1), (1_000, 300, 1)]
)
def test_a_refund_of_what_is_disputed_is_refused_and_says_so(disputed: int, reserved: int, asked: int | None) -> None:
    paid = captured(amount_disputed_minor=disputed, amount_refund_reserved_minor=reserved)
    with pytest.raises(LoopError, match=f"{disputed} are disputed") as refused:
        reserve(paid, asked, now=MIDNIGHT)
    assert refused.value.code == "refund_exceeds_captured"
    assert "Only -" not in refused.value.message


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(S), st.integers(0, 2_000)), max_size=12),
    st.integers(0, 1_000),
)
def test_whatever_is_heard_the_total_is_the_sum_and_never_refused(
    heard: list[tuple[str, DisputeStatus, int]], reserved: int
) -> None:
    paid, known = captured(amount_refund_reserved_minor=reserved), dict[str, Dispute]()
    for name, status, amount in heard:
        claimed = replace(claim(status, amount=Money(amount, "EUR")), processor_reference=name)
        change = apply_dispute(paid, list(known.values()), claimed=claimed)
        paid, known[name] = change.order, change.dispute
        assert paid.amount_disputed_minor == sum(
            each.amount_minor for each in known.values() if each.status in AT_STAKE
        )
