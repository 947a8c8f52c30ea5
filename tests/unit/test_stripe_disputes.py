"""Stripe's disputes through its real SDK and real sockets: each status, and every answer that is none."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import stripe

from loop.domain.attempts import Unknown
from loop.domain.disputes import DisputeOutcome, DisputeStatus
from loop.domain.money import Money
from loop.processors.base import Account, AuthorizeRequest, DisputeReference, PaymentReference, ProcessorSetup
from loop.processors.stripe import StripeProcessor
from loop.processors.stripe_disputes import dispute_outcome_of
from loop.telemetry import open_transaction
from loop.testing.stub_faults import Fault
from loop.testing.stub_psp import StubProcessor
from loop.testing.stub_stripe_disputes import STEPS
from tests.contract.stub_clients import control, payment, sdk

S = DisputeStatus
NOW = datetime(2026, 1, 2, tzinfo=UTC)
ACCOUNT = Account("pcf_1", "mer_1", is_test_mode=True, credentials={"secretKey": "sk_test_first"})
REQUEST = AuthorizeRequest(
    order_id="ord_1",
    attempt_id="att_1",
    amount=Money(1_000, "USD"),
    is_manual_capture=False,
    payment_method="card",
    token=None,
    customer_email=None,
    description=None,
    return_url="http://shop.example/back",
    created_at=NOW,
)


def told(status: str, *moved: int, **changes: object) -> stripe.Dispute:
    """Return a dispute as the SDK makes it of an answer."""
    said: dict[str, object] = {
        "id": "du_1",
        "object": "dispute",
        "amount": 1_000,
        "currency": "usd",
        "balance_transactions": [
            {"id": f"txn_{place}", "object": "balance_transaction", "amount": amount}
            for place, amount in enumerate(moved)
        ],
        "evidence_details": {"due_by": int(NOW.timestamp())},
        "payment_intent": "pi_1",
        "reason": "fraudulent",
        "status": status,
        **changes,
    }
    made = stripe.Dispute.construct_from(said, "sk_test_1")
    assert isinstance(made, stripe.Dispute)
    return made


@pytest.mark.parametrize(
    ("status", "moved", "expected"),
    [
        ("warning_needs_response", (), S.INQUIRY),
        ("warning_under_review", (), S.INQUIRY),
        ("warning_closed", (), S.CLOSED),
        ("needs_response", (-1_000,), S.OPENED),
        ("under_review", (-1_000,), S.OPENED),
        ("appeal_needs_response", (-1_000,), S.OPENED),
        ("appeal_under_review", (-1_000,), S.OPENED),
        ("won", (-1_000, 1_000), S.WON),
        ("lost", (-1_000,), S.LOST),
        ("prevented", (), S.CLOSED),
        ("prevented", (-1_000, 1_000), S.CLOSED),
        ("prevented", (-1_000,), S.LOST),
    ],
)
def test_each_status(status: str, moved: tuple[int, ...], expected: DisputeStatus) -> None:
    assert dispute_outcome_of(told(status, *moved)) == DisputeOutcome(
        "du_1", "pi_1", expected, Money(1_000, "USD"), "fraudulent", NOW
    )


def test_every_status_that_the_stub_knows_is_known() -> None:
    assert not any(isinstance(dispute_outcome_of(told(status)), Unknown) for status in STEPS)


def test_a_status_of_tomorrow_is_unknown() -> None:
    assert isinstance(dispute_outcome_of(told("brand_new")), Unknown)


@pytest.mark.parametrize(("currency", "theirs", "ours"), [("isk", 50_000, 500), ("mga", 500, 50_000), ("jpy", 5, 5)])
def test_amounts_are_loops(currency: str, theirs: int, ours: int) -> None:
    found = dispute_outcome_of(told("lost", amount=theirs, currency=currency))
    assert isinstance(found, DisputeOutcome)
    assert found.amount == Money(ours, currency.upper())


@pytest.mark.parametrize("due_by", [None, 0])
def test_a_dispute_that_nobody_may_answer_has_no_day(due_by: int | None) -> None:
    found = dispute_outcome_of(told("needs_response", evidence_details={"due_by": due_by}))
    assert isinstance(found, DisputeOutcome)
    assert found.due_by is None


def test_an_intent_that_comes_whole_is_its_id() -> None:
    found = dispute_outcome_of(told("lost", payment_intent={"id": "pi_2", "object": "payment_intent"}))
    assert isinstance(found, DisputeOutcome)
    assert found.payment_reference == "pi_2"


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[StubProcessor]:
    async with StubProcessor(ledger_path=tmp_path / "stripe.ledger", port=0) as running:
        yield running


@pytest.fixture
async def processor(stub: StubProcessor) -> AsyncIterator[StripeProcessor]:
    setup = ProcessorSetup(api_base=stub.url, timeout_s=5, public_url="http://loop.example", challenge_secret=b"s")
    made = StripeProcessor(setup)
    yield made
    await made.close()


async def disputed(stub: StubProcessor, token: str = "pm_card_createDispute") -> DisputeReference:
    async with sdk(stub.url) as client:
        paid = await client.v1.payment_intents.create_async(payment(token))
        found = (await client.v1.disputes.list_async({"payment_intent": paid.id})).data[0]
    return DisputeReference(found.id, PaymentReference(paid.id, REQUEST))


@pytest.mark.parametrize(
    ("token", "steps", "expected"),
    [
        ("pm_card_createDispute", (), [S.OPENED]),
        ("pm_card_createDispute", ("under_review", "won"), [S.OPENED, S.OPENED, S.WON]),
        ("pm_card_createDispute", ("lost", "appeal_needs_response", "won"), [S.OPENED, S.LOST, S.OPENED, S.WON]),
        ("pm_card_createDisputeInquiry", ("warning_under_review", "warning_closed"), [S.INQUIRY, S.INQUIRY, S.CLOSED]),
        ("pm_card_createDisputeInquiry", ("needs_response", "lost"), [S.INQUIRY, S.OPENED, S.LOST]),
    ],
)
async def test_a_dispute_is_told_as_it_goes(
    stub: StubProcessor, processor: StripeProcessor, token: str, steps: tuple[str, ...], expected: list[DisputeStatus]
) -> None:
    dispute = await disputed(stub, token)
    found = [await processor.fetch_dispute(ACCOUNT, dispute)]
    for status in steps:
        await control(stub, f"disputes/{dispute.reference}/move", {"status": status})
        found.append(await processor.fetch_dispute(ACCOUNT, dispute))
    outcomes = [each for each in found if isinstance(each, DisputeOutcome)]
    assert [each.status for each in outcomes] == expected
    assert {(each.reference, each.payment_reference, each.amount, each.reason) for each in outcomes} == {
        (dispute.reference, dispute.payment.reference, Money(1_000, "USD"), "fraudulent")
    }
    assert all(each.due_by is not None for each in outcomes)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="drop_before", path="/v1/disputes", times=2),  # a question is put again on a new connection
        Fault(kind="drop_after", path="/v1/disputes", times=2),
        Fault(kind="cut_body", path="/v1/disputes"),
        Fault(kind="status", path="/v1/disputes", status=429),
        Fault(kind="status", path="/v1/disputes", status=500),
        Fault(kind="status", path="/v1/disputes", status=502, html=True),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
async def test_a_question_without_an_answer_is_unknown(
    stub: StubProcessor, processor: StripeProcessor, fault: Fault
) -> None:
    dispute = await disputed(stub)
    stub.faults.arm(replace(fault))
    assert isinstance(await processor.fetch_dispute(ACCOUNT, dispute), Unknown)
    assert isinstance(await processor.fetch_dispute(ACCOUNT, dispute), DisputeOutcome)


async def test_what_stripe_does_not_know_is_unknown(stub: StubProcessor, processor: StripeProcessor) -> None:
    dispute = await disputed(stub)
    missing = DisputeReference("du_of_nobody", dispute.payment)
    assert isinstance(await processor.fetch_dispute(ACCOUNT, missing), Unknown)
    for key in ("sk_test_second", "sk_test_invalid", "no key\n", ""):
        stranger = Account("pcf_2", "mer_2", is_test_mode=True, credentials={"secretKey": key})
        assert isinstance(await processor.fetch_dispute(stranger, dispute), Unknown)


async def test_nobody_is_asked_inside_a_transaction(stub: StubProcessor, processor: StripeProcessor) -> None:
    dispute = await disputed(stub)
    with open_transaction(), pytest.raises(RuntimeError, match="transaction"):
        await processor.fetch_dispute(ACCOUNT, dispute)
