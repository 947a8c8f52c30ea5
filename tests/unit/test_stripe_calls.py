"""Stripe through its real SDK and real sockets: faults on the way, and what each payment's life means for Loop."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from loop.domain.attempts import ActionRequired, Approved, Cancelled, Declined, NotSent, Outcome, Unknown, Voided
from loop.domain.money import Money
from loop.domain.refunds import RefundStatus
from loop.processors import stripe as stripe_module
from loop.processors.base import (
    Account,
    AuthorizeRequest,
    IdempotencyKey,
    PaymentReference,
    ProcessorSetup,
    RefundReference,
    RefundRequest,
)
from loop.processors.stripe import API_VERSION, StripeProcessor
from loop.telemetry import open_transaction
from loop.testing.stub_faults import Fault
from loop.testing.stub_psp import StubProcessor

CREATE = "/v1/payment_intents"
PAY = IdempotencyKey("lpi_pay")
PRICE = Money(5_000, "USD")


def account(secret_key: str = "sk_test_canary") -> Account:
    credentials = {"secretKey": secret_key, "publishableKey": "pk_test_1"}
    return Account(config_id="pcf_1", merchant_id="mer_1", is_test_mode=True, credentials=credentials)


ACCOUNT = account()


def request(
    token: str | None = "pm_card_visa",
    *,
    attempt_id: str = "att_1",
    amount: Money = PRICE,
    is_manual_capture: bool = False,
) -> AuthorizeRequest:
    return AuthorizeRequest(
        order_id="ord_1",
        attempt_id=attempt_id,
        amount=amount,
        is_manual_capture=is_manual_capture,
        payment_method="card",
        token=token,
        customer_email="buyer-canary@shop.example",
        description="Two books",
        return_url="http://shop.example/back",
        created_at=datetime.fromtimestamp(time.time_ns() // 10**9, UTC),
    )


@asynccontextmanager
async def stripe_at(api_base: str, timeout_s: float = 5.0) -> AsyncIterator[StripeProcessor]:
    setup = ProcessorSetup(
        api_base=api_base, timeout_s=timeout_s, public_url="http://loop.example", challenge_secret=b"s"
    )
    processor = StripeProcessor(setup)
    try:
        yield processor
    finally:
        await processor.close()


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[StubProcessor]:
    async with StubProcessor(ledger_path=tmp_path / "stripe.ledger", port=0) as running:
        yield running


@pytest.fixture
async def processor(stub: StubProcessor) -> AsyncIterator[StripeProcessor]:
    async with stripe_at(stub.url) as made:
        yield made


def charges(stub: StubProcessor) -> list[int]:
    return [entry.amount_minor for entry in stub.ledger() if entry.kind in ("charge", "authorization")]


def posts(stub: StubProcessor) -> int:
    return sum(seen["method"] == "POST" for seen in stub.requests.seen)


async def pay(processor: StripeProcessor, wanted: AuthorizeRequest) -> Outcome:
    return await processor.authorize(ACCOUNT, wanted, key=PAY)


@pytest.mark.parametrize(
    ("fault", "has_charged"),
    [
        (Fault(kind="drop_before", path=CREATE), False),
        (Fault(kind="drop_after", path=CREATE), True),
        (Fault(kind="cut_body", path=CREATE), True),
        (Fault(kind="status", path=CREATE, status=500), False),
        (Fault(kind="status", path=CREATE, status=502, html=True), False),
        (Fault(kind="status", path=CREATE, status=503), False),
        (Fault(kind="status", path=CREATE, status=409), False),
    ],
)
async def test_unclear_answer_is_unknown_until_repeated(
    stub: StubProcessor, processor: StripeProcessor, fault: Fault, *, has_charged: bool
) -> None:
    stub.faults.arm(replace(fault))
    wanted = request()
    assert isinstance(await pay(processor, wanted), Unknown)
    assert posts(stub) == 1  # the SDK must not retry: Loop does, when it has noted the doubt
    assert len(charges(stub)) == has_charged
    assert isinstance(await pay(processor, wanted), Approved)
    assert charges(stub) == [5_000]


async def test_rate_limit_is_not_sent(stub: StubProcessor, processor: StripeProcessor) -> None:
    stub.faults.arm(Fault(kind="status", path=CREATE, status=429))
    outcome = await pay(processor, request())
    assert isinstance(outcome, NotSent)
    assert outcome.code == "rate_limited"
    assert charges(stub) == []


async def test_stored_error_after_a_charge_is_seen_through(stub: StubProcessor, processor: StripeProcessor) -> None:
    stub.faults.arm(Fault(kind="status", path=CREATE, status=500, stored=True, executes=True))
    wanted = request()
    assert isinstance(await pay(processor, wanted), Unknown)
    assert isinstance(await pay(processor, wanted), Approved)
    assert charges(stub) == [5_000]


async def test_stored_error_without_a_charge_stays_unknown(stub: StubProcessor, processor: StripeProcessor) -> None:
    stub.faults.arm(Fault(kind="status", path=CREATE, status=500, stored=True))
    wanted = request()
    for _ in range(3):
        assert isinstance(await pay(processor, wanted), Unknown)
    assert charges(stub) == []


async def test_changed_request_under_the_same_key_finds_the_first(
    stub: StubProcessor, processor: StripeProcessor
) -> None:
    first = await pay(processor, request())
    again = await pay(processor, replace(request(), description="Three books"))
    assert again == first
    assert charges(stub) == [5_000]


async def test_lookup_turns_pages(processor: StripeProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stripe_module, "PAGE_SIZE", 2)
    monkeypatch.setattr(stripe_module, "PAGES_MAX", 3)
    for number in range(7):
        wanted = request(attempt_id=f"att_{number}")
        await processor.authorize(ACCOUNT, wanted, key=IdempotencyKey(f"lpi_{number}"))
    found = await processor.fetch(ACCOUNT, PaymentReference(None, request(attempt_id="att_2")))
    assert isinstance(found, Approved)
    # Older than the bound: not found, which is not the same as not paid.
    lost = await processor.fetch(ACCOUNT, PaymentReference(None, request(attempt_id="att_0")))
    assert isinstance(lost, Unknown)
    assert not lost.is_absent


async def test_lookup_of_all_there_is_says_that_there_is_no_such_payment(
    stub: StubProcessor, processor: StripeProcessor
) -> None:
    await pay(processor, request())
    unmade = PaymentReference(None, request(attempt_id="att_2"))
    voided = await processor.void(ACCOUNT, unmade, key=IdempotencyKey("lpi_void"))
    for outcome in (await processor.fetch(ACCOUNT, unmade), voided):
        assert outcome == Unknown("Stripe lists no payment of this attempt", is_absent=True)
    stub.faults.arm(Fault(kind="status", method="GET", status=500))
    silent = await processor.fetch(ACCOUNT, unmade)
    assert isinstance(silent, Unknown)
    assert not silent.is_absent


async def test_lookup_leaves_out_what_is_older_than_the_attempt(processor: StripeProcessor) -> None:
    wanted = request()
    await pay(processor, wanted)
    later = replace(wanted, created_at=datetime.fromtimestamp(wanted.created_at.timestamp() + 3_600, UTC))
    assert isinstance(await processor.fetch(ACCOUNT, PaymentReference(None, later)), Unknown)


async def test_plain_http_behind_https_is_not_sent(stub: StubProcessor) -> None:
    async with stripe_at(stub.url.replace("http://", "https://")) as processor:
        outcome = await pay(processor, request())
    assert isinstance(outcome, NotSent)
    assert outcome.code == "processor_unreachable"
    assert posts(stub) == 0


async def test_hanging_call_leaves_the_processor_usable(stub: StubProcessor) -> None:
    stub.faults.arm(Fault(kind="slow", path=CREATE, delay_s=1.0))
    async with stripe_at(stub.url, timeout_s=0.3) as processor:
        started = time.monotonic()
        assert isinstance(await pay(processor, request()), Unknown)
        assert time.monotonic() - started < 0.9
        other = await processor.authorize(ACCOUNT, request(attempt_id="att_2"), key=IdempotencyKey("lpi_2"))
        assert isinstance(other, Approved)


async def test_nothing_is_sent_inside_a_transaction(stub: StubProcessor, processor: StripeProcessor) -> None:
    with open_transaction(), pytest.raises(RuntimeError, match="transaction"):
        await pay(processor, request())
    assert posts(stub) == 0


@pytest.mark.parametrize("secret_key", ["", "sk_test_1\r\nX-Evil: 1", "sk test", "ключ", "pk_test_1"])
async def test_unusable_key_is_not_sent(stub: StubProcessor, processor: StripeProcessor, secret_key: str) -> None:
    unusable = account(secret_key)
    payment = PaymentReference("pi_1", request())
    outcome = await processor.authorize(unusable, request(), key=PAY)
    assert isinstance(outcome, NotSent)
    assert outcome.code == "configuration"
    assert isinstance(await processor.fetch(unusable, payment), Unknown)
    refund = RefundRequest("ref_1", payment, Money(1, "USD"), None)
    assert (await processor.refund(unusable, refund, key=PAY)).status is RefundStatus.UNKNOWN
    assert await processor.check(unusable)
    assert charges(stub) == []


async def test_missing_payment_is_not_called_unpaid(processor: StripeProcessor) -> None:
    payment = PaymentReference("pi_of_another_account", request())
    assert isinstance(await processor.fetch(ACCOUNT, payment), Unknown)
    refund = RefundRequest("ref_1", payment, Money(1, "USD"), None)
    assert (await processor.refund(ACCOUNT, refund, key=PAY)).status is RefundStatus.UNKNOWN
    lost = RefundReference("re_of_another_account", refund)
    assert (await processor.fetch_refund(ACCOUNT, lost)).status is RefundStatus.UNKNOWN


@pytest.mark.parametrize("token", ["tok_visa", "pm_card_mastercard"])
async def test_both_sorts_of_token_are_taken(processor: StripeProcessor, token: str) -> None:
    assert isinstance(await pay(processor, request(token)), Approved)


@pytest.mark.parametrize(
    ("amount", "sent"),
    [
        (Money(5_000, "JPY"), 5_000),
        (Money(500, "ISK"), 50_000),
        (Money(500, "UGX"), 50_000),
        (Money(50_000, "MGA"), 500),
        (Money(5_000, "KWD"), 5_000),
    ],
)
async def test_minor_units_are_stripes_there_and_loops_here(
    stub: StubProcessor, processor: StripeProcessor, amount: Money, sent: int
) -> None:
    wanted = request(amount=amount)
    outcome = await pay(processor, wanted)
    assert isinstance(outcome, Approved)
    assert outcome.amount_minor == amount.amount_minor
    assert charges(stub) == [sent]
    half = Money(amount.amount_minor // 2, amount.currency)
    refund = RefundRequest("ref_1", PaymentReference(outcome.reference, wanted), half, None)
    assert (await processor.refund(ACCOUNT, refund, key=IdempotencyKey("r"))).status is RefundStatus.SUCCEEDED
    assert stub.ledger()[-1].amount_minor == sent // 2


async def test_amount_too_fine_is_not_sent(stub: StubProcessor, processor: StripeProcessor) -> None:
    assert isinstance(await pay(processor, request(amount=Money(50_001, "MGA"))), NotSent)
    assert posts(stub) == 0


@pytest.mark.parametrize(("choice", "is_paid"), [("authenticate", True), ("fail", False)])
async def test_bank_page(processor: StripeProcessor, choice: str, *, is_paid: bool) -> None:
    wanted = request("pm_card_authenticationRequired")
    outcome = await pay(processor, wanted)
    assert isinstance(outcome, ActionRequired)
    assert outcome.redirect_url is not None
    assert outcome.client_secret is not None
    assert outcome.processor_data == {"publishableKey": "pk_test_1"}
    async with (
        aiohttp.ClientSession() as browser,
        browser.post(outcome.redirect_url, data={"outcome": choice}, allow_redirects=False) as page,
    ):
        assert page.status == 303
    payment = PaymentReference(outcome.reference, wanted)
    done = await processor.complete_action(ACCOUNT, payment, parameters={"redirect_status": "succeeded"})
    if is_paid:
        assert isinstance(done, Approved)
    else:
        assert isinstance(done, Declined)
        assert (done.code, done.reference) == ("authentication_failed", outcome.reference)


async def test_browser_may_try_again_on_the_same_payment(stub: StubProcessor, processor: StripeProcessor) -> None:
    wanted = request(None)
    outcome = await pay(processor, wanted)
    assert isinstance(outcome, ActionRequired)
    assert outcome.redirect_url is None
    payment = PaymentReference(outcome.reference, wanted)
    for token in ("pm_card_chargeDeclined", "pm_card_visa"):
        assert isinstance(await processor.fetch(ACCOUNT, payment), ActionRequired)
        async with (
            aiohttp.ClientSession() as browser,
            browser.post(
                f"{stub.url}/_control/intents/{outcome.reference}/pay", json={"payment_method": token}
            ) as answer,
        ):
            assert answer.status == 200
    assert isinstance(await processor.fetch(ACCOUNT, payment), Approved)
    assert charges(stub) == [5_000]


async def test_decline_tells_the_attempts_intent(processor: StripeProcessor) -> None:
    wanted = request("pm_card_visa_chargeDeclinedLostCard")
    outcome = await pay(processor, wanted)
    assert isinstance(outcome, Declined)
    assert (outcome.code, outcome.decline_class, outcome.raw_code) == ("card_blocked", "hard", "lost_card")
    assert outcome.reference is not None
    assert await processor.fetch(ACCOUNT, PaymentReference(outcome.reference, wanted)) == outcome
    ended = await processor.void(ACCOUNT, PaymentReference(outcome.reference, wanted), key=IdempotencyKey("v"))
    assert isinstance(ended, Cancelled)


async def test_declined_hold_is_cancelled_not_voided(processor: StripeProcessor) -> None:
    wanted = request("pm_card_chargeDeclined", is_manual_capture=True)
    outcome = await pay(processor, wanted)
    assert isinstance(outcome, Declined)
    payment = PaymentReference(outcome.reference, wanted)
    assert isinstance(await processor.void(ACCOUNT, payment, key=IdempotencyKey("v")), Cancelled)


async def test_void_without_a_reference_searches_the_payment(stub: StubProcessor, processor: StripeProcessor) -> None:
    stub.faults.arm(Fault(kind="drop_after", path=CREATE))
    wanted = request(is_manual_capture=True)
    assert isinstance(await pay(processor, wanted), Unknown)
    unheard = PaymentReference(None, wanted)
    assert isinstance(await processor.void(ACCOUNT, unheard, key=IdempotencyKey("v")), Voided)
    assert [entry.kind for entry in stub.ledger()] == ["authorization", "void"]


@pytest.mark.parametrize("operation", ["capture", "cancel"])
async def test_lost_answer_to_a_change_is_unknown_until_repeated(
    stub: StubProcessor, processor: StripeProcessor, operation: str
) -> None:
    wanted = request(is_manual_capture=True)
    held = await pay(processor, wanted)
    assert isinstance(held, Approved)
    payment = PaymentReference(held.reference, wanted)
    stub.faults.arm(Fault(kind="drop_after", path=f"{CREATE}/{held.reference}/{operation}"))
    outcomes = [await change(processor, payment, operation, key="c") for _ in range(2)]
    assert outcomes[0] == Unknown("The connection to Stripe failed.", held.reference)
    assert isinstance(outcomes[1], Approved if operation == "capture" else Voided)
    assert len(stub.ledger()) == 2


@pytest.mark.parametrize(("first", "second"), [("capture", "cancel"), ("cancel", "capture"), ("cancel", "cancel")])
async def test_refused_change_tells_how_it_stands(processor: StripeProcessor, first: str, second: str) -> None:
    wanted = request(is_manual_capture=True)
    held = await pay(processor, wanted)
    assert isinstance(held, Approved)
    payment = PaymentReference(held.reference, wanted)
    done = await change(processor, payment, first, key="c1")
    assert isinstance(done, Approved if first == "capture" else Voided)
    assert await change(processor, payment, second, key="c2") == done


async def change(processor: StripeProcessor, payment: PaymentReference, operation: str, key: str) -> Outcome:
    if operation == "capture":
        return await processor.capture(ACCOUNT, payment, amount=payment.request.amount, key=IdempotencyKey(key))
    return await processor.void(ACCOUNT, payment, key=IdempotencyKey(key))


@pytest.mark.parametrize("status", ["succeeded", "failed"])
async def test_refund_that_takes_time(stub: StubProcessor, processor: StripeProcessor, status: str) -> None:
    wanted = request("pm_card_refundPending")
    paid = await pay(processor, wanted)
    assert isinstance(paid, Approved)
    refund = RefundRequest("ref_1", PaymentReference(paid.reference, wanted), Money(2_000, "USD"), "duplicate")
    first = await processor.refund(ACCOUNT, refund, key=IdempotencyKey("r"))
    assert first.status is RefundStatus.PENDING
    async with (
        aiohttp.ClientSession() as bank,
        bank.post(f"{stub.url}/_control/refunds/{first.reference}/settle", json={"status": status}) as answer,
    ):
        assert answer.status == 200
    told = await processor.fetch_refund(ACCOUNT, RefundReference(first.reference, refund))
    assert told.status == status
    assert bool(told.error_code) == (status == "failed")
    assert await processor.fetch_refund(ACCOUNT, RefundReference(None, refund)) == told


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="drop_before", path="/v1/refunds"),
        Fault(kind="drop_after", path="/v1/refunds"),
        Fault(kind="status", path="/v1/refunds", status=500, stored=True, executes=True),
        Fault(kind="status", path="/v1/refunds", status=429),
    ],
    ids=lambda fault: fault.kind,
)
async def test_unclear_refund_is_settled_by_its_key(
    stub: StubProcessor, processor: StripeProcessor, fault: Fault
) -> None:
    wanted = request()
    paid = await pay(processor, wanted)
    assert isinstance(paid, Approved)
    refund = RefundRequest("ref_1", PaymentReference(paid.reference, wanted), Money(2_000, "USD"), "too late")
    stub.faults.arm(replace(fault))
    key = IdempotencyKey("r")
    assert (await processor.refund(ACCOUNT, refund, key=key)).status is RefundStatus.UNKNOWN
    assert (await processor.refund(ACCOUNT, refund, key=key)).status is RefundStatus.SUCCEEDED
    assert [entry.kind for entry in stub.ledger()] == ["charge", "refund"]


async def test_a_refusal_is_no_word_of_a_refund_that_an_earlier_call_made(
    stub: StubProcessor, processor: StripeProcessor
) -> None:
    wanted = request()
    paid = await pay(processor, wanted)
    assert isinstance(paid, Approved)
    all_of_it = RefundRequest("ref_1", PaymentReference(paid.reference, wanted), PRICE, None)
    stub.faults.arm(Fault(kind="drop_after", path="/v1/refunds"))
    assert (await processor.refund(ACCOUNT, all_of_it, key=IdempotencyKey("r"))).status is RefundStatus.UNKNOWN
    stranger = account("sk_test_of_another_account")
    assert (await processor.refund(stranger, all_of_it, key=IdempotencyKey("r"))).status is RefundStatus.UNKNOWN
    made = await processor.refund(ACCOUNT, all_of_it, key=IdempotencyKey("forgotten"))  # refused, and looked for
    assert made.status is RefundStatus.SUCCEEDED
    other = replace(all_of_it, refund_id="ref_2")
    assert (await processor.refund(ACCOUNT, other, key=IdempotencyKey("s"))).error_code == "refund_refused"
    stub.faults.arm(Fault(kind="status", method="GET", path="/v1/refunds", status=500))
    assert (await processor.refund(ACCOUNT, other, key=IdempotencyKey("s"))).status is RefundStatus.UNKNOWN
    assert [entry.kind for entry in stub.ledger()] == ["charge", "refund"]


async def test_accounts_keep_their_keys_apart(stub: StubProcessor, processor: StripeProcessor) -> None:
    accounts = [account(f"sk_test_{number % 2}") for number in range(40)]
    outcomes = await asyncio.gather(
        *(
            processor.authorize(each, request(attempt_id=f"att_{number}"), key=IdempotencyKey(f"lpi_{number}"))
            for number, each in enumerate(accounts)
        )
    )
    assert all(isinstance(outcome, Approved) for outcome in outcomes)
    owners = {entry.metadata["loop_attempt_id"]: entry.account for entry in stub.ledger()}
    assert len(set(owners.values())) == 2
    assert all(owners[f"att_{number}"] == owners[f"att_{number % 2}"] for number in range(40))


async def test_clients_are_bounded(stub: StubProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stripe_module, "CLIENTS_MAX", 3)
    async with stripe_at(stub.url) as processor:
        for number in range(6):
            assert await processor.check(account(f"sk_test_{number}")) is None
        assert list(processor._clients) == ["sk_test_3", "sk_test_4", "sk_test_5"]


async def test_nothing_private_is_logged(processor: StripeProcessor, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        for token in ("pm_card_visa", "tok_no_such_canary"):
            await processor.authorize(ACCOUNT, request(token), key=IdempotencyKey(f"lpi_{token}"))
    assert "canary" not in caplog.text
    assert "pm_card_visa" not in caplog.text


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[tuple[str, list[web.Request]]]:
    """Serve one answer to everything, and note the requests."""
    seen: list[web.Request] = []

    async def handle(incoming: web.Request) -> web.StreamResponse:
        await incoming.read()
        seen.append(incoming)
        return await answer(incoming)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", seen
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (200, "<html>"),
        (200, ""),
        (200, "[]"),
        (200, "null"),
        (200, "{}"),
        (200, '{"id": "pi_1", "object": "payment_intent", "status": "brand_new", "latest_charge": null}'),
        (400, "<html>"),
        (404, "not here"),
        (400, '{"error": "text"}'),
        (403, "{}"),
        (429, "slow down"),
        (307, ""),
    ],
)
async def test_unreadable_answer_is_unknown(status: int, text: str) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        headers = {"Location": "/elsewhere"} if status == 307 else {}
        return web.Response(status=status, text=text, content_type="application/json", headers=headers)

    payment = PaymentReference("pi_1", request())
    refund = RefundRequest("ref_1", payment, Money(1, "USD"), None)
    async with answering(answer) as (url, seen), stripe_at(url) as processor:
        assert isinstance(await pay(processor, request()), Unknown)
        assert isinstance(await processor.fetch(ACCOUNT, payment), Unknown)
        assert isinstance(await processor.void(ACCOUNT, payment, key=PAY), Unknown)
        assert (await processor.refund(ACCOUNT, refund, key=PAY)).status is RefundStatus.UNKNOWN
        assert (await processor.fetch_refund(ACCOUNT, RefundReference("re_1", refund))).status is RefundStatus.UNKNOWN
    assert len(seen) == 5
    assert all(incoming.path != "/elsewhere" for incoming in seen)


async def test_a_payment_of_another_currency_is_not_believed() -> None:
    intent = {
        "id": "pi_1", "object": "payment_intent", "status": "succeeded", "amount": 5_000, "amount_received": 5_000,
        "currency": "eur", "latest_charge": "ch_1", "last_payment_error": None, "next_action": None,
    }  # fmt: skip

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response(intent)

    async with answering(answer) as (url, _), stripe_at(url) as processor:
        payment = PaymentReference("pi_1", request())
        assert isinstance(await processor.fetch(ACCOUNT, payment), Unknown)
        assert isinstance(await pay(processor, request()), Unknown)
        intent["currency"] = "usd"
        assert isinstance(await processor.fetch(ACCOUNT, payment), Approved)


async def test_requests_carry_version_and_key_and_no_telemetry() -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        headers = {"Request-Id": "req_of_another_merchant", "Set-Cookie": "a=1"}
        return web.json_response({"error": {"message": "", "type": "card_error"}}, status=402, headers=headers)

    async with (
        answering(answer) as (url, seen),
        # By name: a jar would keep no cookies of an IP literal anyway.
        stripe_at(f"{url.replace('127.0.0.1', 'localhost')}/") as processor,
    ):
        for number in range(2):
            await processor.authorize(ACCOUNT, request(), key=IdempotencyKey(f"lpi_{number}"))
    assert len(seen) == 2
    for number, incoming in enumerate(seen):
        assert incoming.path == CREATE
        assert incoming.headers["Idempotency-Key"] == f"lpi_{number}"
        assert incoming.headers["Stripe-Version"] == API_VERSION
        assert "X-Stripe-Client-Telemetry" not in incoming.headers
        assert "Cookie" not in incoming.headers
        assert "req_of_another_merchant" not in str(incoming.headers)
