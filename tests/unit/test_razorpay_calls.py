"""Razorpay through its real SDK and real sockets: faults on the way, and what each payment's life means for Loop."""

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

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
from loop.domain.money import Money
from loop.domain.refunds import RefundOutcome, RefundStatus
from loop.processors.base import (
    Account,
    AuthorizeRequest,
    IdempotencyKey,
    PaymentReference,
    ProcessorSetup,
    RefundReference,
    RefundRequest,
)
from loop.processors.razorpay import RazorpayProcessor
from loop.telemetry import open_transaction
from loop.testing.stub_faults import Fault
from loop.testing.stub_psp import StubProcessor
from tests.contract.stub_clients import control

CREATE = "/v1/orders"
KEY = IdempotencyKey("lpi_0123456789")
PRICE = Money(50_000, "INR")


def account(key_id: str = "rzp_test_1", key_secret: str = "secret_canary") -> Account:
    credentials = {"keyId": key_id, "keySecret": key_secret}
    return Account(config_id="pcf_1", merchant_id="mer_1", is_test_mode=True, credentials=credentials)


ACCOUNT = account()


def request(
    attempt_id: str = "att_1", *, token: str | None = None, amount: Money = PRICE, is_manual_capture: bool = False
) -> AuthorizeRequest:
    return AuthorizeRequest(
        order_id="ord_1",
        attempt_id=attempt_id,
        amount=amount,
        is_manual_capture=is_manual_capture,
        payment_method="upi",
        token=token,
        customer_email="buyer-canary@shop.example",
        description="Two books",
        return_url="http://shop.example/return/att_1",
        created_at=datetime.fromtimestamp(time.time_ns() // 10**9, UTC),
    )


@asynccontextmanager
async def razorpay_at(api_base: str, timeout_s: float = 5.0) -> AsyncIterator[RazorpayProcessor]:
    setup = ProcessorSetup(
        api_base=api_base, timeout_s=timeout_s, public_url="http://loop.example", challenge_secret=b"s"
    )
    processor = RazorpayProcessor(setup)
    try:
        yield processor
    finally:
        await processor.close()


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[StubProcessor]:
    async with StubProcessor(ledger_path=tmp_path / "razorpay.ledger", port=0) as running:
        yield running


@pytest.fixture
async def processor(stub: StubProcessor, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[RazorpayProcessor]:
    """Yield the processor, and see that the SDK has printed nothing."""
    async with razorpay_at(stub.url) as made:
        yield made
    assert capsys.readouterr().out == ""


def money(stub: StubProcessor) -> list[tuple[str, int]]:
    return [(entry.kind, entry.amount_minor) for entry in stub.ledger()]


def calls(stub: StubProcessor, method: str = "POST") -> list[str]:
    return [seen["path"] for seen in stub.requests.seen if seen["method"] == method]


async def opened(processor: RazorpayProcessor, wanted: AuthorizeRequest) -> PaymentReference:
    outcome = await processor.authorize(ACCOUNT, wanted, key=KEY)
    assert isinstance(outcome, ActionRequired)
    return PaymentReference(outcome.reference, wanted)


async def tried(stub: StubProcessor, payment: PaymentReference, **how: object) -> dict[str, Any]:
    """Let the customer try to pay; return the payment and what the browser brings back."""
    return await control(stub, f"razorpay/orders/{payment.reference}/pay", how)


async def moved(stub: StubProcessor, payment_id: str, status: str) -> None:
    await control(stub, f"razorpay/payments/{payment_id}/move", {"status": status})


async def paid(stub: StubProcessor, processor: RazorpayProcessor, **how: object) -> PaymentReference:
    payment = await opened(processor, request())
    await tried(stub, payment, **how)
    return payment


async def held(stub: StubProcessor, processor: RazorpayProcessor) -> PaymentReference:
    payment = await opened(processor, request(is_manual_capture=True))
    await tried(stub, payment)
    return payment


@pytest.mark.parametrize("is_manual_capture", [True, False])
async def test_order_for_the_browser(
    stub: StubProcessor, processor: RazorpayProcessor, *, is_manual_capture: bool
) -> None:
    wanted = request(is_manual_capture=is_manual_capture)
    outcome = await processor.authorize(ACCOUNT, wanted, key=KEY)
    assert isinstance(outcome, ActionRequired)
    assert outcome.processor_data == {
        "keyId": "rzp_test_1",
        "orderId": outcome.reference,
        "amount": 50_000,
        "currency": "INR",
        "description": "Two books",
        "prefill": {"email": "buyer-canary@shop.example"},
        "callbackUrl": "http://shop.example/return/att_1",
        "checkoutUrl": f"{stub.url}/v1/checkout/embedded",
    }
    assert await processor.authorize(ACCOUNT, wanted, key=KEY) == outcome
    orders = await everything(processor, "order")
    assert [(order["receipt"], order["notes"]) for order in orders] == [
        ("att_1", {"loop_order_id": "ord_1", "loop_attempt_id": "att_1"})
    ]
    assert money(stub) == []


async def everything(processor: RazorpayProcessor, noun: str) -> list[dict[str, Any]]:
    """Return what Razorpay lists, asked by the SDK itself."""
    answer: Any = await processor._calls.run(ACCOUNT, lambda client: getattr(client, noun).all({"count": 100}))
    items: list[dict[str, Any]] = answer["items"]
    return items


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="drop_before", path=CREATE),
        Fault(kind="drop_after", path=CREATE),
        Fault(kind="cut_body", path=CREATE),
        Fault(kind="status", path=CREATE, status=500),
        Fault(kind="status", path=CREATE, status=502, html=True),
        Fault(kind="status", path=CREATE, status=503),
        Fault(kind="status", path=CREATE, status=409),
        Fault(kind="status", path=CREATE, status=500, stored=True, executes=True),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
async def test_unclear_answer_is_unknown_until_repeated(
    stub: StubProcessor, processor: RazorpayProcessor, fault: Fault
) -> None:
    stub.faults.arm(replace(fault))
    assert isinstance(await processor.authorize(ACCOUNT, request(), key=KEY), Unknown)
    assert len(calls(stub)) == 1  # nothing below Loop repeats it
    assert isinstance(await processor.authorize(ACCOUNT, request(), key=KEY), ActionRequired)
    assert len(await everything(processor, "order")) == 1


async def test_lost_order_is_found_by_its_receipt(stub: StubProcessor, processor: RazorpayProcessor) -> None:
    stub.faults.arm(Fault(kind="drop_after", path=CREATE))
    assert isinstance(await processor.authorize(ACCOUNT, request(), key=KEY), Unknown)
    unheard = PaymentReference(None, request())
    found = await processor.fetch(ACCOUNT, unheard)
    assert isinstance(found, ActionRequired)
    await tried(stub, PaymentReference(found.reference, request()))
    assert isinstance(await processor.fetch(ACCOUNT, unheard), Approved)
    assert isinstance(await processor.authorize(ACCOUNT, request(), key=KEY), Approved)
    unmade = PaymentReference(None, request("att_2"))
    for outcome in (await processor.fetch(ACCOUNT, unmade), await processor.void(ACCOUNT, unmade, key=KEY)):
        assert outcome == Unknown("Razorpay lists no order of this attempt.", is_absent=True)


async def test_receipt_of_another_order_is_not_taken_over(processor: RazorpayProcessor) -> None:
    first = await opened(processor, request())
    other = await processor.authorize(ACCOUNT, request(amount=Money(60_000, "INR")), key=KEY)
    assert not isinstance(other, NotSent)
    assert other.reference == first.reference  # the attempt's own order, whatever it was asked for again


@pytest.mark.parametrize(
    ("account_used", "fault", "code"),
    [
        (account("rzp_test_1"), Fault(kind="status", path=CREATE, status=429), "rate_limited"),
        (account("rzp_test_invalid_1"), None, "configuration"),
        (account(""), None, "configuration"),
        (account("rzp:test"), None, "configuration"),
        (account("rzp_test_1", "päss"), None, "configuration"),
        (account("rzp_test_1", "a\r\nb"), None, "configuration"),
    ],
)
async def test_refused_request_is_not_sent(
    stub: StubProcessor, processor: RazorpayProcessor, account_used: Account, fault: Fault | None, code: str
) -> None:
    if fault is not None:
        stub.faults.arm(fault)
    outcome = await processor.authorize(account_used, request(), key=KEY)
    assert isinstance(outcome, NotSent)
    assert outcome.code == code
    assert "canary" not in outcome.message


async def test_wrong_secret_is_told(processor: RazorpayProcessor) -> None:
    assert await processor.check(ACCOUNT) is None
    wrong = await processor.check(account(key_secret="another_canary"))
    assert wrong == "Razorpay does not accept the account's key id and key secret."


@pytest.mark.parametrize(
    "amount",
    [Money(99, "INR"), Money(10_001, "KWD"), Money(5_000, "LYD"), Money(5_000, "UYI"), Money(1, "INR")],
    ids=str,
)
async def test_amount_razorpay_cannot_take_is_refused_unasked(
    stub: StubProcessor, processor: RazorpayProcessor, amount: Money
) -> None:
    outcome = await processor.authorize(ACCOUNT, request(amount=amount), key=KEY)
    assert isinstance(outcome, NotSent)
    assert outcome.code == "not_supported"
    assert amount.currency in outcome.message
    assert calls(stub) == []


@pytest.mark.parametrize("token", ["pay_1", "token_1", "tok_visa"])
async def test_token_is_declined_unasked(stub: StubProcessor, processor: RazorpayProcessor, token: str) -> None:
    outcome = await processor.authorize(ACCOUNT, request(token=token), key=KEY)
    assert isinstance(outcome, Declined)
    assert (outcome.code, outcome.decline_class) == ("not_supported", "config")
    assert calls(stub) == []


async def test_failed_try_ends_nothing(stub: StubProcessor, processor: RazorpayProcessor) -> None:
    payment = await opened(processor, request())
    for instrument in ("failure@razorpay", "4100280000080001"):
        back = await tried(stub, payment, instrument=instrument)
        assert back["payment"]["status"] == "failed"
        told = await processor.complete_action(ACCOUNT, payment, parameters=back["callback"])
        assert isinstance(told, ActionRequired)
    back = await tried(stub, payment, instrument="4100280000001007")
    told = await processor.complete_action(ACCOUNT, payment, parameters=back["callback"])
    assert told == Approved(str(payment.reference), True, 50_000, back["payment"]["id"])
    assert await processor.fetch(ACCOUNT, payment) == told
    assert money(stub) == [("charge", 50_000)]


async def test_authorized_is_pending_until_razorpay_captures(stub: StubProcessor, processor: RazorpayProcessor) -> None:
    payment = await opened(processor, request())
    back = await tried(stub, payment, outcome="authorized")
    for _ in range(2):
        assert await processor.complete_action(ACCOUNT, payment, parameters=back["callback"]) == Pending(
            str(payment.reference)
        )
    assert await processor.void(ACCOUNT, payment, key=KEY) == Pending(str(payment.reference))
    await moved(stub, back["payment"]["id"], "captured")
    assert isinstance(await processor.fetch(ACCOUNT, payment), Approved)
    assert money(stub) == [("authorization", 50_000), ("capture", 50_000)]


async def test_uncaptured_payment_given_back_is_cancelled_until_a_later_try(
    stub: StubProcessor, processor: RazorpayProcessor
) -> None:
    payment = await opened(processor, request())
    back = await tried(stub, payment, outcome="authorized")
    await moved(stub, back["payment"]["id"], "released")
    assert await processor.fetch(ACCOUNT, payment) == Cancelled(str(payment.reference))
    await tried(stub, payment)
    assert isinstance(await processor.fetch(ACCOUNT, payment), Approved)


async def test_late_authorization_is_heard_of(stub: StubProcessor, processor: RazorpayProcessor) -> None:
    payment = await opened(processor, request(is_manual_capture=True))
    payment_id = (await tried(stub, payment, outcome="created"))["payment"]["id"]
    assert isinstance(await processor.fetch(ACCOUNT, payment), ActionRequired)
    await moved(stub, payment_id, "failed")
    assert isinstance(await processor.fetch(ACCOUNT, payment), ActionRequired)
    assert isinstance(await processor.void(ACCOUNT, payment, key=KEY), Cancelled)
    await moved(stub, payment_id, "authorized")
    late = Approved(str(payment.reference), False, 50_000, payment_id)
    assert await processor.fetch(ACCOUNT, payment) == late
    assert await processor.void(ACCOUNT, payment, key=KEY) == late


async def test_hold_that_lapsed_is_voided(stub: StubProcessor, processor: RazorpayProcessor) -> None:
    payment = await held(stub, processor)
    told = await processor.fetch(ACCOUNT, payment)
    assert isinstance(told, Approved)
    await moved(stub, str(told.transaction_reference), "released")
    ended = Voided(str(payment.reference), told.transaction_reference)
    assert await processor.fetch(ACCOUNT, payment) == ended
    assert await processor.capture(ACCOUNT, payment, amount=PRICE, key=KEY) == ended
    assert money(stub) == [("authorization", 50_000), ("void", 50_000)]


async def test_nobody_is_given_up_while_paying(stub: StubProcessor, processor: RazorpayProcessor) -> None:
    payment = await opened(processor, request())
    payment_id = (await tried(stub, payment, outcome="created"))["payment"]["id"]
    refused = await processor.void(ACCOUNT, payment, key=KEY)
    assert isinstance(refused, NotSent)
    assert refused.code == "payment_in_progress"
    await moved(stub, payment_id, "failed")
    assert isinstance(await processor.void(ACCOUNT, payment, key=KEY), Cancelled)


async def test_return_is_believed_only_of_the_stored_order(
    stub: StubProcessor, processor: RazorpayProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    other = await opened(processor, request("att_2"))
    genuine = (await tried(stub, other))["callback"]
    payment = await opened(processor, request())
    forgeries: list[Mapping[str, str]] = [
        genuine,  # signed by Razorpay, but for another order
        {**genuine, "razorpay_order_id": str(payment.reference)},
        {**genuine, "razorpay_signature": "é" * 64},
        {**genuine, "razorpay_signature": "\udcff"},
        {**genuine, "razorpay_payment_id": "../orders"},
        {"razorpay_signature": "0" * 64},
    ]
    for parameters in forgeries:
        assert isinstance(await processor.complete_action(ACCOUNT, payment, parameters=parameters), ActionRequired)
    assert not any(path.startswith("/v1/payments") for path in calls(stub, "GET"))
    assert caplog.text.count("return_not_signed") == len(forgeries)
    assert isinstance(await processor.complete_action(ACCOUNT, other, parameters=genuine), Approved)
    assert calls(stub, "GET")[-1] == f"/v1/payments/{genuine['razorpay_payment_id']}"


async def test_part_is_not_captured(stub: StubProcessor, processor: RazorpayProcessor) -> None:
    payment = await held(stub, processor)
    before = len(stub.requests.seen)
    refused = await processor.capture(ACCOUNT, payment, amount=Money(20_000, "INR"), key=KEY)
    assert isinstance(refused, NotSent)
    assert refused.code == "unsupported_by_processor"
    assert len(stub.requests.seen) == before


@pytest.mark.parametrize(
    ("fault", "first"),
    [
        (Fault(kind="drop_before", path="/v1/payments"), Unknown),
        (Fault(kind="drop_after", path="/v1/payments"), Approved),
        (Fault(kind="cut_body", path="/v1/payments"), Approved),
        (Fault(kind="status", path="/v1/payments", status=502, html=True), Unknown),
        (Fault(kind="status", path="/v1/payments", status=429), NotSent),
    ],
    ids=lambda each: getattr(each, "kind", ""),
)
async def test_doubt_about_a_capture_is_settled_by_asking(
    stub: StubProcessor, processor: RazorpayProcessor, fault: Fault, first: type[Outcome]
) -> None:
    payment = await held(stub, processor)
    stub.faults.arm(replace(fault))
    assert isinstance(await processor.capture(ACCOUNT, payment, amount=PRICE, key=KEY), first)
    taken = await processor.capture(ACCOUNT, payment, amount=PRICE, key=KEY)
    assert isinstance(taken, Approved)
    assert taken.is_captured
    assert money(stub) == [("authorization", 50_000), ("capture", 50_000)]


async def test_captures_at_once_keep_their_amounts(stub: StubProcessor, processor: RazorpayProcessor) -> None:
    """The SDK's own default would let one call send another's amount, were its threads to switch inside."""
    payments = []
    for number in range(24):
        wanted = request(f"att_{number}", amount=Money(1_000 + number, "INR"), is_manual_capture=True)
        payments.append(await opened(processor, wanted))
        await tried(stub, payments[-1])
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        outcomes = await asyncio.gather(
            *(processor.capture(ACCOUNT, each, amount=each.request.amount, key=KEY) for each in payments)
        )
    finally:
        sys.setswitchinterval(interval_s)
    assert [isinstance(each, Approved) and each.amount_minor for each in outcomes] == list(range(1_000, 1_024))


def refund_of(payment: PaymentReference, refund_id: str = "ref_1", amount_minor: int = 20_000) -> RefundRequest:
    return RefundRequest(refund_id, payment, Money(amount_minor, "INR"), "the parcel was late")


@pytest.mark.parametrize(
    ("settled", "status"), [("processed", RefundStatus.SUCCEEDED), ("failed", RefundStatus.FAILED)]
)
async def test_refund_that_takes_time(
    stub: StubProcessor, processor: RazorpayProcessor, settled: str, status: RefundStatus
) -> None:
    payment = await paid(stub, processor, refunds="pending")
    refund = refund_of(payment)
    first = await processor.refund(ACCOUNT, refund, key=KEY)
    assert first.status is RefundStatus.PENDING
    await control(stub, f"razorpay/refunds/{first.reference}/settle", {"status": settled})
    told = await processor.fetch_refund(ACCOUNT, RefundReference(first.reference, refund))
    assert told.status is status
    assert bool(told.error_code) == (settled == "failed")
    assert await processor.fetch_refund(ACCOUNT, RefundReference(None, refund)) == told


@pytest.mark.parametrize(
    ("fault", "first"),
    [
        (Fault(kind="drop_before", method="POST", path="/v1/payments"), RefundStatus.UNKNOWN),
        (Fault(kind="drop_after", method="POST", path="/v1/payments"), RefundStatus.SUCCEEDED),
        (Fault(kind="status", method="POST", path="/v1/payments", status=409), RefundStatus.UNKNOWN),
        (Fault(kind="status", method="POST", path="/v1/payments", status=429), RefundStatus.UNKNOWN),
        (Fault(kind="status", method="POST", path="/v1/payments", status=500), RefundStatus.UNKNOWN),
        (
            Fault(kind="status", method="POST", path="/v1/payments", status=500, stored=True, executes=True),
            RefundStatus.SUCCEEDED,
        ),
        (Fault(kind="drop_before", path="/v1/orders"), RefundStatus.UNKNOWN),
    ],
    ids=lambda each: f"{each.kind}-{each.status}" if isinstance(each, Fault) else "",
)
async def test_unclear_refund_is_made_once(
    stub: StubProcessor, processor: RazorpayProcessor, fault: Fault, first: RefundStatus
) -> None:
    refund = refund_of(await paid(stub, processor))
    stub.faults.arm(replace(fault))
    assert (await processor.refund(ACCOUNT, refund, key=KEY)).status is first
    assert (await processor.refund(ACCOUNT, refund, key=KEY)).status is RefundStatus.SUCCEEDED
    assert money(stub) == [("charge", 50_000), ("refund", 20_000)]
    keys = {seen["idempotency_key"] for seen in stub.requests.seen if seen["path"].endswith("/refund")}
    assert keys == {KEY}


async def test_refund_is_made_once_where_its_key_is_not_heeded(
    stub: StubProcessor, processor: RazorpayProcessor
) -> None:
    refund = refund_of(await paid(stub, processor))
    first = await processor.refund(ACCOUNT, refund, key=KEY)
    assert await processor.refund(ACCOUNT, refund, key=IdempotencyKey("lpi_unheeded_0")) == first
    assert money(stub) == [("charge", 50_000), ("refund", 20_000)]


async def test_refund_key_used_otherwise_is_never_called_failed(
    stub: StubProcessor, processor: RazorpayProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    payment = await paid(stub, processor)
    assert (await processor.refund(ACCOUNT, refund_of(payment), key=KEY)).status is RefundStatus.SUCCEEDED
    other = refund_of(payment, "ref_2", 30_000)
    assert (await processor.refund(ACCOUNT, other, key=KEY)).status is RefundStatus.UNKNOWN
    assert "refund_key_used_otherwise" in caplog.text
    drifted = refund_of(payment, "ref_1", 30_000)
    assert (await processor.refund(ACCOUNT, drifted, key=KEY)).status is RefundStatus.SUCCEEDED
    assert money(stub) == [("charge", 50_000), ("refund", 20_000)]


async def test_refused_refund_says_so(stub: StubProcessor, processor: RazorpayProcessor) -> None:
    unpaid = await opened(processor, request("att_2"))
    payment = await paid(stub, processor)
    for refund in (
        refund_of(payment, amount_minor=50_001),
        refund_of(unpaid),
        refund_of(PaymentReference(None, request())),
    ):
        outcome = await processor.refund(ACCOUNT, refund, key=KEY)
        assert (outcome.status, outcome.error_code) == (RefundStatus.FAILED, "refund_refused")
    assert money(stub) == [("charge", 50_000)]


async def test_refund_is_searched_page_by_page(stub: StubProcessor, processor: RazorpayProcessor) -> None:
    payment = await paid(stub, processor)
    for number in range(101):
        refund = refund_of(payment, f"ref_{number}", 1 + number)
        await processor.refund(ACCOUNT, refund, key=IdempotencyKey(f"lpi_0123456789_{number}"))
    found = await processor.fetch_refund(ACCOUNT, RefundReference(None, refund_of(payment, "ref_0", 1)))
    assert found.status is RefundStatus.SUCCEEDED
    missing = await processor.fetch_refund(ACCOUNT, RefundReference(None, refund_of(payment, "ref_none", 1)))
    assert missing == RefundOutcome(RefundStatus.UNKNOWN, error_message="Razorpay lists no such refund.")


async def test_accounts_keep_their_keys_apart(processor: RazorpayProcessor) -> None:
    accounts = [account(f"rzp_test_{number % 2}", f"secret_{number % 2}") for number in range(40)]
    outcomes = await asyncio.gather(
        *(processor.authorize(each, request(f"att_{number}"), key=KEY) for number, each in enumerate(accounts))
    )
    for number, outcome in enumerate(outcomes):
        assert isinstance(outcome, ActionRequired)
        seen = [
            await processor.fetch(accounts[side], PaymentReference(outcome.reference, request())) for side in (0, 1)
        ]
        assert [isinstance(each, ActionRequired) for each in seen] == [number % 2 == 0, number % 2 == 1]


async def test_late_answer_is_unknown_and_threads_are_bounded(stub: StubProcessor) -> None:
    stub.faults.arm(Fault(kind="slow", path=CREATE, delay_s=5, times=100))
    started = time.monotonic()
    async with razorpay_at(stub.url, timeout_s=0.3) as processor:
        outcomes = await asyncio.gather(
            *(processor.authorize(ACCOUNT, request(f"att_{number}"), key=KEY) for number in range(100))
        )
        assert len(processor._calls._sessions) == 32
    assert all(isinstance(outcome, Unknown) for outcome in outcomes)
    assert time.monotonic() - started < 4
    await asyncio.sleep(0.2)
    sent = len(calls(stub))
    await asyncio.sleep(0.4)
    assert len(calls(stub)) == sent < 100  # who waited in vain for a thread is not sent later


async def test_no_call_inside_a_transaction(stub: StubProcessor, processor: RazorpayProcessor) -> None:
    with open_transaction(), pytest.raises(RuntimeError, match="transaction"):
        await processor.fetch(ACCOUNT, PaymentReference("order_1", request()))
    assert list(stub.requests.seen) == []


async def test_nothing_private_is_logged(
    stub: StubProcessor, processor: RazorpayProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        payment = await paid(stub, processor)
        await processor.refund(ACCOUNT, refund_of(payment), key=KEY)
        await processor.authorize(account(key_secret="other_canary"), request("att_3"), key=KEY)
    assert "canary" not in str([vars(record) for record in caplog.records])


async def test_proxies_of_the_environment_are_not_used(
    processor: RazorpayProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert isinstance(await processor.authorize(ACCOUNT, request(), key=KEY), ActionRequired)


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
        (200, '{"id": "", "items": 1}'),
        (200, '{"id": 1, "items": ["text"]}'),
        (200, '{"items": [{"order_id": "order_1", "status": "captured", "amount": "50000", "currency": "INR"}]}'),
        (200, '{"items": [{"order_id": "order_1", "status": "captured", "amount": 50000, "currency": "USD"}]}'),
        (200, '{"items": [{"order_id": "order_1", "status": "captured", "amount": 50000, "currency": "INR"}]}'),
        (204, ""),
        (400, "<html>"),
        (404, "not here"),
        (400, '{"error": "text"}'),
        (403, "{}"),
        (429, "slow down"),
        (307, ""),
        (200, "[" * 100_000),
    ],
    ids=range(18),
)
async def test_unreadable_answer_is_unknown(status: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        headers = {"Location": "/elsewhere"} if status == 307 else {}
        return web.Response(status=status, text=text or None, content_type="application/json", headers=headers)

    payment = PaymentReference("order_1", request())
    refund = refund_of(payment)
    async with answering(answer) as (url, seen), razorpay_at(url) as processor:
        assert isinstance(await processor.authorize(ACCOUNT, request(), key=KEY), Unknown)
        assert isinstance(await processor.fetch(ACCOUNT, payment), Unknown)
        assert isinstance(await processor.void(ACCOUNT, payment, key=KEY), Unknown)
        assert (await processor.refund(ACCOUNT, refund, key=KEY)).status is RefundStatus.UNKNOWN
        told = await processor.fetch_refund(ACCOUNT, RefundReference("rfnd_1", refund))
        assert told.status is RefundStatus.UNKNOWN
    assert all(incoming.path != "/elsewhere" for incoming in seen)
    assert capsys.readouterr().out == ""


async def test_no_cookies_are_kept() -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response({"items": []}, headers={"Set-Cookie": "merchant=1; Path=/"})

    async with (
        answering(answer) as (url, seen),
        # By name: a jar would keep no cookies of an IP literal anyway.
        razorpay_at(f"{url.replace('127.0.0.1', 'localhost')}/") as processor,
    ):
        for _ in range(2):
            assert await processor.check(ACCOUNT) is None
    assert len(seen) == 2
    for incoming in seen:
        assert incoming.path == CREATE
        assert "Cookie" not in incoming.headers


async def test_reason_that_nobody_knows_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        error = {"code": "BAD_REQUEST_ERROR", "description": "canary", "reason": "brand_new", "field": "a b canary"}
        return web.json_response({"error": error}, status=400)

    async with answering(answer) as (url, _), razorpay_at(url) as processor:
        outcome = await processor.authorize(ACCOUNT, request(), key=KEY)
    assert outcome == NotSent("invalid_request", "Razorpay answered 400 (BAD_REQUEST_ERROR, brand_new).")
    told = str([vars(record) for record in caplog.records])
    assert "razorpay.reason_unknown" in told
    assert "brand_new" in told
    assert "canary" not in told
