"""Refunds over the sandbox: reserved first, sent once, and never more than was captured."""

import asyncio
import json

import pytest

from loop.domain.errors import LoopError
from loop.domain.orders import OrderStatus
from loop.domain.refunds import RefundOutcome, RefundStatus
from loop.storage.jobs import LEASE
from tests.builders import Clock, Shop, open_shop, work_off

SILENCE = RefundOutcome(RefundStatus.UNKNOWN, error_message="no answer")


async def test_a_part_and_then_the_rest(shop: Shop) -> None:
    order = (await shop.paid()).order
    first = await shop.refund(order.id, 300, "too small")
    assert (first.status, first.amount_minor, first.reason) == (RefundStatus.SUCCEEDED, 300, "too small")
    assert first.processor_reference is not None
    now = (await shop.now(order.id)).order
    assert (now.status, now.amount_refunded_minor) == (OrderStatus.PARTIALLY_REFUNDED, 300)
    second = await shop.refund(order.id)
    assert second.amount_minor == 700
    now = (await shop.now(order.id)).order
    assert (now.status, now.amount_refunded_minor, now.amount_refund_reserved_minor) == (
        OrderStatus.REFUNDED, 1_000, 1_000,
    )  # fmt: skip
    assert [row.id for row in await shop.refunds(order.id)] == [first.id, second.id]
    assert (await shop.event_types(order.id))[3:] == ["refund.created", "refund.processed"] * 2
    rows = [(row.type, row.amount_minor, row.refund_id) for row in await shop.transactions(order.id)][1:]
    assert rows == [("refund", 300, first.id), ("refund", 700, second.id)]
    assert shop.moved("refund") == [300, 700]
    assert await shop.jobs(first.id) == []


async def test_what_the_merchant_is_told_of_a_refund(shop: Shop) -> None:
    order = (await shop.paid()).order
    refund = await shop.refund(order.id, 300, "too small")
    created, processed = [json.loads(event.body) for event in await shop.events(order.id)][3:]
    for told in (created, processed):
        payload = told["payload"]
        assert (payload["refundId"], payload["refundAmount"], payload["reason"]) == (refund.id, 300, "too small")
    assert (created["status"], created["payload"]["amountRefunded"]) == ("captured", 0)
    assert (processed["status"], processed["payload"]["amountRefunded"]) == ("partially_refunded", 300)


async def test_a_part_that_was_captured_is_all_that_is_refunded(shop: Shop) -> None:
    order = (await shop.paid(is_manual_capture=True)).order
    await shop.capture(order.id, 600)
    with pytest.raises(LoopError, match="refund_exceeds_captured"):
        await shop.refund(order.id, 601)
    await shop.refund(order.id)
    assert (await shop.now(order.id)).order.status is OrderStatus.REFUNDED
    assert shop.moved("refund") == [600]


@pytest.mark.parametrize("asked", [1_001, 0, -1])
async def test_too_much_or_nothing_is_refused_before_anybody_is_asked(shop: Shop, asked: int) -> None:
    order = (await shop.paid()).order
    with pytest.raises(LoopError, match="refund_exceeds_captured"):
        await shop.refund(order.id, asked)
    assert (await shop.now(order.id)).order == order
    assert (await shop.refunds(order.id), shop.sandbox.called("refund")) == ([], [])


async def test_only_captured_money_of_one_s_own_is_refunded(shop: Shop) -> None:
    held = (await shop.paid(is_manual_capture=True)).order
    refunded = (await shop.paid()).order
    await shop.refund(refunded.id)
    for order_id in ((await shop.order()).id, held.id, refunded.id):
        with pytest.raises(LoopError, match="invalid_status"):
            await shop.refund(order_id)
    other = await open_shop(shop.context, shop.clock, number=2)
    for order_id in (refunded.id, "ord_of_nobody"):
        with pytest.raises(LoopError, match="not_found"):
            await other.refund(order_id)


async def test_of_twenty_refunds_of_it_all_at_once_one_succeeds(shop: Shop) -> None:
    order = (await shop.paid()).order
    outcomes = await asyncio.gather(*(shop.refund(order.id, 1_000) for _ in range(20)), return_exceptions=True)
    errors = [outcome.code for outcome in outcomes if isinstance(outcome, LoopError)]
    assert len(errors) == 19
    assert set(errors) <= {"refund_exceeds_captured", "invalid_status"}
    assert len(await shop.refunds(order.id)) == 1
    assert shop.moved("refund") == [1_000]
    assert (await shop.now(order.id)).order.status is OrderStatus.REFUNDED


async def test_many_parts_at_once_never_add_up_to_more(shop: Shop) -> None:
    order = (await shop.paid()).order
    outcomes = await asyncio.gather(*(shop.refund(order.id, 300) for _ in range(10)), return_exceptions=True)
    assert sum(not isinstance(outcome, LoopError) for outcome in outcomes) == 3
    now = (await shop.now(order.id)).order
    assert (now.amount_refunded_minor, now.amount_refund_reserved_minor) == (900, 900)
    assert shop.moved("refund") == [300] * 3


async def test_a_pending_refund_succeeds_later(shop: Shop, clock: Clock) -> None:
    order = (await shop.paid("tok_refund_pending")).order
    refund = await shop.refund(order.id, 400)
    assert refund.status is RefundStatus.PENDING
    now = (await shop.now(order.id)).order
    assert (now.status, now.amount_refunded_minor, now.amount_refund_reserved_minor) == (OrderStatus.CAPTURED, 0, 400)
    with pytest.raises(LoopError, match="refund_exceeds_captured"):
        await shop.refund(order.id, 601)
    clock.forward(seconds=2)
    await work_off(shop.context)
    (refund,) = await shop.refunds(order.id)
    assert refund.status is RefundStatus.SUCCEEDED
    assert (await shop.now(order.id)).order.status is OrderStatus.PARTIALLY_REFUNDED
    assert len(shop.sandbox.called("refund")) == 1
    assert (await shop.event_types(order.id))[3:] == ["refund.created", "refund.processed"]


async def test_a_pending_refund_that_fails_can_be_asked_for_again(shop: Shop, clock: Clock) -> None:
    order = (await shop.paid("tok_refund_fails_later")).order
    await shop.refund(order.id)
    clock.forward(seconds=2)
    await work_off(shop.context)
    (refund,) = await shop.refunds(order.id)
    assert (refund.status, refund.error_code) == (RefundStatus.FAILED, "refund_refused")
    now = (await shop.now(order.id)).order
    assert (now.status, now.amount_refund_reserved_minor) == (OrderStatus.CAPTURED, 0)
    told = json.loads((await shop.events(order.id))[-1].body)
    assert (told["eventType"], told["payload"]["errorCode"]) == ("refund.failed", "refund_refused")
    assert (await shop.transactions(order.id))[-1].status == "failed"
    assert (await shop.refund(order.id)).status is RefundStatus.PENDING


@pytest.mark.parametrize("is_done", [True, False])
@pytest.mark.parametrize("answer", [SILENCE, RuntimeError("a bug")])
async def test_a_refund_that_is_not_answered_is_repeated_under_its_key(
    shop: Shop, clock: Clock, is_done: bool, answer: RefundOutcome | Exception
) -> None:
    order = (await shop.paid()).order
    shop.next_answers("refund", answer, is_done=is_done)
    refund = await shop.refund(order.id, 400)
    assert refund.status is RefundStatus.UNKNOWN
    assert (await shop.now(order.id)).order.amount_refund_reserved_minor == 400
    clock.forward(seconds=2)
    await work_off(shop.context)
    (refund,) = await shop.refunds(order.id)
    assert refund.status is RefundStatus.SUCCEEDED
    assert shop.moved("refund") == [400]
    first, second = shop.sandbox.called("refund")
    assert first == second


async def test_a_refund_that_stays_unclear_is_asked_about_for_ever_and_shown_to_a_person(
    shop: Shop, clock: Clock
) -> None:
    order = (await shop.paid()).order
    shop.next_answers("refund", *[SILENCE] * 50)
    shop.next_answers("fetch_refund", *[SILENCE] * 50)
    refund = await shop.refund(order.id)
    for _ in range(40):
        (asking,) = await shop.jobs(refund.id)
        assert asking.failures == 0
        clock.at = asking.run_at
        await work_off(shop.context)
    assert (await shop.now(order.id)).order.needs_review
    assert len({key for _, key in shop.sandbox.called("refund")}) == 1
    assert shop.sandbox.called("fetch_refund")  # by now the processor has forgotten the key
    assert (await shop.refunds(order.id))[0].status is RefundStatus.UNKNOWN


async def test_a_process_that_dies_before_the_refund_is_succeeded(shop: Shop, clock: Clock) -> None:
    order = (await shop.paid()).order
    shop.wait_s = 0
    shop.hang_next("refund")
    await shop.refund(order.id, 400)
    await shop.until_called("refund")
    await shop.lose_process()
    assert shop.moved("refund") == []
    clock.forward(seconds=LEASE.total_seconds())
    await work_off(shop.context)
    assert (await shop.refunds(order.id))[0].status is RefundStatus.SUCCEEDED
    assert shop.moved("refund") == [400]


async def test_a_refund_goes_to_the_attempt_that_was_paid(shop: Shop) -> None:
    order = (await shop.paid("tok_decline_declined")).order
    paid = await shop.pay(order.id, is_retry=True)
    assert paid.attempt is not None
    assert (await shop.refund(order.id)).attempt_id == paid.attempt.id
    assert (await shop.transactions(order.id))[-1].attempt_id == paid.attempt.id
