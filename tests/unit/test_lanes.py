"""Lanes: none takes all that there is, and one that has nothing yet finds something while there is anything."""

import pytest

from loop.workers.lanes import Lanes


def taken(places: int, *lanes: str) -> Lanes:
    made = Lanes(places)
    for lane in lanes:
        made.take(lane)
    return made


def fill(lanes: Lanes, lane: str) -> int:
    """Take all places that a lane gets; return how many."""
    before = lanes.room
    while lane not in lanes.full and lanes.left > 0:
        lanes.take(lane)
    return before - lanes.room


@pytest.mark.parametrize(("places", "most"), [(1, 1), (2, 1), (3, 2), (4, 3), (8, 6), (32, 24)])
def test_one_lane_alone_takes_three_quarters_and_at_least_one(places: int, most: int) -> None:
    assert fill(Lanes(places), "a") == most


def test_the_next_lanes_find_ever_less_and_always_something() -> None:
    lanes = Lanes(32)
    assert [fill(lanes, lane) for lane in "abcdefgh"] == [24, 6, 1, 1, 0, 0, 0, 0]
    assert lanes.room == 0


def test_no_more_begin_at_once_than_the_fullest_lane_may_have() -> None:
    lanes = taken(32, *["a"] * 20)
    assert (lanes.room, lanes.left, lanes.full) == (12, 4, frozenset())
    assert fill(lanes, "a") == 4
    assert lanes.full == {"a"}
    assert lanes.left == 6


def test_a_lane_that_has_too_much_gets_no_more_until_it_has_less() -> None:
    lanes = taken(8, *["a"] * 6, "b")
    assert lanes.full == {"a", "b"}
    for _ in range(3):
        lanes.give_back("a")
    assert lanes.full == frozenset()


def test_what_is_given_back_is_free_again() -> None:
    lanes = taken(4, "a")
    lanes.give_back("a")
    assert (lanes.room, lanes.left, lanes.full) == (4, 3, frozenset())


def test_without_a_free_place_nothing_begins() -> None:
    assert taken(2, "a", "b").left == 0
