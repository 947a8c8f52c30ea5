"""Orders: create one with its event, and read one."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from loop.domain.errors import not_found
from loop.domain.events import EventType
from loop.domain.ids import PREFIX_ORDER
from loop.domain.money import Money
from loop.domain.orders import Order, OrderStatus
from loop.storage import orders
from loop.storage.orders import OrderInHand
from loop.storage.statements import Parameters, Write
from loop.workflows import webhooks
from loop.workflows.context import Context


@dataclass(frozen=True, slots=True)
class NewOrder:
    """What a merchant asks for."""

    amount: Money
    external_id: str | None = None
    customer_id: str | None = None
    customer_email: str | None = None
    description: str | None = None
    metadata: Mapping[str, object] | None = None
    return_url: str | None = None
    cancel_url: str | None = None
    is_manual_capture: bool = False
    country: str | None = None
    expires_at: datetime | None = None


def creating(context: Context, merchant_id: str, new: NewOrder) -> tuple[Order, list[tuple[Write, Parameters]]]:
    """Return a new order of the mode at hand and the writes that make it, its event among them.

    It is a test unless whoever acts works live: nothing moves money because somebody did not say so.
    """
    now = context.now()
    order_id = context.new_id(PREFIX_ORDER)
    order = Order(
        id=order_id,
        merchant_id=merchant_id,
        external_id=new.external_id or order_id,
        amount_minor=new.amount.amount_minor,
        currency=new.amount.currency,
        status=OrderStatus.PENDING,
        processor=None,
        processor_order_id=None,
        is_manual_capture=new.is_manual_capture,
        country=new.country,
        customer_id=new.customer_id,
        customer_email=new.customer_email,
        description=new.description,
        metadata=new.metadata or {},
        return_url=new.return_url,
        cancel_url=new.cancel_url,
        amount_authorized_minor=0,
        amount_captured_minor=0,
        amount_refunded_minor=0,
        amount_refund_reserved_minor=0,
        attempt_count=0,
        last_error_code=None,
        last_error_message=None,
        needs_review=False,
        expires_at=new.expires_at,
        created_at=now,
        updated_at=now,
        is_test=context.is_test is not False,
    )
    return order, [orders.insertion(order), *webhooks.recording(context, order, EventType.ORDER_CREATED, payload={})]


async def create(context: Context, merchant_id: str, new: NewOrder) -> Order:
    """Create an order and record its event, in one commit."""
    order, writes = creating(context, merchant_id, new)
    await context.database.write_at_once(writes)
    context.runner.wake()
    return order


async def get(context: Context, merchant_id: str, order_id: str) -> Order:
    """Return a merchant's order of the mode at hand; raises `not_found`."""
    async with context.database.reading() as reader:
        order = await orders.get(reader, merchant_id, order_id, is_test=context.is_test)
    if order is None:
        raise not_found("order")
    return order


async def get_in_hand(context: Context, merchant_id: str, order_id: str) -> OrderInHand:
    """Return a merchant's order of the mode at hand with its latest attempt; raises `not_found`."""
    async with context.database.reading() as reader:
        in_hand = await orders.get_in_hand(reader, merchant_id, order_id, is_test=context.is_test)
    if in_hand is None:
        raise not_found("order")
    return in_hand
