"""The payment intents of the stand-in's Stripe face: one state machine from creation to capture or cancellation."""

from collections.abc import Mapping

from loop.testing.stub_ledger import JsonObject, Work
from loop.testing.stub_stripe_amounts import checked_amount, checked_currency, checked_part
from loop.testing.stub_stripe_cards import AUTHENTICATION_REQUIRED, Decline, card_of
from loop.testing.stub_stripe_disputes import open_dispute
from loop.testing.stub_stripe_errors import StripeError, missing_object, unexpected_state
from loop.testing.stub_stripe_forms import Param
from loop.testing.stub_stripe_objects import (
    behaviour_of,
    book,
    emit,
    new_charge,
    new_intent,
    new_payment_method,
    public,
)

CHALLENGE_PATH = "/_page/authenticate/"
"""Where the stand-in's authentication page lives; the challenge id follows."""

CONFIRMABLE = ("requires_payment_method", "requires_confirmation", "requires_action")
CANCELABLE = (
    "requires_payment_method",
    "requires_capture",
    "requires_confirmation",
    "requires_action",
    "processing",
)

_METHOD: Mapping[str, Param] = {
    "payment_method": Param(),
    "payment_method_data": Param(
        "object",
        fields={
            "type": Param("enum", is_required=True, choices=("card",)),
            "card": Param("object", is_required=True, fields={"token": Param(is_required=True)}),
        },
    ),
    "return_url": Param(),
    "mandate_data": Param(
        "object",
        fields={
            "customer_acceptance": Param(
                "object",
                is_required=True,
                fields={
                    "type": Param("enum", is_required=True, choices=("online", "offline")),
                    "online": Param("object", fields={"ip_address": Param(), "user_agent": Param()}),
                },
            )
        },
    ),
    "off_session": Param("boolean"),
    "receipt_email": Param(),
    "expand": Param("strings"),
}

CREATE: Mapping[str, Param] = {
    "amount": Param("integer", is_required=True),
    "currency": Param(is_required=True),
    "confirm": Param("boolean"),
    "capture_method": Param("enum", choices=("automatic", "automatic_async", "manual")),
    "automatic_payment_methods": Param(
        "object",
        fields={
            "enabled": Param("boolean", is_required=True),
            "allow_redirects": Param("enum", choices=("always", "never")),
        },
    ),
    "allowed_payment_method_types": Param("strings"),
    "metadata": Param("metadata"),
    "description": Param(),
    "statement_descriptor_suffix": Param(),
    **_METHOD,
}
CONFIRM = _METHOD
CAPTURE: Mapping[str, Param] = {
    "amount_to_capture": Param("integer"),
    "metadata": Param("metadata"),
    "expand": Param("strings"),
}
CANCEL: Mapping[str, Param] = {
    "cancellation_reason": Param("enum", choices=("duplicate", "fraudulent", "requested_by_customer", "abandoned")),
    "expand": Param("strings"),
}


def create(work: Work, params: JsonObject) -> JsonObject:
    """Make an intent and, with `confirm`, try to charge it."""
    params["currency"] = checked_currency(params["currency"])
    checked_amount(params["amount"], params["currency"])
    is_confirmed = params.get("confirm", False)
    for name in ("return_url", "off_session", "mandate_data"):
        if name in params and not is_confirmed:
            raise StripeError(400, f"`{name}` may only be given when `confirm` is true.", param=name)
    method = _given_method(work, params)
    intent = new_intent(work, params)
    if is_confirmed and method is None:
        raise unexpected_state(
            "You cannot confirm this PaymentIntent because it's missing a payment method.", public(intent)
        )
    if method is not None:
        intent |= {"payment_method": method["id"], "status": "requires_confirmation"}
    work.put("payment_intents", intent)
    emit(work, "payment_intent.created", about=intent)
    if is_confirmed and method is not None:
        _confirm(work, intent, method=method, params=params)
    return public(intent)


def confirm(work: Work, params: JsonObject) -> JsonObject:
    """Try to charge an intent with the given payment method or the one it already has."""
    intent = _target(work)
    if intent["status"] == "succeeded":
        raise unexpected_state(
            "You cannot confirm this PaymentIntent because it has already succeeded after being previously confirmed.",
            public(intent),
        )
    if intent["status"] not in CONFIRMABLE:
        raise unexpected_state(
            f"You cannot confirm this PaymentIntent because it has a status of {intent['status']}. Only a "
            f"PaymentIntent with one of the following statuses may be confirmed: {', '.join(CONFIRMABLE)}.",
            public(intent),
        )
    method = _given_method(work, params)
    if method is None and intent["payment_method"] is not None:
        method = work.must("payment_methods", intent["payment_method"])
    if method is None:
        raise unexpected_state(
            "You cannot confirm this PaymentIntent because it's missing a payment method. You can either update "
            "the PaymentIntent with a payment method and then confirm it again, or confirm it again directly with "
            "a payment method.",
            public(intent),
        )
    if "receipt_email" in params:
        intent["receipt_email"] = params["receipt_email"]
    _confirm(work, intent, method=method, params=params)
    return public(intent)


def capture(work: Work, params: JsonObject) -> JsonObject:
    """Take all or part of an authorised intent; the rest is released."""
    intent = _target(work)
    if intent["status"] != "requires_capture":
        raise unexpected_state(
            f"This PaymentIntent could not be captured because it has a status of {intent['status']}. Only a "
            "PaymentIntent with one of the following statuses may be captured: requires_capture.",
            public(intent),
        )
    held: int = intent["amount_capturable"]
    amount = checked_part(params.get("amount_to_capture", held), "amount_to_capture")
    if amount > held:
        raise StripeError(
            400,
            f"The amount_to_capture ({amount}) is greater than the amount you can capture ({held}).",
            code="amount_too_large",
            param="amount_to_capture",
            executed=True,
        )
    intent["metadata"] |= params.get("metadata", {})
    charge = work.must("charges", intent["latest_charge"])
    _take(work, intent, charge=charge, amount=amount)
    work.enter("capture", amount, charge=charge, object_id=charge["id"])
    emit(work, "charge.captured", about=charge)
    emit(work, "payment_intent.succeeded", about=intent)
    return public(intent)


def cancel(work: Work, params: JsonObject) -> JsonObject:
    """End an intent that has not succeeded, releasing what it holds."""
    intent = _target(work)
    if intent["status"] not in CANCELABLE or _is_at_the_bank(work, intent):
        raise unexpected_state(
            f"You cannot cancel this PaymentIntent because it has a status of {intent['status']}. Only a "
            f"PaymentIntent with one of the following statuses may be canceled: {', '.join(CANCELABLE)}.",
            public(intent),
        )
    if intent["status"] == "requires_capture":
        charge = work.must("charges", intent["latest_charge"])
        charge |= {"amount_refunded": charge["amount"], "refunded": True}
        work.put("charges", charge)
        work.enter("void", intent["amount_capturable"], charge=charge, object_id=charge["id"])
    if intent["status"] == "processing":
        work.put("charges", work.must("charges", intent["latest_charge"]) | {"status": "failed"})
    intent |= {
        "status": "canceled",
        "canceled_at": work.now_s,
        "cancellation_reason": params.get("cancellation_reason"),
        "amount_capturable": 0,
        "next_action": None,
        "_challenge": None,
    }
    work.put("payment_intents", intent)
    emit(work, "payment_intent.canceled", about=intent)
    return public(intent)


def authenticate(work: Work, intent: JsonObject, *, has_passed: bool) -> None:
    """Let the customer pass or fail the bank's page; StripeError (402) when the bank then declines."""
    method = work.must("payment_methods", intent["payment_method"])
    intent |= {"next_action": None, "_challenge": None}
    if has_passed:
        _charge(work, intent, method=method)
        return
    intent |= {
        "status": "requires_payment_method",
        "payment_method": None,
        "last_payment_error": {
            "code": "payment_intent_authentication_failure",
            "doc_url": "https://stripe.com/docs/error-codes/payment-intent-authentication-failure",
            "message": "The provided PaymentMethod has failed authentication. You can provide "
            "payment_method_data or a new PaymentMethod to attempt to fulfill this PaymentIntent again.",
            "payment_method": public(method),
            "type": "invalid_request_error",
        },
    }
    work.put("payment_intents", intent)
    emit(work, "payment_intent.payment_failed", about=intent)


def decide(work: Work, intent: JsonObject) -> None:
    """Let the bank say what became of a debit, as its test account has it; ValueError when it has none to decide."""
    method = work.get("payment_methods", intent["payment_method"] or "")
    account = None if method is None else behaviour_of(method)
    if intent["status"] != "processing" or method is None or account is None or account.is_never_decided:
        raise ValueError(f"no bank decides about an intent that is {intent['status']}, or not about this one")
    charge = work.must("charges", intent["latest_charge"])
    if account.decline is None:
        charge |= {"status": "succeeded", "paid": True}
        _take(work, intent, charge=charge, amount=intent["amount"])
        work.enter("charge", intent["amount"], charge=charge, object_id=charge["id"])
        emit(work, "charge.succeeded", about=charge)
        emit(work, "payment_intent.succeeded", about=intent)
        return
    told = {"code": account.decline.code, "message": account.decline.message, "type": "invalid_request_error"}
    charge |= {
        "status": "failed",
        "failure_code": account.decline.code,
        "failure_message": account.decline.message,
    }
    intent |= {
        "status": "requires_payment_method",
        "payment_method": None,
        "last_payment_error": {**told, "charge": charge["id"], "payment_method": public(method)},
    }
    work.put("charges", charge)
    work.put("payment_intents", intent)
    emit(work, "charge.failed", about=charge)
    emit(work, "payment_intent.payment_failed", about=intent)


def token_to_confirm(work: Work, params: JsonObject) -> str | None:
    """Return the test token a create or confirm is about to charge, or None when it charges nothing."""
    if not work.target and not params.get("confirm", False):
        return None
    named = params.get("payment_method")
    if named is None and "payment_method_data" in params:
        named = params["payment_method_data"]["card"]["token"]
    if named is None and work.target:
        named = (work.get("payment_intents", work.target) or {}).get("payment_method")
    method = work.get("payment_methods", named) if named else None
    return named if method is None else str(method["_token"])


def _target(work: Work) -> JsonObject:
    intent = work.get("payment_intents", work.target)
    if intent is None:
        raise missing_object("payment_intent", work.target, param="intent")
    return intent


def _only_one_of(params: JsonObject, *names: str) -> None:
    if all(name in params for name in names):
        raise StripeError(400, f"You may only specify one of these parameters: {', '.join(names)}.", param=names[0])


def _given_method(work: Work, params: JsonObject) -> JsonObject | None:
    _only_one_of(params, "payment_method", "payment_method_data")
    if "payment_method_data" in params:
        token, noun, where = params["payment_method_data"]["card"]["token"], "token", "payment_method_data[card][token]"
        is_right_sort = token.startswith("tok_")
    elif "payment_method" in params:
        token, noun, where = params["payment_method"], "PaymentMethod", "payment_method"
        known = work.get("payment_methods", token)
        if known is not None:
            return known
        is_right_sort = token.startswith("pm_")
    else:
        return None
    card = card_of(token) if is_right_sort else None
    if card is None:
        raise missing_object(noun, token, param=where, status=400)
    return new_payment_method(work, token, card=card)


def _confirm(work: Work, intent: JsonObject, *, method: JsonObject, params: JsonObject) -> None:
    return_url = params.get("return_url", intent["_return_url"])
    automatic = intent["automatic_payment_methods"]
    may_redirect = automatic["enabled"] and automatic["allow_redirects"] == "always"
    if may_redirect and intent["allowed_payment_method_types"] != ["card"] and return_url is None:
        raise StripeError(
            400,
            "This PaymentIntent is configured to accept payment methods enabled in your Dashboard. Because some of "
            "these payment methods might redirect your customer off of your page, you must provide a `return_url`. "
            "If you don't want to accept redirect-based payment methods, set `automatic_payment_methods[enabled]` "
            "to `true` and `automatic_payment_methods[allow_redirects]` to `never` when creating Setup Intents and "
            "Payment Intents.",
            param="return_url",
        )
    account = behaviour_of(method)
    if account.is_bank_account:
        _check_debit(intent, params)
    intent |= {
        "payment_method": method["id"],
        "last_payment_error": None,
        "next_action": None,
        "_return_url": return_url,
    }
    if account.is_bank_account:
        _debit(work, intent, method=method)
    elif not account.asks_authentication:
        _charge(work, intent, method=method)
    elif params.get("off_session", False):
        _decline(work, intent, method=method, decline=AUTHENTICATION_REQUIRED)
    else:
        _challenge(work, intent, return_url=return_url)


def _check_debit(intent: JsonObject, params: JsonObject) -> None:
    if intent["currency"] != "usd":
        raise StripeError(400, "Only the currency usd can be debited from a us_bank_account.", param="payment_method")
    if intent["capture_method"] == "manual":
        raise StripeError(
            400, "The payment method type us_bank_account does not support manual capture.", param="payment_method"
        )
    if "mandate_data" not in params:
        raise StripeError(
            400,
            "This PaymentIntent requires a mandate, but no existing mandate was found. Collect mandate acceptance from "
            "the customer and try again, providing acceptance data in the mandate_data parameter.",
            details={"payment_intent": public(intent)},
        )


def _debit(work: Work, intent: JsonObject, *, method: JsonObject) -> None:
    charge = new_charge(work, intent, method=method)
    charge |= {"status": "pending", "paid": False}
    intent |= {"status": "processing", "latest_charge": charge["id"]}
    work.put("charges", charge)
    work.put("payment_intents", intent)
    emit(work, "charge.pending", about=charge)
    emit(work, "payment_intent.processing", about=intent)


def _is_at_the_bank(work: Work, intent: JsonObject) -> bool:
    """Tell whether a debit is on its way, which only the test account that is never decided about calls back."""
    if intent["status"] != "processing":
        return False
    return not behaviour_of(work.must("payment_methods", intent["payment_method"])).is_never_decided


def _challenge(work: Work, intent: JsonObject, *, return_url: str | None) -> None:
    challenge = work.new_id("payatt")
    page = f"{work.origin}{CHALLENGE_PATH}{challenge}"
    if return_url is not None:
        action = {"type": "redirect_to_url", "redirect_to_url": {"return_url": return_url, "url": page}}
    else:
        action = {"type": "use_stripe_sdk", "use_stripe_sdk": {"type": "three_d_secure_redirect", "stripe_js": page}}
    intent |= {"status": "requires_action", "next_action": action, "_challenge": challenge}
    work.put("challenges", {"id": challenge, "intent": intent["id"]})
    work.put("payment_intents", intent)
    emit(work, "payment_intent.requires_action", about=intent)


def _charge(work: Work, intent: JsonObject, *, method: JsonObject) -> None:
    card = behaviour_of(method)
    if card.decline is not None:
        _decline(work, intent, method=method, decline=card.decline)
    charge = new_charge(work, intent, method=method)
    intent["latest_charge"] = charge["id"]
    if intent["capture_method"] == "manual":
        intent |= {"status": "requires_capture", "amount_capturable": intent["amount"]}
        work.put("charges", charge)
        work.put("payment_intents", intent)
        work.enter("authorization", intent["amount"], charge=charge, object_id=charge["id"])
        emit(work, "charge.succeeded", about=charge)
        emit(work, "payment_intent.amount_capturable_updated", about=intent)
        return
    _take(work, intent, charge=charge, amount=intent["amount"])
    work.enter("charge", intent["amount"], charge=charge, object_id=charge["id"])
    emit(work, "charge.succeeded", about=charge)
    emit(work, "payment_intent.succeeded", about=intent)
    if card.disputed_for is not None:
        open_dispute(work, charge, reason=card.disputed_for, is_inquiry=card.is_inquiry)


def _take(work: Work, intent: JsonObject, *, charge: JsonObject, amount: int) -> None:
    fee = amount * 29 // 1000 + 30
    charge |= {"captured": True, "amount_captured": amount}
    charge["balance_transaction"] = book(work, amount, kind="charge", fee_minor=fee, source=charge)
    intent |= {"status": "succeeded", "amount_received": amount, "amount_capturable": 0}
    work.put("charges", charge)
    work.put("payment_intents", intent)


def _decline(work: Work, intent: JsonObject, *, method: JsonObject, decline: Decline) -> None:
    charge = new_charge(work, intent, method=method)
    charge |= {
        "status": "failed",
        "paid": False,
        "failure_code": decline.code,
        "failure_message": decline.message,
        "outcome": {
            "advice_code": decline.advice,
            "network_decline_code": "01",
            "network_status": "declined_by_network",
            "reason": decline.decline_code,
            "risk_level": "normal",
            "seller_message": "The bank did not return any further details with this decline.",
            "type": "issuer_declined",
        },
    }
    told: JsonObject = {
        "charge": charge["id"],
        "decline_code": decline.decline_code,
        "payment_method": public(method),
    }
    if decline.advice is not None:
        told["advice_code"] = decline.advice
    refusal = StripeError(402, decline.message, code=decline.code, executed=True, details=told)
    intent |= {
        "status": "requires_payment_method",
        "payment_method": None,
        "latest_charge": charge["id"],
        "last_payment_error": dict(refusal.error),
    }
    work.put("charges", charge)
    work.put("payment_intents", intent)
    emit(work, "charge.failed", about=charge)
    emit(work, "payment_intent.payment_failed", about=intent)
    refusal.error["payment_intent"] = public(intent)
    raise refusal
