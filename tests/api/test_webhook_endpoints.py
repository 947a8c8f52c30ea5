"""Webhook endpoints over HTTP: several of them, their secrets and filters, what went to them, and sending it again."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from loop.runtime import Running
from tests.api.client import Shop, open_shop
from tests.merchant_server import MerchantServer, merchant_server, verified_by_libraries

ENDPOINTS = "/api/webhook-endpoints"
FIELDS = {
    "id", "url", "description", "events", "enabled", "disabledReason", "failingSince", "pausedUntil",
    "pendingSecretUntil", "createdAt", "updatedAt",
}  # fmt: skip
WITHIN_S = 10.0


@pytest.fixture
def flags() -> dict[str, object]:
    return {"webhook_allow_networks": "127.0.0.0/8"}


@pytest.fixture
async def server() -> AsyncIterator[MerchantServer]:
    async with merchant_server() as server:
        yield server


def person(shop: Shop) -> dict[str, str]:
    return {"Authorization": f"Bearer {shop.token}"}


async def add(shop: Shop, url: str, **fields: object) -> dict[str, Any]:
    answer = await shop.post(ENDPOINTS, {"url": url, **fields})
    assert answer.status == 201, answer.text
    made: dict[str, Any] = answer.body
    return made


async def eventually(is_so: Callable[[], Coroutine[None, None, bool]]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not await is_so():  # noqa: ASYNC110 - what is waited for is in the server
            await asyncio.sleep(0.02)


async def arrived(server: MerchantServer, count: int) -> None:
    async def are_there() -> bool:
        return len(server.received) >= count

    await eventually(are_there)


async def test_endpoints_are_added_shown_changed_and_removed(bare_shop: Shop, server: MerchantServer) -> None:
    made = await add(bare_shop, f"{server.url}/a", description="tills", events=["refund.created", "order.created"])
    assert set(made) == {*FIELDS, "secret"}
    assert made["id"].startswith("ep_")
    assert (made["events"], made["enabled"], made["description"]) == (
        ["order.created", "refund.created"],
        True,
        "tills",
    )
    shown = (await bare_shop.get(f"{ENDPOINTS}/{made['id']}")).body
    assert set(shown) == FIELDS
    assert (await bare_shop.get(ENDPOINTS)).body == [shown]
    assert (await bare_shop.get("/api/me")).body["webhookUrl"] == f"{server.url}/a"
    changed = await bare_shop.call("PATCH", f"{ENDPOINTS}/{made['id']}", {"enabled": False, "events": "*"})
    assert (changed.status, changed.body["enabled"], changed.body["events"]) == (200, False, ["*"])
    assert (changed.body["description"], changed.body["url"]) == ("tills", f"{server.url}/a")
    put = await bare_shop.call("PUT", f"{ENDPOINTS}/{made['id']}", {"url": f"{server.url}/b", "description": ""})
    assert (put.body["url"], put.body["description"], put.body["enabled"]) == (f"{server.url}/b", None, False)
    assert (await bare_shop.call("DELETE", f"{ENDPOINTS}/{made['id']}")).status == 204
    assert (await bare_shop.get(ENDPOINTS)).body == []
    for method in ("GET", "PATCH", "DELETE"):
        gone = await bare_shop.call(method, f"{ENDPOINTS}/{made['id']}", {} if method == "PATCH" else None)
        assert (gone.status, gone.code) == (404, "not_found")


async def test_a_secret_is_shown_to_people_and_where_it_is_made(bare_shop: Shop, server: MerchantServer) -> None:
    made = await add(bare_shop, server.url)
    path = f"{ENDPOINTS}/{made['id']}"
    assert "secret" not in (await bare_shop.get(path)).body
    assert (await bare_shop.get(path, auth=person(bare_shop))).body["secret"] == made["secret"]
    assert (await bare_shop.get("/api/me", auth=person(bare_shop))).body["webhookSecret"] == made["secret"]
    rotated = (await bare_shop.post(f"{path}/rotate-secret")).body
    assert set(rotated) == {*FIELDS, "pendingSecret"}
    assert rotated["pendingSecretUntil"] is not None
    assert "pendingSecret" not in (await bare_shop.get(path)).body
    shown = (await bare_shop.get(path, auth=person(bare_shop))).body
    assert (shown["secret"], shown["pendingSecret"]) == (made["secret"], rotated["pendingSecret"])
    again = await bare_shop.post(f"{path}/rotate-secret")
    assert (again.status, again.code) == (400, "secret_pending")
    await bare_shop.post("/v1/orders", {"amount": 100})
    await arrived(server, 1)
    for secret in (made["secret"], rotated["pendingSecret"]):
        verified_by_libraries(server.received[0], secret)
    promoted = await bare_shop.post(f"{path}/promote-secret", auth=person(bare_shop))
    assert (promoted.status, promoted.body["secret"]) == (200, rotated["pendingSecret"])
    assert (promoted.body["pendingSecretUntil"], "pendingSecret" in promoted.body) == (None, False)
    assert (await bare_shop.post(f"{path}/promote-secret")).code == "no_pending_secret"


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({}, "url"),
        ({"url": None}, "url"),
        ({"url": "ftp://shop.example/"}, "url"),
        ({"url": "https://169.254.169.254/"}, "url"),
        ({"url": "https://shop.example/", "events": []}, "events"),
        ({"url": "https://shop.example/", "events": ["order.paid"]}, "events"),
        ({"url": "https://shop.example/", "events": "order"}, "events"),
        ({"url": "https://shop.example/", "events": 7}, "events"),
        ({"url": "https://shop.example/", "enabled": "yes"}, "enabled"),
        ({"url": "https://shop.example/", "description": "x" * 1_001}, "description"),
        ({"url": "https://shop.example/", "secret": "whsec_mine"}, "secret"),
    ],
)
async def test_what_cannot_be_is_refused_and_changes_nothing(
    bare_shop: Shop, content: dict[str, object], field: str
) -> None:
    before = (await bare_shop.get(ENDPOINTS)).body
    answer = await bare_shop.post(ENDPOINTS, content)
    assert (answer.status, answer.code) in {(400, "validation_failed"), (400, "invalid_webhook_url")}
    assert answer.body["details"][0]["field"].startswith(field)
    assert (await bare_shop.get(ENDPOINTS)).body == before


async def test_a_change_that_cannot_be_is_refused_and_changes_nothing(bare_shop: Shop) -> None:
    made = await add(bare_shop, "https://shop.example/")
    for content in ({"url": "https://10.0.0.1/"}, {"events": ["order.paid"]}, {"enabled": 1}, {"id": "ep_other"}):
        answer = await bare_shop.call("PATCH", f"{ENDPOINTS}/{made['id']}", content)
        assert (answer.status, answer.code) in {(400, "validation_failed"), (400, "invalid_webhook_url")}
    (shown,) = (await bare_shop.get(ENDPOINTS)).body
    assert {**shown, "secret": made["secret"]} == made


async def test_nobody_sees_or_moves_another_s(served: Running, bare_shop: Shop, server: MerchantServer) -> None:
    made = await add(bare_shop, server.url)
    other = await open_shop(bare_shop.session, served.url, served.context, name="other")
    path = f"{ENDPOINTS}/{made['id']}"
    for method, tail, content in (
        ("GET", "", None),
        ("PUT", "", {"enabled": False}),
        ("DELETE", "", None),
        ("POST", "/rotate-secret", None),
        ("POST", "/promote-secret", None),
        ("POST", "/test", None),
        ("POST", "/replay", {"since": "2026-01-01"}),
    ):
        answer = await other.call(method, f"{path}{tail}", content)
        absent = await other.call(method, f"{ENDPOINTS}/ep_none{tail}", content)
        assert (answer.status, answer.code) == (absent.status, absent.code) == (404, "not_found")
        assert answer.body["message"] == absent.body["message"]
        assert (await bare_shop.call(method, f"{path}{tail}", content, auth={})).status == 401
    assert made["id"] not in (await other.get(ENDPOINTS)).text


async def test_a_trial_goes_out_once_for_one_key_and_its_attempts_tell_how_it_went(
    served: Running, bare_shop: Shop, server: MerchantServer
) -> None:
    made = await add(bare_shop, server.url, events=["dispute.opened"])
    server.answer = b"thanks, authorization: Bearer abcdefghijk"
    path, key = f"{ENDPOINTS}/{made['id']}/test", {"Idempotency-Key": "try-1"}
    first = await bare_shop.post(path, headers=key)
    again = await bare_shop.post(path, headers=key)
    assert (first.status, first.body) == (again.status, again.body) == (202, {"id": first.body["id"]})
    assert again.headers["Idempotent-Replayed"] == "true"
    event_id = first.body["id"]

    async def is_logged() -> bool:
        return bool((await bare_shop.get(f"/api/webhooks/{event_id}/attempts")).body)

    await eventually(is_logged)
    (attempt,) = (await bare_shop.get(f"/api/webhooks/{event_id}/attempts")).body
    assert attempt["durationMs"] >= 0
    assert {name: attempt[name] for name in ("endpointId", "attempt", "statusCode", "address", "answer", "error")} == {
        "endpointId": made["id"],
        "attempt": 1,
        "statusCode": 200,
        "address": "127.0.0.1",
        "answer": "thanks, authorization: [redacted]",
        "error": None,
    }
    assert [each.event_type for each in server.received] == ["endpoint.tested"]
    (row,) = (await bare_shop.get("/api/webhooks")).body["data"]
    assert (row["endpointId"], row["eventType"], row["orderId"], row["nextAttemptAt"]) == (
        made["id"], "endpoint.tested", None, None,
    )  # fmt: skip
    other = await open_shop(bare_shop.session, served.url, served.context, name="other")
    for asked in (event_id, "evt_none"):
        assert (await other.get(f"/api/webhooks/{asked}/attempts")).code == "not_found"


async def test_an_endpoint_that_was_given_up_is_enabled_and_sent_what_it_missed(
    bare_shop: Shop, server: MerchantServer
) -> None:
    made, before = await add(bare_shop, f"{server.url}/hooks"), datetime.now(UTC)  # noqa: TID251 - the server's own
    path = f"{ENDPOINTS}/{made['id']}"
    server.next_statuses = [410]
    await bare_shop.post("/v1/orders", {"amount": 100})

    async def is_given_up() -> bool:
        shown = (await bare_shop.get(path)).body
        failed = (await bare_shop.get("/api/webhooks?status=failed")).body["data"]
        return shown["enabled"] is False and len(failed) == 1

    await eventually(is_given_up)
    assert "410" in (await bare_shop.get(path)).body["disabledReason"]
    since = {"since": (before - timedelta(minutes=1)).isoformat()}
    refused = await bare_shop.post(f"{path}/replay", since)
    assert (refused.status, refused.code) == (400, "no_endpoint")
    enabled = (await bare_shop.call("PATCH", path, {"enabled": True})).body
    assert (enabled["enabled"], enabled["disabledReason"], enabled["failingSince"]) == (True, None, None)
    answer = await bare_shop.post(f"{path}/replay", since)
    assert (answer.status, answer.body) == (200, {"replayed": 1, "hasMore": False})

    async def is_delivered() -> bool:
        return len((await bare_shop.get("/api/webhooks?status=delivered")).body["data"]) == 1

    await eventually(is_delivered)
    assert [each.body for each in server.received] == [server.received[0].body] * 2
    for wrong in ({}, {"since": "yesterday"}, {"since": 5}):
        assert (await bare_shop.post(f"{path}/replay", wrong)).code == "validation_failed"


async def test_an_event_is_sent_again_to_the_endpoint_that_is_named(bare_shop: Shop, server: MerchantServer) -> None:
    await add(bare_shop, f"{server.url}/a")
    second = await add(bare_shop, f"{server.url}/b")
    await bare_shop.post("/v1/orders", {"amount": 100})
    await arrived(server, 2)
    event_id = server.received[0].event_id
    answer = await bare_shop.post(f"/api/webhooks/{event_id}/retry", {"endpointId": second["id"]})
    assert (answer.status, answer.body) == (200, {"success": True})
    await arrived(server, 3)
    assert sorted(each.path for each in server.received) == ["/a", "/b", "/b"]
    absent = await bare_shop.post(f"/api/webhooks/{event_id}/retry", {"endpointId": "ep_none"})
    assert absent.code == "not_found"
    odd = await bare_shop.session.post(
        f"{bare_shop.url}/api/webhooks/{event_id}/retry",
        data=io.BytesIO(b'{"endpoint": "x"}'),
        headers={"X-API-Key": bare_shop.key, "Content-Type": "application/json"},
    )
    assert odd.status == 400


async def test_the_correlation_id_reaches_every_endpoint(bare_shop: Shop, server: MerchantServer) -> None:
    for name in ("a", "b"):
        await add(bare_shop, f"{server.url}/{name}")
    await bare_shop.post("/v1/orders", {"amount": 100}, headers={"X-Correlation-ID": "basket-17"})
    await arrived(server, 2)
    assert [each.headers["X-Correlation-ID"] for each in server.received] == ["basket-17"] * 2
