"""Money: an integer of minor units with its ISO 4217 currency, never a float and never a bare int."""

from dataclasses import dataclass
from typing import Self

from loop.domain.errors import invalid

MAX_AMOUNT_MINOR = 10**12
"""The largest amount accepted anywhere, in minor units: it fits a BIGINT with room for sums."""

_EXPONENT_0 = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"
_EXPONENT_3 = "BHD IQD JOD KWD LYD OMR TND"
_EXPONENT_2 = (
    "AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF "
    "CNY COP CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF "
    "IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR "
    "MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD "
    "SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD UYU UZS VES WST XCD YER ZAR "
    "ZMW ZWG"
)

CURRENCY_EXPONENTS: dict[str, int] = {
    code: exponent
    for exponent, codes in ((0, _EXPONENT_0), (2, _EXPONENT_2), (3, _EXPONENT_3))
    for code in codes.split()
}
"""ISO 4217 code -> number of decimals of its minor unit. Processors that differ convert in their own file."""


@dataclass(frozen=True, slots=True)
class Money:
    """An amount in minor units (cents, paise, whole yen) of one currency."""

    amount_minor: int
    currency: str

    def __add__(self, other: Self) -> "Money":
        self._require_same_currency(other)
        return Money(self.amount_minor + other.amount_minor, self.currency)

    def __sub__(self, other: Self) -> "Money":
        self._require_same_currency(other)
        return Money(self.amount_minor - other.amount_minor, self.currency)

    def __str__(self) -> str:
        exponent = CURRENCY_EXPONENTS.get(self.currency, 2)
        sign = "-" if self.amount_minor < 0 else ""
        whole, part = divmod(abs(self.amount_minor), 10**exponent)
        return f"{sign}{whole}.{part:0{exponent}d} {self.currency}" if exponent else f"{sign}{whole} {self.currency}"

    def _require_same_currency(self, other: Self) -> None:
        if self.currency != other.currency:
            raise ValueError(f"{self.currency} and {other.currency} do not add up")


def require_currency(code: str) -> str:
    """Return the upper-case ISO 4217 code, or raise `invalid_currency`."""
    upper = code.upper()
    if not code.isascii() or upper not in CURRENCY_EXPONENTS:  # the capitals of some other letters are ASCII
        raise invalid(
            "invalid_currency",
            "currency must be an ISO 4217 code such as USD, EUR or INR.",
            details=(("currency", "unknown currency"),),
        )
    return upper
