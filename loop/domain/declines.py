"""Declines: Loop's own codes, their classes, and the words a customer may read."""

from dataclasses import dataclass
from enum import StrEnum


class DeclineClass(StrEnum):
    """What a decline allows to be done next; the same word is the API's `declineCategory`."""

    HARD = "hard"
    """Never retry this card anywhere."""
    CUSTOMER = "customer"
    """The customer can mend it or use another method."""
    LATER = "later"
    """The same card may work another day."""
    CASCADE = "cascade"
    """Another processor may accept it now."""
    STEP_UP = "step_up"
    """Repeat with the customer's authentication."""
    CONFIG = "config"
    """The merchant's account is not set up for it; nothing was authorized."""
    TECH = "tech"
    """The processor or bank stumbled before deciding."""
    AMBIGUOUS = "ambiguous"
    """Ask the processor before anything else."""


@dataclass(frozen=True, slots=True)
class Decline:
    """One unified decline code with its class and what the customer may be told."""

    code: str
    decline_class: DeclineClass
    customer_message: str


_GENERIC = "The payment was declined. Please try another card or payment method."

DECLINES: dict[str, Decline] = {
    decline.code: decline
    for decline in (
        Decline("declined", DeclineClass.CASCADE, _GENERIC),
        Decline("authentication_required", DeclineClass.STEP_UP, "Your bank asks you to confirm this payment."),
        Decline(
            "authentication_failed",
            DeclineClass.CUSTOMER,
            "Your bank could not confirm it was you. Please try again or use another payment method.",
        ),
        Decline(
            "insufficient_funds",
            DeclineClass.LATER,
            "There is not enough money available. Please use another card or payment method.",
        ),
        Decline(
            "limit_exceeded",
            DeclineClass.LATER,
            "The card's limit is reached. Please use another card or try another day.",
        ),
        Decline(
            "issuer_unavailable",
            DeclineClass.TECH,
            "Your bank could not be reached. Please try again in a moment.",
        ),
        Decline(
            "processor_error",
            DeclineClass.TECH,
            "The payment could not be processed. You were not charged. Please try again.",
        ),
        Decline(
            "processor_unreachable",
            DeclineClass.TECH,
            "The payment could not be processed. You were not charged. Please try again.",
        ),
        Decline(
            "rate_limited",
            DeclineClass.TECH,
            "The payment could not be processed. You were not charged. Please try again.",
        ),
        Decline("duplicate", DeclineClass.AMBIGUOUS, "This payment looks like one that was just made."),
        Decline(
            "not_supported",
            DeclineClass.CASCADE,
            "This card does not support the purchase. Please use another.",
        ),
        Decline("invalid_card", DeclineClass.CUSTOMER, "Please check the card's number and expiry date."),
        Decline(
            "verification_failed",
            DeclineClass.CUSTOMER,
            "Please check the card's security code and billing address.",
        ),
        Decline("pin_error", DeclineClass.CUSTOMER, "The PIN was not accepted. Please try again."),
        Decline("card_blocked", DeclineClass.HARD, _GENERIC),
        Decline("suspected_fraud", DeclineClass.HARD, _GENERIC),
        Decline("consent_revoked", DeclineClass.HARD, _GENERIC),
        Decline("do_not_retry", DeclineClass.HARD, _GENERIC),
        Decline(
            "outcome_unknown",
            DeclineClass.AMBIGUOUS,
            "Your bank has not answered yet. Please wait a moment before you pay again.",
        ),
        Decline("customer_cancelled", DeclineClass.CUSTOMER, "You cancelled the payment. You were not charged."),
        Decline("action_expired", DeclineClass.CUSTOMER, "The time to confirm the payment ran out. Please try again."),
        Decline(
            "invalid_details",
            DeclineClass.CUSTOMER,
            "Please check the details you entered, or use another payment method.",
        ),
        Decline("already_done", DeclineClass.AMBIGUOUS, "This payment looks like one that was just made."),
        Decline(
            "capture_failed",
            DeclineClass.TECH,
            "The payment could not be completed. Please wait a moment before you pay again.",
        ),
        Decline("refund_limit", DeclineClass.CONFIG, "The shop cannot give the money back at the moment."),
        Decline(
            "mandate_failed",
            DeclineClass.CUSTOMER,
            "The permission for this payment was not given. Please try again or use another payment method.",
        ),
        Decline(
            "method_unavailable",
            DeclineClass.CUSTOMER,
            "This payment method cannot be used for this purchase. Please use another.",
        ),
        Decline("test_card_in_live", DeclineClass.CONFIG, "Test cards cannot be used here."),
        Decline("configuration", DeclineClass.CONFIG, "The shop cannot take this payment at the moment."),
        Decline("invalid_request", DeclineClass.CONFIG, "The shop cannot take this payment at the moment."),
    )
}
"""code -> decline. Lost, stolen and fraud read like any other decline to the customer."""


def unified(code: str) -> Decline:
    """Return the decline of a unified code; an unknown code is a plain `declined`."""
    return DECLINES.get(code, DECLINES["declined"])
