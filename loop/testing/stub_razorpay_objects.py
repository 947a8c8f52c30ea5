"""The JSON objects of the stand-in's Razorpay face, its errors, its events and its lists."""

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from typing import Any

from loop.testing.stub_ledger import EntryKind, JsonObject, Work

ORDERS, PAYMENTS, REFUNDS, DISPUTES, KEYS = "rzp_orders", "rzp_payments", "rzp_refunds", "rzp_disputes", "rzp_keys"
"""Under which kinds the store keeps this face's objects."""

PAGE_SIZE = 10
PAGE_SIZE_MAX = 100

DESCRIPTIONS: Mapping[str, str] = {
    "payment_failed": "Payment was unsuccessful as it was declined by the bank. Try another payment method.",
    "insufficient_funds": "Your payment could not be completed due to insufficient account balance.",
    "payment_timed_out": "Payment was not completed on time.",
    "payment_cancelled": "You may have cancelled the payment.",
    "gateway_technical_error": "Payment failed due to a technical error at the gateway.",
}
"""What is said of the commonest reasons; the others read like `payment_failed`."""


class RazorpayError(Exception):
    """An error answer, in the shape of Razorpay's; nothing of the work is kept."""

    def __init__(
        self,
        status: int,
        description: str,
        *,
        code: str = "BAD_REQUEST_ERROR",
        reason: str = "input_validation_failed",
        field: str | None = None,
    ) -> None:
        super().__init__(description)
        self.status = status
        is_about_request = reason != "NA"
        self.body: JsonObject = {
            "error": {
                "code": code,
                "description": description,
                "source": "business" if is_about_request else "NA",
                "step": "payment_initiation" if is_about_request else "NA",
                "reason": reason,
                "metadata": {},
                **({"field": field} if field else {}),
            }
        }


def refusal_of(status: int) -> RazorpayError:
    """Return the answer for a status that has nothing to do with the request itself."""
    if status == 409:
        return RazorpayError(409, "Another request with this idempotency key is still in progress.", reason="NA")
    if status == 429:
        return RazorpayError(429, "Request failed. Please try after sometime.", reason="NA")
    code = "GATEWAY_ERROR" if status == 502 else "SERVER_ERROR"
    return RazorpayError(status, "We are facing some trouble completing your request.", code=code, reason="NA")


def must_have(work: Work, kind: str, *, object_id: str) -> JsonObject:
    """Return this account's object, or refuse as Razorpay does for an id it does not know."""
    found = work.get(kind, object_id)
    if found is None:
        raise RazorpayError(400, "The id provided does not exist")
    return found


def public(item: JsonObject) -> JsonObject:
    """Return an object as the API shows it: without the stub's own fields; no notes are an empty list."""
    shown = {name: value for name, value in item.items() if not name.startswith("_")}
    return {**shown, "notes": shown.get("notes") or []}


def listed(items: Iterable[JsonObject], params: Mapping[str, Any]) -> JsonObject:
    """Return a page of objects as a collection."""
    count, skip = params.get("count", PAGE_SIZE), params.get("skip", 0)
    if not 1 <= count <= PAGE_SIZE_MAX:
        raise RazorpayError(400, f"The count must be between 1 and {PAGE_SIZE_MAX}.", field="count")
    since, until = params.get("from", 0), params.get("to", 1 << 62)
    page = [public(item) for item in items if since <= item["created_at"] <= until][skip : skip + count]
    return {"entity": "collection", "count": len(page), "items": page}


def emit(work: Work, kind: str, **entities: JsonObject) -> None:
    """Add a webhook about objects as they are now; Razorpay keeps no list of its events."""
    body = {
        "entity": "event",
        "account_id": work.account,
        "event": kind,
        "contains": list(entities),
        "payload": {name: {"entity": public(item)} for name, item in entities.items()},
        "created_at": work.now_s,
    }
    work.events.append({"id": work.new_id("event"), "type": kind, "body": json.loads(json.dumps(body))})


def pack_webhook(event: JsonObject, secret: str, *, at_s: int) -> tuple[bytes, dict[str, str]]:
    """Return a webhook's body and headers; the signature has no time in it, and the event's id is only a header."""
    del at_s
    body = json.dumps(event["body"], separators=(",", ":")).encode()
    return body, {
        "Content-Type": "application/json",
        "X-Razorpay-Event-Id": event["id"],
        "X-Razorpay-Signature": hmac.new(secret.encode(), body, hashlib.sha256).hexdigest(),
        "User-Agent": "Razorpay-Webhook/v1",
    }


def new_order(work: Work, params: JsonObject) -> JsonObject:
    """Return an unpaid order, from checked parameters."""
    return {
        "id": work.new_id("order"),
        "entity": "order",
        "amount": params["amount"],
        "amount_paid": 0,
        "amount_due": params["amount"],
        "currency": params["currency"],
        "receipt": params.get("receipt"),
        "offer_id": None,
        "status": "created",
        "attempts": 0,
        "notes": params.get("notes", {}),
        "created_at": work.now_s,
        "_capture": params.get("payment", {}).get("capture", "automatic"),
        "_payments": [],
    }


def new_payment(work: Work, order: JsonObject, *, instrument: str) -> JsonObject:
    """Return a payment that its customer has just begun; an instrument with an @ is a UPI address."""
    is_upi = "@" in instrument
    return {
        "id": work.new_id("pay"),
        "entity": "payment",
        "amount": order["amount"],
        "currency": order["currency"],
        "status": "created",
        "order_id": order["id"],
        "invoice_id": None,
        "international": False,
        "method": "upi" if is_upi else "card",
        "amount_refunded": 0,
        "refund_status": None,
        "captured": False,
        "description": None,
        "card_id": None if is_upi else work.new_id("card"),
        "bank": None,
        "wallet": None,
        "vpa": instrument if is_upi else None,
        "email": "buyer@shop.example",
        "contact": "+919000090000",
        "notes": {},
        "fee": None,
        "tax": None,
        "error_code": None,
        "error_description": None,
        "error_source": None,
        "error_step": None,
        "error_reason": None,
        "acquirer_data": {},
        "created_at": work.now_s,
        "_last4": instrument[-4:],
        "_refund_status": "processed",
        "_refunds": [],
        "_disputes": [],
    }


def card_of(payment: JsonObject) -> JsonObject:
    """Return the card of a card payment, as `expand[]=card` shows it."""
    return {
        "id": payment["card_id"],
        "entity": "card",
        "name": "",
        "last4": payment["_last4"],
        "network": "Visa",
        "type": "debit",
        "issuer": None,
        "international": False,
        "emi": False,
        "sub_type": "consumer",
    }


def new_refund(work: Work, payment: JsonObject, *, params: JsonObject, status: str) -> JsonObject:
    """Return a refund of a payment, from checked parameters."""
    return {
        "id": work.new_id("rfnd"),
        "entity": "refund",
        "amount": params["amount"],
        "currency": payment["currency"],
        "payment_id": payment["id"],
        "notes": params.get("notes", {}),
        "receipt": params.get("receipt"),
        "acquirer_data": {"arn": None},
        "created_at": work.now_s,
        "batch_id": None,
        "status": status,
        "speed_processed": "normal",
        "speed_requested": params.get("speed", "normal"),
    }


def enter(
    work: Work, kind: EntryKind, *, amount_minor: int, payment: JsonObject, source: JsonObject | None = None
) -> None:
    """Add a money row for a payment, or for what came of it, carrying the notes of both its order and its source."""
    source = payment if source is None else source
    order = work.must(ORDERS, payment["order_id"])
    told = {
        "payment_intent": order["id"],
        "currency": payment["currency"],
        "metadata": order["notes"] | (source.get("notes") or {}),
    }
    work.enter(kind, amount_minor, charge=told, object_id=source["id"])
