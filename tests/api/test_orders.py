"""Orders over HTTP: create, list, read, pay, capture, cancel, and what the contract fixes of each answer."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from tests.api.client import Shop

ORDER_FIELDS = {
    "id", "externalId", "amount", "currency", "status", "processor", "processorOrderId", "metadata", "createdAt",
    "updatedAt", "customerId", "customerEmail", "description", "returnUrl", "cancelUrl", "captureMethod",
    "amountAuthorized", "amountCaptured", "amountRefunded", "amountDisputed", "disputed", "attemptCount", "lastError",
    "needsReview", "expiresAt", "testMode",
}  # fmt: skip
UNICODE = 'Zoë 🛒 \u202eRTL‍\u200d \n "quoted" \\ </script>'


def card(token: str) -> dict[str, Any]:
    return {"paymentMethod": {"type": "card", "token": token}}


async def test_an_order_is_created_as_the_contract_says(shop: Shop) -> None:
    answer = await shop.post("/v1/orders", {"amount": 4999})
    order = answer.body
    assert answer.status == 201
    assert set(order) == ORDER_FIELDS
    assert order["id"].startswith("ord_")
    assert order["externalId"]
    assert (order["amount"], order["currency"], order["status"]) == (4999, "USD", "pending")
    assert (order["processor"], order["processorOrderId"], order["lastError"]) == (None, None, None)
    assert (order["metadata"], order["captureMethod"], order["attemptCount"]) == ({}, "automatic", 0)
    assert order["createdAt"].endswith("Z")
    assert order["updatedAt"] == order["createdAt"]


async def test_what_was_sent_comes_back_to_the_character(shop: Shop) -> None:
    sent: dict[str, Any] = {
        "amount": 10**12,
        "currency": "eur",
        "externalId": UNICODE,
        "customerId": "c-1",
        "customerEmail": "zoë@example.com",
        "description": UNICODE,
        "metadata": {"b": [1, 2.5, None, True, {"z": UNICODE}], "a": "", UNICODE: -(2**63)},
        "returnUrl": "https://shop.example/back?a=1&b=%20#x",
        "cancelUrl": "http://localhost:3000/cancel",
        "captureMethod": "manual",
        "country": "de",
    }
    created = await shop.post("/v1/orders", sent)
    assert created.status == 201, created.text
    read = (await shop.get(f"/v1/orders/{created.body['id']}")).body
    assert read == created.body
    assert list(read["metadata"]) == list(sent["metadata"])
    for name in set(sent) - {"country", "currency"}:
        assert read[name] == sent[name]
    assert read["currency"] == "EUR"


async def test_an_order_may_end_by_itself(shop: Shop) -> None:
    soon = (datetime.now(UTC) + timedelta(hours=3)).replace(microsecond=0)  # noqa: TID251 - the server's own clock
    order = await shop.order(expiresAt=soon.astimezone(timezone(timedelta(hours=5))).isoformat())
    assert order["expiresAt"] == soon.isoformat().replace("+00:00", ".000Z")


async def test_an_order_can_be_read_by_its_merchant_only(shop: Shop, bare_shop: Shop) -> None:
    order = await shop.order()
    absent = await bare_shop.get("/v1/orders/ord_01234567890123456789abcdef")
    assert (absent.status, absent.code) == (404, "not_found")
    for path in (f"/v1/orders/{order['id']}", "/v1/orders/%00", "/v1/orders/%F0%9F%9B%92", f"/v1/orders/{'x' * 300}"):
        foreign = await bare_shop.get(path)
        assert foreign.status == 404
        assert {**foreign.body, "requestId": ""} == {**absent.body, "requestId": ""}
    calls = ("pay", "capture", "cancel", "refund")
    for name in calls:
        assert (await bare_shop.post(f"/v1/orders/{order['id']}/{name}", {})).code == "not_found"
    for name in ("refunds", "transactions", "timeline"):
        assert (await bare_shop.get(f"/v1/orders/{order['id']}/{name}")).code == "not_found"


async def test_orders_are_listed_newest_first_from_a_cursor_on(shop: Shop, bare_shop: Shop) -> None:
    await bare_shop.order()
    made = [(await shop.order(amount=100 + n, externalId=f"e{n}"))["id"] for n in range(5)]
    made.sort()  # what is made in one millisecond is in no other order
    first = (await shop.get("/v1/orders?limit=3")).body
    assert [order["id"] for order in first["data"]] == made[:1:-1]
    assert (first["hasMore"], first["nextCursor"]) == (True, made[2])
    rest = (await shop.get(f"/v1/orders?limit=3&cursor={first['nextCursor']}")).body
    assert [order["id"] for order in rest["data"]] == [made[1], made[0]]
    assert (rest["hasMore"], rest["nextCursor"]) == (False, None)
    found = (await shop.get("/v1/orders?externalId=e3&status=pending&currency=usd&amountMin=103&amountMax=103")).body
    assert [order["externalId"] for order in found["data"]] == ["e3"]
    assert (await shop.get("/v1/orders?createdFrom=2999-01-01")).body["data"] == []
    assert len((await shop.get("/v1/orders?createdTo=2999-01-01T00:00:00Z")).body["data"]) == 5


BAD_QUERIES = [
    "limit=0", "limit=101", "limit=x", "limit=1&limit=2", "limit=%C2%B2", "cursor=%00", "cursor=a'b", "status=paid",
    "createdFrom=yesterday", "createdFrom=2030-01-01T00:00:00", "amountMin=-1", "amountMin=1.5", "externalId=%FF",
    f"externalId={'x' * 256}", f"amountMax={'9' * 30}", "externalId=4242424242424242",
]  # fmt: skip


async def test_a_bad_query_is_refused(shop: Shop) -> None:
    for query in BAD_QUERIES:
        answer = await shop.get(f"/v1/orders?{query}")
        assert answer.status == 400, answer.text
        assert answer.code in ("validation_failed", "raw_card_data")


async def test_a_payment_is_captured_at_once(shop: Shop) -> None:
    order = await shop.order()
    paid = await shop.post(f"/v1/orders/{order['id']}/pay", card("tok_approve"))
    assert paid.status == 200
    assert paid.body == {
        "orderId": order["id"],
        "status": "captured",
        "processor": "sandbox",
        "workflowId": f"payment-{order['id']}",
        "attempt": 1,
    }
    read = (await shop.get(f"/v1/orders/{order['id']}")).body
    assert (read["status"], read["amountCaptured"], read["attemptCount"]) == ("captured", 4999, 1)
    assert read["processorOrderId"]
    (row,) = (await shop.get(f"/v1/orders/{order['id']}/transactions")).body
    assert set(row) == {
        "id", "orderId", "type", "amount", "status", "processor", "processorTransactionId", "errorCode",
        "errorMessage", "createdAt",
    }  # fmt: skip
    assert (row["type"], row["status"], row["amount"], row["orderId"]) == ("capture", "success", 4999, order["id"])


async def test_a_declined_payment_is_no_error_and_may_be_tried_again(shop: Shop) -> None:
    order = await shop.order()
    path = f"/v1/orders/{order['id']}/pay"
    declined = await shop.post(path, card("tok_decline_insufficient_funds"))
    assert declined.status == 200
    assert declined.body["status"] == "failed"
    assert (declined.body["errorCode"], declined.body["declineCategory"]) == ("insufficient_funds", "later")
    assert declined.body["errorMessage"]
    assert declined.body["customerMessage"]
    read = (await shop.get(f"/v1/orders/{order['id']}")).body
    assert read["lastError"]["code"] == "insufficient_funds"
    assert (await shop.post(path, card("tok_approve"))).code == "invalid_status"
    again = await shop.post(path, {**card("tok_approve"), "retry": True})
    assert (again.body["status"], again.body["attempt"]) == ("captured", 2)
    assert (await shop.post(path, {**card("tok_approve"), "retry": True})).code == "invalid_status"


async def test_a_payment_without_a_method_is_prepared_for_the_browser(shop: Shop) -> None:
    nothing: dict[str, object] = {}
    for content in (None, nothing):
        order = await shop.order()
        prepared = await shop.post(f"/v1/orders/{order['id']}/pay", content)
        assert (prepared.status, prepared.body["status"]) == (200, "requires_action")
        assert prepared.body["redirectUrl"].startswith(f"{shop.url}/sandbox/payments/")


async def test_only_a_pending_order_is_paid(shop: Shop) -> None:
    order = await shop.paid_order()
    refused = await shop.post(f"/v1/orders/{order['id']}/pay", card("tok_approve"))
    assert (refused.status, refused.code) == (400, "invalid_status")


async def test_without_a_processor_the_order_stays_pending(bare_shop: Shop) -> None:
    order = await bare_shop.order()
    refused = await bare_shop.post(f"/v1/orders/{order['id']}/pay", card("tok_approve"))
    assert (refused.status, refused.code) == (400, "no_processor")
    assert (await bare_shop.get(f"/v1/orders/{order['id']}")).body["status"] == "pending"


async def test_a_processor_can_be_forced(shop: Shop) -> None:
    order = await shop.order()
    path = f"/v1/orders/{order['id']}/pay"
    assert (await shop.post(path, {**card("tok_approve"), "processor": "stripe"})).code == "no_processor"
    assert (await shop.post(path, {**card("tok_approve"), "processor": "sandbox"})).body["status"] == "captured"


async def test_pay_waits_no_longer_than_asked(shop: Shop) -> None:
    order = await shop.order()
    path = f"/v1/orders/{order['id']}"
    started = await shop.post(f"{path}/pay", {**card("tok_slow"), "wait": 0})
    assert (started.status, started.body["status"]) == (200, "processing")
    slow = await shop.order()
    waited = await shop.post(f"/v1/orders/{slow['id']}/pay", card("tok_slow"))
    assert waited.body["status"] == "captured"
    for wait in (-1, 31, 1.5, "1", True):
        assert (await shop.post(f"{path}/pay", {"wait": wait})).code == "validation_failed"


async def test_a_held_payment_is_captured_in_part(shop: Shop) -> None:
    order = await shop.paid_order(captureMethod="manual")
    assert (order["status"], order["amountAuthorized"], order["amountCaptured"]) == ("authorized", 4999, 0)
    path = f"/v1/orders/{order['id']}/capture"
    assert (await shop.post(path, {"amount": 5000})).code == "capture_exceeds_authorized"
    captured = await shop.post(path, {"amount": 1999})
    assert (captured.status, captured.body["status"], captured.body["amountCaptured"]) == (200, "captured", 1999)
    assert (await shop.post(path)).code == "invalid_status"
    kinds = [row["type"] for row in (await shop.get(f"/v1/orders/{order['id']}/transactions")).body]
    assert kinds == ["capture", "authorization"]


async def test_an_order_is_cancelled(shop: Shop) -> None:
    held = await shop.paid_order(captureMethod="manual")
    voided = await shop.post(f"/v1/orders/{held['id']}/cancel", {"reason": "out of stock"})
    assert (voided.status, voided.body["status"], voided.body["amountAuthorized"]) == (200, "cancelled", 0)
    pending = await shop.order()
    assert (await shop.post(f"/v1/orders/{pending['id']}/cancel")).body["status"] == "cancelled"
    assert (await shop.post(f"/v1/orders/{pending['id']}/cancel")).code == "invalid_status"
    paid = await shop.paid_order()
    assert (await shop.post(f"/v1/orders/{paid['id']}/cancel", {})).code == "invalid_status"


async def test_the_timeline_tells_everything_in_order(shop: Shop) -> None:
    order = await shop.paid_order()
    await shop.post(f"/v1/orders/{order['id']}/refund", {"amount": 1})
    entries = (await shop.get(f"/v1/orders/{order['id']}/timeline")).body
    assert {entry["kind"] for entry in entries} >= {"attempt", "transaction", "event", "refund"}
    assert [entry["at"] for entry in entries] == sorted(entry["at"] for entry in entries)


async def test_a_dashboard_token_may_call_too(shop: Shop) -> None:
    order = await shop.order()
    for auth in ({"Authorization": f"Bearer {shop.token}"}, {"Authorization": f"Bearer {shop.key}"}):
        assert (await shop.get(f"/v1/orders/{order['id']}", auth=auth)).status == 200
