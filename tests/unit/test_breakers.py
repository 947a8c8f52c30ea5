"""Circuit breakers: when one opens, how long it stays so, and how a probe closes it."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.domain.attempts import Approved, Declined, NotSent, Outcome, Pending, Unknown
from loop.domain.breakers import (
    FIRST_PAUSE,
    MAX_PAUSE,
    MIN_CALLS,
    PROBE_WITHIN,
    WINDOW,
    Breaker,
    BreakerState,
    is_trouble,
)
from loop.domain.declines import DeclineClass
from loop.workflows.breakers import MAX_ACCOUNTS, Breakers

NOW = datetime(2026, 3, 10, tzinfo=UTC)
GOOD: Outcome = Approved("pi_1", is_captured=True, amount_minor=1)
BAD: Outcome = Unknown("no answer within 20 s")
SECOND = timedelta(seconds=1)


def after(breaker: Breaker, *outcomes: Outcome, now: datetime = NOW) -> Breaker:
    for outcome in outcomes:
        breaker = breaker.after(outcome, now)
    return breaker


def opened() -> Breaker:
    return after(Breaker(), *[BAD] * MIN_CALLS)


@pytest.mark.parametrize(
    ("outcome", "is_bad"),
    [
        (GOOD, False),
        (Pending("pi_1"), False),
        (Declined("declined", DeclineClass.CASCADE, "no"), False),
        (Declined("processor_error", DeclineClass.TECH, "no"), False),
        (BAD, True),
        (NotSent("processor_unreachable", "refused"), True),
        (NotSent("rate_limited", "slow down"), True),
        (NotSent("never_heard_of", "?"), True),
        (NotSent("configuration", "wrong key"), False),
        (NotSent("invalid_request", "no such token"), False),
    ],
)
def test_trouble_is_what_was_not_answered(outcome: Outcome, *, is_bad: bool) -> None:
    assert is_trouble(outcome) is is_bad


def test_a_few_failures_open_nothing() -> None:
    breaker = after(Breaker(), *[BAD] * (MIN_CALLS - 1))
    assert not breaker.is_shut(NOW)
    assert after(breaker, BAD).is_shut(NOW)


def test_half_of_the_calls_must_fail() -> None:
    assert not after(Breaker(), *[GOOD] * 11, *[BAD] * 10).is_shut(NOW)
    assert after(Breaker(), *[GOOD] * 10, *[BAD] * 10).is_shut(NOW)


def test_the_window_slides() -> None:
    breaker = after(Breaker(), *[BAD] * (MIN_CALLS - 1))
    assert not after(breaker, BAD, now=NOW + WINDOW).is_shut(NOW + WINDOW)
    later = NOW + WINDOW - 5 * SECOND
    assert after(breaker, BAD, now=later).is_shut(later)
    assert len(after(breaker, *[GOOD] * 3, now=NOW + timedelta(days=1)).slices) == 1


def test_after_the_pause_one_probe_goes_and_its_success_closes_it() -> None:
    breaker = opened()
    until = NOW + FIRST_PAUSE
    assert breaker.is_shut(until - SECOND)
    assert not breaker.is_shut(until)
    probing = breaker.let_through(until)
    assert probing.state is BreakerState.HALF_OPEN
    assert probing.is_shut(until + SECOND)  # for everybody else
    closed = probing.after(GOOD, until + SECOND)
    assert closed == Breaker()
    assert not after(closed, BAD).is_shut(until)


def test_a_probe_that_fails_doubles_the_pause_up_to_a_bound() -> None:
    breaker, now, pauses = opened(), NOW, []
    for _ in range(8):
        pauses.append(breaker.pause)
        now += breaker.pause
        breaker = breaker.let_through(now).after(BAD, now)
        assert breaker.is_shut(now)
    assert pauses[:5] == [FIRST_PAUSE * 2**n for n in range(5)]
    assert pauses[5:] == [MAX_PAUSE] * 3
    assert after(breaker.let_through(now + MAX_PAUSE), GOOD, *[BAD] * MIN_CALLS).pause == FIRST_PAUSE


def test_a_probe_that_never_tells_makes_room_for_another() -> None:
    now = NOW + FIRST_PAUSE
    probing = opened().let_through(now)
    assert probing.is_shut(now + PROBE_WITHIN - SECOND)
    assert not probing.is_shut(now + PROBE_WITHIN)
    assert probing.let_through(now + PROBE_WITHIN).is_shut(now + PROBE_WITHIN)


def test_calls_that_began_before_it_opened_change_nothing() -> None:
    assert opened().after(GOOD, NOW + SECOND) == opened()
    assert opened().after(BAD, NOW + SECOND) == opened()


def test_a_clock_that_is_turned_back_holds_nobody_off() -> None:
    assert not opened().is_shut(NOW - timedelta(hours=1))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=60))
def test_whatever_happens_it_lets_somebody_through_in_the_end(calls: list[tuple[bool, int]]) -> None:
    breaker, now = Breaker(), NOW
    for is_bad, seconds in calls:
        now += timedelta(seconds=seconds)
        if not breaker.is_shut(now):
            breaker = breaker.let_through(now)
        breaker = breaker.after(BAD if is_bad else GOOD, now)
        assert FIRST_PAUSE <= breaker.pause <= MAX_PAUSE
    assert not breaker.is_shut(now + MAX_PAUSE)


def test_each_account_has_its_own_and_the_table_is_bounded() -> None:
    breakers = Breakers()
    for _ in range(MIN_CALLS):
        breakers.hear("pcf_1", BAD, now=NOW)
        breakers.hear("pcf_2", GOOD, now=NOW)
    assert breakers.is_shut("pcf_1", NOW)
    assert not breakers.is_shut("pcf_2", NOW)
    breakers.let_through("pcf_1", NOW + FIRST_PAUSE)
    breakers.let_through("pcf_3", NOW)
    assert breakers.is_shut("pcf_1", NOW + FIRST_PAUSE)
    assert not breakers.is_shut("pcf_3", NOW)
    for number in range(MAX_ACCOUNTS):
        breakers.hear(f"pcf_x{number}", GOOD, now=NOW)
    assert not breakers.is_shut("pcf_1", NOW + FIRST_PAUSE)
