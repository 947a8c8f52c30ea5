"""What Stripe's codes, amounts and errors mean for Loop, without a server."""

from collections.abc import Mapping

import pytest
import stripe

from loop.domain.attempts import Declined, NotSent, Unknown
from loop.domain.declines import DECLINES, DeclineClass
from loop.domain.money import CURRENCY_EXPONENTS, Money
from loop.processors.stripe_answers import is_for_ever, is_refused_refund, loop_amount, refusal_of, stripe_amount
from loop.processors.stripe_declines import DECLINE_CODES, decline_of

EXPECTED: Mapping[tuple[str, str], str] = {
    ("authentication_required", "step_up"): "authentication_required approve_with_id",
    ("insufficient_funds", "later"): "insufficient_funds",
    ("limit_exceeded", "later"): (
        "withdrawal_count_limit_exceeded card_velocity_exceeded card_decline_rate_limit_exceeded"
    ),
    ("declined", "cascade"): (
        "do_not_honor generic_decline call_issuer no_action_taken not_permitted service_not_allowed "
        "transaction_not_allowed"
    ),
    ("issuer_unavailable", "tech"): "try_again_later reenter_transaction issuer_not_available",
    ("processor_error", "tech"): "processing_error",
    ("duplicate", "ambiguous"): "duplicate_transaction",
    ("not_supported", "cascade"): "card_not_supported currency_not_supported invalid_amount",
    ("invalid_card", "customer"): (
        "expired_card incorrect_number invalid_number invalid_expiry_month invalid_expiry_year invalid_account "
        "new_account_information_available"
    ),
    ("verification_failed", "customer"): "incorrect_cvc invalid_cvc incorrect_zip incorrect_address",
    ("pin_error", "customer"): (
        "incorrect_pin invalid_pin offline_pin_required online_or_offline_pin_required pin_try_exceeded"
    ),
    ("card_blocked", "hard"): "lost_card stolen_card pickup_card restricted_card",
    ("suspected_fraud", "hard"): (
        "fraudulent merchant_blacklist security_violation highest_risk_level previously_declined_do_not_retry"
    ),
    ("consent_revoked", "hard"): "stop_payment_order revocation_of_authorization revocation_of_all_authorizations",
    ("do_not_retry", "hard"): "do_not_try_again",
    ("test_card_in_live", "config"): "testmode_decline",
    ("authentication_failed", "customer"): "payment_intent_authentication_failure",
}
"""(Loop's code, class) -> Stripe's codes, written down a second time on purpose."""


@pytest.mark.parametrize(
    ("theirs", "code", "decline_class"),
    [(theirs, *ours) for ours, several in EXPECTED.items() for theirs in several.split()],
)
def test_decline_code(theirs: str, code: str, decline_class: str) -> None:
    decline = decline_of(code="card_declined", decline_code=theirs, advice_code=None)
    assert (decline.code, decline.decline_class) == (code, decline_class)
    assert decline_of(code=theirs, decline_code=None, advice_code=None) == decline


def test_every_code_is_one_of_loops() -> None:
    assert set(DECLINE_CODES.values()) <= set(DECLINES)


@pytest.mark.parametrize(("code", "decline_code"), [("card_declined", "brand_new"), (None, None), ("", "")])
def test_new_code_is_a_plain_decline(code: str | None, decline_code: str | None) -> None:
    assert decline_of(code=code, decline_code=decline_code, advice_code=None) == DECLINES["declined"]


@pytest.mark.parametrize(
    ("decline_code", "advice", "decline_class"),
    [
        ("generic_decline", "do_not_try_again", DeclineClass.HARD),
        ("insufficient_funds", "do_not_try_again", DeclineClass.HARD),
        ("lost_card", "do_not_try_again", DeclineClass.HARD),
        ("generic_decline", "confirm_card_data", DeclineClass.CUSTOMER),
        ("lost_card", "confirm_card_data", DeclineClass.HARD),
        ("generic_decline", "try_again_later", DeclineClass.TECH),
        ("insufficient_funds", "try_again_later", DeclineClass.LATER),
        ("stolen_card", "try_again_later", DeclineClass.HARD),
        ("authentication_required", "try_again_later", DeclineClass.STEP_UP),
        ("generic_decline", "brand_new_advice", DeclineClass.CASCADE),
    ],
)
def test_advice_outranks_a_vague_class(decline_code: str, advice: str, decline_class: DeclineClass) -> None:
    decline = decline_of(code="card_declined", decline_code=decline_code, advice_code=advice)
    assert decline.decline_class is decline_class
    assert decline.code == DECLINE_CODES[decline_code]


@pytest.mark.parametrize("currency", CURRENCY_EXPONENTS)
def test_amounts_go_both_ways(currency: str) -> None:
    sent = stripe_amount(Money(1_200, currency))
    assert sent == {"ISK": 120_000, "UGX": 120_000, "MGA": 12}.get(currency, 1_200)
    assert loop_amount(sent, currency) == 1_200


def test_amount_too_fine_for_stripe() -> None:
    assert stripe_amount(Money(1_250, "MGA")) is None


def answered(status: int, **error: object) -> stripe.StripeError:
    """Return what the SDK makes of an error answer."""
    kinds: Mapping[int, type[stripe.StripeError]] = {
        401: stripe.AuthenticationError,
        403: stripe.PermissionError,
        429: stripe.RateLimitError,
    }
    body: dict[str, object] = {"error": {"message": "canary", **error}}
    return kinds.get(status, stripe.APIError)("canary", "", status, body, {})


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "parameter_missing", "invalid_request"),
        (400, "amount_too_small", "invalid_request"),
        (404, "resource_missing", "invalid_request"),
        (400, "testmode_charges_only", "configuration"),
        (401, None, "configuration"),
        (401, "api_key_expired", "configuration"),
        (403, None, "configuration"),
        (429, "rate_limit", "rate_limited"),
        (429, "lock_timeout", "rate_limited"),
        (400, "rate_limit", "rate_limited"),
    ],
)
def test_refusal_to_look_is_not_sent(status: int, code: str | None, expected: str) -> None:
    refusal = refusal_of(answered(status, code=code))
    assert isinstance(refusal, NotSent)
    assert refusal.code == expected
    assert refusal.code in DECLINES
    assert "canary" not in refusal.message


@pytest.mark.parametrize("status", [409, 500, 502, 503])
def test_unclear_answer_is_unknown(status: int) -> None:
    assert isinstance(refusal_of(answered(status, code="lock_timeout")), Unknown)


def test_unparsed_refusal_is_unknown() -> None:
    assert isinstance(refusal_of(stripe.APIError("", "<html>", 404, None, {})), Unknown)
    assert isinstance(refusal_of(stripe.APIError("", "{}", 400, {"error": "text"}, {})), Unknown)


def test_refused_card_is_declined_with_its_intent() -> None:
    error = answered(402, code="card_declined", decline_code="lost_card", payment_intent={"id": "pi_1"})
    assert refusal_of(error) == Declined(
        "card_blocked",
        DeclineClass.HARD,
        "Stripe declined the payment: lost_card.",
        raw_code="lost_card",
        reference="pi_1",
    )


@pytest.mark.parametrize(
    ("status", "replayed", "expected"),
    [(500, "true", True), (500, None, False), (409, "true", False), (402, "true", False)],
)
def test_stored_server_error_comes_for_ever(status: int, replayed: str | None, *, expected: bool) -> None:
    headers = {} if replayed is None else {"Idempotent-Replayed": replayed}
    error = stripe.APIError("", "", status, {"error": {"message": ""}}, headers)
    assert is_for_ever(error) is expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (answered(400, code="charge_already_refunded"), True),
        (answered(404, code="resource_missing"), True),
        (answered(401), False),
        (answered(429, code="rate_limit"), False),
        (answered(400, code="rate_limit"), False),
        (answered(500), False),
        (stripe.APIError("", "<html>", 404, None, {}), False),
    ],
)
def test_refund_is_refused_only_when_stripe_looked(error: Exception, *, expected: bool) -> None:
    assert is_refused_refund(error) is expected
