"""The stand-in's lists of what moved, as the official SDKs read them, and books that are wrong on demand."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import razorpay
import stripe
from razorpay.errors import BadRequestError

from loop.testing.stub_psp import StubProcessor
from tests.builders import Clock
from tests.contract.stub_clients import charges, control, payment, sdk

LIVE = ("rzp_live_first", "first_secret")
ORDER = {"amount": 50_000, "currency": "INR"}


@pytest.fixture
def clock() -> Clock:
    return Clock(datetime(2026, 3, 1, 12, tzinfo=UTC))


@pytest.fixture
async def stub(tmp_path: Path, clock: Clock) -> AsyncIterator[StubProcessor]:
    async with StubProcessor(
        ledger_path=tmp_path / "ledger.jsonl", clock_ns=lambda: int(clock.now().timestamp() * 1e9)
    ) as running:
        yield running


@pytest.fixture
async def client(stub: StubProcessor) -> AsyncIterator[stripe.StripeClient]:
    async with sdk(stub.url) as made:
        yield made


class Razorpay:
    """Razorpay's client at the stub."""

    def __init__(self, stub: StubProcessor, auth: tuple[str, str] = LIVE) -> None:
        self._stub = stub
        self._client = razorpay.Client(auth=auth, base_url=stub.url)

    async def paid(self, **how: object) -> tuple[str, str]:
        """Return the ids of an order and of the payment that paid it."""
        order = await asyncio.to_thread(self._client.order.create, dict(ORDER))
        paid = await control(self._stub, f"razorpay/orders/{order['id']}/pay", how)
        return order["id"], paid["payment"]["id"]

    async def refund(self, payment_id: str, amount: int) -> str:
        made = await asyncio.to_thread(self._client.payment.refund, payment_id, {"amount": amount})
        return str(made["id"])

    async def report(self, **wanted: int) -> list[dict[str, Any]]:
        report = await asyncio.to_thread(self._client.settlement.report, {"year": 2026, "month": 3, **wanted})
        rows: list[dict[str, Any]] = report["items"]
        return rows


async def balance(client: stripe.StripeClient) -> list[tuple[str, int, str]]:
    rows = (await client.v1.balance_transactions.list_async()).data
    return [(row.type, row.amount, row.currency) for row in rows]


async def test_a_balance_transaction_shows_what_it_is_of(client: stripe.StripeClient) -> None:
    intent = await client.v1.payment_intents.create_async(payment())
    refund = await client.v1.refunds.create_async({"payment_intent": intent.id, "amount": 400})
    await client.v1.payment_intents.create_async(payment("pm_card_createDispute"))
    rows = (await client.v1.balance_transactions.list_async({"expand": ["data.source"]})).data
    assert [type(row.source) for row in rows] == [stripe.Dispute, stripe.Charge, stripe.Refund, stripe.Charge]
    of_refund, of_charge = rows[2].source, rows[3].source
    assert isinstance(of_refund, stripe.Refund)
    assert isinstance(of_charge, stripe.Charge)
    assert (of_refund.id, of_charge.payment_intent, of_charge.amount_captured) == (refund.id, intent.id, 1_000)


async def test_a_hold_is_no_balance_transaction(client: stripe.StripeClient) -> None:
    held = await client.v1.payment_intents.create_async(payment(capture_method="manual"))
    assert await balance(client) == []
    await client.v1.payment_intents.capture_async(held.id, {"amount_to_capture": 600})
    assert await balance(client) == [("charge", 600, "usd")]


async def test_balance_transactions_come_by_time_and_in_pages(client: stripe.StripeClient, clock: Clock) -> None:
    for _ in range(3):
        await client.v1.payment_intents.create_async(payment())
        clock.forward(hours=1)
    noon = int(datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp())
    transactions = client.v1.balance_transactions
    page = await transactions.list_async({"created": {"gte": noon, "lt": noon + 7_200}, "limit": 1})
    assert (len(page.data), page.has_more) == (1, True)
    rest = await transactions.list_async(
        {"created": {"gte": noon, "lt": noon + 7_200}, "limit": 1, "starting_after": page.data[0].id}
    )
    assert ([row.created for row in rest.data], rest.has_more) == ([noon], False)
    with pytest.raises(stripe.InvalidRequestError, match="unknown parameter"):
        await transactions.list_async({"day": "2026-03-01"})  # type: ignore[arg-type] # what the SDK too refuses
    with pytest.raises(stripe.InvalidRequestError, match="expanded"):
        await transactions.list_async({"expand": ["data.currency"]})


async def test_the_settlement_report_is_by_the_day_of_settlement(stub: StubProcessor, clock: Clock) -> None:
    client = Razorpay(stub)
    order_id, payment_id = await client.paid()
    refund_id = await client.refund(payment_id, 20_000)
    await client.paid(outcome="failed")
    clock.forward(days=1)
    assert await client.report() == []
    clock.forward(days=2)
    assert await client.report(day=1) == []
    rows = {row["entity_id"]: row for row in await client.report(day=3)}
    assert {name: (row["type"], row["credit"], row["debit"], row["fee"]) for name, row in rows.items()} == {
        payment_id: ("payment", 48_820, 0, 1_180),
        refund_id: ("refund", 0, 20_000, 0),
    }
    assert {row["order_id"] for row in rows.values()} == {order_id}
    moved, settled = rows[payment_id]["created_at"], rows[payment_id]["settled_at"]
    assert settled - moved == timedelta(days=2).total_seconds()
    assert await client.report() == await client.report(day=3)


async def test_the_settlement_report_s_days_are_india_s(stub: StubProcessor, clock: Clock) -> None:
    client = Razorpay(stub)
    clock.forward(hours=8)  # 20:00, which is 01:30 of the next day in India
    await client.paid()
    clock.forward(days=3)
    assert (len(await client.report(day=3)), len(await client.report(day=4))) == (0, 1)


async def test_what_was_never_settled_is_not_reported(stub: StubProcessor, clock: Clock) -> None:
    client, of_test_key = Razorpay(stub), Razorpay(stub, ("rzp_test_first", "first_secret"))
    await of_test_key.paid()
    _, released = await client.paid(outcome="authorized")
    await control(stub, f"razorpay/payments/{released}/move", {"status": "released"})
    _, payment_id = await client.paid()
    refund_id = await client.refund(payment_id, 20_000)
    await control(stub, f"razorpay/refunds/{refund_id}/settle", {"status": "failed"})
    clock.forward(days=3)
    assert await of_test_key.report() == []
    assert [row["entity_id"] for row in await client.report()] == [payment_id]


async def test_the_settlement_report_is_strict(stub: StubProcessor) -> None:
    client = Razorpay(stub)
    await client.paid()
    for wrong in ({"month": 13}, {"day": 32}, {"count": 101}, {"from": 1}):
        with pytest.raises(BadRequestError):
            await client.report(**wrong)


async def test_stripe_s_books_can_be_wrong(stub: StubProcessor, client: stripe.StripeClient) -> None:
    first, second = [await client.v1.payment_intents.create_async(payment()) for _ in range(2)]
    await control(stub, f"books/{first.id}", {"amount": 900, "currency": "eur"})
    made = await control(stub, f"books/{second.id}", {"is_gone": True, "extra": 555})
    assert await balance(client) == [("charge", 555, "usd"), ("charge", 900, "eur")]
    stranger = await client.v1.payment_intents.retrieve_async(made["made"])
    assert stranger.metadata is not None
    assert stranger.metadata.to_dict() == {}
    assert charges(stub)[:2] == [("charge", 1_000), ("charge", 1_000)]
    with pytest.raises(aiohttp.ClientResponseError):
        await control(stub, "books/pi_of_nobody", {"is_gone": True})


async def test_razorpay_s_books_can_be_wrong(stub: StubProcessor, clock: Clock) -> None:
    client = Razorpay(stub)
    (first, changed), (second, _) = await client.paid(), await client.paid()
    await control(stub, f"books/{first}", {"amount": 40_000})
    made = await control(stub, f"books/{second}", {"is_gone": True, "extra": 700})
    clock.forward(days=3)
    rows = await client.report()
    assert sorted((row["order_id"], row["amount"]) for row in rows) == sorted([(first, 40_000), (made["made"], 700)])
    assert changed in {row["entity_id"] for row in rows}
