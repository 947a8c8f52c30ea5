"""Statistics: the span of days that is asked for, and the figures of each currency, which never add up together."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from fractions import Fraction
from typing import Final, Protocol

from loop.domain.errors import LoopError, invalid
from loop.domain.orders import OrderStatus

DEFAULT_DAYS: Final = 30
MAX_DAYS: Final = 366
FIRST_YEAR: Final = 2000
LAST_YEAR: Final = 2999

_CAPTURED: Final = frozenset({OrderStatus.CAPTURED, OrderStatus.PARTIALLY_REFUNDED, OrderStatus.REFUNDED})
_SUCCEEDED: Final = _CAPTURED | {OrderStatus.AUTHORIZED}


class OrderGroup(Protocol):
    """Orders of one currency, UTC day (`YYYY-MM-DD`), status and processor, as storage sums them."""

    @property
    def currency(self) -> str:
        """ISO 4217 code."""
        ...

    @property
    def day(self) -> str:
        """The UTC date on which the orders were created."""
        ...

    @property
    def status(self) -> str:
        """The orders' status now."""
        ...

    @property
    def processor(self) -> str | None:
        """Who charged them last; None before the first attempt."""
        ...

    @property
    def error_code(self) -> str | None:
        """Why the orders failed, also if they were cancelled then; None of all others."""
        ...

    @property
    def count(self) -> int:
        """How many orders."""
        ...

    @property
    def captured_minor(self) -> int:
        """What was captured of them in minor units, refunded later or not."""
        ...


@dataclass(frozen=True, slots=True)
class Period:
    """A half-open span of time in UTC."""

    start: datetime
    end: datetime

    def days(self) -> list[str]:
        """Return every UTC date that the span touches, as `YYYY-MM-DD`."""
        first, last = self.start.date(), (self.end - timedelta(microseconds=1)).date()
        return [(first + timedelta(days=number)).isoformat() for number in range((last - first).days + 1)]


@dataclass(frozen=True, slots=True)
class DayFigures:
    """One day: what was captured of the orders created on it (minor units), and how many these were."""

    date: str
    volume_minor: int
    count: int


@dataclass(frozen=True, slots=True)
class StatusFigures:
    """How many orders have a status."""

    status: str
    count: int


@dataclass(frozen=True, slots=True)
class ProcessorFigures:
    """What one processor was given: orders, captured minor units, and the share of them that succeeded in percent."""

    processor: str
    count: int
    volume_minor: int
    success_rate: float


@dataclass(frozen=True, slots=True)
class CurrencyFigures:
    """All figures of one currency; amounts in its minor units.

    `success_rate` is in percent with two decimals: orders that were authorized or captured (refunded later or not)
    of those that ended, that is these and those that failed, also if they were cancelled then; 0 when none has.
    `average_ticket_minor` is the volume for each order of which something was captured. `by_day` has every day of the
    period.
    """

    currency: str | None
    volume_minor: int
    order_count: int
    success_rate: float
    average_ticket_minor: int
    by_day: Sequence[DayFigures]
    by_status: Sequence[StatusFigures]
    by_processor: Sequence[ProcessorFigures]


@dataclass(frozen=True, slots=True)
class Statistics:
    """The figures of the chosen currency, and of every currency, the busiest first."""

    chosen: CurrencyFigures
    by_currency: Sequence[CurrencyFigures]


def parse_period(from_text: str | None, to_text: str | None, *, now: datetime) -> Period:
    """Return the span between two dates or times; by default the last 30 days, today included.

    A date stands for that whole day in UTC, at both ends; a time is the instant itself and needs its offset. Raises
    `validation_failed` for anything else, an end before the start and more than 366 days.
    """
    end = _instant("to", to_text, of_date=timedelta(days=1)) if to_text else _midnight(now.date()) + timedelta(days=1)
    if from_text:
        start = _instant("from", from_text, of_date=timedelta(0))
    else:
        start = _midnight((end - timedelta(microseconds=1)).date()) - timedelta(days=DEFAULT_DAYS - 1)
    if start >= end:
        raise _refused("from", "must lie before to")
    if end - start > timedelta(days=MAX_DAYS):
        raise _refused("from", f"must lie at most {MAX_DAYS} days before to")
    return Period(start, end)


def _instant(name: str, text: str, *, of_date: timedelta) -> datetime:
    try:
        moment = _midnight(date.fromisoformat(text)) + of_date if len(text) == 10 else datetime.fromisoformat(text)
        if moment.tzinfo is not None and FIRST_YEAR <= moment.year <= LAST_YEAR:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise _refused(name, "must be a date such as 2026-01-31 or a time such as 2026-01-31T12:00:00Z")


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time.min, UTC)


def _refused(field: str, problem: str) -> LoopError:
    return invalid("validation_failed", f"{field}: {problem}.", details=((field, problem),))


def summarize(groups: Sequence[OrderGroup], period: Period, *, currency: str | None) -> Statistics:
    """Fold the groups of a period into figures; the chosen currency is the busiest one unless one is named.

    Busiest means most orders, since amounts of different currencies do not compare.
    """
    days = period.days()
    present = {group.currency for group in groups}
    figures = [_figures(code, [group for group in groups if group.currency == code], days) for code in present]
    figures.sort(key=lambda each: (-each.order_count, str(each.currency)))
    if currency is None:
        chosen = figures[0] if figures else _figures(None, [], days)
    else:
        named = (each for each in figures if each.currency == currency)
        chosen = next(named, None) or _figures(currency, [], days)
    return Statistics(chosen, figures)


def _figures(currency: str | None, groups: Sequence[OrderGroup], days: Sequence[str]) -> CurrencyFigures:
    volume = sum(group.captured_minor for group in groups)
    by_day = {day: DayFigures(day, 0, 0) for day in days}
    for day, of_day in _by(groups, lambda group: group.day):
        by_day[day] = DayFigures(day, sum(group.captured_minor for group in of_day), _count(of_day))
    return CurrencyFigures(
        currency=currency,
        volume_minor=volume,
        order_count=_count(groups),
        success_rate=_success_rate(groups),
        average_ticket_minor=_average(volume, _count(group for group in groups if group.status in _CAPTURED)),
        by_day=[by_day[day] for day in sorted(by_day)],
        by_status=[
            StatusFigures(status, _count(of_status)) for status, of_status in _by(groups, lambda group: group.status)
        ],
        by_processor=[
            ProcessorFigures(
                processor, _count(given), sum(group.captured_minor for group in given), _success_rate(given)
            )
            for processor, given in _by(groups, lambda group: group.processor)
        ],
    )


def _by(
    groups: Sequence[OrderGroup], key: Callable[[OrderGroup], str | None]
) -> Sequence[tuple[str, list[OrderGroup]]]:
    """Return the groups by key, most orders first; those without one are left out."""
    found: dict[str, list[OrderGroup]] = {}
    for group in groups:
        name = key(group)
        if name is not None:
            found.setdefault(str(name), []).append(group)
    return sorted(found.items(), key=lambda each: (-_count(each[1]), each[0]))


def _count(groups: Iterable[OrderGroup]) -> int:
    return sum(group.count for group in groups)


def _success_rate(groups: Iterable[OrderGroup]) -> float:
    ended = [group for group in groups if group.status in _SUCCEEDED or group.error_code is not None]
    succeeded = _count(group for group in ended if group.status in _SUCCEEDED)
    return round(Fraction(10_000 * succeeded, _count(ended))) / 100 if ended else 0.0


def _average(volume_minor: int, count: int) -> int:
    return round(Fraction(volume_minor, count)) if count else 0
