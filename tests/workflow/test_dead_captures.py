"""Captures and cancellations whose job has died: the next request goes on with it, or first learns what it has done."""

import asyncio
from dataclasses import replace

import pytest

from loop.domain.attempts import Unknown
from loop.domain.errors import LoopError
from loop.domain.orders import Order, OrderStatus
from loop.storage import jobs as job_rows
from loop.storage.jobs import LEASE
from loop.workers.execute import execute
from tests.builders import Clock, Shop, work_off

SILENCE = Unknown("no answer")


async def held(shop: Shop) -> Order:
    """Return an order whose 10.00 EUR are authorized."""
    return (await shop.paid(is_manual_capture=True)).order


async def let_its_job_die(shop: Shop, order: Order) -> str:
    """Let an order's job fail for the last time; return its id."""
    (job,) = await shop.jobs(order.id)
    async with shop.context.database.transaction() as session:
        died = job_rows.rescheduling(job, shop.clock.now(), failures=20, is_dead=True, last_error="gave up")
        assert await session.run_together([died]) == [1]
    return job.id


async def dead_capture(shop: Shop, *, was_heard: bool, amount: int = 600) -> Order:
    """Return an order whose capture was called once and then died, without an answer."""
    order = await held(shop)
    shop.next_answers("capture", SILENCE, is_done=was_heard)
    await shop.capture(order.id, amount)
    await let_its_job_die(shop, order)
    return order


async def dead_cancellation(shop: Shop, *, was_heard: bool) -> Order:
    order = await held(shop)
    shop.next_answers("void", SILENCE, is_done=was_heard)
    await shop.cancel(order.id)
    await let_its_job_die(shop, order)
    return order


@pytest.mark.parametrize("was_heard", [True, False])
async def test_the_same_capture_again_is_the_same_call(shop: Shop, *, was_heard: bool) -> None:
    order = await dead_capture(shop, was_heard=was_heard)
    now = await shop.capture(order.id, 600)
    assert (now.status, now.amount_captured_minor) == (OrderStatus.CAPTURED, 600)
    assert shop.moved("capture") == [600]
    assert len({key for _, key in shop.sandbox.called("capture")}) == 1
    assert await shop.jobs(order.id) == []
    assert (await shop.event_types(order.id)).count("payment.captured") == 1


@pytest.mark.parametrize("was_heard", [True, False])
async def test_another_amount_first_learns_what_became_of_the_earlier_one(shop: Shop, *, was_heard: bool) -> None:
    order = await dead_capture(shop, was_heard=was_heard)
    now = await shop.capture(order.id, 400)
    captured = 600 if was_heard else 400
    assert (now.status, now.amount_captured_minor) == (OrderStatus.CAPTURED, captured)
    assert shop.moved("capture") == [captured]
    assert len(shop.sandbox.called("fetch")) == 1
    assert len({key for _, key in shop.sandbox.called("capture")}) == (1 if was_heard else 2)
    assert await shop.jobs(order.id) == []


@pytest.mark.parametrize("was_heard", [True, False])
async def test_a_cancellation_after_a_dead_capture_lets_go_only_of_what_was_not_taken(
    shop: Shop, *, was_heard: bool
) -> None:
    order = await dead_capture(shop, was_heard=was_heard)
    now = await shop.cancel(order.id)
    assert now.status is (OrderStatus.CAPTURED if was_heard else OrderStatus.CANCELLED)
    assert (shop.moved("capture"), shop.moved("void")) == (([600], []) if was_heard else ([], [1_000]))


@pytest.mark.parametrize("was_heard", [True, False])
async def test_a_capture_after_a_dead_cancellation_takes_only_what_is_still_held(
    shop: Shop, *, was_heard: bool
) -> None:
    order = await dead_cancellation(shop, was_heard=was_heard)
    now = await shop.capture(order.id)
    assert now.status is (OrderStatus.CANCELLED if was_heard else OrderStatus.CAPTURED)
    assert (shop.moved("capture"), shop.moved("void")) == (([], [1_000]) if was_heard else ([1_000], []))


@pytest.mark.parametrize("was_heard", [True, False])
async def test_the_same_cancellation_again_is_the_same_call(shop: Shop, *, was_heard: bool) -> None:
    order = await dead_cancellation(shop, was_heard=was_heard)
    assert (await shop.cancel(order.id, "out of stock")).status is OrderStatus.CANCELLED
    assert shop.moved("void") == [1_000]
    assert len({key for _, key in shop.sandbox.called("void")}) == 1


async def test_while_it_cannot_be_learned_nothing_else_is_asked_for(shop: Shop, clock: Clock) -> None:
    order = await dead_capture(shop, was_heard=True)
    shop.next_answers("fetch", SILENCE, SILENCE)
    assert (await shop.capture(order.id, 400)).status is OrderStatus.AUTHORIZED
    with pytest.raises(LoopError, match="operation_in_progress"):
        await shop.capture(order.id, 400)
    for _ in range(2):
        clock.forward(seconds=30)
        await work_off(shop.context)
    assert (await shop.now(order.id)).order.amount_captured_minor == 600
    assert len(shop.sandbox.called("capture")) == 1


async def test_one_that_dies_again_goes_on_asking_first(shop: Shop) -> None:
    order = await dead_capture(shop, was_heard=True)
    shop.next_answers("fetch", SILENCE)
    await shop.capture(order.id, 400)
    await let_its_job_die(shop, order)
    assert (await shop.capture(order.id, 400)).amount_captured_minor == 600
    assert shop.moved("capture") == [600]


async def test_of_many_who_take_a_dead_one_s_place_one_does(shop: Shop) -> None:
    order = await dead_capture(shop, was_heard=False)
    amounts = (600, 400, 600, 400, 600, 400)
    outcomes = await asyncio.gather(*(shop.capture(order.id, each) for each in amounts), return_exceptions=True)
    codes = [outcome.code for outcome in outcomes if isinstance(outcome, LoopError)]
    assert len(codes) == len(amounts) - 1
    assert set(codes) <= {"operation_in_progress", "invalid_status"}
    (captured,) = shop.moved("capture")
    assert (await shop.now(order.id)).order.amount_captured_minor == captured


async def test_a_worker_that_still_holds_the_dead_one_writes_nothing(shop: Shop) -> None:
    order = await held(shop)
    shop.next_answers("capture", SILENCE)
    await shop.capture(order.id, 600)
    (stale,) = await shop.jobs(order.id)
    await let_its_job_die(shop, order)
    shop.next_answers("fetch", SILENCE)
    await shop.capture(order.id, 400)
    (live,) = await shop.jobs(order.id)
    await execute(shop.context, replace(stale, run_at=shop.clock.at + LEASE))  # its lease may well outlast its call
    assert await shop.jobs(order.id) == [live]
    assert (await shop.now(order.id)).order.status is OrderStatus.AUTHORIZED
    shop.clock.forward(minutes=1)
    await work_off(shop.context)
    assert (await shop.now(order.id)).order.amount_captured_minor == 600  # its call was heard, and is learned of
    assert shop.moved("capture") == [600]
