"""Statistics: the sums of days that are over are kept, and never outlive what they are the sums of."""

from datetime import UTC, datetime, time, timedelta

import pytest

from loop.domain.stats import Period
from loop.storage import stats
from loop.storage.stats import OrderGroup
from loop.workflows.statistics import SETTLED_AFTER, order_groups
from tests.builders import Clock, Shop

DAY = timedelta(days=1)


def midnight(moment: datetime) -> datetime:
    return datetime.combine(moment.date(), time.min, UTC)


async def summed(shop: Shop, period: Period) -> set[OrderGroup]:
    """Return the sums of a period, which are those of its orders as they are now."""
    found = await order_groups(shop.context, shop.merchant_id, is_test=True, period=period)
    async with shop.context.database.reading() as reader:
        live = await stats.groups(
            reader, shop.merchant_id, is_test=True, created_from=period.start, created_to=period.end
        )
    assert set(found) == set(live)
    assert len(found) == len(live)
    return set(found)


async def kept(shop: Shop, period: Period) -> dict[str, bool]:
    """Return the days of which something is known, and whether their sums are."""
    async with shop.context.database.reading() as reader:
        days = await stats.kept_days(
            reader,
            shop.merchant_id,
            is_test=True,
            first_day=period.start.date().isoformat(),
            last_day=period.end.date().isoformat(),
        )
    return {each.day: each.groups is not None for each in days}


async def a_week(shop: Shop, clock: Clock) -> Period:
    """Sell a little on three days of a week that is over."""
    start = midnight(clock.at) + DAY
    for day in (0, 1, 5):
        clock.at = start + day * DAY + timedelta(hours=day + 1)
        await shop.paid(amount_minor=1_000 + day)
        await shop.paid("tok_decline_insufficient_funds")
        await shop.order()
    clock.at = start + 7 * DAY + SETTLED_AFTER
    return Period(start, start + 7 * DAY)


async def test_each_day_that_is_over_is_kept_also_those_without_orders(shop: Shop, clock: Clock) -> None:
    week = await a_week(shop, clock)
    first = week.start.date().isoformat()
    found = await summed(shop, week)
    assert {(each.status, each.error_code, each.count, each.captured_minor) for each in found if each.day == first} == {
        ("captured", None, 1, 1_000),
        ("failed", "insufficient_funds", 1, 0),
        ("pending", None, 1, 0),
    }
    assert await kept(shop, week) == dict.fromkeys(week.days(), True)
    assert await summed(shop, week) == found


async def test_a_long_period_is_summed_span_by_span(shop: Shop, clock: Clock) -> None:
    week = await a_week(shop, clock)
    long = Period(week.start - 70 * DAY - timedelta(hours=3), week.end)
    found = await summed(shop, long)
    assert found == await summed(shop, week)
    assert await kept(shop, long) == dict.fromkeys(long.days()[1:], True)


async def test_what_is_kept_is_used(shop: Shop, clock: Clock) -> None:
    week = await a_week(shop, clock)
    await summed(shop, week)
    made_up = OrderGroup("XAU", week.days()[3], "captured", "bank", None, 7, 700)
    async with shop.context.database.transaction() as session:
        day = stats.KeptDay(made_up.day, 0, [made_up])
        await session.run_together([stats.keeping(shop.merchant_id, day, is_test=True)])
    assert made_up in await order_groups(shop.context, shop.merchant_id, is_test=True, period=week)


async def test_a_day_is_summed_anew_once_one_of_its_orders_has_changed(shop: Shop, clock: Clock) -> None:
    week = await a_week(shop, clock)
    clock.at = week.start + timedelta(hours=2)
    changing = await shop.paid(amount_minor=5_000)
    clock.at = week.end + SETTLED_AFTER
    before = await summed(shop, week)
    await shop.refund(changing.order.id, 500)
    after = await summed(shop, week)
    assert {each.status for each in after - before} == {"captured", "partially_refunded"}
    assert await kept(shop, week) == dict.fromkeys(week.days(), True)


async def test_a_change_that_comes_while_a_day_is_summed_is_not_missed(shop: Shop, clock: Clock) -> None:
    week = await a_week(shop, clock)
    clock.at = week.start + timedelta(hours=2)
    changing = await shop.paid(amount_minor=5_000)
    clock.at = week.end + SETTLED_AFTER
    async with shop.context.database.reading() as reader:
        early = await stats.groups(
            reader, shop.merchant_id, is_test=True, created_from=week.start, created_to=week.start + DAY
        )
    await shop.refund(changing.order.id, 500)
    day = stats.KeptDay(week.days()[0], 0, early)
    await shop.context.database.write_at_once([stats.keeping(shop.merchant_id, day, is_test=True)])
    assert (await kept(shop, week))[day.day] is False
    await summed(shop, week)


async def test_a_day_that_goes_on_or_is_asked_for_in_part_is_not_kept(shop: Shop, clock: Clock) -> None:
    week = await a_week(shop, clock)
    clock.at = week.end + SETTLED_AFTER - timedelta(seconds=1)
    part = Period(week.start + timedelta(hours=1, minutes=30), clock.at)
    await summed(shop, part)
    assert await kept(shop, part) == dict.fromkeys(week.days()[1:-1], True)
    clock.at = week.start + timedelta(hours=1, minutes=45)
    await shop.paid()
    assert len(await summed(shop, Period(week.start, clock.at))) == 3


@pytest.mark.parametrize("is_other_merchant", [True, False], ids=["merchant", "mode"])
async def test_days_are_kept_for_one_merchant_and_mode(shop: Shop, clock: Clock, *, is_other_merchant: bool) -> None:
    week = await a_week(shop, clock)
    await summed(shop, week)
    merchant_id = "mer_2" if is_other_merchant else shop.merchant_id
    assert await order_groups(shop.context, merchant_id, is_test=is_other_merchant, period=week) == []
