"""One processor account's trouble is its own: the jobs of the others find room, however many of its own hang."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from loop.domain.attempts import Unknown
from loop.domain.orders import OrderStatus
from loop.domain.refunds import RefundOutcome, RefundStatus
from loop.runtime import Chance, opened
from loop.workers.inline_runner import InlineRunner
from loop.workflows import processor_configs
from loop.workflows.captures import expire_due
from loop.workflows.context import Context
from tests.builders import Clock, Mood, Shop, open_shop, running_jobs, settings_for

CONCURRENCY = 8
LEFT_TO_OTHERS = 2
"""Places that one account leaves free, of so many."""

UNCLEAR = Unknown("no answer")


@pytest.fixture
async def context(database_url: str, tmp_path: Path, clock: Clock) -> AsyncIterator[Context]:
    settings = settings_for(database_url, tmp_path, job_concurrency=CONCURRENCY)
    async with opened(settings, Chance(now=clock.now)) as context:
        yield context


@asynccontextmanager
async def working(context: Context) -> AsyncIterator[None]:
    runner = context.runner
    assert isinstance(runner, InlineRunner)
    running = asyncio.create_task(runner.run(context))
    try:
        yield
    finally:
        await runner.stop()
        await running


async def abandoned(shop: Shop, count: int) -> list[str]:
    """Have customers leave their bank's page."""
    return [(await shop.paid("tok_3ds")).order.id for _ in range(count)]


async def test_payments_that_hang_at_one_processor_leave_room_for_those_of_another(
    context: Context, clock: Clock
) -> None:
    sick, well = await open_shop(context, clock), await open_shop(context, clock, number=2)
    healthy = await well.open_second()
    await processor_configs.remove(context, well.merchant_id, "sandbox")
    thawed = asyncio.Event()
    hanging = await abandoned(sick, 5 * CONCURRENCY)
    sick.sandbox.moods += [Mood("void", UNCLEAR, thawed=thawed) for _ in hanging]
    clock.forward(days=2)
    assert await expire_due(context) == len(hanging)
    async with working(context), asyncio.timeout(20):
        while len(sick.sandbox.called("void")) < CONCURRENCY - LEFT_TO_OTHERS:  # noqa: ASYNC110 - no event says so
            await asyncio.sleep(0.01)
        (left,) = await abandoned(well, 1)
        clock.forward(days=2)
        await expire_due(context)
        while (await well.now(left)).order.status is not OrderStatus.CANCELLED:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
        assert len(healthy.called("void")) == 1
        assert len(sick.sandbox.called("void")) == CONCURRENCY - LEFT_TO_OTHERS
        thawed.set()


async def test_what_the_clock_ends_does_not_run_at_once(context: Context, clock: Clock) -> None:
    shop = await open_shop(context, clock)
    orders = await abandoned(shop, 3 * CONCURRENCY)
    clock.forward(days=2)
    assert await expire_due(context) == len(orders)
    assert await expire_due(context) == 0
    assert running_jobs(context) == ()
    assert shop.sandbox.called("void") == []


async def lane_of(shop: Shop, subject: str, kind: str) -> str:
    (only,) = [each for each in await shop.jobs(subject) if each.kind == kind]
    return only.lane


async def test_every_job_that_asks_a_processor_has_its_account_for_a_lane(context: Context, clock: Clock) -> None:
    shop = await open_shop(context, clock)
    unclear = (await shop.paid("tok_timeout_then_charged")).order
    (attempt,) = await shop.attempts(unclear.id)
    account = attempt.processor_config_id
    assert await lane_of(shop, unclear.id, "advance_payment") == account
    paid = (await shop.paid()).order
    shop.next_answers("refund", RefundOutcome(RefundStatus.UNKNOWN))
    refund = await shop.refund(paid.id)
    assert await lane_of(shop, refund.id, "send_refund") == account
    for method, kind in (("capture", "capture_payment"), ("void", "void_payment")):
        held = (await shop.paid(is_manual_capture=True)).order
        shop.next_answers(method, UNCLEAR)
        await (shop.capture(held.id) if method == "capture" else shop.cancel(held.id))
        assert await lane_of(shop, held.id, kind) == account
