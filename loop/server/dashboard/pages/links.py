"""Checkout links: pages that customers pay on, made here, listed, shown to send or print, and closed."""

from datetime import timedelta
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loop.domain.errors import LoopError
from loop.domain.money import CURRENCY_EXPONENTS, Money
from loop.server.dashboard.amounts import parse_amount
from loop.server.dashboard.drafts import Draft
from loop.server.dashboard.frames import Page, acts, page_routes, render
from loop.server.dashboard.keyed_forms import keyed
from loop.server.dashboard.listing import listed
from loop.server.dashboard.viewers import Sent, Viewer, acting_as, new_form_key
from loop.server.errors import STATUS_OF
from loop.server.idempotency import once_under
from loop.server.pages import see_other
from loop.server.request import context_of, path_id, query_of, time_text, validation_failed
from loop.storage import checkout as checkout_rows
from loop.storage.checkout import SessionFilter
from loop.storage.orders import OrderInHand
from loop.workflows import checkout
from loop.workflows.checkout import NewSession, SessionInHand, SessionStatus
from loop.workflows.context import Context
from loop.workflows.idempotency import Claim

HERE: Final = "/dashboard/links"
LASTS: Final = {"1": "1 hour", "24": "1 day", "72": "3 days", "168": "1 week", "720": "30 days"}
"""How long a link can be paid, in hours; the last is the longest that there is."""

DEFAULT_HOURS: Final = "24"
MAX_PURPOSE_CHARACTERS: Final = 255
MAX_EMAIL_CHARACTERS: Final = 320
NOTICES: Final = {
    "made": "The link is ready. Send it, or have its code scanned.",
    "closed": "The link is closed: nobody pays through it any more. Its order stays, and can be cancelled.",
}


async def show(request: Request, viewer: Viewer) -> Page:
    """Show a page of links, newest first."""
    context, asked = acting_as(request, viewer), listed(request, SessionStatus)
    wanted = SessionFilter(viewer.is_test, asked.status, context.now())
    async with context.database.reading() as reader:
        found = await checkout_rows.list_after(
            reader, viewer.merchant_id, wanted, before_id=asked.before_id, limit=asked.rows_to_read
        )
    page = asked.page(found)
    rows = [SessionInHand(each.session, OrderInHand(each.order, None)) for each in page.rows]
    values = {
        "page": page,
        "rows": [(each, checkout.status_of(context, each)) for each in rows],
        "statuses": [each.value for each in SessionStatus],
    }
    json = {**page.json(lambda _row: None), "data": [_json(context, each) for each in rows]}
    return Page("links.html", "links", values, json)


def _json(context: Context, found: SessionInHand) -> dict[str, object]:
    session, order = found.session, found.order.order
    return {
        "id": session.id,
        "url": session.url,
        "status": checkout.status_of(context, found),
        "amount": order.amount_minor,
        "currency": order.currency,
        "orderId": order.id,
        "lineItems": [dict(each) for each in session.line_items],
        "expiresAt": time_text(session.expires_at),
        "completedAt": time_text(session.completed_at),
        "createdAt": time_text(session.created_at),
    }


async def show_one(request: Request, viewer: Viewer, *, problem: LoopError | None = None) -> Page:
    """Show one link to copy, scan or print."""
    context = acting_as(request, viewer)
    session_id = path_id(request, "session_id", noun="checkout session")
    found = await checkout.get(context, viewer.merchant_id, session_id)
    values = {
        "session": found.session,
        "order": found.order.order,
        "status": checkout.status_of(context, found),
        "notice": NOTICES.get(query_of(request).get("notice", "")) if problem is None else None,
        "problem": problem,
    }
    status = 200 if problem is None else STATUS_OF[problem.kind]
    return Page("link.html", "links", values, _json(context, found), status)


async def show_new(request: Request, viewer: Viewer) -> Page:
    """Show the form of a new link."""
    return _new_page(request, viewer, draft=Draft({"currency": "USD", "hours": DEFAULT_HOURS}))


def _new_page(request: Request, viewer: Viewer, *, draft: Draft) -> Page:
    key = new_form_key(context_of(request))
    values = {"draft": draft, "lasts": tuple(LASTS.items()), "key": key, "mode": viewer.mode}
    return Page("link_new.html", "links", values, {"hours": list(LASTS)}, draft.status)


async def make(request: Request, sent: Sent) -> Response:
    """Make a link, once for each form, and show it."""
    viewer, context = sent.viewer, acting_as(request, sent.viewer)

    async def run(_claim: Claim | None) -> Response:
        session = await checkout.create_session(context, viewer.merchant_id, _new_session(sent))
        return Response(f"{HERE}/{session.id}?notice=made")

    try:
        made = await once_under(context, keyed(request, sent), operation=run)
    except LoopError as error:
        return render(_new_page(request, viewer, draft=Draft(sent.fields, error)), viewer)
    return see_other(bytes(made.body).decode())


def _new_session(sent: Sent) -> NewSession:
    typed = {name: sent.fields.get(name, "").strip() for name in ("amount", "currency", "purpose", "email", "hours")}
    currency = typed["currency"].upper()
    if currency not in CURRENCY_EXPONENTS:
        raise validation_failed(("currency", "must be a code of three letters, such as EUR"))
    amount_minor = parse_amount(typed["amount"], currency, field="amount")
    if typed["hours"] not in LASTS:
        raise validation_failed(("hours", f"must be one of {', '.join(LASTS)}"))
    if len(typed["purpose"]) > MAX_PURPOSE_CHARACTERS:
        raise validation_failed(("purpose", f"must have at most {MAX_PURPOSE_CHARACTERS} characters"))
    email = typed["email"]
    local, _, host = email.partition("@")
    if email and (not local or not host or " " in email or len(email) > MAX_EMAIL_CHARACTERS):
        raise validation_failed(("email", "must be an e-mail address, or empty"))
    line = {"name": typed["purpose"], "amount": amount_minor, "quantity": 1}
    return NewSession(
        success_url=None,
        cancel_url=None,
        expires_in=timedelta(hours=int(typed["hours"])),
        amount=Money(amount_minor, currency),
        customer_email=email or None,
        line_items=[line] if typed["purpose"] else [],
    )


async def close(request: Request, sent: Sent) -> Response:
    """Close a link before its time is up."""
    viewer, context = sent.viewer, acting_as(request, sent.viewer)
    session_id = path_id(request, "session_id", noun="checkout session")
    try:
        await checkout.expire(context, viewer.merchant_id, session_id)
    except LoopError as error:
        return render(await show_one(request, viewer, problem=error), viewer)
    return see_other(f"{HERE}/{session_id}?notice=closed")


routes: Final[list[Route]] = [
    *page_routes(HERE, show),
    *page_routes(f"{HERE}/new", show_new),
    Route(f"{HERE}/new", acts(make), methods=["POST"]),
    *page_routes(f"{HERE}/{{session_id}}", show_one),
    Route(f"{HERE}/{{session_id}}/close", acts(close), methods=["POST"]),
]
