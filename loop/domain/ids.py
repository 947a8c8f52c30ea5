"""Ids: a prefix that names the noun, then 26 characters that sort by time and cannot be guessed."""

import base64
from collections.abc import Callable
from datetime import datetime

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32 in lower case: no i, l, o, u, and its order is the order of the digits."""

RANDOM_BYTES = 10
"""80 random bits in each id, beside 48 bits of milliseconds since 1970."""

_TO_ALPHABET = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", ALPHABET.encode())

PREFIX_MERCHANT = "mer"
PREFIX_API_KEY = "key"
PREFIX_PROCESSOR_CONFIG = "pcf"
PREFIX_ORDER = "ord"
PREFIX_ATTEMPT = "att"
PREFIX_TRANSACTION = "txn"
PREFIX_REFUND = "ref"
PREFIX_CHECKOUT_SESSION = "cs"
PREFIX_EVENT = "evt"
PREFIX_ENDPOINT = "ep"
PREFIX_PROCESSOR_EVENT = "pev"
PREFIX_ROUTING_RULE = "rul"
PREFIX_TOKEN_FAMILY = "fam"  # noqa: S105 - a prefix of ids, not a secret


def make_id(prefix: str, now: datetime, *, random_bytes: Callable[[int], bytes]) -> str:
    """Return `prefix_` and 26 characters: 10 of the time in milliseconds, 16 of 80 random bits."""
    milliseconds = int(now.timestamp() * 1000)
    number = (milliseconds << 80) | int.from_bytes(random_bytes(RANDOM_BYTES), "big")
    # 160 bits are 32 characters, of which the first six are always zero.
    return f"{prefix}_{base64.b32encode(number.to_bytes(20, 'big')).translate(_TO_ALPHABET)[6:].decode()}"
