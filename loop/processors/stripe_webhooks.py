"""Stripe's webhooks: their signature, and what an event is about."""

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from datetime import datetime

from loop.domain.money import Money
from loop.processors.base import WebhookEvent, WebhookSignatureError
from loop.processors.stripe_answers import loop_amount

TOLERANCE_S = 300
"""How far a webhook's signed time may be from now, both ways, in seconds."""

SIGNATURES_MAX = 16
"""Signatures read from one webhook header."""


def verify_signature(body: bytes, header: str, *, secrets: Sequence[str], now: datetime) -> None:
    """Raise `WebhookSignatureError` unless one of the header's v1 signatures is of one of the secrets, and fresh."""
    items = [item.strip().partition("=") for item in header.split(",", SIGNATURES_MAX + 1)[: SIGNATURES_MAX + 1]]
    times = [value for name, _, value in items if name == "t"]
    given = [value.encode("utf-8", "replace") for name, _, value in items if name == "v1"]
    at = times[0] if len(times) == 1 else ""
    if not (at.isascii() and at.isdigit() and len(at) <= 12 and given):
        raise WebhookSignatureError("invalid_signature", "The header Stripe-Signature is malformed.")
    if abs(now.timestamp() - int(at)) > TOLERANCE_S:
        raise WebhookSignatureError("invalid_signature", "The webhook was signed too long ago, or in the future.")
    signed = at.encode() + b"." + body
    for secret in secrets:
        expected = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest().encode()
        if any(hmac.compare_digest(expected, each) for each in given):
            return
    raise WebhookSignatureError("invalid_signature", "The header Stripe-Signature does not fit the body.")


def event_of(body: bytes) -> WebhookEvent:
    """Return what a verified event is about; ValueError when it is not one."""
    try:
        event = json.loads(body)
        event_id, event_type, item = event["id"], event["type"], event["data"]["object"]
        metadata = item.get("metadata") or {}
        attempt_id = _text(metadata.get("loop_attempt_id"))
    except (RecursionError, LookupError, TypeError, AttributeError) as error:
        raise ValueError("the webhook is not an event of Stripe's") from error
    family = str(event_type).rsplit(".", 1)[0]
    is_about_refund, is_about_dispute = family in ("refund", "charge.refund"), family == "charge.dispute"
    payment = None
    if family == "payment_intent":
        payment = _text(item.get("id"))
    elif is_about_refund or is_about_dispute or event_type == "charge.refunded":
        payment = _text(item.get("payment_intent"))
    return WebhookEvent(
        event_id=str(event_id),
        event_type=str(event_type),
        payment_reference=payment,
        attempt_id=attempt_id if payment else None,
        refund_reference=_text(item.get("id")) if is_about_refund else None,
        dispute_reference=_text(item.get("id")) if is_about_dispute and payment else None,
        amount=_amount_of(item) if family == "payment_intent" or is_about_refund else None,
    )


def _amount_of(item: Mapping[str, object]) -> Money | None:
    amount, currency = item.get("amount"), item.get("currency")
    if not isinstance(amount, int) or isinstance(amount, bool) or not isinstance(currency, str):
        return None
    return Money(loop_amount(amount, currency.upper()), currency.upper())


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
