"""The page of routing: rules kept in order, edited, refused with what was typed, and tried before they count."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from loop.server.dashboard.rule_forms import fields_of
from loop.workflows import routing
from tests.api.client import Shop
from tests.api.dashboard_desk import Desk, Seen, new_desk

PAGE = "/dashboard/routing"
TYPED = {"name": "Euros", "enabled": "1", "way": "order", "target_1": "sandbox", "do": "save"}


@pytest.fixture
async def desk(shop: Shop) -> AsyncIterator[Desk]:
    async with new_desk(shop) as signed_in:
        yield signed_in


async def add(desk: Desk, **typed: str) -> Seen:
    """Fill in the form of a new rule and send it."""
    page = await desk.get(f"{PAGE}/new")
    return await desk.post(f"{PAGE}/new", {**page.form("/new"), **TYPED, **typed})


async def act(desk: Desk, rule_id: str, action: str) -> Seen:
    page = await desk.get(PAGE)
    return await desk.post(f"{PAGE}/{rule_id}/{action}", page.form(f"{rule_id}/{action}"))


async def rules(shop: Shop) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await shop.get("/api/routing-rules")).body
    return found


async def use_stripe(shop: Shop) -> None:
    answer = await shop.post("/api/processors/stripe", {"credentials": {"secretKey": "sk_test_1"}, "priority": 50})
    assert answer.status == 200, answer.text


async def test_a_merchant_without_a_processor_is_told_what_comes_first(bare_shop: Shop) -> None:
    async with new_desk(bare_shop) as desk:
        assert "No processor is connected" in (await desk.get(PAGE)).text
        assert "No processor is connected" in (await desk.get(f"{PAGE}/new")).text


async def test_a_rule_is_made_with_all_that_it_may_ask(desk: Desk, shop: Shop) -> None:
    await use_stripe(shop)
    asked = {
        "currencies": "eur, usd", "amount_min": "10", "amount_max": "1,250.50", "brands": "Visa rupay",
        "countries": "de; in", "method_card": "1", "method_upi": "1", "metadata": 'plan = pro\nseats = 3\ncode = "7"',
        "way": "split", "target_1": "stripe", "weight_1": "70", "target_2": "sandbox", "weight_2": "30",
    }  # fmt: skip
    answer = await add(desk, **asked)
    assert (answer.status, answer.location) == (303, f"{PAGE}?notice=saved")
    [rule] = await rules(shop)
    assert rule["conditions"] == {
        "currencies": ["EUR", "USD"],
        "amountMin": 1_000,
        "amountMax": 125_050,
        "brands": ["visa", "rupay"],
        "countries": ["DE", "IN"],
        "paymentMethods": ["card", "upi"],
        "metadata": {"plan": "pro", "seats": 3, "code": "7"},
    }
    assert rule["split"] == {"stripe": 70, "sandbox": 30}
    page = (await desk.get(PAGE)).text
    for words in ("EUR or USD", "10.00 to 1250.50", "visa or rupay", "stripe 70%, sandbox 30%"):
        assert words in page


async def test_a_rule_that_is_opened_and_saved_stays_as_it_was(desk: Desk, shop: Shop) -> None:
    conditions = {"currencies": ["JPY", "USD"], "amountMin": 500, "metadata": {"a": "1", "b": 1, "c": True, "d": "x"}}
    content = {"name": "odd", "priority": 7, "enabled": False, "conditions": conditions, "split": {"sandbox": 5}}
    made = (await shop.post("/api/routing-rules", content)).body
    stored = await routing.get_rule(shop.context, shop.merchant.id, made["id"])
    page = await desk.get(f"{PAGE}/{made['id']}")
    for text in ('value="JPY, USD"', 'value="500"', "a = &#34;1&#34;\nb = 1\nc = true\nd = x</textarea>"):
        assert text in page.text
    form = {**page.form(made["id"]), **fields_of(stored.rule), "do": "save"}
    assert (await desk.post(f"{PAGE}/{made['id']}", form)).status == 303
    [after] = await rules(shop)
    assert (after["priority"], after["enabled"], after["conditions"], after["split"]) == (
        7, False, conditions, {"sandbox": 5},
    )  # fmt: skip


WRONG = [
    ({"name": " "}, "Is how people will know the rule"),
    ({"currencies": "EURO"}, "EURO is no currency"),
    ({"amount_min": "10"}, "An amount alone says nothing"),
    ({"currencies": "EUR", "amount_min": "ten"}, "Must be an amount such as"),
    ({"currencies": "EUR, JPY", "amount_min": "1.5"}, "Must be in minor units"),
    ({"currencies": "EUR", "amount_min": "20", "amount_max": "10"}, "no amount is in between"),
    ({"brands": "4!"}, "4! is none"),
    ({"countries": "Germany"}, "Germany is none"),
    ({"metadata": "plan"}, "is none"),
    ({"target_1": ""}, "Choose at least one processor"),
    ({"target_2": "sandbox"}, "Sandbox is named twice"),
    ({"target_1": "paypal"}, "Is no installed processor"),
    ({"way": "split"}, "Sandbox needs a weight"),
    ({"way": "split", "weight_1": "0"}, "Must have a weight from 1 to"),
]


@pytest.mark.parametrize(("typed", "words"), WRONG)
async def test_a_rule_that_cannot_work_is_refused_with_what_was_typed(
    desk: Desk, shop: Shop, typed: dict[str, str], words: str
) -> None:
    answer = await add(desk, **{"countries": "fr", **typed})
    assert answer.status == 400
    assert words in answer.text
    assert "The rule was not saved." in answer.text
    kept = {"countries": "fr", **typed}["countries"]
    assert f'value="{kept}"' in answer.text
    assert await rules(shop) == []


async def test_a_form_that_is_sent_twice_makes_one_rule(desk: Desk, shop: Shop) -> None:
    form = {**(await desk.get(f"{PAGE}/new")).form("/new"), **TYPED}
    assert [(await desk.post(f"{PAGE}/new", form)).status for _ in range(2)] == [303, 303]
    assert len(await rules(shop)) == 1


async def test_rules_are_moved_one_place_at_a_time(desk: Desk, shop: Shop) -> None:
    for name in ("a", "b", "c"):
        await shop.post(
            "/api/routing-rules", {"name": name, "processors": ["sandbox"], "conditions": {"brands": [name]}}
        )
    third = (await rules(shop))[2]["id"]
    assert (await act(desk, third, "up")).location == f"{PAGE}?notice=moved"
    assert [(each["name"], each["priority"]) for each in await rules(shop)] == [("a", 10), ("c", 20), ("b", 30)]
    await act(desk, third, "up")
    assert [each["name"] for each in await rules(shop)] == ["c", "a", "b"]
    csrf = (await desk.get(PAGE)).form(f"{third}/down")
    assert (await desk.post(f"{PAGE}/{third}/up", csrf)).status == 303  # it is the first, and stays it
    assert [each["name"] for each in await rules(shop)] == ["c", "a", "b"]
    await act(desk, third, "down")
    assert [(each["name"], each["priority"]) for each in await rules(shop)] == [("a", 10), ("c", 20), ("b", 30)]
    entries = (await shop.get("/api/audit-log", auth={"Authorization": f"Bearer {shop.token}"})).body["data"]
    assert entries[0]["action"] == "routing_rule.changed"
    assert set(entries[0]["after"]) == {"priority"}


async def test_a_rule_is_turned_off_and_on_and_removed(desk: Desk, shop: Shop) -> None:
    await add(desk)
    [rule] = await rules(shop)
    await act(desk, rule["id"], "off")
    assert [each["enabled"] for each in await rules(shop)] == [False]
    await act(desk, rule["id"], "on")
    assert [each["enabled"] for each in await rules(shop)] == [True]
    page = await desk.get(PAGE)
    assert (await act(desk, rule["id"], "remove")).location == f"{PAGE}?notice=removed"
    assert await rules(shop) == []
    gone = await desk.post(f"{PAGE}/{rule['id']}/remove", page.form("/remove"))
    assert gone.status == 404
    assert "not_found" in gone.text


async def test_a_rule_that_is_never_reached_is_said_to_be_so_once(desk: Desk) -> None:
    await add(desk, name="all")
    await add(desk, name="never", currencies="EUR")
    page = (await desk.get(PAGE)).text
    assert page.count("will never be reached") == 1
    warned = [bool(each["warnings"]) for each in (await desk.told(f"{PAGE}.json"))["rules"]]
    assert warned == [False, True]


async def test_an_example_says_who_takes_it_and_why(desk: Desk, shop: Shop) -> None:
    await use_stripe(shop)
    await add(desk, name="rupees", currencies="INR", target_1="sandbox")
    page = (await desk.get(f"{PAGE}?amount=49.99&currency=inr&method=card&brand=&country=")).text
    assert "<strong>sandbox</strong> takes it" in page
    assert "by the rule" in page
    assert 'value="49.99"' in page
    odd = await desk.get(f"{PAGE}?amount=much&currency=INR")
    assert odd.status == 200
    assert "That is no payment." in odd.text
    assert 'value="much"' in odd.text


async def test_recent_orders_say_what_a_rule_would_change_before_it_is_saved(desk: Desk, shop: Shop) -> None:
    euros = await shop.paid_order(currency="EUR")
    dollars = await shop.paid_order("tok_decline_declined", currency="USD")
    await shop.order()  # was never tried, and says nothing
    await use_stripe(shop)
    content = await desk.told(f"{PAGE}.json")
    would = {each["orderId"]: (each["wentTo"], each["wouldGoTo"]) for each in content["recentOrders"]}
    assert would == {euros["id"]: ("sandbox", "stripe"), dollars["id"]: ("sandbox", "stripe")}
    tried = await add(desk, name="Euros stay", currencies="EUR", do="try")
    assert tried.status == 200
    assert "<strong>1</strong> of the last 2 orders would go elsewhere." in tried.text
    assert 'value="Euros stay"' in tried.text
    assert await rules(shop) == []
    assert dollars["externalId"] in tried.text


async def test_another_merchants_rule_is_not_there(desk: Desk, bare_shop: Shop) -> None:
    await bare_shop.use_sandbox()
    made = (await bare_shop.post("/api/routing-rules", {"name": "theirs", "processors": ["sandbox"]})).body
    form = {**(await desk.get(PAGE)).form("/sign-out"), **TYPED}
    assert (await desk.get(f"{PAGE}/{made['id']}")).status == 404
    for action in ("", "/up", "/down", "/on", "/off", "/remove"):
        assert (await desk.post(f"{PAGE}/{made['id']}{action}", form)).status == 404
    assert [each["name"] for each in await rules(bare_shop)] == ["theirs"]
