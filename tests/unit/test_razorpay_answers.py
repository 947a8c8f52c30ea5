"""What Razorpay's reasons, amounts, payments and errors mean for Loop, without a server."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import requests
from urllib3.exceptions import ConnectTimeoutError, MaxRetryError, NewConnectionError, ProtocolError

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
from loop.domain.declines import DECLINES, DeclineClass, unified
from loop.domain.money import CURRENCY_EXPONENTS, Money
from loop.processors.base import Account, AuthorizeRequest
from loop.processors.razorpay_answers import (
    action_of,
    is_definite,
    outcome_of,
    reason_of,
    refund_outcome_of,
    refusal_of,
    refusal_of_amount,
)
from loop.processors.razorpay_declines import DECLINES_BY_REASON, known_decline
from loop.processors.razorpay_session import (
    LostError,
    Refusal,
    RefusedError,
    UnreachedError,
    UnusableKeyError,
    _is_surely_unsent,
)

EXPECTED: Mapping[tuple[str, str], str] = {
    ("issuer_unavailable", "tech"): (
        "bank_technical_error issuer_technical_error upi_app_technical_error bank_not_available "
        "bank_cutoff_in_progress psp_not_available psp_app_not_available vpa_resolution_failed"
    ),
    ("processor_error", "tech"): (
        "gateway_technical_error payment_declined_due_to_high_traffic invalid_response_from_gateway server_error "
        "duplicate_rrn_found"
    ),
    ("outcome_unknown", "ambiguous"): (
        "payment_timed_out request_timed_out verification_failed payment_pending collect_request_pending "
        "deemed_transaction payment_pending_approval"
    ),
    ("declined", "cascade"): (
        "payment_failed card_declined payment_declined debit_declined authorisation_declined_by_psp credit_failed"
    ),
    ("insufficient_funds", "customer"): "insufficient_funds funds_blocked_by_mandate",
    ("limit_exceeded", "customer"): (
        "credit_limit_exceeded transaction_daily_limit_exceeded transaction_limit_exceeded "
        "transaction_frequency_limit_exceeded transaction_daily_count_exceeded mcc_amount_limit_exceeded "
        "emi_greater_than_max_amount"
    ),
    ("authentication_failed", "customer"): (
        "authentication_failed incorrect_otp otp_expired otp_attempts_exceeded incorrect_pin incorrect_atm_pin "
        "pin_attempts_exceeded pin_not_set card_not_enrolled"
    ),
    ("customer_cancelled", "customer"): "payment_cancelled",
    ("action_expired", "customer"): "payment_session_expired payment_collect_request_expired",
    ("invalid_details", "customer"): (
        "card_expired card_number_invalid incorrect_card_details incorrect_card_expiry_date incorrect_cardholder_name "
        "incorrect_cvv card_type_invalid invalid_vpa bank_account_invalid bank_account_validation_failed "
        "invalid_user_details invalid_mobile_number mobile_number_invalid invalid_email invalid_device"
    ),
    ("card_blocked", "hard"): "debit_instrument_blocked debit_instrument_inactive transaction_on_vpa_restricted",
    ("suspected_fraud", "hard"): "payment_risk_check_failed compliance_violation payment_amount_tampered",
    ("not_supported", "config"): (
        "card_network_not_enabled bank_not_enabled payment_method_not_enabled international_transaction_not_allowed "
        "recurring_payment_not_enabled upi_collect_not_enabled upi_intent_not_enabled collect_on_mcc_blocked "
        "psp_app_not_supported psp_not_registered upi_autopay_not_supported_on_psp invalid_currency "
        "amount_less_than_minimum_amount"
    ),
    ("configuration", "config"): (
        "merchant_not_activated live_mode_not_enabled beneficiary_account_does_not_exist beneficiary_account_dormant"
    ),
    ("invalid_request", "config"): (
        "input_validation_failed invalid_request invalid_amount invalid_order_id order_amount_mismatch "
        "order_payment_method_mismatch mismatch_in_transaction_details record_not_found"
    ),
    ("already_done", "ambiguous"): "order_already_paid duplicate_request duplicate_refund_id",
    ("capture_failed", "tech"): "capture_failed",
    ("refund_limit", "config"): "refund_limit_crossed",
    ("mandate_failed", "customer"): (
        "mandate_creation_declined mandate_creation_expired mandate_creation_failed mandate_creation_timeout "
        "reqauth_mandate_not_acknowledged"
    ),
    ("method_unavailable", "customer"): (
        "user_not_eligible user_not_registered_for_netbanking emi_plan_unavailable credit_limit_expired "
        "credit_limit_inactive credit_limit_not_approved credit_not_permitted"
    ),
}
"""(Loop's code, class) -> Razorpay's reasons, written down a second time on purpose."""


@pytest.mark.parametrize(
    ("theirs", "code", "decline_class"),
    [(theirs, *ours) for ours, several in EXPECTED.items() for theirs in several.split()],
)
def test_reason(theirs: str, code: str, decline_class: str) -> None:
    decline = known_decline(theirs)
    assert decline is not None
    assert (decline.code, decline.decline_class) == (code, decline_class)
    assert decline.customer_message == unified(code).customer_message
    assert known_decline(f" {theirs.upper().replace('_', '-')} ") == decline
    assert known_decline(theirs.replace("_", " ").title()) == decline


def test_every_reason_is_expected_and_every_code_is_one_of_loops() -> None:
    assert set(DECLINES_BY_REASON) == {each for several in EXPECTED.values() for each in several.split()}
    assert {decline.code for decline in DECLINES_BY_REASON.values()} <= set(DECLINES)


@pytest.mark.parametrize(
    ("spelt", "reason"),
    [
        ("invalid_otp", "incorrect_otp"),
        ("insufficient_fund", "insufficient_funds"),
        ("online_payments", "payment_method_not_enabled"),
        ("authorization_declined_by_psp", "authorisation_declined_by_psp"),
    ],
)
def test_words_of_the_examples_are_known_too(spelt: str, reason: str) -> None:
    assert known_decline(spelt) == known_decline(reason) is not None


@pytest.mark.parametrize("reason", [None, "", "NA", "brand_new", "_", "x" * 10_000])
def test_new_reason_is_not_guessed(reason: str | None) -> None:
    assert known_decline(reason) is None


@pytest.mark.parametrize("currency", CURRENCY_EXPONENTS)
def test_amount_of_every_currency_goes_both_ways(currency: str) -> None:
    """What is asked for is what is heard back: to the unit, in integers, in Razorpay's own minor unit."""
    amount = Money(123_450, currency)
    decimals = 0 if currency in WHOLE else 3 if currency in THOUSANDTHS else 2
    wanted = request(amount)
    if CURRENCY_EXPONENTS[currency] != decimals:
        assert currency in ("LYD", "UYI")
        assert refusal_of_amount(amount) is not None
        return
    assert refusal_of_amount(amount) is None
    shown = action(wanted).processor_data
    assert shown is not None
    assert (shown["amount"], shown["currency"]) == (123_450, currency)
    told = outcome_of([payment("captured", amount=123_450, currency=currency)], action(wanted), request=wanted)
    assert isinstance(told, Approved)
    assert told.amount_minor == 123_450


WHOLE = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF"
THOUSANDTHS = "BHD IQD JOD KWD OMR TND"


@pytest.mark.parametrize("currency", THOUSANDTHS.split())
@pytest.mark.parametrize("amount_minor", [1, 5, 1_001, 1_009])
def test_thousandths_go_in_steps_of_ten(currency: str, amount_minor: int) -> None:
    refusal = refusal_of_amount(Money(amount_minor, currency))
    assert refusal is not None
    assert refusal.code == "not_supported"
    assert refusal_of_amount(Money(amount_minor * 10, currency)) is None


@pytest.mark.parametrize(("amount_minor", "is_taken"), [(1, False), (99, False), (100, True), (10**12, True)])
def test_a_rupee_is_the_least(amount_minor: int, *, is_taken: bool) -> None:
    assert (refusal_of_amount(Money(amount_minor, "INR")) is None) is is_taken


PRICE = Money(50_000, "INR")
ACCOUNT = Account("pcf_1", "mer_1", is_test_mode=True, credentials={"keyId": "rzp_test_1", "keySecret": "secret"})


def request(amount: Money = PRICE, *, is_manual_capture: bool = False) -> AuthorizeRequest:
    return AuthorizeRequest(
        order_id="ord_1",
        attempt_id="att_1",
        amount=amount,
        is_manual_capture=is_manual_capture,
        payment_method="card",
        token=None,
        customer_email=None,
        description=None,
        return_url="http://loop.example/return/att_1",
        created_at=datetime(2026, 1, 2, tzinfo=UTC),
    )


def action(wanted: AuthorizeRequest) -> ActionRequired:
    return action_of("order_1", ACCOUNT, request=wanted, api_base="https://api.example")


def payment(status: str, payment_id: str = "pay_1", **more: object) -> dict[str, object]:
    told = {"id": payment_id, "order_id": "order_1", "status": status, "amount": 50_000, "currency": "INR"}
    return {**told, "captured": status == "captured", "created_at": 1, "notes": [], **more}


WAITING = action(request())
NO_REASON = "Razorpay reports that the payment failed: no reason given."
REFUSED = replace(WAITING, decline=Declined("declined", DeclineClass.CASCADE, NO_REASON, reference="order_1"))
TAKEN = Approved("order_1", is_captured=True, amount_minor=50_000, transaction_reference="pay_1")
HELD = Approved("order_1", is_captured=False, amount_minor=50_000, transaction_reference="pay_1")


@pytest.mark.parametrize(
    ("payments", "automatic", "manual"),
    [
        ([], WAITING, WAITING),
        ([payment("created")], WAITING, WAITING),
        ([payment("failed")], REFUSED, REFUSED),
        ([payment("failed"), payment("created", "pay_2")], WAITING, WAITING),
        ([payment("brand_new")], WAITING, WAITING),
        ([payment("authorized")], Pending("order_1"), HELD),
        ([payment("captured")], TAKEN, TAKEN),
        ([payment("refunded", captured=True)], TAKEN, TAKEN),
        ([payment("refunded")], Cancelled("order_1"), Voided("order_1", "pay_1")),
        ([payment("created", "pay_2"), payment("refunded")], WAITING, WAITING),
        ([payment("failed", "pay_2"), payment("authorized")], Pending("order_1"), HELD),
        ([payment("authorized", "pay_2"), payment("captured")], TAKEN, TAKEN),
        ([payment("captured", order_id="order_2")], WAITING, WAITING),
    ],
)
def test_payments_of_an_order(payments: list[dict[str, object]], automatic: Outcome, manual: Outcome) -> None:
    for wanted, expected in ((request(), automatic), (request(is_manual_capture=True), manual)):
        assert outcome_of(payments, WAITING, request=wanted) == expected


RINGGIT = Money(50_000, "MYR")


@pytest.mark.parametrize(
    ("payments", "expected"),
    [
        ([], None),
        ([payment("created", currency="MYR")], None),
        ([payment("failed", currency="MYR", error_reason="insufficient_funds")], "insufficient_funds"),
        ([payment("failed", currency="MYR", error_reason="brand_new")], "declined"),
        ([payment("failed", currency="MYR", error_reason=None)], "declined"),
        ([payment("created", "pay_2", currency="MYR"), payment("failed", currency="MYR")], None),
        ([payment("failed", currency="MYR", order_id="order_2")], None),
    ],
)
def test_a_failed_try_ends_an_order_that_takes_only_one(
    payments: list[dict[str, object]], expected: str | None
) -> None:
    wanted = request(RINGGIT)
    told = outcome_of(payments, action(wanted), request=wanted)
    if expected is None:
        assert told == action(wanted)
    else:
        assert isinstance(told, Declined)
        assert (told.code, told.reference) == (expected, "order_1")


def test_a_late_success_of_an_order_that_takes_only_one_try_is_told() -> None:
    wanted = request(RINGGIT)
    told = outcome_of([payment("captured", currency="MYR")], action(wanted), request=wanted)
    assert told == Approved("order_1", is_captured=True, amount_minor=50_000, transaction_reference="pay_1")


def test_checkout_is_told_not_to_try_again_where_an_order_takes_only_one_try() -> None:
    shown, usual = action(request(RINGGIT)).processor_data, action(request()).processor_data
    assert shown is not None
    assert usual is not None
    assert (shown["retry"], usual.get("retry")) == ({"enabled": False}, None)


def test_order_paid_twice_tells_all_the_money() -> None:
    payments = [payment("captured", "pay_2", created_at=2), payment("captured", "pay_1")]
    told = outcome_of(payments, WAITING, request=request())
    assert told == Approved("order_1", is_captured=True, amount_minor=100_000, transaction_reference="pay_1")


@pytest.mark.parametrize(
    "wrong", [{"currency": "USD"}, {"amount": "50000"}, {"amount": True}, {"amount": 0}, {"id": 1}]
)
def test_money_that_makes_no_sense_is_not_guessed(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="Razorpay"):
        outcome_of([payment("captured") | wrong], WAITING, request=request())


@pytest.mark.parametrize(
    ("status", "ours"),
    [
        ("processed", "succeeded"),
        ("pending", "pending"),
        ("failed", "failed"),
        ("brand_new", "unknown"),
        (None, "unknown"),
    ],
)
def test_refund_status(status: str | None, ours: str) -> None:
    outcome = refund_outcome_of({"id": "rfnd_1", "status": status})
    assert (outcome.status, outcome.reference) == (ours, "rfnd_1")


def refused(status: int, reason: str | None = None) -> RefusedError:
    return RefusedError(status, Refusal("BAD_REQUEST_ERROR", reason, None, None, None, "about canary"))


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (UnusableKeyError(), "configuration"),
        (UnreachedError(), "processor_unreachable"),
        (refused(401), "configuration"),
        (refused(403), "configuration"),
        (refused(429), "rate_limited"),
        (refused(400), "invalid_request"),
        (refused(404, "record_not_found"), "invalid_request"),
        (refused(400, "merchant_not_activated"), "configuration"),
        (refused(400, "amount_less_than_minimum_amount"), "not_supported"),
        (refused(400, "brand_new"), "invalid_request"),
        (refused(400, "order_already_paid"), None),
        (refused(400, "payment_timed_out"), None),
        (refused(409), None),
        (refused(500, "server_error"), None),
        (refused(502, "gateway_technical_error"), None),
        (LostError("no answer"), None),
        (ValueError("no items"), None),
    ],
)
def test_failed_call(error: Exception, outcome: str | None) -> None:
    told = refusal_of(error, "order_1")
    if outcome is None:
        assert told == Unknown(reason_of(error), "order_1")
        assert not is_definite(error)
    else:
        assert isinstance(told, NotSent)
        assert told.code == outcome
        assert told.code in DECLINES
    assert "canary" not in repr(told) + reason_of(error) + repr(error)


def wrapped(reason: Exception) -> requests.ConnectionError:
    return requests.ConnectionError(MaxRetryError(None, "/", reason))  # type: ignore[arg-type] # no pool is at hand


@pytest.mark.parametrize(
    ("error", "is_unsent"),
    [
        (wrapped(NewConnectionError(None, "refused")), True),  # type: ignore[arg-type] # nor a connection
        (requests.ConnectTimeout(MaxRetryError(None, "/", ConnectTimeoutError())), True),  # type: ignore[arg-type]
        (requests.ConnectionError(ProtocolError("aborted")), False),
        (requests.ConnectionError(), False),
        (requests.ReadTimeout("slow"), False),
        (requests.exceptions.SSLError("broken"), False),
        (requests.exceptions.ChunkedEncodingError(), False),
    ],
)
def test_only_a_connection_that_never_opened_is_surely_unsent(
    error: requests.RequestException, *, is_unsent: bool
) -> None:
    assert _is_surely_unsent(error) is is_unsent
