"""Razorpay's webhooks and returns: what they are about, and which signatures are taken."""

import hashlib
import hmac
import json
from typing import Any

import pytest
import razorpay

from loop.domain.money import Money
from loop.processors.base import WebhookEvent, WebhookSignatureError
from loop.processors.razorpay_webhooks import event_of, signed_payment, verify_signature

BODY = '{"event": "payment.captured", "note": "é"}'.encode()
PAYMENT = {"id": "pay_1", "order_id": "order_1", "captured": True, "notes": []}
OURS = {"loop_attempt_id": "att_1"}


def signature(body: bytes, secret: str) -> str:
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def accepts(given: str, *secrets: str, body: bytes = BODY) -> bool:
    try:
        verify_signature(body, given, secrets=secrets)
    except WebhookSignatureError as error:
        return error.code != "invalid_signature"
    return True


def test_any_secret_will_do() -> None:
    given = signature(BODY, "old")
    assert accepts(given, "new", "old")
    assert not accepts(given, "new")
    assert not accepts(given)
    assert not accepts(given, "old", body=BODY + b" ")


def test_the_official_sdk_agrees() -> None:
    given = signature(BODY, "new")
    sdk = razorpay.Client(auth=("rzp_test_1", "secret"))
    assert sdk.utility.verify_webhook_signature(BODY.decode(), given, "new")
    back = {
        "razorpay_order_id": "order_1",
        "razorpay_payment_id": "pay_1",
        "razorpay_signature": signature(b"order_1|pay_1", "secret"),
    }
    assert sdk.utility.verify_payment_signature(back)
    assert signed_payment(back, "order_1", key_secret="secret") == "pay_1"


def test_body_is_taken_as_bytes() -> None:
    body = b"\xff\x00 not text"
    assert accepts(signature(body, "new"), "new", body=body)


@pytest.mark.parametrize("given", ["", "0" * 64, "é" * 64, "\udcff", "a" * 100_000, signature(BODY, "new").upper()])
def test_malformed_signature_is_refused(given: str) -> None:
    assert not accepts(given, "new")


@pytest.mark.parametrize(
    ("changed", "order_id"),
    [
        ({}, "order_2"),
        ({}, None),
        ({}, ""),
        ({"razorpay_payment_id": "pay_2"}, "order_1"),
        ({"razorpay_payment_id": ""}, "order_1"),
        ({"razorpay_signature": ""}, "order_1"),
        ({"razorpay_signature": "é" * 64}, "order_1"),
        ({"razorpay_signature": "\udcff"}, "order_1"),
        ({"razorpay_payment_id": "\udcff"}, "order_1"),
    ],
)
def test_return_without_proof(changed: dict[str, str], order_id: str | None) -> None:
    back = {"razorpay_payment_id": "pay_1", "razorpay_signature": signature(b"order_1|pay_1", "secret")}
    assert signed_payment({**back, **changed}, order_id, key_secret="secret") is None


def test_return_signed_with_another_secret() -> None:
    back = {"razorpay_payment_id": "pay_1", "razorpay_signature": signature(b"order_1|pay_1", "other")}
    assert signed_payment(back, "order_1", key_secret="secret") is None


def event(event_type: str, **entities: object) -> WebhookEvent:
    payload = {name: {"entity": entity} for name, entity in entities.items()}
    body = {"entity": "event", "event": event_type, "payload": payload}
    return event_of(json.dumps(body).encode(), {"x-razorpay-event-id": "evt_1"})


REFUND = {"id": "rfnd_1", "payment_id": "pay_1", "notes": OURS}


@pytest.mark.parametrize(
    ("event_type", "entities", "order_id", "attempt_id", "refund"),
    [
        ("payment.authorized", {"payment": PAYMENT | {"captured": False}}, "order_1", None, None),
        ("payment.captured", {"payment": PAYMENT}, "order_1", None, None),
        ("payment.failed", {"payment": PAYMENT | {"notes": OURS}}, "order_1", "att_1", None),
        ("order.paid", {"payment": PAYMENT, "order": {"id": "order_1", "notes": OURS}}, "order_1", "att_1", None),
        ("order.paid", {"order": {"id": "order_1", "notes": OURS}}, "order_1", "att_1", None),
        ("refund.created", {"refund": REFUND, "payment": PAYMENT}, "order_1", "att_1", "rfnd_1"),
        ("refund.processed", {"refund": REFUND, "payment": PAYMENT}, "order_1", "att_1", "rfnd_1"),
        ("refund.failed", {"refund": REFUND, "payment": PAYMENT}, "order_1", "att_1", "rfnd_1"),
        ("refund.speed_changed", {"refund": REFUND, "payment": PAYMENT}, "order_1", "att_1", "rfnd_1"),
        ("refund.processed", {"refund": REFUND, "payment": PAYMENT | {"captured": False}}, "order_1", "att_1", None),
        ("payment.captured", {"payment": PAYMENT | {"order_id": None, "notes": OURS}}, None, None, None),
        ("payment.downtime.started", {"payment.downtime": {"id": "down_1"}}, None, None, None),
        ("payment_link.paid", {"payment": PAYMENT, "order": {"id": "order_1"}}, None, None, None),
        ("settlement.processed", {"settlement": {"id": "setl_1"}}, None, None, None),
    ],
)
def test_event(event_type: str, entities: dict[str, Any], order_id: str, attempt_id: str, refund: str) -> None:
    assert event(event_type, **entities) == WebhookEvent("evt_1", event_type, order_id, attempt_id, refund)


@pytest.mark.parametrize("name", ["created", "under_review", "action_required", "won", "lost", "closed"])
def test_dispute_event(name: str) -> None:
    event_type, about = f"payment.dispute.{name}", {"id": "disp_1", "payment_id": "pay_1", "amount": 400}
    found = event(event_type, payment=PAYMENT, dispute=about)
    assert found == WebhookEvent("evt_1", event_type, "order_1", dispute_reference="disp_1")
    of_nobody = event(event_type, payment=PAYMENT | {"order_id": None}, dispute=about)
    assert (of_nobody.payment_reference, of_nobody.dispute_reference) == (None, None)


SUM = {"amount": 50_000, "currency": "INR"}


@pytest.mark.parametrize(
    ("event_type", "entities", "amount"),
    [
        ("payment.captured", {"payment": PAYMENT | SUM}, Money(50_000, "INR")),
        ("order.paid", {"payment": PAYMENT | SUM, "order": {"id": "order_1"} | SUM}, Money(50_000, "INR")),
        ("order.paid", {"order": {"id": "order_1"} | SUM}, Money(50_000, "INR")),
        ("refund.processed", {"refund": REFUND | SUM | {"amount": 1}, "payment": PAYMENT | SUM}, Money(1, "INR")),
        ("refund.processed", {"refund": REFUND, "payment": PAYMENT | SUM | {"captured": False}}, Money(50_000, "INR")),
        ("payment.captured", {"payment": PAYMENT}, None),
        ("payment.captured", {"payment": PAYMENT | {"amount": True, "currency": "INR"}}, None),
        ("payment.captured", {"payment": PAYMENT | {"amount": 1.5, "currency": "INR"}}, None),
        ("payment.dispute.created", {"payment": PAYMENT | SUM, "dispute": {"id": "disp_1"} | SUM}, None),
    ],
)
def test_amount(event_type: str, entities: dict[str, Any], amount: Money | None) -> None:
    assert event(event_type, **entities).amount == amount


def test_event_without_an_id_is_known_by_its_body() -> None:
    body = json.dumps({"event": "payment.captured", "payload": {"payment": {"entity": PAYMENT}}}).encode()
    assert event_of(body, {}).event_id == hashlib.sha256(body).hexdigest() == event_of(body, {}).event_id


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff", b"null", b"1", b"[]", b"{}", b'{"event": "payment.captured", "payload": "text"}',
     b'{"event": "payment.captured", "payload": {"payment": {"entity": "text"}}}',
     b'{"event": "payment.captured", "payload": {"payment": "text"}}',
     b'{"event": "payment.captured", "payload": {"payment": {}}}', b"[" * 100_000],
    ids=range(11),
)  # fmt: skip
def test_body_that_is_no_event(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        event_of(body, {})
