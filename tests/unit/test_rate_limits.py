"""Rate limits: what a rate lets through at once and over time, what callers are told, and a table of bounded size."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.domain import rate_limits
from loop.domain.rate_limits import BURST_S, Buckets

START_S = 1_000_000.25
"""An uptime, as a monotonic clock shows it."""


def test_a_burst_goes_through_and_the_next_one_waits() -> None:
    buckets = Buckets(per_s=2)
    rooms = [buckets.take("a", START_S) for _ in range(2 * BURST_S + 1)]
    assert [room.remaining for room in rooms] == [*range(2 * BURST_S - 1, -1, -1), 0]
    assert [room.retry_after_s for room in rooms] == [0] * 2 * BURST_S + [1]
    assert {room.limit for room in rooms} == {2 * BURST_S}
    assert (rooms[0].reset_s, rooms[-2].reset_s, rooms[-1].reset_s) == (1, BURST_S, BURST_S)
    assert buckets.take("b", START_S).retry_after_s == 0


def test_who_waits_as_told_goes_on_and_who_does_not_is_not_punished() -> None:
    buckets = Buckets(per_s=1)
    for _ in range(BURST_S):
        buckets.take("a", START_S)
    assert [buckets.take("a", START_S).retry_after_s for _ in range(1000)] == [1] * 1000
    assert buckets.take("a", START_S + 0.5).retry_after_s == 1
    assert buckets.take("a", START_S + 1).retry_after_s == 0
    assert buckets.take("a", START_S + 1).retry_after_s == 1


def test_who_was_quiet_has_all_of_the_limit_again_and_no_more() -> None:
    buckets = Buckets(per_s=1)
    for _ in range(BURST_S):
        buckets.take("a", START_S)
    later = START_S + 1_000
    assert [buckets.take("a", later).retry_after_s for _ in range(BURST_S + 1)] == [0] * BURST_S + [1]


@given(per_s=st.integers(1, 1_000_000), start_s=st.floats(0, 1e7), pauses=st.lists(st.floats(0, 3), max_size=60))
def test_no_more_than_a_burst_and_the_rate_ever_goes_through(per_s: int, start_s: float, pauses: list[float]) -> None:
    buckets = Buckets(per_s)
    now_s, let_through = start_s, 0
    for pause_s in pauses:
        now_s += pause_s
        room = buckets.take("a", now_s)
        let_through += not room.retry_after_s
        assert 0 <= room.remaining < room.limit == per_s * BURST_S
        assert 0 < room.reset_s <= BURST_S + 1
    assert let_through <= per_s * BURST_S + math.ceil((now_s - start_s) * per_s) + 1


def test_the_table_forgets_who_owes_nothing_first_and_then_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "MAX_ENTRIES", 10)
    buckets = Buckets(per_s=1)
    for number in range(8):
        buckets.take(f"paid {number}", START_S)
    later = START_S + 5
    for number in range(3):
        buckets.take(f"owing {number}", later)
    assert buckets.take("owing 0", later).remaining == BURST_S - 2
    for number in range(1_000):
        buckets.take(f"flood {number}", later)
        assert len(buckets._paid_at) <= 10
    assert buckets.take("owing 0", later).remaining == BURST_S - 1
    assert buckets.take("flood 999", later).remaining == BURST_S - 2
