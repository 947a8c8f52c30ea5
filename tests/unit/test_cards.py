"""Card numbers in text: every scheme and spelling is found, and what only looks like one is not."""

import hashlib
import time
import uuid

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from loop.domain.cards import contains_card_number, mask_card_numbers
from loop.domain.ids import ALPHABET

NUMBERS = {
    "Visa": "4111111111111111",
    "Visa of 13 digits": "4222222222222",
    "Visa of 19 digits": "4000000000000000006",
    "Mastercard": "5555555555554444",
    "Mastercard, 2-series": "2223003122003222",
    "Mastercard, end of 2-series": "2720991111111113",
    "American Express": "378282246310005",
    "Discover": "6011111111111117",
    "Diners Club": "30569309025904",
    "Diners Club, 36": "36227206271667",
    "JCB": "3530111333300000",
    "UnionPay": "6200000000000005",
    "UnionPay of 19 digits": "6205500000000000004",
    "Maestro": "6759649826438453",
    "Maestro, 50": "5018000000007",
    "RuPay": "6073849700004947",
    "RuPay, 81": "8171999900000018",
    "Mir": "2200000000000004",
}


def luhn_sum(digits: str) -> int:
    """Return Luhn's sum, the plain textbook way."""
    doubled = [int(digit) * 2 for digit in digits[-2::-2]]
    return sum(map(int, digits[-1::-2])) + sum(each - 9 if each > 9 else each for each in doubled)


def complete(digits: str) -> str:
    """Return `digits` with the last one that makes them pass Luhn's check."""
    return next(number for number in (f"{digits}{last}" for last in range(10)) if luhn_sum(number) % 10 == 0)


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS.keys())
def test_a_number_of_each_scheme_is_found(number: str) -> None:
    assert luhn_sum(number) % 10 == 0
    assert contains_card_number(number)
    assert contains_card_number(f"paid with {number}.")
    assert mask_card_numbers(f"paid with {number}.", "#") == "paid with #."


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS.keys())
def test_one_wrong_digit_is_no_card_number(number: str) -> None:
    wrong = f"{number[:-1]}{(int(number[-1]) + 1) % 10}"
    assert not contains_card_number(wrong)
    assert mask_card_numbers(wrong, "#") == wrong


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("4111 1111 1111 1111", "#"),
        ("4111-1111-1111-1111", "#"),
        ("4111.1111.1111.1111", "#"),
        ("4111\u00a01111\u00a01111\u00a01111", "#"),
        ("4111 - 1111 - 1111 - 1111", "#"),
        ("3782 822463 10005", "#"),
        ("4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", "#"),
        ("4111111111111111 12/27 123", "# 12/27 123"),
        ("4111 1111 1111 1111 123", "# 123"),
        ("12 4111 1111 1111 1111", "12 #"),
        ("card_4111111111111111", "card_#"),
        ("x4111111111111111y", "x#y"),
        ("cc4111111111111111", "cc#"),
        ("pan=4111111111111111;5555555555554444", "pan=#;#"),
        ('{"a": {"4111111111111111": 1}}', '{"a": {"#": 1}}'),
        ("ord_01j9x5k6z2m3n4p5q6r7s8t9va 4111111111111111", "ord_01j9x5k6z2m3n4p5q6r7s8t9va #"),
    ],
)
def test_every_spelling_is_found_and_masked_alone(text: str, masked: str) -> None:
    assert contains_card_number(text)
    assert mask_card_numbers(text, "#") == masked


def test_numbers_that_overlap_are_masked_together() -> None:
    first = complete("411141111111111")
    second = complete(f"{first[4:]}000")
    groups = " ".join((first[:4], *(second[at : at + 4] for at in range(0, 16, 4))))
    assert mask_card_numbers(f"a {groups} b {first} c", "#") == "a # b # c"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4999",
        "1732463813123",  # milliseconds
        "1732463813123456",  # microseconds
        "1732463813123456789",  # nanoseconds
        "41111111111111110000",  # an order number of twenty digits
        "4111111111111111" * 2,
        "9111111111111111",  # passes no issuer
        "4111 1111 1111\n1111",
        "4.532015112830366",  # a float whose digits pass both checks
        "0.4532015112830366",
        "4111111111111111"[:12],
        "ord_4111111111111111abcdefghjk",
        "evt_41111111111111110123456789",
        "01J9X4111111111111111PQRST",
        "41111111-1111-4111-8111-111111111111",
        "4111111111111111aabbccddeeff0011",
        "2026-11-24 19:46:43",
        "192.168.100.200 10.20.30.40",
        "+44 20 7946 0958",
    ],
)
def test_what_only_looks_like_one_is_none(text: str) -> None:
    assert not contains_card_number(text)
    assert mask_card_numbers(text, "#") == text


PREFIXES = st.sampled_from(["4", "51", "55", "2221", "2720", "34", "37", "6011", "65", "300", "3528", "62", "2204"])


@given(
    st.sampled_from(list(NUMBERS.values())),
    st.lists(st.sampled_from(["", " ", "-", ".", " - "]), min_size=19, max_size=19),
    st.text(alphabet="abc xyz,:\n", max_size=9),
)
def test_separators_anywhere_hide_nothing(number: str, separators: list[str], around: str) -> None:
    assume("".join(separators[: len(number) - 1]) != ".")  # which is a number with a decimal point
    spelled = "".join(digit + gap for digit, gap in zip(number, separators, strict=False)).rstrip(" -.")
    assert contains_card_number(f"{around} {spelled} {around}")
    assert number[:6] not in mask_card_numbers(spelled, "#")


@given(PREFIXES, st.integers(0, 10**15))
@example("4", 0)
def test_any_number_of_a_scheme_with_its_check_digit_is_found(prefix: str, rest: int) -> None:
    length = 15 if prefix in {"34", "37"} else 14 if prefix == "300" else 16
    digits = f"{prefix}{rest:016}"[: length - 1]
    assert contains_card_number(complete(digits))


@given(st.from_regex(rf"[a-z]{{2,3}}_[{ALPHABET}]{{26}}", fullmatch=True))
def test_no_id_of_ours_is_one(text: str) -> None:
    assert not contains_card_number(text)


@given(st.from_regex(r"ord_[4-6][0-9]{15}[a-z][0-9a-z]{9}", fullmatch=True))
def test_no_id_that_is_nearly_all_digits_is_one(text: str) -> None:
    assert not contains_card_number(text)


@given(st.from_regex("[0-9A-HJKMNP-TV-Z]{26}", fullmatch=True))
def test_no_ulid_is_one(text: str) -> None:
    assert not contains_card_number(text)


@given(st.uuids() | st.integers(10**13, 10**19).map(lambda number: uuid.UUID(int=number << 62)))
def test_no_uuid_is_one(number: uuid.UUID) -> None:
    assert not contains_card_number(str(number))


@given(st.binary())
def test_no_digest_is_one(content: bytes) -> None:
    assert not contains_card_number(hashlib.sha256(content).hexdigest())


@given(st.from_regex("[0-9]{20,40}", fullmatch=True))
def test_no_longer_run_of_digits_is_one(text: str) -> None:
    assert not contains_card_number(text)


@pytest.mark.parametrize("unit", ["4 ", "50 ", "4111 ", "4111111111111112 ", "0", "ord_41111 "])
def test_long_hostile_text_takes_linear_time(unit: str) -> None:
    text = unit * (65_536 // len(unit))
    started_s = time.perf_counter()
    contains_card_number(text)
    assert time.perf_counter() - started_s < 2  # a twentieth of that, when nothing else runs
