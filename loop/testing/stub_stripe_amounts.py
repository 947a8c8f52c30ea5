"""Which currencies and amounts Stripe takes: its list, its minimums, its rules for three-decimal currencies."""

from collections.abc import Mapping

from loop.testing.stub_stripe_errors import StripeError
from loop.testing.stub_stripe_forms import invalid_integer

_CODES = (
    "usd aed afn all amd ang aoa ars aud awg azn bam bbd bdt bgn bhd bif bmd bnd bob brl bsd bwp byn bzd cad cdf "
    "chf clp cny cop crc cve czk djf dkk dop dzd egp etb eur fjd fkp gbp gel gip gmd gnf gtq gyd hkd hnl htg huf "
    "idr ils inr isk jmd jod jpy kes kgs khr kmf krw kwd kyd kzt lak lbp lkr lrd lsl mad mdl mga mkd mmk mnt mop "
    "mur mvr mwk mxn myr mzn nad ngn nio nok npr nzd omr pab pen pgk php pkr pln pyg qar ron rsd rub rwf sar sbd "
    "scr sek sgd shp sle sos srd std szl thb tjs tnd top try ttd twd tzs uah ugx uyu uzs vnd vuv wst xaf xcd xof "
    "xpf yer zar zmw"
)
CURRENCIES = frozenset(_CODES.split())
"""Currency codes Stripe takes, in lower case."""

MINIMUMS: Mapping[str, int] = {
    **dict.fromkeys(("usd", "eur", "cad", "aud", "nzd", "sgd", "chf", "brl", "inr", "jpy"), 50),
    "gbp": 30,
    "aed": 200,
    "dkk": 250,
    "hkd": 400,
    "mxn": 1_000,
    "myr": 200,
    "nok": 300,
    "pln": 200,
    "sek": 300,
}
"""Smallest charge in minor units; 1 where Stripe names none."""

AMOUNT_MAX = 99_999_999
"""Largest charge in minor units: eight digits."""

_TENS_ONLY = frozenset(("bhd", "jod", "kwd", "omr", "tnd"))
_HUNDREDS_ONLY = frozenset(("isk", "ugx"))


def checked_currency(code: str) -> str:
    """Return the code in lower case; StripeError (400) when Stripe does not take it."""
    currency = code.lower()
    if currency not in CURRENCIES:
        known = ", ".join(sorted(CURRENCIES))
        raise StripeError(
            400,
            f"Invalid currency: {currency}. Stripe currently supports these currencies: {known}",
            param="currency",
        )
    return currency


def checked_amount(amount_minor: int, currency: str) -> int:
    """Return a charge's amount; StripeError (400) when it is too small, too large or not chargeable."""
    if amount_minor < 1:
        raise invalid_integer("This value must be greater than or equal to 1.", "amount")
    if amount_minor > AMOUNT_MAX:
        raise StripeError(400, "Amount must be no more than 99999999", code="amount_too_large", param="amount")
    least = MINIMUMS.get(currency, 1)
    if amount_minor < least:
        raise StripeError(
            400,
            f"Amount must be at least {least} in the smallest unit of {currency}.",
            code="amount_too_small",
            param="amount",
        )
    step = 10 if currency in _TENS_ONLY else 100 if currency in _HUNDREDS_ONLY else 1
    if amount_minor % step:
        raise StripeError(
            400,
            f"Amounts in {currency} must be evenly divisible by {step}.",
            code="invalid_charge_amount",
            param="amount",
        )
    return amount_minor


def checked_part(amount_minor: int, param: str) -> int:
    """Return the amount of a refund or capture; StripeError (400) unless it is positive."""
    if amount_minor < 1:
        raise invalid_integer("This value must be greater than or equal to 1.", param)
    return amount_minor
