"""A world for inbound webhooks: a served Loop, the stand-in processor, and a hand on everything that goes between."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from sqlalchemy import select

from loop.storage import jobs, refunds
from loop.storage import webhooks as webhook_rows
from loop.storage.processor_events import ProcessorEvent
from loop.storage.statements import Statement, columns_of
from loop.storage.tables import ProcessorEvents, table
from loop.testing.stub_psp import Endpoint, StubProcessor
from loop.testing.stub_webhooks import stripe_signature
from loop.workflows.context import Context
from tests.api.client import Answer, Shop
from tests.builders import Clock, running_jobs

SECRET = "whsec_of_the_account"
PATIENCE_S = 20.0
STORED = Statement(
    select(*columns_of(table(ProcessorEvents), ProcessorEvent))
    .order_by(table(ProcessorEvents).c.created_at)
    .limit(1_000),
    ProcessorEvent,
)


@dataclass
class Gate:
    """Stands before the processor's API: requests go through at once, answers to a shut method wait for `opened`."""

    target: str
    session: aiohttp.ClientSession
    url: str = ""
    shut: set[str] = field(default_factory=set)
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    async def pass_on(self, request: web.Request) -> web.Response:
        headers = {name: value for name, value in request.headers.items() if name not in ("Host", "Content-Length")}
        async with self.session.request(
            request.method, self.target + request.path_qs, data=await request.read(), headers=headers
        ) as answer:
            body = await answer.read()
        if request.method in self.shut:
            await self.opened.wait()
        return web.Response(status=answer.status, body=body, headers={"Content-Type": answer.headers["Content-Type"]})


@dataclass(frozen=True)
class Letter:
    """One webhook as it was posted."""

    body: bytes
    headers: Mapping[str, str]

    @property
    def type(self) -> str:
        event = json.loads(self.body)
        return str(event.get("type") or event["event"])


@dataclass
class Mailbag:
    """Takes webhooks and keeps them, as somebody does who listens on the line."""

    url: str = ""
    letters: list[Letter] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        names = ("Content-Type", "Stripe-Signature", "X-Razorpay-Signature", "X-Razorpay-Event-Id")
        headers = {name: request.headers[name] for name in names if name in request.headers}
        self.letters.append(Letter(await request.read(), headers))
        return web.Response()

    def of_type(self, event_type: str) -> Letter:
        """Return the newest of a type."""
        return [letter for letter in self.letters if letter.type == event_type][-1]


@dataclass(frozen=True)
class Face:
    """What one processor calls things."""

    name: str
    currency: str
    credentials: Mapping[str, str]
    paid_type: str
    """The type of the webhook that says a payment was taken."""
    failed_type: str


STRIPE = Face("stripe", "USD", {"secretKey": "sk_test_world"}, "payment_intent.succeeded",
              "payment_intent.payment_failed")  # fmt: skip
RAZORPAY = Face("razorpay", "INR", {"keyId": "rzp_test_world", "keySecret": "k"}, "payment.captured", "payment.failed")


@dataclass
class World:
    """A merchant's account at one processor, with its customers and its webhooks."""

    shop: Shop
    stub: StubProcessor
    gate: Gate
    mailbag: Mailbag
    clock: Clock
    face: Face
    config_id: str = ""

    @property
    def context(self) -> Context:
        return self.shop.context

    @property
    def path(self) -> str:
        """The account's own address."""
        return f"/webhooks/{self.face.name}/{self.config_id}"

    async def set_secret(self, secret: str | None) -> dict[str, Any]:
        """Set the account's credentials; return what the API answers."""
        credentials = {**self.face.credentials, **({} if secret is None else {"webhookSecret": secret})}
        answer = await self.shop.post(f"/api/processors/{self.face.name}", {"credentials": credentials})
        assert answer.status == 200, answer.text
        config: dict[str, Any] = answer.body
        self.config_id = config["id"]
        return config

    def post_to_loop(self, secret: str = SECRET) -> None:
        """Have the processor post its webhooks to the account's address, and to the mailbag."""
        ours = Endpoint(f"{self.shop.url}{self.path}", secret)
        self.stub.webhooks.endpoints[:] = [ours, Endpoint(self.mailbag.url, secret)]

    def post_to_mailbag(self, secret: str = SECRET) -> None:
        """Have the processor post its webhooks to the mailbag alone."""
        self.stub.webhooks.endpoints[:] = [Endpoint(self.mailbag.url, secret)]

    async def waiting_order(self, amount: int = 5_000, **fields: object) -> dict[str, Any]:
        """Return an order that waits for its customer."""
        order = await self.shop.order(amount=amount, currency=self.face.currency, **fields)
        paid = await self.shop.post(f"/v1/orders/{order['id']}/pay", {"processor": self.face.name})
        assert paid.body["status"] == "requires_action", paid.text
        return await self.read(order["id"])

    async def customer_tries(self, order: Mapping[str, Any], *, pays: bool) -> None:
        """Let the customer try to pay, at the processor."""
        reference = order["processorOrderId"]
        if self.face is STRIPE:
            card = "pm_card_visa" if pays else "pm_card_chargeDeclined"
            await self.control(f"intents/{reference}/pay", {"payment_method": card})
        else:
            await self.control(f"razorpay/orders/{reference}/pay", {"outcome": "paid" if pays else "failed"})

    async def control(self, path: str, body: Mapping[str, object]) -> None:
        """Call the stub's control plane."""
        async with self.shop.session.post(f"{self.stub.url}/_control/{path}", json=body) as answer:
            answer.raise_for_status()

    async def deliver(self, letter: Letter, *, path: str | None = None, **headers: str) -> Answer:
        """Post a webhook to Loop."""
        sent = {name: value for name, value in {**letter.headers, **headers}.items() if value}
        return await self.shop.post(path or self.path, raw=letter.body, headers=sent, auth={})

    def signed(self, text: str, *, secret: str = SECRET) -> Letter:
        """Return a letter as the processor would sign it now."""
        digest = hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
        if self.face is STRIPE:
            at_s = int(self.clock.at.timestamp())
            return Letter(text.encode(), {"Stripe-Signature": stripe_signature(text, secret, at_s=at_s)})
        event_id = f"event_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        return Letter(text.encode(), {"X-Razorpay-Signature": digest, "X-Razorpay-Event-Id": event_id})

    def another(self, letter: Letter, change: tuple[str, str] = ("", ""), *, secret: str = SECRET) -> Letter:
        """Return another event like a letter's, with a piece of it changed, signed as the processor would."""
        text = json.dumps(json.loads(letter.body))
        assert change[0] in text
        text = text.replace(*change) if change[0] else text
        event = json.loads(text)
        nonce = hashlib.sha256(f"{text}{self.clock.now()}".encode()).hexdigest()[:12]
        return self.signed(json.dumps({**event, "id": f"evt_{nonce}"}), secret=secret)

    async def quiet(self) -> None:
        """Wait until every webhook is delivered and every job has ended; the clock goes on to what waits for it."""
        await self.stub.webhooks.settled(PATIENCE_S)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                async with self.context.database.reading() as reader:
                    live, dead = await jobs.count(reader)
                    due_at = await jobs.next_due(reader)
                assert dead == 0
                if live == 0:
                    return
                if due_at is not None and not running_jobs(self.context):
                    self.clock.at = max(self.clock.at, due_at)
                    self.context.runner.wake()
                await asyncio.sleep(0.01)

    async def until(self, order_id: str, status: str) -> None:
        """Wait until an order has a status."""
        async with asyncio.timeout(PATIENCE_S):
            while (await self.read(order_id))["status"] != status:  # noqa: ASYNC110 - the answer is the event
                await asyncio.sleep(0.01)

    async def next_job(self) -> None:
        """Wait until whatever is due has been done."""
        self.context.runner.wake()
        async with asyncio.timeout(PATIENCE_S):
            while True:
                async with self.context.database.reading() as reader:
                    due_at = await jobs.next_due(reader)
                if (due_at is None or due_at > self.clock.at) and not running_jobs(self.context):
                    return
                await asyncio.sleep(0.01)

    async def read(self, order_id: str) -> dict[str, Any]:
        """Read an order."""
        found: dict[str, Any] = (await self.shop.get(f"/v1/orders/{order_id}")).body
        return found

    async def told(self, order_id: str) -> list[str]:
        """Read the names of what the merchant was told of an order, oldest first."""
        async with self.context.database.reading() as reader:
            events = await webhook_rows.events_of_order(reader, self.shop.merchant.id, order_id)
        return [str(event.event_type) for event in events]

    async def refunded(self, order_id: str) -> list[tuple[str, int]]:
        """Read an order's refunds."""
        async with self.context.database.reading() as reader:
            rows = await refunds.of_order(reader, self.shop.merchant.id, order_id)
        return [(str(row.status), row.amount_minor) for row in rows]

    async def stored(self) -> list[ProcessorEvent]:
        """Read the inbound events that were kept, oldest first."""
        async with self.context.database.reading() as reader:
            return await reader.all(STORED, {})

    def asked(self) -> int:
        """Return how often the processor was asked about something so far."""
        return sum(1 for each in self.stub.requests.seen if each["method"] == "GET")

    def moved(self) -> list[tuple[str, int]]:
        """Return what the processor's own books say, oldest first."""
        return [(entry.kind, entry.amount_minor) for entry in self.stub.ledger()]
