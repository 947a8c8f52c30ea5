"""Reviews: a person has looked at an order that Loop could not make sense of, and says so."""

from dataclasses import replace
from typing import Final

from loop.domain import polling
from loop.domain.attempts import AttemptStatus, Cancelled
from loop.domain.audit import AuditAction
from loop.domain.errors import invalid, not_found
from loop.domain.events import timestamp
from loop.domain.orders import Order, OrderStatus
from loop.storage import orders
from loop.telemetry import get_logger
from loop.workflows import audit
from loop.workflows.context import Context
from loop.workflows.outcomes import record

log = get_logger(__name__)

NOTE_CHARACTERS: Final = 500
"""The longest note."""


async def mark_reviewed(context: Context, merchant_id: str, order_id: str, *, note: str) -> Order:
    """Take an order off the list of those that a person must look at, with a note of what was found.

    Nothing else about the order changes, and the merchant is told nothing. One that is still unclear when its processor
    is next asked comes back to the list. Raises `not_found`, `not_in_review`, and `validation_failed` for a note that
    is blank or longer than `NOTE_CHARACTERS`.
    """
    note = _checked(note)
    async with context.database.transaction() as session:
        in_hand = await orders.lock(session, merchant_id, order_id, is_test=context.is_test)
        if in_hand is None:
            raise not_found("order")
        if not in_hand.order.needs_review:
            raise invalid("not_in_review", "The order waits for no review; read it anew.")
        order = replace(in_hand.order, needs_review=False, updated_at=context.now())
        await session.run_together([orders.updating(order)])
        await audit.record(
            context, session, AuditAction.ORDER_REVIEWED, order.id, merchant_id=merchant_id, after={"note": note}
        )
    log.info("order.reviewed", order_id=order.id)
    return replace(order, revision=order.revision + 1)


async def settle_unpaid(context: Context, merchant_id: str, order_id: str, *, note: str) -> Order:
    """Cancel an order whose payment a person has looked for at its processor in vain, with a note of what they did.

    It is for what nobody else can find out any more: the key of the first request has ended, so that nothing is sent
    again. Money that comes all the same is a late success. Raises `not_found`, `invalid_status`, and
    `validation_failed` as `mark_reviewed` does.
    """
    note, now = _checked(note), context.now()
    async with context.database.transaction() as session:
        in_hand = await orders.lock(session, merchant_id, order_id, is_test=context.is_test)
        if in_hand is None:
            raise not_found("order")
        order, attempt = in_hand.order, in_hand.attempt
        is_lost = attempt is not None and attempt.status in (AttemptStatus.SUBMITTING, AttemptStatus.UNKNOWN)
        if attempt is None or not is_lost or order.status is not OrderStatus.PROCESSING:
            raise invalid("invalid_status", f"The order is {order.status}, and its processor has said how it stands.")
        until = attempt.created_at + polling.KEY_HORIZON
        if now < until:
            raise invalid("invalid_status", f"The processor is still asked for the payment, until {timestamp(until)}.")
        if order.needs_review:
            await session.run_together([orders.updating(replace(order, needs_review=False, updated_at=now))])
        await audit.record_request(
            context,
            session,
            AuditAction.CANCELLATION_REQUESTED,
            order.id,
            merchant_id=merchant_id,
            after={"status": order.status, "reason": note},
        )
    log.warning("order.settled_unpaid", order_id=order.id, attempt_id=attempt.id)
    return (await record(context, attempt, Cancelled(), job=None, payload={"reason": note})).in_hand.order


def _checked(note: str) -> str:
    note = note.strip()
    if not 0 < len(note) <= NOTE_CHARACTERS:
        message = f"Say in 1 to {NOTE_CHARACTERS} characters what was found."
        raise invalid("validation_failed", message, details=(("note", message),))
    return note
