"""Retries: try a failed order's payment again as it was asked for, without its customer."""

from loop.domain.attempts import Attempt
from loop.domain.declines import DeclineClass
from loop.domain.errors import invalid, not_found
from loop.domain.orders import Order, OrderStatus
from loop.storage import orders
from loop.storage.orders import OrderInHand
from loop.workflows.attempts import PayRequest, has_token, tokens_of
from loop.workflows.context import Context
from loop.workflows.payments import pay

_POINTLESS = frozenset({DeclineClass.HARD, DeclineClass.CUSTOMER, DeclineClass.STEP_UP})
"""Declines after which the same token is not asked for again without the customer."""


def obstacle(context: Context, order: Order, attempt: Attempt | None) -> str | None:
    """Return why an order cannot be tried again as it was, in words; None when it can."""
    if order.status is not OrderStatus.FAILED or attempt is None:
        return "Only a failed payment can be tried again."
    if order.attempt_count >= context.settings.max_attempts_per_order:
        return f"It was tried {order.attempt_count} times, which is as often as it may be; create a new order."
    if not has_token(attempt.request):
        return "The customer pays this order in the browser; only they can try again."
    if attempt.decline_class in _POINTLESS:
        return "The bank's answer would be the same; the customer has to use another card."
    return None


async def retry(context: Context, merchant_id: str, order_id: str, *, wait_s: float) -> OrderInHand:
    """Pay a failed order again with what its last attempt was given; routing decides anew who takes it.

    Raises `not_found`, `retry_pointless` and what `payments.pay` raises.
    """
    async with context.database.reading() as reader:
        in_hand = await orders.get_in_hand(reader, merchant_id, order_id, is_test=context.is_test)
    if in_hand is None:
        raise not_found("order")
    reason = obstacle(context, in_hand.order, in_hand.attempt)
    if reason is not None or in_hand.attempt is None:
        raise invalid("retry_pointless", reason or "The order was never tried.")
    given = in_hand.attempt.request
    request = PayRequest(
        payment_method=str(given["paymentMethod"]),
        token=_text(given.get("token")),
        tokens=tokens_of(given),
        brand=_text(given.get("brand")),
        country=_text(given.get("country")),
        processor=_text(given.get("forcedProcessor")),
        is_retry=True,
        return_url=_text(given.get("merchantReturnUrl")),
    )
    return await pay(context, merchant_id, order_id, request=request, wait_s=wait_s)


def _text(value: object) -> str | None:
    return None if value is None else str(value)
