"""What happens by the clock: unpaid orders expire, stuck ones are rescued, and one failing entry stops no other."""

import asyncio
import json
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import pytest

from loop.domain.attempts import ActionRequired, Approved, NotSent, Outcome, Pending, Unknown
from loop.domain.errors import LoopError
from loop.domain.failover import DeclineFinality
from loop.domain.orders import Order, OrderStatus
from loop.storage import jobs, orders
from loop.workers import schedule
from loop.workers.schedule import SCHEDULE, run_schedule
from loop.workflows import captures, payments
from loop.workflows.captures import EXPIRE_BATCH, expire_due
from loop.workflows.checkout import NewSession, create_session
from loop.workflows.context import Context
from loop.workflows.outcomes import record
from loop.workflows.payments import RESCUE_AFTER, rescue_stale
from tests.builders import Clock, Shop, work_off

IN_AN_HOUR = timedelta(hours=1)


async def expire(shop: Shop) -> int:
    """Run the schedule's entry, and the jobs that come of it."""
    count = await expire_due(shop.context)
    await work_off(shop.context)
    return count


async def order_of_an_hour(shop: Shop, *, is_manual_capture: bool = False) -> Order:
    return await shop.order(expires_at=shop.clock.at + IN_AN_HOUR, is_manual_capture=is_manual_capture)


async def test_a_pending_order_expires_when_its_time_is_up(shop: Shop, clock: Clock) -> None:
    order, lasting = await order_of_an_hour(shop), await shop.order()
    clock.forward(minutes=59)
    assert await expire(shop) == 0
    clock.forward(minutes=1)
    assert await expire(shop) == 1
    now = (await shop.now(order.id)).order
    assert (now.status, now.last_error_code) == (OrderStatus.CANCELLED, "expired")
    told = json.loads((await shop.events(order.id))[-1].body)
    assert (told["eventType"], told["payload"]["reason"]) == ("payment.cancelled", "expired")
    assert (await shop.now(lasting.id)).order.status is OrderStatus.PENDING
    assert await expire(shop) == 0
    assert shop.sandbox.calls == []
    with pytest.raises(LoopError, match="invalid_status"):
        await shop.pay(order.id)


async def test_a_payment_that_its_customer_left_is_ended_at_the_processor(shop: Shop, clock: Clock) -> None:
    waiting = await shop.paid("tok_3ds")
    clock.forward(seconds=shop.context.settings.order_ttl_s + 1)
    assert await expire(shop) == 1
    now = await shop.now(waiting.order.id)
    assert now.order.status is OrderStatus.CANCELLED
    assert len(shop.sandbox.called("void")) == 1
    told = json.loads((await shop.events(waiting.order.id))[-1].body)
    assert told["payload"]["reason"] == "expired"


async def test_a_customer_who_paid_in_the_last_moment_has_paid(shop: Shop, clock: Clock) -> None:
    waiting = await shop.paid("tok_3ds")
    assert waiting.attempt is not None
    approved = Approved(str(waiting.attempt.processor_reference), is_captured=True, amount_minor=1_000)
    clock.forward(days=2)
    shop.next_answers("void", approved)
    await expire(shop)
    assert (await shop.now(waiting.order.id)).order.status is OrderStatus.CAPTURED


@pytest.mark.parametrize("token", ["tok_approve", "tok_timeout_then_charged", "tok_pending"])
async def test_what_is_paid_or_unclear_does_not_expire(shop: Shop, clock: Clock, token: str) -> None:
    order = await order_of_an_hour(shop)
    paid = await shop.pay(order.id, token)
    clock.forward(hours=2)
    assert await expire_due(shop.context) == 0
    assert (await shop.now(order.id)).order == paid.order


async def test_held_money_does_not_expire_by_itself(shop: Shop, clock: Clock) -> None:
    order = await order_of_an_hour(shop, is_manual_capture=True)
    await shop.pay(order.id)
    clock.forward(hours=2)
    assert await expire(shop) == 0
    assert (await shop.now(order.id)).order.status is OrderStatus.AUTHORIZED


@pytest.mark.parametrize("answer", [Unknown("no answer"), NotSent("configuration", "The key is wrong.")])
async def test_a_processor_that_is_away_is_asked_again_and_ever_less_often(
    shop: Shop, clock: Clock, answer: Unknown | NotSent
) -> None:
    waiting = await shop.paid("tok_3ds")
    clock.forward(days=2)
    shop.next_answers("void", *[answer] * 10)
    for _ in range(240):  # an hour of the schedule
        await expire(shop)
        await work_off(shop.context)
        clock.forward(seconds=15)
    assert 5 <= len(shop.sandbox.called("void")) <= 8
    assert (await shop.now(waiting.order.id)).order.status is OrderStatus.REQUIRES_ACTION
    clock.forward(days=1)
    shop.sandbox.moods.clear()
    await work_off(shop.context)
    assert (await shop.now(waiting.order.id)).order.status is OrderStatus.CANCELLED


async def test_payments_that_cannot_be_ended_do_not_hide_those_that_can(
    shop: Shop, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captures, "EXPIRE_BATCH", 3)
    stuck = [await shop.paid("tok_3ds") for _ in range(4)]
    clock.forward(seconds=shop.context.settings.order_ttl_s + 1)
    shop.next_answers("void", *[NotSent("configuration", "The key is wrong.")] * 100)
    order = await order_of_an_hour(shop)
    clock.forward(hours=1)
    for _ in range(3):
        await expire(shop)
    assert (await shop.now(order.id)).order.status is OrderStatus.CANCELLED
    for each in stuck:
        assert (await shop.now(each.order.id)).order.status is OrderStatus.REQUIRES_ACTION


async def test_an_order_whose_money_is_held_before_it_could_be_cancelled_is_captured(shop: Shop, clock: Clock) -> None:
    shop.sandbox.capabilities = replace(shop.sandbox.capabilities, can_void=False)
    order = await order_of_an_hour(shop, is_manual_capture=True)
    waiting = (await shop.pay(order.id, "tok_3ds")).attempt
    assert waiting is not None
    clock.forward(hours=2)
    assert await expire_due(shop.context) == 1
    reference = str(waiting.processor_reference)
    held = Approved(reference, is_captured=False, amount_minor=waiting.amount_minor)
    await record(shop.context, waiting, held, job=None)  # its customer was quicker
    shop.next_answers("void", *[held] * 3)
    await work_off(shop.context)
    assert await shop.jobs(order.id) == []
    shop.next_answers("capture", replace(held, is_captured=True))
    assert (await shop.capture(order.id)).status is OrderStatus.CAPTURED


async def test_many_expire_in_batches(shop: Shop, clock: Clock) -> None:
    many = EXPIRE_BATCH + 5
    await asyncio.gather(*(order_of_an_hour(shop) for _ in range(many)))
    clock.forward(hours=2)
    assert [await expire(shop) for _ in range(3)] == [EXPIRE_BATCH, 5, 0]


async def test_an_order_without_its_job_is_given_one(shop: Shop, clock: Clock) -> None:
    waiting = await shop.paid("tok_timeout_then_charged")
    (asking,) = await shop.jobs(waiting.order.id)
    assert await rescue_stale(shop.context) == 0
    clock.forward(seconds=RESCUE_AFTER.total_seconds() + 1)
    assert await rescue_stale(shop.context) == 0  # it has its job
    async with shop.context.database.transaction() as session:
        (held,) = await jobs.claim(session, clock.now(), 10)
        assert held.id == asking.id
        await session.run_together([jobs.finishing(held)])
    assert await rescue_stale(shop.context) == 1
    assert await rescue_stale(shop.context) == 0
    shop.next_answers("authorize", NotSent("processor_unreachable", "Nobody was there."))
    await work_off(shop.context)  # the rescuer is not the first who calls: nothing is called failed
    assert (await shop.now(waiting.order.id)).order.status is OrderStatus.PROCESSING
    clock.forward(hours=1)
    await work_off(shop.context)
    assert (await shop.now(waiting.order.id)).order.status is OrderStatus.CAPTURED
    assert shop.moved("charge") == [1_000]


async def test_orders_that_have_their_job_do_not_hide_those_that_lost_it(
    shop: Shop, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payments, "RESCUE_BATCH", 2)
    shop.next_answers("authorize", *[Unknown("no answer")] * 100)
    for _ in range(4):
        await shop.paid()
    lost = await shop.paid()
    (held,) = await shop.jobs(lost.order.id)
    await shop.context.database.write_at_once([jobs.finishing(held)])
    clock.forward(minutes=5)
    assert await rescue_stale(shop.context) == 1
    assert len(await shop.jobs(lost.order.id)) == 1


async def test_what_ended_is_not_rescued(shop: Shop, clock: Clock) -> None:
    for token in ("tok_approve", "tok_decline_declined", "tok_3ds"):
        await shop.paid(token)
    await shop.order()
    clock.forward(days=1)
    assert await rescue_stale(shop.context) == 0


async def test_every_entry_runs_again_and_again_and_one_that_fails_stops_no_other(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[str] = []
    enough = asyncio.Event()

    async def work(_: Context) -> int:
        runs.append("work")
        if runs.count("work") >= 3 and runs.count("fail") >= 3:
            enough.set()
        return 1

    async def fail(_: Context) -> int:
        runs.append("fail")
        raise RuntimeError("it went wrong")

    monkeypatch.setattr(schedule, "SCHEDULE", (("work", 0.002, work), ("fail", 0.002, fail)))
    running = asyncio.create_task(run_schedule(context))
    async with asyncio.timeout(5):
        await enough.wait()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert running.cancelled()


def test_every_entry_has_a_name_and_a_pace() -> None:
    assert len({name for name, _, _ in SCHEDULE}) == len(SCHEDULE)
    assert all(every_s > 0 for _, every_s, _ in SCHEDULE)


async def test_the_order_whose_time_was_up_first_expires_first(shop: Shop, clock: Clock) -> None:
    late, early = await order_of_an_hour(shop), await shop.order()
    async with shop.context.database.transaction() as session:
        await session.run_together([orders.updating(replace(early, expires_at=clock.at + timedelta(minutes=1)))])
    clock.forward(hours=2)
    async with shop.context.database.reading() as reader:
        due = await orders.expired(reader, clock.now(), job_key_prefix="settle_payment:", limit=10)
    assert [found.order.id for found in due] == [early.id, late.id]


# A failed order could still be paid, by whoever tries again or has its page open: its time ends as well.


def leaves_declines_open(shop: Shop) -> None:
    finality = DeclineFinality.UNTIL_CANCELLED
    shop.sandbox.capabilities = replace(shop.sandbox.capabilities, decline_finality=finality)


@pytest.mark.parametrize("is_left_open", [False, True])
async def test_a_failed_order_expires_when_its_time_is_up(shop: Shop, clock: Clock, is_left_open: bool) -> None:
    if is_left_open:
        leaves_declines_open(shop)
    order = await order_of_an_hour(shop)
    await shop.pay(order.id, "tok_decline_insufficient_funds")
    lasting = await shop.paid("tok_decline_insufficient_funds")
    assert await expire(shop) == 0
    clock.forward(hours=1)
    assert await expire(shop) == 1
    assert (await shop.now(order.id)).order.status is OrderStatus.CANCELLED
    assert (await shop.now(lasting.order.id)).order.status is OrderStatus.FAILED
    assert len(shop.sandbox.called("void")) == is_left_open
    told = json.loads((await shop.events(order.id))[-1].body)
    assert (told["eventType"], told["payload"]["reason"]) == ("payment.cancelled", "expired")
    assert await expire(shop) == 0


@pytest.mark.parametrize("tried_with", [None, "tok_decline_insufficient_funds"])
async def test_an_order_is_not_paid_after_its_time_though_nobody_has_noticed(
    shop: Shop, clock: Clock, tried_with: str | None
) -> None:
    leaves_declines_open(shop)
    order = await order_of_an_hour(shop)
    if tried_with is not None:
        await shop.pay(order.id, tried_with)
    clock.forward(hours=1)
    before = await shop.now(order.id)
    with pytest.raises(LoopError, match="order_expired"):
        await shop.pay(order.id, is_retry=tried_with is not None)
    with pytest.raises(LoopError, match="order_expired"):
        await create_session(shop.context, shop.merchant_id, NewSession(None, None, IN_AN_HOUR, order_id=order.id))
    assert await shop.now(order.id) == before
    assert (shop.sandbox.called("void"), shop.moved("charge")) == ([], [])


@pytest.mark.parametrize(
    "answer", [Unknown("no answer"), Pending("sbx_1"), ActionRequired("sbx_1"), NotSent("configuration", "No.")]
)
async def test_a_failed_payment_that_is_not_cancelled_is_asked_about_again_and_ever_less_often(
    shop: Shop, clock: Clock, answer: Outcome
) -> None:
    leaves_declines_open(shop)
    order = await order_of_an_hour(shop)
    await shop.pay(order.id, "tok_decline_insufficient_funds")
    clock.forward(hours=1)
    shop.next_answers("void", *[answer] * 20)
    for _ in range(240):  # an hour of the schedule
        await expire(shop)
        clock.forward(seconds=15)
    assert 5 <= len(shop.sandbox.called("void")) <= 8
    assert (await shop.now(order.id)).order.status is OrderStatus.FAILED
    clock.forward(days=1)
    shop.sandbox.moods.clear()
    await work_off(shop.context)
    assert (await shop.now(order.id)).order.status is OrderStatus.CANCELLED
