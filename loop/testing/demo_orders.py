"""The demo's orders: how each is made and paid through the public API, and how it must end."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from loop.domain.money import Money
from loop.testing.demo_shop import DemoError, JsonObject, LoopClient, Shop, confirm_at_the_bank
from loop.testing.stub_psp import StubProcessor
from loop.testing.stub_webhooks import WebhookFaults

SETTLED_WITHIN_S = 15.0
"""How long one order may take to get where it must, and its webhooks to the shop, in seconds."""

ASK_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything that the demo runs, and the shop's client of it."""

    loop: LoopClient
    shop: Shop
    stub: StubProcessor
    api_key: str = field(repr=False)
    addresses: Mapping[str, str]
    """Where each process listens, by what it is called."""


@dataclass(slots=True)
class Tale:
    """One order as it went."""

    order: JsonObject
    answer: JsonObject = field(default_factory=dict)
    notes: list[tuple[int, str, str]] = field(default_factory=list)
    """When (milliseconds since the epoch), who, and what they did."""
    events: list[JsonObject] = field(default_factory=list)
    routing: dict[int, list[str]] = field(default_factory=dict)
    """Why each attempt, by its number, went to the processor it went to."""

    @property
    def path(self) -> str:
        """Where the API has this order."""
        return f"/v1/orders/{self.order['id']}"

    @property
    def currency(self) -> str:
        """The order's currency."""
        return str(self.order["currency"])


Step = Callable[[Stage, Tale], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Script:
    """What an order is, and how it must go: `pays_as` is what `POST pay` answers, `ends_as` the last status."""

    title: str
    amount: Money
    token: str
    pays_as: str
    ends_as: str
    last_event: str
    then: Step | None = None
    is_manual: bool = False
    has_late_webhooks: bool = False
    """Whether the processor's webhooks stay away until the order is settled, so that Loop has to ask by itself."""


async def _come_back(stage: Stage, tale: Tale) -> None:
    end = await confirm_at_the_bank(tale.answer["redirectUrl"])
    if not end.startswith(stage.shop.thanks_url):
        raise DemoError(f"The customer came back to {end.partition('?')[0]}, not to the shop.")
    tale.notes.append((stage.shop.now_ms(), "customer", "confirmed on the bank's page, and is back at the shop"))


async def _capture_part(stage: Stage, tale: Tale) -> None:
    part = Money(15_000, tale.currency)
    await stage.loop.post(f"{tale.path}/capture", {"amount": part.amount_minor})
    tale.notes.append((stage.shop.now_ms(), "shop", f"captured {part}; the rest of the hold is released"))


async def _refund_part(stage: Stage, tale: Tale) -> None:
    part = Money(2_000, tale.currency)
    refund = await stage.loop.post(
        f"{tale.path}/refund", {"amount": part.amount_minor, "reason": "one of two sent back"}
    )
    tale.notes.append((stage.shop.now_ms(), "shop", f"refunded {part}: {refund['status']}"))


async def _cancel(stage: Stage, tale: Tale) -> None:
    await stage.loop.post(f"{tale.path}/cancel", {"reason": "out of stock"})
    tale.notes.append((stage.shop.now_ms(), "shop", "cancelled it: out of stock"))


SCRIPTS = (
    Script("Paid", Money(4_999, "USD"), "pm_card_visa", "captured", "captured", "payment.captured"),
    Script(
        "Declined",
        Money(12_000, "EUR"),
        "pm_card_chargeDeclinedInsufficientFunds",
        "failed",
        "failed",
        "payment.failed",
    ),
    Script(
        "3-D Secure, then paid",
        Money(7_500, "EUR"),
        "pm_card_authenticationRequired",
        "requires_action",
        "captured",
        "payment.captured",
        then=_come_back,
    ),
    Script(
        "The answer is lost, yet the card was charged",
        Money(1_999, "USD"),
        "pm_card_timeoutThenCharged",
        "processing",
        "captured",
        "payment.captured",
        has_late_webhooks=True,
    ),
    Script(
        "Held, then taken in part",
        Money(20_000, "USD"),
        "pm_card_visa",
        "authorized",
        "captured",
        "payment.captured",
        then=_capture_part,
        is_manual=True,
    ),
    Script(
        "Paid, then refunded in part",
        Money(5_000, "JPY"),
        "pm_card_mastercard",
        "captured",
        "partially_refunded",
        "refund.processed",
        then=_refund_part,
    ),
    Script(
        "Held, then cancelled",
        Money(3_000, "EUR"),
        "pm_card_visa",
        "authorized",
        "cancelled",
        "payment.cancelled",
        then=_cancel,
        is_manual=True,
    ),
)


async def play(stage: Stage, script: Script) -> Tale:
    """Take one order from its creation to its end; raises DemoError where it goes another way than its script."""
    order = await stage.loop.post(
        "/v1/orders",
        {
            "amount": script.amount.amount_minor,
            "currency": script.amount.currency,
            "description": script.title,
            "returnUrl": stage.shop.thanks_url,
            **({"captureMethod": "manual"} if script.is_manual else {}),
        },
    )
    tale = Tale(order)
    stage.stub.webhooks.faults = WebhookFaults(is_held=script.has_late_webhooks)
    tale.answer = await stage.loop.post(f"{tale.path}/pay", {"paymentMethod": {"type": "card", "token": script.token}})
    status, told = tale.answer["status"], tale.answer.get("customerMessage")
    words = f"POST pay answered {status}" + (f"; the customer reads: {told}" if told else "")
    tale.notes.append((stage.shop.now_ms(), "shop", words))
    if status != script.pays_as:
        raise DemoError(f"{script.title}: POST pay answered {status}, not {script.pays_as}.")
    if script.then is not None:
        await script.then(stage, tale)
    await _until_settled(stage, tale, script)
    attempts = [entry for entry in await stage.loop.get_list(f"{tale.path}/timeline") if entry["kind"] == "attempt"]
    tale.routing = {entry["details"]["number"]: entry["details"]["routing"] for entry in attempts}
    if script.has_late_webhooks:
        stage.stub.webhooks.faults = WebhookFaults()
        count = stage.stub.webhooks.release(seed=0)
        await stage.stub.webhooks.settled(SETTLED_WITHIN_S)
        tale.notes.append((stage.shop.now_ms(), "processor", f"sent the {count} webhooks that it had held back"))
    return tale


async def _until_settled(stage: Stage, tale: Tale, script: Script) -> None:
    """Ask for the order until it is where it must be, and wait until the shop has heard the last of it."""

    def is_told() -> bool:
        tale.events = [event for event in stage.shop.events().values() if event["orderId"] == tale.order["id"]]
        return script.last_event in {event["eventType"] for event in tale.events}

    try:
        async with asyncio.timeout(SETTLED_WITHIN_S):
            while tale.order["status"] != script.ends_as:
                tale.order = await stage.loop.get(tale.path)
                await asyncio.sleep(0 if tale.order["status"] == script.ends_as else ASK_EVERY_S)
        await stage.shop.until(is_told, SETTLED_WITHIN_S)
    except TimeoutError as error:
        raise DemoError(
            f"{script.title}: after {SETTLED_WITHIN_S:g} s the order is {tale.order['status']} and not "
            f"{script.ends_as}, or its webhook {script.last_event} did not come."
        ) from error
