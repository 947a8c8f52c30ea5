"""Shops: what a merchant and its customers do with an order, again and again until it is done, whatever breaks."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import unescape
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

import aiohttp

from tests.e2e.houses import GONE, AttentiveMerchant, Premises

PAUSE_S = 0.2
"""How long a client waits before it repeats a call, in seconds."""

LOOK_EVERY_S = 1.0
"""How often a shop looks after an order of which it hears nothing, in seconds."""

PATIENCE = 3
"""How often a shop looks after a customer who has done what was asked, and of whom nothing has come."""

AGAIN = frozenset(
    {
        "idempotency_in_progress", "operation_in_progress", "no_eligible_processor", "capture_failed", "cancel_failed",
        "database_unavailable", "payment_in_progress",
    }
)  # fmt: skip
"""Refusals that end by themselves: the same call, under the same key, is made again."""

OVERTAKEN = frozenset({"invalid_status", "attempts_exhausted", "previous_attempt_open"})
"""Refusals after which the order is looked at again: somebody was faster, or a processor has to be."""

Ending: TypeAlias = Literal["kept", "cancelled", "never paid", "cancelled unpaid", "cancelled, then paid"]
Customer: TypeAlias = Literal["pays", "refuses", "tries twice", "leaves", "pays and leaves", "is slow"]


@dataclass(frozen=True)
class Story:
    """One order: how it is to be paid, and what becomes of it.

    `tokens` is empty when a browser pays; `processor` is set where no other one will do.
    """

    name: str
    currency: str = "EUR"
    amount: int = 5_000
    tokens: Mapping[str, str] = field(default_factory=dict)
    processor: str | None = None
    is_manual: bool = False
    customer: Customer = "pays"
    ending: Ending = "kept"
    captured: int | None = None
    refunds: tuple[int, ...] = ()
    is_disputed: bool = False
    second_tokens: Mapping[str, str] | None = None
    wait_s: int = 5


@dataclass
class Shop:
    """A merchant's program, which repeats under the same key what it lost the answer to, and its customers."""

    session: aiohttp.ClientSession
    house: Premises
    server: AttentiveMerchant
    stub_url: str

    async def call(self, method: str, path: str, content: object = None, *, key: str | None = None) -> Any:
        """Return what Loop answers in the end; None when the call was overtaken."""
        headers = {"X-API-Key": self.house.key, **({"Idempotency-Key": key} if key else {})}
        while True:
            try:
                async with self.session.request(
                    method, f"{self.house.url}{path}", json=content, headers=headers
                ) as answer:
                    status, body = answer.status, await answer.json()
            except GONE:
                await asyncio.sleep(PAUSE_S)
                continue
            if status < 300:
                return body
            code = body["code"]
            if code in OVERTAKEN:
                return None
            assert code in AGAIN, f"{method} {path} {content}: {status} {body}"
            await asyncio.sleep(PAUSE_S)

    async def create(self, story: Story) -> str:
        """Create the order of a story and return its id."""
        wanted = {
            "amount": story.amount,
            "currency": story.currency,
            "externalId": story.name,
            "captureMethod": "manual" if story.is_manual else "automatic",
        }
        return str((await self.call("POST", "/v1/orders", wanted, key=f"{story.name}-create"))["id"])

    async def live(self, story: Story) -> None:
        """See the order of a story through to its end."""
        order_id = await self.create(story)
        if story.ending == "never paid":
            return
        await self.pay(order_id, story)
        if story.ending == "cancelled unpaid":
            await self.cancel(order_id, story)
        await self.see_through(order_id, story)

    async def pay(self, order_id: str, story: Story, attempt: int = 1) -> None:
        """Start a payment, and let the customer do what is asked of them."""
        tokens = story.tokens if attempt == 1 else story.second_tokens or story.tokens
        method = {"paymentMethod": {"type": "card", "tokens": tokens}} if tokens else {}
        forced = {"processor": story.processor} if story.processor else {}
        wanted = {**method, **forced, "wait": story.wait_s, "retry": attempt > 1}
        await self.call("POST", f"/v1/orders/{order_id}/pay", wanted, key=f"{story.name}-pay-{attempt}")

    async def cancel(self, order_id: str, story: Story, time: int = 0) -> None:
        """Cancel the order, if it is not too late for that; `time` tells one wish from the next."""
        await self.call("POST", f"/v1/orders/{order_id}/cancel", {}, key=f"{story.name}-cancel-{time}")

    async def capture(self, order_id: str, story: Story, time: int = 0) -> None:
        """Take the held money, or a part of it."""
        taken = {} if story.captured is None else {"amount": story.captured}
        await self.call("POST", f"/v1/orders/{order_id}/capture", taken, key=f"{story.name}-capture-{time}")

    async def see_through(self, order_id: str, story: Story) -> None:
        """Do what is left to do until the order is where the story wants it."""
        looks: Counter[object] = Counter()
        while True:
            news = self.server.news(order_id)
            news.clear()
            order = await self.call("GET", f"/v1/orders/{order_id}")
            if await self._go_on(order, story, looks):
                return
            try:
                await asyncio.wait_for(news.wait(), LOOK_EVERY_S)
            except TimeoutError:
                continue

    async def _go_on(self, order: dict[str, Any], story: Story, looks: Counter[object]) -> bool:
        """Take the next step; return whether it was the last. `looks` counts what was tried, and how often."""
        order_id, attempt = order["id"], order["attemptCount"]
        match order["status"]:
            case "requires_action":
                looks[attempt] += 1
                return await self._wait_for_customer(order_id, story, look=looks[attempt])
            case "failed":
                looks["retry"] += 1
                if story.second_tokens is None or looks["retry"] > PATIENCE:
                    return True
                await self.pay(order_id, story, attempt + 1)
            case "authorized":
                looks["settle"] += 1
                settle = self.cancel if story.ending == "cancelled" else self.capture
                await settle(order_id, story, looks["settle"])
            case "captured" | "partially_refunded" | "refunded":
                await asyncio.gather(*(self.refund(order_id, story, number) for number in range(len(story.refunds))))
                if story.is_disputed:
                    await self.dispute(order)
                return True
            case "cancelled":
                return True
        return False

    async def _wait_for_customer(self, order_id: str, story: Story, *, look: int) -> bool:
        """Be the customer at the first look; return whether nothing more is to be waited for."""
        if look > 1:
            return look > PATIENCE  # the customer has gone; the order's time will be up
        if story.ending == "cancelled, then paid":
            await self.cancel(order_id, story)
        if story.customer == "leaves":
            return True
        await self.act(order_id, story)
        return story.ending == "cancelled, then paid"

    async def refund(self, order_id: str, story: Story, number: int) -> None:
        """Give one part back."""
        wanted = {"amount": story.refunds[number], "reason": f"part {number}"}
        await self.call("POST", f"/v1/orders/{order_id}/refund", wanted, key=f"{story.name}-refund-{number}")

    async def dispute(self, order: Mapping[str, Any]) -> None:
        """Have the customer's bank take back what is left of a payment, where there is a bank."""
        if order["processor"] == "stripe":
            await self.control("disputes", {"payment_intent": order["processorOrderId"]})
        elif order["processor"] == "razorpay":
            async with self.session.get(f"{self.stub_url}/_control/ledger") as answer:
                entries = (await answer.json())["entries"]
            paid = {row["object_id"] for row in entries if row["intent"] == order["processorOrderId"]}
            for payment in (each for each in paid if each.startswith("pay_")):
                await self.control(f"razorpay/payments/{payment}/dispute", {"phase": "chargeback"})

    async def act(self, order_id: str, story: Story) -> None:
        """Be the customer: answer the bank, or pay in the processor's own checkout, and come back from there."""
        processor, action = await self.shown(order_id)
        if action is None:  # somebody was faster
            return
        act = {"stripe": self._act_at_stripe, "razorpay": self._act_at_razorpay, "sandbox": self._act_at_sandbox}
        back = await act[processor](action, story)
        if back is not None and story.customer != "pays and leaves":
            await self.come_back(*back)

    async def shown(self, order_id: str) -> tuple[str, dict[str, Any] | None]:
        """Return which processor a customer is with, and what is asked of them; None when nothing is any more."""
        attempt = self.house.rows(
            "SELECT processor, action FROM payment_attempts WHERE order_id = ? ORDER BY number DESC", order_id
        )[0]
        # From the rows, since the answer that named it to the merchant may have been lost.
        return attempt["processor"], json.loads(attempt["action"] or "null")

    async def come_back(self, url: str, form: Mapping[str, str] | None) -> None:
        """Open the page that customers come back to, again if Loop is not there."""
        for _ in range(100):
            try:
                method = "GET" if form is None else "POST"
                async with self.session.request(method, url, data=form, allow_redirects=False) as answer:
                    if answer.status != 503:  # else the database was away, as for the merchant's own calls
                        assert answer.status < 500, await answer.text()
                        return
            except GONE:
                pass
            await asyncio.sleep(PAUSE_S)

    async def _act_at_stripe(self, action: Mapping[str, Any], story: Story) -> tuple[str, None] | None:
        has_passed = story.customer != "refuses"
        if "redirectUrl" not in action:
            intent = action["clientSecret"].partition("_secret_")[0]
            card = "pm_card_threeDSecureRequired" if story.customer == "tries twice" else "pm_card_visa"
            await self.control(f"intents/{intent}/pay", {"payment_method": card, "authenticate": has_passed})
            return None
        outcome = {"outcome": "authenticate" if has_passed else "fail"}
        async with self.session.post(action["redirectUrl"], data=outcome, allow_redirects=False) as page:
            return (page.headers["Location"], None) if page.status == 303 else None

    async def _act_at_razorpay(self, action: Mapping[str, Any], story: Story) -> tuple[str, Mapping[str, str]] | None:
        shown = action["processorData"]
        if story.customer == "is slow":  # the bank answers later
            await self.control(f"razorpay/orders/{shown['orderId']}/pay", {"outcome": "authorized"})
            return None
        instruments = {"refuses": ("failure@razorpay",), "tries twice": ("failure@razorpay", "success@razorpay")}
        form: dict[str, str] = {}
        for instrument in instruments.get(story.customer, ("success@razorpay",)):
            chosen = {"instrument": instrument, "callback_url": shown["callbackUrl"]}
            async with self.session.post(f"{self.stub_url}/_page/razorpay/{shown['orderId']}", data=chosen) as page:
                text = await page.text()
            form = {name: unescape(value) for name, value in re.findall(r'name="([^"]+)" value="([^"]*)"', text)}
        return (shown["callbackUrl"], form) if form else None

    async def _act_at_sandbox(self, action: Mapping[str, Any], story: Story) -> tuple[str, None] | None:
        chosen = {"result": "failed" if story.customer == "refuses" else "approved"}
        path = urlsplit(action["redirectUrl"]).path
        for _ in range(100):
            try:
                async with self.session.post(f"{self.house.url}{path}", data=chosen, allow_redirects=False) as page:
                    return (page.headers["Location"], None) if page.status == 303 else None
            except GONE:
                await asyncio.sleep(PAUSE_S)
        return None

    async def control(self, path: str, body: Mapping[str, object]) -> None:
        """Do something at the processors that is not Loop's doing; refused when it is not possible any more."""
        async with self.session.post(f"{self.stub_url}/_control/{path}", json=body) as answer:
            assert answer.status in (200, 201, 400, 409), await answer.text()
