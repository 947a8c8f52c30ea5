"""Towns: a Loop that is killed, its processors, its merchant and its customers, on one clock."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp import web

from loop import config
from loop.domain.ids import PREFIX_ROUTING_RULE
from loop.domain.routing_rules import Conditions, Rule
from loop.runtime import opened
from loop.testing.stub_psp import StubProcessor
from loop.testing.stub_razorpay import account_id as razorpay_account
from loop.testing.stub_stripe import account_id as stripe_account
from loop.testing.stub_webhooks import Endpoint, WebhookFaults
from loop.workflows import merchants, processor_configs, routing
from loop.workflows.context import Context
from loop.workflows.merchants import NewApiKey, NewMerchant, ProfileChange
from loop.workflows.processor_configs import ConfigChange
from tests.e2e.clocks import SharedClock
from tests.e2e.fault_tables import CALL_S, KILL, FaultTable
from tests.e2e.houses import NEW_DELIVERIES, House, Nursery, listening
from tests.e2e.mischief import (
    RAZORPAY_KEY_SECRET,
    RAZORPAY_SECRET,
    SANDBOX_SECRET,
    STRIPE_SECRET,
    Chance,
    FickleMerchant,
    Mischief,
    Relay,
    WatchedStub,
)
from tests.e2e.shops import Shop
from tests.e2e.standings import Standings

KEY_LOCK_S = 61
"""Past this the key of a request whose process died is free again, in seconds."""

DAY_S = 25 * 3_600
"""After so long, orders that nobody has paid are given up, in seconds."""

SANDBOX_CURRENCY = "GBP"
STEP_S = 0.03
BANKS = {"created": ("failed", "authorized"), "authorized": ("captured", "captured", "released")}
"""What becomes of a payment at Razorpay that a bank, or Razorpay itself, has kept open."""

UNDECIDED = (
    ("stripe", "refunds", "refunds/{}/settle", ("succeeded", "failed")),
    ("stripe", "disputes", "disputes/{}/move", ("won", "lost")),
    ("razorpay", "rzp_refunds", "razorpay/refunds/{}/settle", ("processed", "failed")),
    ("razorpay", "rzp_disputes", "razorpay/disputes/{}/move", ("won", "lost")),
)
"""(processor, kind of object at the stand-in, where it is decided, what may be decided)."""

CREEP_S = 0.25
"""How far the clock is set forward at a step while jobs run: their leases must not end meanwhile."""

KINDS = {
    "stripe": (
        "payment_intent.succeeded", "payment_intent.payment_failed", "payment_intent.canceled",
        "payment_intent.processing", "payment_intent.amount_capturable_updated", "refund.created", "refund.updated",
        "refund.failed", "charge.dispute.created", "charge.dispute.updated", "charge.dispute.closed",
    ),
}  # fmt: skip
"""Events that a merchant has a processor send; of those that are not named, all."""

SETTLED_S = 60.0
"""How long the processors' webhooks may take to arrive, in seconds."""

STEPS_MAX = 1_000
STEPS_OF_A_BANK = 20


@dataclass
class Town:
    """Everything of one test."""

    house: House
    clock: SharedClock
    stub: WatchedStub
    mischief: Mischief
    server: FickleMerchant
    shop: Shop
    standings: Standings
    relay: Relay
    session: aiohttp.ClientSession

    @property
    def accounts(self) -> dict[str, str]:
        """Processor -> the merchant's account there, as the stand-in calls it."""
        accounts = [endpoint.account for endpoint in self.stub.webhooks.endpoints if endpoint.account]
        return {"stripe" if account.startswith("acct_") else "razorpay": account for account in accounts}

    @property
    def table(self) -> FaultTable:
        return self.mischief.table

    async def kill(self) -> None:
        """Kill Loop, if it lives, and note what it was at work on."""
        if self.house.pid:
            await self.house.kill()
        self.note_death()

    def note_death(self) -> None:
        """Note what a Loop that is dead was at work on."""
        for kind, standing in self.standings.under_way():
            self.table.note(KILL, f"{kind} @ {standing.state}")
        for standing in filter(None, map(self.standings.of_order, self.server.hung)):
            self.table.note(KILL, f"deliver_webhooks @ {standing.state}")
        self.server.hung.clear()
        self.stub.lose_held()

    async def drive(self, is_done: Callable[[], bool]) -> None:
        """Set the clock forward to whatever is due next, again and again; AssertionError when that does not help."""
        for step in range(STEPS_MAX):
            if is_done():
                return
            if step % STEPS_OF_A_BANK == 0:
                await self.let_banks_decide()
                await self.relay.send_again()
            self.hurry()
            await asyncio.sleep(STEP_S)
        left = self.house.rows("SELECT * FROM jobs LIMIT 10")
        raise AssertionError(f"not at rest: {left}\n{self.house.log()}")

    def hurry(self, at_most_s: float = float("inf")) -> None:
        """Set the clock forward past the next job and the lock of any key, or a little while jobs run."""
        (jobs,) = self.house.rows("SELECT sum(is_leased) AS running, min(run_at) AS due_at FROM jobs WHERE NOT is_dead")
        if jobs["running"]:
            self.clock.forward(CREEP_S)
            return
        away_s = 0.0 if jobs["due_at"] is None else self.clock.seconds_until(jobs["due_at"])
        is_locked = self.house.rows("SELECT 1 FROM idempotency_keys WHERE status_code IS NULL LIMIT 1")
        self.clock.forward(min(at_most_s, max(away_s, 1.0) + (KEY_LOCK_S if is_locked else 0.0)))
        self.house.hurry()

    async def deliver_webhooks(self) -> None:
        """Have Loop take every webhook that the processors have for it."""
        self.stub.webhooks.faults = WebhookFaults()
        self.stub.webhooks.release(0)
        await self.stub.webhooks.settled(SETTLED_S)
        async with asyncio.timeout(SETTLED_S):
            while not await self.relay.send_again():  # noqa: ASYNC110 - what another process takes
                await asyncio.sleep(STEP_S)

    async def let_banks_decide(self) -> None:
        """Have the banks decide what they have kept open: payments that Razorpay is to take, refunds, disputes."""
        store, chance = self.stub.store, self.mischief.chance
        for payment in list(store.newest_first(self.accounts["razorpay"], "rzp_payments")):
            order = store.get(self.accounts["razorpay"], "rzp_orders", object_id=payment["order_id"]) or {}
            is_the_merchants = payment["status"] == "authorized" and order["_capture"] == "manual"
            if payment["status"] in BANKS and not is_the_merchants:
                status = chance.choice(BANKS[payment["status"]])
                await self.shop.control(f"razorpay/payments/{payment['id']}/move", {"status": status})
        for processor, kind, path, decisions in UNDECIDED:
            for item in list(store.newest_first(self.accounts[processor], kind)):
                if item["status"] in ("pending", "needs_response", "open"):
                    await self.shop.control(f"{path.format(item['id'])}", {"status": chance.choice(decisions)})

    def is_at_rest(self, unclear: Collection[str] = ()) -> bool:
        """Tell whether Loop has nothing left to do, but for orders that will never be clear."""
        marks = ", ".join("?" * len(unclear))
        left = self.house.rows(
            f"SELECT id FROM jobs WHERE NOT is_dead AND subject NOT IN ({marks})"  # noqa: S608 - only question marks
            f" AND subject NOT IN (SELECT id FROM refunds WHERE order_id IN ({marks}))"
            f" UNION ALL {NEW_DELIVERIES} LIMIT 1",
            *unclear,
            *unclear,
        )
        return not left

    def is_over(self, unclear: Collection[str] = ()) -> bool:
        """Tell whether Loop has nothing left to do, and waits for no customer either."""
        waiting = "SELECT id FROM orders WHERE status = 'requires_action' LIMIT 1"
        return self.is_at_rest(unclear) and not self.house.rows(waiting)


@asynccontextmanager
async def town(nursery: Nursery, database_url: str, *, chance: Chance, table: FaultTable) -> AsyncIterator[Town]:
    """Yield a town whose Loop does not live yet."""
    path = Path(database_url.removeprefix("sqlite:///"))
    clock = SharedClock(path.parent / "clock")
    async with AsyncExitStack() as stack:
        standings = stack.enter_context(closing(Standings(path)))
        mischief = Mischief(standings, table, chance)
        stub = WatchedStub(mischief, path.parent / "ledger", clock)
        await stack.enter_async_context(stub)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        house = House.on(
            nursery,
            database_url,
            stripe_api_base=stub.url,
            razorpay_api_base=stub.url,
            processor_timeout_s=CALL_S,
            webhook_timeout_s=1,
            job_concurrency=64,
        )
        house.clock, house.log_level = clock, "warning"
        relay = Relay(session, house.url, lambda: stub.store, mischief, clock)
        server = FickleMerchant(mischief)
        app = web.Application()
        app.router.add_post("/hooks", server.take)
        app.router.add_post("/webhooks/{processor}/{config_id}", relay.carry)
        url = await stack.enter_async_context(listening(app))
        server.url = f"{url}/hooks"
        async with opened(config.load(house.flags, environ={})) as context:
            house.key = await furnish(context, stub, server.url, relay_url=url)
        stack.push_async_callback(house.clear)
        yield Town(
            house, clock, stub, mischief, server, Shop(session, house, server, stub.url), standings, relay, session
        )


async def furnish(context: Context, stub: StubProcessor, hooks_url: str, *, relay_url: str) -> str:
    """Make the merchant with an account at each processor and currencies that go to each; return an API key."""
    merchant = (await merchants.create(context, NewMerchant("Shop", "shop@example.com", "correct horse"))).merchant
    await merchants.update_profile(context, merchant.id, ProfileChange(has_webhook_url=True, webhook_url=hooks_url))
    _, key = await merchants.create_api_key(context, merchant.id, NewApiKey("till", mode="test"))
    stripe_key, razorpay_key = f"sk_test_{secrets.token_hex(8)}", f"rzp_test_{secrets.token_hex(8)}"
    accounts = {
        "stripe": ({"secretKey": stripe_key}, STRIPE_SECRET, stripe_account(stripe_key)),
        "razorpay": (
            {"keyId": razorpay_key, "keySecret": RAZORPAY_KEY_SECRET},
            RAZORPAY_SECRET,
            razorpay_account(razorpay_key),
        ),
        "sandbox": ({}, SANDBOX_SECRET, None),
    }
    for processor, (credentials, secret, account) in accounts.items():
        put = await processor_configs.put(
            context,
            merchant.id,
            processor,
            credentials={**credentials, "webhookSecret": secret},
            change=ConfigChange(),
        )
        if account is not None:
            url = f"{relay_url}/webhooks/{processor}/{put.id}"
            stub.webhooks.endpoints.append(Endpoint(url, secret, account, KINDS.get(processor)))
    conditions = Conditions(currencies=(SANDBOX_CURRENCY,))
    rule = Rule(
        context.new_id(PREFIX_ROUTING_RULE),
        "Pounds",
        1,
        is_enabled=True,
        conditions=conditions,
        processors=("sandbox",),
    )
    await routing.save_rule(context, merchant.id, rule, is_new=True)
    return key
