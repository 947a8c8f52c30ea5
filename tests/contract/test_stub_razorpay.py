"""The stand-in's Razorpay face as Razorpay's own SDK sees it, its checkout page, and its webhooks."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from html import unescape
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import razorpay
from aiohttp import web
from razorpay.errors import BadRequestError, GatewayError, ServerError

from loop.testing.stub_faults import Fault
from loop.testing.stub_ledger import read_ledger
from loop.testing.stub_psp import Endpoint, StubProcessor
from loop.testing.stub_razorpay import account_id
from loop.testing.stub_razorpay_customer import INSTRUMENTS
from tests.contract.stub_clients import charges, control, payment, sdk

KEY_ID, SECRET = "rzp_test_first", "first_secret"
ORDER = {"amount": 50_000, "currency": "INR", "receipt": "rcpt_1", "notes": {"loop_attempt_id": "att_1"}}
MANUAL = {"capture": "manual", "capture_options": {"manual_expiry_period": 60, "refund_speed": "normal"}}


class Sdk:
    """Razorpay's client, whose blocking calls are made in a thread."""

    def __init__(self, url: str, auth: tuple[str, str] = (KEY_ID, SECRET)) -> None:
        self.client = razorpay.Client(auth=auth, base_url=url)

    async def ask(self, call: Callable[[Any], Any]) -> dict[str, Any]:
        answer: dict[str, Any] = await asyncio.to_thread(call, self.client)
        return answer

    async def order(self, **more: object) -> dict[str, Any]:
        return await self.ask(lambda client: client.order.create({**ORDER, **more}, timeout=5))


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[StubProcessor]:
    async with StubProcessor(ledger_path=tmp_path / "ledger.jsonl") as running:
        yield running


@pytest.fixture
def client(stub: StubProcessor) -> Sdk:
    return Sdk(stub.url)


async def pay(stub: StubProcessor, order: Mapping[str, Any], **how: object) -> dict[str, Any]:
    return await control(stub, f"razorpay/orders/{order['id']}/pay", how)


async def paid(stub: StubProcessor, client: Sdk, **how: object) -> str:
    """Return the id of a captured payment."""
    return str((await pay(stub, await client.order(), **how))["payment"]["id"])


async def test_order_is_made_fetched_and_listed(client: Sdk) -> None:
    order = await client.order()
    assert re.fullmatch(r"order_\w+", order["id"])
    told = {name: order[name] for name in ("entity", "amount", "amount_paid", "amount_due", "status", "attempts")}
    assert told == {
        "entity": "order",
        "amount": 50_000,
        "amount_paid": 0,
        "amount_due": 50_000,
        "status": "created",
        "attempts": 0,
    }
    assert order["notes"] == ORDER["notes"]
    assert await client.ask(lambda c: c.order.fetch(order["id"])) == order
    other = await client.order(receipt="rcpt_2", notes={})
    assert other["notes"] == []
    by_receipt = await client.ask(lambda c: c.order.all({"receipt": "rcpt_1"}))
    assert by_receipt == {"entity": "collection", "count": 1, "items": [order]}
    every = await client.ask(lambda c: c.order.all({"count": 1, "skip": 1}))
    assert every["items"] == [order]
    assert (await client.ask(lambda c: c.order.payments(order["id"])))["items"] == []


async def test_in_malaysia_an_order_takes_one_try(stub: StubProcessor, client: Sdk) -> None:
    ringgit, rupees = await client.order(currency="MYR"), await client.order()
    for order in (ringgit, rupees):
        assert (await pay(stub, order, outcome="failed"))["payment"]["status"] == "failed"
    assert (await pay(stub, rupees))["payment"]["status"] == "captured"
    with pytest.raises(aiohttp.ClientResponseError, match="409"):
        await pay(stub, ringgit)
    assert [entry.currency for entry in stub.ledger()] == ["INR"]


async def test_receipt_makes_one_order_only_when_unique(client: Sdk) -> None:
    plain = [await client.order() for _ in range(2)]
    assert plain[0]["id"] != plain[1]["id"]
    unique = await asyncio.gather(*(client.order(receipt="rcpt_u", unique_receipt=True) for _ in range(4)))
    assert len({order["id"] for order in unique}) == 1
    with pytest.raises(BadRequestError, match="another order"):
        await client.order(receipt="rcpt_u", unique_receipt=True, amount=60_000)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"amount": 99}, "minimum"),
        ({"amount": "500"}, "integer"),
        ({"amount": True}, "integer"),
        ({"currency": "inr"}, "Currency"),
        ({"currency": "KWD", "amount": 10_001}, "end in 0"),
        ({"receipt": "r" * 41}, "40"),
        ({"notes": "text"}, "notes"),
        ({"notes": {str(number): "x" for number in range(16)}}, "15"),
        ({"notes": {"long": "x" * 257}}, "256"),
        ({"reciept": "typo"}, "should not be sent"),
        ({"payment": {"capture": "automatic"}}, "capture_options"),
        ({"payment": {"capture": "automatic", "capture_options": {"refund_speed": "normal"}}}, "required"),
        ({"payment": {**MANUAL, "captures": 1}}, "should not be sent"),
        (
            {
                "payment": {
                    "capture": "automatic",
                    "capture_options": {"automatic_expiry_period": 11, "refund_speed": "normal"},
                }
            },
            "at least 12",
        ),
        (
            {
                "payment": {
                    "capture": "manual",
                    "capture_options": {"manual_expiry_period": 7_201, "refund_speed": "normal"},
                }
            },
            "bounds",
        ),
    ],
)
async def test_order_with_a_mistake_is_refused(client: Sdk, more: dict[str, object], said: str) -> None:
    with pytest.raises(BadRequestError, match=said):
        await client.order(**more)
    assert (await client.ask(lambda c: c.order.all()))["count"] == 0


@pytest.mark.parametrize(
    "auth",
    [("rzp_test_invalid", "x"), ("sk_test_1", "x"), ("rzp_test_first", ""), ("rzp_test_first", "other"), ("", "")],
)
async def test_key_is_checked(stub: StubProcessor, client: Sdk, auth: tuple[str, str]) -> None:
    await client.order()
    with pytest.raises(BadRequestError, match="Authentication failed"):
        await Sdk(stub.url, auth).ask(lambda c: c.order.all())


async def test_accounts_do_not_see_each_other(stub: StubProcessor, client: Sdk) -> None:
    payment_id = await paid(stub, client)
    other = Sdk(stub.url, ("rzp_test_second", SECRET))
    assert (await other.ask(lambda c: c.order.all()))["count"] == 0
    with pytest.raises(BadRequestError, match="does not exist"):
        await other.ask(lambda c: c.payment.fetch(payment_id))
    with pytest.raises(BadRequestError, match="does not exist"):
        await other.ask(lambda c: c.payment.refund(payment_id, {"amount": 100}))


async def test_both_faces_live_at_one_address(stub: StubProcessor, client: Sdk) -> None:
    payment_id = await paid(stub, client)
    refund = await client.ask(lambda c: c.payment.refund(payment_id, {"amount": 100}))
    assert (await client.ask(lambda c: c.refund.fetch(refund["id"])))["id"] == refund["id"]
    async with sdk(stub.url) as stripe_client:
        intent = await stripe_client.v1.payment_intents.create_async(payment())
        assert (await stripe_client.v1.refunds.create_async({"payment_intent": intent.id})).status == "succeeded"
        assert len((await stripe_client.v1.refunds.list_async()).data) == 1
    assert (await client.ask(lambda c: c.refund.all()))["count"] == 1
    with pytest.raises(BadRequestError, match="URL"):
        await client.ask(lambda c: c.order.edit("order_1", {"notes": {}}))


async def test_customer_pays_and_the_signature_is_genuine(stub: StubProcessor, client: Sdk) -> None:
    order = await client.order()
    back = await pay(stub, order)
    assert client.client.utility.verify_payment_signature(back["callback"])
    told = await client.ask(lambda c: c.payment.fetch(back["payment"]["id"]))
    assert (told["status"], told["captured"], told["method"], told["vpa"]) == (
        "captured",
        True,
        "upi",
        "success@razorpay",
    )
    assert await client.ask(lambda c: c.order.payments(order["id"])) == {
        "entity": "collection",
        "count": 1,
        "items": [told],
    }
    after = await client.ask(lambda c: c.order.fetch(order["id"]))
    assert (after["status"], after["amount_paid"], after["amount_due"], after["attempts"]) == ("paid", 50_000, 0, 1)
    assert charges(stub) == [("charge", 50_000)]
    assert stub.ledger()[0].metadata == {"loop_attempt_id": "att_1"}
    with pytest.raises(aiohttp.ClientResponseError, match="409"):
        await pay(stub, order)


async def test_card_is_shown_when_asked_for(stub: StubProcessor, client: Sdk) -> None:
    payment_id = await paid(stub, client, instrument="4100280000001007")
    plain = await client.ask(lambda c: c.payment.fetch(payment_id))
    expanded = await client.ask(lambda c: c.payment.fetch(payment_id, {"expand[]": "card"}))
    assert "card" not in plain
    assert expanded["card"]["last4"] == "1007"
    assert expanded["card"]["id"] == plain["card_id"]


async def test_payment_that_fails_then_is_authorized_late(stub: StubProcessor, client: Sdk) -> None:
    order = await client.order()
    created = (await pay(stub, order, outcome="created"))["payment"]
    assert created["status"] == "created"
    failed = await move(stub, created["id"], status="failed", reason="payment_timed_out")
    assert (failed["status"], failed["error_reason"]) == ("failed", "payment_timed_out")
    late = await move(stub, created["id"], status="authorized")
    assert (late["status"], late["error_reason"]) == ("authorized", None)
    with pytest.raises(aiohttp.ClientResponseError, match="409"):
        await pay(stub, order)
    await move(stub, created["id"], status="captured")
    assert charges(stub) == [("authorization", 50_000), ("capture", 50_000)]
    for status in ("failed", "authorized", "released", "created", "nonsense"):
        with pytest.raises(aiohttp.ClientResponseError, match="400"):
            await move(stub, created["id"], status=status)


async def move(stub: StubProcessor, payment_id: str, **how: object) -> dict[str, Any]:
    moved: dict[str, Any] = (await control(stub, f"razorpay/payments/{payment_id}/move", how))["payment"]
    return moved


async def test_capture_is_of_the_whole_authorized_amount(stub: StubProcessor, client: Sdk) -> None:
    order = await client.order(payment=MANUAL)
    held = (await pay(stub, order))["payment"]
    assert held["status"] == "authorized"
    with pytest.raises(BadRequestError, match="equal to the amount authorized"):
        await client.ask(lambda c: c.payment.capture(held["id"], 20_000, {"currency": "INR"}))
    with pytest.raises(BadRequestError, match="currency"):
        await client.ask(lambda c: c.payment.capture(held["id"], 50_000, {}))
    taken = await client.ask(lambda c: c.payment.capture(held["id"], 50_000, {"currency": "INR"}))
    assert (taken["status"], taken["captured"]) == ("captured", True)
    with pytest.raises(BadRequestError, match="already been captured"):
        await client.ask(lambda c: c.payment.capture(held["id"], 50_000, {"currency": "INR"}))
    failed = (await pay(stub, await client.order(), outcome="failed"))["payment"]
    with pytest.raises(BadRequestError, match="authorized"):
        await client.ask(lambda c: c.payment.capture(failed["id"], 50_000, {"currency": "INR"}))
    assert charges(stub) == [("authorization", 50_000), ("capture", 50_000)]


async def test_refunds_add_up_to_the_payment(stub: StubProcessor, client: Sdk) -> None:
    payment_id = await paid(stub, client)
    first = await client.ask(
        lambda c: c.payment.refund(payment_id, {"amount": 20_000, "notes": {"why": "late"}, "receipt": "r1"})
    )
    assert (first["status"], first["payment_id"], first["receipt"]) == ("processed", payment_id, "r1")
    with pytest.raises(BadRequestError, match="greater"):
        await client.ask(lambda c: c.payment.refund(payment_id, {"amount": 30_001}))
    second = await client.ask(lambda c: c.payment.refund(payment_id, {}))
    assert second["amount"] == 30_000
    with pytest.raises(BadRequestError, match="fully refunded"):
        await client.ask(lambda c: c.payment.refund(payment_id, {"amount": 100}))
    listed = await client.ask(lambda c: c.payment.fetch_multiple_refund(payment_id, {"count": 10}))
    assert listed["items"] == [second, first]
    told = await client.ask(lambda c: c.payment.fetch(payment_id))
    assert (told["status"], told["amount_refunded"], told["refund_status"]) == ("refunded", 50_000, "full")
    unpaid = (await pay(stub, await client.order(), outcome="failed"))["payment"]
    with pytest.raises(BadRequestError, match="captured"):
        await client.ask(lambda c: c.payment.refund(unpaid["id"], {"amount": 100}))
    assert charges(stub) == [("charge", 50_000), ("refund", 20_000), ("refund", 30_000)]


@pytest.mark.parametrize("status", ["processed", "failed"])
async def test_refund_is_settled_later(stub: StubProcessor, client: Sdk, status: str) -> None:
    payment_id = await paid(stub, client, refunds="pending")
    refund = await client.ask(lambda c: c.payment.refund(payment_id, {"amount": 50_000}))
    assert refund["status"] == "pending"
    settled = await control(stub, f"razorpay/refunds/{refund['id']}/settle", {"status": status})
    assert await client.ask(lambda c: c.refund.fetch(refund["id"])) == settled
    assert settled["status"] == status
    told = await client.ask(lambda c: c.payment.fetch(payment_id))
    assert told["amount_refunded"] == (0 if status == "failed" else 50_000)
    assert told["status"] == ("captured" if status == "failed" else "refunded")
    assert charges(stub)[2:] == ([("refund_reversal", 50_000)] if status == "failed" else [])


async def refund_under(client: Sdk, payment_id: str, key: str, amount: int = 20_000) -> dict[str, Any]:
    headers = {"X-Refund-Idempotency": key}
    return await client.ask(lambda c: c.payment.refund(payment_id, {"amount": amount}, headers=dict(headers)))


async def test_refund_key_has_one_effect(stub: StubProcessor, client: Sdk) -> None:
    payment_id = await paid(stub, client)
    first = await refund_under(client, payment_id, "key-0123456")
    assert await refund_under(client, payment_id, "key-0123456") == first
    with pytest.raises(BadRequestError, match="Different request body"):
        await refund_under(client, payment_id, "key-0123456", 10_000)
    for key in ("short", "key with space", "k" * 256):
        with pytest.raises(BadRequestError, match="10 or more"):
            await refund_under(client, payment_id, key)
    assert charges(stub) == [("charge", 50_000), ("refund", 20_000)]


async def test_refund_key_in_use_is_a_conflict(stub: StubProcessor, client: Sdk) -> None:
    payment_id = await paid(stub, client)
    stub.faults.arm(Fault(kind="slow", path="/v1/payments", delay_s=0.4))
    first = asyncio.create_task(refund_under(client, payment_id, "key-0123456"))
    await asyncio.sleep(0.15)
    with pytest.raises(BadRequestError, match="in progress"):
        await refund_under(client, payment_id, "key-0123456")
    assert (await first)["status"] == "processed"
    assert charges(stub) == [("charge", 50_000), ("refund", 20_000)]


@pytest.mark.parametrize(
    ("fault", "error", "refunds"),
    [
        (Fault(kind="drop_before", path="/v1/payments"), OSError, 0),
        (Fault(kind="drop_after", path="/v1/payments"), OSError, 1),
        (Fault(kind="cut_body", path="/v1/payments"), OSError, 1),
        (Fault(kind="status", path="/v1/payments", status=429), BadRequestError, 0),
        (Fault(kind="status", path="/v1/payments", status=409), BadRequestError, 0),
        (Fault(kind="status", path="/v1/payments", status=502), GatewayError, 0),
        (Fault(kind="status", path="/v1/payments", status=503, html=True), OSError, 0),
        (Fault(kind="status", path="/v1/payments", status=500), ServerError, 0),
    ],
    ids=lambda each: f"{each.kind}-{each.status}" if isinstance(each, Fault) else "",
)
async def test_faults_reach_this_face_too(
    stub: StubProcessor, client: Sdk, fault: Fault, error: type[Exception], refunds: int
) -> None:
    payment_id = await paid(stub, client)
    stub.faults.arm(fault)
    with pytest.raises(error):
        await refund_under(client, payment_id, "key-0123456")
    assert charges(stub).count(("refund", 20_000)) == refunds
    assert (await refund_under(client, payment_id, "key-0123456"))["status"] == "processed"
    assert charges(stub).count(("refund", 20_000)) == 1


async def test_stored_error_is_replayed_for_ever(stub: StubProcessor, client: Sdk) -> None:
    payment_id = await paid(stub, client)
    stub.faults.arm(Fault(kind="status", path="/v1/payments", status=500, stored=True, executes=True))
    for _ in range(3):
        with pytest.raises(ServerError):
            await refund_under(client, payment_id, "key-0123456")
    assert charges(stub) == [("charge", 50_000), ("refund", 20_000)]


async def test_restart_remembers(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    async with StubProcessor(ledger_path=path) as first:
        client = Sdk(first.url)
        order = await client.order(unique_receipt=True)
        payment_id = (await pay(first, order))["payment"]["id"]
        refund = await refund_under(client, payment_id, "key-0123456")
    async with StubProcessor(ledger_path=path) as second:
        client = Sdk(second.url)
        assert (await client.order(unique_receipt=True))["id"] == order["id"]
        assert await refund_under(client, payment_id, "key-0123456") == refund
        with pytest.raises(BadRequestError, match="Authentication"):
            await Sdk(second.url, (KEY_ID, "other")).ask(lambda c: c.order.all())
    assert [entry.kind for entry in read_ledger(path)] == ["charge", "refund"]


async def open_checkout(
    stub: StubProcessor, browser: aiohttp.ClientSession, form: Mapping[str, str]
) -> tuple[int, str]:
    async with browser.post(f"{stub.url}/v1/checkout/embedded", data=form) as page:
        return page.status, await page.text()


@pytest.mark.parametrize("instrument", INSTRUMENTS)
async def test_browser_pays_on_the_page(stub: StubProcessor, client: Sdk, instrument: str) -> None:
    order = await client.order()
    form = {
        "key_id": KEY_ID,
        "order_id": order["id"],
        "amount": "50000",
        "currency": "INR",
        "callback_url": 'http://shop.example/back?a=1&b="2"',
    }
    async with aiohttp.ClientSession() as browser:
        status, page = await open_checkout(stub, browser, form)
        assert status == 200
        assert f'value="{instrument}"' in page
        choice = {"instrument": instrument, "callback_url": form["callback_url"]}
        async with browser.post(f"{stub.url}/_page/razorpay/{order['id']}", data=choice) as answer:
            done = await answer.text()
    action = re.search(r'action="([^"]*)"', done)
    assert action is not None
    assert unescape(action[1]) == form["callback_url"]
    back = {name: unescape(value) for name, value in re.findall(r'name="([^"]+)" value="([^"]*)"', done)}
    reason = INSTRUMENTS[instrument]
    if reason is None:
        assert client.client.utility.verify_payment_signature(back)
        assert charges(stub) == [("charge", 50_000)]
    else:
        assert back["error[reason]"] == reason
        assert json.loads(back["error[metadata]"])["order_id"] == order["id"]
        assert charges(stub) == []


async def test_page_takes_only_the_order_as_it_is(stub: StubProcessor, client: Sdk) -> None:
    order = await client.order()
    good = {"key_id": KEY_ID, "order_id": order["id"]}
    wrong = [{"key_id": "rzp_test_other"}, {"order_id": "order_1"}, {"amount": "1"}, {"currency": "USD"}]
    async with aiohttp.ClientSession() as browser:
        assert (await open_checkout(stub, browser, good))[0] == 200
        assert [(await open_checkout(stub, browser, {**good, **each}))[0] for each in wrong] == [400] * 4
        for choice in ({"instrument": "nonsense"}, {}):
            async with browser.post(f"{stub.url}/_page/razorpay/{order['id']}", data=choice) as answer:
                assert answer.status == 400


@pytest.fixture
async def heard() -> AsyncIterator[tuple[str, list[tuple[str, Mapping[str, str]]]]]:
    """Run a merchant's server; yield its address and what it hears: bodies and headers."""
    deliveries: list[tuple[str, Mapping[str, str]]] = []

    async def take(request: web.Request) -> web.Response:
        deliveries.append((await request.text(), request.headers))
        return web.Response()

    app = web.Application()
    app.router.add_post("/hook", take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/hook", deliveries
    finally:
        await runner.cleanup()


async def test_webhooks_are_signed_as_razorpay_signs(
    stub: StubProcessor, client: Sdk, heard: tuple[str, list[tuple[str, Mapping[str, str]]]]
) -> None:
    url, deliveries = heard
    stub.webhooks.endpoints.append(Endpoint(url, "hook_secret", account_id(KEY_ID)))
    await control(stub, "webhooks/faults", {"copies": 2})
    payment_id = await paid(stub, client, refunds="pending")
    refund = await client.ask(lambda c: c.payment.refund(payment_id, {"amount": 20_000}))
    await control(stub, f"razorpay/refunds/{refund['id']}/settle", {"status": "failed"})
    dispute = await control(stub, f"razorpay/payments/{payment_id}/dispute", {"phase": "chargeback"})
    await control(stub, f"razorpay/disputes/{dispute['id']}/move", {"status": "won"})
    held = (await pay(stub, await client.order(payment=MANUAL)))["payment"]
    await move(stub, held["id"], status="released")
    await Sdk(stub.url, ("rzp_test_second", "s")).order()
    await stub.webhooks.settled()
    seen: dict[str, dict[str, Any]] = {}
    for body, headers in deliveries:
        assert client.client.utility.verify_webhook_signature(body, headers["X-Razorpay-Signature"], "hook_secret")
        event = json.loads(body)
        assert event["contains"] == list(event["payload"])
        assert seen.setdefault(headers["X-Razorpay-Event-Id"], event) == event
    assert len(deliveries) == 2 * len(seen)
    assert sorted(event["event"] for event in seen.values()) == [
        "order.paid",
        "payment.authorized",
        "payment.authorized",
        "payment.captured",
        "payment.dispute.created",
        "payment.dispute.won",
        "refund.created",
        "refund.created",
        "refund.failed",
        "refund.processed",
    ]
    automatic = next(event for event in seen.values() if event["event"] == "refund.processed")
    assert automatic["payload"]["payment"]["entity"]["captured"] is False
    assert [kind for kind, _ in charges(stub)] == [
        "charge",
        "refund",
        "refund_reversal",
        "dispute",
        "dispute_reversal",
        "authorization",
        "void",
    ]


async def dispute_of(stub: StubProcessor, payment_id: str, **changes: object) -> dict[str, Any]:
    return await control(stub, f"razorpay/payments/{payment_id}/dispute", changes)


async def fetched_dispute(client: Sdk, dispute_id: str) -> dict[str, Any]:
    return await client.ask(lambda c: c.dispute.fetch(dispute_id, {}))


async def move_dispute(stub: StubProcessor, dispute_id: str, status: str) -> dict[str, Any]:
    return await control(stub, f"razorpay/disputes/{dispute_id}/move", {"status": status})


async def test_a_dispute_is_fetched_as_it_stands(stub: StubProcessor, client: Sdk) -> None:
    payment_id = await paid(stub, client)
    dispute = await dispute_of(stub, payment_id, amount=400, reason="fraudulent_transaction")
    for status, deducted in (("open", 0), ("under_review", 0), ("open", 0), ("under_review", 0), ("lost", 400)):
        if status != dispute["status"]:
            dispute = await move_dispute(stub, dispute["id"], status)
        found = await fetched_dispute(client, dispute["id"])
        assert (found["id"], found["payment_id"], found["status"]) == (dispute["id"], payment_id, status)
        assert (found["amount"], found["currency"], found["amount_deducted"]) == (400, "INR", deducted)
        assert (found["phase"], found["reason_code"]) == ("chargeback", "fraudulent_transaction")
        assert found["respond_by"] > found["created_at"]
    listed = await client.ask(lambda c: c.dispute.all({"count": 1}))
    assert [each["id"] for each in listed["items"]] == [dispute["id"]]
    assert charges(stub)[1:] == [("dispute", 400)]


async def test_a_bank_that_only_asks_takes_nothing(stub: StubProcessor, client: Sdk) -> None:
    payment_id = await paid(stub, client)
    for phase, end in (("fraud", "closed"), ("retrieval", "lost"), ("retrieval", "won")):
        dispute = await dispute_of(stub, payment_id, phase=phase)
        assert (await move_dispute(stub, dispute["id"], end))["amount_deducted"] == 0
    assert [kind for kind, _ in charges(stub)] == ["charge"]
    again = await dispute_of(stub, payment_id, phase="chargeback")
    await move_dispute(stub, again["id"], "won")
    await dispute_of(stub, payment_id, phase="pre_arbitration")
    assert [kind for kind, _ in charges(stub)] == ["charge", "dispute", "dispute_reversal", "dispute"]


async def test_a_dispute_that_cannot_be_is_refused(stub: StubProcessor, client: Sdk) -> None:
    held = (await pay(stub, await client.order(payment=MANUAL)))["payment"]
    payment_id = await paid(stub, client)
    open_one = await dispute_of(stub, payment_id)
    refused: list[Awaitable[dict[str, Any]]] = [
        dispute_of(stub, held["id"]),
        dispute_of(stub, payment_id),
        dispute_of(stub, payment_id, phase="nonsense"),
        move_dispute(stub, open_one["id"], "closed"),
        move_dispute(stub, open_one["id"], "open"),
        move_dispute(stub, open_one["id"], "nonsense"),
    ]
    for each in refused:
        with pytest.raises(aiohttp.ClientResponseError, match="400"):
            await each
    with pytest.raises(aiohttp.ClientResponseError, match="404"):
        await move_dispute(stub, "disp_of_nobody", "won")
    stranger = Sdk(stub.url, ("rzp_test_second", "s"))
    for asks, dispute_id in ((client, "disp_of_nobody"), (stranger, open_one["id"])):
        with pytest.raises(BadRequestError, match="does not exist"):
            await fetched_dispute(asks, dispute_id)
    assert (await move_dispute(stub, open_one["id"], "lost"))["status"] == "lost"
    with pytest.raises(aiohttp.ClientResponseError, match="400"):
        await move_dispute(stub, open_one["id"], "won")
