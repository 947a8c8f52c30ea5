"""Acme Pay's processor passes Loop's contract suite, and sorts the answers that only Acme Pay gives."""

import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

import pytest
from acme_pay import API_KEY, AcmePay, Fault, sign
from acme_processor import AcmeProcessor

from loop.domain.attempts import Approved, Declined, NotSent, Outcome, Pending, Unknown
from loop.domain.refunds import RefundStatus
from loop.processors.base import Account, PaymentReference, ProcessorSetup, RefundReference
from loop.testing.processor_contract import (
    PART,
    ProcessorContract,
    Subject,
    Tokens,
    WebhookSample,
    new_key,
    new_refund,
    new_request,
)

ACCOUNT = Account("pcf_1", "mer_1", is_test_mode=True, credentials={"apiKey": API_KEY, "webhookSecret": "whsec_acme"})
NOW = datetime(2026, 3, 1, tzinfo=UTC)
EVENT = b'{"id": "evt_1", "type": "payment.changed", "payment": "pay_1", "reference": "att_1", "refund": null}'


@pytest.fixture
async def acme() -> AsyncIterator[AcmePay]:
    async with AcmePay() as running:
        yield running


@pytest.fixture
def dead_address() -> Iterator[str]:
    """Yield an address where nobody listens: it is bound and stays so."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def setup(acme: AcmePay) -> ProcessorSetup:
    return ProcessorSetup(
        api_base=acme.url, timeout_s=10.0, public_url="https://loop.example", challenge_secret=b"not used"
    )


class TestContract(ProcessorContract):
    """The published suite."""

    @pytest.fixture
    def subject(self, acme: AcmePay, dead_address: str) -> Subject:
        """Describe Acme Pay; what it did is read from its own ledger."""
        return Subject(
            factory=AcmeProcessor,
            setup=setup(acme),
            account=ACCOUNT,
            tokens=Tokens(
                approved="card_ok",
                declined="card_no_funds",
                action_required="card_3ds",
                timeout_then_charged="card_lost_after",
                timeout_then_nothing="card_lost_before",
                slow="card_slow",
            ),
            webhook=WebhookSample(body=EVENT, payment_reference="pay_1", header="acme-signature", sign=sign),
            charges_of=lambda _, attempt_id: acme.moved(attempt_id, "hold", "charge"),
            refunds_of=lambda _, attempt_id: acme.moved(attempt_id, "refund"),
            unreachable_api_base=dead_address,
        )


@pytest.fixture
async def processor(acme: AcmePay) -> AsyncIterator[AcmeProcessor]:
    made = AcmeProcessor(setup(acme))
    yield made
    await made.close()


async def pay(processor: AcmeProcessor, card: str = "card_ok") -> tuple[PaymentReference, Outcome]:
    request = new_request(card)
    outcome = await processor.authorize(ACCOUNT, request, key=new_key("pay"))
    return PaymentReference(None if isinstance(outcome, NotSent) else outcome.reference, request), outcome


@pytest.mark.parametrize("fault", [500, 502, 307, 400, 404, 409, 429, "drop_before", "drop_after"])
async def test_no_answer_of_acme_pays_own_is_unknown(processor: AcmeProcessor, acme: AcmePay, fault: Fault) -> None:
    """A proxy's page, whatever its status, and a broken connection prove nothing."""
    acme.faults = [fault]
    payment, outcome = await pay(processor)
    assert isinstance(outcome, Unknown)
    acme.faults = [fault]
    assert isinstance(await processor.void(ACCOUNT, payment, key=new_key("void")), Unknown)
    acme.faults = [fault]
    refund = await processor.refund(ACCOUNT, new_refund(payment, PART), key=new_key("refund"))
    assert refund.status is RefundStatus.UNKNOWN


async def test_a_refused_key_proves_that_nothing_happened(processor: AcmeProcessor, acme: AcmePay) -> None:
    payment, _ = await pay(processor)
    stranger = replace(ACCOUNT, credentials={"apiKey": "other\r\nX: y"})
    outcome = await processor.authorize(stranger, new_request("card_ok"), key=new_key("pay"))
    assert outcome == NotSent("configuration", "Acme Pay refused: unknown_key.")
    assert isinstance(await processor.fetch(stranger, payment), Unknown)
    refund = await processor.refund(stranger, new_refund(payment, PART), key=new_key("refund"))
    assert refund.status is RefundStatus.UNKNOWN
    assert await processor.check(stranger) == "Acme Pay refused: unknown_key."
    assert len(acme.ledger) == 1


async def test_a_key_with_another_request_is_unknown(processor: AcmeProcessor, acme: AcmePay) -> None:
    key, request = new_key("pay"), new_request("card_ok")
    await processor.authorize(ACCOUNT, request, key=key)
    other = replace(request, amount=PART)
    assert isinstance(await processor.authorize(ACCOUNT, other, key=key), Unknown)
    assert len(acme.ledger) == 1


async def test_a_payment_without_an_answer_yet_is_pending(processor: AcmeProcessor) -> None:
    payment, outcome = await pay(processor, "card_later")
    assert outcome == Pending(str(payment.reference))


async def test_a_decline_has_loops_code_and_acme_pays(processor: AcmeProcessor) -> None:
    _, outcome = await pay(processor, "card_no_funds")
    assert isinstance(outcome, Declined)
    assert (outcome.code, outcome.raw_code) == ("insufficient_funds", "no_funds")


async def test_a_payment_that_never_arrived_is_unknown(processor: AcmeProcessor) -> None:
    never = PaymentReference(None, new_request("card_ok"))
    assert isinstance(await processor.fetch(ACCOUNT, never), Unknown)


async def test_the_customer_pays_on_acme_pays_page(processor: AcmeProcessor, acme: AcmePay) -> None:
    payment, _ = await pay(processor, "card_3ds")
    acme.customer_pays(str(payment.reference))
    back = await processor.complete_action(ACCOUNT, payment, parameters={})
    assert isinstance(back, Approved)
    assert back.is_captured


@pytest.mark.parametrize(("word", "status"), [("paid", RefundStatus.SUCCEEDED), ("returned", RefundStatus.FAILED)])
async def test_a_refund_ends_later(
    processor: AcmeProcessor, acme: AcmePay, word: Literal["paid", "returned"], status: RefundStatus
) -> None:
    payment, _ = await pay(processor)
    request = new_refund(payment, PART)
    first = await processor.refund(ACCOUNT, request, key=new_key("refund"))
    assert (first.status, first.reference is None) == (RefundStatus.PENDING, False)
    acme.finish_refund(str(first.reference), word)
    for reference in (first.reference, None):
        assert (await processor.fetch_refund(ACCOUNT, RefundReference(reference, request))).status is status


def test_a_webhook_about_a_refund_names_it(processor: AcmeProcessor) -> None:
    body = EVENT.replace(b"null", b'"ref_1"')
    event = processor.parse_webhook(body, sign(body, "whsec_acme", NOW), secrets=["whsec_acme"], now=NOW)
    assert (event.payment_reference, event.attempt_id, event.refund_reference) == ("pay_1", "att_1", "ref_1")


@pytest.mark.parametrize("wrong", [b'"refund": 7', b'"refund": null, "payment": null', b'"refund": null, "id": 1'])
def test_a_signed_webhook_of_another_shape_is_a_value_error(processor: AcmeProcessor, wrong: bytes) -> None:
    body = EVENT.replace(b'"refund": null', wrong)
    with pytest.raises(ValueError, match="not an event"):
        processor.parse_webhook(body, sign(body, "whsec_acme", NOW), secrets=["whsec_acme"], now=NOW)
