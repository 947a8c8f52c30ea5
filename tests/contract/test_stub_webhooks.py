"""The stand-in processor's webhooks: signed so that Stripe's own verifier accepts them, unreliable when told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import stripe
from aiohttp import web

from loop.testing.stub_psp import Endpoint, StubProcessor
from tests.contract.stub_clients import control, payment, sdk

SECRET = "whsec_stub"


@dataclass
class Merchant:
    """A merchant's server: every delivery it took, and the statuses it answers first."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    deliveries: list[tuple[str, str]] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        self.deliveries.append((await request.text(), request.headers["Stripe-Signature"]))
        return web.Response(status=self.answers.pop(0) if self.answers else 200)

    def types(self) -> list[str]:
        """Verify each delivery with Stripe's own code and return the types of the events."""
        return [stripe.Webhook.construct_event(body, header, SECRET).type for body, header in self.deliveries]


@asynccontextmanager
async def serving() -> AsyncIterator[Merchant]:
    """Run a merchant's server on a free port."""
    merchant = Merchant()
    app = web.Application()
    app.router.add_post("/hook", merchant.take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        merchant.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
        yield merchant
    finally:
        await runner.cleanup()


@pytest.fixture
async def merchant() -> AsyncIterator[Merchant]:
    async with serving() as running:
        yield running


@pytest.fixture
async def stub(tmp_path: Path, merchant: Merchant) -> AsyncIterator[StubProcessor]:
    endpoints = [Endpoint(merchant.url, SECRET)]
    async with StubProcessor(ledger_path=tmp_path / "ledger.jsonl", endpoints=endpoints) as running:
        yield running


@pytest.fixture
async def client(stub: StubProcessor) -> AsyncIterator[stripe.StripeClient]:
    async with sdk(stub.url) as made:
        yield made


async def test_every_change_is_told_and_listed(
    stub: StubProcessor, client: stripe.StripeClient, merchant: Merchant
) -> None:
    paid = await client.v1.payment_intents.create_async(payment(), {"idempotency_key": "key-1"})
    refund = await client.v1.refunds.create_async({"payment_intent": paid.id})
    await control(stub, f"refunds/{refund.id}/settle", {"status": "failed"})
    held = await client.v1.payment_intents.create_async(payment(capture_method="manual"))
    await client.v1.payment_intents.cancel_async(held.id)
    with pytest.raises(stripe.CardError):
        await client.v1.payment_intents.create_async(payment("pm_card_chargeDeclined"))
    await client.v1.payment_intents.create_async(payment("pm_card_threeDSecureRequired"))
    opened = await client.v1.payment_intents.create_async(payment("pm_card_createDispute"))
    disputes = await client.v1.disputes.list_async({"payment_intent": opened.id})
    await control(stub, f"disputes/{disputes.data[0].id}/move", {"status": "won"})
    await stub.webhooks.settled()

    expected = [
        *("payment_intent.created", "charge.succeeded", "payment_intent.succeeded"),
        *("refund.created", "charge.refunded"),
        *("refund.updated", "charge.refund.updated", "refund.failed"),
        *("payment_intent.created", "charge.succeeded", "payment_intent.amount_capturable_updated"),
        "payment_intent.canceled",
        *("payment_intent.created", "charge.failed", "payment_intent.payment_failed"),
        *("payment_intent.created", "payment_intent.requires_action"),
        *("payment_intent.created", "charge.succeeded", "payment_intent.succeeded"),
        *("charge.dispute.created", "charge.dispute.funds_withdrawn"),
        *("charge.dispute.closed", "charge.dispute.funds_reinstated"),
    ]
    assert sorted(merchant.types()) == sorted(expected)
    listed = await client.v1.events.list_async({"limit": 100})
    assert [event.type for event in listed.data] == expected[::-1]
    succeeded = await client.v1.events.list_async({"type": "payment_intent.succeeded"})
    told = succeeded.data[-1]
    assert told.data.object["id"] == paid.id
    assert told.request is not None
    assert told.request.idempotency_key == "key-1"
    assert paid.last_response is not None
    assert told.request.id == paid.last_response.request_id


async def test_an_endpoint_hears_of_the_kinds_that_it_asked_for(
    stub: StubProcessor, client: stripe.StripeClient, merchant: Merchant
) -> None:
    answer = await control(
        stub, "webhook_endpoints", {"url": merchant.url, "secret": SECRET, "kinds": ["payment_intent.succeeded"]}
    )
    assert answer["url"] == merchant.url
    stub.webhooks.endpoints.pop(0)  # the one that hears of everything
    await client.v1.payment_intents.create_async(payment())
    await stub.webhooks.settled()
    assert merchant.types() == ["payment_intent.succeeded"]


async def test_refused_delivery_is_tried_again_and_given_up(
    stub: StubProcessor, client: stripe.StripeClient, merchant: Merchant
) -> None:
    merchant.answers = [500, 500]
    await client.v1.payment_intents.create_async({"amount": 500, "currency": "usd"})
    await stub.webhooks.settled()
    assert merchant.types() == ["payment_intent.created"] * 3
    assert [row["status"] for row in (await control(stub, "webhooks"))["deliveries"]] == [500, 500, 200]


async def test_copies_are_the_same_event(stub: StubProcessor, client: stripe.StripeClient, merchant: Merchant) -> None:
    await control(stub, "webhooks/faults", {"copies": 3})
    await client.v1.payment_intents.create_async({"amount": 500, "currency": "usd"})
    await stub.webhooks.settled()
    assert len(merchant.deliveries) == 3
    assert len({body for body, _ in merchant.deliveries}) == 1


async def test_delay_holds_a_delivery_back(
    stub: StubProcessor, client: stripe.StripeClient, merchant: Merchant
) -> None:
    await control(stub, "webhooks/faults", {"delay_s": 0.3})
    await client.v1.payment_intents.create_async({"amount": 500, "currency": "usd"})
    await asyncio.sleep(0.1)
    assert merchant.deliveries == []
    await stub.webhooks.settled()
    assert merchant.types() == ["payment_intent.created"]


async def test_late_signature_is_refused_by_stripe(
    stub: StubProcessor, client: stripe.StripeClient, merchant: Merchant
) -> None:
    await control(stub, "webhooks/faults", {"age_s": 301})
    await client.v1.payment_intents.create_async({"amount": 500, "currency": "usd"})
    await stub.webhooks.settled()
    assert len(merchant.deliveries) == 1
    with pytest.raises(stripe.SignatureVerificationError, match="tolerance"):
        merchant.types()


async def test_held_events_come_in_the_order_of_the_seed(
    stub: StubProcessor, client: stripe.StripeClient, merchant: Merchant
) -> None:
    orders: dict[int, list[list[str]]] = {1: [], 2: []}
    for seed in (1, 1, 2):
        await control(stub, "webhooks/faults", {"is_held": True})
        await client.v1.payment_intents.create_async(payment())
        await stub.webhooks.settled()
        assert merchant.deliveries == []
        assert (await control(stub, "webhooks/release", {"seed": seed}))["released"] == 3
        await stub.webhooks.settled()
        orders[seed].append(merchant.types())
        merchant.deliveries.clear()
    assert orders[1][0] == orders[1][1] != orders[2][0]
    assert sorted(orders[1][0]) == sorted(orders[2][0])


async def test_endpoint_hears_its_own_account_only(
    stub: StubProcessor, client: stripe.StripeClient, merchant: Merchant
) -> None:
    async with serving() as second, sdk(stub.url, "sk_test_second") as other:
        account = (await other.v1.accounts.retrieve_current_async()).id
        added = await control(stub, "webhook_endpoints", {"url": second.url, "secret": SECRET, "account": account})
        assert added == {"url": second.url, "account": account}
        await client.v1.payment_intents.create_async({"amount": 500, "currency": "usd"})
        await other.v1.payment_intents.create_async({"amount": 600, "currency": "usd"})
        await stub.webhooks.settled()
        assert len(merchant.deliveries) == 2
        assert second.types() == ["payment_intent.created"]
        assert '"amount": 600' in second.deliveries[0][0]


async def test_unreachable_endpoint_hinders_nothing(stub: StubProcessor, client: stripe.StripeClient) -> None:
    stub.webhooks.endpoints[:] = [Endpoint("http://127.0.0.1:1/", SECRET)]
    intent = await client.v1.payment_intents.create_async(payment())
    assert intent.status == "succeeded"
    assert SECRET not in repr(stub.webhooks.endpoints)
