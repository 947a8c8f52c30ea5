"""The overview: what came in, how much of it succeeded, and what needs a person."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

from starlette.requests import Request

from loop.domain.disputes import DisputeStatus
from loop.domain.money import require_currency
from loop.domain.stats import CurrencyFigures, Period, summarize
from loop.server.dashboard.amounts import change_in_percent, exponent_of
from loop.server.dashboard.frames import Page, page_routes
from loop.server.dashboard.viewers import Viewer
from loop.server.request import context_of, query_of, time_text, validation_failed
from loop.server.shapes import order_json
from loop.storage import disputes, orders, stats
from loop.storage.orders import OrderFilter
from loop.storage.stats import DeclineGroup

PERIODS_DAYS: Final = (7, 30, 90)
DEFAULT_DAYS: Final = 30
SHOWN_IN_NEED: Final = 5
SHOWN_DECLINES: Final = 6


@dataclass(frozen=True, slots=True)
class _Figure:
    """One figure beside the same of the period before; `change` in percent, or in points for a rate."""

    label: str
    value: int | float
    kind: str
    change: float | None
    unit: str = "%"


def _period(days: int, now: datetime) -> tuple[Period, Period]:
    """Return the last so many days, today included, and as many before them."""
    end = datetime.combine(now.date() + timedelta(days=1), time.min, UTC)
    start = end - timedelta(days=days)
    return Period(start, end), Period(start - timedelta(days=days), start)


def _days_of(text: str | None) -> int:
    if text is None:
        return DEFAULT_DAYS
    days = next((each for each in PERIODS_DAYS if str(each) == text), None)
    if days is None:
        raise validation_failed(("days", f"must be one of {', '.join(map(str, PERIODS_DAYS))}"))
    return days


async def show(request: Request, viewer: Viewer) -> Page:
    """Show the figures of a period, of one currency at a time."""
    context, query = context_of(request), query_of(request)
    days = _days_of(query.get("days"))
    period, before = _period(days, context.now())
    async with context.database.reading() as reader:
        groups, groups_before = [
            await stats.groups(
                reader, viewer.merchant_id, is_test=viewer.is_test, created_from=each.start, created_to=each.end
            )
            for each in (period, before)
        ]
        declines = await stats.declines(
            reader, viewer.merchant_id, is_test=viewer.is_test, created_from=period.start, created_to=period.end
        )
        in_review = await orders.list_after(
            reader,
            viewer.merchant_id,
            OrderFilter(needs_review=True, is_test=viewer.is_test),
            before_id=None,
            limit=SHOWN_IN_NEED,
        )
        disputed = await disputes.list_after(
            reader,
            viewer.merchant_id,
            is_test=viewer.is_test,
            status=DisputeStatus.OPENED,
            before_id=None,
            limit=SHOWN_IN_NEED,
        )
        is_new = not groups and not await orders.list_after(
            reader, viewer.merchant_id, OrderFilter(is_test=viewer.is_test), before_id=None, limit=1
        )
    currency = require_currency(query["currency"]) if "currency" in query else None
    found = summarize(groups, period, currency=currency)
    chosen = found.chosen
    earlier = summarize(groups_before, before, currency=chosen.currency or "").chosen
    reasons = _reasons(declines, chosen.currency)
    values = {
        "days": days,
        "periods": PERIODS_DAYS,
        "chosen": chosen,
        "currencies": [each.currency for each in found.by_currency],
        "figures": _compared(chosen, earlier),
        "declines": reasons[:SHOWN_DECLINES],
        "declined": sum(each.count for each in reasons),
        "in_review": in_review,
        "disputed": disputed,
        "is_new": is_new,
        "chart": _chart(chosen),
        "dates": {each.date: date.fromisoformat(each.date) for each in chosen.by_day},
    }
    json = {
        "from": time_text(period.start),
        "to": time_text(period.end),
        "currency": chosen.currency,
        "currencies": values["currencies"],
        **{key: _figures_json(each) for key, each in (("now", chosen), ("before", earlier))},
        "declines": [{"code": each.code, "count": each.count} for each in reasons],
        "needsReview": [order_json(each) for each in in_review],
    }
    return Page("overview.html", "overview", values, json)


def _compared(now: CurrencyFigures, before: CurrencyFigures) -> list[_Figure]:
    has_ended = any(each.status not in ("pending", "processing", "requires_action") for each in before.by_status)
    points = round(now.success_rate - before.success_rate, 1) if has_ended else None
    tickets = (now.average_ticket_minor, before.average_ticket_minor)
    return [
        _Figure("Volume", now.volume_minor, "money", change_in_percent(now.volume_minor, before.volume_minor)),
        _Figure("Success rate", now.success_rate, "rate", points, " pts"),
        _Figure("Average order", now.average_ticket_minor, "money", change_in_percent(*tickets)),
        _Figure("Orders", now.order_count, "count", change_in_percent(now.order_count, before.order_count)),
    ]


def _reasons(declines: list[DeclineGroup], currency: str | None) -> list[DeclineGroup]:
    return sorted((each for each in declines if each.currency == currency), key=lambda each: (-each.count, each.code))


def _chart(figures: CurrencyFigures) -> dict[str, object]:
    """Return what the script draws: days as seconds since 1970, volumes in major units."""
    places = exponent_of(figures.currency or "")
    midnights = [datetime.combine(date.fromisoformat(each.date), time.min, UTC) for each in figures.by_day]
    return {
        "currency": figures.currency,
        "places": places,
        "days": [int(each.timestamp()) for each in midnights],
        "volumes": [each.volume_minor / 10**places for each in figures.by_day],
    }


def _figures_json(figures: CurrencyFigures) -> dict[str, object]:
    return {
        "totalVolume": figures.volume_minor,
        "totalTransactions": figures.order_count,
        "successRate": figures.success_rate,
        "averageTicket": figures.average_ticket_minor,
        "volumeByDay": [
            {"date": each.date, "volume": each.volume_minor, "count": each.count} for each in figures.by_day
        ],
        "transactionsByStatus": [{"status": each.status, "count": each.count} for each in figures.by_status],
        "transactionsByProcessor": [
            {
                "processor": each.processor,
                "count": each.count,
                "volume": each.volume_minor,
                "successRate": each.success_rate,
            }
            for each in figures.by_processor
        ],
    }


routes: Final = [*page_routes("/dashboard/overview", show), *page_routes("/dashboard", show)]
