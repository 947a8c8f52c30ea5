"""Languages: what customers' pages say, and how they write money and dates, chosen for each request."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Final

from babel import Locale, UnknownLocaleError
from babel.dates import format_date, format_time
from babel.messages.pofile import read_po
from babel.numbers import NumberPattern, format_decimal, get_currency_symbol, parse_pattern
from markupsafe import Markup, escape
from starlette.requests import Request

from loop.domain.money import CURRENCY_EXPONENTS, Money

CATALOGUES: Final = Path(__file__).parent / "catalogues"
SOURCE: Final = "en"
"""The language that templates are written in; it needs no catalogue."""

WISHES_MAX: Final = 20
"""How many languages of an `Accept-Language` are looked at."""

_WISH_CHARACTERS_MAX: Final = 35


@dataclass(frozen=True, slots=True)
class Language:
    """One language as one customer reads it: `locale` may be of a country, `texts` are of the language alone."""

    code: str
    locale: Locale
    texts: Mapping[str, str] = field(repr=False)

    @property
    def name(self) -> str:
        """What the language calls itself."""
        return Locale(self.code).get_display_name(self.code) or self.code

    @property
    def direction(self) -> str:
        """Return `ltr` or `rtl`."""
        return self.locale.text_direction

    def say(self, text: str, **values: object) -> Markup:
        """Return a text in this language, or as it is where nobody has translated it; all of it is escaped."""
        said = escape(self.texts.get(text) or text)
        return said % values if values else said

    def money(self, amount: Money) -> str:
        """Return an amount as people who read this language write it, with the decimals that its currency has."""
        decimals = CURRENCY_EXPONENTS.get(amount.currency, 2)
        value = Decimal(amount.amount_minor).scaleb(-decimals)
        pattern = _currency_pattern(self.locale, amount.currency, decimals)
        written: str = pattern.apply(value, self.locale, currency=amount.currency, currency_digits=False)
        return written

    def number(self, value: int) -> str:
        """Return a whole number."""
        return format_decimal(value, locale=self.locale)

    def moment(self, at: datetime) -> str:
        """Return a moment to the minute, in UTC and saying so: where the customer is nobody knows."""
        day = format_date(at, "long", locale=self.locale)
        return f"{day}, {format_time(at, 'short', locale=self.locale)} UTC"


@lru_cache(maxsize=256)
def _currency_pattern(locale: Locale, currency: str, decimals: int) -> NumberPattern:
    """Return a locale's way to write a currency; CLDR's own decimals would round away what some currencies have."""
    written: str = locale.currency_formats["standard"].pattern
    if get_currency_symbol(currency, locale)[-1].isalpha():  # a code stands apart from the digits that follow it
        written = re.sub("¤(?=[#0])", "¤\N{NO-BREAK SPACE}", written)
    pattern = parse_pattern(written)
    pattern.frac_prec = (decimals, decimals)
    return pattern


def _read_catalogues() -> Mapping[str, Mapping[str, str]]:
    found: dict[str, Mapping[str, str]] = {SOURCE: {}}
    for path in sorted(CATALOGUES.glob("*.po")):
        with path.open("rb") as file:
            catalogue = read_po(file, locale=path.stem)
        found[path.stem] = {
            str(message.id): str(message.string) for message in catalogue if message.id and message.string
        }
    return found


_TEXTS: Final = _read_catalogues()


def languages() -> list[Language]:
    """Return every language that there is a catalogue for, in the order of their codes."""
    return [Language(code, Locale(code), texts) for code, texts in _TEXTS.items()]


def language_of(request: Request) -> Language:
    """Return the language of a request: the one that `?lang=` asks for, else the browser's first that there is."""
    wishes = [request.query_params.get("lang", ""), *_wishes(request.headers.get("accept-language", ""))]
    return next(filter(None, map(_find, wishes)), None) or Language(SOURCE, Locale(SOURCE), {})


def asked_for(request: Request) -> str | None:
    """Return the language that `?lang=` asks for, as an address may carry it on; None without one that there is."""
    wish = request.query_params.get("lang", "")
    return wish if _find(wish) is not None else None


def _wishes(header: str) -> list[str]:
    weighted: list[tuple[float, str]] = []
    for part in header.split(",")[:WISHES_MAX]:
        tag, _, quality = part.partition(";q=")
        try:
            weight = float(quality or 1)
        except ValueError:
            weight = 0.0
        if weight > 0:
            weighted.append((weight, tag.strip()))
    return [tag for _, tag in sorted(weighted, key=lambda each: -each[0])]  # stable: earlier ones first


@lru_cache(maxsize=1024)
def _find(wish: str) -> Language | None:
    """Return the language of a tag such as `de-AT`, written as in that country where that is known."""
    code = wish.partition("-")[0].lower()
    texts = _TEXTS.get(code)
    if texts is None or len(wish) > _WISH_CHARACTERS_MAX:
        return None
    try:
        return Language(code, Locale.parse(wish, sep="-"), texts)
    except (ValueError, UnknownLocaleError):
        return Language(code, Locale(code), texts)
