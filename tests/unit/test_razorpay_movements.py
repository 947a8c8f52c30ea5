"""Razorpay's settlement report through its real SDK: its days, its pages, its rows, and when there is none."""

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
from loop.processors import razorpay_movements
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
from loop.processors.razorpay import RazorpayProcessor
from loop.telemetry import open_transaction
from loop.testing.stub_faults import Fault
from loop.testing.stub_psp import StubProcessor
from tests.contract.stub_clients import control

CREDENTIALS = {"keyId": "rzp_live_1", "keySecret": "secret_canary"}
ACCOUNT = Account("pcf_1", "mer_1", is_test_mode=False, credentials=CREDENTIALS)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
AN_HOUR = timedelta(hours=1)
A_DAY = timedelta(days=1)
PRICE = Money(50_000, "INR")
REPORT = "/v1/settlements/recon/combined"


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
    async with StubProcessor(ledger_path=tmp_path / "razorpay.ledger", clock_ns=hands.nanoseconds) as running:
        yield running


@asynccontextmanager
async def razorpay_at(api_base: str) -> AsyncIterator[RazorpayProcessor]:
    made = RazorpayProcessor(ProcessorSetup(api_base, 5.0, "http://loop.example", b"s"))
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
async def processor(stub: StubProcessor) -> AsyncIterator[RazorpayProcessor]:
    async with razorpay_at(stub.url) as made:
        yield made


async def pay(
    processor: RazorpayProcessor, stub: StubProcessor, name: str = "1"
) -> tuple[PaymentReference, dict[str, Any]]:
    """Return a paid order, and what paid it."""
    request = AuthorizeRequest(
        f"ord_{name}", f"att_{name}", PRICE, False, "upi", None, None, None, "http://shop.example", NOON
    )
    outcome = await processor.authorize(ACCOUNT, request, key=IdempotencyKey(f"lpi_{name}"))
    payment = PaymentReference(getattr(outcome, "reference", None), request)
    return payment, (await control(stub, f"razorpay/orders/{payment.reference}/pay", {}))["payment"]


async def listed(processor: RazorpayProcessor, now: datetime, **changes: Any) -> list[Movement]:
    """Return all pages."""
    query = replace(MovementQuery(NOON - AN_HOUR, NOON + AN_HOUR, now), **changes)
    found: list[Movement] = []
    for _ in range(40):
        page = await processor.movements(ACCOUNT, query)
        assert isinstance(page, MovementPage), page
        found += page.movements
        if page.next_cursor is None:
            return found
        query = replace(query, cursor=page.next_cursor)
    raise AssertionError("the pages do not end")


async def test_what_is_settled_is_listed_as_loop_knows_it(
    processor: RazorpayProcessor, stub: StubProcessor, hands: Hands
) -> None:
    assert isinstance(processor, ListsMovements)
    payment, paid = await pay(processor, stub)
    wanted = RefundRequest("ref_1", payment, Money(20_000, "INR"), None)
    refund_id = (await processor.refund(ACCOUNT, wanted, key=IdempotencyKey("lpi_refund_1"))).reference
    hands.at = NOON + A_DAY
    assert await listed(processor, hands.at) == []
    hands.at = NOON + 3 * A_DAY
    charge, back = await listed(processor, hands.at)
    assert charge == Movement(
        MovementKind.CHARGE, paid["id"], PRICE, NOON, payment_reference=payment.reference, fee=Money(1_180, "INR"),
        is_as_settled=True,
    )  # fmt: skip
    assert back == Movement(
        MovementKind.REFUND, str(refund_id), Money(20_000, "INR"), NOON, payment_reference=payment.reference,
        attempt_id="att_1", refund_id="ref_1", fee=Money(0, "INR"), is_as_settled=True,
    )  # fmt: skip


async def test_a_test_key_has_no_list(processor: RazorpayProcessor) -> None:
    assert processor.listed_within(ACCOUNT) == timedelta(days=14)
    of_test_key = replace(ACCOUNT, credentials=CREDENTIALS | {"keyId": "rzp_test_1"})
    assert processor.listed_within(of_test_key) is None


async def test_only_the_time_asked_for_is_listed(
    processor: RazorpayProcessor, stub: StubProcessor, hands: Hands
) -> None:
    for number, at in enumerate((NOON - timedelta(seconds=1), NOON, NOON + AN_HOUR)):
        hands.at = at
        await pay(processor, stub, str(number))
    hands.at = NOON + 3 * A_DAY
    found = await listed(processor, hands.at, since=NOON, until=NOON + AN_HOUR)
    assert [movement.occurred_at for movement in found] == [NOON]


async def test_the_report_is_read_from_the_day_itself_until_nothing_of_it_can_be_settled_any_more(
    processor: RazorpayProcessor, stub: StubProcessor
) -> None:
    for days, expected in ((1, 3), (10, 12), (40, 16)):  # India's day may be the next one
        stub.requests.seen.clear()
        await listed(processor, NOON + days * A_DAY)
        assert len(stub.requests.seen) == expected


async def test_a_payment_of_india_s_next_day_is_listed(
    processor: RazorpayProcessor, stub: StubProcessor, hands: Hands
) -> None:
    hands.at = datetime(2026, 3, 1, 23, tzinfo=UTC)
    await pay(processor, stub)
    hands.at += 2 * A_DAY
    assert len(await listed(processor, hands.at, until=NOON + A_DAY)) == 1


async def test_every_page_of_a_day_is_read_once(
    processor: RazorpayProcessor, stub: StubProcessor, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(razorpay_movements, "PAGE_SIZE", 2)
    paid = {(await pay(processor, stub, str(number)))[1]["id"] for number in range(5)}
    hands.at = NOON + 3 * A_DAY
    found = await listed(processor, hands.at)
    assert ({movement.reference for movement in found}, len(found)) == (paid, 5)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="drop_before", path=REPORT),
        Fault(kind="cut_body", path=REPORT),
        Fault(kind="status", path=REPORT, status=500),
        Fault(kind="status", path=REPORT, status=429),
        Fault(kind="status", path=REPORT, status=502, html=True),
    ],
    ids=lambda fault: f"{fault.kind} {fault.status}",
)
async def test_no_answer_is_no_list(processor: RazorpayProcessor, stub: StubProcessor, fault: Fault) -> None:
    await pay(processor, stub)
    stub.faults.arm(fault)
    assert isinstance(await processor.movements(ACCOUNT, MovementQuery(NOON, NOON + AN_HOUR, NOON)), Unknown)


async def test_a_key_that_razorpay_does_not_know_is_no_list(processor: RazorpayProcessor) -> None:
    strange = replace(ACCOUNT, credentials=CREDENTIALS | {"keyId": "rzp_live_invalid"})
    answer = await processor.movements(strange, MovementQuery(NOON, NOON + AN_HOUR, NOON))
    assert isinstance(answer, Unknown)
    assert "secret_canary" not in answer.reason


async def test_the_report_is_never_read_inside_a_transaction(processor: RazorpayProcessor) -> None:
    with open_transaction(), pytest.raises(RuntimeError, match="transaction"):
        await processor.movements(ACCOUNT, MovementQuery(NOON, NOON + AN_HOUR, NOON))


ROW: dict[str, Any] = {
    "entity_id": "pay_1", "type": "payment", "debit": 0, "credit": 97_100, "amount": 100_000, "currency": "INR",
    "fee": 2_900, "tax": 0, "on_hold": False, "settled": True, "created_at": int(NOON.timestamp()),
    "settled_at": int(NOON.timestamp()) + 86_400, "settlement_id": "setl_1", "notes": "Beam me up Scotty.",
    "payment_id": None, "order_id": "order_1",
}  # fmt: skip


async def answered(*rows: object) -> MovementPage | Unknown:
    """Return what a page with these rows becomes."""

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"entity": "collection", "count": len(rows), "items": rows})

    app = web.Application()
    app.router.add_get(REPORT, answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with razorpay_at(f"http://127.0.0.1:{runner.addresses[0][1]}") as made:
            return await made.movements(ACCOUNT, MovementQuery(NOON, NOON + AN_HOUR, NOON))
    finally:
        await runner.cleanup()


async def test_a_row_with_notes_that_are_a_text() -> None:
    page = await answered(ROW)
    assert isinstance(page, MovementPage)
    [movement] = page.movements
    assert (movement.payment_reference, movement.attempt_id, movement.fee) == ("order_1", None, Money(2_900, "INR"))


async def test_a_refund_without_its_order_names_the_payment() -> None:
    page = await answered(ROW | {"type": "refund", "entity_id": "rfnd_1", "order_id": None, "payment_id": "pay_1"})
    assert isinstance(page, MovementPage)
    assert [movement.payment_reference for movement in page.movements] == ["pay_1"]


@pytest.mark.parametrize("kind", ["transfer", "adjustment", "something_new"])
async def test_what_is_neither_payment_nor_refund_is_left_out(kind: str) -> None:
    page = await answered(ROW | {"type": kind})
    assert isinstance(page, MovementPage)
    assert page.movements == ()


@pytest.mark.parametrize(
    "wrong",
    [{"amount": None}, {"amount": True}, {"amount": -1}, {"currency": 1}, {"entity_id": ""}, {"created_at": "today"},
     {"type": None}, {"type": []}, {"fee": None}],
    ids=str,
)  # fmt: skip
async def test_a_row_that_makes_no_sense_makes_no_list(wrong: dict[str, object]) -> None:
    assert isinstance(await answered(ROW | wrong), Unknown)
    assert isinstance(await answered("no row"), Unknown)
