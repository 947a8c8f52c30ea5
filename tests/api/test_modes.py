"""Test and live over HTTP: each mode has its own orders and accounts, and neither reaches the other's."""

from typing import Any

import pytest

from loop.workflows import merchants
from loop.workflows.merchants import NewApiKey
from tests.api.client import PASSWORD, Answer, Shop

STRIPE = {"secretKey": "sk_live_stripe", "publishableKey": "pk_live_stripe", "webhookSecret": "whsec_stripe"}
NOBODY: dict[str, str] = {}


def person(shop: Shop, mode: str | None = None) -> dict[str, str]:
    return {"Authorization": f"Bearer {shop.token}", **({} if mode is None else {"X-Loop-Mode": mode})}


async def live_key(shop: Shop) -> dict[str, str]:
    _, secret = await merchants.create_api_key(shop.context, shop.merchant.id, NewApiKey("shop", mode="live"))
    return {"X-API-Key": secret}


async def add_stripe(shop: Shop, **fields: object) -> Answer:
    return await shop.post("/api/processors/stripe", {"credentials": STRIPE, **fields}, auth=person(shop))


async def accounts(shop: Shop, auth: dict[str, str]) -> list[tuple[str, bool]]:
    return [(each["processor"], each["testMode"]) for each in (await shop.get("/api/processors", auth=auth)).body]


def nothing(answer: Answer) -> dict[str, Any]:
    return {**answer.body, "requestId": ""}


def calls_on(order: dict[str, Any], session_id: str, event_id: str) -> list[tuple[str, str]]:
    path = f"/v1/orders/{order['id']}"
    return [
        ("GET", path), ("POST", f"{path}/pay"), ("POST", f"{path}/capture"), ("POST", f"{path}/cancel"),
        ("POST", f"{path}/refund"), ("GET", f"{path}/refunds"), ("GET", f"{path}/transactions"),
        ("GET", f"{path}/timeline"), ("GET", f"{path}/disputes"), ("GET", f"/v1/checkout/sessions/{session_id}"),
        ("POST", f"/v1/checkout/sessions/{session_id}/expire"), ("GET", f"/v1/events/{event_id}"),
        ("GET", f"/api/webhooks/{event_id}/attempts"), ("POST", f"/api/webhooks/{event_id}/retry"),
    ]  # fmt: skip


async def test_a_test_key_on_a_live_object_and_the_reverse_find_nothing(shop: Shop) -> None:
    live, test = await live_key(shop), {"X-API-Key": shop.key}
    session = {"amount": 100, "successUrl": "https://shop.example.com/"}
    for own, other in ((live, test), (test, live)):
        order = (await shop.post("/v1/orders", {"amount": 4999}, auth=own)).body
        assert order["testMode"] is (own is test)
        page = (await shop.post("/v1/checkout/sessions", session, auth=own)).body
        event = (await shop.get("/v1/events?limit=1", auth=own)).body["data"][0]
        assert event["testMode"] is (own is test)
        for method, path in calls_on(order, page["id"], event["id"]):
            absent = path.replace(order["id"], "ord_absent").replace(page["id"], "cs_absent")
            absent = absent.replace(event["id"], "evt_absent")
            answer, of_nobody = [await shop.call(method, each, auth=other) for each in (path, absent)]
            assert (answer.status, answer.code) == (404, "not_found"), (method, path)
            assert nothing(answer) == nothing(of_nobody)
        checkout = {"orderId": order["id"], "successUrl": session["successUrl"]}
        assert (await shop.post("/v1/checkout/sessions", checkout, auth=other)).code == "not_found"
        same = await shop.get(f"/v1/orders/{order['id']}", auth=own)
        assert same.body == order


async def test_lists_and_figures_hold_one_mode(shop: Shop) -> None:
    live, test = await live_key(shop), {"X-API-Key": shop.key}
    for auth, count in ((live, 1), (test, 2)):
        for _ in range(count):
            await shop.post("/v1/orders", {"amount": 100}, auth=auth)
    for auth, count in ((live, 1), (test, 2), (person(shop, "live"), 1), (person(shop, "test"), 2), (person(shop), 2)):
        assert len((await shop.get("/v1/orders", auth=auth)).body["data"]) == count
        assert (await shop.get("/api/orders", auth=auth)).body["pagination"]["total"] == count
        assert len((await shop.get("/v1/events", auth=auth)).body["data"]) == count
        assert (await shop.get("/api/dashboard/stats", auth=auth)).body["totalTransactions"] == count
    assert (await shop.get("/v1/orders", auth=person(shop, "both"))).code == "invalid_mode"


@pytest.mark.parametrize("flags", [{"webhook_allow_networks": "127.0.0.0/8"}])
async def test_deliveries_are_listed_by_mode(shop: Shop) -> None:
    await shop.call("PUT", "/api/me", {"webhookUrl": "http://127.0.0.1:9/nobody-listens"})
    live = await live_key(shop)
    order = (await shop.post("/v1/orders", {"amount": 100}, auth=live)).body
    assert (await shop.get("/api/webhooks")).body["pagination"]["total"] == 0
    listed = (await shop.get("/api/webhooks", auth=live)).body
    assert ([each["orderId"] for each in listed["data"]], listed["pagination"]["total"]) == ([order["id"]], 1)


async def test_one_idempotency_key_in_both_modes_makes_two_orders(shop: Shop) -> None:
    same = {"Idempotency-Key": "basket-1"}
    made = [
        (await shop.post("/v1/orders", {"amount": 100}, headers=same, auth=auth)).body
        for auth in (await live_key(shop), {"X-API-Key": shop.key}, {"X-API-Key": shop.key})
    ]
    assert [each["testMode"] for each in made] == [False, True, True]
    assert made[0]["id"] != made[1]["id"] == made[2]["id"]


@pytest.mark.parametrize(("test_mode", "mode"), [(True, "test"), (False, "live")])
async def test_whoever_knows_nothing_of_modes_is_served_by_the_account_they_have(
    bare_shop: Shop, test_mode: bool, mode: str
) -> None:
    new = {"name": "New shop", "email": "new@example.com", "password": PASSWORD}
    token = (await bare_shop.post("/api/auth/register", new, auth=NOBODY)).body["token"]
    signed_in = {"Authorization": f"Bearer {token}"}
    content = {"credentials": STRIPE, "testMode": test_mode}
    assert (await bare_shop.post("/api/processors/stripe", content, auth=signed_in)).status == 200
    made = (await bare_shop.post("/api/api-keys", {"name": "till"}, auth=signed_in)).body
    assert made["secret"].startswith(f"sk_{mode}_")
    for auth in ({"X-API-Key": made["secret"]}, signed_in):
        order = (await bare_shop.post("/v1/orders", {"amount": 4999}, auth=auth)).body
        assert order["testMode"] is test_mode
    changed = await bare_shop.call("PATCH", "/api/processors/stripe", {"enabled": False}, auth=signed_in)
    assert changed.body["testMode"] is test_mode
    again = await bare_shop.call("PATCH", "/api/processors/stripe", {"enabled": True}, auth=signed_in)
    assert again.body["enabled"] is True
    assert (await bare_shop.call("DELETE", "/api/processors/stripe", auth=signed_in)).status == 204


async def test_an_account_of_the_other_mode_alone_is_named_in_the_refusal(shop: Shop) -> None:
    live = await live_key(shop)
    order = (await shop.post("/v1/orders", {"amount": 4999}, auth=live)).body
    path = f"/v1/orders/{order['id']}/pay"
    refused = await shop.post(path, {"paymentMethod": {"type": "card", "token": "tok_approve"}}, auth=live)
    assert (refused.status, refused.code) == (400, "no_eligible_processor")
    assert "sandbox: it is a test account, and this is a live order." in refused.body["message"]
    explained = (await shop.post("/api/routing-rules/test", {"amount": 4999, "currency": "USD"}, auth=live)).body
    assert explained["processor"] is None
    assert (await shop.get(f"/v1/orders/{order['id']}", auth=live)).body["status"] == "pending"
    by_test = (await shop.post("/api/routing-rules/test", {"amount": 4999, "currency": "USD"})).body
    assert by_test["processor"] == "sandbox"


async def test_a_processor_has_an_account_of_each_mode(bare_shop: Shop) -> None:
    test, live = (await add_stripe(bare_shop)).body, (await add_stripe(bare_shop, testMode=False, priority=2)).body
    assert test["id"] != live["id"]
    assert await accounts(bare_shop, person(bare_shop)) == [("stripe", True), ("stripe", False)]
    replaced = (await add_stripe(bare_shop, testMode=False, priority=3)).body
    assert (replaced["id"], replaced["priority"]) == (live["id"], 3)
    for query, auth, changed in (
        ("?testMode=true", person(bare_shop), test),
        ("?testMode=false", person(bare_shop, "test"), live),
        ("", person(bare_shop, "test"), test),
        ("", person(bare_shop), live),
        ("", await live_key(bare_shop), live),
        ("", {"X-API-Key": bare_shop.key}, test),
    ):
        answer = await bare_shop.call("PATCH", f"/api/processors/stripe{query}", {"priority": 9}, auth=auth)
        assert answer.body["id"] == changed["id"], (query, auth)
    wrong = await bare_shop.call("DELETE", "/api/processors/stripe?testMode=both", auth=person(bare_shop))
    assert wrong.code == "validation_failed"
    gone = await bare_shop.call("DELETE", "/api/processors/stripe?testMode=false", auth=person(bare_shop))
    assert gone.status == 204
    assert await accounts(bare_shop, person(bare_shop)) == [("stripe", True)]


async def test_an_account_moves_to_the_other_mode_when_there_is_none(bare_shop: Shop) -> None:
    test = (await add_stripe(bare_shop)).body
    path, auth = "/api/processors/stripe", person(bare_shop)
    moved = (await bare_shop.call("PATCH", path, {"testMode": False}, auth=auth)).body
    assert (moved["id"], moved["testMode"]) == (test["id"], False)
    await add_stripe(bare_shop)
    refused = await bare_shop.call("PATCH", path, {"testMode": True}, auth=person(bare_shop, "live"))
    assert (refused.status, refused.code) == (400, "mode_taken")
    await bare_shop.call("DELETE", f"{path}?testMode=true", auth=auth)
    still = await bare_shop.call("PATCH", path, {"testMode": True}, auth=person(bare_shop, "live"))
    assert (still.status, still.code) == (400, "mode_taken")
    assert await accounts(bare_shop, auth) == [("stripe", False)]


async def test_an_account_that_was_paid_at_keeps_its_mode(shop: Shop) -> None:
    """Else a test order's refund would go to the live account, once it has the credentials of that."""
    await shop.paid_order()
    path, auth = "/api/processors/sandbox", person(shop)
    refused = await shop.call("PATCH", path, {"testMode": False}, auth=auth)
    assert (refused.status, refused.code) == (400, "mode_in_use")
    same = await shop.call("PATCH", path, {"testMode": True, "priority": 9}, auth=auth)
    assert (same.status, same.body["testMode"], same.body["priority"]) == (200, True, 9)


async def test_a_test_key_neither_sees_nor_touches_a_live_account(bare_shop: Shop) -> None:
    live = (await add_stripe(bare_shop, testMode=False)).body
    path = "/api/processors/stripe"
    assert await accounts(bare_shop, {"X-API-Key": bare_shop.key}) == []
    for method, query in (("PATCH", ""), ("DELETE", ""), ("PATCH", "?testMode=false"), ("DELETE", "?testMode=false")):
        answer = await bare_shop.call(method, path + query, {})
        assert (answer.status, answer.code) == (404, "not_found")
    made = await bare_shop.post(path, {"credentials": STRIPE, "testMode": False})
    assert (made.status, made.code) == (403, "live_mode_required")
    await bare_shop.post("/api/processors/sandbox", {"credentials": {}})
    moved = await bare_shop.call("PATCH", "/api/processors/sandbox", {"testMode": False})
    assert moved.code == "live_mode_required"
    kept = (await bare_shop.get("/api/processors", auth=person(bare_shop))).body
    assert [each for each in kept if not each["testMode"]] == [live]
