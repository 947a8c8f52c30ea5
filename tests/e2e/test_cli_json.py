"""What every command has in common: JSON of one format, the API's limits, pages, and one correlation id a command."""

import json
import re

import pytest

from tests.e2e.shells import Desk

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
LONG = 3000 * "x"


def test_json_has_times_amounts_and_lists_as_the_api_has_them(desk: Desk, shop: str) -> None:
    order = desk.order(shop)
    desk.ok("order", "pay", order, "--token", "tok_approve")
    (listed,) = desk.json("order", "list", shop)
    assert (listed["amount"], listed["currency"]) == (4999, "USD")
    shown = desk.json("order", "show", order)
    assert shown["order"] == listed
    assert {entry["kind"] for entry in shown["timeline"]} >= {"attempt", "transaction", "event"}
    moments = [listed["createdAt"], *(entry["at"] for entry in shown["timeline"])]
    moments += [row["createdAt"] for row in (*desk.json("event", "list", shop), *desk.json("audit", "list"))]
    moments += [row["createdAt"] for row in desk.json("merchant", "list")]
    assert [moment for moment in moments if not TIME.fullmatch(moment)] == []
    desk.ok("api-key", "create", shop, "--name", "two", "--scope", "orders:read", "--scope", "orders:write")
    scopes = {row["name"]: row["scopes"] for row in desk.json("api-key", "list", shop)}
    assert scopes == {"first key": ["*"], "two": ["orders:read", "orders:write"]}


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("api-key", "create", "SHOP", "--name", ""), "--name"),
        (("api-key", "create", "SHOP", "--name", LONG), "--name"),
        (("order", "cancel", "ORDER", "--reason", LONG), "--reason"),
        (("order", "refund", "ORDER", "--reason", LONG), "--reason"),
        (("order", "pay", "ORDER", "--method", "cash"), "--method"),
        (("checkout", "link", "SHOP", "--amount", "100", "--email", "notmail"), "--email"),
        (("checkout", "link", "SHOP", "--amount", "100", "--for", LONG), "--for"),
        (("webhook", "add", "SHOP", "https://shop.example/hook", "--description", LONG), "--description"),
        (("routing", "test", "SHOP", "--amount", "1", "--currency", "USD", "--method", "cash"), "--method"),
        (("routing", "test", "SHOP", "--amount", "1", "--currency", "USD", "--country", "Germany"), "--country"),
    ],
)
def test_what_the_api_refuses_a_command_refuses_too(
    desk: Desk, shop: str, *, command: tuple[str, ...], option: str
) -> None:
    names = {"SHOP": shop, "ORDER": desk.order(shop)}
    refused = desk.run(*(names.get(word, word) for word in command))
    assert (refused.code, refused.out, refused.err.partition(": must")[0]) == (3, "", f"validation_failed: {option}")


def test_a_card_number_is_refused_as_by_the_api(desk: Desk, shop: str) -> None:
    refused = desk.run("order", "pay", desk.order(shop), "--token", "4242424242424242")
    assert (refused.code, refused.err.partition(":")[0]) == (3, "raw_card_data")


def test_a_command_has_one_correlation_id(desk: Desk, shop: str) -> None:
    order = desk.order(shop)
    desk.ok("order", "pay", order, "--token", "tok_approve")
    by_type = {row["eventType"]: row["correlationId"] for row in desk.json("event", "list", shop)}
    assert by_type["payment.processing"] == by_type["payment.captured"] != by_type["order.created"]
    assert None not in by_type.values()


def test_the_audit_log_is_read_page_by_page(desk: Desk, shop: str) -> None:
    desk.merchant("Other shop")
    for of_whom in ((), ("--merchant", shop)):
        whole = [row["id"] for row in desk.json("audit", "list", *of_whom)]
        pages, last = [], None
        while page := desk.json("audit", "list", *of_whom, "--limit", "1", *(("--after", last) if last else ())):
            last = page[-1]["id"]
            pages.append(last)
        assert sorted(pages) == sorted(whole)
    assert desk.run("audit", "list", "--after", "nonsense").code == 5


def test_a_warning_is_printed_once(desk: Desk, shop: str) -> None:
    said = desk.run("processor", "set", shop, "stripe", piped='{"secretKey": "sk_test_canary1"}')
    assert said.err.count("No webhookSecret is set") == 1


def test_the_version_is_told_by_command_and_option(desk: Desk) -> None:
    assert desk.ok("--version").strip() == desk.json("version")["version"] == desk.ok("version").strip()


def test_a_taken_address_is_said_in_words_for_the_operator(desk: Desk, shop: str) -> None:
    taken = desk.run("merchant", "create", "--name", "Other", "--email", shop)
    assert (taken.code, "sign in" in taken.err) == (3, False)
    assert json.loads(desk.ok("merchant", "list", "--json"))[0]["email"] == shop
