"""The contract suite: what every processor must do, run by pytest against one that its author describes."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from loop.domain.attempts import ActionRequired, Approved, Cancelled, Declined, NotSent, Outcome, Unknown, Voided
from loop.domain.disputes import DisputeOutcome, DisputeStatus
from loop.domain.ids import PREFIX_ATTEMPT, PREFIX_ORDER, PREFIX_REFUND, make_id
from loop.domain.money import Money
from loop.domain.refunds import RefundOutcome, RefundStatus
from loop.processors.base import (
    Account,
    AuthorizeRequest,
    DisputeReference,
    IdempotencyKey,
    PaymentReference,
    Processor,
    ProcessorFactory,
    ProcessorSetup,
    RefundReference,
    RefundRequest,
    TellsDisputes,
    WebhookSignatureError,
)

AMOUNT = Money(5_000, "USD")
PART = Money(2_000, "USD")
RETURN_URL = "https://shop.example/return"

HURRIED_S = 0.3
"""The deadline of the call that must not wait for the slow token, in seconds."""

GRACE_S = 1.0
"""How much later than its deadline such a call may end on a busy machine, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The processor's test tokens by what they do; a test whose token is None is skipped."""

    approved: str
    declined: str
    unknown: str = "no_such_token"
    action_required: str | None = None
    timeout_then_charged: str | None = None
    timeout_then_nothing: str | None = None
    slow: str | None = None
    """Takes at least two seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSample:
    """One genuine webhook, and how the processor signs: `sign(body, secret, at)` gives lower-case headers."""

    body: bytes
    payment_reference: str
    header: str
    sign: Callable[[bytes, str, datetime], Mapping[str, str]]
    signs_time: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A processor under test. The two ledgers are the processor's own, never what it says of itself to Loop.

    `charges_of(processor, attempt_id)` counts how often money was held or taken for an attempt, and
    `refunds_of(processor, attempt_id)` how often it was given back.
    """

    factory: ProcessorFactory
    setup: ProcessorSetup
    account: Account
    tokens: Tokens
    webhook: WebhookSample
    charges_of: Callable[[Processor, str], int]
    refunds_of: Callable[[Processor, str], int]
    unreachable_api_base: str | None = field(default=None)
    """An address where nobody listens; None for a processor that calls nobody."""
    disputed: Callable[[Processor], Awaitable[DisputeReference]] | None = field(default=None)
    """Pays, and has the whole payment disputed; None for a processor that tells of no disputes."""


def _now() -> datetime:
    return datetime.fromtimestamp(time.time_ns() / 1e9, UTC)


def new_request(token: str | None, *, is_manual_capture: bool = False) -> AuthorizeRequest:
    """Return a request for a new attempt of a new order."""
    now = _now()
    return AuthorizeRequest(
        order_id=make_id(PREFIX_ORDER, now, random_bytes=secrets.token_bytes),
        attempt_id=make_id(PREFIX_ATTEMPT, now, random_bytes=secrets.token_bytes),
        amount=AMOUNT,
        is_manual_capture=is_manual_capture,
        payment_method="card",
        token=token,
        customer_email="buyer@shop.example",
        description="Contract suite",
        return_url=RETURN_URL,
        created_at=now,
    )


def new_key(operation: str) -> IdempotencyKey:
    """Return a key that was never used."""
    return IdempotencyKey(f"lpi_{operation}_{secrets.token_hex(12)}")


def new_refund(payment: PaymentReference, amount: Money) -> RefundRequest:
    """Return a request for a new refund."""
    refund_id = make_id(PREFIX_REFUND, _now(), random_bytes=secrets.token_bytes)
    return RefundRequest(refund_id=refund_id, payment=payment, amount=amount, reason="the parcel was late")


def _needed(token: str | None) -> str:
    if token is None:
        pytest.skip("the processor has no such test token")
    return token


def _reference(outcome: Outcome) -> str:
    assert not isinstance(outcome, NotSent)
    assert outcome.reference
    return outcome.reference


class ProcessorContract:
    """Subclass it and give it one fixture, `subject`; needs pytest-asyncio in its `auto` mode."""

    @pytest.fixture
    def subject(self) -> Subject:
        """Describe the processor under test."""
        raise NotImplementedError("override the fixture `subject`")

    @pytest.fixture
    async def processor(self, subject: Subject) -> AsyncIterator[Processor]:
        """Make the processor, and close it after the test."""
        made = subject.factory(subject.setup)
        yield made
        await made.close()

    async def paid(
        self, processor: Processor, subject: Subject, *, is_manual_capture: bool = False
    ) -> PaymentReference:
        """Return a new payment that the processor approved."""
        request = new_request(subject.tokens.approved, is_manual_capture=is_manual_capture)
        outcome = await processor.authorize(subject.account, request, key=new_key("pay"))
        assert isinstance(outcome, Approved)
        return PaymentReference(outcome.reference, request)

    def test_is_a_processor(self, processor: Processor) -> None:
        """It offers everything that the seam names, and names its credentials once each."""
        assert isinstance(processor, Processor)
        names = [each.name for each in processor.credentials_schema]
        assert len(names) == len(set(names))

    async def test_charge(self, processor: Processor, subject: Subject) -> None:
        """A good token is charged once, in full."""
        request = new_request(subject.tokens.approved)
        outcome = await processor.authorize(subject.account, request, key=new_key("pay"))
        assert isinstance(outcome, Approved)
        assert outcome.is_captured
        assert outcome.amount_minor == AMOUNT.amount_minor
        assert subject.charges_of(processor, request.attempt_id) == 1

    async def test_repeated_key_charges_once(self, processor: Processor, subject: Subject) -> None:
        """The same key again has no second effect and the same answer."""
        request, key = new_request(subject.tokens.approved), new_key("pay")
        first = await processor.authorize(subject.account, request, key=key)
        again = await processor.authorize(subject.account, request, key=key)
        assert again == first
        assert subject.charges_of(processor, request.attempt_id) == 1

    async def test_concurrent_key_charges_once(self, processor: Processor, subject: Subject) -> None:
        """The same key several times at once has one effect, and nobody is told a lie."""
        request, key = new_request(subject.tokens.approved), new_key("pay")
        calls = (processor.authorize(subject.account, request, key=key) for _ in range(4))
        outcomes = await asyncio.gather(*calls)
        assert any(isinstance(each, Approved) for each in outcomes)
        assert all(isinstance(each, Approved | Unknown | NotSent) for each in outcomes)
        assert subject.charges_of(processor, request.attempt_id) == 1

    async def test_decline_is_an_outcome(self, processor: Processor, subject: Subject) -> None:
        """A refused card is `Declined`, again and again, and nothing is charged."""
        request, key = new_request(subject.tokens.declined), new_key("pay")
        first = await processor.authorize(subject.account, request, key=key)
        assert isinstance(first, Declined)
        assert first.code
        assert first.message
        assert await processor.authorize(subject.account, request, key=key) == first
        assert subject.charges_of(processor, request.attempt_id) == 0

    async def test_unknown_token_is_an_outcome(self, processor: Processor, subject: Subject) -> None:
        """A token the processor never gave out is refused, not raised about."""
        request = new_request(subject.tokens.unknown)
        outcome = await processor.authorize(subject.account, request, key=new_key("pay"))
        assert isinstance(outcome, Declined | NotSent)
        assert subject.charges_of(processor, request.attempt_id) == 0

    async def test_hold_and_capture(self, processor: Processor, subject: Subject) -> None:
        """Manual capture holds; the capture takes it once, however often its key is repeated."""
        if not processor.capabilities.can_capture_manually:
            pytest.skip("the processor cannot hold money")
        payment = await self.paid(processor, subject, is_manual_capture=True)
        held = await processor.fetch(subject.account, payment)
        assert isinstance(held, Approved)
        assert (held.is_captured, held.amount_minor) == (False, AMOUNT.amount_minor)
        key = new_key("capture")
        taken = await processor.capture(subject.account, payment, amount=AMOUNT, key=key)
        assert isinstance(taken, Approved)
        assert (taken.is_captured, taken.amount_minor) == (True, AMOUNT.amount_minor)
        assert await processor.capture(subject.account, payment, amount=AMOUNT, key=key) == taken
        assert subject.charges_of(processor, payment.request.attempt_id) == 1

    async def test_second_capture_tells_the_truth(self, processor: Processor, subject: Subject) -> None:
        """Capturing what is captured, under a new key, changes nothing and says how it stands."""
        if not processor.capabilities.can_capture_partially:
            pytest.skip("the processor cannot capture a part")
        payment = await self.paid(processor, subject, is_manual_capture=True)
        taken = await processor.capture(subject.account, payment, amount=PART, key=new_key("capture"))
        assert isinstance(taken, Approved)
        assert (taken.is_captured, taken.amount_minor) == (True, PART.amount_minor)
        again = await processor.capture(subject.account, payment, amount=AMOUNT, key=new_key("capture"))
        assert again == taken

    async def test_capture_of_too_much_is_an_outcome(self, processor: Processor, subject: Subject) -> None:
        """More than is held is refused and leaves the hold as it was."""
        if not processor.capabilities.can_capture_manually:
            pytest.skip("the processor cannot hold money")
        payment = await self.paid(processor, subject, is_manual_capture=True)
        outcome = await processor.capture(subject.account, payment, amount=AMOUNT + PART, key=new_key("capture"))
        assert isinstance(outcome, Declined | NotSent)
        held = await processor.fetch(subject.account, payment)
        assert isinstance(held, Approved)
        assert not held.is_captured

    async def test_void(self, processor: Processor, subject: Subject) -> None:
        """A released hold stays released: it cannot be captured any more."""
        if not processor.capabilities.can_void:
            pytest.skip("the processor cannot release a hold")
        payment = await self.paid(processor, subject, is_manual_capture=True)
        key = new_key("void")
        voided = await processor.void(subject.account, payment, key=key)
        assert isinstance(voided, Voided)
        assert await processor.void(subject.account, payment, key=key) == voided
        assert isinstance(await processor.void(subject.account, payment, key=new_key("void")), Voided)
        assert isinstance(await processor.fetch(subject.account, payment), Voided)
        late = await processor.capture(subject.account, payment, amount=AMOUNT, key=new_key("capture"))
        assert not isinstance(late, Approved)

    async def test_void_of_a_paid_payment_tells_the_truth(self, processor: Processor, subject: Subject) -> None:
        """What is captured cannot be released; the answer says that it is captured."""
        payment = await self.paid(processor, subject)
        outcome = await processor.void(subject.account, payment, key=new_key("void"))
        assert isinstance(outcome, Approved)
        assert outcome.is_captured

    async def test_refund_once_per_key(self, processor: Processor, subject: Subject) -> None:
        """A refund's key repeated gives the money back once and answers the same."""
        payment = await self.paid(processor, subject)
        request, key = new_refund(payment, PART), new_key("refund")
        first = await processor.refund(subject.account, request, key=key)
        assert first.status in (RefundStatus.SUCCEEDED, RefundStatus.PENDING)
        assert await processor.refund(subject.account, request, key=key) == first
        assert subject.refunds_of(processor, payment.request.attempt_id) == 1
        fetched = await processor.fetch_refund(subject.account, RefundReference(first.reference, request))
        assert fetched.status in (first.status, RefundStatus.SUCCEEDED)
        assert fetched.reference == first.reference

    async def test_refund_in_parts(self, processor: Processor, subject: Subject) -> None:
        """Parts add up to what was captured, and not one unit more."""
        if not processor.capabilities.can_refund_partially:
            pytest.skip("the processor cannot refund a part")
        payment = await self.paid(processor, subject)
        for amount in (PART, AMOUNT - PART):
            outcome = await processor.refund(subject.account, new_refund(payment, amount), key=new_key("refund"))
            assert outcome.status in (RefundStatus.SUCCEEDED, RefundStatus.PENDING)
        more = await processor.refund(subject.account, new_refund(payment, Money(1, "USD")), key=new_key("refund"))
        assert more.status is RefundStatus.FAILED
        assert subject.refunds_of(processor, payment.request.attempt_id) == 2

    async def test_refund_of_too_much_is_an_outcome(self, processor: Processor, subject: Subject) -> None:
        """More than was captured is a failed refund, not an error, and nothing is given back."""
        payment = await self.paid(processor, subject)
        request = new_refund(payment, AMOUNT + PART)
        outcome = await processor.refund(subject.account, request, key=new_key("refund"))
        assert outcome.status is RefundStatus.FAILED
        assert outcome.error_code
        assert subject.refunds_of(processor, payment.request.attempt_id) == 0

    async def test_refund_of_an_unknown_payment_is_not_called_failed(
        self, processor: Processor, subject: Subject
    ) -> None:
        """An account that does not know the payment may be another than the paid one, which may have refunded it."""
        payment = await self.paid(processor, subject)
        elsewhere = replace(payment, reference=f"{str(payment.reference)[:-4]}none")
        outcome = await processor.refund(subject.account, new_refund(elsewhere, PART), key=new_key("refund"))
        assert outcome.status is RefundStatus.UNKNOWN

    async def test_unheard_refund_is_not_called_failed(self, processor: Processor, subject: Subject) -> None:
        """A refund that nobody asked for yet is unknown, so that it is asked for again under its key."""
        payment = await self.paid(processor, subject)
        reference = RefundReference(None, new_refund(payment, PART))
        assert (await processor.fetch_refund(subject.account, reference)).status is RefundStatus.UNKNOWN

    async def test_dispute_names_its_payment(self, processor: Processor, subject: Subject) -> None:
        """A dispute is told with its payment and its amount, however often it is asked about."""
        if subject.disputed is None:
            pytest.skip("the processor tells of no disputes")
        assert isinstance(processor, TellsDisputes)
        dispute = await subject.disputed(processor)
        for _ in range(2):
            outcome = await processor.fetch_dispute(subject.account, dispute)
            assert isinstance(outcome, DisputeOutcome)
            assert outcome.status in (DisputeStatus.OPENED, DisputeStatus.INQUIRY)
            assert (outcome.reference, outcome.payment_reference) == (dispute.reference, dispute.payment.reference)
            assert outcome.amount == dispute.payment.request.amount

    async def test_dispute_that_nobody_raised_is_unknown(self, processor: Processor, subject: Subject) -> None:
        """What the processor does not find is no dispute that was won or lost."""
        if not isinstance(processor, TellsDisputes):
            pytest.skip("the processor tells of no disputes")
        dispute = DisputeReference("no_such_dispute", await self.paid(processor, subject))
        assert isinstance(await processor.fetch_dispute(subject.account, dispute), Unknown)

    async def test_fetch_agrees(self, processor: Processor, subject: Subject) -> None:
        """Asking about a payment, with its reference or by its attempt alone, tells what paying told."""
        request = new_request(subject.tokens.approved)
        outcome = await processor.authorize(subject.account, request, key=new_key("pay"))
        reference = _reference(outcome)
        assert await processor.fetch(subject.account, PaymentReference(reference, request)) == outcome
        assert await processor.fetch(subject.account, PaymentReference(None, request)) in (outcome, Unknown(""))

    async def test_lost_answer_is_unknown_until_asked_again(self, processor: Processor, subject: Subject) -> None:
        """Charged but unheard: unknown, never failed; the same key then tells it without a second charge."""
        request, key = new_request(_needed(subject.tokens.timeout_then_charged)), new_key("pay")
        assert isinstance(await processor.authorize(subject.account, request, key=key), Unknown)
        assert subject.charges_of(processor, request.attempt_id) == 1
        found = await processor.fetch(subject.account, PaymentReference(None, request))
        assert isinstance(found, Approved | Unknown)
        assert isinstance(await processor.authorize(subject.account, request, key=key), Approved)
        assert subject.charges_of(processor, request.attempt_id) == 1

    async def test_lost_request_is_unknown_until_asked_again(self, processor: Processor, subject: Subject) -> None:
        """Lost on the way there: unknown just the same; the same key then charges once."""
        request, key = new_request(_needed(subject.tokens.timeout_then_nothing)), new_key("pay")
        assert isinstance(await processor.authorize(subject.account, request, key=key), Unknown)
        assert subject.charges_of(processor, request.attempt_id) == 0
        assert isinstance(await processor.authorize(subject.account, request, key=key), Approved)
        assert subject.charges_of(processor, request.attempt_id) == 1

    async def test_deadline_is_unknown(self, subject: Subject) -> None:
        """A call ends at its deadline, as unknown, whatever the other side does."""
        request = new_request(_needed(subject.tokens.slow))
        hurried = subject.factory(replace(subject.setup, timeout_s=HURRIED_S))
        started = time.monotonic()
        try:
            outcome = await hurried.authorize(subject.account, request, key=new_key("pay"))
        finally:
            await hurried.close()
        assert isinstance(outcome, Unknown)
        assert time.monotonic() - started < HURRIED_S + GRACE_S

    async def test_unreachable_is_not_sent(self, subject: Subject) -> None:
        """Where nobody listens nothing was sent; questions stay open, and no method raises."""
        if subject.unreachable_api_base is None:
            pytest.skip("the processor calls nobody")
        cut_off = subject.factory(replace(subject.setup, api_base=subject.unreachable_api_base))
        account, request = subject.account, new_request(subject.tokens.approved)
        payment = PaymentReference("some_reference", request)
        refund = new_refund(payment, PART)
        try:
            assert isinstance(await cut_off.authorize(account, request, key=new_key("pay")), NotSent)
            assert isinstance(await cut_off.capture(account, payment, amount=PART, key=new_key("capture")), NotSent)
            assert isinstance(await cut_off.void(account, payment, key=new_key("void")), NotSent)
            assert isinstance(await cut_off.fetch(account, payment), Unknown)
            assert isinstance(await cut_off.complete_action(account, payment, parameters={}), Unknown)
            unknown: list[RefundOutcome] = [
                await cut_off.refund(account, refund, key=new_key("refund")),
                await cut_off.fetch_refund(account, RefundReference("some_reference", refund)),
            ]
            assert {each.status for each in unknown} == {RefundStatus.UNKNOWN}
            if isinstance(cut_off, TellsDisputes):
                dispute = DisputeReference("some_reference", payment)
                assert isinstance(await cut_off.fetch_dispute(account, dispute), Unknown)
            assert await cut_off.check(account)
        finally:
            await cut_off.close()

    async def test_action_is_not_a_charge(self, processor: Processor, subject: Subject) -> None:
        """While the customer must act nothing is charged, and coming back without proof pays nothing."""
        request = new_request(_needed(subject.tokens.action_required))
        outcome = await processor.authorize(subject.account, request, key=new_key("pay"))
        assert isinstance(outcome, ActionRequired)
        assert outcome.redirect_url or outcome.client_secret or outcome.processor_data
        payment = PaymentReference(outcome.reference, request)
        forged = {"status": "succeeded", "redirect_status": "succeeded", "signature": "0" * 64}
        for parameters in ({}, forged):
            back = await processor.complete_action(subject.account, payment, parameters=parameters)
            assert isinstance(back, ActionRequired)
        assert subject.charges_of(processor, request.attempt_id) == 0

    @pytest.mark.parametrize("has_token", [True, False])
    async def test_unfinished_payment_can_be_cancelled(
        self, processor: Processor, subject: Subject, *, has_token: bool
    ) -> None:
        """A payment that waits for its customer, with or without a token, can be ended for good."""
        request = new_request(_needed(subject.tokens.action_required) if has_token else None)
        outcome = await processor.authorize(subject.account, request, key=new_key("pay"))
        assert isinstance(outcome, ActionRequired)
        payment = PaymentReference(outcome.reference, request)
        assert isinstance(await processor.void(subject.account, payment, key=new_key("void")), Cancelled)
        assert isinstance(await processor.fetch(subject.account, payment), Cancelled)
        assert subject.charges_of(processor, request.attempt_id) == 0

    async def test_good_credentials_check(self, processor: Processor, subject: Subject) -> None:
        """The account's own credentials are found to work."""
        assert await processor.check(subject.account) is None

    async def test_no_secret_is_shown(self, processor: Processor, subject: Subject) -> None:
        """Neither credentials nor a client's secret appear where somebody might log them."""
        names = {each.name for each in processor.credentials_schema if each.is_secret}
        hidden = [value for name, value in subject.account.credentials.items() if name in names]
        request = new_request(None)
        outcome = await processor.authorize(subject.account, request, key=new_key("pay"))
        if isinstance(outcome, ActionRequired) and outcome.client_secret is not None:
            hidden.append(outcome.client_secret)
        assert hidden
        wrong = replace(subject.account, credentials=dict.fromkeys(subject.account.credentials, "sk_wrong_canary"))
        refused = await processor.authorize(wrong, new_request(subject.tokens.unknown), key=new_key("pay"))
        hidden.append("sk_wrong_canary")
        shown = [subject.account, subject.setup, processor, request, outcome, wrong, refused]
        shown.append(await processor.check(wrong))
        for each in shown:
            assert not any(secret in repr(each) or secret in str(each) for secret in hidden)

    def test_webhook_is_verified(self, processor: Processor, subject: Subject) -> None:
        """A genuine webhook is read, under the newest of several secrets and under an older one."""
        sample, now = subject.webhook, _now()
        for secrets_known in (["whsec_one"], ["whsec_new", "whsec_one"], ["whsec_one", "whsec_old"]):
            headers = sample.sign(sample.body, "whsec_one", now)
            event = processor.parse_webhook(sample.body, headers, secrets=secrets_known, now=now)
            assert event.payment_reference == sample.payment_reference
            assert event.event_id

    def test_webhook_without_signature_is_refused(self, processor: Processor, subject: Subject) -> None:
        """No signature, no event."""
        with pytest.raises(WebhookSignatureError) as caught:
            processor.parse_webhook(subject.webhook.body, {}, secrets=["whsec_one"], now=_now())
        assert caught.value.code == "missing_signature"

    @pytest.mark.parametrize("signature", ["", "nonsense", "t=,v1=", "t=1,v1=é", "é" * 64, "\udcff", "v1=" * 5_000])
    def test_malformed_signature_is_refused(self, processor: Processor, subject: Subject, *, signature: str) -> None:
        """Whatever a stranger puts into the header is refused, and never an error of another kind."""
        with pytest.raises(WebhookSignatureError) as caught:
            processor.parse_webhook(
                subject.webhook.body, {subject.webhook.header: signature}, secrets=["whsec_one"], now=_now()
            )
        assert caught.value.code == "invalid_signature"

    def test_forged_webhook_is_refused(self, processor: Processor, subject: Subject) -> None:
        """Another secret, another body, or no secret at all: refused."""
        sample, now = subject.webhook, _now()
        genuine = sample.sign(sample.body, "whsec_one", now)
        forgeries: list[tuple[bytes, list[str]]] = [
            (sample.body, ["whsec_two"]),
            (sample.body, []),
            (sample.body + b" ", ["whsec_one"]),
            (b"\xff\xfe" + sample.body, ["whsec_one"]),
        ]
        for body, known in forgeries:
            with pytest.raises(WebhookSignatureError) as caught:
                processor.parse_webhook(body, genuine, secrets=known, now=now)
            assert caught.value.code == "invalid_signature"

    @pytest.mark.parametrize("age_s", [3_600, -3_600])
    def test_webhook_of_another_time_is_refused(self, processor: Processor, subject: Subject, *, age_s: int) -> None:
        """A webhook signed an hour ago, or an hour ahead, is refused."""
        sample, now = subject.webhook, _now()
        if not sample.signs_time:
            pytest.skip("the processor signs no time")
        headers = sample.sign(sample.body, "whsec_one", now - timedelta(seconds=age_s))
        with pytest.raises(WebhookSignatureError) as caught:
            processor.parse_webhook(sample.body, headers, secrets=["whsec_one"], now=now)
        assert caught.value.code == "invalid_signature"

    @pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"null", b"[]", b'"text"', b"{}", b'{"id": 1, "type": 2}'])
    def test_signed_nonsense_is_a_value_error(self, processor: Processor, subject: Subject, *, body: bytes) -> None:
        """A signature makes no sense of a body that has none."""
        now = _now()
        headers = subject.webhook.sign(body, "whsec_one", now)
        with pytest.raises(ValueError, match=r"\w"):
            processor.parse_webhook(body, headers, secrets=["whsec_one"], now=now)
