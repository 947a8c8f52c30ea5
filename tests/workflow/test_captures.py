"""Captures and cancellations over the sandbox: held money is taken or let go of once, and the processor goes first."""

import asyncio
import json
from dataclasses import replace
from datetime import timedelta

import pytest

from loop.domain.attempts import (
    ActionRequired,
    Approved,
    AttemptStatus,
    Cancelled,
    Declined,
    NotSent,
    Outcome,
    Unknown,
)
from loop.domain.declines import DeclineClass
from loop.domain.errors import ErrorKind, LoopError
from loop.domain.failover import DeclineFinality
from loop.domain.orders import Order, OrderStatus
from loop.storage import attempts, stats
from loop.storage.jobs import LEASE
from loop.storage.orders import OrderInHand
from loop.workflows.outcomes import record
from loop.workflows.payments import complete_action
from tests.builders import Clock, Mood, Shop, open_shop, work_off

SILENCE = Unknown("no answer")
UNREACHABLE = NotSent("processor_unreachable", "Nobody was there.")


async def held(shop: Shop) -> Order:
    """Return an order whose 10.00 EUR are authorized."""
    return (await shop.paid(is_manual_capture=True)).order


@pytest.mark.parametrize(("asked", "captured"), [(None, 1_000), (1_000, 1_000), (600, 600), (1, 1)])
async def test_a_capture_takes_all_or_a_part(shop: Shop, asked: int | None, captured: int) -> None:
    order = await shop.capture((await held(shop)).id, asked)
    assert (order.status, order.amount_captured_minor, order.amount_authorized_minor) == (
        OrderStatus.CAPTURED, captured, 1_000,
    )  # fmt: skip
    assert not order.needs_review
    assert (await shop.event_types(order.id))[-1] == "payment.captured"
    rows = [(row.type, row.status, row.amount_minor) for row in await shop.transactions(order.id)]
    assert rows == [("authorization", "success", 1_000), ("capture", "success", captured)]
    assert shop.moved("capture") == [captured]
    assert await shop.jobs(order.id) == []


@pytest.mark.parametrize("asked", [1_001, 0, -5])
async def test_more_than_is_held_or_nothing_is_not_captured(shop: Shop, asked: int) -> None:
    order = await held(shop)
    with pytest.raises(LoopError, match="capture_exceeds_authorized"):
        await shop.capture(order.id, asked)
    assert (await shop.now(order.id)).order == order
    assert shop.sandbox.called("capture") == []


async def test_only_what_is_authorized_is_captured(shop: Shop) -> None:
    pending = await shop.order()
    captured = (await shop.paid()).order
    for order_id in (pending.id, captured.id):
        with pytest.raises(LoopError, match="invalid_status"):
            await shop.capture(order_id)
    with pytest.raises(LoopError, match="not_found"):
        await shop.capture("ord_of_nobody")
    other = await open_shop(shop.context, shop.clock, number=2)
    with pytest.raises(LoopError, match="not_found"):
        await other.capture((await held(shop)).id)


async def test_of_many_who_capture_at_once_one_does(shop: Shop) -> None:
    order = await held(shop)
    outcomes = await asyncio.gather(*(shop.capture(order.id, 700) for _ in range(8)), return_exceptions=True)
    errors = {outcome.code for outcome in outcomes if isinstance(outcome, LoopError)}
    assert errors <= {"operation_in_progress", "invalid_status"}
    assert sum(not isinstance(outcome, LoopError) for outcome in outcomes) == 1
    assert shop.moved("capture") == [700]


async def test_who_comes_while_it_is_captured_is_told_to_come_again(shop: Shop) -> None:
    order = await held(shop)
    thawed = asyncio.Event()
    shop.sandbox.moods.append(Mood("capture", SILENCE, thawed=thawed))
    first = asyncio.create_task(shop.capture(order.id))
    await shop.until_called("capture")
    for act in (shop.capture, shop.cancel):
        with pytest.raises(LoopError, match="operation_in_progress") as caught:
            await act(order.id)
        assert (caught.value.kind, caught.value.retry_after_s) == (ErrorKind.CONFLICT, 2)
    thawed.set()
    await first


async def test_a_processor_that_captures_all_or_nothing_is_not_asked_for_a_part(shop: Shop) -> None:
    order = await held(shop)
    shop.sandbox.capabilities = replace(shop.sandbox.capabilities, can_capture_partially=False)
    with pytest.raises(LoopError, match="unsupported_by_processor"):
        await shop.capture(order.id, 500)
    assert (await shop.capture(order.id, 1_000)).amount_captured_minor == 1_000


async def test_a_capture_that_was_not_sent_leaves_the_money_held(shop: Shop) -> None:
    order = await held(shop)
    shop.next_answers("capture", UNREACHABLE)
    with pytest.raises(LoopError, match="capture_failed: Nobody was there"):
        await shop.capture(order.id, 400)
    assert (await shop.now(order.id)).order.status is OrderStatus.AUTHORIZED
    assert await shop.jobs(order.id) == []
    assert (await shop.capture(order.id, 600)).amount_captured_minor == 600
    (_, first), (_, second) = shop.sandbox.called("capture")
    assert first != second  # another amount may be asked for only under another key


@pytest.mark.parametrize("is_done", [True, False])
async def test_a_capture_that_is_not_answered_is_repeated_until_it_is(shop: Shop, clock: Clock, is_done: bool) -> None:
    order = await held(shop)
    shop.next_answers("capture", SILENCE, is_done=is_done)
    shop.next_answers("capture", UNREACHABLE)  # of the repeat: it says nothing of the first
    unclear = await shop.capture(order.id, 600)
    assert unclear.status is OrderStatus.AUTHORIZED
    with pytest.raises(LoopError, match="operation_in_progress"):
        await shop.capture(order.id, 500)
    for seconds in (2, 10):
        clock.forward(seconds=seconds)
        await work_off(shop.context)
    now = (await shop.now(order.id)).order
    assert (now.status, now.amount_captured_minor) == (OrderStatus.CAPTURED, 600)
    assert shop.moved("capture") == [600]
    assert len({key for _, key in shop.sandbox.called("capture")}) == 1


async def test_a_capture_that_stays_unclear_is_shown_to_a_person(shop: Shop, clock: Clock) -> None:
    order = await held(shop)
    shop.next_answers("capture", *[SILENCE] * 30)
    await shop.capture(order.id)
    for _ in range(25):
        (asking,) = await shop.jobs(order.id)
        assert asking.failures == 0
        clock.at = asking.run_at
        await work_off(shop.context)
    assert (await shop.now(order.id)).order.needs_review


async def test_a_process_that_dies_before_the_capture_is_succeeded(shop: Shop, clock: Clock) -> None:
    order = await held(shop)
    shop.wait_s = 0
    shop.hang_next("capture")
    await shop.capture(order.id, 600)
    await shop.until_called("capture")
    await shop.lose_process()
    clock.forward(seconds=LEASE.total_seconds())
    await work_off(shop.context)
    assert (await shop.now(order.id)).order.amount_captured_minor == 600
    assert shop.moved("capture") == [600]


# Cancelling.


async def test_a_pending_order_is_cancelled_without_asking_anybody(shop: Shop) -> None:
    order = await shop.cancel((await shop.order()).id, "changed their mind")
    assert order.status is OrderStatus.CANCELLED
    told = json.loads((await shop.events(order.id))[-1].body)
    assert (told["eventType"], told["status"]) == ("payment.cancelled", "cancelled")
    assert told["payload"]["reason"] == "changed their mind"
    assert shop.sandbox.calls == []
    with pytest.raises(LoopError, match="invalid_status"):
        await shop.pay(order.id)


async def test_held_money_is_let_go_of(shop: Shop) -> None:
    order = await shop.cancel((await held(shop)).id, "out of stock")
    assert (order.status, order.amount_authorized_minor) == (OrderStatus.CANCELLED, 0)
    assert shop.moved("void") == [1_000]
    rows = [(row.type, row.status, row.amount_minor) for row in await shop.transactions(order.id)]
    assert rows == [("authorization", "success", 1_000), ("void", "success", 1_000)]
    told = json.loads((await shop.events(order.id))[-1].body)
    assert (told["eventType"], told["payload"]["reason"]) == ("payment.cancelled", "out of stock")


async def test_a_payment_that_waits_for_its_customer_is_ended_at_the_processor(shop: Shop) -> None:
    waiting = await shop.paid("tok_3ds")
    assert waiting.attempt is not None
    order = await shop.cancel(waiting.order.id)
    assert order.status is OrderStatus.CANCELLED
    assert len(shop.sandbox.called("void")) == 1
    late = await complete_action(shop.context, waiting.attempt.id, {})
    assert late.order.status is OrderStatus.CANCELLED


async def test_a_failed_order_is_put_away(shop: Shop) -> None:
    order = await shop.cancel((await shop.paid("tok_decline_declined")).order.id)
    assert order.status is OrderStatus.CANCELLED
    with pytest.raises(LoopError, match="invalid_status"):
        await shop.pay(order.id, is_retry=True)


async def test_what_is_unclear_paid_or_over_is_not_cancelled(shop: Shop) -> None:
    unclear = (await shop.paid("tok_timeout_then_charged")).order
    paid = (await shop.paid()).order
    over = await shop.cancel((await shop.order()).id)
    for order in (unclear, paid, over):
        with pytest.raises(LoopError, match="invalid_status"):
            await shop.cancel(order.id)
        assert (await shop.now(order.id)).order == order
    with pytest.raises(LoopError, match="not_found"):
        await shop.cancel("ord_of_nobody")


@pytest.mark.parametrize("token", ["tok_3ds", "tok_approve"])
async def test_a_cancellation_that_was_not_sent_changes_nothing(shop: Shop, token: str) -> None:
    before = (await shop.paid(token, is_manual_capture=True)).order
    shop.next_answers("void", UNREACHABLE)
    with pytest.raises(LoopError, match="cancel_failed: Nobody was there"):
        await shop.cancel(before.id)
    now = await shop.now(before.id)
    assert now.order.status is before.status
    assert now.attempt is not None
    assert now.attempt.error_code is None
    assert (await shop.cancel(before.id)).status is OrderStatus.CANCELLED


@pytest.mark.parametrize("is_done", [True, False])
async def test_a_cancellation_that_is_not_answered_is_repeated_until_it_is(
    shop: Shop, clock: Clock, is_done: bool
) -> None:
    order = await held(shop)
    shop.next_answers("void", SILENCE, is_done=is_done)
    shop.next_answers("void", UNREACHABLE)
    assert (await shop.cancel(order.id)).status is OrderStatus.AUTHORIZED
    for seconds in (2, 10):
        clock.forward(seconds=seconds)
        await work_off(shop.context)
    assert (await shop.now(order.id)).order.status is OrderStatus.CANCELLED
    assert shop.moved("void") == [1_000]


async def test_a_customer_who_paid_before_the_cancellation_has_paid(shop: Shop) -> None:
    waiting = await shop.paid("tok_3ds")
    assert waiting.attempt is not None
    reference = str(waiting.attempt.processor_reference)
    shop.next_answers("void", Approved(reference, is_captured=True, amount_minor=1_000))
    order = await shop.cancel(waiting.order.id)
    assert (order.status, order.amount_captured_minor) == (OrderStatus.CAPTURED, 1_000)
    assert (await shop.event_types(order.id))[-1] == "payment.captured"


async def test_a_processor_that_does_not_cancel_leaves_the_order_open(shop: Shop) -> None:
    waiting = await shop.paid("tok_3ds")
    assert waiting.attempt is not None
    shop.next_answers("void", ActionRequired(str(waiting.attempt.processor_reference)))
    assert (await shop.cancel(waiting.order.id)).status is OrderStatus.REQUIRES_ACTION
    assert await shop.jobs(waiting.order.id) == []


async def test_a_capture_and_a_cancellation_at_once_end_in_one_of_the_two(shop: Shop) -> None:
    for _ in range(4):
        order = await held(shop)
        before = len(shop.moved("capture", "void"))
        await asyncio.gather(shop.capture(order.id), shop.cancel(order.id), return_exceptions=True)
        now = await shop.now(order.id)
        assert now.attempt is not None
        assert (now.order.status, now.attempt.status) in {
            (OrderStatus.CAPTURED, AttemptStatus.CAPTURED),
            (OrderStatus.CANCELLED, AttemptStatus.VOIDED),
        }
        assert len(shop.moved("capture", "void")) == before + 1


# A failed payment that could still be paid is cancelled as one that waits for its customer is.


async def failed_and_open(shop: Shop) -> OrderInHand:
    """Return an order whose payment was declined, and can be paid with another card until it is cancelled."""
    shop.sandbox.capabilities = replace(shop.sandbox.capabilities, decline_finality=DeclineFinality.UNTIL_CANCELLED)
    return await shop.paid("tok_decline_invalid_card")


async def test_a_failed_payment_that_can_still_be_paid_is_ended_at_the_processor(shop: Shop) -> None:
    failed = await failed_and_open(shop)
    order = await shop.cancel(failed.order.id, "sold to somebody else")
    assert (order.status, order.last_error_code) == (OrderStatus.CANCELLED, "invalid_card")
    assert len(shop.sandbox.called("void")) == 1
    told = json.loads((await shop.events(order.id))[-1].body)
    assert (told["eventType"], told["payload"]["reason"]) == ("payment.cancelled", "sold to somebody else")
    (tried,) = await shop.attempts(order.id)
    assert (tried.status, tried.error_code) == (AttemptStatus.CANCELLED, "invalid_card")


@pytest.mark.parametrize("is_left_open", [False, True])
async def test_a_payment_that_failed_counts_as_failed_once_it_is_cancelled(
    shop: Shop, clock: Clock, is_left_open: bool
) -> None:
    failed = await failed_and_open(shop) if is_left_open else await shop.paid("tok_decline_invalid_card")
    await shop.cancel(failed.order.id)
    await shop.cancel((await shop.paid("tok_3ds")).order.id)
    day = clock.at - timedelta(hours=1), clock.at + timedelta(hours=1)
    async with shop.context.database.reading() as reader:
        groups = await stats.groups(reader, shop.merchant_id, is_test=True, created_from=day[0], created_to=day[1])
        counts = await attempts.counts_since(reader, shop.merchant_id, from_attempt="")
    assert {(each.status, each.error_code, each.count) for each in groups} == {
        ("cancelled", "invalid_card", 1),
        ("cancelled", None, 1),
    }
    assert sum(each.count for each in counts if each.is_declined) == 1


async def test_a_process_that_dies_before_a_failed_payment_is_cancelled_is_succeeded(shop: Shop, clock: Clock) -> None:
    failed = await failed_and_open(shop)
    shop.wait_s = 0
    shop.hang_next("void")
    assert (await shop.cancel(failed.order.id)).status is OrderStatus.FAILED
    await shop.until_called("void")
    await shop.lose_process()
    clock.forward(seconds=LEASE.total_seconds())
    await work_off(shop.context)
    assert (await shop.now(failed.order.id)).order.status is OrderStatus.CANCELLED


async def test_a_failed_payment_that_nobody_can_pay_is_not_asked_about(shop: Shop) -> None:
    failed = await shop.paid("tok_decline_invalid_card")
    assert (await shop.cancel(failed.order.id)).status is OrderStatus.CANCELLED
    assert shop.sandbox.called("void") == []


async def test_a_failed_payment_that_was_paid_before_the_cancellation_is_a_late_success(shop: Shop) -> None:
    failed = await failed_and_open(shop)
    shop.next_answers("void", Approved(str(failed.order.processor_order_id), is_captured=True, amount_minor=1_000))
    order = await shop.cancel(failed.order.id)
    assert (order.status, order.amount_captured_minor) == (OrderStatus.CAPTURED, 1_000)
    assert (await shop.event_types(order.id))[-2:] == ["payment.captured", "payment.late_success"]


@pytest.mark.parametrize("answer", [UNREACHABLE, Declined("invalid_card", DeclineClass.CUSTOMER, "No.")])
async def test_a_failed_payment_that_is_not_cancelled_stays_failed(shop: Shop, answer: Outcome) -> None:
    failed = await failed_and_open(shop)
    shop.next_answers("void", answer)
    with pytest.raises(LoopError, match="cancel_failed"):
        await shop.cancel(failed.order.id)
    now = (await shop.now(failed.order.id)).order
    assert (now.status, now.last_error_code) == (OrderStatus.FAILED, "invalid_card")
    assert (await shop.cancel(failed.order.id)).status is OrderStatus.CANCELLED


@pytest.mark.parametrize("is_heard_of", [False, True])
async def test_a_failed_payment_s_cancellation_that_is_not_answered_is_repeated(
    shop: Shop, clock: Clock, is_heard_of: bool
) -> None:
    failed = await failed_and_open(shop)
    shop.next_answers("void", SILENCE, is_done=is_heard_of)
    assert (await shop.cancel(failed.order.id)).status is OrderStatus.FAILED
    if is_heard_of:  # the processor's webhook is first
        (tried,) = await shop.attempts(failed.order.id)
        await record(shop.context, tried, Cancelled(tried.processor_reference), job=None)
        assert (await shop.now(failed.order.id)).order.status is OrderStatus.CANCELLED
    clock.forward(seconds=2)
    await work_off(shop.context)
    assert (await shop.now(failed.order.id)).order.status is OrderStatus.CANCELLED
    assert await shop.jobs(failed.order.id) == []
    assert (await shop.event_types(failed.order.id)).count("payment.cancelled") == 1


async def test_a_failed_payment_that_stays_unclear_is_shown_to_a_person(shop: Shop, clock: Clock) -> None:
    failed = await failed_and_open(shop)
    shop.next_answers("void", *[SILENCE] * 30)
    await shop.cancel(failed.order.id)
    for _ in range(10):
        (asking,) = await shop.jobs(failed.order.id)
        clock.at = asking.run_at
        await work_off(shop.context)
    now = (await shop.now(failed.order.id)).order
    assert (now.status, now.needs_review) == (OrderStatus.FAILED, True)


async def test_an_order_that_is_tried_again_after_all_is_not_cancelled(shop: Shop, clock: Clock) -> None:
    failed = await failed_and_open(shop)
    shop.next_answers("void", SILENCE)
    await shop.cancel(failed.order.id)
    paid = await shop.pay(failed.order.id, is_retry=True)
    assert paid.order.status is OrderStatus.CAPTURED
    clock.forward(seconds=2)
    await work_off(shop.context)
    first, second = await shop.attempts(failed.order.id)
    assert (first.status, second.status) == (AttemptStatus.CANCELLED, AttemptStatus.CAPTURED)
    assert (await shop.now(failed.order.id)).order.status is OrderStatus.CAPTURED
