"""Failover: on evidence that nothing was charged an order goes on at the next processor, once, and never otherwise."""

import pytest

from loop.domain import polling
from loop.domain.attempts import (
    ActionRequired,
    Approved,
    AttemptStatus,
    Cancelled,
    Declined,
    NotSent,
    Outcome,
    Pending,
    Unknown,
)
from loop.domain.declines import DeclineClass, unified
from loop.domain.errors import LoopError
from loop.domain.failover import DeclineFinality
from loop.domain.orders import OrderStatus
from loop.processors.base import Capabilities
from loop.storage import attempts, jobs
from loop.storage.jobs import LEASE
from loop.storage.orders import OrderInHand
from loop.workflows.failovers import FENCE_TRIES
from loop.workflows.outcomes import record
from loop.workflows.payments import RESCUE_AFTER, rescue_stale
from tests.builders import MoodySandbox, Shop, work_off

SILENCE = Unknown("no answer")
BUSY = NotSent("rate_limited", "Too many at once.")


@pytest.fixture
async def second(shop: Shop) -> MoodySandbox:
    return await shop.open_second()


def both(first: str = "tok_decline_declined", then: str = "tok_approve") -> dict[str, object]:
    return {"tokens": {"sandbox": first, "second": then}}


async def pay(
    shop: Shop, first: str = "tok_decline_declined", then: str = "tok_approve", **more: object
) -> OrderInHand:
    return await shop.pay((await shop.order()).id, None, **both(first, then), **more)


def makes_declines_open(shop: Shop, finality: DeclineFinality) -> None:
    shop.sandbox.capabilities = Capabilities(is_test_only=True, decline_finality=finality)


def charges(shop: Shop, second: MoodySandbox) -> tuple[list[int], list[int]]:
    return shop.moved("charge"), [entry.amount.amount_minor for entry in second.ledger() if entry.kind == "charge"]


async def test_a_decline_that_another_processor_may_not_share_goes_on_there(shop: Shop, second: MoodySandbox) -> None:
    paid = await pay(shop)
    assert (paid.order.status, paid.order.processor, paid.order.attempt_count) == (OrderStatus.CAPTURED, "second", 2)
    assert charges(shop, second) == ([], [1_000])
    first, then = await shop.attempts(paid.order.id)
    assert (first.status, first.error_code) == (AttemptStatus.FAILED, "declined")
    assert (then.status, then.processor) == (AttemptStatus.CAPTURED, "second")
    # The merchant is never told of a failure that was none.
    assert await shop.event_types(paid.order.id) == [
        "order.created",
        "payment.processing",
        "payment.processing",
        "payment.captured",
    ]


CODES = [
    "declined", "issuer_unavailable", "not_supported", "configuration", "suspected_fraud", "insufficient_funds",
    "invalid_card", "authentication_required", "duplicate",
]  # fmt: skip


@pytest.mark.parametrize("code", CODES)
async def test_the_class_of_a_decline_decides(shop: Shop, second: MoodySandbox, code: str) -> None:
    paid = await pay(shop, f"tok_decline_{code}")
    goes_on = unified(code).decline_class in (DeclineClass.CASCADE, DeclineClass.TECH, DeclineClass.CONFIG)
    wanted = (OrderStatus.CAPTURED, 2) if goes_on else (OrderStatus.FAILED, 1)
    assert (paid.order.status, paid.order.attempt_count) == wanted
    assert len(second.called("authorize")) == goes_on


async def test_a_request_that_was_surely_not_sent_goes_on(shop: Shop, second: MoodySandbox) -> None:
    shop.next_answers("authorize", BUSY, BUSY)
    paid = await pay(shop, "tok_approve")
    assert (paid.order.status, paid.order.processor) == (OrderStatus.CAPTURED, "second")
    assert charges(shop, second) == ([], [1_000])


@pytest.mark.parametrize("answer", [SILENCE, Pending("sbx_1"), ActionRequired("sbx_1", redirect_url="https://bank")])
async def test_what_may_still_be_paid_stays_where_it_is(shop: Shop, second: MoodySandbox, answer: Outcome) -> None:
    shop.next_answers("authorize", answer, is_done=True)
    paid = await pay(shop, "tok_approve")
    assert paid.order.attempt_count == 1
    assert second.calls == []


async def test_without_a_token_of_its_own_no_processor_takes_over(shop: Shop, second: MoodySandbox) -> None:
    order = await shop.order()
    paid = await shop.pay(order.id, "tok_decline_declined")
    assert (paid.order.status, paid.order.last_error_code) == (OrderStatus.FAILED, "declined")
    assert second.calls == []
    assert (await shop.event_types(order.id))[-1] == "payment.failed"


async def test_a_processor_that_was_asked_for_by_name_is_the_only_one(shop: Shop, second: MoodySandbox) -> None:
    paid = await pay(shop, processor="sandbox")
    assert (paid.order.status, paid.order.attempt_count) == (OrderStatus.FAILED, 1)
    assert second.calls == []


async def test_every_processor_is_tried_once_and_the_last_decline_is_the_order_s(
    shop: Shop, second: MoodySandbox
) -> None:
    paid = await pay(shop, "tok_decline_issuer_unavailable", "tok_decline_not_supported")
    assert (paid.order.status, paid.order.attempt_count) == (OrderStatus.FAILED, 2)
    assert paid.order.last_error_code == "not_supported"
    assert (await shop.event_types(paid.order.id)).count("payment.failed") == 1
    assert charges(shop, second) == ([], [])


async def test_an_order_s_budget_of_attempts_is_kept(shop: Shop, second: MoodySandbox) -> None:
    order = await shop.order()
    for _ in range(shop.context.settings.max_attempts_per_order - 1):
        await shop.pay(order.id, "tok_decline_invalid_card", is_retry=True)
    paid = await shop.pay(order.id, None, is_retry=True, **both())
    assert paid.order.status is OrderStatus.FAILED
    assert paid.order.attempt_count == shop.context.settings.max_attempts_per_order
    assert second.calls == []


async def test_the_customer_s_own_decline_in_the_browser_is_left_to_the_page(shop: Shop, second: MoodySandbox) -> None:
    waiting = await shop.pay((await shop.order()).id, None)
    assert waiting.attempt is not None
    declined = Declined("declined", DeclineClass.CASCADE, "No.", reference=waiting.attempt.processor_reference)
    recorded = await record(shop.context, waiting.attempt, declined, job=None)
    assert recorded.in_hand.order.status is OrderStatus.FAILED
    assert second.calls == []


# Where a declined payment can still be paid, it is cancelled first.


async def test_a_payment_that_could_still_be_paid_is_cancelled_first(shop: Shop, second: MoodySandbox) -> None:
    makes_declines_open(shop, DeclineFinality.UNTIL_CANCELLED)
    paid = await pay(shop)
    assert (paid.order.status, paid.order.processor) == (OrderStatus.CAPTURED, "second")
    assert [method for method, _, _ in shop.sandbox.calls] == ["authorize", "void"]
    order_of_calls = [shop.sandbox.calls[-1][0], second.calls[0][0]]
    assert order_of_calls == ["void", "authorize"]


async def test_a_payment_that_nothing_rules_out_is_not_followed(shop: Shop, second: MoodySandbox) -> None:
    makes_declines_open(shop, DeclineFinality.OPEN)
    paid = await pay(shop)
    assert (paid.order.status, paid.order.attempt_count) == (OrderStatus.FAILED, 1)
    assert second.calls == []


async def test_money_that_turns_up_at_the_fence_is_the_order_s(shop: Shop, second: MoodySandbox) -> None:
    makes_declines_open(shop, DeclineFinality.UNTIL_CANCELLED)
    shop.next_answers("void", Approved("sbx_1", is_captured=True, amount_minor=1_000))
    paid = await pay(shop)
    assert (paid.order.status, paid.order.processor, paid.order.attempt_count) == (OrderStatus.CAPTURED, "sandbox", 1)
    assert second.calls == []


async def test_a_fence_without_an_answer_is_asked_for_again_and_then_given_up(shop: Shop, second: MoodySandbox) -> None:
    makes_declines_open(shop, DeclineFinality.UNTIL_CANCELLED)
    shop.next_answers("void", *[SILENCE] * (FENCE_TRIES + 1))
    paid = await pay(shop)
    for step in polling.STEPS_S[:FENCE_TRIES]:
        assert (await shop.now(paid.order.id)).order.status is OrderStatus.PROCESSING
        shop.clock.forward(seconds=step)
        await work_off(shop.context)
    failed = (await shop.now(paid.order.id)).order
    assert (failed.status, failed.last_error_code) == (OrderStatus.FAILED, "declined")
    assert len({key for _, key in shop.sandbox.called("void")}) == 1
    assert second.calls == []


async def test_a_fence_that_answers_at_last_lets_the_order_go_on(shop: Shop, second: MoodySandbox) -> None:
    makes_declines_open(shop, DeclineFinality.UNTIL_CANCELLED)
    shop.next_answers("void", SILENCE)
    paid = await pay(shop)
    shop.clock.forward(seconds=polling.STEPS_S[0])
    await work_off(shop.context)
    assert (await shop.now(paid.order.id)).order.status is OrderStatus.CAPTURED
    assert charges(shop, second) == ([], [1_000])


async def test_a_retry_cancels_what_the_last_attempt_left_open(shop: Shop) -> None:
    makes_declines_open(shop, DeclineFinality.UNTIL_CANCELLED)
    failed = await shop.paid("tok_decline_invalid_card")
    shop.next_answers("void", SILENCE)
    with pytest.raises(LoopError) as error:
        await shop.pay(failed.order.id, is_retry=True)
    assert error.value.code == "previous_attempt_open"
    assert (await shop.now(failed.order.id)).order.attempt_count == 1
    paid = await shop.pay(failed.order.id, is_retry=True)
    assert paid.order.status is OrderStatus.CAPTURED


async def test_a_retry_finds_out_that_the_last_attempt_was_paid(shop: Shop) -> None:
    makes_declines_open(shop, DeclineFinality.UNTIL_CANCELLED)
    failed = await shop.paid("tok_decline_invalid_card")
    shop.next_answers("void", Approved("sbx_1", is_captured=True, amount_minor=1_000))
    with pytest.raises(LoopError) as error:
        await shop.pay(failed.order.id, is_retry=True)
    assert error.value.code == "invalid_status"
    assert (await shop.now(failed.order.id)).order.status is OrderStatus.CAPTURED


# The process dies on the way.


async def test_a_failover_whose_process_died_is_taken_over(shop: Shop, second: MoodySandbox) -> None:
    makes_declines_open(shop, DeclineFinality.UNTIL_CANCELLED)
    shop.hang_next("void")
    shop.wait_s = 0.2
    waiting = await pay(shop)
    assert waiting.order.status is OrderStatus.PROCESSING
    await shop.lose_process()
    shop.clock.at += LEASE
    await work_off(shop.context)
    await shop.wait_for_jobs()
    assert (await shop.now(waiting.order.id)).order.status is OrderStatus.CAPTURED
    assert charges(shop, second) == ([], [1_000])


async def test_a_failover_that_lost_its_job_is_rescued(shop: Shop, second: MoodySandbox) -> None:
    shop.hang_next("void")
    makes_declines_open(shop, DeclineFinality.UNTIL_CANCELLED)
    shop.wait_s = 0.2
    waiting = await pay(shop)
    await shop.lose_process()
    async with shop.context.database.transaction() as session:
        (lost,) = await shop.jobs(waiting.order.id)
        await session.run_together([jobs.finishing(lost)])
    shop.clock.at += RESCUE_AFTER
    assert await rescue_stale(shop.context) == 1
    await work_off(shop.context)
    await shop.wait_for_jobs()
    assert (await shop.now(waiting.order.id)).order.status is OrderStatus.CAPTURED
    assert charges(shop, second) == ([], [1_000])


async def test_a_late_success_during_the_fence_ends_the_failover(shop: Shop, second: MoodySandbox) -> None:
    makes_declines_open(shop, DeclineFinality.UNTIL_CANCELLED)
    shop.next_answers("void", SILENCE)
    waiting = await pay(shop)
    (first,) = await shop.attempts(waiting.order.id)
    paid = Approved(str(first.processor_reference), is_captured=True, amount_minor=1_000)
    await record(shop.context, first, paid, job=None)
    shop.clock.forward(seconds=polling.STEPS_S[0])
    shop.next_answers("void", Cancelled())
    await work_off(shop.context)
    assert (await shop.now(waiting.order.id)).order.status is OrderStatus.CAPTURED
    assert second.calls == []
    assert await shop.jobs(waiting.order.id) == []


async def test_the_reasons_name_who_was_tried_and_why_it_failed(shop: Shop, second: MoodySandbox) -> None:
    paid = await pay(shop)
    async with shop.context.database.reading() as reader:
        _, (then, reasons) = await attempts.of_order(reader, shop.merchant_id, paid.order.id)
    assert then.processor == second.name
    assert reasons[:2] == ("after sandbox failed: declined", "sandbox left out: it was tried for this order already")


# What Loop cancels so that another attempt may follow is not its order's end, whoever tells of it.


async def hears_of_its_fence(shop: Shop, order_id: str) -> None:
    """Have the processor tell by a webhook that the latest attempt is cancelled."""
    tried = (await shop.attempts(order_id))[-1]
    await record(shop.context, tried, Cancelled(tried.processor_reference), job=None)


@pytest.mark.parametrize(
    ("tries", "processor", "code"), [(1, "nobody", "no_processor"), (3, None, "attempts_exhausted")]
)
async def test_a_retry_that_is_refused_cancels_nothing(
    shop: Shop, tries: int, processor: str | None, code: str
) -> None:
    makes_declines_open(shop, DeclineFinality.UNTIL_CANCELLED)
    order = await shop.order()
    for _ in range(tries):
        await shop.pay(order.id, "tok_decline_invalid_card", is_retry=True)
    fences = len(shop.sandbox.called("void"))
    with pytest.raises(LoopError) as error:
        await shop.pay(order.id, is_retry=True, processor=processor)
    assert error.value.code == code
    assert len(shop.sandbox.called("void")) == fences == tries - 1


async def test_a_retry_s_fence_that_is_heard_of_first_leaves_the_order_to_be_tried_again(shop: Shop) -> None:
    makes_declines_open(shop, DeclineFinality.UNTIL_CANCELLED)
    failed = await shop.paid("tok_decline_invalid_card")
    shop.next_answers("void", SILENCE, is_done=True)
    with pytest.raises(LoopError, match="previous_attempt_open"):
        await shop.pay(failed.order.id, is_retry=True)
    told = await shop.event_types(failed.order.id)
    await hears_of_its_fence(shop, failed.order.id)
    now = await shop.now(failed.order.id)
    assert now.attempt is not None
    assert (now.order.status, now.order.last_error_code) == (OrderStatus.FAILED, "invalid_card")
    assert (now.attempt.status, now.attempt.error_code) == (AttemptStatus.CANCELLED, "invalid_card")
    assert await shop.event_types(failed.order.id) == told
    assert (await shop.pay(failed.order.id, is_retry=True)).order.status is OrderStatus.CAPTURED
    assert len(shop.sandbox.called("void")) == 1


@pytest.mark.parametrize("loses_its_job", [False, True])
async def test_a_fence_that_is_heard_of_first_lets_the_order_go_on(
    shop: Shop, second: MoodySandbox, loses_its_job: bool
) -> None:
    makes_declines_open(shop, DeclineFinality.UNTIL_CANCELLED)
    shop.next_answers("void", SILENCE, is_done=True)
    waiting = await pay(shop)
    await hears_of_its_fence(shop, waiting.order.id)
    assert (await shop.now(waiting.order.id)).order.status is OrderStatus.PROCESSING
    if loses_its_job:
        (lost,) = await shop.jobs(waiting.order.id)
        await shop.context.database.write_at_once([jobs.finishing(lost)])
        shop.clock.at += RESCUE_AFTER
        assert await rescue_stale(shop.context) == 1
    shop.clock.forward(seconds=polling.STEPS_S[0])
    await work_off(shop.context)
    assert (await shop.now(waiting.order.id)).order.status is OrderStatus.CAPTURED
    assert charges(shop, second) == ([], [1_000])
    assert "payment.cancelled" not in await shop.event_types(waiting.order.id)


async def test_what_somebody_else_cancels_is_the_order_s_end(shop: Shop) -> None:
    makes_declines_open(shop, DeclineFinality.UNTIL_CANCELLED)
    failed = await shop.paid("tok_decline_invalid_card")
    await hears_of_its_fence(shop, failed.order.id)
    assert (await shop.now(failed.order.id)).order.status is OrderStatus.CANCELLED


@pytest.mark.parametrize("is_heard_of", [False, True])
async def test_an_order_that_is_not_tried_again_after_all_is_cancelled(shop: Shop, is_heard_of: bool) -> None:
    makes_declines_open(shop, DeclineFinality.UNTIL_CANCELLED)
    failed = await shop.paid("tok_decline_invalid_card")
    shop.next_answers("void", SILENCE, is_done=True)
    with pytest.raises(LoopError, match="previous_attempt_open"):
        await shop.pay(failed.order.id, is_retry=True)
    if is_heard_of:
        await hears_of_its_fence(shop, failed.order.id)
    assert (await shop.cancel(failed.order.id)).status is OrderStatus.CANCELLED
    assert (await shop.event_types(failed.order.id))[-1] == "payment.cancelled"
