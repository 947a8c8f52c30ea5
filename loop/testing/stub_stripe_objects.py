"""The JSON objects of the stand-in's Stripe face, their events, their expansion and their lists."""

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

from loop.testing.stub_ledger import JsonObject, Work
from loop.testing.stub_stripe_cards import Card, card_of
from loop.testing.stub_stripe_errors import StripeError, missing_object

API_VERSION = "2026-10-28.endive"
"""API version written into events when the request names none."""

PAGE_SIZE = 10
PAGE_SIZE_MAX = 100
AVAILABLE_AFTER_S = 2 * 24 * 3600
"""How long after a charge its money becomes available, in seconds."""

_EXPANDABLE: Mapping[str, str] = {
    "latest_charge": "charges",
    "charge": "charges",
    "payment_intent": "payment_intents",
    "payment_method": "payment_methods",
    "balance_transaction": "balance_transactions",
    "failure_balance_transaction": "balance_transactions",
}
_SOURCES: Mapping[str, str] = {"ch": "charges", "py": "charges", "re": "refunds", "du": "disputes"}
"""What a balance transaction is of, by the prefix of its `source`."""


def public(item: JsonObject) -> JsonObject:
    """Return an object as the API shows it: without the stub's own fields, which begin with `_`."""
    return {name: value for name, value in item.items() if not name.startswith("_")}


def emit(work: Work, kind: str, *, about: JsonObject) -> None:
    """Add an event about an object as it is now."""
    event = {
        "id": work.new_id("evt"),
        "object": "event",
        "api_version": API_VERSION,
        "created": work.now_s,
        "data": {"object": public(about)},
        "livemode": work.livemode,
        "pending_webhooks": 0,
        "request": {"id": work.request_id, "idempotency_key": work.idempotency_key},
        "type": kind,
    }
    work.put("events", event)
    work.events.append(event)


def new_payment_method(work: Work, token: str, *, card: Card) -> JsonObject:
    """Return the payment method a test token stands for; Stripe too answers a fresh `pm_` id for each use."""
    kind = "us_bank_account" if card.is_bank_account else "card"
    method = {
        "id": work.new_id("pm"),
        "object": "payment_method",
        "allow_redisplay": "unspecified",
        "billing_details": {"address": None, "email": None, "name": None, "phone": None},
        kind: _bank_account(card) if card.is_bank_account else _card(card),
        "created": work.now_s,
        "customer": None,
        "livemode": work.livemode,
        "metadata": {},
        "type": kind,
        "_token": token,
    }
    work.put("payment_methods", method)
    return method


def _card(card: Card) -> JsonObject:
    return {
        "brand": card.brand,
        "checks": {"address_line1_check": None, "address_postal_code_check": None, "cvc_check": None},
        "country": "US",
        "exp_month": 12,
        "exp_year": 2034,
        "fingerprint": f"stub{card.brand}{card.last4}",
        "funding": "credit",
        "last4": card.last4,
    }


def _bank_account(account: Card) -> JsonObject:
    return {
        "account_holder_type": "individual",
        "account_type": "checking",
        "bank_name": "STRIPE TEST BANK",
        "fingerprint": f"stubbank{account.last4}",
        "last4": account.last4,
        "routing_number": "110000000",
        "status_details": {},
    }


def behaviour_of(method: JsonObject) -> Card:
    """Return what the test token behind a payment method does."""
    card = card_of(method["_token"])
    if card is None:
        raise LookupError(f"the stub forgot the token of {method['id']}")
    return card


def new_intent(work: Work, params: JsonObject) -> JsonObject:
    """Return a payment intent without a payment method, from checked parameters."""
    intent_id = work.new_id("pi")
    types = params.get("allowed_payment_method_types")
    automatic = {"allow_redirects": "always", "enabled": True} | params.get("automatic_payment_methods", {})
    return {
        "id": intent_id,
        "object": "payment_intent",
        "allowed_payment_method_types": types,
        "amount": params["amount"],
        "amount_capturable": 0,
        "amount_details": {"tip": {}},
        "amount_received": 0,
        "application": None,
        "application_fee_amount": None,
        "automatic_payment_methods": automatic,
        "canceled_at": None,
        "cancellation_reason": None,
        "capture_method": params.get("capture_method", "automatic_async"),
        "client_secret": f"{intent_id}_secret_{work.new_id('cs')[3:]}",
        "confirmation_method": "automatic",
        "created": work.now_s,
        "currency": params["currency"],
        "customer": None,
        "description": params.get("description"),
        "last_payment_error": None,
        "latest_charge": None,
        "livemode": work.livemode,
        "metadata": params.get("metadata", {}),
        "next_action": None,
        "on_behalf_of": None,
        "payment_method": None,
        "payment_method_options": {},
        "payment_method_types": types or ["card", "link"],
        "processing": None,
        "receipt_email": params.get("receipt_email"),
        "review": None,
        "setup_future_usage": None,
        "shipping": None,
        "source": None,
        "statement_descriptor": None,
        "statement_descriptor_suffix": params.get("statement_descriptor_suffix"),
        "status": "requires_payment_method",
        "transfer_data": None,
        "transfer_group": None,
        "_return_url": None,
        "_challenge": None,
    }


def new_charge(work: Work, intent: JsonObject, *, method: JsonObject) -> JsonObject:
    """Return an authorised, uncaptured charge for an intent."""
    kind = method["type"]
    shown = ("brand", "country", "exp_month", "exp_year", "last4") if kind == "card" else ("bank_name", "last4")
    return {
        "id": work.new_id("ch" if kind == "card" else "py"),
        "object": "charge",
        "amount": intent["amount"],
        "amount_captured": 0,
        "amount_refunded": 0,
        "balance_transaction": None,
        "billing_details": method["billing_details"],
        "captured": False,
        "created": work.now_s,
        "currency": intent["currency"],
        "customer": None,
        "description": intent["description"],
        "disputed": False,
        "failure_code": None,
        "failure_message": None,
        "livemode": work.livemode,
        "metadata": intent["metadata"],
        "outcome": {
            "advice_code": None,
            "network_decline_code": None,
            "network_status": "approved_by_network",
            "reason": None,
            "risk_level": "normal",
            "seller_message": "Payment complete.",
            "type": "authorized",
        },
        "paid": True,
        "payment_intent": intent["id"],
        "payment_method": method["id"],
        "payment_method_details": {kind: {name: method[kind][name] for name in shown}, "type": kind},
        "receipt_email": intent["receipt_email"],
        "refunded": False,
        "status": "succeeded",
        "_dispute": None,
    }


def book(work: Work, amount_minor: int, *, kind: str, fee_minor: int = 0, source: JsonObject) -> str:
    """Add a balance transaction (negative amounts leave the merchant's balance) and return its id."""
    transaction = {
        "id": work.new_id("txn"),
        "object": "balance_transaction",
        "amount": amount_minor,
        "available_on": work.now_s + AVAILABLE_AFTER_S,
        "created": work.now_s,
        "currency": source["currency"],
        "description": None,
        "exchange_rate": None,
        "fee": fee_minor,
        "fee_details": [],
        "net": amount_minor - fee_minor,
        "reporting_category": kind,
        "source": source["id"],
        "status": "pending",
        "type": "adjustment" if kind.startswith("dispute") else kind,
    }
    if fee_minor:
        transaction["fee_details"] = [
            {
                "amount": fee_minor,
                "application": None,
                "currency": source["currency"],
                "description": "Stripe processing fees",
                "type": "stripe_fee",
            }
        ]
    work.put("balance_transactions", transaction)
    return str(transaction["id"])


def expand(work: Work, answer: JsonObject, *, paths: list[str]) -> JsonObject:
    """Put whole objects where the answer has their ids, for dotted paths as in `expand[]=latest_charge`."""
    for path in paths:
        _expand(work, answer, names=path.split("."), path=path)
    return answer


def _expand(work: Work, node: object, *, names: list[str], path: str) -> None:
    if isinstance(node, list):
        for item in node:
            _expand(work, item, names=names, path=path)
        return
    if node is None or not names:
        return
    name = names[0]
    if not isinstance(node, dict) or name not in node:
        raise StripeError(400, f"This property cannot be expanded ({path}).", param="expand")
    value = node[name]
    if isinstance(value, str):
        kind = _SOURCES.get(value.split("_")[0]) if name == "source" else _EXPANDABLE.get(name)
        if kind is None:
            raise StripeError(400, f"This property cannot be expanded ({path}).", param="expand")
        node[name] = public(work.must(kind, value))
    _expand(work, node[name], names=names[1:], path=path)


def list_page(work: Work, kind: str, *, params: JsonObject, path: str) -> JsonObject:
    """Return a page of this account's objects, newest first; every other parameter must equal the field."""
    limit = params.get("limit", PAGE_SIZE)
    if not 1 <= limit <= PAGE_SIZE_MAX:
        raise StripeError(
            400, f"Limit must be between 1 and {PAGE_SIZE_MAX}", code="parameter_invalid_integer", param="limit"
        )
    after = params.get("starting_after")
    if after is not None and work.get(kind, after) is None:
        raise missing_object(kind.removesuffix("s"), after, param="starting_after", status=400)
    wanted = _filter(params)
    is_past = after is None
    page: list[JsonObject] = []
    for item in work.store.newest_first(work.account, kind):
        if is_past and wanted(item) and not item.get("_is_gone"):
            page.append(public(item))
            if len(page) > limit:
                break
        is_past = is_past or item["id"] == after
    return {"object": "list", "data": page[:limit], "has_more": len(page) > limit, "url": path}


def _filter(params: JsonObject) -> Callable[[JsonObject], bool]:
    bounds: dict[str, int] = params.get("created", {})
    others = {k: v for k, v in params.items() if k not in ("created", "limit", "starting_after", "expand")}

    def wanted(item: JsonObject) -> bool:
        created = item["created"]
        return (
            created > bounds.get("gt", -1)
            and created >= bounds.get("gte", 0)
            and created < bounds.get("lt", created + 1)
            and created <= bounds.get("lte", created)
            and all(_fits(item, name, value=value) for name, value in others.items())
        )

    return wanted


def _fits(item: JsonObject, name: str, *, value: object) -> bool:
    if name == "types" and isinstance(value, list):
        return item["type"] in value
    if name == "type":
        return fnmatchcase(item["type"], str(value))
    return bool(item[name] == value)
