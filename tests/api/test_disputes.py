"""Disputes over HTTP: by the processors' own webhooks onto the order, and told to the merchant."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from loop.processors.sandbox import SIGNATURE_HEADER
from loop.testing.stub_psp import Endpoint, StubProcessor
from tests.api.client import Shop
from tests.contract.stub_clients import control

SECRET = "whsec_of_the_account"
SEEN_WITHIN_S = 10.0
"""Longest wait for a webhook of the processor's to be worked on."""

FIELDS = {
    "disputeId", "orderId", "status", "amount", "currency", "reason", "dueBy", "processor", "processorDisputeId",
    "createdAt", "updatedAt",
}  # fmt: skip


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[StubProcessor]:
    async with StubProcessor(ledger_path=tmp_path / "ledger") as running:
        yield running


@pytest.fixture
def flags(stub: StubProcessor) -> dict[str, object]:
    return {"stripe_api_base": stub.url, "razorpay_api_base": stub.url}


async def connect(shop: Shop, stub: StubProcessor, processor: str, **credentials: str) -> None:
    """Set up a merchant's account at a processor, and let the stub send it webhooks."""
    given = {"credentials": {**credentials, "webhookSecret": SECRET}}
    bearer = {"Authorization": f"Bearer {shop.token}"}
    answer = await shop.call("POST", f"/api/processors/{processor}", given, auth=bearer)
    assert answer.status == 200, answer.text
    stub.webhooks.endpoints.append(Endpoint(f"{shop.url}/webhooks/{processor}/{answer.body['id']}", SECRET))


async def until(shop: Shop, order_id: str, **wanted: object) -> dict[str, Any]:
    """Wait until an order has these fields; return it."""
    async with asyncio.timeout(SEEN_WITHIN_S):
        while True:
            order: dict[str, Any] = (await shop.get(f"/v1/orders/{order_id}")).body
            if all(order[name] == value for name, value in wanted.items()):
                return order
            await asyncio.sleep(0.05)


async def the_dispute(shop: Shop, order_id: str, status: str) -> dict[str, Any]:
    """Wait until an order's only dispute has this status; return it."""
    async with asyncio.timeout(SEEN_WITHIN_S):
        while True:
            rows: list[dict[str, Any]] = (await shop.get(f"/v1/orders/{order_id}/disputes")).body
            if [row["status"] for row in rows] == [status]:
                return rows[0]
            await asyncio.sleep(0.05)


async def told(shop: Shop, order_id: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Return what the merchant was told of an order's disputes, oldest first: the event's name and its payload."""
    events = (await shop.get("/v1/events?limit=100")).body["data"]
    mine = [event for event in events if event["orderId"] == order_id and event["eventType"].startswith("dispute.")]
    return [(event["eventType"], event["payload"]) for event in sorted(mine, key=lambda event: str(event["id"]))]


async def test_a_stripe_payment_is_disputed_and_lost(bare_shop: Shop, stub: StubProcessor) -> None:
    await connect(bare_shop, stub, "stripe", secretKey="sk_test_loop")
    order = await bare_shop.paid_order("pm_card_createDispute")
    path = f"/v1/orders/{order['id']}"
    disputed = await until(bare_shop, order["id"], amountDisputed=4999)
    assert (disputed["disputed"], disputed["status"], disputed["needsReview"]) == (True, "captured", False)
    refused = await bare_shop.post(f"{path}/refund", {"amount": 1})
    assert (refused.status, refused.code) == (400, "refund_exceeds_captured")
    row = await the_dispute(bare_shop, order["id"], "opened")
    assert set(row) == FIELDS
    assert (row["amount"], row["currency"], row["reason"]) == (4999, "USD", "fraudulent")
    assert row["dueBy"] > row["createdAt"]
    await control(stub, f"disputes/{row['processorDisputeId']}/move", {"status": "lost"})
    assert (await the_dispute(bare_shop, order["id"], "lost"))["disputeId"] == row["disputeId"]
    await stub.webhooks.settled()
    events = await told(bare_shop, order["id"])
    assert [(name, payload["disputeStatus"]) for name, payload in events] == [
        ("dispute.opened", "opened"),
        ("dispute.lost", "lost"),
    ]
    assert {payload["disputeId"] for _, payload in events} == {row["disputeId"]}
    assert {(payload["amount"], payload["reason"], payload["dueBy"]) for _, payload in events} == {
        (4999, "fraudulent", row["dueBy"])
    }
    timeline = (await bare_shop.get(f"{path}/timeline")).body
    assert [entry["title"] for entry in timeline if entry["kind"] == "dispute"] == ["dispute lost"]


async def test_a_stripe_inquiry_takes_nothing(bare_shop: Shop, stub: StubProcessor) -> None:
    await connect(bare_shop, stub, "stripe", secretKey="sk_test_loop")
    order = await bare_shop.paid_order("pm_card_createDisputeInquiry")
    path = f"/v1/orders/{order['id']}"
    await the_dispute(bare_shop, order["id"], "inquiry")
    read = (await bare_shop.get(path)).body
    assert (read["amountDisputed"], read["disputed"]) == (0, False)
    assert (await bare_shop.post(f"{path}/refund", {})).body["status"] == "success"


async def test_a_razorpay_payment_is_disputed_and_won(bare_shop: Shop, stub: StubProcessor) -> None:
    await connect(bare_shop, stub, "razorpay", keyId="rzp_test_loop", keySecret="a-key-secret")
    await control(stub, "webhooks/faults", {"copies": 3})
    order = await bare_shop.order(amount=50_000, currency="INR")
    prepared = (await bare_shop.post(f"/v1/orders/{order['id']}/pay", {})).body
    paid = await control(stub, f"razorpay/orders/{prepared['processorData']['orderId']}/pay", {})
    await until(bare_shop, order["id"], status="captured")
    about = {"phase": "chargeback", "amount": 20_000}
    dispute = await control(stub, f"razorpay/payments/{paid['payment']['id']}/dispute", about)
    await until(bare_shop, order["id"], amountDisputed=20_000, disputed=True)
    for status in ("under_review", "won"):
        await control(stub, f"razorpay/disputes/{dispute['id']}/move", {"status": status})
    await until(bare_shop, order["id"], amountDisputed=0, disputed=False, status="captured")
    await stub.webhooks.settled()
    assert [name for name, _ in await told(bare_shop, order["id"])] == ["dispute.opened", "dispute.won"]
    (row,) = (await bare_shop.get(f"/v1/orders/{order['id']}/disputes")).body
    assert (row["status"], row["processor"], row["processorDisputeId"]) == ("won", "razorpay", dispute["id"])
    refund = await bare_shop.post(f"/v1/orders/{order['id']}/refund", {})
    assert (refund.status, refund.body["amount"]) == (201, 50_000)


async def test_a_sandbox_payment_is_disputed_as_the_guide_says(shop: Shop) -> None:
    config_id = await shop.use_sandbox(SECRET)
    order = await shop.paid_order("tok_dispute_lost")
    payment = order["processorOrderId"]
    dispute = f"sbxd_{payment[len('sbx_') :][:26]}"
    for number, status in enumerate(("opened", "lost")):
        raw = json.dumps({"id": f"evt_{number}", "type": "x", "payment": payment, "dispute": dispute}).encode()
        signed = {SIGNATURE_HEADER: hmac.new(SECRET.encode(), raw, hashlib.sha256).hexdigest()}
        answer = await shop.post(f"/webhooks/sandbox/{config_id}", raw=raw, headers=signed, auth={})
        assert answer.status == 200
        await the_dispute(shop, order["id"], status)
    assert (await until(shop, order["id"], amountDisputed=4999))["disputed"]


async def test_an_order_without_disputes_and_one_of_another_merchant(shop: Shop, bare_shop: Shop) -> None:
    order = await shop.paid_order()
    assert (order["amountDisputed"], order["disputed"]) == (0, False)
    assert (await shop.get(f"/v1/orders/{order['id']}/disputes")).body == []
    for caller, order_id in ((bare_shop, order["id"]), (shop, "ord_nothing"), (shop, "%00")):
        answer = await caller.get(f"/v1/orders/{order_id}/disputes")
        assert (answer.status, answer.code) == (404, "not_found")
    assert (await shop.get(f"/v1/orders/{order['id']}/disputes", auth={})).status == 401
