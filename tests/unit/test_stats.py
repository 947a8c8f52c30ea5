"""Statistics: which days a question spans, and how groups of orders become figures."""

from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.domain.errors import LoopError
from loop.domain.orders import OrderStatus
from loop.domain.stats import CurrencyFigures, Period, parse_period, summarize

NOW = datetime(2026, 3, 10, 15, 30, tzinfo=UTC)
THREE_DAYS = parse_period("2026-03-08", "2026-03-10", now=NOW)


@dataclass(frozen=True)
class Group:
    """Orders as storage sums them."""

    currency: str = "USD"
    day: str = "2026-03-09"
    status: str = "captured"
    processor: str | None = "stripe"
    count: int = 1
    captured_minor: int = 0
    error_code: str | None = None


def figures(*groups: Group, currency: str | None = None) -> CurrencyFigures:
    return summarize(groups, THREE_DAYS, currency=currency).chosen


def test_a_period_is_the_last_thirty_days_unless_it_is_named() -> None:
    period = parse_period(None, None, now=NOW)
    assert period == Period(datetime(2026, 2, 9, tzinfo=UTC), datetime(2026, 3, 11, tzinfo=UTC))
    assert len(period.days()) == 30
    assert (period.days()[0], period.days()[-1]) == ("2026-02-09", "2026-03-10")


def test_a_date_is_the_whole_day_at_both_ends() -> None:
    assert Period(datetime(2026, 3, 8, tzinfo=UTC), datetime(2026, 3, 11, tzinfo=UTC)) == THREE_DAYS
    assert THREE_DAYS.days() == ["2026-03-08", "2026-03-09", "2026-03-10"]
    assert parse_period("2026-03-08", "2026-03-08", now=NOW).days() == ["2026-03-08"]
    assert len(parse_period("2024-01-01", "2024-12-31", now=NOW).days()) == 366


def test_a_time_is_its_instant_in_any_zone() -> None:
    period = parse_period("2026-03-08T23:30:00-02:00", "2026-03-10T00:00:00.000Z", now=NOW)
    assert period == Period(datetime(2026, 3, 9, 1, 30, tzinfo=UTC), datetime(2026, 3, 10, tzinfo=UTC))
    assert period.days() == ["2026-03-09"]


def test_one_end_is_enough() -> None:
    assert parse_period(None, "2026-01-31", now=NOW).days()[0] == "2026-01-02"
    assert parse_period("2026-03-01", None, now=NOW).days()[-1] == "2026-03-10"


@pytest.mark.parametrize(
    ("from_text", "to_text", "field"),
    [
        ("yesterday", None, "from"),
        (None, "31.01.2026", "to"),
        ("2026-02-30", None, "from"),
        ("2026-03-01T12:00:00", None, "from"),  # of which zone?
        ("1999-12-31", None, "from"),
        (None, "9999-12-31", "to"),
        ("0001-01-01T00:00:00+14:00", None, "from"),
        ("2026-03-02", "2026-03-01", "from"),
        ("2026-03-11", None, "from"),
        ("2026-03-01T00:00:00Z", "2026-03-01T00:00:00Z", "from"),
        ("2025-03-09", "2026-03-10", "from"),
    ],
)
def test_what_is_no_period_is_refused(from_text: str | None, to_text: str | None, field: str) -> None:
    with pytest.raises(LoopError) as refused:
        parse_period(from_text, to_text, now=NOW)
    assert refused.value.code == "validation_failed"
    assert refused.value.details[0][0] == field


@given(st.text(max_size=30))
def test_no_text_breaks_the_reading_of_a_period(text: str) -> None:
    try:
        days = parse_period(text, None, now=NOW).days()
    except LoopError as refused:
        assert refused.code == "validation_failed"  # noqa: PT017 - a period is as good an end
    else:
        assert 1 <= len(days) <= 367


def test_nothing_is_zero_everywhere() -> None:
    nothing = figures()
    assert (nothing.currency, nothing.volume_minor, nothing.order_count) == (None, 0, 0)
    assert (nothing.success_rate, nothing.average_ticket_minor) == (0.0, 0)
    assert [(day.date, day.volume_minor, day.count) for day in nothing.by_day] == [
        ("2026-03-08", 0, 0),
        ("2026-03-09", 0, 0),
        ("2026-03-10", 0, 0),
    ]
    assert figures(currency="EUR").currency == "EUR"


def test_days_without_orders_are_there_and_the_others_add_up() -> None:
    found = figures(
        Group(day="2026-03-08", captured_minor=500, count=2),
        Group(day="2026-03-10", captured_minor=700, processor="sandbox"),
        Group(day="2026-03-10", status="failed", error_code="declined"),
    )
    assert [(day.volume_minor, day.count) for day in found.by_day] == [(500, 2), (0, 0), (700, 2)]
    assert (found.volume_minor, found.order_count) == (1200, 4)


def test_currencies_never_add_up() -> None:
    groups = [
        Group(currency="INR", captured_minor=900_000, count=2),
        Group(currency="USD", captured_minor=500, count=3),
    ]
    statistics = summarize(groups, THREE_DAYS, currency=None)
    assert [(each.currency, each.volume_minor) for each in statistics.by_currency] == [("USD", 500), ("INR", 900_000)]
    assert statistics.chosen == statistics.by_currency[0]
    assert summarize(groups, THREE_DAYS, currency="INR").chosen == statistics.by_currency[1]
    absent = summarize(groups, THREE_DAYS, currency="EUR")
    assert (absent.chosen.volume_minor, len(absent.by_currency)) == (0, 2)


def test_success_is_of_those_that_ended() -> None:
    found = figures(
        Group(status="captured"),
        Group(status="authorized"),
        Group(status="refunded"),
        Group(status="partially_refunded"),
        Group(status="failed", count=1, error_code="declined"),
        Group(status="cancelled", count=1, error_code="declined"),
        Group(status="pending", processor=None, count=5),
        Group(status="processing", count=5),
        Group(status="requires_action", count=5),
        Group(status="cancelled", count=5),
    )
    assert found.success_rate == 66.67
    assert found.order_count == 26


def test_the_average_is_of_orders_that_money_came_from_rounded_half_even() -> None:
    held = Group(status="authorized", count=3)
    assert figures(Group(captured_minor=5, count=2), held).average_ticket_minor == 2
    assert figures(Group(captured_minor=7, count=2), held).average_ticket_minor == 4
    assert figures(Group(captured_minor=3 * 10**15 + 1, count=3)).average_ticket_minor == 10**15


def test_statuses_and_processors_are_counted_most_orders_first() -> None:
    found = figures(
        Group(status="captured", processor="stripe", captured_minor=100),
        Group(status="failed", processor="sandbox", count=2, error_code="declined"),
        Group(status="captured", processor="sandbox", captured_minor=50),
        Group(status="pending", processor=None, count=4),
    )
    assert [(each.status, each.count) for each in found.by_status] == [("pending", 4), ("captured", 2), ("failed", 2)]
    assert [(each.processor, each.count, each.volume_minor, each.success_rate) for each in found.by_processor] == [
        ("sandbox", 3, 50, 33.33),
        ("stripe", 1, 100, 100.0),
    ]


GROUPS = st.lists(
    st.builds(
        Group,
        currency=st.sampled_from(["USD", "EUR", "INR"]),
        day=st.sampled_from(THREE_DAYS.days()),
        status=st.sampled_from([status.value for status in OrderStatus]),
        processor=st.sampled_from([None, "stripe", "sandbox"]),
        count=st.integers(1, 10**6),
        captured_minor=st.integers(0, 10**15),
    )
)


@given(GROUPS)
def test_every_order_and_every_unit_is_counted_once(groups: list[Group]) -> None:
    statistics = summarize(groups, THREE_DAYS, currency=None)
    assert sum(each.order_count for each in statistics.by_currency) == sum(group.count for group in groups)
    for each in statistics.by_currency:
        of_currency = [group for group in groups if group.currency == each.currency]
        assert each.volume_minor == sum(day.volume_minor for day in each.by_day)
        assert each.volume_minor == sum(group.captured_minor for group in of_currency)
        assert each.order_count == sum(day.count for day in each.by_day)
        assert each.order_count == sum(status.count for status in each.by_status)
        assert 0 <= each.success_rate <= 100
