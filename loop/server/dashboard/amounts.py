"""Amounts: money as people read it on a page and type it into a form, and shares of a whole."""

import re
from decimal import Decimal
from typing import Final

from markupsafe import Markup

from loop.domain.money import CURRENCY_EXPONENTS, MAX_AMOUNT_MINOR
from loop.server.request import validation_failed

_TYPED: Final = re.compile(r"[0-9]{1,13}(?:\.[0-9]{1,3})?")
_MONEY: Final = Markup('<span class="money">{}<span class="unit">{}</span></span>')


def exponent_of(currency: str) -> int:
    """Return how many decimal places a currency has; two for one that is not known here."""
    return CURRENCY_EXPONENTS.get(currency, 2)


def digits(amount_minor: int, currency: str, *, is_grouped: bool = True) -> str:
    """Return an amount in major units, such as `1,234.50`."""
    places = exponent_of(currency)
    value = Decimal(amount_minor).scaleb(-places)
    return f"{value:,.{places}f}" if is_grouped else f"{value:.{places}f}"


def money(amount_minor: int, currency: str) -> Markup:
    """Return an amount as the pages show it, its currency set smaller."""
    return _MONEY.format(digits(amount_minor, currency), currency)


def parse_amount(text: str, currency: str, *, field: str) -> int:
    """Return what somebody typed, in minor units; raises `validation_failed` naming the form's field."""
    typed = text.strip().replace(",", "")
    places = exponent_of(currency)
    value = Decimal(typed).scaleb(places) if _TYPED.fullmatch(typed) else Decimal(0)
    if value != value.to_integral_value() or not 0 < value <= MAX_AMOUNT_MINOR:
        sample = digits(12_345, currency, is_grouped=False)
        raise validation_failed((field, f"must be an amount such as {sample}, in {currency}"))
    return int(value)


def typed_amounts(text: str) -> frozenset[int]:
    """Return what a search for an amount may mean in minor units; nothing when it is no amount.

    As it stands, with two decimal places and with three: currencies differ, and some people copy minor units.
    """
    typed = text.strip().replace(",", "")
    if not _TYPED.fullmatch(typed):
        return frozenset()
    meanings = (Decimal(typed).scaleb(places) for places in (0, 2, 3))
    return frozenset(int(each) for each in meanings if each == each.to_integral_value())


def change_in_percent(now: int, before: int) -> float | None:
    """Return by how much a figure has changed, None where there was nothing to compare with."""
    return None if before == 0 else round((now - before) * 100 / before, 1)
