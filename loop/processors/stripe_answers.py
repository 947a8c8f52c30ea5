"""Stripe's answers: what statuses, amounts and errors mean for Loop."""

from collections.abc import Mapping

import aiohttp
import stripe

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
from loop.processors.base import Account, AuthorizeRequest
from loop.processors.http import is_surely_unsent
from loop.processors.stripe_declines import CONFIGURATION_CODES, decline_of

EXPONENTS_APART: Mapping[str, tuple[int, int]] = {"ISK": (100, 1), "UGX": (100, 1), "MGA": (1, 100)}
"""Currencies whose minor unit at Stripe is not ISO 4217's: Stripe's amount is Loop's times this ratio."""

MINIMUMS: Mapping[str, int] = {
    **dict.fromkeys(("USD", "EUR", "CAD", "AUD", "INR", "JPY"), 50),
    "GBP": 30,
    "AED": 200,
    "HKD": 400,
    "MXN": 1_000,
    "SEK": 300,
}
"""Stripe's smallest charges, in Loop's minor units; of other currencies Stripe itself says."""

STATE_CONFLICTS = frozenset(
    {"payment_intent_unexpected_state", "charge_already_captured", "charge_expired_for_capture"}
)
"""Errors that say the payment is not in the state Loop thought: the payment itself is asked."""

_REFUND_STATUSES: Mapping[str | None, RefundStatus] = {
    "succeeded": RefundStatus.SUCCEEDED,
    "pending": RefundStatus.PENDING,
    "requires_action": RefundStatus.PENDING,
    "failed": RefundStatus.FAILED,
    "canceled": RefundStatus.FAILED,
}


class UnusableKeyError(Exception):
    """The account has no secret key, or something that cannot be one."""


TROUBLE = (
    stripe.StripeError, aiohttp.ClientError, UnusableKeyError, AttributeError, LookupError, TypeError, ValueError
)  # fmt: skip
"""What a call may raise: the SDK's errors, a body cut off under it, and an answer that is not what it should be."""


def stripe_amount(amount: Money) -> int | None:
    """Return an amount in Stripe's minor units, or None when Stripe's are too coarse for it."""
    times, by = EXPONENTS_APART.get(amount.currency, (1, 1))
    return amount.amount_minor * times // by if amount.amount_minor % by == 0 else None


def loop_amount(stripe_minor: int, currency: str) -> int:
    """Return an amount of Stripe's in Loop's minor units of the (upper-case) currency."""
    times, by = EXPONENTS_APART.get(currency, (1, 1))
    return stripe_minor * by // times


def no_such_amount(amount: Money) -> NotSent:
    """Return the refusal of an amount that Stripe's minor units cannot say."""
    return NotSent("invalid_request", f"Stripe has no coin small enough for {amount}.")


def outcome_of(intent: stripe.PaymentIntent, account: Account, *, request: AuthorizeRequest) -> Outcome:
    """Return what an intent's status means for the attempt that made it.

    A cancelled intent held money (`Voided`) if it was to be captured by hand and its newest charge was not refused:
    Stripe keeps that charge, and clears the last error when a charge succeeds.

    Raises ValueError for an intent of another currency, which is not the attempt's.
    """
    if intent.currency.upper() != request.amount.currency:
        raise ValueError("Stripe's payment is of another currency")
    charge = intent.latest_charge if isinstance(intent.latest_charge, str | None) else intent.latest_charge.id
    refusal = intent.last_payment_error
    match intent.status:
        case "succeeded":
            amount = loop_amount(intent.amount_received, request.amount.currency)
            return Approved(intent.id, is_captured=True, amount_minor=amount, transaction_reference=charge)
        case "requires_capture":
            amount = loop_amount(intent.amount_capturable, request.amount.currency)
            return Approved(intent.id, is_captured=False, amount_minor=amount, transaction_reference=charge)
        case "processing":
            return Pending(intent.id)
        case "canceled":
            has_held = request.is_manual_capture and charge is not None and refusal is None
            return Voided(intent.id, charge) if has_held else Cancelled(intent.id)
        case "requires_action":
            return _action_of(intent, account)
        case "requires_payment_method" | "requires_confirmation" if request.token is None:
            return _action_of(intent, account)
        case "requires_payment_method" if refusal is not None:
            return _declined(refusal.to_dict(), intent.id)
        case _:
            return Unknown(f"Stripe has not finished the payment ({intent.status})", intent.id)


def _action_of(intent: stripe.PaymentIntent, account: Account) -> ActionRequired:
    action = {} if intent.next_action is None else intent.next_action.to_dict()
    publishable_key = account.credentials.get("publishableKey")
    return ActionRequired(
        intent.id,
        redirect_url=(action.get("redirect_to_url") or {}).get("url"),
        client_secret=intent.client_secret,
        processor_data={"publishableKey": publishable_key} if publishable_key else None,
        decline=_latest_refusal(intent),
    )


def _latest_refusal(intent: stripe.PaymentIntent) -> Declined | None:
    """Return why the customer's latest try was refused, if it was and they have not begun another."""
    refusal = intent.last_payment_error
    is_refused = refusal is not None and intent.status == "requires_payment_method"
    return _declined(refusal.to_dict(), intent.id) if refusal is not None and is_refused else None


def _declined(details: Mapping[str, object], intent_id: str | None) -> Declined:
    code, decline_code, advice = (_text(details.get(name)) for name in ("code", "decline_code", "advice_code"))
    decline = decline_of(code=code, decline_code=decline_code, advice_code=advice)
    raw = decline_code or code
    message = f"Stripe declined the payment: {raw or 'no reason given'}."
    return Declined(decline.code, decline.decline_class, message, raw_code=raw, reference=intent_id)


def refund_outcome_of(refund: stripe.Refund) -> RefundOutcome:
    """Return what a refund's status means."""
    status = _REFUND_STATUSES.get(refund.status, RefundStatus.UNKNOWN)
    if status is not RefundStatus.FAILED:
        return RefundOutcome(status, refund.id)
    reason = getattr(refund, "failure_reason", None) or refund.status
    return RefundOutcome(status, refund.id, error_code="refund_failed", error_message=f"The refund failed ({reason}).")


def refused_refund(code: str) -> RefundOutcome:
    """Return the outcome of a refund that Stripe refused with this code."""
    return RefundOutcome(
        RefundStatus.FAILED, error_code="refund_refused", error_message=f"Stripe refused the refund ({code})."
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _error_in(error: Exception) -> Mapping[str, object]:
    """Return the `error` object of Stripe's own answer, empty when there was no such answer."""
    body = error.json_body if isinstance(error, stripe.StripeError) else None
    details = body.get("error") if isinstance(body, dict) else None
    return details if isinstance(details, dict) else {}


def code_of(error: Exception) -> str | None:
    """Return the code in Stripe's own answer; the SDK leaves its `code` empty on 409 and 429."""
    return _text(_error_in(error).get("code"))


def _status_of(error: Exception) -> int | None:
    return error.http_status if isinstance(error, stripe.StripeError) else None


def is_refused_refund(error: Exception) -> bool:
    """Tell whether Stripe looked at a refund and refused it; anything else is settled by the same key again."""
    return _status_of(error) in (400, 402, 404) and bool(_error_in(error)) and code_of(error) != "rate_limit"


def is_for_ever(error: Exception) -> bool:
    """Tell whether the same key will only ever bring this error again: then the payment itself must be looked for."""
    if isinstance(error, stripe.IdempotencyError):
        return True
    is_replayed = isinstance(error, stripe.StripeError) and (error.headers or {}).get("Idempotent-Replayed") == "true"
    return is_replayed and (_status_of(error) or 0) >= 500


def refusal_of(error: Exception, intent_id: str | None = None) -> NotSent | Declined | Unknown:
    """Return what a failed call means. Stripe's own messages stay out: they repeat tokens and keys.

    Only a refused card is a decline; the other parsed 4xx answers say that Stripe did not look at the request.
    """
    status, code = _status_of(error), code_of(error)
    if isinstance(error, UnusableKeyError):
        return NotSent("configuration", reason_of(error))
    if isinstance(error, stripe.APIConnectionError) and is_surely_unsent(error.__cause__):
        return NotSent("processor_unreachable", "The connection to Stripe could not be opened.")
    if not _error_in(error) or status is None:
        return Unknown(reason_of(error), intent_id)
    if status == 402:
        intent = _error_in(error).get("payment_intent")
        found = _text(intent.get("id")) if isinstance(intent, dict) else None
        return _declined(_error_in(error), found or intent_id)
    if status == 429 or code == "rate_limit":
        return NotSent("rate_limited", reason_of(error))
    if status in (401, 403) or (status == 400 and code in CONFIGURATION_CODES):
        return NotSent("configuration", reason_of(error))
    if status in (400, 404):
        return NotSent("invalid_request", reason_of(error))
    return Unknown(reason_of(error), intent_id)


def reason_of(error: Exception) -> str:
    """Return a failed call in words that are safe to log."""
    status, code, param = _status_of(error), code_of(error), _text(_error_in(error).get("param"))
    if isinstance(error, UnusableKeyError):
        return "The account's Stripe secret key is missing or malformed."
    if status == 401:
        return "Stripe does not accept the account's secret key."
    if status is not None and _error_in(error):
        return f"Stripe answered {status} ({', '.join(each for each in (code, param) if each) or 'no code'})."
    if status is not None:
        return f"Stripe answered {status} with something unreadable."
    if isinstance(error, stripe.APIConnectionError | aiohttp.ClientError):
        return "The connection to Stripe failed."
    return f"Stripe's answer could not be read ({type(error).__name__})."
