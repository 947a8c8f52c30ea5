"""The work on which the mechanisms of storage are compared: an order's creation, its change, and a look at it."""

import itertools
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

from loop.domain.events import Event, EventSubject, EventType, body_of
from loop.domain.ids import PREFIX_EVENT, PREFIX_ORDER, make_id
from loop.domain.orders import Order, OrderStatus
from loop.storage import merchants, orders, webhooks
from loop.storage.columns import json_text
from loop.storage.database import Database, Session
from loop.storage.merchants import Merchant
from loop.storage.statements import Parameters, Write

MERCHANT = "mer_bench"
REQUEST_PASSES = 20
"""How often a body is read and written to stand for a request's own work, about a tenth of a millisecond."""
KEPT_ORDERS = 2_000
"""Orders that are changed and read in turn: so many that two at work never meet at one of them."""

Writes = Sequence[tuple[Write, Parameters]]


class Mechanism(Protocol):
    """One way to run the same work."""

    async def create(self, order: Order, event: Event) -> None:
        """Insert an order with its event and what delivers it, durably."""
        ...

    async def change(self, order_id: str, event: Event) -> None:
        """Lock an order, decide, and write it back with its event, durably."""
        ...

    async def get(self, order_id: str) -> Order | None:
        """Return an order."""
        ...

    async def close(self) -> None:
        """Let go of the database."""
        ...


class OnDatabase:
    """The work as Loop does it, on whatever runs the statements."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, order: Order, event: Event) -> None:
        """See `Mechanism.create`."""
        await self._database.write_at_once(creation(order, event))

    async def change(self, order_id: str, event: Event) -> None:
        """See `Mechanism.change`."""
        async with self._database.transaction() as session:
            await session.run_together(alteration(await locked(session, order_id), event))

    async def get(self, order_id: str) -> Order | None:
        """See `Mechanism.get`."""
        async with self._database.reading() as reader:
            return await orders.get(reader, MERCHANT, order_id)

    async def close(self) -> None:
        """See `Mechanism.close`."""
        await self._database.close()


async def locked(session: Session, order_id: str) -> Order:
    """Return an order with its row locked."""
    in_hand = await orders.lock(session, MERCHANT, order_id)
    if in_hand is None:
        raise LookupError("an order that was made is not there")
    return in_hand.order


@dataclass(frozen=True, slots=True)
class Work:
    """Makes the rows, the same for every mechanism."""

    order_ids: "itertools.cycle[str]"

    async def create(self, mechanism: Mechanism) -> None:
        """Have an order created."""
        order = new_order()
        await mechanism.create(order, new_event(order))

    async def create_busily(self, mechanism: Mechanism) -> None:
        """Have an order created beside about as much other work of the event loop as a request makes."""
        for _ in range(REQUEST_PASSES):
            json.loads(json.dumps(_BODY))
        await self.create(mechanism)

    async def change(self, mechanism: Mechanism) -> None:
        """Have an order changed."""
        order_id = next(self.order_ids)
        await mechanism.change(order_id, new_event(replace(_SAMPLE, id=order_id)))

    async def get(self, mechanism: Mechanism) -> None:
        """Have an order read."""
        if await mechanism.get(next(self.order_ids)) is None:
            raise LookupError("an order that was made is not there")


async def prepare(database: Database) -> Work:
    """Add a merchant and the orders that are changed and read."""
    now = _now()
    async with database.transaction() as session:
        await session.run_together([merchants.insertion(Merchant(MERCHANT, "Bench", "b@a.example", "", now, now))])
        made = [new_order() for _ in range(KEPT_ORDERS)]
        for order in made:
            await session.run_together([orders.insertion(order)])
    return Work(itertools.cycle([order.id for order in made]))


def creation(order: Order, event: Event) -> Writes:
    """Return the writes of `Mechanism.create`."""
    return [orders.insertion(order), *webhooks.event_insertions(event)]


def alteration(order: Order, event: Event) -> Writes:
    """Return the writes of `Mechanism.change`, once it is decided."""
    return [orders.updating(decide(order)), *webhooks.event_insertions(event)]


def decide(order: Order) -> Order:
    """Return an order as it is after its change."""
    return replace(order, attempt_count=order.attempt_count + 1, updated_at=_now())


def _now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251 - a bench has no context that could hand it a clock


def new_order() -> Order:
    """Return an order as a merchant makes it."""
    now = _now()
    order_id = make_id(PREFIX_ORDER, now, random_bytes=secrets.token_bytes)
    return replace(_SAMPLE, id=order_id, external_id=order_id, created_at=now, updated_at=now)


def new_event(order: Order) -> Event:
    """Return the event that tells of an order."""
    event_id = make_id(PREFIX_EVENT, order.created_at, random_bytes=secrets.token_bytes)
    subject = EventSubject(
        order.id, order.external_id, order.amount_minor, order.currency, order.status, order.processor
    )
    kind = EventType.ORDER_CREATED
    body = body_of(event_id, kind, subject=subject, created_at=order.created_at, payload={"metadata": order.metadata})
    return Event(event_id, MERCHANT, order.id, kind, json_text(body), order.created_at)


_BODY = {"amount": 4999, "currency": "USD", "customerId": "customer-1842", "metadata": {"cart": "b1f7"}}
_SAMPLE = Order(
    id="",
    merchant_id=MERCHANT,
    external_id="",
    amount_minor=4999,
    currency="USD",
    status=OrderStatus.PENDING,
    processor=None,
    processor_order_id=None,
    is_manual_capture=False,
    country=None,
    customer_id="customer-1842",
    customer_email="shopper@example.com",
    description="Two shirts and a hat",
    metadata={"cart": "b1f7", "channel": "web"},
    return_url=None,
    cancel_url=None,
    amount_authorized_minor=0,
    amount_captured_minor=0,
    amount_refunded_minor=0,
    amount_refund_reserved_minor=0,
    attempt_count=0,
    last_error_code=None,
    last_error_message=None,
    needs_review=False,
    expires_at=None,
    created_at=_now(),
    updated_at=_now(),
)
