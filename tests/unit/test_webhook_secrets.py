"""Webhook secrets: what was replaced counts for a while, and not for longer."""

from datetime import timedelta

from loop.domain.webhook_secrets import EARLIER_MAX, OVERLAP, EarlierSecret, accepted, after_change
from tests.builders import MIDNIGHT

MOMENT = timedelta(microseconds=1)


def test_a_replaced_secret_counts_until_its_time_is_up_and_then_no_more() -> None:
    earlier = after_change((), before="old", after="new", now=MIDNIGHT)
    assert accepted("new", earlier, now=MIDNIGHT) == ("new", "old")
    assert accepted("new", earlier, now=MIDNIGHT + OVERLAP - MOMENT) == ("new", "old")
    assert accepted("new", earlier, now=MIDNIGHT + OVERLAP) == ("new",)


def test_the_overlap_covers_a_day_of_retries_after_a_change_that_came_a_day_apart() -> None:
    assert timedelta(hours=48) <= OVERLAP


def test_saving_the_same_secret_again_replaces_nothing_and_prolongs_nothing() -> None:
    earlier = after_change((), before="old", after="new", now=MIDNIGHT)
    assert after_change(earlier, before="new", after="new", now=MIDNIGHT + OVERLAP - MOMENT) == earlier
    assert after_change(earlier, before="new", after="new", now=MIDNIGHT + OVERLAP) == ()


def test_several_changes_in_a_row_leave_all_of_them_valid_newest_first() -> None:
    first = after_change((), before="first", after="second", now=MIDNIGHT)
    earlier = after_change(first, before="second", after="third", now=MIDNIGHT + MOMENT)
    assert accepted("third", earlier, now=MIDNIGHT + MOMENT) == ("third", "second", "first")


def test_a_secret_that_comes_back_is_the_current_one_and_its_successor_an_earlier_one() -> None:
    earlier = after_change((), before="a", after="b", now=MIDNIGHT)
    back = after_change(earlier, before="b", after="a", now=MIDNIGHT + MOMENT)
    assert back == (EarlierSecret("b", MIDNIGHT + MOMENT + OVERLAP),)
    again = after_change(back, before="a", after="b", now=MIDNIGHT + 2 * MOMENT)
    assert accepted("b", again, now=MIDNIGHT + 2 * MOMENT) == ("b", "a")


def test_only_so_many_are_kept() -> None:
    earlier: tuple[EarlierSecret, ...] = ()
    for number in range(EARLIER_MAX + 3):
        earlier = after_change(earlier, before=f"s{number}", after=f"s{number + 1}", now=MIDNIGHT)
    newest = EARLIER_MAX + 2
    assert [each.secret for each in earlier] == [f"s{newest - age}" for age in range(EARLIER_MAX)]


def test_without_a_current_secret_none_counts_but_the_last_one_is_remembered() -> None:
    earlier = after_change((), before="old", after=None, now=MIDNIGHT)
    assert accepted(None, earlier, now=MIDNIGHT) == ()
    assert accepted("new", after_change(earlier, before=None, after="new", now=MIDNIGHT), now=MIDNIGHT) == (
        "new",
        "old",
    )


def test_a_secret_is_not_shown() -> None:
    assert "hush" not in repr(EarlierSecret("hush", MIDNIGHT))
