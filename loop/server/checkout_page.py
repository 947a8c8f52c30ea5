"""The hosted checkout page, and the address that customers come back to from their bank."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loop.domain.declines import unified
from loop.domain.money import Money
from loop.domain.orders import OrderStatus
from loop.server.pages import page, render, see_other
from loop.server.request import context_of, path_id, read_form
from loop.storage import merchants
from loop.workflows import checkout, payments
from loop.workflows.checkout import SessionInHand, SessionStatus, filled_in
from loop.workflows.context import Context

WAIT_S: Final = 10
"""How long a click on Pay waits for the processor, in seconds."""

WORDS: Final = {
    OrderStatus.AUTHORIZED: "Your payment is made.",
    OrderStatus.CAPTURED: "Your payment is made.",
    OrderStatus.PARTIALLY_REFUNDED: "Your payment was made, and a part of it was given back.",
    OrderStatus.REFUNDED: "Your payment was made, and all of it was given back.",
    OrderStatus.FAILED: "Your payment was not made. You were not charged.",
    OrderStatus.CANCELLED: "The payment was cancelled. You were not charged.",
}


@page
async def show(request: Request) -> Response:
    """Show a session: pay, wait, go on, or why none of it is possible."""
    context = context_of(request)
    found = await checkout.find(context, path_id(request, "session_id", noun="checkout session"))
    order, attempt, session = found.order.order, found.order.attempt, found.session
    async with context.database.reading() as reader:
        merchant = await merchants.get(reader, session.merchant_id)
    action = None if attempt is None else (attempt.action or {}).get("redirectUrl")
    return render(
        "checkout.html",
        form_targets=[context.settings.checkout_base_url],
        state=_state(context, found),
        merchant="" if merchant is None else merchant.name,
        amount=str(order.amount),
        description=order.description,
        lines=[
            {"name": i["name"], "quantity": i["quantity"], "amount": str(Money(i["amount"], order.currency))}
            for i in session.line_items
        ],
        decline=unified(order.last_error_code).customer_message if order.last_error_code else None,
        action_url=action,
        success_url=filled_in(session.success_url, session),
        cancel_url=None if session.cancel_url is None else filled_in(session.cancel_url, session),
    )


def _state(context: Context, found: SessionInHand) -> str:
    """Return which of the page's faces is shown."""
    status, order = checkout.status_of(context, found), found.order.order
    if status is SessionStatus.COMPLETED:
        return "completed"
    if order.status is OrderStatus.PROCESSING:
        return "processing"
    if order.status is OrderStatus.CANCELLED and order.last_error_code != "expired":
        return "cancelled"
    if status is SessionStatus.EXPIRED:
        return "expired"
    if order.status is OrderStatus.REQUIRES_ACTION:
        return "requires_action"
    return "payable" if checkout.may_pay(context, found) else "failed"


@page
async def pay(request: Request) -> Response:
    """Start the payment and send the customer where it goes on."""
    context = context_of(request)
    session_id = path_id(request, "session_id", noun="checkout session")
    found = await checkout.pay(context, session_id, WAIT_S)
    order, attempt = found.order.order, found.order.attempt
    if order.status is OrderStatus.REQUIRES_ACTION and attempt is not None:
        action_url = str((attempt.action or {}).get("redirectUrl", ""))
        # Browsers let a form lead on only to addresses that its page has named; the next page links to others.
        if action_url.startswith(f"{context.settings.checkout_base_url}/"):
            return see_other(action_url)
    return see_other(f"/checkout/{session_id}")


@page
async def come_back(request: Request) -> Response:
    """Take a customer back from their bank: ask what became of the payment, and send them on.

    Some processors send the customer on with a query, others (Razorpay) with a form.
    """
    context = context_of(request)
    attempt_id = path_id(request, "attempt_id", noun="payment")
    parameters = dict(request.query_params)
    if request.method == "POST":
        parameters |= await read_form(request)
    in_hand = await payments.complete_action(context, attempt_id, parameters)
    url = await checkout.destination(context, in_hand)
    if url is not None:
        return see_other(url)
    text = WORDS.get(in_hand.order.status, "Your payment is being processed.")
    return render("message.html", title=str(in_hand.order.amount), text=f"{text} You can close this page.")


routes = [
    Route("/checkout/{session_id}", show, methods=["GET"]),
    Route("/checkout/{session_id}", pay, methods=["POST"]),
    Route("/return/{attempt_id}", come_back, methods=["GET", "POST"]),
]
