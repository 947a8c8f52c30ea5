"""Card numbers in free text: finding them, so that they are refused, and masking them, so that they are not logged."""

import re
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

MIN_DIGITS: Final = 13
"""The fewest digits of a card number that is still issued."""

MAX_DIGITS: Final = 19
"""The most digits that ISO/IEC 7812 allows; a longer unbroken run of digits is some other number."""

_ANY: Final = range(13, 20)
_LONG: Final = range(16, 20)
_RANGES: Final[tuple[tuple[int, int, tuple[int, ...]], ...]] = tuple(
    (low, high, tuple(lengths))
    for low, high, lengths in (
        (220000, 220499, _LONG),  # Mir
        (222100, 272099, (16,)),  # Mastercard, 2-series
        (300000, 305999, range(14, 20)),  # Diners Club
        (309500, 309599, range(14, 20)),  # Diners Club
        (340000, 349999, (15,)),  # American Express
        (352800, 358999, _LONG),  # JCB; RuPay 353 and 356
        (360000, 369999, range(14, 20)),  # Diners Club
        (370000, 379999, (15,)),  # American Express
        (380000, 399999, range(14, 20)),  # Diners Club
        (400000, 499999, (13, 16, 19)),  # Visa
        (500000, 509999, _ANY),  # Maestro; RuPay 508
        (510000, 559999, (16,)),  # Mastercard
        (560000, 589999, _ANY),  # Maestro
        (600000, 609999, _LONG),  # Discover 6011; RuPay 60
        (620000, 629999, _LONG),  # UnionPay; Discover 622
        (630400, 630499, _ANY),  # Maestro
        (639000, 639999, _ANY),  # Maestro
        (644000, 659999, _LONG),  # Discover; RuPay 65
        (670000, 679999, _ANY),  # Maestro
        (810000, 829999, _LONG),  # UnionPay 81; RuPay 81 and 82
    )
)
"""First and last issuer prefix (six digits) and the lengths issued under it, ascending and without overlap."""

_LOWS: Final = tuple(low for low, _, _ in _RANGES)

_CHAIN: Final = re.compile(r"[0-9](?:[ .\u00a0-]{0,3}[0-9]){12,}")
"""Thirteen digits or more with at most three separators between any two: the cheap first look."""

_GROUP: Final = re.compile(r"[0-9]+")

_ID: Final = re.compile(
    r"(?<![0-9A-Za-z])(?:"
    r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"  # UUID
    r"|[A-Za-z]{2,16}_[0-9A-Za-z]{20,}"  # our own ids and most vendors'
    r"|[0-9a-fA-F]{24,}"  # digests, trace ids
    r"|[0-9A-HJKMNP-TV-Za-hjkmnp-tv-z]{26}"  # ULID
    r")(?![0-9A-Za-z])"
)
"""Identifiers whose digits may pass for a card number by chance."""

_DOUBLED: Final = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
"""What Luhn's algorithm counts for a digit in a doubled place."""


def contains_card_number(text: str) -> bool:
    """Return whether `text` holds a payment card number.

    That is 13 to 19 digits, with or without spaces, dashes or dots between them, that pass Luhn's check and begin
    and are as long as one of the known schemes issues them. Digits inside an id, a digest or a decimal fraction
    do not count, nor does a part of an unbroken run of digits.
    """
    return next(_find(text), None) is not None


def mask_card_numbers(text: str, mask: str) -> str:
    """Return `text` with every card number (see `contains_card_number`) replaced by `mask`."""
    parts: list[str] = []
    done = 0
    for start, end in _find(text):
        if start >= done:
            parts += (text[done:start], mask)
        done = max(done, end)
    return "".join((*parts, text[done:])) if parts else text


def _find(text: str) -> Iterator[tuple[int, int]]:
    """Yield where card numbers lie, by start; two may overlap when digits can be read both ways."""
    ids: list[tuple[int, int]] | None = None
    for chain in _CHAIN.finditer(text):
        for start, end in _find_in_chain(text, chain):
            if ids is None:
                ids = [match.span() for match in _ID.finditer(text)]
            # Ids do not overlap, so only the last one that begins before the digits can hold them.
            at = bisect_right(ids, (start, len(text))) - 1
            if at < 0 or ids[at][1] < end:
                yield start, end


def _find_in_chain(text: str, chain: re.Match[str]) -> Iterator[tuple[int, int]]:
    groups = [match.span() for match in _GROUP.finditer(text, chain.start(), chain.end())]
    digits = [ord(letter) - 48 for letter in chain.group() if "0" <= letter <= "9"]
    # Luhn sums of the first n digits, doubling the odd or the even places: any part's sum is then one subtraction.
    odd_doubled = [0, *accumulate(_DOUBLED[digit] if at % 2 else digit for at, digit in enumerate(digits))]
    even_doubled = [0, *accumulate(digit if at % 2 else _DOUBLED[digit] for at, digit in enumerate(digits))]
    group_ending_at: dict[int, int] = {}
    place = 0
    for index, (start, end) in enumerate(groups):
        place += end - start
        group_ending_at[place] = index
    first = 0
    for index, (start, end) in enumerate(groups):
        for length in _issued_lengths(digits[first : first + 6]):
            last = group_ending_at.get(first + length)
            if last is None:
                continue
            sums = odd_doubled if (first + length) % 2 else even_doubled
            is_valid = (sums[first + length] - sums[first]) % 10 == 0
            if is_valid and not _is_decimal(text, groups, first=index, last=last):
                yield start, groups[last][1]
        first += end - start


def _issued_lengths(prefix: list[int]) -> tuple[int, ...]:
    """Return how long card numbers that begin with these six digits are; nothing for an unknown issuer."""
    number = int("".join(map(str, prefix)))
    at = bisect_right(_LOWS, number) - 1
    if at < 0 or len(prefix) < 6:
        return ()
    _, high, lengths = _RANGES[at]
    return lengths if number <= high else ()


def _is_decimal(text: str, groups: list[tuple[int, int]], *, first: int, last: int) -> bool:
    """Return whether the groups are a number with a decimal point, such as 4.532015112830366, or its fraction."""
    if first == last:
        return first > 0 and text[groups[first - 1][1] : groups[first][0]] == "."
    return last == first + 1 and text[groups[first][1] : groups[last][0]] == "."
