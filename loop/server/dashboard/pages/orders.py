"""Orders: found by what is known of them, filtered, page by page, and as a CSV file."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from loop.domain.orders import OrderStatus
from loop.server.dashboard.amounts import typed_amounts
from loop.server.dashboard.frames import Page, page_routes
from loop.server.dashboard.listing import PAGE_ROWS, page_after
from loop.server.dashboard.viewers import Viewer, sent_to_sign_in, viewer_of
from loop.server.request import context_of, cursor_of, query_of, validation_failed
from loop.server.shapes import MAX_FILTER_CHARACTERS, order_filter_of, order_json
from loop.server.spreadsheets import ORDER_COLUMNS, csv_text, order_cells
from loop.storage import orders
from loop.storage.orders import OrderFilter
from loop.workflows.context import Context

CSV_ROWS_AT_ONCE: Final = 500
CSV_ROWS_MAX: Final = 1_000_000
"""How many orders one file holds at most; a narrower filter gets at the others."""

FILTERS: Final = (
    "q",
    "status",
    "processor",
    "currency",
    "createdFrom",
    "createdTo",
    "amountMin",
    "amountMax",
    "review",
)


async def _filters(context: Context, viewer: Viewer, query: Mapping[str, str]) -> list[OrderFilter]:
    """Return which orders a query asks for. `q` is any id, an e-mail address or an amount, which may mean several."""
    found = replace(order_filter_of(query), needs_review=True if query.get("review") else None, is_test=viewer.is_test)
    wanted = query.get("q", "").strip()
    if len(wanted) > MAX_FILTER_CHARACTERS:
        raise validation_failed(("q", f"must have at most {MAX_FILTER_CHARACTERS} characters"))
    if not wanted:
        return [found]
    if "@" in wanted:
        return [replace(found, customer_email=wanted)]
    amounts, named = typed_amounts(wanted), OrderFilter(any_id=wanted, is_test=viewer.is_test)
    async with context.database.reading() as reader:  # a shop's own ids may well be numbers
        is_id = not amounts or await orders.list_after(reader, viewer.merchant_id, named, before_id=None, limit=1)
    return [replace(found, any_id=wanted)] if is_id else [replace(found, amount=each) for each in amounts]


async def show(request: Request, viewer: Viewer) -> Page:
    """Show a page of orders, newest first."""
    context, query, cursor = context_of(request), query_of(request), cursor_of(request)
    wanted = await _filters(context, viewer, query)
    async with context.database.reading() as reader:
        found = await orders.list_any_after(
            reader, viewer.merchant_id, wanted, before_id=cursor.before_id, limit=PAGE_ROWS + 1
        )
    given: dict[str, str] = {name: query[name] for name in FILTERS if name in query}
    page = page_after(found, given, before_id=cursor.before_id)
    values = {
        "page": page,
        "statuses": [each.value for each in OrderStatus],
        "processors": context.processors.names(),
    }
    return Page("orders.html", "orders", values, page.json(order_json))


async def export(request: Request) -> Response:
    """Send the orders that a filter finds as a CSV file, while they are being read."""
    viewer = await viewer_of(request)
    if viewer is None:
        return sent_to_sign_in(request)
    wanted = await _filters(context_of(request), viewer, query_of(request))
    headers = {"Content-Disposition": 'attachment; filename="orders.csv"'}
    lines = _lines(context_of(request), viewer.merchant_id, wanted)
    return StreamingResponse(lines, headers=headers, media_type="text/csv")


async def _lines(context: Context, merchant_id: str, wanted: list[OrderFilter]) -> AsyncIterator[str]:
    yield csv_text([ORDER_COLUMNS])
    before_id: str | None = None
    for _ in range(CSV_ROWS_MAX // CSV_ROWS_AT_ONCE):
        async with context.database.reading() as reader:
            found = await orders.list_any_after(
                reader, merchant_id, wanted, before_id=before_id, limit=CSV_ROWS_AT_ONCE
            )
        yield csv_text(map(order_cells, found))
        if len(found) < CSV_ROWS_AT_ONCE:
            return
        before_id = found[-1].id


routes: Final = [
    Route("/dashboard/orders.csv", export, methods=["GET"]),
    *page_routes("/dashboard/orders", show),
]
