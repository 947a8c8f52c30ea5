"""The dashboard's API: processors, statistics, pages of orders, and the webhooks that were sent."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web

from loop.runtime import Running
from tests.api.client import Shop, open_shop

CONFIG_FIELDS = {
    "id", "processor", "enabled", "priority", "testMode", "createdAt", "updatedAt", "health", "webhookUrl",
    "warnings",
}  # fmt: skip
STRIPE = {"secretKey": "sk_test_0000000000", "publishableKey": "pk_test_0", "webhookSecret": "whsec_0000"}
WITHIN_S = 10.0
POLL_S = 0.02


@dataclass
class Receiver:
    """A merchant's own server, which takes webhooks or refuses them."""

    url: str = ""
    status: int = 200
    events: list[Any] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        """Take one webhook."""
        self.events.append(await request.json())
        return web.Response(status=self.status)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    application = web.Application()
    application.router.add_post("/hooks", receiver.take)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    receiver.url = f"http://{host}:{port}/hooks"
    yield receiver
    await runner.cleanup()


async def eventually(is_so: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    """Ask until it is so; the bound fails the test."""
    for _ in range(int(WITHIN_S / POLL_S)):
        if await is_so():
            return
        await asyncio.sleep(POLL_S)
    pytest.fail(f"it was not so within {WITHIN_S} seconds")


# Processors.


async def test_a_processor_is_configured_and_its_credentials_never_come_out(bare_shop: Shop) -> None:
    assert (await bare_shop.get("/api/processors")).body == []
    answer = await bare_shop.post("/api/processors/stripe", {"credentials": STRIPE})
    assert answer.status == 200, answer.text
    config = answer.body
    assert set(config) == CONFIG_FIELDS
    assert (config["processor"], config["enabled"], config["priority"], config["testMode"]) == ("stripe", True, 1, True)
    assert config["health"] == "unknown"
    assert config["webhookUrl"] == f"{bare_shop.url}/webhooks/stripe/{config['id']}"
    assert config["warnings"] == []
    listed = await bare_shop.get("/api/processors")
    assert listed.body == [config]
    for secret in STRIPE.values():
        assert secret not in answer.text + listed.text


async def test_a_config_is_replaced_and_keeps_its_id(bare_shop: Shop) -> None:
    first = (await bare_shop.post("/api/processors/stripe", {"credentials": STRIPE, "priority": 7})).body
    again = {"credentials": {**STRIPE, "secretKey": "sk_test_1"}, "enabled": False, "testMode": True}
    second = (await bare_shop.post("/api/processors/stripe", again)).body
    assert second == {**first, "enabled": False, "priority": 1, "updatedAt": second["updatedAt"]}
    assert (await bare_shop.get("/api/processors")).body == [second]


async def test_configs_change_and_go(bare_shop: Shop) -> None:
    await bare_shop.post("/api/processors/sandbox", {"credentials": {}, "priority": 2})
    config = (await bare_shop.post("/api/processors/stripe", {"credentials": STRIPE})).body
    changed = await bare_shop.call("PATCH", "/api/processors/stripe", {"enabled": False, "priority": 100})
    assert changed.body == {**config, "enabled": False, "priority": 100, "updatedAt": changed.body["updatedAt"]}
    unchanged = await bare_shop.call("PATCH", "/api/processors/stripe", {})
    assert unchanged.body == {**changed.body, "updatedAt": unchanged.body["updatedAt"]}
    assert [each["processor"] for each in (await bare_shop.get("/api/processors")).body] == ["sandbox", "stripe"]
    removed = await bare_shop.call("DELETE", "/api/processors/stripe")
    assert (removed.status, removed.text) == (204, "")
    for method in ("PATCH", "DELETE"):
        assert (await bare_shop.call(method, "/api/processors/stripe", {})).code == "not_found"


@pytest.mark.parametrize(
    ("path", "content", "code"),
    [
        ("paypal", {"credentials": {}}, "invalid_processor"),
        ("paypal", {}, "invalid_processor"),
        ("%00", {"credentials": {}}, "invalid_processor"),
        ("stripe", {}, "validation_failed"),
        ("stripe", {"credentials": {"secretKey": 7}}, "validation_failed"),
        ("stripe", {"credentials": STRIPE, "priority": 0}, "validation_failed"),
        ("stripe", {"credentials": STRIPE, "priority": 101}, "validation_failed"),
        ("stripe", {"credentials": STRIPE, "priority": 1.0}, "validation_failed"),
        ("stripe", {"credentials": STRIPE, "priority": True}, "validation_failed"),
        ("stripe", {"credentials": STRIPE, "enabled": "yes"}, "validation_failed"),
        ("stripe", {"credentials": {}}, "invalid_credentials_fields"),
        ("stripe", {"credentials": {**STRIPE, "pin": "1"}}, "invalid_credentials_fields"),
    ],
)
async def test_a_config_that_cannot_be_is_refused(
    bare_shop: Shop, path: str, content: dict[str, object], code: str
) -> None:
    answer = await bare_shop.post(f"/api/processors/{path}", content)
    assert (answer.status, answer.code) == (400, code)
    assert (await bare_shop.get("/api/processors")).body == []


# Statistics.


async def test_statistics_of_nothing_have_every_day(bare_shop: Shop) -> None:
    figures = (await bare_shop.get("/api/dashboard/stats")).body
    assert (figures["totalVolume"], figures["totalTransactions"]) == (0, 0)
    assert (figures["successRate"], figures["averageTicket"], figures["byCurrency"]) == (0, 0, [])
    assert len(figures["volumeByDay"]) == 30
    assert figures["volumeByDay"][-1] == {"date": bare_shop.context.now().date().isoformat(), "volume": 0, "count": 0}
    assert figures["transactionsByStatus"] == figures["transactionsByProcessor"] == []


async def test_statistics_count_what_happened_by_currency(shop: Shop) -> None:
    await shop.paid_order(amount=1000)
    await shop.paid_order(amount=2001)
    await shop.paid_order("tok_decline_card_declined", amount=5000)
    await shop.order(amount=9999)
    await shop.paid_order(amount=77_000, currency="INR")
    figures = (await shop.get("/api/dashboard/stats")).body
    today = shop.context.now().date()
    assert figures["currency"] == "USD"
    assert (figures["totalVolume"], figures["totalTransactions"]) == (3001, 4)
    assert (figures["successRate"], figures["averageTicket"]) == (66.67, 1500)
    assert figures["volumeByDay"][-1] == {"date": today.isoformat(), "volume": 3001, "count": 4}
    assert figures["volumeByDay"][-2] == {
        "date": (today - timedelta(days=1)).isoformat(),
        "volume": 0,
        "count": 0,
    }
    assert figures["transactionsByStatus"] == [
        {"status": "captured", "count": 2},
        {"status": "failed", "count": 1},
        {"status": "pending", "count": 1},
    ]
    assert figures["transactionsByProcessor"] == [
        {"processor": "sandbox", "count": 3, "volume": 3001, "successRate": 66.67}
    ]
    assert [(each["currency"], each["totalVolume"]) for each in figures["byCurrency"]] == [
        ("USD", 3001),
        ("INR", 77_000),
    ]
    rupees = (await shop.get("/api/dashboard/stats?currency=inr")).body
    assert (rupees["currency"], rupees["totalVolume"], rupees["averageTicket"]) == ("INR", 77_000, 77_000)
    assert rupees["byCurrency"] == figures["byCurrency"]
    yen = (await shop.get("/api/dashboard/stats?currency=JPY")).body
    assert (yen["currency"], yen["totalVolume"], len(yen["volumeByDay"])) == ("JPY", 0, 30)


async def test_statistics_are_of_the_days_asked_for(shop: Shop) -> None:
    await shop.paid_order(amount=1000)
    today = shop.context.now().date()
    yesterday = today - timedelta(days=1)
    of_today = (await shop.get(f"/api/dashboard/stats?from={today}&to={today}")).body
    assert of_today["volumeByDay"] == [{"date": today.isoformat(), "volume": 1000, "count": 1}]
    before = (await shop.get(f"/api/dashboard/stats?from={yesterday}T00:00:00Z&to={today}T00:00:00Z")).body
    assert (before["totalVolume"], [day["date"] for day in before["volumeByDay"]]) == (0, [yesterday.isoformat()])


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("from=2026-01-02&to=2026-01-01", "validation_failed"),
        ("from=2020-01-01&to=2026-01-01", "validation_failed"),
        ("from=yesterday", "validation_failed"),
        ("to=9999-12-31", "validation_failed"),
        ("from=%00", "validation_failed"),
        ("currency=XXQ", "invalid_currency"),
    ],
)
async def test_statistics_that_cannot_be_are_refused(bare_shop: Shop, query: str, code: str) -> None:
    answer = await bare_shop.get(f"/api/dashboard/stats?{query}")
    assert (answer.status, answer.code) == (400, code)


# Orders in pages.


async def test_orders_come_in_numbered_pages(bare_shop: Shop) -> None:
    made = [await bare_shop.order(amount=100 + number) for number in range(5)]
    newest_first = sorted((order["id"] for order in made), reverse=True)
    first = (await bare_shop.get("/api/orders?limit=2")).body
    assert first["pagination"] == {"page": 1, "limit": 2, "total": 5, "totalPages": 3}
    last = (await bare_shop.get("/api/orders?page=3&limit=2")).body
    assert [order["id"] for order in first["data"]] == newest_first[:2]
    assert [order["id"] for order in last["data"]] == newest_first[4:]
    assert last["data"][0] in made
    beyond = (await bare_shop.get("/api/orders?page=4&limit=2")).body
    assert (beyond["data"], beyond["pagination"]["total"]) == ([], 5)


async def test_pages_of_nothing(bare_shop: Shop) -> None:
    assert (await bare_shop.get("/api/orders")).body == {
        "data": [],
        "pagination": {"page": 1, "limit": 20, "total": 0, "totalPages": 0},
    }


async def test_orders_are_filtered(shop: Shop) -> None:
    paid = await shop.paid_order(amount=1000)
    pending = await shop.order(amount=2000, currency="EUR", externalId="cart-7")
    for query, found in [
        ("status=captured", paid),
        ("status=pending", pending),
        ("processor=sandbox", paid),
        ("currency=eur", pending),
        ("externalId=cart-7", pending),
        ("status=pending&currency=EUR", pending),
    ]:
        page = (await shop.get(f"/api/orders?{query}")).body
        assert [order["id"] for order in page["data"]] == [found["id"]], query
        assert page["pagination"]["total"] == 1
    assert (await shop.get("/api/orders?status=pending&currency=USD")).body["data"] == []


@pytest.mark.parametrize("path", ["/api/orders", "/api/webhooks"])
@pytest.mark.parametrize(
    "query",
    ["page=0", "page=x", "page=99999999999999999999999", "limit=101", "limit=-1", "status=paid", "page=1&page=2"],
)
async def test_pages_that_cannot_be_are_refused(bare_shop: Shop, path: str, query: str) -> None:
    answer = await bare_shop.get(f"{path}?{query}")
    assert (answer.status, answer.code) == (400, "validation_failed")


# Webhooks out.

LOOPBACK = [{"webhook_allow_networks": "127.0.0.0/8"}]


@pytest.mark.parametrize("flags", LOOPBACK)
async def test_webhooks_are_listed_as_they_went_and_sent_again(shop: Shop, receiver: Receiver) -> None:
    assert (await shop.call("PUT", "/api/me", {"webhookUrl": receiver.url})).status == 200
    order = await shop.order()

    async def is_delivered() -> bool:
        found = (await shop.get("/api/webhooks?status=delivered")).body["data"]
        return len(found) == 1

    await eventually(is_delivered)
    listed = (await shop.get("/api/webhooks")).body
    assert listed["pagination"] == {"page": 1, "limit": 20, "total": 1, "totalPages": 1}
    (webhook,) = listed["data"]
    assert webhook["id"] == receiver.events[0]["id"]
    assert (webhook["orderId"], webhook["eventType"]) == (order["id"], "order.created")
    assert (webhook["status"], webhook["attempts"]) == ("delivered", 1)
    assert webhook["lastAttemptAt"] == webhook["deliveredAt"]
    assert webhook["createdAt"].endswith("Z")

    answer = await shop.post(f"/api/webhooks/{webhook['id']}/retry")
    assert (answer.status, answer.body) == (200, {"success": True})

    async def is_sent_again() -> bool:
        (again,) = (await shop.get("/api/webhooks")).body["data"]
        return (again["status"], again["attempts"]) == ("delivered", 2)

    await eventually(is_sent_again)
    assert receiver.events == [receiver.events[0]] * 2


@pytest.mark.parametrize("flags", LOOPBACK)
async def test_a_webhook_that_failed_is_pending_with_its_reason_and_may_be_hurried(
    shop: Shop, receiver: Receiver
) -> None:
    receiver.status = 500
    await shop.call("PUT", "/api/me", {"webhookUrl": receiver.url})
    await shop.order()

    async def is_tried() -> bool:
        rows = (await shop.get("/api/webhooks?status=pending")).body["data"]
        return len(rows) == 1 and rows[0]["attempts"] == 1

    await eventually(is_tried)
    (webhook,) = (await shop.get("/api/webhooks")).body["data"]
    assert (webhook["deliveredAt"], webhook["lastStatusCode"]) == (None, 500)
    assert (await shop.get("/api/webhooks?status=failed")).body["data"] == []
    receiver.status = 200
    await shop.post(f"/api/webhooks/{webhook['id']}/retry")

    async def is_delivered() -> bool:
        (again,) = (await shop.get("/api/webhooks")).body["data"]
        return bool(again["status"] == "delivered")

    await eventually(is_delivered)


async def test_only_what_can_be_sent_is_sent_again(served: Running, shop: Shop) -> None:
    await shop.order()
    (event,) = (await shop.get("/v1/events")).body["data"]
    nowhere = await shop.post(f"/api/webhooks/{event['id']}/retry")
    assert (nowhere.status, nowhere.code) == (400, "no_endpoint")
    for event_id in ("evt_none", "%00", "x" * 300):
        answer = await shop.post(f"/api/webhooks/{event_id}/retry")
        assert (answer.status, answer.code) == (404, "not_found")
    other = await open_shop(shop.session, served.url, served.context, name="other")
    assert (await other.post(f"/api/webhooks/{event['id']}/retry")).code == "not_found"


# Who may call.

READS = ["/api/me", "/api/api-keys", "/api/processors", "/api/dashboard/stats", "/api/orders", "/api/webhooks"]


@pytest.mark.parametrize("path", READS)
async def test_keys_and_people_may_read_and_nobody_else(bare_shop: Shop, path: str) -> None:
    assert (await bare_shop.get(path)).status == 200
    assert (await bare_shop.get(path, auth={"Authorization": f"Bearer {bare_shop.token}"})).status == 200
    for auth in ({}, {"X-API-Key": "sk_live_wrong"}, {"Authorization": f"Bearer {bare_shop.token}x"}):
        answer = await bare_shop.get(path, auth=auth)
        assert answer.status == 401
        assert answer.code


async def test_a_merchant_sees_nothing_of_another(served: Running, shop: Shop) -> None:
    await shop.paid_order()
    await shop.post("/api/processors/stripe", {"credentials": STRIPE})
    other = await open_shop(shop.session, served.url, served.context, name="other")
    assert (await other.get("/api/orders")).body["data"] == []
    assert (await other.get("/api/processors")).body == []
    assert (await other.get("/api/dashboard/stats")).body["totalTransactions"] == 0
    assert (await other.call("PATCH", "/api/processors/stripe", {"enabled": False})).code == "not_found"
    (key,) = (await shop.get("/api/api-keys")).body
    stolen = await other.call("DELETE", f"/api/api-keys/{key['id']}", auth={"Authorization": f"Bearer {other.token}"})
    assert stolen.code == "not_found"
    assert (await shop.get("/api/me")).status == 200
