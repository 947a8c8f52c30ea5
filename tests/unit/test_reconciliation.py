"""What a day's comparison finds, to which day things belong, and when a day is looked at again."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.domain.money import Money
from loop.domain.movements import Movement, MovementKind
from loop.domain.reconciliation import (
    BORDER_MARGIN,
    CATCH_UP_DAYS,
    GRACE_MAX,
    LOOKBACK_MAX,
    RERUN_AFTER,
    Booking,
    Comparison,
    CurrencyTotals,
    Day,
    Finding,
    FindingKind,
    LastRun,
    books_of,
    compare,
    is_due,
    past_days,
    searched_from,
    unclaimed,
)

FIRST = date(2026, 3, 2)
START = datetime(2026, 3, 2, tzinfo=UTC)
NOON = START + timedelta(hours=12)
AN_HOUR = timedelta(hours=1)
A_DAY = timedelta(days=1)
PRICE = Money(1_000, "EUR")
K, F = MovementKind, FindingKind


def day(number: int = 0, **changes: object) -> Day:
    """Return a day after `FIRST`, looked at three hours after its end, of an account that has long been there."""
    usual = Day(
        FIRST + number * A_DAY, START + (number + 1) * A_DAY + 3 * AN_HOUR, timedelta(0), START - timedelta(days=99)
    )
    return replace(usual, **changes)  # type: ignore[arg-type] # any field


def paid(name: str = "1", at: datetime = NOON, **changes: object) -> Booking:
    """Return a payment that was begun and taken a minute ago."""
    usual = Booking(f"ord_{name}", f"att_{name}", None, f"pi_{name}", PRICE, at - timedelta(minutes=1), at, None)
    return replace(usual, **changes)  # type: ignore[arg-type] # any field


def refunded(name: str = "1", at: datetime = NOON, **changes: object) -> Booking:
    """Return a refund of all of that payment."""
    return replace(paid(name, at, refund_id=f"ref_{name}", reference=f"re_{name}"), **changes)  # type: ignore[arg-type] # any field


def moved(name: str = "1", at: datetime = NOON, kind: MovementKind = K.CHARGE, **changes: object) -> Movement:
    """Return what the processor lists of that payment, or of that refund."""
    is_refund = kind in (K.REFUND, K.REFUND_REVERSAL)
    usual = Movement(kind, f"{'re' if is_refund else 'ch'}_{name}", PRICE, at, payment_reference=f"pi_{name}")
    return replace(usual, **changes)  # type: ignore[arg-type] # any field


def look(bookings: Iterable[Booking], movements: Iterable[Movement], at: Day | None = None) -> Comparison:
    return compare(at or day(), books_of(bookings), movements=movements)


def kinds(comparison: Comparison) -> list[tuple[str, str, str | None]]:
    return [(each.kind, each.movement_kind, each.order_id) for each in comparison.findings]


def test_both_sides_agree() -> None:
    found = look([paid(), refunded()], [moved(), moved(kind=K.REFUND)])
    assert (found.matched, found.awaited, found.findings) == (2, 0, ())
    assert found.totals == (CurrencyTotals("EUR", 1_000, 1_000, 1_000, 1_000),)


def test_the_processor_took_money_that_loop_knows_nothing_of() -> None:
    found = look([], [moved("9")])
    assert found.findings == (Finding(F.MISSING_HERE, K.CHARGE, "ch_9", None, None, None, PRICE, NOON),)
    assert (found.matched, found.count(F.MISSING_HERE), found.count(F.MISSING_THERE)) == (0, 1, 0)
    assert found.totals == (CurrencyTotals("EUR", charged_there=1_000),)


def test_a_refund_that_nobody_ordered_here_names_the_order_of_its_payment() -> None:
    found = look([paid(at=START - 9 * A_DAY)], [moved(kind=K.REFUND)])
    assert kinds(found) == [("missing_here", "refund", "ord_1")]


def test_loop_has_money_that_the_processor_does_not_list() -> None:
    found = look([paid(), refunded()], [moved()])
    assert found.findings == (Finding(F.MISSING_THERE, K.REFUND, "re_1", "ord_1", "ref_1", PRICE, None, NOON),)
    assert found.totals == (CurrencyTotals("EUR", 1_000, 1_000, 1_000, 0),)


@pytest.mark.parametrize("amount", [Money(999, "EUR"), Money(1_000, "USD")])
def test_another_amount_or_currency_differs(amount: Money) -> None:
    found = look([paid()], [moved(amount=amount)])
    assert found.findings == (Finding(F.AMOUNT_DIFFERS, K.CHARGE, "ch_1", "ord_1", None, PRICE, amount, NOON),)
    assert found.matched == 0


def test_an_amount_as_paid_out_differs_only_in_its_own_currency() -> None:
    of_payout = moved(amount=Money(90_000, "INR"), is_as_settled=True)
    assert look([paid()], [of_payout]).findings == ()
    assert kinds(look([paid()], [replace(of_payout, amount=Money(999, "EUR"))]))[0][0] == "amount_differs"


def test_two_charges_for_one_payment_add_up() -> None:
    twice = [moved(), moved(reference="ch_1b")]
    assert kinds(look([paid()], twice)) == [("amount_differs", "charge", "ord_1")]
    assert look([paid(amount=Money(2_000, "EUR"))], twice).matched == 1


def test_a_movement_is_known_by_loop_s_own_ids_where_the_processor_s_were_never_heard() -> None:
    unheard = [paid(reference=None), refunded(reference=None)]
    movements = [
        moved(payment_reference="pi_other", attempt_id="att_1"),
        moved(kind=K.REFUND, reference="re_other", refund_id="ref_1"),
    ]
    assert look(unheard, movements).matched == 2


@pytest.mark.parametrize("seconds", [-7_199, -1, 0, 1, 7_199])
def test_the_two_sides_may_write_on_either_side_of_midnight(seconds: int) -> None:
    there, here = moved(at=START + A_DAY - timedelta(seconds=1)), paid(at=START + A_DAY + timedelta(seconds=seconds))
    first, second = look([here], [there], day()), look([here], [there], day(1))
    assert (first.findings, second.findings) == ((), ())
    assert (first.matched, second.matched) == (1, 0)


def test_a_movement_of_another_day_is_left_to_that_day() -> None:
    before, after = moved("8", START - timedelta(seconds=1)), moved("9", START + A_DAY)
    assert look([], [before, after]) == Comparison(0, 0, (), ())
    assert unclaimed(day(), books_of([]), movements=[before, after]) == []
    assert unclaimed(day(), books_of([paid()]), movements=[moved(), moved("9")]) == [moved("9")]


def test_what_moved_before_the_account_came_to_loop_is_none_of_its() -> None:
    joined = day(opened_at=NOON)
    found = look([], [moved("8", NOON - timedelta(seconds=1)), moved("9", NOON)], joined)
    assert [each.reference for each in found.findings] == ["ch_9"]


def test_what_may_be_listed_later_is_awaited_until_the_grace_is_over() -> None:
    within = timedelta(days=4)
    last = NOON + within
    for now, expected in ((last - timedelta(seconds=1), (1, 0)), (last, (0, 1))):
        found = look([paid()], [], day(listed_within=within, now=now))
        assert (found.awaited, found.count(F.MISSING_THERE)) == expected
    endless = day(listed_within=timedelta.max, now=NOON + GRACE_MAX)
    assert look([paid()], [], endless).count(F.MISSING_THERE) == 1


def test_what_was_written_down_late_is_searched_before_the_day() -> None:
    late = paid(began_at=START - timedelta(days=3))
    assert searched_from(day(), books_of([late]), movements=[]) == START - timedelta(days=3) - BORDER_MARGIN
    assert searched_from(day(), books_of([late]), movements=[moved()]) is None
    assert searched_from(day(listed_within=A_DAY), books_of([late]), movements=[]) is None  # it may still be listed
    assert searched_from(day(), books_of([paid()]), movements=[]) is None
    ancient = paid(began_at=START - timedelta(days=80))
    assert searched_from(day(), books_of([ancient]), movements=[]) == START - LOOKBACK_MAX
    found = look([late], [moved(at=START - timedelta(days=2))])
    assert (found.matched, found.findings) == (0, ())


def test_money_of_a_payment_that_failed_here_is_missing_here() -> None:
    for here in (paid(taken_at=None), paid(taken_at=None, undone_at=NOON)):
        found = look([here], [moved()])
        assert kinds(found) == [("missing_here", "charge", "ord_1")]
        assert found.findings[0].here is None


def test_money_of_a_pending_payment_may_be_listed_already() -> None:
    found = look([paid(taken_at=None, is_pending=True)], [moved()])
    assert (found.awaited, found.findings) == (1, ())


def test_a_day_is_judged_by_what_was_known_of_it() -> None:
    failed_later = paid(taken_at=None, undone_at=START + 3 * A_DAY)
    found = look([failed_later], [moved()], day(now=START + 9 * A_DAY))
    assert (found.matched, found.findings) == (1, ())


def test_a_refund_that_came_back_is_taken_off_again() -> None:
    back = moved(at=NOON + AN_HOUR, kind=K.REFUND_REVERSAL)
    known = look([refunded(undone_at=NOON + AN_HOUR)], [moved(kind=K.REFUND), back])
    assert (known.matched, known.findings) == (2, ())
    assert known.totals == (CurrencyTotals("EUR"),)
    unknown = look([refunded()], [moved(kind=K.REFUND), back])
    assert kinds(unknown) == [("missing_here", "refund_reversal", "ord_1")]
    never_taken = look([refunded(taken_at=None, undone_at=NOON)], [moved(kind=K.REFUND), back])
    assert never_taken.findings == ()


def test_a_refund_that_failed_here_and_not_there_is_found() -> None:
    found = look([refunded(taken_at=None, undone_at=NOON)], [moved(kind=K.REFUND)])
    assert kinds(found) == [("missing_here", "refund", "ord_1")]


def test_a_refund_that_failed_is_not_missed_there() -> None:
    assert look([refunded(undone_at=NOON)], []).findings == ()


def test_a_charge_that_the_bank_took_back_is_found() -> None:
    back = moved(at=NOON + AN_HOUR, kind=K.CHARGE_REVERSAL)
    assert kinds(look([paid()], [moved(), back])) == [("missing_here", "charge_reversal", "ord_1")]
    assert look([paid(taken_at=None, undone_at=NOON + AN_HOUR)], [moved(), back]).findings == ()


def test_fees_are_summed_in_their_own_currency() -> None:
    found = look([paid()], [moved(fee=Money(31, "USD"))])
    assert found.totals == (CurrencyTotals("EUR", 1_000, 1_000), CurrencyTotals("USD", fees=31))


moments = st.integers(0, 4 * 86_400 - 1).map(lambda seconds: START + timedelta(seconds=seconds))
skews = st.integers(-7_000, 7_000).map(lambda seconds: timedelta(seconds=seconds))
pairs = st.lists(st.tuples(moments, skews, st.booleans()), max_size=12)


def both_sides(of: Sequence[tuple[datetime, timedelta, bool]]) -> tuple[list[Booking], list[Movement]]:
    here, there = [], []
    for number, (at, skew, is_refund) in enumerate(of):
        here.append((refunded if is_refund else paid)(str(number), at + skew))
        there.append(moved(str(number), at, K.REFUND if is_refund else K.CHARGE))
    return here, there


def listed(movements: Iterable[Movement], at: Day) -> list[Movement]:
    """Return what a processor lists when it is asked for a day."""
    return [each for each in movements if at.listed_from <= each.occurred_at < at.listed_until]


@given(pairs, st.data())
def test_equal_books_have_no_findings_and_each_pair_counts_on_one_day(
    of: list[tuple[datetime, timedelta, bool]], chance: st.DataObject
) -> None:
    here, there = both_sides(of)
    shuffled = chance.draw(st.permutations(there))
    days = [day(number) for number in range(-1, 5)]
    found = [look(here, listed(shuffled, each), each) for each in days]
    assert all(each.findings == () for each in found)
    assert sum(each.matched for each in found) == len(of)
    assert found == [look(here, listed(there, each), each) for each in days]


@given(pairs, st.sets(st.integers(0, 11)), st.lists(moments, max_size=5))
def test_exactly_what_is_left_out_or_added_is_found_once(
    of: list[tuple[datetime, timedelta, bool]], left_out: set[int], strange: list[datetime]
) -> None:
    here, there = both_sides(of)
    kept = [each for number, each in enumerate(there) if number not in left_out]
    kept += [moved(f"strange{number}", at) for number, at in enumerate(strange)]
    found = [
        finding
        for each in (day(number) for number in range(-1, 5))
        for finding in look(here, listed(kept, each), each).findings
    ]
    lost = [each.order_id for number, each in enumerate(here) if number in left_out]
    assert sorted(str(each.order_id) for each in found if each.kind is F.MISSING_THERE) == sorted(lost)
    references = sorted(str(each.reference) for each in found if each.kind is F.MISSING_HERE)
    assert references == sorted(f"ch_strange{number}" for number in range(len(strange)))
    assert not any(each.kind is F.AMOUNT_DIFFERS for each in found)


@given(pairs, pairs)
def test_totals_are_of_all_that_is_matched_missed_or_found(
    of: list[tuple[datetime, timedelta, bool]], more: list[tuple[datetime, timedelta, bool]]
) -> None:
    here, there = both_sides(of)
    there += [replace(each, payment_reference=None, reference=f"x{each.reference}") for each in both_sides(more)[1]]
    totals = [
        total
        for each in (day(number) for number in range(-1, 5))
        for total in look(here, listed(there, each), each).totals
    ]
    charged_here = sum(each.amount.amount_minor for each in here if each.refund_id is None)
    assert sum(each.charged_here for each in totals) == charged_here
    assert sum(each.refunded_there for each in totals) == 1_000 * sum(each.kind is K.REFUND for each in there)


def test_a_day_is_due_once_it_is_over_and_its_border_is_past() -> None:
    over = START + A_DAY
    assert not is_due(day(now=over), None)
    assert not is_due(day(now=over + BORDER_MARGIN - timedelta(seconds=1)), None)
    assert is_due(day(now=over + BORDER_MARGIN), None)
    assert not is_due(day(opened_at=over), None)


def test_a_day_whose_two_sides_were_complete_is_not_looked_at_again() -> None:
    assert not is_due(day(now=START + 9 * A_DAY, listed_within=GRACE_MAX), LastRun(START + A_DAY + 2 * AN_HOUR, 0))


def test_a_day_that_waits_is_looked_at_ever_less_often_and_once_after_the_grace() -> None:
    over, last = START + A_DAY, None
    looks: list[timedelta] = []
    for hours in range(20 * 24):
        looked_at = day(now=over + hours * AN_HOUR, listed_within=timedelta(days=14))
        if is_due(looked_at, last):
            last = LastRun(looked_at.now, 1)
            looks.append(looked_at.now - over)
    assert [each // AN_HOUR for each in looks] == [2, 26, 52, 104, 208, 336]
    assert looks[1] - looks[0] == RERUN_AFTER


def test_days_are_caught_up_with_for_longer_than_the_longest_grace() -> None:
    days = past_days(START + 5 * AN_HOUR)
    assert (days[0], days[-1], len(days)) == (date(2026, 2, 14), date(2026, 3, 1), CATCH_UP_DAYS)
    assert CATCH_UP_DAYS * A_DAY > GRACE_MAX + A_DAY
