"""Razorpay's disputes through its real SDK and real sockets: each status and phase, and every answer that is none."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from loop.domain.attempts import ActionRequired, Unknown
from loop.domain.disputes import DisputeOutcome, DisputeStatus
from loop.domain.money import Money
from loop.processors.base import (
    Account,
    AuthorizeRequest,
    DisputeReference,
    IdempotencyKey,
    PaymentReference,
    ProcessorSetup,
)
from loop.processors.razorpay import RazorpayProcessor
from loop.processors.razorpay_disputes import dispute_outcome_of
from loop.telemetry import open_transaction
from loop.testing.stub_faults import Fault
from loop.testing.stub_psp import StubProcessor
from loop.testing.stub_razorpay_disputes import PHASES, STEPS
from tests.contract.stub_clients import control

S = DisputeStatus
NOW = datetime(2026, 1, 2, tzinfo=UTC)
PRICE = Money(50_000, "INR")
REQUEST = AuthorizeRequest(
    order_id="ord_1",
    attempt_id="att_1",
    amount=PRICE,
    is_manual_capture=False,
    payment_method="upi",
    token=None,
    customer_email=None,
    description=None,
    return_url="http://shop.example/back",
    created_at=NOW,
)


def account(key_id: str = "rzp_test_1", key_secret: str = "secret") -> Account:
    credentials = {"keyId": key_id, "keySecret": key_secret}
    return Account("pcf_1", "mer_1", is_test_mode=True, credentials=credentials)


ACCOUNT = account()


def told(status: str, phase: str = "chargeback", **changes: object) -> dict[str, object]:
    return {
        "id": "disp_1",
        "entity": "dispute",
        "payment_id": "pay_1",
        "amount": 40_000,
        "currency": "INR",
        "amount_deducted": 0,
        "reason_code": "chargeback",
        "respond_by": int(NOW.timestamp()),
        "status": status,
        "phase": phase,
        **changes,
    }


@pytest.mark.parametrize(
    ("status", "phase", "deducted", "expected"),
    [
        ("open", "chargeback", 0, S.OPENED),
        ("under_review", "chargeback", 0, S.OPENED),
        ("action_required", "chargeback", 0, S.OPENED),
        ("won", "chargeback", 0, S.WON),
        ("lost", "chargeback", 40_000, S.LOST),
        ("lost", "chargeback", 0, S.LOST),
        ("closed", "chargeback", 0, S.CLOSED),
        ("closed", "chargeback", 40_000, S.LOST),
        ("open", "pre_arbitration", 0, S.OPENED),
        ("open", "arbitration", 0, S.OPENED),
        ("open", "fraud", 0, S.INQUIRY),
        ("under_review", "retrieval", 0, S.INQUIRY),
        ("action_required", "retrieval", 0, S.INQUIRY),
        ("won", "retrieval", 0, S.WON),
        ("lost", "retrieval", 0, S.CLOSED),
        ("lost", "fraud", 500, S.LOST),
        ("closed", "fraud", 0, S.CLOSED),
        ("open", "brand_new_phase", 0, S.OPENED),
    ],
)
def test_each_status_in_its_phase(status: str, phase: str, deducted: int, expected: DisputeStatus) -> None:
    found = dispute_outcome_of(told(status, phase, amount_deducted=deducted), order_id="order_1")
    assert found == DisputeOutcome("disp_1", "order_1", expected, Money(40_000, "INR"), "chargeback", NOW)


@pytest.mark.parametrize("phase", PHASES)
def test_every_status_that_the_stub_knows_is_known(phase: str) -> None:
    for status in STEPS:
        assert isinstance(dispute_outcome_of(told(status, phase), order_id="order_1"), DisputeOutcome)


def test_a_status_of_tomorrow_is_unknown() -> None:
    assert isinstance(dispute_outcome_of(told("brand_new"), order_id="order_1"), Unknown)


@pytest.mark.parametrize("name", ["reason_code", "respond_by"])
def test_what_is_not_said_is_none(name: str) -> None:
    for empty in (None, "", 0):
        found = dispute_outcome_of(told("open", "chargeback", **{name: empty}), order_id="order_1")
        assert isinstance(found, DisputeOutcome)
        assert (found.reason is None, found.due_by is None) == (name == "reason_code", name == "respond_by")


@pytest.mark.parametrize(
    "wrong",
    [{"amount": "400"}, {"amount": None}, {"amount": True}, {"currency": None}, {"id": 7}, {"respond_by": "tomorrow"}],
)
def test_an_answer_that_is_no_dispute(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="left out"):
        dispute_outcome_of(told("open", "chargeback", **wrong), order_id="order_1")


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[StubProcessor]:
    async with StubProcessor(ledger_path=tmp_path / "razorpay.ledger", port=0) as running:
        yield running


@pytest.fixture
async def processor(stub: StubProcessor, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[RazorpayProcessor]:
    """Yield the processor, and see that the SDK has printed nothing."""
    setup = ProcessorSetup(api_base=stub.url, timeout_s=5, public_url="http://loop.example", challenge_secret=b"s")
    made = RazorpayProcessor(setup)
    yield made
    await made.close()
    assert capsys.readouterr().out == ""


async def disputed(stub: StubProcessor, processor: RazorpayProcessor, **how: object) -> DisputeReference:
    outcome = await processor.authorize(ACCOUNT, REQUEST, key=IdempotencyKey("lpi_0123456789"))
    assert isinstance(outcome, ActionRequired)
    paid: dict[str, Any] = await control(stub, f"razorpay/orders/{outcome.reference}/pay", {})
    dispute = await control(stub, f"razorpay/payments/{paid['payment']['id']}/dispute", how)
    return DisputeReference(str(dispute["id"]), PaymentReference(outcome.reference, REQUEST))


@pytest.mark.parametrize(
    ("phase", "steps", "expected"),
    [
        ("chargeback", ("under_review", "open", "won"), [S.OPENED, S.OPENED, S.OPENED, S.WON]),
        ("chargeback", ("lost",), [S.OPENED, S.LOST]),
        ("fraud", ("closed",), [S.INQUIRY, S.CLOSED]),
        ("retrieval", ("under_review", "lost"), [S.INQUIRY, S.INQUIRY, S.CLOSED]),
    ],
)
async def test_a_dispute_is_told_as_it_goes(
    stub: StubProcessor,
    processor: RazorpayProcessor,
    phase: str,
    steps: tuple[str, ...],
    expected: list[DisputeStatus],
) -> None:
    dispute = await disputed(stub, processor, phase=phase, amount=400, reason="not_received")
    found = [await processor.fetch_dispute(ACCOUNT, dispute)]
    for status in steps:
        await control(stub, f"razorpay/disputes/{dispute.reference}/move", {"status": status})
        found.append(await processor.fetch_dispute(ACCOUNT, dispute))
    outcomes = [each for each in found if isinstance(each, DisputeOutcome)]
    assert [each.status for each in outcomes] == expected
    assert {(each.reference, each.payment_reference, each.amount, each.reason) for each in outcomes} == {
        (dispute.reference, dispute.payment.reference, Money(400, "INR"), "not_received")
    }


@pytest.mark.parametrize("path", ["/v1/disputes", "/v1/payments"])
@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="drop_before"),
        Fault(kind="drop_after"),
        Fault(kind="cut_body"),
        Fault(kind="status", status=429),
        Fault(kind="status", status=500),
        Fault(kind="status", status=502, html=True),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
async def test_a_question_without_an_answer_is_unknown(
    stub: StubProcessor, processor: RazorpayProcessor, fault: Fault, path: str
) -> None:
    dispute = await disputed(stub, processor)
    stub.faults.arm(replace(fault, path=path))
    assert isinstance(await processor.fetch_dispute(ACCOUNT, dispute), Unknown)
    assert isinstance(await processor.fetch_dispute(ACCOUNT, dispute), DisputeOutcome)


async def test_what_razorpay_does_not_know_is_unknown(stub: StubProcessor, processor: RazorpayProcessor) -> None:
    dispute = await disputed(stub, processor)
    missing = DisputeReference("disp_of_nobody", dispute.payment)
    assert isinstance(await processor.fetch_dispute(ACCOUNT, missing), Unknown)
    for stranger in (account("rzp_test_2"), account(key_secret="wrong"), account("", ""), account("no:key")):
        assert isinstance(await processor.fetch_dispute(stranger, dispute), Unknown)


async def test_nobody_is_asked_inside_a_transaction(stub: StubProcessor, processor: RazorpayProcessor) -> None:
    dispute = await disputed(stub, processor)
    with open_transaction(), pytest.raises(RuntimeError, match="transaction"):
        await processor.fetch_dispute(ACCOUNT, dispute)
