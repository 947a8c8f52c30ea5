"""A shop with two months behind it, on a Loop of its own: what the dashboard's pages are looked at with."""

import asyncio
import hashlib
import hmac
import json
import secrets
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from loop.config import load
from loop.runtime import Chance, Running, running
from loop.storage import orders
from loop.testing.stub_psp import StubProcessor
from loop.workflows.reconciliation import reconcile

EMAIL = "mira@northlight.example"
PASSWORD = "a lamp for every room"
NAME = "Northlight Lamps"

SANDBOX_SECRET = "a secret that only the sandbox and its tests share"

DAYS = 45
"""How far back the shop's first order lies."""

JsonObject = dict[str, Any]


@dataclass(slots=True)
class Clock:
    """The machine's clock, behind by so much: history is made by catching up."""

    behind: timedelta = timedelta(0)

    def now(self) -> datetime:
        return datetime.fromtimestamp(time.time_ns() / 1e9, UTC) - self.behind

    def now_ns(self) -> int:
        return int(self.now().timestamp() * 1e9)


@dataclass(slots=True)
class World:
    """The running Loop, a client of its API and the orders worth a look, by name."""

    loop: Running
    session: aiohttp.ClientSession
    clock: Clock
    headers: dict[str, str] = field(default_factory=dict)
    orders: dict[str, str] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    """Pages of the dashboard worth a look whose addresses hold ids, by name."""

    @property
    def url(self) -> str:
        return self.loop.url

    async def call(self, method: str, path: str, content: object = None, *, statuses: tuple[int, ...] = (200,)) -> Any:
        """Call the API and return its answer, which must have one of the statuses."""
        async with self.session.request(method, self.url + path, json=content, headers=self.headers) as response:
            text = await response.text()
            assert response.status in (*statuses, 201, 204), f"{method} {path}: {response.status} {text}"
            return await response.json() if text else None

    async def order(self, amount: int, currency: str = "EUR", **more: object) -> str:
        """Create an order and return its id."""
        created = await self.call("POST", "/v1/orders", {"amount": amount, "currency": currency, **more})
        return str(created["id"])

    async def paid(self, amount: int, token: str = "tok_approve", *, currency: str = "EUR", **more: object) -> str:
        """Create an order, pay it at the sandbox with a token and return its id."""
        order_id = await self.order(amount, currency, **more)
        await self.pay(order_id, {"paymentMethod": {"type": "card", "token": token}, "processor": "sandbox"})
        return order_id

    async def pay(self, order_id: str, content: JsonObject) -> JsonObject:
        """Pay an order and return how that went."""
        paid: JsonObject = await self.call("POST", f"/v1/orders/{order_id}/pay", content)
        return paid


@asynccontextmanager
async def new_world(folder: Path) -> AsyncIterator[World]:
    """Run a Loop whose merchant has signed up, and has the sandbox and a Stripe account at the stand-in."""
    clock = Clock()
    async with AsyncExitStack() as stack:
        stub = await stack.enter_async_context(
            StubProcessor(ledger_path=folder / "processor.jsonl", clock_ns=clock.now_ns)
        )
        flags = {
            "data_dir": str(folder / "data"),
            "port": str(free_port()),
            "stripe_api_base": stub.url,
            "razorpay_api_base": stub.url,
            "webhook_allow_networks": "127.0.0.0/8",
            "log_level": "error",
        }
        serving = await stack.enter_async_context(running(load(flags, {}), Chance(now=clock.now)))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        world = World(serving, session, clock)
        person = {"name": NAME, "email": EMAIL, "password": PASSWORD}
        registered = await world.call("POST", "/api/auth/register", person)
        world.headers = {"Authorization": f"Bearer {registered['token']}"}
        sandbox = {"webhookSecret": SANDBOX_SECRET}
        await world.call("POST", "/api/processors/sandbox", {"credentials": sandbox, "priority": 1})
        stripe = {"secretKey": f"sk_test_{secrets.token_hex(16)}", "webhookSecret": f"whsec_{secrets.token_hex(16)}"}
        await world.call("POST", "/api/processors/stripe", {"credentials": stripe, "priority": 2})
        key = await world.call("POST", "/api/api-keys", {"name": "till", "mode": "test"})
        world.headers = {"X-API-Key": key["secret"]}
        yield world


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


TOKENS = (
    "tok_approve", "tok_approve", "tok_approve", "tok_decline_insufficient_funds", "tok_approve", "tok_approve",
    "tok_approve", "tok_decline_declined", "tok_approve", "tok_approve", "tok_approve", "tok_approve",
    "tok_decline_invalid_card", "tok_approve", "tok_approve", "tok_approve", "tok_decline_insufficient_funds",
)  # fmt: skip
CUSTOMERS = ("ana", "ben", "chloe", "dev", "elif", "farid", "greta", "hana", "ivo", "jun")


async def live_through(world: World, days: int = DAYS) -> None:
    """Make the orders of the shop's past, some on each day."""
    number = 1000
    for back in range(days, 0, -1):
        for hour in range(7, 7 + 3 + (back * 7) % 5):
            number += 1
            world.clock.behind = timedelta(days=back, hours=-hour)
            amount = 1_900 + (number * 7_919) % 14_000
            customer = CUSTOMERS[number % len(CUSTOMERS)]
            more = {"externalId": f"NL-{number}", "customerEmail": f"{customer}@example.com"}
            currency = "USD" if number % 9 == 0 else "EUR"
            order_id = await world.paid(amount, TOKENS[number % len(TOKENS)], currency=currency, **more)
            if hour == 7 and back < 4:
                more = {**more, "externalId": f"NL-{number}-s"}
                by_stripe = await world.order(amount, currency, **more)
                method = {"type": "card", "token": "pm_card_visa"}
                await world.pay(by_stripe, {"paymentMethod": method, "processor": "stripe"})
            if number % 13 == 0:
                refund = {"amount": amount // 2, "reason": "one of two sent back"}
                await world.call("POST", f"/v1/orders/{order_id}/refund", refund, statuses=(200, 400))
    world.clock.behind = timedelta(0)


async def live_today(world: World, webhook_url: str) -> None:
    """Make the orders that are worth a look, with a merchant's server that hears of them."""
    persons = {"Authorization": world.headers.get("Authorization", "")}
    signed_in = await world.call("POST", "/api/auth/login", {"email": EMAIL, "password": PASSWORD})
    key, persons = world.headers, {"Authorization": f"Bearer {signed_in['token']}"}
    world.headers = persons
    await world.call("PUT", "/api/merchants/me", {"webhookUrl": webhook_url})
    await _connect_programs(world, webhook_url)
    rule = {"name": "Euros to the sandbox first", "priority": 1, "conditions": {"currencies": ["EUR"]}}
    await world.call("POST", "/api/routing-rules", {**rule, "processors": ["sandbox", "stripe"]})
    world.headers = key
    ana: JsonObject = {"customerEmail": "ana@example.com", "customerId": "c-17", "metadata": {"basket": "1042"}}
    named = world.orders
    named["captured"] = await world.paid(12_950, externalId="NL-2001", description="Two desk lamps", **ana)
    named["failover"] = await world.order(8_900, externalId="NL-2002", description="Floor lamp", **ana)
    tokens = {"sandbox": "tok_decline_declined", "stripe": "pm_card_visa"}
    await world.pay(named["failover"], {"paymentMethod": {"type": "card", "tokens": tokens}})
    named["declined"] = await world.paid(4_500, "tok_decline_insufficient_funds", externalId="NL-2003", **ana)
    named["authorized"] = await world.paid(64_000, externalId="NL-2004", captureMethod="manual", **ana)
    named["3ds"] = await world.paid(7_200, "tok_3ds", externalId="NL-2005", **ana)
    named["pending"] = await world.paid(3_300, "tok_pending", externalId="NL-2006", **ana)
    named["refunded"] = await world.paid(5_800, externalId="NL-2007", **ana)
    refund = f"/v1/orders/{named['refunded']}/refund"
    await world.call("POST", refund, {"amount": 1_800, "reason": "shade was cracked"})
    await world.call("POST", refund, {"amount": 500, "reason": "late by a week"})
    named["new"] = await world.order(2_400, externalId="NL-2008", **ana)
    named["disputed"] = await world.paid(9_900, "tok_dispute", externalId="NL-2009", **ana)
    named["in-review"] = await world.paid(15_400, externalId="NL-2010", **ana)
    world.headers = persons
    accounts = {each["processor"]: each["id"] for each in await world.call("GET", "/api/processors")}
    world.headers = key
    await _dispute(world, named["disputed"], accounts["sandbox"])
    await _compare(world, named["in-review"], accounts["stripe"])
    await _make_rules_and_links(world, persons)


async def _connect_programs(world: World, webhook_url: str) -> None:
    """Make a second endpoint, and keys of which one ends soon."""
    stock = {"url": f"{webhook_url}?for=stock", "description": "Stock", "events": ["payment.captured"]}
    await world.call("POST", "/api/webhook-endpoints", stock)
    soon = world.clock.now() + timedelta(days=4)
    bookkeeping = {"name": "bookkeeping", "mode": "test", "scopes": ["orders:read"], "expiresAt": soon.isoformat()}
    made = await world.call("POST", "/api/api-keys", bookkeeping)
    world.places["api-key"] = f"/dashboard/api-keys/{made['apiKey']['id']}"
    await world.call("POST", "/api/api-keys", {"name": "shop", "mode": "live", "scopes": ["*"]})


async def _make_rules_and_links(world: World, persons: Mapping[str, str]) -> None:
    """Make a rule that shares orders out, one that nothing reaches, and links: open, closed and paid."""
    key, world.headers = world.headers, dict(persons)
    large = {"currencies": ["EUR", "USD"], "amountMin": 50_000, "brands": ["visa", "mastercard"], "countries": ["DE"]}
    for name, priority, conditions, target in (
        ("Large orders are shared out", 20, large, {"split": {"stripe": 70, "sandbox": 30}}),
        ("Small euros", 30, {"currencies": ["EUR"], "amountMax": 900}, {"processors": ["stripe"]}),
    ):
        rule = {"name": name, "priority": priority, "conditions": conditions, **target}
        made = await world.call("POST", "/api/routing-rules", rule)
        world.places.setdefault("rule", f"/dashboard/routing/{made['id']}")
    world.headers = key
    sessions = []
    for amount, purpose in ((4_999, "Two desk lamps"), (12_000, "Deposit for the loft"), (2_500, "A shade")):
        wanted = {"amount": amount, "currency": "EUR", "successUrl": f"{world.url}/dashboard"}
        lines = [{"name": purpose, "amount": amount}]
        sessions.append(await world.call("POST", "/v1/checkout/sessions", {**wanted, "lineItems": lines}))
    world.places["link"] = f"/dashboard/links/{sessions[0]['id']}"
    await world.call("POST", f"/v1/checkout/sessions/{sessions[1]['id']}/expire", {})
    paid = await world.call("GET", f"/v1/checkout/sessions/{sessions[2]['id']}")
    await world.pay(paid["orderId"], {"paymentMethod": {"type": "card", "token": "tok_approve"}})


async def _find_places(world: World) -> None:
    """Find a delivery that was refused, and its endpoint."""
    refused = (await world.call("GET", "/api/webhooks?limit=100"))["data"]
    row = next(each for each in refused if each["lastStatusCode"] == 500)
    world.places["endpoint"] = f"/dashboard/webhooks/{row['endpointId']}"
    world.places["delivery"] = f"/dashboard/webhooks/deliveries/{row['id']}/{row['endpointId']}"


async def _dispute(world: World, order_id: str, account_id: str) -> None:
    """Have the sandbox tell that a payment is disputed."""
    payment = (await world.call("GET", f"/v1/orders/{order_id}"))["processorOrderId"]
    dispute = f"sbxd_{payment.removeprefix('sbx_')[:26]}"
    event = {"id": "evt_dispute", "type": "dispute.opened", "payment": payment, "dispute": dispute}
    body = json.dumps(event).encode()
    signature = hmac.new(SANDBOX_SECRET.encode(), body, hashlib.sha256).hexdigest()
    headers = {"x-sandbox-signature": signature}
    async with world.session.post(f"{world.url}/webhooks/sandbox/{account_id}", data=body, headers=headers) as response:
        assert response.status == 200, await response.text()


async def _compare(world: World, order_id: str, account_id: str) -> None:
    """Compare the last days with Stripe's list, and have a person asked to look at an order."""
    context = world.loop.context
    for back in (1, 2, 3):
        await reconcile(context, account_id, context.now().date() - timedelta(days=back))
    async with context.database.transaction() as session:
        order = await orders.find(session, order_id)
        assert order is not None
        await orders.flag_for_review(session, order.merchant_id, order_id, now=context.now())


@asynccontextmanager
async def webhook_listener() -> AsyncIterator[str]:
    """Run the merchant's own server, which takes every webhook but those of declines; yield its address."""

    async def take(request: web.Request) -> web.Response:
        event = await request.json()
        return web.Response(status=500 if event["eventType"] == "payment.failed" else 204)

    app = web.Application()
    app.router.add_post("/hooks", take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/hooks"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def lived_in_world(folder: Path, days: int = DAYS) -> AsyncIterator[World]:
    """Run the shop with its past and its present."""
    async with new_world(folder) as world, webhook_listener() as webhook_url:
        await live_through(world, days)
        await live_today(world, webhook_url)
        await asyncio.sleep(1)  # for the deliveries, which nobody here waits for
        await _find_places(world)
        yield world
