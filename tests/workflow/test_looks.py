"""Jobs that look again until they find out: how often they looked is one count, how often they failed is another."""

from dataclasses import replace

from loop.domain.attempts import Unknown
from loop.domain.failover import DeclineFinality
from loop.domain.orders import OrderStatus
from loop.processors.base import Capabilities
from loop.storage import jobs, processor_configs
from loop.workflows.failovers import FENCE_TRIES
from loop.workflows.jobs import JOBS
from loop.workflows.processor_events import PROCESS
from tests.builders import Clock, Shop, work_off
from tests.workflow.test_processor_events import given_up_by_us, tell_of_late_money

SILENCE = Unknown("no answer")
HOURS = 2.0
"""Longer than any job waits from one look to the next."""


async def fail_once(shop: Shop) -> None:
    """Let the jobs that are due meet a fault: the account cannot be read for as long as they run once."""
    async with shop.context.database.transaction() as session:
        config = await processor_configs.named(session, shop.merchant_id, "sandbox")
        assert config is not None
        await processor_configs.put(session, replace(config, credentials=f"{config.credentials[:-8]}unreadable"))
    await work_off(shop.context)
    async with shop.context.database.transaction() as session:
        await processor_configs.put(session, config)
    shop.clock.forward(hours=HOURS)


async def test_one_fault_after_many_looks_does_not_end_an_event(shop: Shop, clock: Clock) -> None:
    late = await given_up_by_us(shop)
    looks = JOBS[PROCESS].max_failures + 5
    shop.next_answers("fetch", *[SILENCE] * (looks + 2))
    await tell_of_late_money(shop, late)
    for _ in range(looks):
        await work_off(shop.context)
        clock.forward(hours=HOURS)
    await fail_once(shop)
    await work_off(shop.context)
    async with shop.context.database.reading() as reader:
        assert await jobs.list_dead(reader, kind=None, limit=1) == []
    assert len(shop.sandbox.called("fetch")) == looks + 1
    for _ in range(2):
        clock.forward(hours=HOURS)
        await work_off(shop.context)
    assert (await shop.now(late.order.id)).order.status is OrderStatus.CAPTURED


async def test_faults_in_a_row_still_end_an_event(shop: Shop) -> None:
    late = await given_up_by_us(shop)
    await tell_of_late_money(shop, late)
    for _ in range(JOBS[PROCESS].max_failures):
        await fail_once(shop)
    async with shop.context.database.reading() as reader:
        (dead,) = await jobs.list_dead(reader, kind=None, limit=5)
    assert (dead.kind, dead.failures) == (PROCESS, JOBS[PROCESS].max_failures)


async def test_a_fault_is_not_one_of_the_tries_to_fence(shop: Shop, clock: Clock) -> None:
    second = await shop.open_second()
    shop.sandbox.capabilities = Capabilities(is_test_only=True, decline_finality=DeclineFinality.UNTIL_CANCELLED)
    shop.next_answers("void", *[SILENCE] * FENCE_TRIES)
    order = await shop.order()
    await shop.pay(order.id, None, tokens={"sandbox": "tok_decline_declined", "second": "tok_approve"})
    clock.forward(hours=HOURS)
    await fail_once(shop)
    for _ in range(FENCE_TRIES):
        assert second.calls == []
        await work_off(shop.context)
        clock.forward(hours=HOURS)
    assert (await shop.now(order.id)).order.status is OrderStatus.CAPTURED
    assert len(shop.sandbox.called("void")) == FENCE_TRIES + 1
