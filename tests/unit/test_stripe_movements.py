"""Stripe's balance transactions through its real SDK: what is a movement, of what, and how much of it moved."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from loop.domain.attempts import Unknown
from loop.domain.money import Money
from loop.domain.movements import Movement, MovementKind
from loop.processors import stripe_movements
from loop.processors.base import (
    Account,
    AuthorizeRequest,
    IdempotencyKey,
    ListsMovements,
    MovementPage,
    MovementQuery,
    PaymentReference,
    ProcessorSetup,
    RefundRequest,
)
from loop.processors.stripe import StripeProcessor
from loop.telemetry import open_transaction
from loop.testing.stub_faults import Fault
from loop.testing.stub_psp import StubProcessor
from tests.contract.stub_clients import control

ACCOUNT = Account("pcf_1", "mer_1", is_test_mode=True, credentials={"secretKey": "sk_test_canary"})
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
AN_HOUR = timedelta(hours=1)
QUERY = MovementQuery(NOON - AN_HOUR, NOON + AN_HOUR, NOON + AN_HOUR)
LIST = "/v1/balance_transactions"
PRICE = Money(5_000, "USD")


class Hands:
    """A clock that tests set."""

    at = NOON

    def nanoseconds(self) -> int:
        return int(self.at.timestamp()) * 10**9


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
async def stub(tmp_path: Path, hands: Hands) -> AsyncIterator[StubProcessor]:
    async with StubProcessor(ledger_path=tmp_path / "stripe.ledger", clock_ns=hands.nanoseconds) as running:
        yield running


@asynccontextmanager
async def stripe_at(api_base: str) -> AsyncIterator[StripeProcessor]:
    made = StripeProcessor(ProcessorSetup(api_base, 5.0, "http://loop.example", b"s"))
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
async def processor(stub: StubProcessor) -> AsyncIterator[StripeProcessor]:
    async with stripe_at(stub.url) as made:
        yield made


async def pay(
    processor: StripeProcessor, name: str = "1", *, amount: Money = PRICE, is_held: bool = False
) -> PaymentReference:
    request = AuthorizeRequest(
        f"ord_{name}", f"att_{name}", amount, is_held, "card", "pm_card_visa", None, None, "http://shop.example", NOON
    )
    outcome = await processor.authorize(ACCOUNT, request, key=IdempotencyKey(f"lpi_{name}"))
    return PaymentReference(getattr(outcome, "reference", None), request)


async def refund(processor: StripeProcessor, payment: PaymentReference, amount: Money) -> str:
    request = RefundRequest("ref_1", payment, amount, None)
    return str((await processor.refund(ACCOUNT, request, key=IdempotencyKey("lpi_refund"))).reference)


async def listed(processor: StripeProcessor, query: MovementQuery = QUERY) -> list[Movement]:
    """Return all pages, oldest first."""
    found: list[Movement] = []
    for _ in range(20):
        page = await processor.movements(ACCOUNT, query)
        assert isinstance(page, MovementPage), page
        found += page.movements
        if page.next_cursor is None:
            return found[::-1]
        query = replace(query, cursor=page.next_cursor)
    raise AssertionError("the pages do not end")


async def test_a_charge_and_its_refund_are_listed_as_loop_knows_them(processor: StripeProcessor) -> None:
    assert isinstance(processor, ListsMovements)
    assert processor.listed_within(ACCOUNT) == AN_HOUR
    payment = await pay(processor)
    refund_id = await refund(processor, payment, Money(2_000, "USD"))
    charge, back = await listed(processor)
    assert charge.reference.startswith("ch_")
    assert charge == Movement(
        MovementKind.CHARGE, charge.reference, Money(5_000, "USD"), NOON, payment_reference=payment.reference,
        attempt_id="att_1", fee=Money(175, "USD"),
    )  # fmt: skip
    assert back == Movement(
        MovementKind.REFUND, refund_id, Money(2_000, "USD"), NOON, payment_reference=payment.reference,
        attempt_id="att_1", refund_id="ref_1", fee=Money(0, "USD"),
    )  # fmt: skip


async def test_a_hold_is_no_movement_and_its_capture_is_what_was_captured(processor: StripeProcessor) -> None:
    held = await pay(processor, is_held=True)
    assert await listed(processor) == []
    await processor.capture(ACCOUNT, held, amount=Money(3_000, "USD"), key=IdempotencyKey("lpi_capture"))
    [movement] = await listed(processor)
    assert (movement.kind, movement.amount) == (MovementKind.CHARGE, Money(3_000, "USD"))


async def test_a_refund_that_failed_later_is_listed_both_ways(processor: StripeProcessor, stub: StubProcessor) -> None:
    refund_id = await refund(processor, await pay(processor), Money(2_000, "USD"))
    await control(stub, f"refunds/{refund_id}/settle", {"status": "failed"})
    _, out, back = await listed(processor)
    assert (out.kind, back.kind) == (MovementKind.REFUND, MovementKind.REFUND_REVERSAL)
    assert (out.reference, back.reference, back.amount) == (refund_id, refund_id, Money(2_000, "USD"))


async def test_disputes_and_strangers_charges(processor: StripeProcessor, stub: StubProcessor) -> None:
    payment = await pay(processor)
    made = (await control(stub, f"books/{payment.reference}", {"extra": 700}))["made"]
    await control(stub, "disputes", {"payment_intent": payment.reference})
    ours, stranger = await listed(processor)  # a dispute is none
    assert (ours.attempt_id, stranger.attempt_id, stranger.payment_reference) == ("att_1", None, made)
    assert stranger.amount == Money(700, "USD")


async def test_an_account_that_is_settled_in_another_currency(processor: StripeProcessor, stub: StubProcessor) -> None:
    payment = await pay(processor, amount=Money(5_000, "EUR"))
    await control(stub, f"books/{payment.reference}", {"amount": 5_412, "currency": "usd"})
    [movement] = await listed(processor)
    assert (movement.amount, movement.fee) == (Money(5_000, "EUR"), Money(175, "USD"))


async def test_an_amount_that_stripe_changed_is_listed_as_changed(
    processor: StripeProcessor, stub: StubProcessor
) -> None:
    payment = await pay(processor)
    await control(stub, f"books/{payment.reference}", {"amount": 4_900})
    assert [movement.amount for movement in await listed(processor)] == [Money(4_900, "USD")]


async def test_stripe_s_own_minor_units_become_loop_s(processor: StripeProcessor) -> None:
    await pay(processor, amount=Money(500, "ISK"))
    assert [movement.amount for movement in await listed(processor)] == [Money(500, "ISK")]


async def test_the_time_asked_for_ends_before_its_end(processor: StripeProcessor, hands: Hands) -> None:
    for number, at in enumerate((NOON, NOON + timedelta(seconds=1), NOON + AN_HOUR)):
        hands.at = at
        await pay(processor, str(number))
    found = await listed(processor, MovementQuery(NOON + timedelta(seconds=1), NOON + AN_HOUR, NOON + AN_HOUR))
    assert [movement.attempt_id for movement in found] == ["att_1"]


async def test_every_page_is_read_once(processor: StripeProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        await pay(processor, str(number))
    monkeypatch.setattr(stripe_movements, "PAGE_SIZE", 2)
    assert [movement.attempt_id for movement in await listed(processor)] == [f"att_{number}" for number in range(5)]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="drop_before", path=LIST, times=2),  # a read is tried again on a connection of its own
        Fault(kind="cut_body", path=LIST),
        Fault(kind="status", path=LIST, status=500),
        Fault(kind="status", path=LIST, status=429),
        Fault(kind="status", path=LIST, status=502, html=True),
    ],
    ids=lambda fault: f"{fault.kind} {fault.status}",
)
async def test_no_answer_is_no_list(processor: StripeProcessor, stub: StubProcessor, fault: Fault) -> None:
    await pay(processor)
    stub.faults.arm(fault)
    assert isinstance(await processor.movements(ACCOUNT, QUERY), Unknown)


async def test_a_key_that_stripe_does_not_know_is_no_list(processor: StripeProcessor) -> None:
    for key in ("sk_test_invalid", "", "not a key"):
        answer = await processor.movements(replace(ACCOUNT, credentials={"secretKey": key}), QUERY)
        assert isinstance(answer, Unknown)
        assert not key or key not in answer.reason


async def test_a_list_is_never_read_inside_a_transaction(processor: StripeProcessor) -> None:
    with open_transaction(), pytest.raises(RuntimeError, match="transaction"):
        await processor.movements(ACCOUNT, QUERY)


ROW: dict[str, Any] = {
    "id": "txn_1", "object": "balance_transaction", "amount": 1_000, "created": int(NOON.timestamp()),
    "currency": "usd", "fee": 0, "fee_details": [], "net": 1_000, "type": "charge",
}  # fmt: skip


@asynccontextmanager
async def answering(*rows: dict[str, Any]) -> AsyncIterator[StripeProcessor]:
    """Yield Stripe's adapter at a server that answers every request with these rows."""

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": rows, "has_more": False, "url": LIST})

    app = web.Application()
    app.router.add_get(LIST, answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with stripe_at(f"http://127.0.0.1:{runner.addresses[0][1]}") as made:
            yield made
    finally:
        await runner.cleanup()


CHARGE: dict[str, Any] = {
    "id": "py_1", "object": "charge", "amount": 1_000, "amount_captured": 1_000, "currency": "usd",
    "metadata": {}, "payment_intent": "pi_1",
}  # fmt: skip
REFUND: dict[str, Any] = {
    "id": "pyr_1", "object": "refund", "amount": 1_000, "currency": "usd", "metadata": None, "payment_intent": "pi_1",
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "amount", "source", "expected"),
    [
        ("payment", 1_000, CHARGE, MovementKind.CHARGE),
        ("payment_refund", -1_000, REFUND, MovementKind.REFUND),
        ("payment_failure_refund", -1_000, REFUND, MovementKind.CHARGE_REVERSAL),
        ("payment_reversal", -1_000, CHARGE, MovementKind.CHARGE_REVERSAL),
    ],
)
async def test_money_of_other_methods_than_cards(
    kind: str, amount: int, source: dict[str, Any], expected: MovementKind
) -> None:
    async with answering(ROW | {"type": kind, "amount": amount, "source": source}) as processor:
        [movement] = await listed(processor)
    assert (movement.kind, movement.amount, movement.payment_reference) == (expected, Money(1_000, "USD"), "pi_1")


@pytest.mark.parametrize("kind", ["payout", "stripe_fee", "adjustment", "transfer", "something_new"])
async def test_what_is_neither_charge_nor_refund_is_left_out(kind: str) -> None:
    async with answering(ROW | {"type": kind, "source": "po_1"}, ROW | {"type": kind, "source": None}) as processor:
        assert await listed(processor) == []


@pytest.mark.parametrize("source", [None, "ch_1", {"id": "po_1", "object": "payout"}])
async def test_a_charge_that_says_not_what_it_is_of_makes_no_list(source: object) -> None:
    async with answering(ROW | {"source": source}) as processor:
        assert isinstance(await processor.movements(ACCOUNT, QUERY), Unknown)


async def test_a_charge_without_an_intent_is_a_stranger_s() -> None:
    async with answering(ROW | {"source": CHARGE | {"payment_intent": None}}) as processor:
        [movement] = await listed(processor)
    assert (movement.reference, movement.payment_reference, movement.attempt_id) == ("py_1", None, None)
