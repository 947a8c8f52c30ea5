"""The hosted checkout page, and the address that customers come back to from their bank."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loop.domain.declines import unified
from loop.domain.errors import LoopError
from loop.domain.money import Money
from loop.domain.orders import EXPIRED, Order, OrderStatus
from loop.server.checkout_forms import PaymentForm, form_of
from loop.server.errors import STATUS_OF
from loop.server.languages import Language, asked_for, language_of
from loop.server.pages import Policy, page, render, see_other
from loop.server.request import context_of, json_response, path_id, read_form
from loop.storage import merchants
from loop.workflows import checkout
from loop.workflows.checkout import SessionInHand, SessionStatus, filled_in
from loop.workflows.context import Context

WAIT_S: Final = 10
"""How long a click on Pay waits for the processor, in seconds."""

WORDS: Final = {
    OrderStatus.AUTHORIZED: "Your payment is made. You can close this page.",
    OrderStatus.CAPTURED: "Your payment is made. You can close this page.",
    OrderStatus.PARTIALLY_REFUNDED: "Your payment was made, and a part of it was given back.",
    OrderStatus.REFUNDED: "Your payment was made, and all of it was given back.",
    OrderStatus.FAILED: "Your payment was not made. You were not charged. You can close this page.",
    OrderStatus.CANCELLED: "The payment was cancelled. You were not charged. You can close this page.",
}
PROCESSING: Final = "Your payment is being processed. You can close this page."

NOBODY_TAKES_IT: Final = "The shop cannot take this payment at the moment. You were not charged."

STILL_OPEN: Final = "Your last try is still being closed. Please try again in a moment."

TROUBLES: Final = {
    "no_processor": NOBODY_TAKES_IT,
    "no_eligible_processor": NOBODY_TAKES_IT,
    "previous_attempt_open": STILL_OPEN,
}
"""Why a payment did not begin though nothing is wrong with the page: the customer is told, and may try again."""


class Face(StrEnum):
    """What the page shows."""

    PAYABLE = "payable"
    WAITING = "waiting"
    """The customer pays at the processor that was chosen, on this page or at another address."""
    PROCESSING = "processing"
    COMPLETED = "completed"
    GIVEN_BACK = "given_back"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class _Line:
    name: str
    quantity: str
    each: str | None
    total: str


@page
async def show(request: Request) -> Response:
    """Show a session: pay, wait, go on, or why none of it is possible."""
    return await _shown(request, path_id(request, "session_id", noun="checkout session"))


async def _shown(request: Request, session_id: str, *, trouble: str | None = None, status: int = 200) -> Response:
    context, language = context_of(request), language_of(request)
    found = await checkout.find(context, session_id)
    order, attempt, session = found.order.order, found.order.attempt, found.session
    async with context.database.reading() as reader:
        merchant = await merchants.get(reader, session.merchant_id)
    name = "" if merchant is None else merchant.name
    face = face_of(context, found)
    form: PaymentForm | None = None
    if face is Face.WAITING and attempt is not None:
        return_url = _with_language(request, f"{context.settings.checkout_base_url}/return/{attempt.id}")
        form = form_of(attempt, return_url=return_url, merchant=name, back_url=_with_language(request, session.url))
    success_url = filled_in(session.success_url, session)
    return render(
        "checkout.html",
        language,
        status=status,
        policy=Policy(is_scripted=True, form_targets=(context.settings.checkout_base_url,))
        if form is None
        else form.policy,
        face=face,
        merchant=name,
        amount=language.money(order.amount),
        order=order,
        lines=_lines(found, language),
        expires_at=language.moment(session.expires_at),
        decline=_decline_of(found, face, language),
        trouble=None if trouble is None else language.say(trouble),
        attempt_id="" if attempt is None else attempt.id,
        form_template=None if form is None else form.template,
        form=None if form is None else form.values,
        success_url=None if success_url == session.url else success_url,
        cancel_url=None if session.cancel_url is None else filled_in(session.cancel_url, session),
    )


def face_of(context: Context, found: SessionInHand) -> Face:
    """Return which of the page's faces is shown."""
    status, order = checkout.status_of(context, found), found.order.order
    if order.status in (OrderStatus.PARTIALLY_REFUNDED, OrderStatus.REFUNDED):
        return Face.GIVEN_BACK
    if status is SessionStatus.COMPLETED:
        return Face.COMPLETED
    if order.status is OrderStatus.PROCESSING:
        return Face.PROCESSING
    if order.status is OrderStatus.CANCELLED and order.last_error_code != EXPIRED:
        return Face.CANCELLED
    if status is SessionStatus.EXPIRED:
        return Face.EXPIRED
    if order.status is OrderStatus.REQUIRES_ACTION:
        return Face.WAITING
    return Face.PAYABLE if checkout.may_pay(context, found) else Face.FAILED


def _decline_of(found: SessionInHand, face: Face, language: Language) -> str | None:
    """Return why the latest try was declined, in words for the customer."""
    order, attempt = found.order.order, found.order.attempt
    code = order.last_error_code
    if face is Face.WAITING and attempt is not None:
        code = attempt.error_code
    if code is None or face not in (Face.PAYABLE, Face.WAITING, Face.FAILED):
        return None
    return language.say(unified(code).customer_message)


def _lines(found: SessionInHand, language: Language) -> list[_Line]:
    currency = found.order.order.currency
    return [
        _Line(
            name=str(item["name"]),
            quantity=language.number(item["quantity"]),
            each=None if item["quantity"] == 1 else language.money(Money(item["amount"], currency)),
            total=language.money(Money(item["amount"] * item["quantity"], currency)),
        )
        for item in found.session.line_items
    ]


def _with_language(request: Request, url: str) -> str:
    """Return an address of ours with the language that the customer has chosen, for as long as they are with us."""
    code = asked_for(request)
    return url if code is None else f"{url}{'&' if '?' in url else '?'}{urlencode({'lang': code})}"


@page
async def state(request: Request) -> Response:
    """Answer where a session stands, for a page that was opened a while ago: it may have moved on elsewhere."""
    context = context_of(request)
    found = await checkout.find(context, path_id(request, "session_id", noun="checkout session"))
    attempt = found.order.attempt
    return json_response({"face": face_of(context, found), "attempt": "" if attempt is None else attempt.id})


@page
async def pay(request: Request) -> Response:
    """Start the payment and send the customer where it goes on."""
    context = context_of(request)
    session_id = path_id(request, "session_id", noun="checkout session")
    try:
        found = await checkout.pay(context, session_id, WAIT_S)
    except LoopError as error:
        if error.code not in TROUBLES:
            raise
        return await _shown(request, session_id, trouble=TROUBLES[error.code], status=STATUS_OF[error.kind])
    order, attempt = found.order.order, found.order.attempt
    if order.status is OrderStatus.REQUIRES_ACTION and attempt is not None:
        action_url = str((attempt.action or {}).get("redirectUrl", ""))
        # Browsers let a form lead on only to addresses that its page has named; the next page links to others.
        if action_url.startswith(f"{context.settings.checkout_base_url}/"):
            return see_other(_with_language(request, action_url))
    return see_other(_with_language(request, f"/checkout/{session_id}"))


@page
async def come_back(request: Request) -> Response:
    """Take a customer back from their bank: ask what became of the payment, and send them on.

    Some processors send the customer on with a query, others (Razorpay) with a form.
    """
    context, language = context_of(request), language_of(request)
    attempt_id = path_id(request, "attempt_id", noun="payment")
    parameters = dict(request.query_params)
    if request.method == "POST":
        parameters |= await read_form(request)
    in_hand = await checkout.take_back(context, attempt_id, parameters)
    url = await checkout.destination(context, in_hand)
    if url is not None:
        is_ours = url.startswith(f"{context.settings.checkout_base_url}/checkout/")
        return see_other(_with_language(request, url) if is_ours else url)
    return _told(in_hand.order, language)


def _told(order: Order, language: Language) -> Response:
    text = language.say(WORDS.get(order.status, PROCESSING))
    return render("message.html", language, title=language.money(order.amount), text=text)


routes = [
    Route("/checkout/{session_id}", show, methods=["GET"]),
    Route("/checkout/{session_id}", pay, methods=["POST"]),
    Route("/checkout/{session_id}/state", state, methods=["GET"]),
    Route("/return/{attempt_id}", come_back, methods=["GET", "POST"]),
]
