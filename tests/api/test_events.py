"""Events over HTTP: what webhooks carried, in lists and one by one."""

import json

from loop.storage import webhooks
from tests.api.client import Shop


async def test_events_are_what_webhooks_carry(shop: Shop, bare_shop: Shop) -> None:
    order = await shop.paid_order(metadata={"é": 1})
    listed = (await shop.get("/v1/events")).body
    assert sorted(event["eventType"] for event in listed["data"]) == [
        "order.created", "payment.captured", "payment.processing",
    ]  # fmt: skip
    event = next(event for event in listed["data"] if event["eventType"] == "payment.captured")
    assert set(event) == {
        "id", "eventType", "orderId", "externalId", "amount", "currency", "status", "processor", "createdAt", "seq",
        "testMode", "payload",
    }  # fmt: skip
    assert (event["orderId"], event["status"], event["amount"]) == (order["id"], "captured", 4999)
    one = await shop.get(f"/v1/events/{event['id']}")
    assert one.body == event
    async with shop.context.database.reading() as reader:
        stored = await webhooks.event(reader, shop.merchant.id, event["id"])
    assert stored is not None
    assert one.text == stored.body
    assert json.loads(one.text)["payload"]["metadata"] == {"é": 1}
    for path in (f"/v1/events/{event['id']}", "/v1/events/evt_nothing", "/v1/events/%00"):
        answer = await bare_shop.get(path)
        assert (answer.status, answer.code) == (404, "not_found")
    assert (await bare_shop.get("/v1/events")).body == {"data": [], "hasMore": False, "nextCursor": None}


async def test_events_are_read_from_a_cursor_on(shop: Shop) -> None:
    for _ in range(3):
        await shop.order()
    first = (await shop.get("/v1/events?limit=2")).body
    rest = (await shop.get(f"/v1/events?limit=2&cursor={first['nextCursor']}")).body
    assert (first["hasMore"], rest["hasMore"], rest["nextCursor"]) == (True, False, None)
    ids = [event["id"] for event in first["data"] + rest["data"]]
    assert len(ids) == 3
    assert ids == sorted(ids, reverse=True)
