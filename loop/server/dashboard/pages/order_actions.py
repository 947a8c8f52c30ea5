"""What a viewer does with an order: capture, cancel, refund, retry, send its events again; each asked for once."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loop.domain.errors import LoopError, not_found
from loop.domain.ids import PREFIX_REFUND
from loop.server.dashboard.amounts import parse_amount
from loop.server.dashboard.frames import acts
from loop.server.dashboard.keyed_forms import keyed
from loop.server.dashboard.pages.order import address_of, show_refusal
from loop.server.dashboard.viewers import Action, Sent, Viewer, acting_as
from loop.server.idempotency import once_under
from loop.server.pages import see_other
from loop.server.request import path_id, validation_failed
from loop.storage import refunds as refund_rows
from loop.storage import webhooks
from loop.workflows import captures, deliveries, orders, refunds, retries, reviews
from loop.workflows.context import Context
from loop.workflows.idempotency import Claim

WAIT_S: Final = 10
"""How long a page may wait for the processor, in seconds."""

MAX_REASON_CHARACTERS: Final = 500
_IN_PROGRESS: Final = "idempotency_in_progress"


@dataclass(frozen=True, slots=True)
class Task:
    """What a form asks to be done with which order, under the claim of its key."""

    viewer: Viewer
    order_id: str
    fields: Mapping[str, str]
    claim: Claim | None

    @property
    def merchant_id(self) -> str:
        """Whose order it is."""
        return self.viewer.merchant_id


Doing = Callable[[Context, Task], Awaitable[str]]
"""Does what a form asks for; returns what the order's page then tells."""


def _does(doing: Doing) -> Action:
    """Do something with an order once for each form that was shown, and then show the order again."""

    @wraps(doing)
    async def act(request: Request, sent: Sent) -> Response:
        viewer, context = sent.viewer, acting_as(request, sent.viewer)
        order_id = path_id(request, "order_id", noun="order")

        async def run(claim: Claim | None) -> Response:
            notice = await doing(context, Task(viewer, order_id, sent.fields, claim))
            return Response(address_of(order_id, notice))

        try:
            # Another's order is the same to it as one that is not there, whatever else the form says.
            await orders.get(context, viewer.merchant_id, order_id)
            done = await once_under(
                context, keyed(request, sent), operation=run, subject_id=context.new_id(PREFIX_REFUND)
            )
        except LoopError as error:
            if error.code == _IN_PROGRESS:  # the second of two clicks
                return see_other(address_of(order_id, "running"))
            return await show_refusal(request, viewer, problem=error)
        return see_other(bytes(done.body).decode())

    return act


async def _amount(context: Context, task: Task) -> int | None:
    """Return the amount that was typed; None for all there is."""
    typed = task.fields.get("amount", "").strip()
    if not typed:
        return None
    order = await orders.get(context, task.merchant_id, task.order_id)
    return parse_amount(typed, order.currency, field="amount")


def _reason(task: Task) -> str | None:
    reason = task.fields.get("reason", "").strip()
    if len(reason) > MAX_REASON_CHARACTERS:
        raise validation_failed(("reason", f"must have at most {MAX_REASON_CHARACTERS} characters"))
    return reason or None


async def capture(context: Context, task: Task) -> str:
    """Take an authorized order's money, all of it or a part."""
    amount = await _amount(context, task)
    await captures.capture(context, task.merchant_id, task.order_id, amount_minor=amount, wait_s=WAIT_S)
    return "captured"


async def cancel(context: Context, task: Task) -> str:
    """Cancel an order, at the processor first."""
    await captures.cancel(context, task.merchant_id, task.order_id, reason=_reason(task), wait_s=WAIT_S)
    return "cancelled"


async def refund(context: Context, task: Task) -> str:
    """Give captured money back, all that is left or a part."""
    refund_id = None if task.claim is None else task.claim.row.subject_id
    if task.claim is None or task.claim.began_at is None or not await _is_made(context, task, refund_id):
        await refunds.refund(
            context,
            task.merchant_id,
            task.order_id,
            amount_minor=await _amount(context, task),
            reason=_reason(task),
            wait_s=WAIT_S,
            refund_id=refund_id,
        )
    return "refunded"


async def _is_made(context: Context, task: Task, refund_id: str | None) -> bool:
    """Tell whether a run that died has come as far as making the refund."""
    async with context.database.reading() as reader:
        found = None if refund_id is None else await refund_rows.get(reader, refund_id)
    return found is not None and found.merchant_id == task.merchant_id


async def retry(context: Context, task: Task) -> str:
    """Try a failed payment again."""
    await retries.retry(context, task.merchant_id, task.order_id, wait_s=WAIT_S)
    return "retried"


async def review(context: Context, task: Task) -> str:
    """Take an order off the list of those that need a person."""
    await reviews.mark_reviewed(context, task.merchant_id, task.order_id, note=task.fields.get("note", ""))
    return "reviewed"


async def resend(context: Context, task: Task) -> str:
    """Send one of the order's events again, to all that hear of it."""
    event_id = task.fields.get("event", "")
    async with context.database.reading() as reader:
        event = await webhooks.event(reader, task.merchant_id, event_id)
    if event is None or event.order_id != task.order_id:
        raise not_found("event")
    await deliveries.retry(context, task.merchant_id, event_id)
    return "resent"


routes: Final = [
    Route(f"/dashboard/orders/{{order_id}}/{name}", acts(_does(doing)), methods=["POST"])
    for name, doing in (
        ("capture", capture), ("cancel", cancel), ("refund", refund), ("retry", retry), ("resend", resend),
        ("review", review),
    )
]  # fmt: skip
