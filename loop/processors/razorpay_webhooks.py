"""Razorpay's signatures: of its webhooks, and of what a customer's browser brings back; and what an event is about."""

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence

from loop.domain.money import Money
from loop.processors.base import WebhookEvent, WebhookSignatureError

SIGNATURE_HEADER = "x-razorpay-signature"
EVENT_ID_HEADER = "x-razorpay-event-id"

_DISPUTES = "payment.dispute"
_FAMILIES = ("payment", "order", "refund", _DISPUTES)
"""Events about payments; the others (settlements, downtimes, payment links) are about nothing that Loop made."""


def verify_signature(body: bytes, header: str, *, secrets: Sequence[str]) -> None:
    """Raise `WebhookSignatureError` unless the header is the body's signature under one of the secrets.

    Razorpay signs no time: what keeps a caught webhook from doing harm twice is that an event is only ever a hint.
    """
    if not any(_is_signature(header, body, secret) for secret in secrets):
        raise WebhookSignatureError("invalid_signature", "The header X-Razorpay-Signature does not fit the body.")


def signed_payment(parameters: Mapping[str, str], order_id: str | None, *, key_secret: str) -> str | None:
    """Return the id of the payment that Razorpay's Checkout vouches was tried on this order, or None.

    `order_id` is the one that Loop stored, never one from the parameters. The signature says where the parameters
    come from, not that anything was paid.
    """
    payment_id, signature = parameters.get("razorpay_payment_id"), parameters.get("razorpay_signature")
    if order_id is None or not payment_id or not signature:
        return None
    signed = f"{order_id}|{payment_id}".encode("utf-8", "replace")
    return payment_id if _is_signature(signature, signed, key_secret) else None


def _is_signature(given: str, signed: bytes, secret: str) -> bool:
    expected = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest().encode()
    return hmac.compare_digest(expected, given.encode("utf-8", "replace"))


def event_of(body: bytes, headers: Mapping[str, str]) -> WebhookEvent:
    """Return what a verified event is about; ValueError when it is not one.

    Razorpay also sends refund events of its own accord, when it lets go of a payment that nobody captured: those are
    about the payment.
    """
    try:
        event = json.loads(body)
        event_type, payload = event["event"], event["payload"]
        payment, order, refund, dispute = (_entity(payload, name) for name in ("payment", "order", "refund", "dispute"))
        notes = {**_notes(order), **_notes(payment), **_notes(refund)}
    except (RecursionError, LookupError, TypeError, AttributeError) as error:
        raise ValueError("the webhook is not an event of Razorpay's") from error
    family = str(event_type).rpartition(".")[0]
    order_id = (_text(payment.get("order_id")) or _text(order.get("id"))) if family in _FAMILIES else None
    is_about_refund = family == "refund" and payment.get("captured") is not False
    return WebhookEvent(
        event_id=headers.get(EVENT_ID_HEADER) or hashlib.sha256(body).hexdigest(),
        event_type=str(event_type),
        payment_reference=order_id,
        attempt_id=_text(notes.get("loop_attempt_id")) if order_id else None,
        refund_reference=_text(refund.get("id")) if is_about_refund else None,
        dispute_reference=_text(dispute.get("id")) if family == _DISPUTES and order_id else None,
        amount=None if family == _DISPUTES else _amount_of(refund if is_about_refund else payment or order),
    )


def _amount_of(item: Mapping[str, object]) -> Money | None:
    amount, currency = item.get("amount"), item.get("currency")
    if not isinstance(amount, int) or isinstance(amount, bool) or not isinstance(currency, str):
        return None
    return Money(amount, currency)


def _entity(payload: Mapping[str, Mapping[str, object]], name: str) -> Mapping[str, object]:
    entity = payload.get(name, {"entity": {}})["entity"]
    if not isinstance(entity, dict):
        raise TypeError(name)
    return entity


def _notes(entity: Mapping[str, object]) -> Mapping[str, object]:
    notes = entity.get("notes")
    return notes if isinstance(notes, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
