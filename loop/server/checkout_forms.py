"""How a customer pays on the checkout page: each processor's own form or address, and what its page may reach."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from loop.domain.attempts import Attempt
from loop.server.pages import Policy

STRIPE_SCRIPT: Final = "https://js.stripe.com/endive/stripe.js"
"""Stripe's own script, of the release that the adapter's API version belongs to; it must come from Stripe."""

RAZORPAY_SCRIPT: Final = "https://checkout.razorpay.com/v1/checkout.js"
"""Razorpay's own script, which must come from Razorpay."""

_STRIPE: Final = Policy(
    is_scripted=True,
    # Stripe's script puts the card's fields into frames of js.stripe.com, and of hosts below it, and a bank's page
    # into one of hooks.stripe.com.
    scripts=("https://js.stripe.com", "https://*.js.stripe.com"),
    frames=("https://js.stripe.com", "https://*.js.stripe.com", "https://hooks.stripe.com"),
    connections=("https://api.stripe.com",),
    payers=("https://js.stripe.com",),
)
_RAZORPAY_SCRIPTS: Final = ("https://checkout.razorpay.com", "https://cdn.razorpay.com")
"""Where Checkout is, and the risk detection that it loads."""


@dataclass(frozen=True, slots=True)
class PaymentForm:
    """A template under `templates/` with its values, and the policy of a page that shows it."""

    template: str
    policy: Policy
    values: Mapping[str, object] = field(repr=False)


def form_of(attempt: Attempt, *, return_url: str, merchant: str, back_url: str | None) -> PaymentForm | None:
    """Return how the customer of an attempt that waits for them pays, or None where this page cannot help.

    An address goes before a script: a bank's page, the sandbox's, or that of a plug-in.
    """
    action = attempt.action or {}
    redirect_url = action.get("redirectUrl")
    shown = action.get("processorData")
    given = shown if isinstance(shown, Mapping) else {}
    if redirect_url:
        policy = Policy(is_scripted=True)
        return PaymentForm("checkout_redirect.html", policy, {"action_url": redirect_url})
    if attempt.processor == "stripe" and action.get("clientSecret") and given.get("publishableKey"):
        values = {
            "stripe_script": STRIPE_SCRIPT,
            "publishable_key": given["publishableKey"],
            "client_secret": action["clientSecret"],
            "return_url": return_url,
        }
        return PaymentForm("checkout_stripe.html", _STRIPE, values)
    if attempt.processor == "razorpay" and given.get("keyId") and given.get("orderId"):
        return _razorpay_form(given, return_url=return_url, merchant=merchant, back_url=back_url)
    return None


def _razorpay_form(given: Mapping[str, object], *, return_url: str, merchant: str, back_url: str | None) -> PaymentForm:
    """Return the form that opens Checkout over the page, and without script leads to Razorpay's own page."""
    checkout_url = str(given.get("checkoutUrl", ""))
    prefill = given.get("prefill")
    email = prefill.get("email") if isinstance(prefill, Mapping) else None
    options = {
        "key": given["keyId"],
        "order_id": given["orderId"],
        "amount": given.get("amount"),
        "currency": given.get("currency"),
        "name": merchant,
        "description": given.get("description"),
        "prefill": prefill,
        "retry": given.get("retry"),
    }
    fields = {
        "key_id": given["keyId"],
        "order_id": given["orderId"],
        "amount": given.get("amount"),
        "currency": given.get("currency"),
        "name": merchant,
        "description": given.get("description"),
        "prefill[email]": email,
        "callback_url": return_url,
        "cancel_url": back_url,
    }
    policy = Policy(
        is_scripted=True,
        form_targets=(checkout_url,),
        scripts=_RAZORPAY_SCRIPTS,
        # The frame of Checkout, and where it says what it does: it reports to lumberjack.
        frames=("https://api.razorpay.com", "https://checkout.razorpay.com"),
        connections=("https://api.razorpay.com", "https://lumberjack.razorpay.com"),
        images=("https://cdn.razorpay.com",),
        payers=("https://api.razorpay.com", "https://checkout.razorpay.com"),
    )
    values = {
        "razorpay_script": RAZORPAY_SCRIPT,
        "checkout_url": checkout_url,
        "fields": {name: value for name, value in fields.items() if value is not None},
        "options": json.dumps({name: value for name, value in options.items() if value is not None}),
        "return_url": return_url,
    }
    return PaymentForm("checkout_razorpay.html", policy, values)
