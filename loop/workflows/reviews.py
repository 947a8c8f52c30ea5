"""Reviews: a person has looked at an order that Loop could not make sense of, and says so."""

from dataclasses import replace
from typing import Final

from loop.domain.audit import AuditAction
from loop.domain.errors import invalid, not_found
from loop.domain.orders import Order
from loop.storage import orders
from loop.telemetry import get_logger
from loop.workflows import audit
from loop.workflows.context import Context

log = get_logger(__name__)

NOTE_CHARACTERS: Final = 500
"""The longest note."""


async def mark_reviewed(context: Context, merchant_id: str, order_id: str, *, note: str) -> Order:
    """Take an order off the list of those that a person must look at, with a note of what was found.

    Nothing else about the order changes, and the merchant is told nothing. One that is still unclear when its processor
    is next asked comes back to the list. Raises `not_found`, `not_in_review`, and `validation_failed` for a note that
    is blank or longer than `NOTE_CHARACTERS`.
    """
    note = note.strip()
    if not 0 < len(note) <= NOTE_CHARACTERS:
        message = f"Say in 1 to {NOTE_CHARACTERS} characters what was found."
        raise invalid("validation_failed", message, details=(("note", message),))
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
