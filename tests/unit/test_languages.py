"""Languages: every text is in every catalogue, money and dates are as in the country, the right one is found."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from babel.messages.extract import extract, extract_from_dir
from babel.messages.pofile import read_po
from starlette.requests import Request

import loop.server as server_room
from loop.domain.declines import DECLINES
from loop.domain.money import CURRENCY_EXPONENTS, Money
from loop.server import checkout_page, pages, sandbox_pages
from loop.server.languages import CATALOGUES, Language, asked_for, language_of, languages

SERVER = Path(server_room.__file__).parent


def texts_in_templates() -> Iterator[str]:
    found = extract_from_dir(SERVER / "templates", method_map=[("**.html", "jinja2")], keywords={"_": None})
    yield from (str(message) for _, _, message, _, _ in found)


def texts_in_code() -> Iterator[str]:
    for path in SERVER.glob("*.py"):
        with path.open("rb") as file:
            yield from (str(message) for _, message, _, _ in extract("python", file, keywords={"say": None}))
    yield from checkout_page.WORDS.values()
    yield checkout_page.PROCESSING
    yield from checkout_page.TROUBLES.values()
    yield from pages.FOR_CUSTOMERS.values()
    yield pages.OTHERWISE
    yield from sandbox_pages.LABELS.values()
    yield from sandbox_pages.TITLES
    yield from (decline.customer_message for decline in DECLINES.values())


TEXTS = {*texts_in_templates(), *texts_in_code()}


def requested(*, lang: str = "", accepted: str = "") -> Request:
    headers = [(b"accept-language", accepted.encode())]
    return Request({"type": "http", "query_string": f"lang={lang}".encode(), "headers": headers})


@pytest.mark.parametrize("path", sorted(CATALOGUES.glob("*.po")), ids=lambda path: path.stem)
def test_a_catalogue_says_all_that_pages_say_and_nothing_else(path: Path) -> None:
    with path.open("rb") as file:
        catalogue = {str(message.id): message for message in read_po(file, locale=path.stem) if message.id}
    assert set(catalogue) == TEXTS
    for message in catalogue.values():
        assert message.string, message.id
        assert not message.fuzzy, message.id
        assert not list(message.check()), message.id


def test_english_hindi_and_german_are_there() -> None:
    assert [(each.code, each.name, each.direction) for each in languages()] == [
        ("en", "English", "ltr"),
        ("de", "Deutsch", "ltr"),
        ("hi", "हिन्दी", "ltr"),
    ]


@pytest.mark.parametrize(
    ("lang", "accepted", "expected"),
    [
        ("", "", "en"),
        ("", "de-AT,de;q=0.9,en;q=0.8", "de_AT"),
        ("", "fr, hi;q=0.4, de;q=0.7", "de"),
        ("hi", "de", "hi"),
        ("xx", "de", "de"),
        ("de-XX", "", "de"),
        ("", "de;q=0, hi", "hi"),
        ("", "*;q=1, ,,;;q=, de;q=high, en-GB", "en_GB"),
        ("de" + "-x" * 500, "", "en"),
        ("../../de", "\x00", "en"),
        ("", ",".join(["fr"] * 500) + ",de", "en"),
    ],
)
def test_the_language_that_is_asked_for_is_found(lang: str, accepted: str, expected: str) -> None:
    assert str(language_of(requested(lang=lang, accepted=accepted)).locale) == expected


def test_only_a_language_that_there_is_is_carried_on() -> None:
    assert asked_for(requested(lang="de-AT")) == "de-AT"
    assert asked_for(requested(lang="xx", accepted="de")) is None
    assert asked_for(requested(lang='"><b>')) is None


def spoken(tag: str) -> Language:
    return language_of(requested(lang=tag))


@pytest.mark.parametrize(
    ("tag", "amount", "expected"),
    [
        ("en", Money(4_999, "EUR"), "€49.99"),
        ("de", Money(123_456, "EUR"), "1.234,56\xa0€"),
        ("en-IN", Money(12_345_678, "INR"), "₹1,23,456.78"),
        ("hi", Money(12_345_678, "INR"), "₹1,23,456.78"),
        ("en", Money(5_000, "JPY"), "¥5,000"),
        ("en", Money(1_234, "KWD"), "KWD\xa01.234"),
        ("de", Money(0, "USD"), "0,00\xa0$"),
    ],
)
def test_money_is_written_as_in_the_country(tag: str, amount: Money, expected: str) -> None:
    assert spoken(tag).money(amount) == expected


def test_no_currency_loses_decimals_that_it_has() -> None:
    for currency, decimals in CURRENCY_EXPONENTS.items():
        shown = spoken("en").money(Money(12_345_678, currency))
        assert "".join(each for each in shown if each.isdigit()) == "12345678", shown
        assert ("." in shown) is (decimals > 0), shown


def test_a_moment_says_its_zone() -> None:
    at = datetime(2026, 11, 27, 20, 5, tzinfo=UTC)
    assert spoken("de").moment(at) == "27. November 2026, 20:05 UTC"
    assert spoken("en").moment(at).replace("\u202f", " ") == "November 27, 2026, 8:05 PM UTC"


def test_what_is_put_into_a_text_is_escaped() -> None:
    said = spoken("de").say("Pay %(amount)s", amount="<b>1</b>")
    assert said == "&lt;b&gt;1&lt;/b&gt; bezahlen"
    assert spoken("en").say("a <b>") == "a &lt;b&gt;"
