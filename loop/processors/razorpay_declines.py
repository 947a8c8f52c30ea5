"""Razorpay's error reasons in Loop's own words."""

from collections.abc import Mapping
from dataclasses import replace

from loop.domain.declines import Decline, DeclineClass, unified

_REASONS: Mapping[tuple[str, DeclineClass], str] = {
    ("issuer_unavailable", DeclineClass.TECH): (
        "bank_technical_error issuer_technical_error upi_app_technical_error bank_not_available "
        "bank_cutoff_in_progress psp_not_available psp_app_not_available vpa_resolution_failed"
    ),
    ("processor_error", DeclineClass.TECH): (
        "gateway_technical_error payment_declined_due_to_high_traffic invalid_response_from_gateway server_error "
        "duplicate_rrn_found"
    ),
    ("outcome_unknown", DeclineClass.AMBIGUOUS): (
        "payment_timed_out request_timed_out verification_failed payment_pending collect_request_pending "
        "deemed_transaction payment_pending_approval"
    ),
    ("declined", DeclineClass.CASCADE): (
        "payment_failed card_declined payment_declined debit_declined authorisation_declined_by_psp credit_failed"
    ),
    ("insufficient_funds", DeclineClass.CUSTOMER): "insufficient_funds funds_blocked_by_mandate",
    ("limit_exceeded", DeclineClass.CUSTOMER): (
        "credit_limit_exceeded transaction_daily_limit_exceeded transaction_limit_exceeded "
        "transaction_frequency_limit_exceeded transaction_daily_count_exceeded mcc_amount_limit_exceeded "
        "emi_greater_than_max_amount"
    ),
    ("authentication_failed", DeclineClass.CUSTOMER): (
        "authentication_failed incorrect_otp otp_expired otp_attempts_exceeded incorrect_pin incorrect_atm_pin "
        "pin_attempts_exceeded pin_not_set card_not_enrolled"
    ),
    ("customer_cancelled", DeclineClass.CUSTOMER): "payment_cancelled",
    ("action_expired", DeclineClass.CUSTOMER): "payment_session_expired payment_collect_request_expired",
    ("invalid_details", DeclineClass.CUSTOMER): (
        "card_expired card_number_invalid incorrect_card_details incorrect_card_expiry_date incorrect_cardholder_name "
        "incorrect_cvv card_type_invalid invalid_vpa bank_account_invalid bank_account_validation_failed "
        "invalid_user_details invalid_mobile_number mobile_number_invalid invalid_email invalid_device"
    ),
    ("card_blocked", DeclineClass.HARD): (
        "debit_instrument_blocked debit_instrument_inactive transaction_on_vpa_restricted"
    ),
    ("suspected_fraud", DeclineClass.HARD): "payment_risk_check_failed compliance_violation payment_amount_tampered",
    ("not_supported", DeclineClass.CONFIG): (
        "card_network_not_enabled bank_not_enabled payment_method_not_enabled international_transaction_not_allowed "
        "recurring_payment_not_enabled upi_collect_not_enabled upi_intent_not_enabled collect_on_mcc_blocked "
        "psp_app_not_supported psp_not_registered upi_autopay_not_supported_on_psp invalid_currency "
        "amount_less_than_minimum_amount"
    ),
    ("configuration", DeclineClass.CONFIG): (
        "merchant_not_activated live_mode_not_enabled beneficiary_account_does_not_exist beneficiary_account_dormant"
    ),
    ("invalid_request", DeclineClass.CONFIG): (
        "input_validation_failed invalid_request invalid_amount invalid_order_id order_amount_mismatch "
        "order_payment_method_mismatch mismatch_in_transaction_details record_not_found"
    ),
    ("already_done", DeclineClass.AMBIGUOUS): "order_already_paid duplicate_request duplicate_refund_id",
    ("capture_failed", DeclineClass.TECH): "capture_failed",
    ("refund_limit", DeclineClass.CONFIG): "refund_limit_crossed",
    ("mandate_failed", DeclineClass.CUSTOMER): (
        "mandate_creation_declined mandate_creation_expired mandate_creation_failed mandate_creation_timeout "
        "reqauth_mandate_not_acknowledged"
    ),
    ("method_unavailable", DeclineClass.CUSTOMER): (
        "user_not_eligible user_not_registered_for_netbanking emi_plan_unavailable credit_limit_expired "
        "credit_limit_inactive credit_limit_not_approved credit_not_permitted"
    ),
}

_SPELLINGS: Mapping[str, str] = {
    "invalid_otp": "incorrect_otp",
    "invalid_cvv": "incorrect_cvv",
    "invalid_pin": "incorrect_pin",
    "insufficient_fund": "insufficient_funds",
    "insufficient_balance": "insufficient_funds",
    "authorization_declined_by_psp": "authorisation_declined_by_psp",
    "payment_canceled": "payment_cancelled",
    "online_payments": "payment_method_not_enabled",
    "online_payments_disabled": "payment_method_not_enabled",
}
"""What Razorpay's examples and test cards say -> the word of its list."""

DECLINES_BY_REASON: Mapping[str, Decline] = {
    reason: replace(unified(code), decline_class=decline_class)
    for (code, decline_class), several in _REASONS.items()
    for reason in several.split()
}
"""Razorpay's `reason` -> Loop's decline, of the class that the reason calls for at Razorpay."""


def known_decline(reason: str | None) -> Decline | None:
    """Return Loop's decline for a `reason`, in whatever case and with whatever separators, or None for a new one."""
    word = "_".join((reason or "").strip().lower().replace("-", "_").split())
    return DECLINES_BY_REASON.get(_SPELLINGS.get(word, word))
