"""Webhooks of processors however they come: many times, shuffled, days late, too early, forged, replayed."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from loop.config import Settings
from loop.domain.webhook_secrets import OVERLAP
from loop.runtime import Chance, Running, running
from loop.storage import webhooks as webhook_rows
from loop.testing.stub_faults import Fault
from loop.testing.stub_psp import StubProcessor
from loop.testing.stub_webhooks import WebhookFaults
from loop.workflows.processor_configs import KEPT_AFTER_REMOVAL, purge_removed
from tests.api.client import Answer, Shop
from tests.api.inbound_world import PATIENCE_S, RAZORPAY, SECRET, STRIPE, Face, Gate, Letter, Mailbag, World
from tests.builders import Clock, running_jobs

PAID = ["order.created", "payment.processing", "payment.requires_action", "payment.captured"]
DEBITED = [*PAID[:-1], "payment.processing", PAID[-1]]
REFUNDED = [*PAID, "refund.created", "refund.processed"]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def stub(tmp_path: Path, clock: Clock) -> AsyncIterator[StubProcessor]:
    def clock_ns() -> int:
        return int(clock.at.timestamp()) * 1_000_000_000

    async with StubProcessor(ledger_path=tmp_path / "ledger", clock_ns=clock_ns) as running_stub:
        yield running_stub


@pytest.fixture
async def between(stub: StubProcessor, session: aiohttp.ClientSession) -> AsyncIterator[tuple[Gate, Mailbag]]:
    """Yield what stands on both ways between Loop and the processor."""
    gate, mailbag = Gate(stub.url, session), Mailbag()
    async with AsyncExitStack() as stack:
        for server, method, handler in ((gate, "*", gate.pass_on), (mailbag, "POST", mailbag.take)):
            app = web.Application()
            app.router.add_route(method, "/{path:.*}", handler)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield gate, mailbag


@pytest.fixture
def flags(between: tuple[Gate, Mailbag]) -> dict[str, object]:
    return {"stripe_api_base": between[0].url, "razorpay_api_base": between[0].url}


@pytest.fixture
async def served(settings: Settings, clock: Clock) -> AsyncIterator[Running]:
    async with running(settings, Chance(now=clock.now)) as loop:
        yield loop


@pytest.fixture(params=[STRIPE, RAZORPAY], ids=lambda face: face.name)
def face(request: pytest.FixtureRequest) -> Face:
    chosen: Face = request.param
    return chosen


@pytest.fixture
async def world(bare_shop: Shop, stub: StubProcessor, between: tuple[Gate, Mailbag], clock: Clock, face: Face) -> World:
    made = World(bare_shop, stub, *between, clock, face)
    await made.set_secret(SECRET)
    made.post_to_loop()
    return made


only_razorpay = pytest.mark.parametrize("face", [RAZORPAY], ids=["razorpay"])
only_stripe = pytest.mark.parametrize("face", [STRIPE], ids=["stripe"])


async def test_what_a_webhook_makes_happen_has_the_webhook_s_correlation_id(world: World) -> None:
    world.post_to_mailbag()
    order = await world.waiting_order()
    await world.customer_tries(order, pays=True)
    await world.stub.webhooks.settled(PATIENCE_S)
    await world.deliver(world.mailbag.of_type(world.face.paid_type), **{"X-Correlation-ID": "told-by-processor"})
    await world.quiet()
    async with world.context.database.reading() as reader:
        events = await webhook_rows.events_of_order(reader, world.shop.merchant.id, order["id"])
    assert [each.event_type for each in events if each.correlation_id == "told-by-processor"] == ["payment.captured"]
    assert all(each.correlation_id for each in events)


async def test_each_fifty_times_at_once_is_one_change_and_one_event(world: World) -> None:
    world.stub.webhooks.faults = WebhookFaults(copies=50)
    order = await world.waiting_order()
    await world.customer_tries(order, pays=True)
    await world.quiet()
    assert (await world.read(order["id"]))["status"] == "captured"
    await world.shop.post(f"/v1/orders/{order['id']}/refund", {"amount": 2_000})
    await world.quiet()
    assert (await world.read(order["id"]))["status"] == "partially_refunded"
    assert await world.told(order["id"]) == REFUNDED
    assert world.moved() == [("charge", 5_000), ("refund", 2_000)]
    deliveries = [row for row in world.stub.webhooks.log if row["url"].startswith(world.shop.url)]
    assert {row["status"] for row in deliveries} == {200}
    kinds = {row["event"] for row in deliveries}
    assert len(deliveries) == 50 * len(kinds)
    assert len(await world.stored()) == len(kinds)


@only_stripe
@pytest.mark.parametrize("account", ["success", "insufficientFunds"])
async def test_a_debit_is_pending_for_days_and_then_paid_or_its_customer_s_again(world: World, account: str) -> None:
    order = await world.waiting_order(expiresAt=(world.clock.at + timedelta(days=20)).isoformat())
    reference = order["processorOrderId"]
    await world.control(f"intents/{reference}/pay", {"payment_method": f"pm_usBankAccount_{account}"})
    await world.stub.webhooks.settled(PATIENCE_S)
    await world.until(order["id"], "processing")
    for _ in range(4):
        world.clock.forward(days=1)
        await world.next_job()
    now = await world.read(order["id"])
    assert (now["status"], now["needsReview"]) == ("processing", False)
    assert (await world.shop.post(f"/v1/orders/{order['id']}/cancel", {})).code == "invalid_status"

    await world.control(f"intents/{reference}/decide", {})
    await world.quiet()
    now = await world.read(order["id"])
    if account == "success":
        assert (now["status"], await world.told(order["id"])) == ("captured", DEBITED)
        assert world.moved() == [("charge", 5_000)]
        return
    assert (now["status"], now["needsReview"]) == ("requires_action", False)
    assert now["lastError"]["code"] == "insufficient_funds"
    assert await world.told(order["id"]) == [*DEBITED[:-1], "payment.requires_action"]
    await world.customer_tries(order, pays=True)
    await world.quiet()
    assert (await world.read(order["id"]))["status"] == "captured"
    assert world.moved() == [("charge", 5_000)]


async def test_shuffled_and_three_days_late_they_end_the_same(world: World) -> None:
    orders = []
    for seed in range(4):
        world.stub.webhooks.faults = WebhookFaults(is_held=True)
        order = await world.waiting_order()
        await world.customer_tries(order, pays=False)
        await world.customer_tries(order, pays=True)
        assert (await world.read(order["id"]))["status"] == "requires_action"
        world.clock.forward(days=3)
        assert world.stub.webhooks.release(seed) > 2
        await world.quiet()
        assert (await world.read(order["id"]))["status"] == "captured"
        assert await world.told(order["id"]) == PAID
        await world.shop.post(f"/v1/orders/{order['id']}/refund", {})
        world.clock.forward(days=3)
        world.stub.webhooks.faults = WebhookFaults(copies=2)
        assert world.stub.webhooks.release(seed) > 0
        await world.quiet()
        orders.append(order["id"])
    for order_id in orders:
        now = await world.read(order_id)
        assert (now["status"], now["amountRefunded"], now["needsReview"]) == ("refunded", 5_000, False)
        assert await world.told(order_id) == REFUNDED
    assert world.moved() == [("charge", 5_000), ("refund", 5_000)] * 4


async def test_an_event_of_three_days_ago_is_taken_when_it_is_signed_now_and_refused_when_it_was_then(
    world: World,
) -> None:
    world.post_to_mailbag()
    order = await world.waiting_order()
    await world.customer_tries(order, pays=True)
    await world.quiet()
    old = world.mailbag.of_type(world.face.paid_type)
    world.clock.forward(days=3)
    answer = await world.deliver(old)
    if world.face is STRIPE:
        assert (answer.status, answer.code) == (400, "invalid_signature")
        assert await world.stored() == []
        assert (await world.deliver(world.signed(old.body.decode()))).status == 200
    else:
        assert answer.status == 200
    await world.quiet()
    assert (await world.read(order["id"]))["status"] == "captured"


async def test_failed_after_succeeded_stays_succeeded(world: World) -> None:
    world.post_to_mailbag()
    order = await world.waiting_order()
    await world.customer_tries(order, pays=False)
    await world.customer_tries(order, pays=True)
    await world.quiet()
    assert (await world.deliver(world.mailbag.of_type(world.face.paid_type))).status == 200
    await world.quiet()
    assert (await world.read(order["id"]))["status"] == "captured"
    for _ in range(3):
        assert (await world.deliver(world.mailbag.of_type(world.face.failed_type))).status == 200
        await world.quiet()
    now = await world.read(order["id"])
    assert (now["status"], now["amountCaptured"], now["needsReview"]) == ("captured", 5_000, False)
    assert await world.told(order["id"]) == PAID


@only_stripe
async def test_webhooks_that_come_before_the_answer_of_the_charge_end_the_same(world: World) -> None:
    world.gate.shut = {"POST"}
    order = await world.shop.order(amount=5_000, currency="USD")
    content = {"processor": "stripe", "paymentMethod": {"type": "card", "token": "pm_card_visa"}}
    paying = asyncio.create_task(world.shop.post(f"/v1/orders/{order['id']}/pay", content))
    async with asyncio.timeout(10):
        while (await world.read(order["id"]))["status"] != "captured":
            assert not paying.done()
            await asyncio.sleep(0.01)
    world.gate.opened.set()
    answer = await paying
    assert (answer.status, answer.body["status"]) == (200, "captured")
    await world.quiet()
    assert await world.told(order["id"]) == ["order.created", "payment.processing", "payment.captured"]
    assert world.moved() == [("charge", 5_000)]


async def test_webhooks_that_come_before_the_answer_of_the_refund_end_the_same(world: World) -> None:
    order = await world.waiting_order()
    await world.customer_tries(order, pays=True)
    await world.quiet()
    world.gate.shut = {"POST"}
    refunding = asyncio.create_task(world.shop.post(f"/v1/orders/{order['id']}/refund", {}))
    async with asyncio.timeout(10):
        while len(world.moved()) < 2:  # noqa: ASYNC110 - the processor's books are the event
            await asyncio.sleep(0.01)
    await world.stub.webhooks.settled()
    assert not refunding.done()
    assert "refund.processed" not in await world.told(order["id"])  # whose refund it is, is not known yet
    world.gate.opened.set()
    assert (await refunding).body["status"] == "success"
    await world.quiet()
    assert (await world.read(order["id"]))["status"] == "refunded"
    assert await world.told(order["id"]) == REFUNDED
    assert world.moved() == [("charge", 5_000), ("refund", 5_000)]
    assert not any(event.is_quarantined for event in await world.stored())


async def test_wrong_old_and_no_secret(world: World) -> None:
    world.post_to_mailbag()
    order = await world.waiting_order()
    await world.customer_tries(order, pays=True)
    await world.quiet()
    genuine = world.mailbag.of_type(world.face.paid_type)
    wrong = world.another(genuine, secret="whsec_wrong")
    for given in (wrong, Letter(wrong.body, {})):
        answer = await world.deliver(given)
        assert (answer.status, answer.code) == (
            400, "invalid_signature" if given.headers else "missing_signature",
        )  # fmt: skip
    assert await world.stored() == []

    await world.set_secret("whsec_new")
    world.clock.forward(seconds=OVERLAP.total_seconds() - 60)
    assert (await world.deliver(world.another(genuine))).status == 200  # signed with the old secret, as retries are
    assert [event.secret_ordinal for event in await world.stored()] == [1]
    world.clock.forward(seconds=120)
    late = world.another(genuine)
    assert ((await world.deliver(late)).code, len(await world.stored())) == ("invalid_signature", 1)
    assert (await world.deliver(world.another(genuine, secret="whsec_new"))).status == 200
    assert [event.secret_ordinal for event in await world.stored()] == [1, 0]

    config = await world.set_secret(None)
    answer = await world.deliver(late)
    assert (answer.status, answer.code) == (503, "webhook_secret_missing")
    assert [each for each in config["warnings"] if "webhookSecret" in each]
    assert (await world.shop.get("/api/processors")).body[0]["warnings"] == config["warnings"]
    await world.quiet()
    assert (await world.read(order["id"]))["status"] == "captured"
    assert await world.told(order["id"]) == PAID


@only_razorpay
async def test_a_body_that_was_listened_to_is_not_another_event_under_another_id(world: World) -> None:
    order = await world.waiting_order()
    await world.customer_tries(order, pays=True)
    await world.quiet()
    before, asked = await world.stored(), world.asked()
    world.clock.forward(days=30)
    for number, letter in enumerate(world.mailbag.letters):
        replayed = await world.deliver(letter, **{"X-Razorpay-Event-Id": f"another_{number}"})
        assert replayed.status == 200  # nothing tells it from a retry: it is acknowledged, and nothing comes of it
    without_id = await world.deliver(world.mailbag.letters[0], **{"X-Razorpay-Event-Id": ""})
    assert without_id.status == 200
    await world.quiet()
    assert (await world.stored(), world.asked()) == (before, asked)
    assert await world.told(order["id"]) == PAID


MISMATCHES = {
    "another amount": ('"amount": 5000', '"amount": 1'),
    "another currency": ("<currency>", "<other currency>"),
    "another payment": ("<reference>", "<other reference>"),
}


@pytest.mark.parametrize("mismatch", MISMATCHES)
async def test_what_contradicts_the_attempt_is_kept_for_a_person_and_not_followed(world: World, mismatch: str) -> None:
    world.post_to_mailbag()
    order = await world.waiting_order()
    await world.customer_tries(order, pays=True)
    await world.quiet()
    genuine = world.mailbag.of_type("order.paid" if world.face is RAZORPAY else world.face.paid_type)
    reference = order["processorOrderId"]
    currency = world.face.currency if world.face is RAZORPAY else world.face.currency.lower()
    old, new = MISMATCHES[mismatch]
    for mark, text in (
        ("<other currency>", "EUR" if currency.isupper() else "eur"), ("<currency>", currency),
        ("<other reference>", f"{reference}x"), ("<reference>", reference),
    ):  # fmt: skip
        old, new = old.replace(mark, text), new.replace(mark, text)
    asked = world.asked()
    assert (await world.deliver(world.another(genuine, (old, new)))).status == 200
    await world.quiet()
    (event,) = await world.stored()
    assert event.is_quarantined
    assert event.outcome is not None
    assert event.outcome.startswith("quarantined: ")
    now = await world.read(order["id"])
    assert (now["status"], now["needsReview"], now["amountCaptured"]) == ("requires_action", True, 0)
    assert world.asked() == asked
    assert await world.told(order["id"]) == PAID[:-1]

    assert (await world.deliver(genuine)).status == 200
    await world.quiet()
    now = await world.read(order["id"])
    assert (now["status"], now["needsReview"], now["amountCaptured"]) == ("captured", True, 5_000)


async def test_a_refund_of_another_amount_is_kept_for_a_person(world: World) -> None:
    order = await world.waiting_order()
    await world.customer_tries(order, pays=True)
    await world.quiet()
    world.post_to_mailbag()
    await world.shop.post(f"/v1/orders/{order['id']}/refund", {"amount": 1_234})
    await world.quiet()
    genuine = world.mailbag.of_type("refund.created")
    assert (await world.deliver(world.another(genuine, ('"amount": 1234', '"amount": 1235')))).status == 200
    await world.quiet()
    assert [event.is_quarantined for event in await world.stored()].count(True) == 1
    assert (await world.read(order["id"]))["needsReview"]
    assert await world.refunded(order["id"]) == [("succeeded", 1_234)]


async def test_nothing_that_one_account_signs_touches_an_order_of_another_s(
    world: World, shop: Shop, session: aiohttp.ClientSession
) -> None:
    del session
    theirs = World(shop, world.stub, world.gate, world.mailbag, world.clock, world.face)
    await theirs.set_secret("whsec_of_the_other")
    world.post_to_mailbag()
    order = await world.waiting_order()
    await world.customer_tries(order, pays=True)
    await world.quiet()
    genuine = world.mailbag.of_type("order.paid" if world.face is RAZORPAY else world.face.paid_type)
    signed = theirs.another(genuine, secret="whsec_of_the_other")
    for path in (theirs.path, f"/webhooks/{world.face.name}"):
        assert (await theirs.deliver(signed, path=path)).status == 200
    await world.quiet()
    (event,) = await world.stored()
    assert (event.merchant_id, event.is_quarantined) == (shop.merchant.id, True)
    now = await world.read(order["id"])
    assert (now["status"], now["needsReview"]) == ("requires_action", False)


@only_stripe
async def test_what_no_column_can_hold_is_no_fault_of_this_server(world: World) -> None:
    world.post_to_mailbag()
    order = await world.waiting_order()
    await world.customer_tries(order, pays=True)
    await world.quiet()
    genuine = world.mailbag.of_type("payment_intent.succeeded")
    attempt_id = json.loads(genuine.body)["data"]["object"]["metadata"]["loop_attempt_id"]
    for number, odd in enumerate(("a" * 5_000, "a\\u0000b", "\\ud800", "")):
        letter = world.another(genuine, (attempt_id, odd or f"att_{number}"))
        assert (await world.deliver(letter)).status == 200
    huge = world.another(genuine, ('"amount": 5000', f'"amount": {10**30}'))
    assert (await world.deliver(huge)).status == 200
    await world.quiet()
    now = await world.read(order["id"])
    assert (now["status"], now["needsReview"]) == ("captured", False)


@only_stripe
async def test_a_refund_whose_answer_was_lost_is_not_failed_by_another_accounts_key(world: World) -> None:
    order = await world.waiting_order()
    await world.customer_tries(order, pays=True)
    await world.quiet()
    world.post_to_mailbag()
    world.stub.faults.arm(Fault(kind="drop_after", method="POST"))
    await world.shop.post(f"/v1/orders/{order['id']}/refund", {"amount": 2_000})
    await world.shop.post("/api/processors/stripe", {"credentials": {"secretKey": "sk_test_of_another"}})
    asked = len(world.stub.requests.seen)
    world.clock.forward(seconds=10)
    world.context.runner.wake()
    async with asyncio.timeout(PATIENCE_S):
        while len(world.stub.requests.seen) == asked or running_jobs(world.context):  # noqa: ASYNC110 - no event there
            await asyncio.sleep(0.01)
    assert await world.refunded(order["id"]) == [("unknown", 2_000)]
    await world.set_secret(SECRET)
    await world.quiet()
    assert await world.refunded(order["id"]) == [("succeeded", 2_000)]
    assert await world.told(order["id"]) == REFUNDED
    assert [kind for kind, _ in world.moved()].count("refund") == 1


async def test_a_removed_account_goes_on_with_its_payments_and_takes_no_new_one(world: World) -> None:
    waiting, paid = await world.waiting_order(), await world.waiting_order()
    await world.customer_tries(paid, pays=True)
    await world.quiet()
    removed = await world.shop.call("DELETE", f"/api/processors/{world.face.name}")
    assert removed.status == 204
    assert (await world.shop.get("/api/processors")).body == []
    new = await world.shop.order(amount=5_000, currency=world.face.currency)
    for content in ({}, {"processor": world.face.name}):
        refused = await world.shop.post(f"/v1/orders/{new['id']}/pay", content)
        assert (refused.status, refused.code) == (400, "no_processor")

    refund = await world.shop.post(f"/v1/orders/{paid['id']}/refund", {})
    assert refund.body["status"] == "success"
    await world.customer_tries(waiting, pays=True)
    await world.quiet()
    assert (await world.read(waiting["id"]))["status"] == "captured"

    before = world.config_id
    assert (await world.set_secret("whsec_after"))["id"] == before
    world.clock.forward(seconds=1)
    answer = await world.deliver(world.another(world.mailbag.of_type(world.face.paid_type)))
    assert (answer.status, answer.code) == (400, "invalid_signature")  # the old secret has gone with the removal
    paying = await world.shop.post(f"/v1/orders/{new['id']}/pay", {})
    assert paying.body["status"] == "requires_action"


async def test_long_after_its_removal_an_account_s_credentials_are_gone(world: World, served: Running) -> None:
    paid = await world.waiting_order()
    await world.customer_tries(paid, pays=True)
    await world.quiet()
    await world.shop.call("DELETE", f"/api/processors/{world.face.name}")
    world.clock.forward(seconds=(KEPT_AFTER_REMOVAL - timedelta(minutes=1)).total_seconds())
    assert await purge_removed(served.context) == 0
    world.clock.forward(minutes=2)
    assert await purge_removed(served.context) == 1
    before = world.config_id
    assert (await world.set_secret(SECRET))["id"] != before


async def pay(world: World, order_id: str, token: str, **more: object) -> Answer:
    """Pay an order with a token of Stripe's."""
    content = {"paymentMethod": {"type": "card", "token": token}, **more}
    return await world.shop.post(f"/v1/orders/{order_id}/pay", content)


async def declined_at_stripe(world: World) -> str:
    """Return the id of an order whose card was declined: its payment can be paid until Stripe cancels it."""
    order = await world.shop.order(amount=5_000, currency="USD")
    paid = await pay(world, order["id"], "pm_card_chargeDeclined")
    assert paid.body["status"] == "failed", paid.text
    await world.quiet()
    return str(order["id"])


@only_stripe
async def test_what_is_cancelled_to_try_again_does_not_cancel_the_order(world: World) -> None:
    order_id = await declined_at_stripe(world)
    for _ in range(2):
        refused = await pay(world, order_id, "tok_x", retry=True, processor="razorpay")
        assert refused.code == "no_processor"
        await world.quiet()
        assert (await world.read(order_id))["status"] == "failed"
    again = await pay(world, order_id, "pm_card_chargeDeclined", retry=True)
    assert again.body["status"] == "failed"
    await world.quiet()
    right = await pay(world, order_id, "pm_card_visa", retry=True)
    assert right.body["status"] == "captured"
    await world.quiet()
    assert "payment.cancelled" not in await world.told(order_id)
    assert world.moved() == [("charge", 5_000)]


@only_stripe
async def test_a_payment_that_its_customer_failed_cannot_be_paid_once_it_is_cancelled(world: World) -> None:
    order = await world.shop.order(amount=5_000, currency="USD")
    paid = await pay(world, order["id"], "pm_card_threeDSecure2Required")
    async with world.shop.session.post(paid.body["redirectUrl"], data={"outcome": "fail"}, allow_redirects=False):
        await world.quiet()
    failed = await world.read(order["id"])
    assert failed["status"] == "failed"
    gone = await world.shop.post(f"/v1/orders/{order['id']}/cancel", {"reason": "sold to somebody else"})
    assert (gone.status, gone.body["status"]) == (200, "cancelled")
    with pytest.raises(aiohttp.ClientResponseError):  # the page that is still open tries another card
        await world.customer_tries(failed, pays=True)
    await world.quiet()
    assert (await world.told(order["id"]))[-1] == "payment.cancelled"
    assert world.moved() == []
