"""An INR order from end to end: routed to Razorpay, paid in its own Checkout, refunded, told apart from a forgery."""

import re
from collections.abc import AsyncIterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from loop.testing.stub_psp import StubProcessor
from tests.api.client import Shop

KEY_ID = "rzp_test_loop"
CREDENTIALS = {"keyId": KEY_ID, "keySecret": "a-key-secret", "webhookSecret": "a-webhook-secret"}


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[StubProcessor]:
    async with StubProcessor(ledger_path=tmp_path / "ledger") as running_stub:
        yield running_stub


@pytest.fixture
def flags(stub: StubProcessor) -> dict[str, object]:
    return {"razorpay_api_base": stub.url}


async def prepared(shop: Shop, **fields: object) -> tuple[str, dict[str, Any]]:
    """Connect Razorpay and start a payment; return the order's id and what the customer's browser is given."""
    answer = await shop.call(
        "POST", "/api/processors/razorpay", {"credentials": CREDENTIALS}, auth={"Authorization": f"Bearer {shop.token}"}
    )
    assert answer.status == 200, answer.text
    order = await shop.order(**{"amount": 50_000, "currency": "INR", **fields})
    paid = (await shop.post(f"/v1/orders/{order['id']}/pay", {})).body
    assert (paid["status"], paid["processor"]) == ("requires_action", "razorpay")
    return order["id"], paid["processorData"]


async def check_out(shop: Shop, stub: StubProcessor, data: dict[str, Any], instrument: str) -> dict[str, str]:
    """Pay in Razorpay's Checkout; return the form that it sends the customer back with."""
    choice = {"instrument": instrument, "callback_url": data["callbackUrl"]}
    async with shop.session.post(f"{stub.url}/_page/razorpay/{data['orderId']}", data=choice) as page:
        text = await page.text()
    return {name: unescape(value) for name, value in re.findall(r'name="([^"]+)" value="([^"]*)"', text)}


async def come_back(shop: Shop, data: dict[str, Any], form: dict[str, str]) -> int:
    async with shop.session.post(data["callbackUrl"], data=form, allow_redirects=False) as answer:
        return answer.status


async def status_of(shop: Shop, order_id: str) -> str:
    return str((await shop.get(f"/v1/orders/{order_id}")).body["status"])


async def test_an_inr_order_is_paid_in_checkout_and_refunded(bare_shop: Shop, stub: StubProcessor) -> None:
    order_id, data = await prepared(bare_shop, returnUrl="https://shop.example/thanks")
    form = await check_out(bare_shop, stub, data, "success@razorpay")
    assert await come_back(bare_shop, data, form) == 303
    assert await status_of(bare_shop, order_id) == "captured"
    assert await come_back(bare_shop, data, form) == 303  # the customer reloads
    refund = (await bare_shop.post(f"/v1/orders/{order_id}/refund", {"amount": 20_000})).body
    assert refund["status"] == "success"
    assert await status_of(bare_shop, order_id) == "partially_refunded"
    moved = [(entry.kind, entry.amount_minor, entry.currency) for entry in stub.ledger()]
    assert moved == [("charge", 50_000, "INR"), ("refund", 20_000, "INR")]


async def test_a_forged_return_changes_nothing(bare_shop: Shop, stub: StubProcessor) -> None:
    order_id, data = await prepared(bare_shop)
    forged = {
        "razorpay_payment_id": "pay_forged",
        "razorpay_order_id": data["orderId"],
        "razorpay_signature": "0" * 64,
    }
    await come_back(bare_shop, data, forged)
    assert await status_of(bare_shop, order_id) == "requires_action"
    assert stub.ledger() == []


async def test_in_malaysia_the_customer_s_second_try_is_another_attempt_with_its_own_order(
    bare_shop: Shop, stub: StubProcessor
) -> None:
    order_id, data = await prepared(bare_shop, currency="MYR")
    assert data["retry"] == {"enabled": False}
    await come_back(bare_shop, data, await check_out(bare_shop, stub, data, "failure@razorpay"))
    failed = (await bare_shop.get(f"/v1/orders/{order_id}")).body
    assert (failed["status"], failed["attemptCount"]) == ("failed", 1)
    assert await check_out(bare_shop, stub, data, "success@razorpay") == {}  # the first order takes no second try

    again = await bare_shop.post(f"/v1/orders/{order_id}/pay", {"retry": True})
    assert (again.body["status"], again.body["attempt"]) == ("requires_action", 2)
    second = again.body["processorData"]
    assert second["orderId"] != data["orderId"]
    await come_back(bare_shop, second, await check_out(bare_shop, stub, second, "success@razorpay"))
    assert await status_of(bare_shop, order_id) == "captured"
    assert [(entry.kind, entry.intent) for entry in stub.ledger()] == [("charge", second["orderId"])]


async def test_in_malaysia_a_failed_try_that_nobody_has_told_of_can_be_cancelled(
    bare_shop: Shop, stub: StubProcessor
) -> None:
    order_id, data = await prepared(bare_shop, currency="MYR")
    await check_out(bare_shop, stub, data, "failure@razorpay")
    answer = await bare_shop.post(f"/v1/orders/{order_id}/cancel", {})
    assert (answer.status, answer.body["status"]) == (200, "cancelled")


async def test_in_india_the_customer_tries_again_on_the_same_order(bare_shop: Shop, stub: StubProcessor) -> None:
    order_id, data = await prepared(bare_shop)
    await come_back(bare_shop, data, await check_out(bare_shop, stub, data, "failure@razorpay"))
    assert await status_of(bare_shop, order_id) == "requires_action"
    await come_back(bare_shop, data, await check_out(bare_shop, stub, data, "success@razorpay"))
    now = (await bare_shop.get(f"/v1/orders/{order_id}")).body
    assert (now["status"], now["attemptCount"]) == ("captured", 1)


async def test_a_hold_cannot_be_released_and_the_merchant_is_told(bare_shop: Shop, stub: StubProcessor) -> None:
    order_id, data = await prepared(bare_shop, captureMethod="manual")
    await come_back(bare_shop, data, await check_out(bare_shop, stub, data, "success@razorpay"))
    assert await status_of(bare_shop, order_id) == "authorized"
    answer = await bare_shop.post(f"/v1/orders/{order_id}/cancel", {})
    assert (answer.status, answer.code) == (400, "unsupported_by_processor")
    captured = await bare_shop.post(f"/v1/orders/{order_id}/capture", {})
    assert captured.body["status"] == "captured"
