"""Statistics: the dashboard's figures, of one currency at the top and of each beside it."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from loop.domain.money import require_currency
from loop.domain.stats import CurrencyFigures, parse_period, summarize
from loop.server.auth import authenticate
from loop.server.operations import CURRENCY, MOMENT, Operation, describes
from loop.server.request import context_of, json_response, query_of, time_text
from loop.workflows.statistics import order_groups


class DayJson(TypedDict):
    """One day: captured minor units of the orders created on it, and how many these were."""

    date: str
    volume: int
    count: int


class StatusCountJson(TypedDict):
    """How many orders have a status."""

    status: str
    count: int


class ProcessorCountJson(TypedDict):
    """What one processor was given, and the share that succeeded in percent."""

    processor: str
    count: int
    volume: int
    successRate: float


class FiguresJson(TypedDict):
    """All figures of one currency, in its minor units; `successRate` in percent."""

    currency: str | None
    totalVolume: int
    totalTransactions: int
    successRate: float
    averageTicket: int
    volumeByDay: list[DayJson]
    transactionsByStatus: list[StatusCountJson]
    transactionsByProcessor: list[ProcessorCountJson]


# The names that a period has in JSON are words of Python, so it cannot be written as a class.
PeriodJson = TypedDict("PeriodJson", {"from": str, "to": str})


class StatsJson(FiguresJson, PeriodJson):
    """The figures of a period: of one currency at the top, and of each beside it."""

    byCurrency: list[FiguresJson]


_QUERY: Final = {"from": MOMENT, "to": MOMENT, "currency": CURRENCY}


@describes(Operation("getStats", answer=StatsJson, query=_QUERY, errors=("invalid_currency",)))
async def show(request: Request) -> Response:
    """Answer the figures of the merchant's orders that were created in a period."""
    caller = await authenticate(request)
    context, query = context_of(request), query_of(request)
    currency = require_currency(query["currency"]) if "currency" in query else None
    period = parse_period(query.get("from"), query.get("to"), now=context.now())
    groups = await order_groups(context, caller.merchant_id, is_test=caller.is_test, period=period)
    found = summarize(groups, period, currency=currency)
    return json_response(
        {
            "from": time_text(period.start),
            "to": time_text(period.end),
            **_figures_json(found.chosen),
            "byCurrency": [_figures_json(each) for each in found.by_currency],
        }
    )


def _figures_json(figures: CurrencyFigures) -> FiguresJson:
    return {
        "currency": figures.currency,
        "totalVolume": figures.volume_minor,
        "totalTransactions": figures.order_count,
        "successRate": figures.success_rate,
        "averageTicket": figures.average_ticket_minor,
        "volumeByDay": [{"date": day.date, "volume": day.volume_minor, "count": day.count} for day in figures.by_day],
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


routes: Final = [Route("/api/dashboard/stats", show, methods=["GET"])]
