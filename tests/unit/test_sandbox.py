"""The sandbox beyond the contract suite: its pages, its webhooks, its memory, and its table in the guide."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from loop.domain.attempts import (
    ActionRequired,
    Approved,
    Cancelled,
    Declined,
    NotSent,
    Outcome,
    Pending,
    Unknown,
    Voided,
)
from loop.domain.declines import DECLINES
from loop.domain.disputes import DisputeOutcome, DisputeStatus
from loop.domain.money import Money
from loop.domain.refunds import RefundStatus
from loop.processors.base import (
    Account,
    AuthorizeRequest,
    DisputeReference,
    IdempotencyKey,
    PaymentReference,
    ProcessorSetup,
    RefundReference,
    RefundRequest,
)
from loop.processors.sandbox import TOKENS, Result, SandboxProcessor
from loop.telemetry import open_transaction

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "sandbox.md"
ACCOUNT = Account(config_id="pcf_1", merchant_id="mer_1", is_test_mode=True, credentials={"webhookSecret": "whsec_1"})
LIVE = Account(config_id="pcf_2", merchant_id="mer_1", is_test_mode=False, credentials={})
NOW = datetime(2026, 1, 2, tzinfo=UTC)
PAY = IdempotencyKey("lpi_pay")


def sandbox(challenge_secret: bytes = b"secret") -> SandboxProcessor:
    return SandboxProcessor(
        ProcessorSetup(api_base=None, timeout_s=5, public_url="http://loop.example", challenge_secret=challenge_secret)
    )


def request(token: str | None, *, is_manual_capture: bool = False, attempt_id: str = "att_1a") -> AuthorizeRequest:
    return AuthorizeRequest(
        order_id="ord_1",
        attempt_id=attempt_id,
        amount=Money(5_000, "EUR"),
        is_manual_capture=is_manual_capture,
        payment_method="card",
        token=token,
        customer_email=None,
        description=None,
        return_url="http://shop.example/back",
        created_at=NOW,
    )


async def pay(processor: SandboxProcessor, wanted: AuthorizeRequest, *, account: Account = ACCOUNT) -> Outcome:
    return await processor.authorize(account, wanted, key=PAY)


def test_guide_has_every_token() -> None:
    rows = re.findall(r"^\| `(tok_\w+)` \| (.+) \|$", GUIDE.read_text("utf-8"), re.MULTILINE)
    assert rows == list(TOKENS.items())


@pytest.mark.parametrize("code", DECLINES)
async def test_each_decline_has_a_token(code: str) -> None:
    outcome = await pay(sandbox(), request(f"tok_decline_{code}"))
    assert isinstance(outcome, Declined)
    assert (outcome.code, outcome.decline_class) == (code, DECLINES[code].decline_class)


async def test_live_account_is_refused() -> None:
    processor = sandbox()
    for token in ("tok_approve", None):
        outcome = await pay(processor, request(token), account=LIVE)
        assert isinstance(outcome, Declined)
        assert outcome.code == "test_card_in_live"
    assert processor.ledger() == ()
    assert await processor.check(LIVE)


@pytest.mark.parametrize(("token", "page"), [("tok_3ds", "challenge"), (None, "payments")])
@pytest.mark.parametrize(
    ("result", "code"), [("approved", None), ("declined", "declined"), ("failed", "authentication_failed")]
)
async def test_page_decides(token: str | None, page: str, result: Result, code: str | None) -> None:
    processor = sandbox()
    wanted = request(token)
    outcome = await pay(processor, wanted)
    assert isinstance(outcome, ActionRequired)
    assert outcome.redirect_url == f"http://loop.example/sandbox/{page}/{outcome.reference}"
    payment = PaymentReference(outcome.reference, wanted)
    parameters = {"sandbox_result": result, "sandbox_signature": processor.sign_result(outcome.reference, result)}
    # A process that has no memory of the payment says the same: the signature carries the answer.
    for asked in (sandbox(), processor):
        done = await asked.complete_action(ACCOUNT, payment, parameters=parameters)
        assert isinstance(done, Declined | Approved)
        assert (done.code if isinstance(done, Declined) else None) == code
        assert await asked.fetch(ACCOUNT, payment) == done
    assert len(processor.ledger()) == (1 if code is None else 0)


async def test_forged_result_changes_nothing() -> None:
    processor = sandbox()
    wanted = request("tok_3ds")
    outcome = await pay(processor, wanted)
    assert isinstance(outcome, ActionRequired)
    payment = PaymentReference(outcome.reference, wanted)
    for signature in (
        "",
        "é",
        "0" * 64,
        processor.sign_result(outcome.reference, "failed"),
        processor.sign_result("sbx_other_3ds", "approved"),
        sandbox(b"other").sign_result(outcome.reference, "approved"),
    ):
        parameters = {"sandbox_result": "approved", "sandbox_signature": signature}
        assert await processor.complete_action(ACCOUNT, payment, parameters=parameters) == outcome
    assert processor.ledger() == ()


async def test_result_after_cancelling_is_too_late() -> None:
    processor = sandbox()
    wanted = request(None)
    outcome = await pay(processor, wanted)
    assert isinstance(outcome, ActionRequired)
    payment = PaymentReference(outcome.reference, wanted)
    assert isinstance(await processor.void(ACCOUNT, payment, key=IdempotencyKey("v")), Cancelled)
    signature = processor.sign_result(outcome.reference, "approved")
    parameters = {"sandbox_result": "approved", "sandbox_signature": signature}
    assert isinstance(await processor.complete_action(ACCOUNT, payment, parameters=parameters), Cancelled)


async def test_pending_is_approved_when_asked() -> None:
    processor = sandbox()
    wanted = request("tok_pending")
    outcome = await pay(processor, wanted)
    assert isinstance(outcome, Pending)
    payment = PaymentReference(outcome.reference, wanted)
    assert isinstance(await processor.fetch(ACCOUNT, payment), Approved)
    assert len(processor.ledger()) == 1


async def test_pending_is_approved_when_it_is_to_be_cancelled() -> None:
    processor = sandbox()
    wanted = request("tok_pending")
    outcome = await pay(processor, wanted)
    assert isinstance(outcome, Pending)
    payment = PaymentReference(outcome.reference, wanted)
    assert isinstance(await processor.void(ACCOUNT, payment, key=IdempotencyKey("v")), Approved)
    assert len(processor.ledger()) == 1


@pytest.mark.parametrize(
    ("token", "settled"),
    [("tok_refund_pending", RefundStatus.SUCCEEDED), ("tok_refund_fails_later", RefundStatus.FAILED)],
)
async def test_refund_settles_when_asked(token: str, settled: RefundStatus) -> None:
    processor = sandbox()
    wanted = request(token)
    outcome = await pay(processor, wanted)
    assert isinstance(outcome, Approved)
    refund = RefundRequest("ref_1", PaymentReference(outcome.reference, wanted), Money(5_000, "EUR"), None)
    first = await processor.refund(ACCOUNT, refund, key=IdempotencyKey("r1"))
    assert first.status is RefundStatus.PENDING
    told = await processor.fetch_refund(ACCOUNT, RefundReference(first.reference, refund))
    assert told.status is settled
    assert await processor.fetch_refund(ACCOUNT, RefundReference(None, refund)) == told
    # Money that came back can be refunded again.
    again = RefundRequest("ref_2", refund.payment, refund.amount, None)
    second = await processor.refund(ACCOUNT, again, key=IdempotencyKey("r2"))
    assert second.status is (RefundStatus.PENDING if settled is RefundStatus.FAILED else RefundStatus.FAILED)


async def test_restarted_process_answers_from_the_reference() -> None:
    wanted = request("tok_approve", is_manual_capture=True)
    outcome = await pay(sandbox(), wanted)
    assert isinstance(outcome, Approved)
    payment = PaymentReference(outcome.reference, wanted)
    assert await sandbox().fetch(ACCOUNT, payment) == outcome
    part = Money(2_000, "EUR")
    taken = await sandbox().capture(ACCOUNT, payment, amount=part, key=IdempotencyKey("c"))
    assert isinstance(taken, Approved)
    assert (taken.is_captured, taken.amount_minor) == (True, 2_000)
    assert isinstance(await sandbox().void(ACCOUNT, payment, key=IdempotencyKey("v")), Voided)
    refund = RefundRequest("ref_1", payment, part, None)
    given_back = await sandbox().refund(ACCOUNT, refund, key=IdempotencyKey("r"))
    assert given_back.status is RefundStatus.SUCCEEDED
    assert await sandbox().fetch_refund(ACCOUNT, RefundReference(given_back.reference, refund)) == given_back


async def test_process_behind_the_others_captures_and_refunds() -> None:
    processor = sandbox()
    wanted = request("tok_3ds", is_manual_capture=True)
    outcome = await pay(processor, wanted)
    assert isinstance(outcome, ActionRequired)
    payment = PaymentReference(outcome.reference, wanted)
    taken = await processor.capture(ACCOUNT, payment, amount=wanted.amount, key=IdempotencyKey("c"))
    assert isinstance(taken, Approved)
    assert taken.is_captured


async def test_unheard_payment_stays_unknown() -> None:
    payment = PaymentReference(None, request("tok_approve"))
    assert isinstance(await sandbox().fetch(ACCOUNT, payment), Unknown)
    assert isinstance(await sandbox().void(ACCOUNT, payment, key=IdempotencyKey("v")), Unknown)


async def test_reference_of_another_payment_is_refused() -> None:
    payment = PaymentReference("sbx_2b_approve", request("tok_approve"))
    assert isinstance(await sandbox().fetch(ACCOUNT, payment), NotSent)


async def test_accounts_do_not_share_keys() -> None:
    processor = sandbox()
    other = Account(config_id="pcf_9", merchant_id="mer_9", is_test_mode=True, credentials={})
    await pay(processor, request("tok_approve"))
    outcome = await pay(processor, request("tok_decline_declined", attempt_id="att_2b"), account=other)
    assert isinstance(outcome, Declined)


@pytest.mark.parametrize(
    ("token", "types"),
    [
        ("tok_approve", ["payment.captured"]),
        ("tok_webhook_duplicate", ["payment.captured", "payment.captured"]),
        ("tok_webhook_out_of_order", ["payment.captured", "payment.processing", "payment.created"]),
    ],
)
async def test_webhooks_of_a_payment(token: str, types: list[str]) -> None:
    processor = sandbox()
    outcome = await pay(processor, request(token))
    assert isinstance(outcome, Approved)
    sent = processor.webhooks_for(outcome.reference, secret="whsec_1")
    events = [processor.parse_webhook(body, headers, secrets=["whsec_1"], now=NOW) for body, headers in sent]
    assert [event.event_type for event in events] == types
    assert len({event.event_id for event in events}) == len(set(types))
    assert {(event.payment_reference, event.attempt_id) for event in events} == {(outcome.reference, "att_1a")}


async def test_is_not_called_inside_a_transaction() -> None:
    with open_transaction(), pytest.raises(RuntimeError, match="transaction"):
        await sandbox().fetch(ACCOUNT, PaymentReference("sbx_1a_approve", request("tok_approve")))


def dispute_of(outcome: Outcome, wanted: AuthorizeRequest) -> DisputeReference:
    assert isinstance(outcome, Approved)
    return DisputeReference(f"sbxd_{wanted.attempt_id[4:]}", PaymentReference(outcome.reference, wanted))


@pytest.mark.parametrize(
    ("token", "told"),
    [
        ("tok_dispute", [DisputeStatus.OPENED] * 3),
        ("tok_dispute_won", [DisputeStatus.OPENED, DisputeStatus.WON, DisputeStatus.WON]),
        ("tok_dispute_lost", [DisputeStatus.OPENED, DisputeStatus.LOST, DisputeStatus.LOST]),
        ("tok_dispute_inquiry", [DisputeStatus.INQUIRY, DisputeStatus.CLOSED, DisputeStatus.CLOSED]),
    ],
)
async def test_a_dispute_goes_on_by_being_asked_about(token: str, told: list[DisputeStatus]) -> None:
    processor, wanted = sandbox(), request(token)
    dispute = dispute_of(await pay(processor, wanted), wanted)
    answers = [await processor.fetch_dispute(ACCOUNT, dispute) for _ in told]
    assert answers == [
        DisputeOutcome(
            dispute.reference,
            str(dispute.payment.reference),
            status,
            Money(5_000, "EUR"),
            "fraudulent",
            NOW + timedelta(days=7),
        )
        for status in told
    ]


@pytest.mark.parametrize(("token", "is_refused"), [("tok_dispute", True), ("tok_dispute_won", False)])
async def test_what_is_disputed_is_not_refunded(token: str, *, is_refused: bool) -> None:
    processor, wanted = sandbox(), request(token)
    dispute = dispute_of(await pay(processor, wanted), wanted)
    refund = RefundRequest("ref_1", dispute.payment, Money(1, "EUR"), None)
    for _ in range(2):
        await processor.fetch_dispute(ACCOUNT, dispute)
    outcome = await processor.refund(ACCOUNT, refund, key=IdempotencyKey("lpi_refund"))
    assert (outcome.status is RefundStatus.FAILED) is is_refused


async def test_no_other_payment_is_disputed() -> None:
    processor = sandbox()
    undisputed, held = request("tok_approve"), request("tok_dispute", is_manual_capture=True, attempt_id="att_2b")
    approved = dispute_of(await pay(processor, undisputed), undisputed)
    assert isinstance(await processor.fetch_dispute(ACCOUNT, approved), Unknown)
    await processor.authorize(ACCOUNT, held, key=IdempotencyKey("lpi_other"))
    for reference in ("sbxd_1a", "sbxd_", "", "nonsense"):
        wrong = DisputeReference(reference, PaymentReference("sbx_2b_dispute", held))
        assert isinstance(await processor.fetch_dispute(ACCOUNT, wrong), Unknown)


async def test_a_process_that_remembers_nothing_begins_a_dispute_anew() -> None:
    before, wanted = sandbox(), request("tok_dispute_lost")
    dispute = dispute_of(await pay(before, wanted), wanted)
    after = sandbox()
    statuses = []
    for _ in range(2):
        outcome = await after.fetch_dispute(ACCOUNT, dispute)
        assert isinstance(outcome, DisputeOutcome)
        statuses.append(outcome.status)
    assert statuses == [DisputeStatus.OPENED, DisputeStatus.LOST]


def test_the_webhooks_of_a_dispute_name_it() -> None:
    processor = sandbox()
    events = [
        processor.parse_webhook(body, headers, secrets=["whsec_1"], now=NOW)
        for body, headers in processor.webhooks_for("sbx_1a_dispute_lost", secret="whsec_1")
    ]
    assert [(event.event_type, event.dispute_reference) for event in events] == [
        ("payment.captured", None),
        ("dispute.opened", "sbxd_1a"),
        ("dispute.closed", "sbxd_1a"),
    ]
    assert {(event.payment_reference, event.attempt_id) for event in events} == {("sbx_1a_dispute_lost", "att_1a")}
    assert len({event.event_id for event in events}) == 3
