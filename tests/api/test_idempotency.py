"""Idempotency-Key over HTTP: one effect and one answer, in parallel, after refusals and after a crash."""

import asyncio
from dataclasses import replace
from datetime import timedelta

from loop.domain.events import timestamp
from loop.storage import idempotency as rows
from loop.workflows import idempotency, refunds, retention
from loop.workflows.idempotency import LOCKED, KeyedRequest, StoredAnswer
from tests.api.client import Answer, Shop

APPROVED = {"paymentMethod": {"type": "card", "token": "tok_approve"}}


def key(name: str) -> dict[str, str]:
    return {"Idempotency-Key": name}


def is_replay(answer: Answer) -> bool:
    return answer.headers.get("Idempotent-Replayed") == "true"


async def test_the_same_request_is_answered_the_same(shop: Shop) -> None:
    wanted = {"amount": 5, "metadata": {"a": "é", "b": 1}}
    first = await shop.post("/v1/orders", wanted, headers=key("k"))
    again = await shop.post("/v1/orders", {"metadata": {"b": 1, "a": "é"}, "amount": 5}, headers=key("k"))
    assert (first.status, is_replay(first)) == (201, False)
    assert (again.status, is_replay(again)) == (201, True)
    assert again.text == first.text
    assert len((await shop.get("/v1/orders")).body["data"]) == 1


async def test_another_request_under_the_key_is_refused(shop: Shop, bare_shop: Shop) -> None:
    await shop.post("/v1/orders", {"amount": 5}, headers=key("k"))
    other = await shop.post("/v1/orders", {"amount": 6}, headers=key("k"))
    assert (other.status, other.code) == (409, "idempotency_key_reuse")
    session = {"amount": 5, "successUrl": "https://shop.example"}
    assert (await shop.post("/v1/checkout/sessions", session, headers=key("k"))).code == "idempotency_key_reuse"
    order = (await shop.get("/v1/orders")).body["data"][0]
    assert (await shop.post(f"/v1/orders/{order['id']}/pay", {}, headers=key("k"))).code == "idempotency_key_reuse"
    assert (await bare_shop.post("/v1/orders", {"amount": 7}, headers=key("k"))).status == 201


async def test_fifty_at_once_make_one_order(shop: Shop) -> None:
    answers = await asyncio.gather(*(shop.post("/v1/orders", {"amount": 5}, headers=key("k")) for _ in range(50)))
    assert {answer.status for answer in answers} == {201}
    assert len({answer.body["id"] for answer in answers}) == 1
    assert sum(not is_replay(answer) for answer in answers) == 1
    assert len((await shop.get("/v1/orders")).body["data"]) == 1


async def test_fifty_at_once_make_one_payment(shop: Shop) -> None:
    order = await shop.order()
    path = f"/v1/orders/{order['id']}/pay"
    answers = await asyncio.gather(*(shop.post(path, APPROVED, headers=key("k")) for _ in range(50)))
    for answer in answers:
        if answer.status == 409:
            assert answer.code == "idempotency_in_progress"
            assert int(answer.headers["Retry-After"]) >= 1
        else:
            assert (answer.status, answer.body["status"]) == (200, "captured")
    again = await shop.post(path, APPROVED, headers=key("k"))
    assert (again.status, is_replay(again), again.body["status"]) == (200, True, "captured")
    assert len((await shop.get(f"/v1/orders/{order['id']}/transactions")).body) == 1


async def test_one_refund_for_one_key(shop: Shop) -> None:
    order = await shop.paid_order()
    path = f"/v1/orders/{order['id']}/refund"
    first = await shop.post(path, {"amount": 100}, headers=key("k"))
    again = await shop.post(path, {"amount": 100}, headers=key("k"))
    assert (first.status, again.status, again.text) == (201, 201, first.text)
    assert (await shop.post(path, {"amount": 100}, headers=key("other"))).body["refundId"] != first.body["refundId"]
    assert (await shop.get(f"/v1/orders/{order['id']}")).body["amountRefunded"] == 200


async def test_capture_cancel_and_checkout_take_keys_too(shop: Shop) -> None:
    held = await shop.paid_order(captureMethod="manual")
    pending = await shop.order()
    session = {"amount": 5, "successUrl": "https://shop.example"}
    for path, content in (
        (f"/v1/orders/{held['id']}/capture", {"amount": 5}),
        (f"/v1/orders/{pending['id']}/cancel", {}),
        ("/v1/checkout/sessions", session),
    ):
        first = await shop.post(path, content, headers=key(path))
        again = await shop.post(path, content, headers=key(path))
        assert first.status in (200, 201), first.text
        assert (again.status, again.text, is_replay(again)) == (first.status, first.text, True)


async def test_a_refusal_leaves_the_key_free(shop: Shop, bare_shop: Shop) -> None:
    assert (await shop.post("/v1/orders", {"amount": 0}, headers=key("k"))).code == "validation_failed"
    assert (await shop.post("/v1/orders", {"amount": 1}, headers=key("k"), auth={})).code == "missing_credentials"
    assert (await shop.post("/v1/orders", {"amount": 1}, headers=key("k"))).status == 201
    order = await bare_shop.order()
    path = f"/v1/orders/{order['id']}/pay"
    assert (await bare_shop.post(path, APPROVED, headers=key("p"))).code == "no_processor"
    await bare_shop.use_sandbox()
    paid = await bare_shop.post(path, APPROVED, headers=key("p"))
    assert (paid.body["status"], is_replay(paid)) == ("captured", False)


async def test_an_answer_is_repeated_though_the_request_would_be_refused_by_now(shop: Shop) -> None:
    order = await shop.order()
    page = {"orderId": order["id"], "successUrl": "https://shop.example"}
    expires_at = timestamp(shop.context.now() + timedelta(seconds=1))
    first = [
        await shop.post("/v1/checkout/sessions", page, headers=key("page")),
        await shop.post("/v1/orders", {"amount": 5, "expiresAt": expires_at}, headers=key("order")),
    ]
    await shop.post(f"/v1/orders/{order['id']}/pay", APPROVED)
    await asyncio.sleep(1.1)
    again = [
        await shop.post("/v1/checkout/sessions", page, headers=key("page")),
        await shop.post("/v1/orders", {"amount": 5, "expiresAt": expires_at}, headers=key("order")),
    ]
    assert [(each.status, each.text, is_replay(each)) for each in again] == [(201, each.text, True) for each in first]
    assert (await shop.post("/v1/checkout/sessions", page, headers=key("new"))).code == "invalid_status"
    assert (await shop.post("/v1/checkout/sessions", page)).code == "invalid_status"
    other = {**page, "cancelUrl": "https://shop.example/basket"}
    assert (await shop.post("/v1/checkout/sessions", other, headers=key("page"))).code == "idempotency_key_reuse"
    past = await shop.post("/v1/orders", {"amount": 5, "expiresAt": expires_at}, headers=key("late"))
    assert past.code == "validation_failed"


BAD_KEYS: list[str] = ["", "x" * 256, "4242424242424242", "é\x9f"]


async def test_a_bad_key_is_refused(shop: Shop) -> None:
    for name in BAD_KEYS:
        answer = await shop.post("/v1/orders", {"amount": 1}, headers=key(name))
        assert answer.status == 400, name
        assert answer.code in ("invalid_idempotency_key", "raw_card_data")
    assert (await shop.get("/v1/orders")).body["data"] == []
    assert (await shop.post("/v1/orders", {"amount": 1}, headers=key("x" * 255))).status == 201


async def abandon(shop: Shop, name: str, path: str, body: str, *, is_dead: bool) -> None:
    """Leave a key as a process leaves it that runs the request, or that died while it did."""
    keyed = KeyedRequest(shop.merchant.id, name, idempotency.fingerprint("POST", path, body=body))
    began = shop.context.now() - (LOCKED + timedelta(seconds=1) if is_dead else timedelta(seconds=1))
    claimed = await idempotency.claim(replace(shop.context, now=lambda: began), keyed, None)
    assert not isinstance(claimed, StoredAnswer)


async def test_a_running_request_is_waited_for(shop: Shop) -> None:
    order = await shop.order()
    path = f"/v1/orders/{order['id']}/refund"
    await abandon(shop, "k", path, "{}", is_dead=False)
    answer = await shop.post(path, {}, headers=key("k"))
    assert (answer.status, answer.code, answer.headers["Retry-After"]) == (409, "idempotency_in_progress", "1")
    assert (await shop.post(path, {"amount": 1}, headers=key("k"))).code == "idempotency_key_reuse"


async def test_after_a_crash_a_payment_is_answered_as_it_stands(shop: Shop) -> None:
    fresh, paid = await shop.order(), await shop.order()
    for order in (fresh, paid):
        await abandon(shop, order["id"], f"/v1/orders/{order['id']}/pay", "{}", is_dead=True)
    await shop.post(f"/v1/orders/{paid['id']}/pay", APPROVED)
    for order, status in ((fresh, "requires_action"), (paid, "captured")):
        path = f"/v1/orders/{order['id']}/pay"
        taken_over = await shop.post(path, {}, headers=key(order["id"]))
        assert (taken_over.status, taken_over.body["status"], is_replay(taken_over)) == (200, status, False)
        again = await shop.post(path, {}, headers=key(order["id"]))
        assert (again.text, is_replay(again)) == (taken_over.text, True)


async def test_after_a_crash_a_refund_is_not_made_again(shop: Shop) -> None:
    order = await shop.paid_order()
    path = f"/v1/orders/{order['id']}/refund"
    refund_id = shop.context.new_id("ref")
    await abandon_now(shop, path, '{"amount":100}', refund_id=refund_id)
    await refunds.refund(
        shop.context, shop.merchant.id, order["id"], amount_minor=100, reason=None, wait_s=5, refund_id=refund_id
    )
    other = await shop.post(path, {"amount": 100})
    taken_over = await shop.post(path, {"amount": 100}, headers=key("k"))
    assert (taken_over.status, taken_over.body["refundId"]) == (201, refund_id)
    assert other.body["refundId"] != refund_id
    assert (await shop.get(f"/v1/orders/{order['id']}")).body["amountRefunded"] == 200


async def abandon_now(shop: Shop, path: str, body: str, *, refund_id: str | None = None) -> None:
    """Leave the key `k` as a process leaves it that began just now and is known to be dead."""
    keyed = KeyedRequest(shop.merchant.id, "k", idempotency.fingerprint("POST", path, body=body))
    now = shop.context.now()
    row = rows.IdempotencyKey(shop.merchant.id, True, "k", keyed.fingerprint, refund_id, None, None, now, now)
    async with shop.context.database.transaction() as session:
        assert await rows.claim(session, row)


async def test_after_a_crash_an_unmade_refund_is_made(shop: Shop) -> None:
    order = await shop.paid_order()
    path = f"/v1/orders/{order['id']}/refund"
    await abandon_now(shop, path, "{}")
    taken_over = await shop.post(path, {}, headers=key("k"))
    assert (taken_over.status, taken_over.body["amount"]) == (201, 4999)


async def test_after_a_crash_capture_and_cancel_are_answered_as_they_stand(shop: Shop) -> None:
    for name, status in (("capture", "captured"), ("cancel", "cancelled")):
        order = await shop.paid_order(captureMethod="manual")
        path = f"/v1/orders/{order['id']}/{name}"
        await abandon(shop, name, path, "{}", is_dead=True)
        assert (await shop.post(path, {})).body["status"] == status
        taken_over = await shop.post(path, {}, headers=key(name))
        assert (taken_over.status, taken_over.body["status"]) == (200, status)


async def test_keys_are_kept_for_a_day_at_least(shop: Shop) -> None:
    await shop.post("/v1/orders", {"amount": 5}, headers=key("k"))
    now = shop.context.now()
    tomorrow = replace(shop.context, now=lambda: now + timedelta(hours=25))
    assert await retention.purge_keys(tomorrow) == 0
    assert is_replay(await shop.post("/v1/orders", {"amount": 5}, headers=key("k")))
    assert await retention.purge_keys(replace(shop.context, now=lambda: now + timedelta(days=3))) == 1
    assert not is_replay(await shop.post("/v1/orders", {"amount": 5}, headers=key("k")))
