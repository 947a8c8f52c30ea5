"""Stripe's public test tokens of cards and bank accounts, what each does, and the stand-in's own tokens for faults."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

Quirk: TypeAlias = Literal["timeout_then_charged", "timeout_then_nothing", "slow", "server_error"]

SLOW_S = 2.0
"""How long `pm_card_slow` waits before it is executed, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decline:
    """Why a bank says no, in Stripe's words; `advice` is Stripe's advice_code."""

    code: str = "card_declined"
    decline_code: str | None
    """None where a bank returns a debit: only a card's issuer says more than the code."""
    message: str = "Your card was declined."
    advice: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a test token does: its brand, then its behaviour when a payment is confirmed with it."""

    brand: str = "visa"
    last4: str = "4242"
    decline: Decline | None = None
    asks_authentication: bool = False
    is_refund_pending: bool = False
    disputed_for: str | None = None
    """The reason that the bank gives, None where it is content."""
    is_inquiry: bool = False
    quirk: Quirk | None = None
    is_bank_account: bool = False
    """A debit of it is `processing` until the bank has decided."""
    is_never_decided: bool = False


_BRANDS: Mapping[str, tuple[str, str]] = {
    "visa": ("visa", "4242"),
    "visa_debit": ("visa", "5556"),
    "mastercard": ("mastercard", "4444"),
    "mastercard_debit": ("mastercard", "3222"),
    "mastercard_prepaid": ("mastercard", "5100"),
    "amex": ("amex", "8431"),
    "discover": ("discover", "9424"),
    "diners": ("diners", "3237"),
    "jcb": ("jcb", "0505"),
    "unionpay": ("unionpay", "0005"),
}

_DECLINED = Decline(decline_code="generic_decline")
_FUNDS = Decline(
    decline_code="insufficient_funds", message="Your card has insufficient funds.", advice="try_again_later"
)

_BEHAVIOURS: Mapping[str, Card] = {
    "chargeDeclined": Card(last4="0002", decline=_DECLINED),
    "chargeDeclinedInsufficientFunds": Card(last4="9995", decline=_FUNDS),
    "chargeDeclinedLostCard": Card(last4="9987", decline=Decline(decline_code="lost_card", advice="do_not_try_again")),
    "chargeDeclinedStolenCard": Card(
        last4="9979", decline=Decline(decline_code="stolen_card", advice="do_not_try_again")
    ),
    "chargeDeclinedFraudulent": Card(
        last4="0019", decline=Decline(decline_code="fraudulent", advice="do_not_try_again")
    ),
    "chargeDeclinedVelocityLimitExceeded": Card(
        last4="6975",
        decline=Decline(
            decline_code="card_velocity_exceeded",
            message="Your card was declined for making repeated attempts too frequently or exceeding its amount limit.",
            advice="try_again_later",
        ),
    ),
    "chargeDeclinedExpiredCard": Card(
        last4="0069",
        decline=Decline(
            code="expired_card",
            decline_code="expired_card",
            message="Your card has expired.",
            advice="confirm_card_data",
        ),
    ),
    "chargeDeclinedIncorrectCvc": Card(
        last4="0127",
        decline=Decline(
            code="incorrect_cvc",
            decline_code="incorrect_cvc",
            message="Your card's security code is incorrect.",
            advice="confirm_card_data",
        ),
    ),
    "chargeDeclinedProcessingError": Card(
        last4="0119",
        decline=Decline(
            code="processing_error",
            decline_code="processing_error",
            message="An error occurred while processing your card. Try again in a little bit.",
            advice="try_again_later",
        ),
    ),
    "authenticationRequired": Card(last4="3184", asks_authentication=True),
    "authenticationRequiredChargeDeclinedInsufficientFunds": Card(
        last4="3178", asks_authentication=True, decline=_FUNDS
    ),
    "threeDSecureRequired": Card(last4="3063", asks_authentication=True),
    "threeDSecure2Required": Card(last4="3220", asks_authentication=True),
    "threeDSecureRequiredChargeDeclined": Card(last4="1629", asks_authentication=True, decline=_DECLINED),
    "threeDSecureOptional": Card(last4="3055"),
    "pendingRefund": Card(last4="7726", is_refund_pending=True),
    "refundPending": Card(last4="7726", is_refund_pending=True),
    "refundFail": Card(last4="5126"),
    "createDispute": Card(last4="0259", disputed_for="fraudulent"),
    "createDisputeProductNotReceived": Card(last4="2685", disputed_for="product_not_received"),
    "createDisputeInquiry": Card(last4="1976", disputed_for="fraudulent", is_inquiry=True),
    "timeoutThenCharged": Card(quirk="timeout_then_charged"),
    "timeoutThenNothing": Card(quirk="timeout_then_nothing"),
    "slow": Card(quirk="slow"),
    "serverError": Card(quirk="server_error"),
}

_BANK_ACCOUNTS: Mapping[str, Card] = {
    "success": Card(last4="6789", is_bank_account=True),
    "processing": Card(last4="0009", is_bank_account=True, is_never_decided=True),
    "accountClosed": Card(
        last4="1113",
        is_bank_account=True,
        decline=Decline(
            code="account_closed", decline_code=None, message="The customer's bank account has been closed."
        ),
    ),
    "debitNotAuthorized": Card(
        last4="3335",
        is_bank_account=True,
        decline=Decline(
            code="debit_not_authorized",
            decline_code=None,
            message="The customer has notified their bank that this payment was unauthorized.",
        ),
    ),
    "insufficientFunds": Card(
        last4="2227",
        is_bank_account=True,
        decline=Decline(
            code="insufficient_funds",
            decline_code=None,
            message="The customer's account has insufficient funds to cover this payment.",
        ),
    ),
}

AUTHENTICATION_REQUIRED = Decline(
    code="authentication_required",
    decline_code="authentication_required",
    message="Your card was declined. This transaction requires authentication.",
)
"""The decline of a card that asks for its holder when the holder is not there (`off_session`)."""

_TOKEN = re.compile(r"(?:pm_card|tok)_(.+)")
_BANK_TOKEN = re.compile(r"pm_usBankAccount_(.+)")


def card_of(token: str) -> Card | None:
    """Return what a test token (`pm_card_visa`, `pm_usBankAccount_success`, …) does, or None for an unknown one."""
    of_bank = _BANK_TOKEN.fullmatch(token)
    if of_bank is not None:
        return _BANK_ACCOUNTS.get(of_bank[1])
    matched = _TOKEN.fullmatch(token)
    if matched is None:
        return None
    name = matched[1]
    if name in _BRANDS:
        brand, last4 = _BRANDS[name]
        return Card(brand=brand, last4=last4)
    if name in _BEHAVIOURS:
        return _BEHAVIOURS[name]
    prefix, _, behaviour = name.partition("_")
    if prefix in _BRANDS and behaviour in _BEHAVIOURS:
        return replace(_BEHAVIOURS[behaviour], brand=prefix)
    return None
