"""One order: its money, its story, and what can be done with it."""

from dataclasses import dataclass
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loop.domain.attempts import Attempt
from loop.domain.errors import LoopError
from loop.domain.orders import Command, Order, OrderStatus, Refused, decide
from loop.server.dashboard.frames import Page, page_routes, render
from loop.server.dashboard.stories import story_of
from loop.server.dashboard.viewers import Viewer, acting_as, new_form_key
from loop.server.errors import STATUS_OF
from loop.server.request import path_id, query_of, time_text
from loop.server.shapes import order_json
from loop.storage import webhooks
from loop.workflows import orders, retries, timeline
from loop.workflows.context import Context

NOTICES: Final = {
    "captured": "The money was captured.",
    "cancelled": "The order was cancelled.",
    "refunded": "The refund was asked for. The timeline says how it stands.",
    "retried": "The payment was tried again. The timeline says how it went.",
    "reviewed": "The order is off the list of those that need a person.",
    "resent": "The event is being sent again.",
    "running": "This is being worked on already. Look again in a moment.",
}
"""What a page says after an action, by the word in its address."""

_UNDER_WAY: Final = frozenset({OrderStatus.PROCESSING})


@dataclass(frozen=True, slots=True)
class Possible:
    """What may be done with an order now; amounts in minor units, `why_no_retry` None where it can be tried again."""

    may_capture: bool
    may_cancel: bool
    may_refund: bool
    refundable_minor: int
    may_retry: bool
    why_no_retry: str | None


def possible(context: Context, order: Order, attempt: Attempt | None) -> Possible:
    """Return what the tables of states allow for an order."""
    left = order.amount_captured_minor - order.amount_refund_reserved_minor - order.amount_disputed_minor
    obstacle = retries.obstacle(context, order, attempt)
    return Possible(
        may_capture=_is_allowed(order, Command.CAPTURE),
        may_cancel=_is_allowed(order, Command.CANCEL),
        may_refund=_is_allowed(order, Command.REFUND) and left > 0,
        refundable_minor=max(0, left),
        may_retry=obstacle is None,
        why_no_retry=obstacle if order.status is OrderStatus.FAILED else None,
    )


def _is_allowed(order: Order, command: Command) -> bool:
    return not isinstance(decide(order.status, command), Refused)


def address_of(order_id: str, notice: str | None = None) -> str:
    """Return where an order's page is, with what it should say at the top."""
    return f"/dashboard/orders/{order_id}" + ("" if notice is None else f"?notice={notice}")


async def show(request: Request, viewer: Viewer, *, problem: LoopError | None = None) -> Page:
    """Show an order, or, after an action that was refused, the same with what was wrong."""
    context = acting_as(request, viewer)
    order_id = path_id(request, "order_id", noun="order")
    order, entries = await timeline.of_order(context, viewer.merchant_id, order_id)
    in_hand = await orders.get_in_hand(context, viewer.merchant_id, order_id)
    async with context.database.reading() as reader:
        endpoints = await webhooks.endpoints_of(reader, viewer.merchant_id)
    told = [{"at": time_text(e.at), "kind": e.kind, "title": e.title, "details": e.details} for e in entries]
    json = {"order": order_json(order), "timeline": told}
    values = {
        "order": order,
        "steps": story_of(order, entries, addresses={each.id: each.url or "" for each in endpoints}),
        "has_endpoint": any(each.url for each in endpoints),
        "possible": possible(context, order, in_hand.attempt),
        "is_under_way": order.status in _UNDER_WAY,
        "problem": problem,
        "notice": NOTICES.get(query_of(request).get("notice", "")) if problem is None else None,
        "json": json,
        # One for each form, so that a double click asks once and a second refund is a second one.
        "new_key": partial(new_form_key, context),
    }
    return Page("order.html", "orders", values, json, 200 if problem is None else STATUS_OF[problem.kind])


async def show_refusal(request: Request, viewer: Viewer, *, problem: LoopError) -> Response:
    """Answer an action that was refused with the order's page, which says why."""
    return render(await show(request, viewer, problem=problem), viewer)


routes: Final[list[Route]] = page_routes("/dashboard/orders/{order_id}", show)
