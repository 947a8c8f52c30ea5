"""First steps: how far a new merchant has come, from an account at a processor to the first webhook delivered."""

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from loop.domain.deliveries import DeliveryStatus
from loop.domain.money import Money
from loop.domain.orders import OrderStatus
from loop.storage import deliveries, orders, processor_configs, webhooks
from loop.storage.checkout import CheckoutSession
from loop.storage.database import Reader
from loop.storage.deliveries import DeliveryFilter, EventWithDelivery
from loop.storage.orders import OrderFilter
from loop.workflows import checkout
from loop.workflows.checkout import NewSession
from loop.workflows.context import Context

TEST_AMOUNT: Final = Money(4_999, "USD")
TEST_PURPOSE: Final = "First test payment"
LINK_KEPT: Final = timedelta(hours=24)

_PAID: Final = (OrderStatus.CAPTURED, OrderStatus.AUTHORIZED, OrderStatus.REFUNDED, OrderStatus.PARTIALLY_REFUNDED)


@dataclass(frozen=True, slots=True)
class FirstSteps:
    """What is there: the processors connected, an order that was paid, an address for webhooks, and how they arrive."""

    processors: tuple[str, ...]
    paid_order_id: str | None
    endpoint_url: str | None
    delivered: EventWithDelivery | None
    last_delivery: EventWithDelivery | None

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to do."""
        return bool(self.processors) and self.paid_order_id is not None and self.delivered is not None


async def of_merchant(context: Context, merchant_id: str) -> FirstSteps:
    """Return how far a merchant has come, in test and live mode alike."""
    async with context.database.reading() as reader:
        configs = await processor_configs.of_merchant(reader, merchant_id)
        paid = await _paid_order(reader, merchant_id)
        endpoints = await webhooks.endpoints_of(reader, merchant_id)
        wanted = (DeliveryFilter(status=DeliveryStatus.DELIVERED), DeliveryFilter())
        delivered, last = [
            next(iter(await deliveries.list_after(reader, merchant_id, each, before=None, limit=1)), None)
            for each in wanted
        ]
    return FirstSteps(
        processors=tuple(sorted({each.processor for each in configs if each.is_enabled})),
        paid_order_id=paid,
        endpoint_url=next((each.url for each in endpoints if each.url and each.is_enabled), None),
        delivered=delivered,
        last_delivery=last,
    )


async def _paid_order(reader: Reader, merchant_id: str) -> str | None:
    for is_test in (True, False):  # each look is one step in an index
        for status in _PAID:
            wanted = OrderFilter(status=status, is_test=is_test)
            if found := await orders.list_after(reader, merchant_id, wanted, before_id=None, limit=1):
                return found[0].id
    return None


async def make_test_link(context: Context, merchant_id: str) -> CheckoutSession:
    """Make a page on which a first test payment is made."""
    new = NewSession(
        success_url=None,
        cancel_url=None,
        expires_in=LINK_KEPT,
        amount=TEST_AMOUNT,
        line_items=[{"name": TEST_PURPOSE, "amount": TEST_AMOUNT.amount_minor, "quantity": 1}],
    )
    return await checkout.create_session(replace(context, is_test=True), merchant_id, new)
