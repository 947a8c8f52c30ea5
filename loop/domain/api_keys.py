"""API keys: how they are made, and how a mistyped one is told from a real one without looking it up."""

import hashlib
import re
import zlib
from collections.abc import Callable
from typing import Final

ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
MODES: Final = ("test", "live")
SECRET_CHARACTERS: Final = 32
"""Base 62: 190 bits of chance, so a plain SHA-256 protects the stored key."""

CHECKSUM_CHARACTERS: Final = 6
PREFIX_CHARACTERS: Final = 12
"""How much of a key may be shown: `sk_test_` and four characters."""

_RANDOM_BYTES: Final = 32
_FORM: Final = re.compile(r"sk_(?:test|live)_[0-9A-Za-z]{38}")


def make_api_key(mode: str, random_bytes: Callable[[int], bytes]) -> str:
    """Return a new key: `sk_test_` or `sk_live_`, 32 random characters and a checksum of 6 over all before it."""
    if mode not in MODES:
        raise ValueError(f"a key's mode is one of {', '.join(MODES)}")
    number = int.from_bytes(random_bytes(_RANDOM_BYTES), "big")
    body = f"sk_{mode}_{_base62(number, SECRET_CHARACTERS)}"
    return body + _checksum(body)


def is_well_formed(key: str) -> bool:
    """Return whether a text has the form of a key and its checksum fits; it says nothing of whether it is known."""
    return _FORM.fullmatch(key) is not None and _checksum(key[:-CHECKSUM_CHARACTERS]) == key[-CHECKSUM_CHARACTERS:]


def hash_of(key: str) -> str:
    """Return what is stored of a key: its SHA-256 in hex."""
    return hashlib.sha256(key.encode()).hexdigest()


def prefix_of(key: str) -> str:
    """Return the part of a key by which its owner recognises it."""
    return key[:PREFIX_CHARACTERS]


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode("ascii")), CHECKSUM_CHARACTERS)


def _base62(number: int, length: int) -> str:
    """Return the lowest `length` digits of a number."""
    digits = []
    for _ in range(length):
        number, digit = divmod(number, len(ALPHABET))
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))
