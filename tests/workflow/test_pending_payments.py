"""Payments that a processor has and decides about in days: asked about, not unclear, and back at their customer."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest

from loop.domain import polling
from loop.domain.attempts import ActionRequired, AttemptStatus, Declined, Outcome, Pending, Unknown
from loop.domain.declines import DeclineClass
from loop.domain.orders import OrderStatus
from loop.storage.orders import OrderInHand
from loop.workflows.attempts import ADVANCE
from loop.workflows.captures import expire_due
from loop.workflows.outcomes import record
from tests.builders import Clock, Mood, Shop, running_jobs, work_off

REFERENCE = "sbx_1"
PENDING = Pending(REFERENCE)
ACTION = ActionRequired(REFERENCE, client_secret="secret_1")
RETURNED = ActionRequired(
    REFERENCE,
    client_secret="secret_1",
    decline=Declined("insufficient_funds", DeclineClass.LATER, "No.", reference=REFERENCE),
)


async def debited(shop: Shop, *following: Outcome, expires_at: datetime | None = None) -> OrderInHand:
    """Return an order whose customer has let their bank account be debited, and set what is answered next."""
    waiting = await shop.pay((await shop.order(expires_at=expires_at)).id, None)
    assert waiting.attempt is not None
    shop.next_answers("fetch", *following)
    pending = (await record(shop.context, waiting.attempt, PENDING, job=None)).in_hand
    assert pending.order.status is OrderStatus.PROCESSING
    return pending


async def asked_until(shop: Shop, order_id: str, clock: Clock, until: timedelta) -> Sequence[timedelta]:
    """Turn the clock from question to question; return how long each was waited for."""
    end, waited = clock.at + until, []
    while asking := [job for job in await shop.jobs(order_id) if job.run_at <= end]:
        waited.append(asking[0].run_at - clock.at)
        clock.at = asking[0].run_at
        await work_off(shop.context)
    clock.at = end
    return waited


async def test_a_debit_that_fails_after_days_is_its_customer_s_again(shop: Shop, clock: Clock) -> None:
    order = (await debited(shop, *[PENDING] * 9, RETURNED, expires_at=clock.at + timedelta(days=10))).order
    await asked_until(shop, order.id, clock, timedelta(days=5))
    failed = await shop.now(order.id)
    assert failed.attempt is not None
    assert (failed.order.status, failed.order.last_error_code) == (OrderStatus.REQUIRES_ACTION, "insufficient_funds")
    assert (failed.attempt.status, failed.attempt.error_code) == (AttemptStatus.REQUIRES_ACTION, "insufficient_funds")
    assert failed.attempt.action == {"clientSecret": "secret_1"}
    assert not failed.order.needs_review
    assert await shop.jobs(order.id) == []
    assert await shop.event_types(order.id) == [
        "order.created", "payment.processing", "payment.requires_action", "payment.processing",
        "payment.requires_action",
    ]  # fmt: skip
    assert (await shop.cancel(order.id)).status is OrderStatus.CANCELLED


async def test_a_debit_that_fails_after_its_order_s_time_ends_the_order(shop: Shop, clock: Clock) -> None:
    order = (await debited(shop, *[PENDING] * 9, RETURNED)).order
    await asked_until(shop, order.id, clock, timedelta(days=2))
    assert await expire_due(shop.context) == 0  # a bank that has not decided is waited for
    await asked_until(shop, order.id, clock, timedelta(days=5))
    assert await expire_due(shop.context) == 1
    await work_off(shop.context)
    assert (await shop.now(order.id)).order.status is OrderStatus.CANCELLED
    assert (await shop.event_types(order.id))[-2:] == ["payment.requires_action", "payment.cancelled"]
    assert shop.moved("charge") == []


async def test_what_a_processor_calls_pending_is_not_unclear_until_no_bank_takes_so_long(
    shop: Shop, clock: Clock
) -> None:
    order = (await debited(shop, *[PENDING] * 100)).order
    waited = await asked_until(shop, order.id, clock, polling.PENDING_ALERT_AFTER - timedelta(minutes=1))
    assert [each.total_seconds() for each in waited[:8]] == pytest.approx(polling.PENDING_STEPS_S, abs=1)
    assert len(waited) < 30
    assert max(waited) <= timedelta(days=1)
    now = await shop.now(order.id)
    assert now.attempt is not None
    assert (now.order.needs_review, now.attempt.unclear_since) == (False, None)
    await asked_until(shop, order.id, clock, timedelta(days=1))
    assert (await shop.now(order.id)).order.needs_review


async def test_a_processor_that_falls_silent_about_what_is_pending_is_unclear(shop: Shop, clock: Clock) -> None:
    order = (await debited(shop, *[PENDING] * 10, *[Unknown("no answer")] * 3)).order
    await asked_until(shop, order.id, clock, timedelta(days=4))
    assert not (await shop.now(order.id)).order.needs_review
    waited = await asked_until(shop, order.id, clock, timedelta(hours=20))
    assert max(waited[1:]) <= timedelta(hours=1)  # until it answers again
    now = await shop.now(order.id)
    assert now.attempt is not None
    assert now.order.needs_review
    assert now.attempt.unclear_since is None


@pytest.mark.parametrize(("late", "newer"), [(ACTION, PENDING), (PENDING, RETURNED)])
async def test_of_two_answers_at_once_neither_is_taken_for_the_newer_one(
    shop: Shop, clock: Clock, late: Outcome, newer: Outcome
) -> None:
    thawed = asyncio.Event()
    if late is ACTION:  # the first call's own answer comes after that of a webhook's question
        order, method = await shop.order(), "authorize"
        shop.wait_s = 0
    else:
        order, method = (await debited(shop)).order, "fetch"
    shop.sandbox.moods.append(Mood(method, late, thawed=thawed))
    before = len(shop.sandbox.called(method))
    if late is ACTION:
        await shop.pay(order.id, None)
    else:
        clock.forward(seconds=2)
    working = asyncio.create_task(work_off(shop.context))
    async with asyncio.timeout(5):
        while len(shop.sandbox.called(method)) == before:  # noqa: ASYNC110 - the call is the event
            await asyncio.sleep(0.001)
    attempt = (await shop.now(order.id)).attempt
    assert attempt is not None
    known = (await record(shop.context, attempt, newer, job=None)).in_hand
    thawed.set()
    await asyncio.gather(working, *running_jobs(shop.context))
    assert (await shop.now(order.id)).order.status is known.order.status
    told = await shop.event_types(order.id)
    shop.next_answers("fetch", newer)
    clock.forward(seconds=polling.STEPS_S[1])
    await work_off(shop.context)
    now = await shop.now(order.id)
    assert now.attempt is not None
    assert (now.order.status, now.attempt.unclear_since) == (known.order.status, None)
    assert await shop.event_types(order.id) == told
    assert len(await shop.jobs(order.id)) == (newer is PENDING)


async def test_a_payment_that_became_pending_is_not_cancelled_but_asked_about(shop: Shop, clock: Clock) -> None:
    waiting = await shop.pay((await shop.order()).id, None)
    shop.next_answers("void", PENDING)
    assert (await shop.cancel(waiting.order.id)).status is OrderStatus.PROCESSING
    (asking,) = await shop.jobs(waiting.order.id)
    assert asking.kind == ADVANCE
    assert asking.run_at - clock.at <= timedelta(seconds=polling.STEPS_S[0])
