"""Razorpay's answers: what amounts, payments, refunds and errors mean for Loop."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

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
from loop.domain.declines import DeclineClass, unified
from loop.domain.money import CURRENCY_EXPONENTS, Money
from loop.domain.refunds import RefundOutcome, RefundStatus
from loop.processors.base import Account, AuthorizeRequest
from loop.processors.razorpay_declines import known_decline
from loop.processors.razorpay_session import (
    JsonObject,
    RazorpayError,
    RefusedError,
    UnreachedError,
    UnusableKeyError,
)

_WHOLE = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF"
_THOUSANDTHS = "BHD IQD JOD KWD OMR TND"
EXPONENTS: Mapping[str, int] = {
    code: decimals for decimals, codes in ((0, _WHOLE), (3, _THOUSANDTHS)) for code in codes.split()
}
"""Razorpay's own table: currency -> decimals of its minor unit, where they are not two."""

MINIMUMS: Mapping[str, int] = {"INR": 100}
"""Currency -> the least that Razorpay takes, in minor units; it refuses by itself what is below its other limits."""

ONE_TRY_CURRENCIES: Final = frozenset({"MYR"})
"""Currencies whose orders are paid at the first try or not at all: Razorpay Malaysia wants a new order for each."""

CHECKOUT_PATH: Final = "/v1/checkout/embedded"
"""The page at Razorpay's address that a customer's browser posts an order to, and pays on."""

_REFUND_STATUSES: Mapping[object, RefundStatus] = {
    "processed": RefundStatus.SUCCEEDED,
    "pending": RefundStatus.PENDING,
    "failed": RefundStatus.FAILED,
}


def refusal_of_amount(amount: Money) -> NotSent | None:
    """Return why Razorpay cannot take an amount, or None: then its minor units are Loop's own.

    The two count ISK, UGX and MGA alike, though other processors do not. Where they would not agree (currencies
    that Razorpay's table lacks and that have not two decimals) a guess could charge a hundredfold.
    """
    decimals = EXPONENTS.get(amount.currency, 2)
    if CURRENCY_EXPONENTS.get(amount.currency) != decimals:
        return NotSent("not_supported", f"Razorpay does not take {amount.currency}.")
    if decimals == 3 and amount.amount_minor % 10:
        return NotSent("not_supported", f"Razorpay takes {amount.currency} in steps of 0.010 only, not {amount}.")
    least = MINIMUMS.get(amount.currency, 1)
    if amount.amount_minor < least:
        return NotSent("not_supported", f"Razorpay takes no less than {Money(least, amount.currency)}, not {amount}.")
    return None


def action_of(order_id: str, account: Account, *, request: AuthorizeRequest, api_base: str) -> ActionRequired:
    """Return what the customer's browser needs to pay an order in Razorpay's Checkout."""
    shown: dict[str, object] = {
        "keyId": account.credentials.get("keyId"),
        "orderId": order_id,
        "amount": request.amount.amount_minor,
        "currency": request.amount.currency,
        "callbackUrl": request.return_url,
        "checkoutUrl": f"{api_base}{CHECKOUT_PATH}",
    }
    if request.amount.currency in ONE_TRY_CURRENCIES:
        shown["retry"] = {"enabled": False}
    if request.description:
        shown["description"] = request.description
    if request.customer_email:
        shown["prefill"] = {"email": request.customer_email}
    return ActionRequired(order_id, processor_data=shown)


def items_of(collection: JsonObject) -> list[JsonObject]:
    """Return the objects of a list that Razorpay answered; ValueError when it is none."""
    items = collection.get("items")
    if not isinstance(items, list) or not all(isinstance(each, dict) for each in items):
        raise ValueError("Razorpay's list is not one")
    return items


def text_of(item: JsonObject, name: str) -> str:
    """Return a field that is always a text; ValueError when it is not."""
    value = item.get(name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"Razorpay left out {name}")
    return value


def notes_of(item: JsonObject) -> Mapping[str, object]:
    """Return an object's notes; Razorpay writes an empty list where there are none."""
    notes = item.get("notes")
    return notes if isinstance(notes, dict) else {}


def standing_of(payment: JsonObject) -> str:
    """Return how one payment stands: created, failed, authorized, captured, or released (held, then let go)."""
    status = payment.get("status")
    if status == "refunded":
        return "captured" if payment.get("captured") is True else "released"
    return status if isinstance(status, str) else "unreadable"


def oldest_captured(payments: Iterable[JsonObject]) -> JsonObject | None:
    """Return the payment that paid the order: always the same one, so that a repeated refund is of the same one."""
    return min((each for each in payments if standing_of(each) == "captured"), key=_age, default=None)


def outcome_of(payments: Iterable[JsonObject], action: ActionRequired, *, request: AuthorizeRequest) -> Outcome:
    """Return what the payments tried on an order mean for the attempt that made the order.

    A failed payment ends nothing: the customer may try again on the same order, and Razorpay may still hear from the
    bank that it went well. The attempt goes on waiting (`action`) until it is paid, or its time is up. Not so where an
    order can be tried once only (`ONE_TRY_CURRENCIES`): there the next try is another attempt, with its own order.

    An authorized payment that is to be captured automatically is `Pending`, not `Approved`: Razorpay takes the money
    by itself within minutes or gives it back, and until then neither is true. One that is to be captured by hand is
    held for the merchant.

    A hold that Razorpay let go is the end of a manual capture. With automatic capture it is only `Cancelled`, which
    a later try on the order can still overtake.
    """
    order_id = action.reference
    by_standing: dict[str, list[JsonObject]] = {}
    for payment in payments:
        if payment.get("order_id") == order_id:
            by_standing.setdefault(standing_of(payment), []).append(payment)
    for standing in ("captured", "authorized"):
        found = sorted(by_standing.get(standing, []), key=_age)
        if found:
            amounts = [_amount_of(payment, request.amount.currency) for payment in found]
            is_captured = standing == "captured"
            if not is_captured and not request.is_manual_capture:
                return Pending(order_id)
            return Approved(order_id, is_captured, sum(amounts), transaction_reference=text_of(found[0], "id"))
    if "released" in by_standing and "created" not in by_standing:
        payment_id = text_of(by_standing["released"][0], "id")
        return Voided(order_id, payment_id) if request.is_manual_capture else Cancelled(order_id)
    failed = by_standing.get("failed", [])
    if not failed or "created" in by_standing:
        return action
    decline = _declined(max(failed, key=_age).get("error_reason"), order_id)
    return decline if request.amount.currency in ONE_TRY_CURRENCIES else replace(action, decline=decline)


def _declined(reason: object, order_id: str) -> Declined:
    known = known_decline(reason) if isinstance(reason, str) else None
    decline = known or unified("declined")
    raw_code = reason if isinstance(reason, str) else None
    message = f"Razorpay reports that the payment failed: {raw_code or 'no reason given'}."
    return Declined(decline.code, decline.decline_class, message, raw_code=raw_code, reference=order_id)


def _age(payment: JsonObject) -> int:
    created = payment.get("created_at")
    return created if isinstance(created, int) else 0


def _amount_of(payment: JsonObject, currency: str) -> int:
    amount = payment.get("amount")
    if payment.get("currency") != currency or not isinstance(amount, int) or isinstance(amount, bool) or amount <= 0:
        raise ValueError("Razorpay's payment is of another currency or has no amount")
    return amount


def refund_outcome_of(refund: JsonObject) -> RefundOutcome:
    """Return what a refund's status means; ValueError when it has no id."""
    refund_id = text_of(refund, "id")
    status = _REFUND_STATUSES.get(refund.get("status"), RefundStatus.UNKNOWN)
    if status is RefundStatus.FAILED:
        message = "Razorpay reports that the refund failed; the money is still with the merchant."
        return RefundOutcome(status, refund_id, error_code="refund_failed", error_message=message)
    return RefundOutcome(status, refund_id)


def refused_refund(reason: str) -> RefundOutcome:
    """Return the outcome of a refund that Razorpay refused, or that it could only refuse."""
    return RefundOutcome(RefundStatus.FAILED, error_code="refund_refused", error_message=reason)


def is_definite(error: Exception) -> bool:
    """Tell whether Razorpay looked at a request and refused it for good; anything else is settled by asking again."""
    if not isinstance(error, RefusedError) or error.status not in (400, 404, 422):
        return False
    decline = known_decline(error.refusal.reason)
    return decline is None or decline.decline_class is not DeclineClass.AMBIGUOUS


def refusal_of(error: Exception, order_id: str | None = None) -> NotSent | Unknown:
    """Return what a failed call means: `NotSent` only where nothing can have come of it."""
    match error:
        case UnusableKeyError():
            return NotSent("configuration", str(error))
        case UnreachedError():
            return NotSent("processor_unreachable", str(error))
        case RefusedError(status=401 | 403):
            return NotSent("configuration", reason_of(error))
        case RefusedError(status=429):
            return NotSent("rate_limited", str(error))
        case RefusedError() if is_definite(error):
            decline = known_decline(error.refusal.reason)
            return NotSent("invalid_request" if decline is None else decline.code, str(error))
        case _:
            return Unknown(reason_of(error), order_id)


def reason_of(error: Exception) -> str:
    """Return a failed call in words that are safe to log."""
    if isinstance(error, RefusedError) and error.status == 401:
        return "Razorpay does not accept the account's key id and key secret."
    if isinstance(error, RazorpayError):
        return str(error)
    return f"Razorpay's answer makes no sense ({error})." if isinstance(error, ValueError) else type(error).__name__


TROUBLE: Final = (RazorpayError, ValueError)
"""What a call may end with: a failed one, and an answer that is not what it should be."""
