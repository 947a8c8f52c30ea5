"""Statistics: what a merchant's orders add up to; days that are over are summed once and kept while they are true."""

from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, time, timedelta

from loop.domain.stats import Period
from loop.storage import stats
from loop.storage.stats import KeptDay, OrderGroup
from loop.workflows.context import Context

SETTLED_AFTER = timedelta(minutes=15)
"""How long after its end a day is kept: whatever changes one of its orders has begun by then on a later day, where a
trigger counts it, or has ended."""

DAY = timedelta(days=1)

SPAN = 30 * DAY
"""How much is summed by one statement, and then kept: what takes too long in the end has begun earlier next time."""


async def order_groups(context: Context, merchant_id: str, *, is_test: bool, period: Period) -> list[OrderGroup]:
    """Return the sums of a merchant's orders of one mode created in a period."""
    now = context.now()
    days = list(_days_over(period, now))
    known: dict[str, KeptDay] = {}
    if days:
        async with context.database.reading() as reader:
            found = await stats.kept_days(reader, merchant_id, is_test=is_test, first_day=days[0], last_day=days[-1])
        known = {each.day: each for each in found}
    kept = {day: each.groups for day, each in known.items() if each.groups is not None}
    sums = [group for groups in kept.values() for group in groups]
    for span in _gaps(period, kept):
        async with context.database.reading() as reader:
            groups = await stats.groups(
                reader, merchant_id, is_test=is_test, created_from=span.start, created_to=span.end
            )
        sums += groups
        # Revisions were read before the orders are: sums that miss a change, or have one too early, are of a revision
        # that is gone by then, and are not used again.
        new = [
            KeptDay(day, known[day].revision if day in known else 0, [each for each in groups if each.day == day])
            for day in _days_over(span, now)
            if len(groups) < stats.MAX_ROWS
        ]
        if new:
            await context.database.write_at_once([stats.keeping(merchant_id, each, is_test=is_test) for each in new])
    return sums


def _days_over(period: Period, now: datetime) -> Iterator[str]:
    """Yield the days that lie in a period wholly and are over."""
    day = _midnight(period.start.date())
    if day < period.start:
        day += DAY
    while day + DAY <= period.end and day + DAY + SETTLED_AFTER <= now:
        yield day.date().isoformat()
        day += DAY


def _gaps(period: Period, kept: Iterable[str]) -> Iterator[Period]:
    """Yield what of a period lies between the days that are kept, in spans as long as they may be."""
    start = period.start
    for day in [*sorted(kept), None]:
        end = period.end if day is None else _midnight(date.fromisoformat(day))
        while start < end:
            cut = min(end, _midnight(start.date()) + SPAN)
            yield Period(start, cut)
            start = cut
        start = end + DAY


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time.min, UTC)
