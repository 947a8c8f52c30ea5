"""Ids: a prefix that names the noun, then 26 characters that sort by time and cannot be guessed."""

from collections.abc import Callable
from datetime import datetime
from functools import lru_cache

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32 in lower case: no i, l, o, u, and its order is the order of the digits."""

RANDOM_BYTES = 10
"""80 random bits in each id, beside 48 bits of milliseconds since 1970."""

_PAIRS = [first + second for first in ALPHABET for second in ALPHABET]
"""Ten bits each, which is half as many look-ups as five."""
_SHIFTS_OF_TIME = range(40, -1, -10)
_SHIFTS_OF_CHANCE = range(70, -1, -10)

PREFIX_MERCHANT = "mer"
PREFIX_API_KEY = "key"
PREFIX_PROCESSOR_CONFIG = "pcf"
PREFIX_ORDER = "ord"
PREFIX_ATTEMPT = "att"
PREFIX_TRANSACTION = "txn"
PREFIX_REFUND = "ref"
PREFIX_DISPUTE = "dsp"
PREFIX_CHECKOUT_SESSION = "cs"
PREFIX_EVENT = "evt"
PREFIX_ENDPOINT = "ep"
PREFIX_PROCESSOR_EVENT = "pev"
PREFIX_ROUTING_RULE = "rul"
PREFIX_AUDIT_ENTRY = "aud"
PREFIX_RECONCILIATION_RUN = "rec"
PREFIX_TOKEN_FAMILY = "fam"  # noqa: S105 - a prefix of ids, not a secret


def make_id(prefix: str, now: datetime, *, random_bytes: Callable[[int], bytes]) -> str:
    """Return `prefix_` and 26 characters: 10 of the time in milliseconds, 16 of 80 random bits."""
    chance = int.from_bytes(random_bytes(RANDOM_BYTES), "big")
    shown = "".join([_PAIRS[chance >> shift & 1023] for shift in _SHIFTS_OF_CHANCE])
    return f"{prefix}_{_shown_time(int(now.timestamp() * 1000))}{shown}"


def first_id(prefix: str, moment: datetime) -> str:
    """Return what no id that is made from a moment on sorts before."""
    return make_id(prefix, moment, random_bytes=bytes)


@lru_cache(maxsize=2)
def _shown_time(milliseconds: int) -> str:
    return "".join([_PAIRS[milliseconds >> shift & 1023] for shift in _SHIFTS_OF_TIME])
