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


async def order_groups(context: Context, merchant_id: str, *, is_test: bool, period: Period) -> list[OrderGroup]:
    """Return the sums of a merchant's orders of one mode created in a period."""
    days = list(_days_over(period, context.now()))
    wanted = set(days)
    async with context.database.reading() as reader:
        known = (
            await stats.kept_days(reader, merchant_id, is_test=is_test, first_day=days[0], last_day=days[-1])
            if days
            else []
        )
        # The revisions were read before the orders are: sums that miss a change, or have one too early, are of a
        # revision that is gone by then, and are not used again.
        revisions = {each.day: each.revision for each in known}
        kept = {each.day: each.groups for each in known if each.groups is not None and each.day in wanted}
        found = [group for groups in kept.values() for group in groups]
        summed: list[OrderGroup] = []
        for span in _gaps(period, kept):
            summed += await stats.groups(
                reader, merchant_id, is_test=is_test, created_from=span.start, created_to=span.end
            )
    new = [
        KeptDay(day, revisions.get(day, 0), [group for group in summed if group.day == day])
        for day in days
        if day not in kept
    ]
    if new:
        await context.database.write_at_once([stats.keeping(merchant_id, each, is_test=is_test) for each in new])
    return found + summed


def _days_over(period: Period, now: datetime) -> Iterator[str]:
    """Yield the days that lie in a period wholly and are over."""
    day = _midnight(period.start.date())
    if day < period.start:
        day += DAY
    while day + DAY <= period.end and day + DAY + SETTLED_AFTER <= now:
        yield day.date().isoformat()
        day += DAY


def _gaps(period: Period, kept: Iterable[str]) -> Iterator[Period]:
    """Yield what of a period lies between the days that are kept, as few spans as possible."""
    start = period.start
    for day in sorted(kept):
        midnight = _midnight(date.fromisoformat(day))
        if start < midnight:
            yield Period(start, midnight)
        start = midnight + DAY
    if start < period.end:
        yield Period(start, period.end)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time.min, UTC)
