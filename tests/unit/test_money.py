"""Money: minor units of one currency, added within it and written as people read it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.domain.errors import ErrorKind, LoopError
from loop.domain.money import CURRENCY_EXPONENTS, MAX_AMOUNT_MINOR, Money, require_currency

AMOUNTS = st.integers(-MAX_AMOUNT_MINOR, MAX_AMOUNT_MINOR)
CURRENCIES = st.sampled_from(sorted(CURRENCY_EXPONENTS))


@given(AMOUNTS, AMOUNTS, CURRENCIES)
def test_adding_and_taking_away_undo_each_other(one: int, other: int, currency: str) -> None:
    assert Money(one, currency) + Money(other, currency) - Money(other, currency) == Money(one, currency)


@pytest.mark.parametrize("act", [Money.__add__, Money.__sub__])
def test_different_currencies_do_not_add_up(act: object) -> None:
    assert callable(act)
    with pytest.raises(ValueError, match="EUR and USD"):
        act(Money(1, "EUR"), Money(1, "USD"))


@pytest.mark.parametrize(
    ("money", "words"),
    [
        (Money(123456, "USD"), "1234.56 USD"),
        (Money(5, "INR"), "0.05 INR"),
        (Money(0, "EUR"), "0.00 EUR"),
        (Money(-1, "EUR"), "-0.01 EUR"),
        (Money(1234, "JPY"), "1234 JPY"),
        (Money(-1234, "JPY"), "-1234 JPY"),
        (Money(1234, "KWD"), "1.234 KWD"),
    ],
)
def test_amounts_are_written_with_the_currency_s_decimals(money: Money, words: str) -> None:
    assert str(money) == words


@given(AMOUNTS, CURRENCIES)
def test_what_is_written_is_the_amount(amount: int, currency: str) -> None:
    number, _, code = str(Money(amount, currency)).partition(" ")
    assert code == currency
    assert int(number.replace(".", "")) == amount
    assert len(number.partition(".")[2]) == CURRENCY_EXPONENTS[currency]


def test_every_code_is_three_capital_letters_with_0_2_or_3_decimals() -> None:
    assert all(len(code) == 3 and code.isascii() and code.isupper() for code in CURRENCY_EXPONENTS)
    assert set(CURRENCY_EXPONENTS.values()) == {0, 2, 3}


@pytest.mark.parametrize("code", ["usd", "Usd", "USD"])
def test_codes_are_taken_in_any_case(code: str) -> None:
    assert require_currency(code) == "USD"


@pytest.mark.parametrize("code", ["", "US", "USDX", "XXX", "BTC", "$", "U\u017fD", "USD "])
def test_what_is_no_currency_is_refused(code: str) -> None:
    with pytest.raises(LoopError) as refused:
        require_currency(code)
    assert (refused.value.code, refused.value.kind) == ("invalid_currency", ErrorKind.INVALID)
    assert refused.value.details == (("currency", "unknown currency"),)
