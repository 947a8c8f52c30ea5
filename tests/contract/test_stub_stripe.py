"""The stand-in processor speaks Stripe: every promise is called through Stripe's official SDK over a real socket."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
import stripe

from loop.testing.stub_psp import StubProcessor, read_ledger
from tests.contract.stub_clients import API_KEY, METADATA, charges, control, payment, sdk

DECLINES = [
    ("pm_card_visa_chargeDeclined", "card_declined", "generic_decline"),
    ("pm_card_chargeDeclined", "card_declined", "generic_decline"),
    ("pm_card_visa_chargeDeclinedInsufficientFunds", "card_declined", "insufficient_funds"),
    ("pm_card_visa_chargeDeclinedLostCard", "card_declined", "lost_card"),
    ("pm_card_visa_chargeDeclinedStolenCard", "card_declined", "stolen_card"),
    ("pm_card_chargeDeclinedExpiredCard", "expired_card", "expired_card"),
    ("pm_card_chargeDeclinedIncorrectCvc", "incorrect_cvc", "incorrect_cvc"),
    ("pm_card_chargeDeclinedProcessingError", "processing_error", "processing_error"),
]


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[StubProcessor]:
    async with StubProcessor(ledger_path=tmp_path / "ledger.jsonl") as running:
        yield running


@pytest.fixture
async def client(stub: StubProcessor) -> AsyncIterator[stripe.StripeClient]:
    async with sdk(stub.url) as made:
        yield made


async def post(stub: StubProcessor, path: str, form: dict[str, str], **headers: str) -> aiohttp.ClientResponse:
    """Post a form as a client without an SDK would, and read the whole answer."""
    async with aiohttp.ClientSession() as session:
        answer = await session.post(
            f"{stub.url}{path}", data=form, headers={"Authorization": f"Bearer {API_KEY}", **headers}
        )
        await answer.read()
        return answer


@pytest.mark.parametrize("token", ["pm_card_visa", "pm_card_mastercard"])
async def test_card_is_charged_and_the_ledger_says_so(
    stub: StubProcessor, client: stripe.StripeClient, token: str
) -> None:
    intent = await client.v1.payment_intents.create_async(payment(token, expand=["latest_charge"]))

    assert (intent.status, intent.amount_received, intent.livemode) == ("succeeded", 1000, False)
    assert isinstance(intent.latest_charge, stripe.Charge)
    assert intent.latest_charge.captured
    assert intent.client_secret is not None
    assert intent.client_secret.startswith(f"{intent.id}_secret_")
    [entry] = read_ledger(stub.ledger_path)
    assert (entry.kind, entry.amount_minor, entry.currency) == ("charge", 1000, "usd")
    assert (entry.intent, entry.metadata) == (intent.id, METADATA)
    assert (await control(stub, "ledger"))["entries"][0]["intent"] == intent.id


async def test_token_of_a_card_field_is_charged(stub: StubProcessor, client: stripe.StripeClient) -> None:
    params = payment(payment_method_data={"type": "card", "card": {"token": "tok_visa"}})
    del params["payment_method"]
    intent = await client.v1.payment_intents.create_async(params)

    assert intent.status == "succeeded"
    assert charges(stub) == [("charge", 1000)]


@pytest.mark.parametrize(("token", "code", "decline_code"), DECLINES)
async def test_decline_leaves_the_intent_payable(
    stub: StubProcessor, client: stripe.StripeClient, token: str, code: str, decline_code: str
) -> None:
    with pytest.raises(stripe.CardError) as caught:
        await client.v1.payment_intents.create_async(payment(token))

    refusal = caught.value
    assert refusal.http_status == 402
    assert refusal.code == code
    assert refusal.error is not None
    assert refusal.error.decline_code == decline_code
    declined = refusal.error.payment_intent
    assert declined is not None
    assert refusal.error.charge == declined.latest_charge
    kept = await client.v1.payment_intents.retrieve_async(declined.id)
    assert (kept.status, kept.amount_received) == ("requires_payment_method", 0)
    assert kept.last_payment_error is not None
    assert kept.last_payment_error.decline_code == decline_code
    assert charges(stub) == []

    paid = await client.v1.payment_intents.confirm_async(kept.id, {"payment_method": "pm_card_visa"})
    assert paid.status == "succeeded"
    assert charges(stub) == [("charge", 1000)]


async def test_tokens_are_known_or_refused(client: stripe.StripeClient) -> None:
    for token in ("pm_card_unheardOf", "tok_visa", "pm_123"):
        with pytest.raises(stripe.InvalidRequestError) as caught:
            await client.v1.payment_intents.create_async(payment(token))
        assert (caught.value.http_status, caught.value.code) == (400, "resource_missing")


@pytest.mark.parametrize(
    ("token", "outcome", "status", "rows"),
    [
        ("pm_card_authenticationRequired", "authenticate", "succeeded", [("charge", 1000)]),
        ("pm_card_threeDSecure2Required", "authenticate", "requires_capture", [("authorization", 1000)]),
        ("pm_card_threeDSecureRequired", "fail", "requires_payment_method", []),
        ("pm_card_threeDSecureRequiredChargeDeclined", "authenticate", "requires_payment_method", []),
    ],
)
async def test_bank_page_decides(
    stub: StubProcessor,
    client: stripe.StripeClient,
    token: str,
    outcome: str,
    status: str,
    rows: list[tuple[str, int]],
) -> None:
    capture_method = "manual" if status == "requires_capture" else "automatic"
    intent = await client.v1.payment_intents.create_async(
        payment(token, capture_method=capture_method, return_url="http://127.0.0.1:1/back?order=7")
    )
    assert intent.status == "requires_action"
    assert charges(stub) == []
    assert intent.next_action is not None
    assert intent.next_action.type == "redirect_to_url"
    assert intent.next_action.redirect_to_url is not None
    page = intent.next_action.redirect_to_url.url
    assert page is not None

    async with aiohttp.ClientSession() as browser:
        async with browser.get(page) as shown:
            assert shown.status == 200
            assert {'value="authenticate"', 'value="fail"'} < set((await shown.text()).replace(">", " ").split())
        async with browser.post(page, data={"outcome": outcome}, allow_redirects=False) as answered:
            assert answered.status == 303
            told = parse_qs(urlsplit(answered.headers["Location"]).query)
        async with browser.post(page, data={"outcome": outcome}, allow_redirects=False) as repeated:
            assert repeated.status == 404

    assert told == {
        "order": ["7"],
        "payment_intent": [intent.id],
        "payment_intent_client_secret": [intent.client_secret],
        "redirect_status": ["failed" if status == "requires_payment_method" else "succeeded"],
    }
    settled = await client.v1.payment_intents.retrieve_async(intent.id)
    assert (settled.status, settled.next_action) == (status, None)
    assert charges(stub) == rows
    if outcome == "fail":
        assert settled.last_payment_error is not None
        assert settled.last_payment_error.code == "payment_intent_authentication_failure"


async def test_absent_customer_is_declined_instead_of_asked(client: stripe.StripeClient) -> None:
    with pytest.raises(stripe.CardError) as caught:
        await client.v1.payment_intents.create_async(payment("pm_card_authenticationRequired", off_session=True))
    assert caught.value.code == "authentication_required"


async def test_customer_pays_an_unconfirmed_intent(stub: StubProcessor, client: stripe.StripeClient) -> None:
    intent = await client.v1.payment_intents.create_async({"amount": 700, "currency": "eur"})
    assert intent.status == "requires_payment_method"

    told = await control(stub, f"intents/{intent.id}/pay", {"payment_method": "pm_card_visa_chargeDeclinedLostCard"})
    assert told["error"]["decline_code"] == "lost_card"
    told = await control(
        stub, f"intents/{intent.id}/pay", {"payment_method": "pm_card_threeDSecure2Required", "authenticate": True}
    )
    assert (told["intent"]["status"], told["error"]) == ("succeeded", None)
    assert (await client.v1.payment_intents.retrieve_async(intent.id)).status == "succeeded"
    assert charges(stub) == [("charge", 700)]


async def debited(stub: StubProcessor, client: stripe.StripeClient, account: str) -> stripe.PaymentIntent:
    """Return an intent whose customer has accepted the debit of a bank account."""
    intent = await client.v1.payment_intents.create_async({"amount": 700, "currency": "usd"})
    token = f"pm_usBankAccount_{account}"
    told = await control(stub, f"intents/{intent.id}/pay", {"payment_method": token})
    assert (told["intent"]["status"], told["error"]) == ("processing", None)
    return await client.v1.payment_intents.retrieve_async(intent.id, {"expand": ["latest_charge"]})


async def test_a_debit_is_decided_later(stub: StubProcessor, client: stripe.StripeClient) -> None:
    intent = await debited(stub, client, "success")
    assert isinstance(intent.latest_charge, stripe.Charge)
    assert (intent.latest_charge.status, intent.latest_charge.paid) == ("pending", False)
    assert charges(stub) == []
    for refused in (
        client.v1.payment_intents.cancel_async(intent.id),
        client.v1.payment_intents.confirm_async(intent.id, {"payment_method": "pm_card_visa"}),
        client.v1.refunds.create_async({"payment_intent": intent.id}),
    ):
        with pytest.raises(stripe.InvalidRequestError) as caught:
            await refused
        assert caught.value.code == "payment_intent_unexpected_state"

    await control(stub, f"intents/{intent.id}/decide", {})
    paid = await client.v1.payment_intents.retrieve_async(intent.id)
    assert (paid.status, paid.amount_received) == ("succeeded", 700)
    assert charges(stub) == [("charge", 700)]
    with pytest.raises(aiohttp.ClientResponseError, match="400"):
        await control(stub, f"intents/{intent.id}/decide", {})


async def test_a_debit_that_the_bank_returns_leaves_the_intent_payable(
    stub: StubProcessor, client: stripe.StripeClient
) -> None:
    intent = await debited(stub, client, "insufficientFunds")
    await control(stub, f"intents/{intent.id}/decide", {})
    returned = await client.v1.payment_intents.retrieve_async(intent.id)
    assert returned.status == "requires_payment_method"
    assert returned.last_payment_error is not None
    assert returned.last_payment_error.code == "insufficient_funds"
    events = await client.v1.events.list_async({"type": "payment_intent.*"})
    assert [event.type.removeprefix("payment_intent.") for event in events.data][:2] == ["payment_failed", "processing"]
    assert charges(stub) == []
    assert (await client.v1.payment_intents.confirm_async(intent.id, {"payment_method": "pm_card_visa"})).status


async def test_a_debit_that_no_bank_decides_about_can_be_cancelled(
    stub: StubProcessor, client: stripe.StripeClient
) -> None:
    intent = await debited(stub, client, "processing")
    with pytest.raises(aiohttp.ClientResponseError, match="400"):
        await control(stub, f"intents/{intent.id}/decide", {})
    assert (await client.v1.payment_intents.cancel_async(intent.id)).status == "canceled"
    assert charges(stub) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "requires a mandate"),
        ({"currency": "eur"}, "usd"),
        ({"capture_method": "manual"}, "manual capture"),
        ({"payment_method": "pm_usBankAccount_unheardOf"}, "No such PaymentMethod"),
    ],
)
async def test_what_cannot_be_debited_is_refused(
    client: stripe.StripeClient, change: dict[str, object], message: str
) -> None:
    with pytest.raises(stripe.InvalidRequestError, match=message) as caught:
        await client.v1.payment_intents.create_async(payment("pm_usBankAccount_success", **change))
    assert caught.value.http_status == 400


async def test_a_merchant_who_has_the_customer_s_mandate_debits(client: stripe.StripeClient) -> None:
    mandate = {"customer_acceptance": {"type": "online", "online": {"ip_address": "127.0.0.1", "user_agent": "curl"}}}
    intent = await client.v1.payment_intents.create_async(payment("pm_usBankAccount_success", mandate_data=mandate))
    assert intent.status == "processing"


async def test_intent_with_a_method_waits_for_its_confirmation(client: stripe.StripeClient) -> None:
    intent = await client.v1.payment_intents.create_async(
        {"amount": 700, "currency": "eur", "payment_method": "pm_card_visa", "allowed_payment_method_types": ["card"]}
    )
    assert intent.status == "requires_confirmation"
    assert (await client.v1.payment_intents.confirm_async(intent.id)).status == "succeeded"


@pytest.mark.parametrize(("amount", "taken"), [(None, 1000), (600, 600)])
async def test_held_money_is_captured_once(
    stub: StubProcessor, client: stripe.StripeClient, amount: int | None, taken: int
) -> None:
    intent = await client.v1.payment_intents.create_async(payment(capture_method="manual"))
    assert (intent.status, intent.amount_capturable, intent.amount_received) == ("requires_capture", 1000, 0)
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await client.v1.payment_intents.capture_async(intent.id, {"amount_to_capture": 1001})
    assert (caught.value.code, caught.value.param) == ("amount_too_large", "amount_to_capture")

    captured = await client.v1.payment_intents.capture_async(
        intent.id, {} if amount is None else {"amount_to_capture": amount}
    )

    assert (captured.status, captured.amount_received, captured.amount_capturable) == ("succeeded", taken, 0)
    assert charges(stub) == [("authorization", 1000), ("capture", taken)]
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await client.v1.payment_intents.capture_async(intent.id)
    assert caught.value.code == "payment_intent_unexpected_state"
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.refunds.create_async({"payment_intent": intent.id, "amount": taken + 1})


async def test_held_money_is_released(stub: StubProcessor, client: stripe.StripeClient) -> None:
    intent = await client.v1.payment_intents.create_async(payment(capture_method="manual"))
    cancelled = await client.v1.payment_intents.cancel_async(intent.id, {"cancellation_reason": "abandoned"})

    assert (cancelled.status, cancelled.cancellation_reason) == ("canceled", "abandoned")
    assert charges(stub) == [("authorization", 1000), ("void", 1000)]
    for refused in (
        client.v1.payment_intents.capture_async(intent.id),
        client.v1.payment_intents.cancel_async(intent.id),
        client.v1.payment_intents.confirm_async(intent.id, {"payment_method": "pm_card_visa"}),
        client.v1.refunds.create_async({"payment_intent": intent.id}),
    ):
        with pytest.raises(stripe.InvalidRequestError) as caught:
            await refused
        assert caught.value.code == "payment_intent_unexpected_state"
        assert caught.value.error is not None
        assert caught.value.error.payment_intent is not None
        assert caught.value.error.payment_intent.status == "canceled"


async def test_paid_intent_can_neither_be_cancelled_nor_paid_again(client: stripe.StripeClient) -> None:
    intent = await client.v1.payment_intents.create_async(payment())
    for refused in (
        client.v1.payment_intents.cancel_async(intent.id),
        client.v1.payment_intents.confirm_async(intent.id, {"payment_method": "pm_card_visa"}),
    ):
        with pytest.raises(stripe.InvalidRequestError) as caught:
            await refused
        assert caught.value.code == "payment_intent_unexpected_state"


async def test_refunds_add_up_to_the_charge_and_no_further(stub: StubProcessor, client: stripe.StripeClient) -> None:
    intent = await client.v1.payment_intents.create_async(payment())
    first = await client.v1.refunds.create_async(
        {"payment_intent": intent.id, "amount": 300, "metadata": {"loop_refund_id": "ref_1"}}
    )
    assert (first.status, first.amount, first.currency) == ("succeeded", 300, "usd")
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await client.v1.refunds.create_async({"payment_intent": intent.id, "amount": 701})
    assert caught.value.param == "amount"
    rest = await client.v1.refunds.create_async({"payment_intent": intent.id})
    assert rest.amount == 700
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await client.v1.refunds.create_async({"payment_intent": intent.id, "amount": 1})
    assert caught.value.code == "charge_already_refunded"

    listed = await client.v1.refunds.list_async({"payment_intent": intent.id})
    assert [refund.id for refund in listed.data] == [rest.id, first.id]
    kept = await client.v1.refunds.retrieve_async(first.id)
    assert kept.metadata is not None
    assert kept.metadata["loop_refund_id"] == "ref_1"
    entries = stub.ledger()
    assert charges(stub) == [("charge", 1000), ("refund", 300), ("refund", 700)]
    assert entries[1].metadata == {**METADATA, "loop_refund_id": "ref_1"}
    assert entries[1].intent == intent.id


async def test_refund_is_settled_by_the_bank(stub: StubProcessor, client: stripe.StripeClient) -> None:
    pending = await client.v1.payment_intents.create_async(payment("pm_card_refundPending"))
    refund = await client.v1.refunds.create_async({"payment_intent": pending.id})
    assert refund.status == "pending"
    assert (await control(stub, f"refunds/{refund.id}/settle", {"status": "succeeded"}))["status"] == "succeeded"
    assert (await client.v1.refunds.retrieve_async(refund.id)).status == "succeeded"

    failing = await client.v1.payment_intents.create_async(payment("pm_card_refundFail"))
    refund = await client.v1.refunds.create_async({"payment_intent": failing.id})
    assert refund.status == "succeeded"
    await control(stub, f"refunds/{refund.id}/settle", {"status": "failed"})
    failed = await client.v1.refunds.retrieve_async(refund.id)
    assert (failed.status, failed.failure_reason) == ("failed", "lost_or_stolen_card")
    assert charges(stub)[-1] == ("refund_reversal", 1000)
    again = await client.v1.refunds.create_async({"payment_intent": failing.id})
    assert again.amount == 1000
    with pytest.raises(aiohttp.ClientResponseError):
        await control(stub, f"refunds/{refund.id}/settle", {"status": "succeeded"})


@pytest.mark.parametrize("status", ["won", "lost"])
async def test_dispute_takes_the_money_until_it_is_won(
    stub: StubProcessor, client: stripe.StripeClient, status: str
) -> None:
    intent = await client.v1.payment_intents.create_async(payment())
    opened = await control(stub, "disputes", {"payment_intent": intent.id, "reason": "product_not_received"})
    assert isinstance(intent.latest_charge, str)
    charge = await client.v1.charges.retrieve_async(intent.latest_charge)
    assert charge.disputed
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await client.v1.refunds.create_async({"payment_intent": intent.id})
    assert caught.value.code == "charge_disputed"

    await control(stub, f"disputes/{opened['id']}/move", {"status": status})
    dispute = await client.v1.disputes.retrieve_async(opened["id"])
    assert (dispute.status, dispute.reason, dispute.amount) == (status, "product_not_received", 1000)
    returned = [("dispute_reversal", 1000)] if status == "won" else []
    assert charges(stub) == [("charge", 1000), ("dispute", 1000), *returned]


async def test_an_inquiry_takes_nothing_until_it_becomes_a_dispute(
    stub: StubProcessor, client: stripe.StripeClient
) -> None:
    intent = await client.v1.payment_intents.create_async(payment("pm_card_createDisputeInquiry"))
    asked = (await client.v1.disputes.list_async({"payment_intent": intent.id})).data[0]
    assert (asked.status, asked.balance_transactions) == ("warning_needs_response", [])
    assert asked.is_charge_refundable
    assert asked.evidence_details.due_by
    await client.v1.refunds.create_async({"payment_intent": intent.id, "amount": 400})
    for status in ("warning_under_review", "needs_response", "under_review", "lost", "appeal_needs_response", "won"):
        await control(stub, f"disputes/{asked.id}/move", {"status": status})
        found = await client.v1.disputes.retrieve_async(asked.id)
        assert found.status == status
        taken = sum(movement.amount for movement in found.balance_transactions)
        assert taken == (0 if status.startswith("warning_") or status == "won" else -1000)
        assert found.is_charge_refundable is (status.startswith("warning_") or status == "won")
    for status in ("lost", "needs_response", "nonsense"):
        with pytest.raises(aiohttp.ClientResponseError, match="400"):
            await control(stub, f"disputes/{asked.id}/move", {"status": status})
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.disputes.retrieve_async("du_of_nobody")
    async with sdk(stub.url, "sk_test_second") as stranger:
        with pytest.raises(stripe.InvalidRequestError):
            await stranger.v1.disputes.retrieve_async(asked.id)


async def test_balance_tells_every_movement(client: stripe.StripeClient) -> None:
    intent = await client.v1.payment_intents.create_async(payment())
    refund = await client.v1.refunds.create_async({"payment_intent": intent.id, "amount": 400})
    await client.v1.payment_intents.create_async(payment("pm_card_createDispute"))

    moved = (await client.v1.balance_transactions.list_async()).data
    assert [(row.type, row.amount, row.fee, row.net) for row in moved] == [
        ("adjustment", -1000, 1500, -2500),
        ("charge", 1000, 59, 941),
        ("refund", -400, 0, -400),
        ("charge", 1000, 59, 941),
    ]
    [only] = (await client.v1.balance_transactions.list_async({"source": refund.id})).data
    assert only.id == refund.balance_transaction


async def test_repeat_is_answered_from_memory(stub: StubProcessor, client: stripe.StripeClient) -> None:
    first = await client.v1.payment_intents.create_async(payment(), {"idempotency_key": "key-1"})
    again = await client.v1.payment_intents.create_async(payment(), {"idempotency_key": "key-1"})

    assert again.to_dict() == first.to_dict()
    assert first.last_response is not None
    assert again.last_response is not None
    assert "Idempotent-Replayed" not in first.last_response.headers
    assert again.last_response.headers["Idempotent-Replayed"] == "true"
    assert again.last_response.headers["Idempotency-Key"] == "key-1"
    assert again.last_response.headers["Original-Request"] == first.last_response.request_id
    assert charges(stub) == [("charge", 1000)]
    seen = (await control(stub, "requests"))["requests"]
    assert [(row["method"], row["path"], row["idempotency_key"]) for row in seen] == [
        ("POST", "/v1/payment_intents", "key-1")
    ] * 2
    assert API_KEY not in json.dumps(seen)


async def test_repeated_decline_is_the_first_decline(client: stripe.StripeClient) -> None:
    declined = []
    for _ in range(2):
        with pytest.raises(stripe.CardError) as caught:
            await client.v1.payment_intents.create_async(
                payment("pm_card_visa_chargeDeclined"), {"idempotency_key": "key-1"}
            )
        declined.append(caught.value.json_body)
    assert declined[0] == declined[1]


async def test_key_is_for_one_request_only(stub: StubProcessor, client: stripe.StripeClient) -> None:
    intent = await client.v1.payment_intents.create_async(
        payment(capture_method="manual"), {"idempotency_key": "key-1"}
    )
    for drifted in (
        client.v1.payment_intents.create_async(payment(amount=1001), {"idempotency_key": "key-1"}),
        client.v1.payment_intents.capture_async(intent.id, {}, {"idempotency_key": "key-1"}),
    ):
        with pytest.raises(stripe.IdempotencyError) as caught:
            await drifted
        assert caught.value.http_status == 400
    async with sdk(stub.url, "sk_test_second") as other:
        await other.v1.payment_intents.create_async(payment(amount=1001), {"idempotency_key": "key-1"})


async def test_refused_parameters_do_not_use_up_the_key(client: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.payment_intents.create_async(payment(amount=10), {"idempotency_key": "key-1"})
    paid = await client.v1.payment_intents.create_async(payment(), {"idempotency_key": "key-1"})
    assert paid.status == "succeeded"


async def test_key_is_forgotten_after_a_day(tmp_path: Path) -> None:
    now_ns = 1_800_000_000 * 10**9
    async with (
        StubProcessor(ledger_path=tmp_path / "l.jsonl", clock_ns=lambda: now_ns) as stub,
        sdk(stub.url) as client,
    ):
        first = await client.v1.payment_intents.create_async(payment(), {"idempotency_key": "key-1"})
        now_ns += 25 * 3600 * 10**9
        later = await client.v1.payment_intents.create_async(payment(), {"idempotency_key": "key-1"})
        assert later.id != first.id
        assert later.created == first.created + 25 * 3600


@pytest.mark.parametrize(
    ("changed", "code", "param"),
    [
        ({"colour": "red"}, "parameter_unknown", "colour"),
        ({"automatic_payment_methods[colour]": "red"}, "parameter_unknown", "automatic_payment_methods[colour]"),
        ({"amount": None}, "parameter_missing", "amount"),
        ({"currency": None}, "parameter_missing", "currency"),
        ({"amount": "10.5"}, "parameter_invalid_integer", "amount"),
        ({"amount": "0"}, "parameter_invalid_integer", "amount"),
        ({"amount": "-5"}, "parameter_invalid_integer", "amount"),
        ({"amount": "49"}, "amount_too_small", "amount"),
        ({"amount": "100000000"}, "amount_too_large", "amount"),
        ({"amount": "1001", "currency": "kwd"}, "invalid_charge_amount", "amount"),
        ({"currency": "xyz"}, None, "currency"),
        ({"currency": ""}, "parameter_invalid_empty", "currency"),
        ({"capture_method": "later"}, None, "capture_method"),
        ({"confirm": "yes"}, None, "confirm"),
        ({"metadata": "x"}, None, "metadata"),
        ({"metadata[" + "k" * 41 + "]": "x"}, None, "metadata[" + "k" * 41 + "]"),
        ({"return_url": None, "automatic_payment_methods[enabled]": "true"}, None, "return_url"),
        ({"expand[]": "colour"}, None, "expand"),
    ],
)
async def test_wrong_parameters_are_refused_by_name(
    stub: StubProcessor, changed: dict[str, str | None], code: str | None, param: str
) -> None:
    form = {
        "amount": "1000",
        "currency": "usd",
        "confirm": "true",
        "payment_method": "pm_card_visa",
        "return_url": "http://127.0.0.1:1/back",
        **changed,
    }
    answer = await post(stub, "/v1/payment_intents", {k: v for k, v in form.items() if v is not None})

    assert answer.status == 400
    error = (await answer.json())["error"]
    assert (error["type"], error.get("code"), error["param"]) == ("invalid_request_error", code, param)
    assert answer.headers["Request-Id"].startswith("req_")
    assert charges(stub) == []


@pytest.mark.parametrize("api_key", ["", "pk_test_1", "sk_test_invalid", "sk_test_not ascii"])
async def test_wrong_keys_are_refused_without_being_repeated(stub: StubProcessor, api_key: str) -> None:
    answer = await post(stub, "/v1/payment_intents", {}, Authorization=f"Bearer {api_key}")
    assert answer.status == 401
    text = await answer.text()
    assert json.loads(text)["error"]["type"] == "invalid_request_error"
    assert api_key == "" or api_key not in text


async def test_each_key_is_its_own_account(stub: StubProcessor, client: stripe.StripeClient) -> None:
    intent = await client.v1.payment_intents.create_async(payment())
    account = (await client.v1.accounts.retrieve_current_async()).id
    assert stub.ledger()[0].account == account
    async with sdk(stub.url, "sk_test_second") as other:
        with pytest.raises(stripe.InvalidRequestError) as caught:
            await other.v1.payment_intents.retrieve_async(intent.id)
        assert (caught.value.http_status, caught.value.code) == (404, "resource_missing")
        assert (await other.v1.payment_intents.list_async()).data == []
        assert (await other.v1.accounts.retrieve_current_async()).id != account
    async with sdk(stub.url, "sk_test_invalid") as stranger:
        with pytest.raises(stripe.AuthenticationError):
            await stranger.v1.accounts.retrieve_current_async()
    basic = aiohttp.encode_basic_auth(API_KEY, "")
    assert (await post(stub, "/v1/payment_intents", {}, Authorization=basic)).status == 400
    assert (await post(stub, "/v1/nothing", {})).status == 404


async def test_lists_are_newest_first_and_paged(tmp_path: Path) -> None:
    now_ns = 1_800_000_000 * 10**9
    async with (
        StubProcessor(ledger_path=tmp_path / "l.jsonl", clock_ns=lambda: now_ns) as stub,
        sdk(stub.url) as client,
    ):
        made = []
        for _ in range(5):
            made.append((await client.v1.payment_intents.create_async(payment())).id)
            now_ns += 10 * 10**9
        newest = made[::-1]
        page = await client.v1.payment_intents.list_async({"limit": 2, "expand": ["data.latest_charge"]})
        assert ([item.id for item in page.data], page.has_more) == (newest[:2], True)
        assert isinstance(page.data[0].latest_charge, stripe.Charge)
        walked = [item.id async for item in page.auto_paging_iter()]
        assert walked == newest
        since = await client.v1.payment_intents.list_async({"created": {"gte": 1_800_000_030}})
        assert [item.id for item in since.data] == newest[:2]


async def test_restart_on_the_same_file_forgets_nothing(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    async with StubProcessor(ledger_path=ledger) as stub, sdk(stub.url) as client:
        paid = await client.v1.payment_intents.create_async(payment(), {"idempotency_key": "key-1"})
        held = await client.v1.payment_intents.create_async(payment(capture_method="manual"))
    with ledger.open("ab") as torn:
        torn.write(b'{"entries":[{"at_ms"')

    async with StubProcessor(ledger_path=ledger) as stub, sdk(stub.url) as client:
        again = await client.v1.payment_intents.create_async(payment(), {"idempotency_key": "key-1"})
        assert again.id == paid.id
        assert (await client.v1.payment_intents.capture_async(held.id)).status == "succeeded"
        assert charges(stub) == [("charge", 1000), ("authorization", 1000), ("capture", 1000)]
        assert stub.ledger() == read_ledger(ledger)


async def test_killed_process_has_written_what_it_answered(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    command = [sys.executable, "-m", "loop.testing.stub_psp", "--port", "0", "--ledger", str(ledger)]
    for end in (signal.SIGKILL, signal.SIGTERM):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: ASYNC220 - the line is short
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            async with sdk(url) as client:
                await client.v1.payment_intents.create_async(payment(), {"idempotency_key": "key-1"})
            os.kill(process.pid, end)
            assert process.wait(10) == (0 if end == signal.SIGTERM else -end)
    assert [entry.kind for entry in read_ledger(ledger)] == ["charge"]
