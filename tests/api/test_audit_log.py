"""The audit log over HTTP: every change says who made it and from where, and a merchant reads its own entries only."""

from typing import Any

import aiohttp
import pytest

from loop.runtime import Running
from tests.api.client import PASSWORD, Shop, open_shop

RULE = {"name": "All", "processors": ["sandbox"]}


async def entries(shop: Shop, query: str = "?limit=100") -> list[dict[str, Any]]:
    """Return a merchant's entries, newest first."""
    answer = await shop.get(f"/api/audit-log{query}")
    assert answer.status == 200, answer.text
    found: list[dict[str, Any]] = answer.body["data"]
    return found


def as_person(shop: Shop) -> dict[str, str]:
    return {"Authorization": f"Bearer {shop.token}"}


async def key_id(shop: Shop) -> str:
    (key,) = (await shop.get("/api/api-keys")).body
    return str(key["id"])


async def test_a_change_is_the_key_s_or_the_person_s_who_made_it(shop: Shop) -> None:
    await shop.call("PUT", "/api/me", {"name": "By key"}, headers={"X-Correlation-ID": "abc-1"})
    await shop.call("PUT", "/api/me", {"name": "By hand"}, auth=as_person(shop))
    by_hand, by_key = (await entries(shop))[:2]
    assert by_key["actor"] == {"kind": "api_key", "id": await key_id(shop), "address": "127.0.0.1"}
    assert by_hand["actor"] == {"kind": "user", "id": shop.merchant.id, "address": "127.0.0.1"}
    assert (by_key["action"], by_key["subject"], by_key["correlationId"]) == (
        "profile.changed", shop.merchant.id, "abc-1",
    )  # fmt: skip
    assert (by_hand["before"], by_hand["after"]) == ({"name": "By key"}, {"name": "By hand"})
    assert by_hand["seq"] == by_key["seq"] + 1
    assert len(by_hand["hash"]) == 64


async def test_everything_that_is_changed_by_a_key_is_recorded_as_the_key_s(shop: Shop) -> None:
    """Whoever adds a route that changes something sees to it that its context acts for the caller."""
    before = len(await entries(shop))
    await shop.post("/api/processors/stripe", {"credentials": {"secretKey": "sk_test_canary"}})
    await shop.call("PATCH", "/api/processors/stripe", {"enabled": False})
    await shop.call("DELETE", "/api/processors/stripe")
    rule = (await shop.post("/api/routing-rules", RULE)).body
    await shop.call("PUT", f"/api/routing-rules/{rule['id']}", {**RULE, "name": "Some"})
    await shop.call("DELETE", f"/api/routing-rules/{rule['id']}")
    order = await shop.paid_order(captureMethod="manual")
    await shop.post(f"/v1/orders/{order['id']}/capture")
    await shop.post(f"/v1/orders/{order['id']}/refund", {"amount": 100})
    await shop.post(f"/v1/orders/{(await shop.order())['id']}/cancel")
    # At the end, so that nobody is told of the orders.
    await shop.call("PUT", "/api/me", {"webhookUrl": "https://shop.example.com/hooks"})
    added = (await shop.post("/api/webhook-endpoints", {"url": "https://shop.example.com/more"})).body
    path = f"/api/webhook-endpoints/{added['id']}"
    await shop.call("PATCH", path, {"enabled": False})
    await shop.post(f"{path}/rotate-secret")
    await shop.post(f"{path}/promote-secret")
    await shop.call("DELETE", path)
    new = (await entries(shop))[:-before][::-1]
    assert [entry["action"] for entry in new] == [
        "processor_config.created",
        "processor_config.changed",
        "processor_config.removed",
        "routing_rule.created",
        "routing_rule.changed",
        "routing_rule.removed",
        "capture.requested",
        "refund.requested",
        "cancellation.requested",
        "webhook_endpoint.changed",
        "webhook_endpoint.created",
        "webhook_endpoint.changed",
        "webhook_endpoint.secret_rotated",
        "webhook_endpoint.secret_rotated",
        "webhook_endpoint.removed",
    ]
    assert {(entry["actor"]["kind"], entry["actor"]["id"]) for entry in new} == {("api_key", await key_id(shop))}
    assert (new[1]["before"], new[1]["after"]) == ({"isEnabled": True}, {"isEnabled": False})
    assert added["secret"] not in str(new)
    assert "canary" not in str(new)


async def test_keys_are_made_and_revoked_by_a_person(shop: Shop) -> None:
    made = (await shop.post("/api/api-keys", {"name": "till"}, auth=as_person(shop))).body
    await shop.call("DELETE", f"/api/api-keys/{made['apiKey']['id']}", auth=as_person(shop))
    revoked, created = (await entries(shop))[:2]
    assert (created["action"], revoked["action"]) == ("api_key.created", "api_key.revoked")
    assert created["subject"] == revoked["subject"] == made["apiKey"]["id"]
    assert {entry["actor"]["kind"] for entry in (created, revoked)} == {"user"}
    assert made["secret"] not in str(await entries(shop))


async def test_accounts_from_registration_on(shop: Shop) -> None:
    new = {"name": "Second", "email": "second@example.com", "password": PASSWORD}
    registered = (await shop.post("/api/auth/register", new, auth={})).body
    login = {"email": new["email"], "password": PASSWORD}
    assert (await shop.post("/api/auth/login", {**login, "password": "wrong horse"}, auth={})).status == 401
    assert (await shop.post("/api/auth/login", login, auth={})).status == 200
    once = {"refreshToken": registered["refreshToken"]}
    second = await shop.post("/api/auth/refresh", once, auth={})
    assert (await shop.post("/api/auth/refresh", {"refreshToken": second.body["refreshToken"]}, auth={})).status == 200
    assert (await shop.post("/api/auth/refresh", once, auth={})).status == 401
    auth = {"Authorization": f"Bearer {(await shop.post('/api/auth/login', login, auth={})).body['token']}"}
    found = (await shop.get("/api/audit-log", auth=auth)).body["data"]
    assert [(entry["action"], entry["actor"]["kind"], entry["actor"]["address"]) for entry in found] == [
        ("sign_in.succeeded", "user", "127.0.0.1"),
        ("refresh_token.reused", "anonymous", "127.0.0.1"),
        ("sign_in.succeeded", "user", "127.0.0.1"),
        ("sign_in.refused", "anonymous", "127.0.0.1"),
        ("merchant.created", "user", "127.0.0.1"),
    ]
    assert PASSWORD not in str(found)
    assert registered["refreshToken"] not in str(found)


async def test_a_list_goes_on_from_its_cursor(shop: Shop) -> None:
    for number in range(5):
        await shop.call("PUT", "/api/me", {"name": f"Shop {number}"})
    whole = await entries(shop)
    collected: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = (await shop.get(f"/api/audit-log?limit=3{cursor}")).body
        collected += page["data"]
        if not page["hasMore"]:
            break
        assert len(page["data"]) == 3
        cursor = f"&cursor={page['nextCursor']}"
    assert page["nextCursor"] is None
    assert collected == whole
    assert [entry["seq"] for entry in whole] == list(range(len(whole), 0, -1))


@pytest.mark.parametrize("query", ["cursor=abc", "cursor=0", "cursor=-1", "limit=0", "limit=101", "limit=x"])
async def test_a_cursor_that_no_list_has_answered_is_refused(shop: Shop, query: str) -> None:
    answer = await shop.get(f"/api/audit-log?{query}")
    assert (answer.status, answer.code) == (400, "validation_failed")


async def test_another_merchant_s_entries_are_not_there(
    shop: Shop, served: Running, session: aiohttp.ClientSession
) -> None:
    other = await open_shop(session, served.url, served.context, name="other")
    await other.call("PUT", "/api/me", {"name": "Not yours"})
    assert "Not yours" not in str(await entries(shop))
    assert {entry["subject"] for entry in await entries(shop)}.isdisjoint(
        entry["subject"] for entry in await entries(other)
    )


async def test_it_is_for_who_has_signed_in_and_cannot_be_written_to(shop: Shop) -> None:
    assert (await shop.get("/api/audit-log", auth={})).status == 401
    for method in ("POST", "PUT", "DELETE"):
        assert (await shop.call(method, "/api/audit-log", {})).status == 405
