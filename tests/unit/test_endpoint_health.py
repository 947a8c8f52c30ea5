"""Endpoint health: five failures open the breaker, pauses double to an hour, and five days of nothing are the end."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.domain.deliveries import MAX_TRIES
from loop.domain.endpoint_health import FAILURES_MAX, FIRST_PAUSE, GIVEN_UP_AFTER, MAX_PAUSE, EndpointHealth

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def after(*outcomes: bool, began: datetime = NOON) -> EndpointHealth:
    health = EndpointHealth()
    for number, is_success in enumerate(outcomes):
        health = health.after_try(began + timedelta(seconds=number), is_success=is_success)
    return health


def test_five_failures_in_a_row_make_an_endpoint_sick_and_one_success_makes_it_well() -> None:
    assert not after(*[False] * (FAILURES_MAX - 1)).is_sick
    assert after(*[False] * FAILURES_MAX).is_sick
    assert not after(*[False] * (FAILURES_MAX - 1), True, False).is_sick
    assert after(*[False] * 100, True) == EndpointHealth()


@given(st.lists(st.booleans()))
def test_only_the_failures_since_the_last_success_count(outcomes: list[bool]) -> None:
    streak = len(outcomes) - max((place for place, one in enumerate(outcomes, start=1) if one), default=0)
    health = after(*outcomes)
    assert health.failure_streak == streak
    assert health.failing_since == (NOON + timedelta(seconds=len(outcomes) - streak) if streak else None)


def test_pauses_double_up_to_an_hour() -> None:
    health, pauses = after(*[False] * FAILURES_MAX), []
    for _ in range(9):
        health = health.paused(NOON).after_try(NOON, is_success=False)
        assert health.paused_until == NOON + health.pause
        pauses.append(health.pause)
    assert pauses[:6] == [FIRST_PAUSE * 2**step for step in range(6)]
    assert pauses[6:] == [MAX_PAUSE] * 3
    well = health.after_try(NOON, is_success=True)
    assert (well.pause, well.paused_until) == (timedelta(), None)


@pytest.mark.parametrize(
    ("failures", "lasted", "is_hopeless"),
    [
        (MAX_TRIES, GIVEN_UP_AFTER, True),
        (MAX_TRIES, GIVEN_UP_AFTER - timedelta(seconds=1), False),
        (MAX_TRIES - 1, GIVEN_UP_AFTER * 10, False),  # two failures a month apart are no five days of failing
        (1_000, GIVEN_UP_AFTER / 2, False),
    ],
)
def test_five_days_of_nothing_but_failures_are_the_end(failures: int, lasted: timedelta, *, is_hopeless: bool) -> None:
    assert after(*[False] * failures).is_hopeless(NOON + lasted) is is_hopeless


def test_an_endpoint_that_was_never_tried_is_not_given_up() -> None:
    assert not EndpointHealth().is_hopeless(NOON + GIVEN_UP_AFTER * 100)
