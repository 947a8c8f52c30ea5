"""Throttling: free tries, waits that double up to a bound, and a table that does not grow with its attackers."""

from datetime import UTC, datetime, timedelta

import pytest

from loop.domain.throttling import FORGOTTEN_AFTER, MAX_DELAY_S, MAX_ENTRIES, Throttle, address_key

NOW = datetime(2026, 3, 10, tzinfo=UTC)


def test_free_tries_cost_nothing_and_then_the_wait_doubles() -> None:
    throttle = Throttle(free=3)
    waits = []
    for _ in range(12):
        waits.append(throttle.wait_s("a", NOW))
        throttle.begin("a", NOW)
    assert waits == [0, 0, 0, 1, 2, 4, 8, 16, 32, MAX_DELAY_S, MAX_DELAY_S, MAX_DELAY_S]
    assert throttle.wait_s("b", NOW) == 0


def test_a_wait_ends() -> None:
    throttle = Throttle(free=1)
    throttle.begin("a", NOW)
    throttle.begin("a", NOW)
    assert throttle.wait_s("a", NOW + timedelta(seconds=0.5)) == 2
    assert throttle.wait_s("a", NOW + timedelta(seconds=2)) == 0


def test_a_wait_is_news_once_after_each_try() -> None:
    throttle = Throttle(free=1)
    assert not throttle.tell_once("a", NOW)
    throttle.begin("a", NOW)
    assert [throttle.tell_once("a", NOW) for _ in range(3)] == [True, False, False]
    later = NOW + timedelta(seconds=2)
    assert not throttle.tell_once("a", later)  # the wait is over
    throttle.begin("a", later)
    assert [throttle.tell_once("a", later) for _ in range(2)] == [True, False]
    assert not throttle.tell_once("b", NOW)


def test_even_a_thousand_failures_lock_nobody_out() -> None:
    throttle = Throttle(free=1)
    for _ in range(1000):
        throttle.begin("a", NOW)
    assert throttle.wait_s("a", NOW) == MAX_DELAY_S
    later = NOW + FORGOTTEN_AFTER
    throttle.begin("a", later)
    assert throttle.wait_s("a", later) == 1


def test_success_forgets_an_account_and_takes_one_try_of_an_address_back() -> None:
    throttle = Throttle(free=2)
    for _ in range(3):
        throttle.begin("a", NOW)
    throttle.take_back("a")
    assert throttle.wait_s("a", NOW) == 1
    throttle.forget("a")
    assert throttle.wait_s("a", NOW) == 0
    throttle.begin("a", NOW)
    throttle.take_back("a")
    throttle.take_back("a")
    assert throttle.wait_s("a", NOW) == 0


def test_the_table_forgets_who_was_quiet_longest() -> None:
    throttle = Throttle(free=1)
    throttle.begin("first", NOW)
    throttle.begin("second", NOW)
    throttle.begin("first", NOW)
    for number in range(MAX_ENTRIES - 1):
        throttle.begin(str(number), NOW)
    assert throttle.wait_s("second", NOW) == 0
    assert throttle.wait_s("first", NOW) == 2


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("unknown", "unknown"),
    ],
)
def test_an_ipv6_address_counts_with_its_site(address: str, key: str) -> None:
    assert address_key(address) == key
