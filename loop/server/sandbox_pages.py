"""The sandbox's pages: where a test customer picks what their bank says."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loop.domain.attempts import Attempt, AttemptStatus
from loop.domain.errors import invalid, not_found
from loop.domain.ids import PREFIX_ATTEMPT
from loop.domain.orders import OrderStatus
from loop.processors.sandbox import RESULT_PARAMETER, RESULTS, SIGNATURE_PARAMETER, Result, SandboxProcessor
from loop.server.languages import asked_for, language_of
from loop.server.pages import Policy, page, render, see_other
from loop.server.request import context_of, path_id, read_form
from loop.storage import attempts, orders
from loop.storage.orders import OrderInHand
from loop.workflows import checkout
from loop.workflows.context import Context

LABELS: Final[Mapping[Result, str]] = {
    "approved": "Approve the payment",
    "declined": "Decline the payment",
    "insufficient_funds": "Decline it for want of money",
    "failed": "Fail the authentication",
}


TITLES: Final = ("Confirm that it is you", "Pick how the payment ends")
"""Of the page that asks for a confirmation, and of the one that asks for everything."""


@dataclass(frozen=True, slots=True)
class _Visit:
    """One payment as a page shows it."""

    reference: str
    attempt: Attempt
    in_hand: OrderInHand
    return_url: str


async def _visit(request: Request) -> _Visit:
    """Return the sandbox payment of a page's address; raises `not_found`."""
    context = context_of(request)
    reference = path_id(request, "reference", noun="sandbox payment")
    parts = reference.split("_")
    attempt_id = f"{PREFIX_ATTEMPT}_{parts[1]}" if len(parts) > 2 else ""
    async with context.database.reading() as reader:
        attempt = await attempts.get(reader, attempt_id)
        if attempt is None or attempt.processor != "sandbox" or attempt.processor_reference != reference:
            raise not_found("sandbox payment")
        in_hand = await orders.get_in_hand(reader, attempt.merchant_id, attempt.order_id)
    if in_hand is None:
        raise not_found("sandbox payment")
    # Built from our own address and an id that is known, never from the request.
    return_url = f"{context.settings.checkout_base_url}/return/{attempt.id}"
    return _Visit(reference, attempt, in_hand, return_url)


@page
async def challenge(request: Request) -> Response:
    """Ask a test customer to prove who they are."""
    return await _show(request, TITLES[0], ("approved", "failed"))


@page
async def payment(request: Request) -> Response:
    """Ask a test customer how their payment should end."""
    return await _show(request, TITLES[1], RESULTS)


async def _show(request: Request, title: str, results: tuple[Result, ...]) -> Response:
    visit, language = await _visit(request), language_of(request)
    if visit.attempt.status is not AttemptStatus.REQUIRES_ACTION:
        return render(
            "message.html",
            language,
            title=language.say("Nothing to do"),
            text=language.say("This test payment does not wait for you."),
            link=visit.return_url,
        )
    return render(
        "sandbox.html",
        language,
        policy=Policy(is_scripted=True, form_targets=await _form_targets(context_of(request), visit)),
        title=language.say(title),
        amount=language.money(visit.in_hand.order.amount),
        choices=[(result, language.say(LABELS[result])) for result in results],
    )


async def _form_targets(context: Context, visit: _Visit) -> list[str]:
    """Return where the form leads on to in the end, paid or not: browsers follow its redirects nowhere else."""
    order = visit.in_hand.order
    ends = [
        await checkout.destination(context, OrderInHand(replace(order, status=status), visit.attempt))
        for status in (OrderStatus.CAPTURED, OrderStatus.FAILED)
    ]
    return [visit.return_url, *(end for end in ends if end is not None)]


@page
async def choose(request: Request) -> Response:
    """Sign what the customer picked and send them back with it."""
    visit = await _visit(request)
    form = await read_form(request)
    picked = next((result for result in RESULTS if result == form.get("result")), None)
    if picked is None:
        raise invalid("validation_failed", f"result must be one of {', '.join(RESULTS)}.")
    sandbox = context_of(request).processors.get("sandbox")
    if not isinstance(sandbox, SandboxProcessor):
        raise not_found("sandbox payment")
    signed = {RESULT_PARAMETER: picked, SIGNATURE_PARAMETER: sandbox.sign_result(visit.reference, picked)}
    language = asked_for(request)
    chosen = {} if language is None else {"lang": language}
    return see_other(f"{visit.return_url}?{urlencode({**signed, **chosen})}")


routes = [
    Route("/sandbox/challenge/{reference}", challenge, methods=["GET"]),
    Route("/sandbox/challenge/{reference}", choose, methods=["POST"]),
    Route("/sandbox/payments/{reference}", payment, methods=["GET"]),
    Route("/sandbox/payments/{reference}", choose, methods=["POST"]),
]
