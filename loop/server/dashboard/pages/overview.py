"""The overview: what came in, how much of it succeeded, and what needs a person."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from typing import Final

from starlette.requests import Request

from loop.domain.disputes import DisputeStatus
from loop.domain.money import require_currency
from loop.domain.stats import CurrencyFigures, Period, summarize
from loop.server.dashboard.amounts import change_in_percent, exponent_of
from loop.server.dashboard.drafts import Draft
from loop.server.dashboard.frames import Page, page_routes
from loop.server.dashboard.steps import steps_json, steps_of
from loop.server.dashboard.viewers import Viewer, new_form_key
from loop.server.request import context_of, query_of, time_text, validation_failed
from loop.server.shapes import order_json
from loop.storage import disputes, orders
from loop.storage.orders import OrderFilter
from loop.storage.stats import OrderGroup
from loop.workflows.statistics import order_groups

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


@dataclass(frozen=True, slots=True)
class _Decline:
    """Failed orders of one unified decline code: how many."""

    code: str
    count: int


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


async def show(request: Request, viewer: Viewer, *, pointing: Draft | None = None) -> Page:
    """Show the figures of a period, of one currency at a time; with an address for webhooks that was refused."""
    context, query = context_of(request), query_of(request)
    days = _days_of(query.get("days"))
    period, before = _period(days, context.now())
    whole = Period(before.start, period.end)
    found_groups = await order_groups(context, viewer.merchant_id, is_test=viewer.is_test, period=whole)
    first_day = period.start.date().isoformat()
    groups = [each for each in found_groups if each.day >= first_day]
    groups_before = [each for each in found_groups if each.day < first_day]
    async with context.database.reading() as reader:
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
    steps = await steps_of(request, viewer)
    currency = require_currency(query["currency"]) if "currency" in query else None
    found = summarize(groups, period, currency=currency)
    chosen = found.chosen
    earlier = summarize(groups_before, before, currency=chosen.currency or "").chosen
    reasons = _reasons(groups, chosen.currency)
    values = {
        "days": days,
        "periods": PERIODS_DAYS,
        "chosen": chosen,
        "currencies": [each.currency for each in found.by_currency],
        "figures": _compared(chosen, earlier),
        "declines": reasons[:SHOWN_DECLINES],
        "declined": sum(each.count for each in reasons),
        "steps": steps,
        "pointing": pointing,
        "new_key": partial(new_form_key, context),
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
        "firstSteps": steps_json(steps),
    }
    return Page("overview.html", "overview", values, json, 200 if pointing is None else pointing.status)


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


def _reasons(groups: Sequence[OrderGroup], currency: str | None) -> list[_Decline]:
    counts: Counter[str] = Counter()
    for each in groups:
        if each.currency == currency and each.error_code is not None:
            counts[each.error_code] += each.count
    return sorted((_Decline(*each) for each in counts.items()), key=lambda each: (-each.count, each.code))


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
