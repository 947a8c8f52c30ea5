"""Refunds over HTTP: whole, in parts, too much, at once, and how each is listed."""

import asyncio

from tests.api.client import Shop


async def test_a_refund_gives_back_all_that_is_left(shop: Shop) -> None:
    order = await shop.paid_order()
    path = f"/v1/orders/{order['id']}"
    part = await shop.post(f"{path}/refund", {"amount": 1000, "reason": "one was broken"})
    assert part.status == 201
    assert part.body == {
        "refundId": part.body["refundId"],
        "orderId": order["id"],
        "amount": 1000,
        "status": "success",
    }
    assert part.body["refundId"].startswith("ref_")
    assert (await shop.get(path)).body["status"] == "partially_refunded"
    too_much = await shop.post(f"{path}/refund", {"amount": 4000})
    assert (too_much.status, too_much.code) == (400, "refund_exceeds_captured")
    rest = await shop.post(f"{path}/refund")
    assert (rest.status, rest.body["amount"]) == (201, 3999)
    read = (await shop.get(path)).body
    assert (read["status"], read["amountRefunded"]) == ("refunded", 4999)
    assert (await shop.post(f"{path}/refund", {})).code == "invalid_status"
    listed = (await shop.get(f"{path}/refunds")).body
    assert [set(refund) for refund in listed] == [
        {"refundId", "orderId", "amount", "status", "reason", "createdAt"}
    ] * 2
    assert [(refund["amount"], refund["reason"]) for refund in listed] == [(3999, None), (1000, "one was broken")]


async def test_only_captured_money_is_refunded(shop: Shop) -> None:
    order = await shop.order()
    refused = await shop.post(f"/v1/orders/{order['id']}/refund", {"amount": 1})
    assert (refused.status, refused.code) == (400, "invalid_status")
    assert (await shop.get(f"/v1/orders/{order['id']}/refunds")).body == []


async def test_a_refund_may_be_pending(shop: Shop) -> None:
    order = await shop.paid_order("tok_refund_pending")
    refund = await shop.post(f"/v1/orders/{order['id']}/refund", {})
    assert (refund.status, refund.body["status"]) == (201, "pending")


async def test_refunds_at_once_never_exceed_what_was_captured(shop: Shop) -> None:
    order = await shop.paid_order(amount=1000)
    path = f"/v1/orders/{order['id']}/refund"
    answers = await asyncio.gather(*(shop.post(path, {"amount": 300}) for _ in range(10)))
    assert sorted(answer.status for answer in answers) == [201] * 3 + [400] * 7
    assert (await shop.get(f"/v1/orders/{order['id']}")).body["amountRefunded"] == 900


async def test_a_bad_refund_is_refused(shop: Shop) -> None:
    order = await shop.paid_order()
    for content in ({"amount": 0}, {"amount": -1}, {"amount": 1.5}, {"amount": "1"}, {"amount": True},
                    {"reason": "x" * 501}, {"amout": 1}):  # fmt: skip
        refused = await shop.post(f"/v1/orders/{order['id']}/refund", content)
        assert (refused.status, refused.code) == (400, "validation_failed"), content
    assert (await shop.get(f"/v1/orders/{order['id']}/refunds")).body == []
