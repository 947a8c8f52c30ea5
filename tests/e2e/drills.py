"""Drills: bring an order to a state and keep it there, then have one thing go wrong with it."""

import asyncio
import hashlib
import hmac
import itertools
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from loop.testing.stub_ledger import JsonObject, new_object_id
from loop.testing.stub_razorpay_objects import ORDERS, PAYMENTS, pack_webhook, public
from tests.e2e.mischief import RAZORPAY_KEY_SECRET, Aim
from tests.e2e.shops import Story
from tests.e2e.standings import NEW, Standing
from tests.e2e.towns import Town

PAUSE_S = 0.02
TRIES_MAX = 1_000
"""How often something is looked for, or done, that has to happen."""

CARD = Story(name="", tokens={"stripe": "pm_card_visa"}, refunds=(2_000, 3_000), wait_s=0)
HELD = replace(CARD, is_manual=True)
CHALLENGED = replace(CARD, tokens={"stripe": "pm_card_threeDSecureRequired"})
DECLINED = replace(CARD, tokens={"stripe": "pm_card_chargeDeclined"})
FAILING_OVER = replace(CARD, tokens={"stripe": "pm_card_chargeDeclined", "sandbox": "tok_approve"})
SLOWLY_REFUNDED = replace(CARD, tokens={"stripe": "pm_card_refundPending"})
RUPEES = replace(CARD, currency="INR", tokens={}, processor="razorpay")
HELD_RUPEES = replace(RUPEES, is_manual=True)
SLOW_RUPEES = replace(RUPEES, customer="is slow")

OPEN_REFUND = "captured, a refund is open"
DISPUTED = "captured, disputed"
DISPUTED_IN_PART = "partially_refunded, disputed"

PARKING: Mapping[tuple[str, str], tuple[Story, tuple[str, ...]]] = {
    ("stripe", NEW): (CARD, ()),
    ("stripe", "unknown"): (CARD, ("silence", "pay")),
    ("stripe", "requires_action"): (CHALLENGED, ("pay",)),
    ("stripe", "authorized"): (HELD, ("pay",)),
    ("stripe", "captured"): (CARD, ("pay",)),
    ("stripe", OPEN_REFUND): (SLOWLY_REFUNDED, ("pay", "refund")),
    ("stripe", DISPUTED): (CARD, ("pay", "dispute")),
    ("stripe", DISPUTED_IN_PART): (CARD, ("pay", "refund", "dispute")),
    ("stripe", "partially_refunded"): (CARD, ("pay", "refund")),
    ("stripe", "refunded"): (CARD, ("pay", "refund", "refund")),
    ("stripe", "failed"): (DECLINED, ("pay",)),
    ("stripe", "cancelled"): (CHALLENGED, ("pay", "cancel")),
    ("stripe", "voided"): (HELD, ("pay", "cancel")),
    ("razorpay", "requires_action"): (RUPEES, ("pay",)),
    ("razorpay", "pending"): (SLOW_RUPEES, ("pay", "act")),
    ("razorpay", "authorized"): (HELD_RUPEES, ("pay", "act")),
    ("razorpay", "captured"): (RUPEES, ("pay", "act")),
    ("razorpay", OPEN_REFUND): (RUPEES, ("pay", "act, refunds are slow", "refund")),
    ("razorpay", DISPUTED): (RUPEES, ("pay", "act", "dispute")),
    ("razorpay", DISPUTED_IN_PART): (RUPEES, ("pay", "act", "refund", "dispute")),
    ("razorpay", "partially_refunded"): (RUPEES, ("pay", "act", "refund")),
    ("razorpay", "refunded"): (RUPEES, ("pay", "act", "refund", "refund")),
    ("razorpay", "cancelled"): (RUPEES, ("pay", "cancel")),
    ("razorpay", "voided"): (HELD_RUPEES, ("pay", "act", "release")),
}
"""(processor, state) -> the order, and the steps that bring it there."""

_PAID = ("captured", "partially_refunded")
NEEDS: Mapping[str, tuple[str, ...]] = {
    "silence": (NEW,),
    "pay": (NEW,),
    "act": ("requires_action",),
    "act, refunds are slow": ("requires_action",),
    "cancel": ("requires_action", "authorized"),
    "capture": ("authorized",),
    "release": ("authorized",),
    "refund": _PAID,
    "dispute": _PAID,
}
"""step -> where an order must be for it."""


@dataclass
class Parked:
    """An order that is where it was to be brought."""

    order_id: str
    story: Story
    refunds: Iterator[int] = field(default_factory=itertools.count)


Trigger: TypeAlias = Callable[[Parked], Awaitable[None]]


@dataclass
class Drill:
    """Does things to orders of a town."""

    town: Town
    _names: Iterator[int] = field(default_factory=itertools.count)

    async def until(self, is_so: Callable[[], object], what: object = "") -> None:
        """Wait until something is so."""
        for _ in range(TRIES_MAX):
            if is_so():
                return
            await asyncio.sleep(PAUSE_S)
        raise AssertionError(f"{what or is_so} did not come about\n{self.town.house.log()}")

    def standing(self, parked: Parked) -> Standing:
        found = self.town.standings.of_order(parked.order_id)
        assert found is not None
        return found

    async def until_in(self, parked: Parked, *states: str) -> None:
        """Wait until an order is in one of these states."""
        await self.until(
            lambda: self.standing(parked).state in states, f"{parked.story} {self.standing(parked)} in {states}"
        )

    async def new(self, story: Story) -> Parked:
        """Create an order."""
        named = replace(story, name=f"drill-{next(self._names)}")
        return Parked(await self.town.shop.create(named), named)

    async def park(self, processor: str, state: str) -> Parked:
        """Bring a new order to a state, in which it stays."""
        story, steps = PARKING[processor, state]
        parked = await self.new(story)
        for step in steps:
            await self.step(parked, step)
        await self.until_in(parked, state.partition(",")[0])
        return parked

    async def step(self, parked: Parked, step: str) -> None:
        """Do the next thing to an order."""
        await self.until_in(parked, *NEEDS[step])
        shop, order_id, story = self.town.shop, parked.order_id, parked.story
        match step:
            case "silence":
                for state in ("submitting", "unknown"):
                    where = f"stripe POST payment_intents @ {state}"
                    self.town.mischief.aim(order_id, where, "lost before", is_endless=True)
            case "pay":
                await shop.pay(order_id, story)
            case "act":
                await shop.act(order_id, story)
            case "cancel":
                await shop.cancel(order_id, story)
            case "capture":
                await shop.capture(order_id, story)
            case "refund":
                await shop.refund(order_id, story, next(parked.refunds))
            case _:
                await self._happen(parked, step)

    async def _happen(self, parked: Parked, step: str) -> None:
        """Have the customer, a bank or Razorpay itself do what is not Loop's doing."""
        reference, control = self.attempt(parked)["processor_reference"], self.town.shop.control
        match step:
            case "dispute" if self.attempt(parked)["processor"] == "stripe":
                await control("disputes", {"payment_intent": reference})
            case "dispute":
                await control(f"razorpay/payments/{self.payment(parked)['id']}/dispute", {"phase": "chargeback"})
            case "release":
                await control(f"razorpay/payments/{self.payment(parked)['id']}/move", {"status": "released"})
            case "act, refunds are slow":
                await control(f"razorpay/orders/{reference}/pay", {"refunds": "pending"})

    def attempt(self, parked: Parked) -> dict[str, Any]:
        """Return the row of an order's latest attempt."""
        query = "SELECT * FROM payment_attempts WHERE order_id = ? ORDER BY number DESC"
        return self.town.house.rows(query, parked.order_id)[0]

    def payment(self, parked: Parked) -> JsonObject:
        """Return the newest payment that was tried on an order at Razorpay."""
        reference, store = self.attempt(parked)["processor_reference"], self.town.stub.store
        tried = store.newest_first(self.town.accounts["razorpay"], PAYMENTS)
        return next(payment for payment in tried if payment["order_id"] == reference)

    async def poke(self, parked: Parked, *, age_s: int = 0, event_id: str | None = None) -> None:
        """Have the processor send an event about a payment, so that Loop asks how it stands."""
        attempt, at_s = self.attempt(parked), self.town.clock.time_ns() // 1_000_000_000 - age_s
        store, account = self.town.stub.store, self.town.accounts[attempt["processor"]]
        reference = attempt["processor_reference"]
        if attempt["processor"] == "stripe":
            heard = None if reference is None else store.get(account, "payment_intents", object_id=reference)
            about = heard or {"id": "pi_unheard", "metadata": {"loop_attempt_id": attempt["id"]}}
            self._send_stripe("payment_intent.processing", about, at_s, event_id)
        else:
            order = store.get(account, ORDERS, object_id=reference)
            assert order is not None
            self._send_razorpay("order.paid", {"order": order}, at_s, event_id)

    async def poke_about_refund(self, parked: Parked) -> None:
        """Have the processor send an event about an order's newest refund."""
        self._poke_about(parked, "refund.updated", "refunds", "refund.created", "refund")

    async def poke_about_dispute(self, parked: Parked) -> None:
        """Have the processor send an event about an order's dispute."""
        self._poke_about(parked, "charge.dispute.updated", "disputes", "payment.dispute.under_review", "dispute")

    def _poke_about(self, parked: Parked, stripe_event: str, kind: str, razorpay_event: str, noun: str) -> None:
        attempt, at_s = self.attempt(parked), self.town.clock.time_ns() // 1_000_000_000
        store, account = self.town.stub.store, self.town.accounts[attempt["processor"]]
        if attempt["processor"] == "stripe":
            made = store.newest_first(account, kind)
            about = next(each for each in made if each["payment_intent"] == attempt["processor_reference"])
            self._send_stripe(stripe_event, about, at_s)
        else:
            payment = self.payment(parked)
            made = store.newest_first(account, f"rzp_{kind}")
            about = next(each for each in made if each["payment_id"] == payment["id"])
            self._send_razorpay(razorpay_event, {noun: about, "payment": payment}, at_s)

    def _send_stripe(self, kind: str, about: JsonObject, at_s: int, event_id: str | None = None) -> None:
        event = {"id": event_id or new_object_id("evt"), "object": "event", "type": kind, "created": at_s}
        self.town.stub.webhooks.publish(
            self.town.accounts["stripe"], [{**event, "livemode": False, "data": {"object": public(about)}}]
        )

    def _send_razorpay(
        self, kind: str, about: Mapping[str, JsonObject], at_s: int, event_id: str | None = None
    ) -> None:
        payload = {name: {"entity": public(item)} for name, item in about.items()}
        body = {"entity": "event", "event": kind, "contains": list(about), "payload": payload, "created_at": at_s}
        event = {"id": event_id or new_object_id("event"), "type": kind, "body": body}
        self.town.stub.webhooks.publish(self.town.accounts["razorpay"], [event], pack=pack_webhook)

    async def reload(self, parked: Parked) -> None:
        """Have an order's customer open the page that Razorpay's Checkout sends them back to."""
        attempt = self.attempt(parked)
        reference = attempt["processor_reference"]
        payment_id = await self._begun(parked, reference)
        signed = hmac.new(RAZORPAY_KEY_SECRET.encode(), f"{reference}|{payment_id}".encode(), hashlib.sha256)
        form = {
            "razorpay_payment_id": payment_id,
            "razorpay_order_id": reference,
            "razorpay_signature": signed.hexdigest(),
        }
        await self.town.shop.come_back(f"{self.town.house.url}/return/{attempt['id']}", form)

    async def _begun(self, parked: Parked, reference: str) -> str:
        """Return a payment of an order at Razorpay; its customer begins one where there is none."""
        order = self.town.stub.store.get(self.town.accounts["razorpay"], ORDERS, object_id=reference)
        if order is not None and not order["_payments"]:
            await self.town.shop.control(f"razorpay/orders/{reference}/pay", {"outcome": "created"})
        return str(self.payment(parked)["id"])

    async def resend(self, parked: Parked) -> None:
        """Have Loop send the merchant an order's first event again."""
        query = "SELECT id FROM webhook_events WHERE order_id = ? ORDER BY id"
        event_id = self.town.house.rows(query, parked.order_id)[0]["id"]
        await self.town.shop.call("POST", f"/api/webhooks/{event_id}/retry")

    async def spend(self, aim: Aim, trigger: Trigger, parked: Parked) -> None:
        """Trigger something again and again until all that was aimed has hit."""
        for _ in range(TRIES_MAX):
            left = len(aim.faults)
            if not left:
                return
            await trigger(parked)
            for _ in range(TRIES_MAX // 10):
                if len(aim.faults) < left:
                    break
                await asyncio.sleep(PAUSE_S)
        raise AssertionError(f"{aim} has not hit {self.standing(parked)}\n{self.town.house.log()}")

    async def until_spent(self, *aims: Aim) -> None:
        """Wait until all that was aimed has hit."""
        await self.until(lambda: not any(aim.faults for aim in aims), aims)
