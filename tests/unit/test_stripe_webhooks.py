"""Stripe's webhooks: what an event is about, and which signatures are taken."""

import hashlib
import hmac
import json
from datetime import UTC, datetime
from typing import Any

import pytest
import stripe

from loop.domain.money import Money
from loop.processors.base import WebhookEvent, WebhookSignatureError
from loop.processors.stripe_webhooks import TOLERANCE_S, event_of, verify_signature

NOW = datetime(2026, 1, 2, tzinfo=UTC)
AT = int(NOW.timestamp())
BODY = b'{"id": "evt_1"}'
OURS = {"loop_attempt_id": "att_1"}


def header(*secrets: str, at: int = AT, body: bytes = BODY) -> str:
    digests = [hmac.new(key.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest() for key in secrets]
    return f"t={at}," + ",".join(f"v1={digest}" for digest in digests)


def accepts(given: str, *secrets: str, body: bytes = BODY) -> bool:
    try:
        verify_signature(body, given, secrets=secrets, now=NOW)
    except WebhookSignatureError as error:
        return error.code != "invalid_signature"
    return True


def test_any_secret_and_any_signature_will_do() -> None:
    assert accepts(header("old", "new"), "other", "new")
    assert accepts(header("old"), "new", "old")
    assert not accepts(header("old", "new"), "other")
    assert not accepts(header("new"))


def test_the_official_sdk_agrees() -> None:
    given = header("new")
    assert accepts(given, "new")
    assert stripe.WebhookSignature.verify_header(BODY.decode(), given, "new")


@pytest.mark.parametrize(
    ("age_s", "is_taken"),
    [(0, True), (TOLERANCE_S, True), (-TOLERANCE_S, True), (TOLERANCE_S + 1, False), (-TOLERANCE_S - 1, False)],
)
def test_signed_time_may_be_a_little_off(age_s: int, *, is_taken: bool) -> None:
    assert accepts(header("new", at=AT - age_s), "new") is is_taken


def test_body_is_taken_as_bytes() -> None:
    body = b"\xff\x00 not text"
    assert accepts(header("new", body=body), "new", body=body)
    assert not accepts(header("new", body=body), "new", body=body + b"\x00")


@pytest.mark.parametrize(
    "given",
    [
        "", ",", "t=", "v1=", "t=,v1=", f"t={AT}", f"t={AT},v0=00", "v1=00", "t=²,v1=00", f"t=-{AT},v1=00",
        f"t={AT}.0,v1=00", "t=" + "9" * 4_301 + ",v1=00", f"t={AT},t={AT},v1=00", f"t={AT},v1=é", f"t={AT},v1=\udcff",
        "=" * 10_000, "," * 10_000, "t=nan,v1=00", "t=inf,v1=00",
    ],
)  # fmt: skip
def test_malformed_header_is_refused(given: str) -> None:
    assert not accepts(given, "new")


def test_only_a_few_signatures_are_read() -> None:
    padding = ",".join(["v1=00"] * 1_000)
    assert not accepts(f"t={AT},{padding},{header('new').split(',')[1]}", "new")


def event(event_type: str, **item: object) -> WebhookEvent:
    return event_of(json.dumps({"id": "evt_1", "type": event_type, "data": {"object": item}}).encode())


@pytest.mark.parametrize(
    ("event_type", "item", "payment", "attempt_id", "refund"),
    [
        ("payment_intent.succeeded", {"id": "pi_1", "metadata": OURS}, "pi_1", "att_1", None),
        ("payment_intent.payment_failed", {"id": "pi_1", "metadata": {}}, "pi_1", None, None),
        ("refund.updated", {"id": "re_1", "payment_intent": "pi_1", "metadata": OURS}, "pi_1", "att_1", "re_1"),
        ("charge.refund.updated", {"id": "re_1", "payment_intent": "pi_1", "metadata": None}, "pi_1", None, "re_1"),
        ("charge.refunded", {"id": "ch_1", "payment_intent": "pi_1", "metadata": OURS}, "pi_1", "att_1", None),
        ("charge.succeeded", {"id": "ch_1", "payment_intent": "pi_1", "metadata": OURS}, None, None, None),
        ("payout.paid", {"id": "po_1", "metadata": OURS}, None, None, None),
    ],
)
def test_event(event_type: str, item: dict[str, Any], payment: str, attempt_id: str, refund: str) -> None:
    assert event(event_type, **item) == WebhookEvent("evt_1", event_type, payment, attempt_id, refund)


@pytest.mark.parametrize("name", ["created", "updated", "closed", "funds_withdrawn", "funds_reinstated"])
def test_dispute_event(name: str) -> None:
    event_type, about = f"charge.dispute.{name}", {"id": "dp_1", "metadata": {}, "amount": 400, "currency": "eur"}
    found = event(event_type, **about, payment_intent="pi_1")
    assert found == WebhookEvent("evt_1", event_type, "pi_1", dispute_reference="dp_1")
    of_nobody = event(event_type, **about, payment_intent=None)
    assert (of_nobody.payment_reference, of_nobody.dispute_reference) == (None, None)


@pytest.mark.parametrize(
    ("event_type", "item", "amount"),
    [
        ("payment_intent.succeeded", {"amount": 4_999, "currency": "usd"}, Money(4_999, "USD")),
        ("payment_intent.succeeded", {"amount": 10_000, "currency": "isk"}, Money(100, "ISK")),
        ("payment_intent.succeeded", {"amount": 5, "currency": "mga"}, Money(500, "MGA")),
        ("refund.updated", {"amount": 100, "currency": "jpy"}, Money(100, "JPY")),
        ("payment_intent.succeeded", {"amount": True, "currency": "usd"}, None),
        ("payment_intent.succeeded", {"amount": "4999", "currency": "usd"}, None),
        ("payment_intent.succeeded", {"amount": 4_999}, None),
        ("charge.dispute.created", {"amount": 4_999, "currency": "usd"}, None),
        ("payout.paid", {"amount": 4_999, "currency": "usd"}, None),
    ],
)
def test_amount_is_in_loops_minor_units(event_type: str, item: dict[str, Any], amount: Money | None) -> None:
    assert event(event_type, id="x_1", payment_intent="pi_1", **item).amount == amount


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff", b"null", b"1", b"[]", b"{}", b'{"id": "e", "type": "t", "data": {"object": "text"}}',
     b'{"id": "e", "type": "t", "data": {"object": {"metadata": "text"}}}', b"[" * 100_000],
    ids=range(9),
)  # fmt: skip
def test_body_that_is_no_event(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        event_of(body)
