"""Orders as the dashboard lists them: in numbered pages, with how many there are in all."""

from dataclasses import replace
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from loop.server.auth import authenticate
from loop.server.dashboard_shapes import PaginationJson, pagination_json
from loop.server.operations import ORDER_FILTER, PAGE, Operation, describes
from loop.server.request import context_of, json_response, page_of, query_of
from loop.server.shapes import OrderJson, order_filter_of, order_json
from loop.storage import orders


class OrderPageJson(TypedDict):
    """A page of orders, newest first."""

    data: list[OrderJson]
    pagination: PaginationJson


@describes(Operation("listOrderPages", answer=OrderPageJson, query={**PAGE, **ORDER_FILTER}))
async def list_page(request: Request) -> Response:
    """Answer a page of the merchant's orders, newest first."""
    caller = await authenticate(request)
    page = page_of(request)
    order_filter = replace(order_filter_of(query_of(request)), is_test=caller.is_test)
    async with context_of(request).database.reading() as reader:
        rows, total = await orders.list_page(
            reader, caller.merchant_id, order_filter, offset=page.offset, limit=page.limit
        )
    return json_response({"data": [order_json(row) for row in rows], "pagination": pagination_json(page, total)})


routes: Final = [Route("/api/orders", list_page, methods=["GET"])]
