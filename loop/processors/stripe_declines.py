"""Stripe's decline, advice and error codes in Loop's own words."""

from collections.abc import Mapping
from dataclasses import replace

from loop.domain.declines import Decline, DeclineClass, unified

_CODES: Mapping[str, str] = {
    "authentication_required": "authentication_required approve_with_id",
    "authentication_failed": "payment_intent_authentication_failure",
    "insufficient_funds": "insufficient_funds",
    "limit_exceeded": ("withdrawal_count_limit_exceeded card_velocity_exceeded card_decline_rate_limit_exceeded"),
    "declined": (
        "card_declined do_not_honor generic_decline call_issuer no_action_taken not_permitted service_not_allowed "
        "transaction_not_allowed"
    ),
    "issuer_unavailable": "try_again_later reenter_transaction issuer_not_available",
    "processor_error": "processing_error",
    "duplicate": "duplicate_transaction",
    "not_supported": "card_not_supported currency_not_supported invalid_amount",
    "invalid_card": (
        "expired_card incorrect_number invalid_number invalid_expiry_month invalid_expiry_year invalid_account "
        "new_account_information_available"
    ),
    "verification_failed": "incorrect_cvc invalid_cvc incorrect_zip incorrect_address",
    "pin_error": ("incorrect_pin invalid_pin offline_pin_required online_or_offline_pin_required pin_try_exceeded"),
    "card_blocked": "lost_card stolen_card pickup_card restricted_card",
    "suspected_fraud": (
        "fraudulent merchant_blacklist security_violation highest_risk_level previously_declined_do_not_retry"
    ),
    "consent_revoked": "stop_payment_order revocation_of_authorization revocation_of_all_authorizations",
    "do_not_retry": "do_not_try_again",
    "test_card_in_live": "testmode_decline",
}

DECLINE_CODES: Mapping[str, str] = {theirs: ours for ours, several in _CODES.items() for theirs in several.split()}
"""Stripe's decline code, or error code of a refused card -> Loop's decline code."""

_ADVICE: Mapping[str, tuple[DeclineClass, frozenset[DeclineClass]]] = {
    "do_not_try_again": (DeclineClass.HARD, frozenset(DeclineClass)),
    "confirm_card_data": (
        DeclineClass.CUSTOMER,
        frozenset({DeclineClass.CASCADE, DeclineClass.TECH, DeclineClass.LATER}),
    ),
    "try_again_later": (DeclineClass.TECH, frozenset({DeclineClass.CASCADE})),
}
"""Stripe's advice -> the class it calls for, and the classes it outranks: a vague one, never one that says more."""

CONFIGURATION_CODES = frozenset(
    {
        "account_closed", "account_invalid", "api_key_expired", "livemode_mismatch", "platform_api_key_expired",
        "platform_account_required", "secret_key_required", "testmode_charges_only", "tls_version_unsupported",
    }
)  # fmt: skip
"""Error codes of requests that are well-formed but that this account or key may not make."""


def decline_of(*, code: str | None, decline_code: str | None, advice_code: str | None) -> Decline:
    """Return Loop's decline for what Stripe says of a refused card: the finer code counts, and advice its class."""
    ours = DECLINE_CODES.get(decline_code or "") or DECLINE_CODES.get(code or "", "declined")
    decline = unified(ours)
    advised, outranked = _ADVICE.get(advice_code or "", (decline.decline_class, frozenset()))
    return replace(decline, decline_class=advised) if decline.decline_class in outranked else decline
