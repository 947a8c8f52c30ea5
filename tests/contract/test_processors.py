"""The contract suite over the built-in processors, and proof that it finds the faults it is meant to find."""

import asyncio
import hashlib
import hmac
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import aiohttp
import pytest

from loop.domain.attempts import ActionRequired, Approved, Cancelled, NotSent, Outcome, Unknown
from loop.domain.disputes import DisputeOutcome, DisputeStatus
from loop.domain.refunds import RefundOutcome, RefundStatus
from loop.processors.base import (
    Account,
    AuthorizeRequest,
    DisputeReference,
    IdempotencyKey,
    PaymentReference,
    Processor,
    ProcessorSetup,
    RefundRequest,
    WebhookEvent,
)
from loop.processors.razorpay import RazorpayProcessor
from loop.processors.sandbox import SandboxProcessor
from loop.processors.stripe import StripeProcessor
from loop.testing.processor_contract import ProcessorContract, Subject, Tokens, WebhookSample, new_key, new_request
from loop.testing.stub_faults import Fault
from loop.testing.stub_psp import StubProcessor
from tests.contract.stub_clients import control

CHALLENGE_SECRET = b"challenge-secret-canary"


def setup(api_base: str | None = None) -> ProcessorSetup:
    return ProcessorSetup(
        api_base=api_base, timeout_s=10.0, public_url="http://loop.example", challenge_secret=CHALLENGE_SECRET
    )


def account(**credentials: str) -> Account:
    return Account(config_id="pcf_1", merchant_id="mer_1", is_test_mode=True, credentials=credentials)


def sign_for_sandbox(body: bytes, secret: str, at: datetime) -> Mapping[str, str]:
    del at
    return {"x-sandbox-signature": hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}


def sign_for_stripe(body: bytes, secret: str, at: datetime) -> Mapping[str, str]:
    seconds = int(at.timestamp())
    digest = hmac.new(secret.encode(), f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
    return {"stripe-signature": f"t={seconds},v1={'0' * 64},v1={digest},v0=ignored"}


def sign_for_razorpay(body: bytes, secret: str, at: datetime) -> Mapping[str, str]:
    del at
    return {"x-razorpay-signature": hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}


def counted_in_sandbox(processor: Processor, attempt_id: str, kinds: Sequence[str]) -> int:
    assert isinstance(processor, SandboxProcessor)
    return sum(each.attempt_id == attempt_id and each.kind in kinds for each in processor.ledger())


async def disputed_in_sandbox(processor: Processor) -> DisputeReference:
    wanted = new_request("tok_dispute")
    paid = await processor.authorize(SANDBOX.account, wanted, key=new_key("pay"))
    assert isinstance(paid, Approved)
    reference = f"sbxd_{wanted.attempt_id.removeprefix('att_')}"
    return DisputeReference(reference, PaymentReference(paid.reference, wanted))


SANDBOX = Subject(
    factory=SandboxProcessor,
    setup=setup(),
    account=account(webhookSecret="whsec_canary"),
    tokens=Tokens(
        approved="tok_approve",
        declined="tok_decline_insufficient_funds",
        action_required="tok_3ds",
        timeout_then_charged="tok_timeout_then_charged",
        timeout_then_nothing="tok_timeout_then_nothing",
        slow="tok_slow",
    ),
    webhook=WebhookSample(
        body=json.dumps({"id": "evt_1", "type": "payment.captured", "payment": "sbx_1_approve"}).encode(),
        payment_reference="sbx_1_approve",
        header="x-sandbox-signature",
        sign=sign_for_sandbox,
        signs_time=False,
    ),
    charges_of=lambda processor, attempt_id: counted_in_sandbox(processor, attempt_id, ("authorization", "charge")),
    refunds_of=lambda processor, attempt_id: counted_in_sandbox(processor, attempt_id, ("refund",)),
    disputed=disputed_in_sandbox,
)

STRIPE_EVENT = {
    "id": "evt_1",
    "object": "event",
    "type": "payment_intent.succeeded",
    "data": {"object": {"id": "pi_1", "object": "payment_intent", "metadata": {"loop_attempt_id": "att_1"}}},
}


RAZORPAY_EVENT = {
    "entity": "event",
    "event": "payment.captured",
    "payload": {"payment": {"entity": {"id": "pay_1", "entity": "payment", "order_id": "order_1", "notes": []}}},
}


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[StubProcessor]:
    async with StubProcessor(ledger_path=tmp_path / "stripe.ledger", port=0) as running:
        yield running


@pytest.fixture
def dead_address() -> Iterator[str]:
    """Yield an address that nobody can come to listen at meanwhile: it is bound, but not listened at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


class TestSandbox(ProcessorContract):
    @pytest.fixture
    def subject(self) -> Subject:
        return SANDBOX


class TestStripe(ProcessorContract):
    @pytest.fixture
    def subject(self, stub: StubProcessor, dead_address: str) -> Subject:
        def counted(attempt_id: str, kinds: Sequence[str]) -> int:
            rows = stub.ledger()
            return sum(row.metadata.get("loop_attempt_id") == attempt_id and row.kind in kinds for row in rows)

        merchant = account(secretKey="sk_test_canary", publishableKey="pk_test_1", webhookSecret="whsec_canary")

        async def disputed(processor: Processor) -> DisputeReference:
            wanted = new_request("pm_card_visa")
            paid = await processor.authorize(merchant, wanted, key=new_key("pay"))
            assert isinstance(paid, Approved)
            dispute = await control(stub, "disputes", {"payment_intent": paid.reference})
            return DisputeReference(str(dispute["id"]), PaymentReference(paid.reference, wanted))

        return Subject(
            factory=StripeProcessor,
            setup=setup(stub.url),
            account=merchant,
            tokens=Tokens(
                approved="pm_card_visa",
                declined="pm_card_chargeDeclined",
                unknown="pm_card_noSuchCard",
                action_required="pm_card_authenticationRequired",
                timeout_then_charged="pm_card_timeoutThenCharged",
                timeout_then_nothing="pm_card_timeoutThenNothing",
                slow="pm_card_slow",
            ),
            webhook=WebhookSample(
                body=json.dumps(STRIPE_EVENT).encode(),
                payment_reference="pi_1",
                header="stripe-signature",
                sign=sign_for_stripe,
            ),
            charges_of=lambda _, attempt_id: counted(attempt_id, ("authorization", "charge")),
            refunds_of=lambda _, attempt_id: counted(attempt_id, ("refund",)),
            unreachable_api_base=dead_address,
            disputed=disputed,
        )


class RazorpayCustomer(RazorpayProcessor):
    """Razorpay with a customer beside it, who does in the browser what a token asks; other tokens are the adapter's."""

    def __init__(self, setup: ProcessorSetup, stub: StubProcessor) -> None:
        super().__init__(setup)
        self.stub = stub
        self.lost: set[str] = set()

    async def authorize(self, account: Account, request: AuthorizeRequest, *, key: IdempotencyKey) -> Outcome:
        visit = request.token or ""
        if not visit.startswith("customer_"):
            return await super().authorize(account, request, key=key)
        if visit == "customer_is_slow":
            self.stub.faults.arm(Fault(kind="slow", path="/v1/orders", delay_s=2.0))
        if visit == "customer_of_lost_request" and request.attempt_id not in self.lost:
            self.stub.faults.arm(Fault(kind="drop_before", path="/v1/orders"))
            self.lost.add(request.attempt_id)
        outcome = await super().authorize(account, replace(request, token=None), key=key)
        if visit == "customer_waits" or not isinstance(outcome, ActionRequired):
            return outcome
        payment = PaymentReference(outcome.reference, request)
        try:
            paid = await control(self.stub, f"razorpay/orders/{outcome.reference}/pay", {})
        except aiohttp.ClientResponseError:  # in another tab
            return await self.fetch(account, payment)
        if visit == "customer_of_lost_answer":
            self.stub.faults.arm(Fault(kind="drop_after", path="/v1/payments"))
        return await self.complete_action(account, payment, parameters=paid["callback"])


class TestRazorpay(ProcessorContract):
    @pytest.fixture
    def subject(self, stub: StubProcessor, dead_address: str) -> Subject:
        def counted(attempt_id: str, kinds: Sequence[str]) -> int:
            rows = stub.ledger()
            return sum(row.metadata.get("loop_attempt_id") == attempt_id and row.kind in kinds for row in rows)

        merchant = account(keyId="rzp_test_1", keySecret="secret_canary", webhookSecret="whsec_canary")

        async def disputed(processor: Processor) -> DisputeReference:
            wanted = new_request("customer_pays")
            paid = await processor.authorize(merchant, wanted, key=new_key("pay"))
            assert isinstance(paid, Approved)
            dispute = await control(stub, f"razorpay/payments/{paid.transaction_reference}/dispute", {})
            return DisputeReference(str(dispute["id"]), PaymentReference(paid.reference, wanted))

        return Subject(
            factory=lambda made_with: RazorpayCustomer(made_with, stub),
            setup=setup(stub.url),
            account=merchant,
            tokens=Tokens(
                approved="customer_pays",
                declined="token_of_a_saved_card",
                unknown="pay_1",
                action_required="customer_waits",
                timeout_then_charged="customer_of_lost_answer",
                timeout_then_nothing="customer_of_lost_request",
                slow="customer_is_slow",
            ),
            webhook=WebhookSample(
                body=json.dumps(RAZORPAY_EVENT).encode(),
                payment_reference="order_1",
                header="x-razorpay-signature",
                sign=sign_for_razorpay,
                signs_time=False,
            ),
            charges_of=lambda _, attempt_id: counted(attempt_id, ("authorization", "charge")),
            refunds_of=lambda _, attempt_id: counted(attempt_id, ("refund",)),
            unreachable_api_base=dead_address,
            disputed=disputed,
        )

    @pytest.mark.parametrize("has_token", [True, False])
    async def test_unfinished_payment_can_be_cancelled(
        self, processor: Processor, subject: Subject, *, has_token: bool
    ) -> None:
        """Razorpay itself has no end for an order: Loop gives it up, and a customer who pays late is heard of."""
        request = new_request(subject.tokens.action_required if has_token else None)
        outcome = await processor.authorize(subject.account, request, key=new_key("pay"))
        assert isinstance(outcome, ActionRequired)
        payment = PaymentReference(outcome.reference, request)
        assert isinstance(await processor.void(subject.account, payment, key=new_key("void")), Cancelled)
        assert isinstance(await processor.fetch(subject.account, payment), ActionRequired)
        assert subject.charges_of(processor, request.attempt_id) == 0
        assert isinstance(processor, RazorpayCustomer)
        await control(processor.stub, f"razorpay/orders/{outcome.reference}/pay", {})
        assert isinstance(await processor.fetch(subject.account, payment), Approved)


class ChargesAgain(SandboxProcessor):
    """Takes a repeated key for a new payment."""

    calls = 0

    async def authorize(self, account: Account, request: AuthorizeRequest, *, key: IdempotencyKey) -> Outcome:
        self.calls += 1
        return await super().authorize(account, request, key=IdempotencyKey(f"{key}{self.calls}"))


class RefundsAgain(SandboxProcessor):
    """Takes a repeated key for a new refund."""

    calls = 0

    async def refund(self, account: Account, request: RefundRequest, *, key: IdempotencyKey) -> RefundOutcome:
        self.calls += 1
        return await super().refund(account, request, key=IdempotencyKey(f"{key}{self.calls}"))


class RaisesAtItsDeadline(SandboxProcessor):
    """Lets the time-out of a call out as an exception."""

    async def authorize(self, account: Account, request: AuthorizeRequest, *, key: IdempotencyKey) -> Outcome:
        async with asyncio.timeout(self._setup.timeout_s):
            return await self._authorize(account, request, key=key)


class FailsWhatIsUnclear(SandboxProcessor):
    """Calls a payment failed when no answer came."""

    async def authorize(self, account: Account, request: AuthorizeRequest, *, key: IdempotencyKey) -> Outcome:
        outcome = await super().authorize(account, request, key=key)
        return NotSent("timeout", "no answer") if isinstance(outcome, Unknown) else outcome


class TrustsAnyWebhook(SandboxProcessor):
    """Reads webhooks without looking at their signature."""

    def parse_webhook(
        self, body: bytes, headers: Mapping[str, str], *, secrets: Sequence[str], now: datetime
    ) -> WebhookEvent:
        del body, headers, secrets, now
        return WebhookEvent("evt_1", "payment.captured", "sbx_1_approve")


class TrustsTheReturn(SandboxProcessor):
    """Takes the customer's coming back for the customer's payment."""

    async def complete_action(
        self, account: Account, payment: PaymentReference, *, parameters: Mapping[str, str]
    ) -> Outcome:
        del account, parameters
        amount = payment.request.amount
        return Approved(str(payment.reference), is_captured=True, amount_minor=amount.amount_minor)


class RefundsWithoutLimit(SandboxProcessor):
    """Gives back whatever it is asked for."""

    async def refund(self, account: Account, request: RefundRequest, *, key: IdempotencyKey) -> RefundOutcome:
        del account, request, key
        return RefundOutcome(RefundStatus.SUCCEEDED, "refund")


class RefusesForAnybody(SandboxProcessor):
    """Calls a refund failed of which only another account can know."""

    async def refund(self, account: Account, request: RefundRequest, *, key: IdempotencyKey) -> RefundOutcome:
        outcome = await super().refund(account, request, key=key)
        return replace(outcome, status=RefundStatus.FAILED) if outcome.status is RefundStatus.UNKNOWN else outcome


class InventsDisputes(SandboxProcessor):
    """Takes what it does not find for something that was lost."""

    async def fetch_dispute(self, account: Account, dispute: DisputeReference) -> DisputeOutcome | Unknown:
        del account
        payment = dispute.payment
        amount = payment.request.amount
        return DisputeOutcome(dispute.reference, str(payment.reference), DisputeStatus.LOST, amount)


class ForgetsWhatIsDisputed(SandboxProcessor):
    """Tells of a dispute without its payment."""

    async def fetch_dispute(self, account: Account, dispute: DisputeReference) -> DisputeOutcome | Unknown:
        outcome = await super().fetch_dispute(account, dispute)
        return replace(outcome, payment_reference="") if isinstance(outcome, DisputeOutcome) else outcome


class ShowsItsCredentials(SandboxProcessor):
    """Puts a credential into what it tells."""

    async def check(self, account: Account) -> str | None:
        return f"cannot use {account.credentials['webhookSecret']}"


Check = Callable[[ProcessorContract, Processor, Subject], Awaitable[None] | None]

FAULTS: list[tuple[type[SandboxProcessor], Check]] = [
    (ChargesAgain, lambda suite, processor, subject: suite.test_repeated_key_charges_once(processor, subject)),
    (ChargesAgain, lambda suite, processor, subject: suite.test_concurrent_key_charges_once(processor, subject)),
    (RefundsAgain, lambda suite, processor, subject: suite.test_refund_once_per_key(processor, subject)),
    (RaisesAtItsDeadline, lambda suite, _, subject: suite.test_deadline_is_unknown(subject)),
    (
        FailsWhatIsUnclear,
        lambda suite, processor, subject: suite.test_lost_answer_is_unknown_until_asked_again(processor, subject),
    ),
    (TrustsAnyWebhook, lambda suite, processor, subject: suite.test_forged_webhook_is_refused(processor, subject)),
    (
        TrustsAnyWebhook,
        lambda suite, processor, subject: suite.test_webhook_without_signature_is_refused(processor, subject),
    ),
    (TrustsTheReturn, lambda suite, processor, subject: suite.test_action_is_not_a_charge(processor, subject)),
    (
        RefundsWithoutLimit,
        lambda suite, processor, subject: suite.test_refund_of_too_much_is_an_outcome(processor, subject),
    ),
    (
        RefusesForAnybody,
        lambda suite, processor, subject: suite.test_refund_of_an_unknown_payment_is_not_called_failed(
            processor, subject
        ),
    ),
    (
        InventsDisputes,
        lambda suite, processor, subject: suite.test_dispute_that_nobody_raised_is_unknown(processor, subject),
    ),
    (
        ForgetsWhatIsDisputed,
        lambda suite, processor, subject: suite.test_dispute_names_its_payment(processor, subject),
    ),
    (ShowsItsCredentials, lambda suite, processor, subject: suite.test_no_secret_is_shown(processor, subject)),
]


@pytest.mark.parametrize(("faulty", "check"), FAULTS)
async def test_suite_finds_the_fault(faulty: type[SandboxProcessor], check: Check) -> None:
    subject = replace(SANDBOX, factory=faulty)
    with pytest.raises((AssertionError, TimeoutError, pytest.fail.Exception)):
        await finished(check(ProcessorContract(), faulty(subject.setup), subject))
    await finished(check(ProcessorContract(), SandboxProcessor(SANDBOX.setup), SANDBOX))


async def finished(result: Awaitable[None] | None) -> None:
    if result is not None:
        await result
