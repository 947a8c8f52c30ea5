"""Late successes: money that comes after Loop gave up is true, is told, and never makes a customer pay twice."""

from dataclasses import replace

import pytest

from loop.domain.attempts import ActionRequired, Approved, Attempt, AttemptStatus, Outcome, Unknown, Voided
from loop.domain.failover import DeclineFinality, LateSuccess
from loop.domain.orders import OrderStatus
from loop.domain.refunds import RefundOutcome, RefundStatus
from loop.domain.transactions import TransactionStatus
from loop.processors.base import Capabilities
from loop.storage import orders
from loop.storage.orders import OrderInHand
from loop.workflows import merchants
from loop.workflows.late_successes import SECOND_PAYMENT, TOO_LATE
from loop.workflows.merchants import ProfileChange
from loop.workflows.outcomes import record
from tests.builders import Shop, work_off

TIMES = 3
"""How often the late news comes."""


async def wants_refunds(shop: Shop) -> None:
    await merchants.update_profile(shop.context, shop.merchant_id, ProfileChange(late_success=LateSuccess.REFUND))


async def hears(shop: Shop, attempt: Attempt, outcome: Outcome) -> None:
    """Have the same news come in several times, and do what it calls for."""
    for _ in range(TIMES):
        await record(shop.context, attempt, outcome, job=None)
    await work_off(shop.context)


def taken(attempt: Attempt) -> Approved:
    return Approved(f"sbx_{attempt.id.removeprefix('att_')}_3ds", is_captured=True, amount_minor=attempt.amount_minor)


def held(attempt: Attempt) -> Approved:
    return Approved(f"sbx_{attempt.id.removeprefix('att_')}_3ds", is_captured=False, amount_minor=attempt.amount_minor)


async def given_up(shop: Shop, *, is_manual: bool = False) -> tuple[OrderInHand, Attempt]:
    """Return an order whose only attempt was given up, and that attempt, which its customer could still pay."""
    waiting = await shop.paid("tok_3ds", is_manual_capture=is_manual)
    assert waiting.attempt is not None
    await shop.cancel(waiting.order.id)
    (tried,) = await shop.attempts(waiting.order.id)
    assert tried.status is AttemptStatus.CANCELLED
    return await shop.now(waiting.order.id), tried


async def net(shop: Shop, order_id: str) -> int:
    """Return what Loop's transactions say the customer has paid in the end."""
    sign = {"capture": 1, "refund": -1}
    done = [each for each in await shop.transactions(order_id) if each.status is TransactionStatus.SUCCESS]
    return sum(sign.get(each.type, 0) * each.amount_minor for each in done)


async def test_it_pays_the_order_unless_its_merchant_wants_otherwise(shop: Shop) -> None:
    before, tried = await given_up(shop)
    await hears(shop, tried, taken(tried))
    paid = (await shop.now(before.order.id)).order
    assert (paid.status, paid.amount_captured_minor, paid.needs_review) == (OrderStatus.CAPTURED, 1_000, False)
    assert (await shop.event_types(paid.id))[-2:] == ["payment.captured", "payment.late_success"]
    assert await shop.refunds(paid.id) == []


async def test_it_goes_back_at_once_where_its_merchant_wants_that(shop: Shop) -> None:
    await wants_refunds(shop)
    before, tried = await given_up(shop)
    shop.next_answers("refund", RefundOutcome(RefundStatus.SUCCEEDED, "sbxr_1"))
    await hears(shop, tried, taken(tried))
    order = (await shop.now(before.order.id)).order
    assert (order.status, order.amount_refunded_minor) == (OrderStatus.REFUNDED, 1_000)
    (refund,) = await shop.refunds(order.id)
    assert (refund.reason, refund.is_reversal) == (TOO_LATE, False)
    assert await net(shop, order.id) == 0
    assert (await shop.event_types(order.id))[-4:] == [
        "payment.captured",
        "payment.late_success",
        "refund.created",
        "refund.processed",
    ]


async def test_a_late_hold_is_released_where_its_merchant_wants_that(shop: Shop) -> None:
    await wants_refunds(shop)
    before, tried = await given_up(shop, is_manual=True)
    shop.next_answers("void", Voided("sbx_1"))
    await hears(shop, tried, held(tried))
    order = (await shop.now(before.order.id)).order
    assert order.status is OrderStatus.CANCELLED
    assert [method for method, _, _ in shop.sandbox.calls][-1] == "void"


async def tried_again(shop: Shop, *, is_manual: bool = False, token: str = "tok_approve") -> tuple[Attempt, Attempt]:
    """Return the attempts of an order whose first failed and whose second went its way."""
    failed = await shop.paid("tok_decline_invalid_card", is_manual_capture=is_manual)
    await shop.pay(failed.order.id, token, is_retry=True)
    first, second = await shop.attempts(failed.order.id)
    return first, second


def money_of(attempt: Attempt, *, is_captured: bool = True) -> Approved:
    return Approved(str(attempt.processor_reference), is_captured=is_captured, amount_minor=attempt.amount_minor)


async def test_a_second_payment_goes_back_and_leaves_the_order_as_it_is(shop: Shop) -> None:
    first, second = await tried_again(shop)
    before = (await shop.now(first.order_id)).order
    shop.next_answers("refund", RefundOutcome(RefundStatus.SUCCEEDED, "sbxr_1"))
    await hears(shop, first, money_of(first))
    order = (await shop.now(first.order_id)).order
    assert (order.status, order.amount_captured_minor, order.amount_refunded_minor) == (OrderStatus.CAPTURED, 1_000, 0)
    assert (order.processor_order_id, order.needs_review) == (before.processor_order_id, False)
    (refund,) = await shop.refunds(order.id)
    assert (refund.attempt_id, refund.reason, refund.is_reversal) == (first.id, SECOND_PAYMENT, True)
    assert await net(shop, order.id) == 1_000
    assert (await shop.event_types(order.id))[-3:] == ["payment.late_success", "refund.created", "refund.processed"]
    # What the merchant refunds is still the money that paid the order.
    given_back = await shop.refund(order.id)
    assert (given_back.attempt_id, given_back.amount_minor) == (second.id, 1_000)
    assert (await shop.now(order.id)).order.status is OrderStatus.REFUNDED


async def test_a_second_payment_that_cannot_go_back_needs_a_person(shop: Shop) -> None:
    first, _ = await tried_again(shop)
    shop.next_answers("refund", RefundOutcome(RefundStatus.FAILED, "sbxr_1", "refund_refused", "No."))
    await hears(shop, first, money_of(first))
    order = (await shop.now(first.order_id)).order
    assert (order.status, order.needs_review) == (OrderStatus.CAPTURED, True)
    assert (await shop.event_types(order.id))[-1] == "refund.failed"


async def test_a_second_hold_is_released_and_the_first_stays(shop: Shop) -> None:
    first, second = await tried_again(shop, is_manual=True)
    await hears(shop, first, money_of(first, is_captured=False))
    assert [(subject.request.attempt_id) for subject, _ in shop.sandbox.called("void")] == [first.id]  # type: ignore[attr-defined]
    captured = await shop.capture(first.order_id)
    assert (captured.status, captured.processor_order_id) == (OrderStatus.CAPTURED, second.processor_reference)


@pytest.mark.parametrize("was_in_review", [True, False])
async def test_a_second_hold_that_only_lapses_leaves_the_review_as_it_is(shop: Shop, was_in_review: bool) -> None:
    first, _ = await tried_again(shop, is_manual=True)
    if was_in_review:
        async with shop.context.database.transaction() as session:
            await orders.flag_for_review(session, shop.merchant_id, first.order_id, now=shop.clock.now())
    shop.sandbox.capabilities = Capabilities(is_test_only=True, can_void=False)
    await hears(shop, first, money_of(first, is_captured=False))
    now = (await shop.now(first.order_id)).order
    assert (now.status, now.needs_review) == (OrderStatus.AUTHORIZED, was_in_review)


async def test_the_first_money_pays_and_the_newer_attempt_is_cancelled(shop: Shop) -> None:
    first, second = await tried_again(shop, token="tok_3ds")
    assert second.status is AttemptStatus.REQUIRES_ACTION
    await hears(shop, first, money_of(first))
    order = (await shop.now(first.order_id)).order
    assert (order.status, order.processor_order_id) == (OrderStatus.CAPTURED, first.processor_reference)
    assert [each.status for each in await shop.attempts(order.id)] == [AttemptStatus.CAPTURED, AttemptStatus.CANCELLED]
    given_back = await shop.refund(order.id)
    assert given_back.attempt_id == first.id


async def test_the_newer_attempt_whose_money_comes_after_all_is_the_second_payment(shop: Shop) -> None:
    first, second = await tried_again_in_vain(shop, "tok_approve")
    await hears(shop, first, money_of(first))
    shop.clock.forward(minutes=1)
    await work_off(shop.context)
    order = (await shop.now(first.order_id)).order
    assert (order.status, order.processor_order_id) == (OrderStatus.CAPTURED, first.processor_reference)
    (refund,) = await shop.refunds(order.id)
    assert (refund.attempt_id, refund.is_reversal, refund.status) == (second.id, True, RefundStatus.SUCCEEDED)
    assert await net(shop, order.id) == 1_000
    assert shop.moved("refund") == [1_000]


async def test_the_newer_attempt_that_turns_out_to_wait_for_its_customer_is_cancelled(shop: Shop) -> None:
    first, _ = await tried_again_in_vain(shop, "tok_3ds")
    await hears(shop, first, money_of(first))
    shop.clock.forward(minutes=1)
    await work_off(shop.context)
    assert (await shop.now(first.order_id)).order.status is OrderStatus.CAPTURED
    assert [each.status for each in await shop.attempts(first.order_id)] == [
        AttemptStatus.CAPTURED,
        AttemptStatus.CANCELLED,
    ]
    assert len(shop.sandbox.called("void")) == 1


def can_be_paid_until_cancelled(shop: Shop) -> None:
    shop.sandbox.capabilities = replace(shop.sandbox.capabilities, decline_finality=DeclineFinality.UNTIL_CANCELLED)


async def assert_only_the_first_pays(shop: Shop, order_id: str) -> None:
    assert (await shop.now(order_id)).order.status is OrderStatus.CAPTURED
    assert [each.status for each in await shop.attempts(order_id)] == [AttemptStatus.CAPTURED, AttemptStatus.CANCELLED]
    assert len(shop.sandbox.called("void")) == 1


async def test_the_newer_attempt_that_failed_and_could_still_be_paid_is_cancelled(shop: Shop) -> None:
    first, second = await tried_again(shop, token="tok_decline_invalid_card")
    can_be_paid_until_cancelled(shop)
    assert second.status is AttemptStatus.FAILED
    await hears(shop, first, money_of(first))
    await assert_only_the_first_pays(shop, first.order_id)


async def test_the_newer_attempt_that_fails_only_then_and_could_still_be_paid_is_cancelled(shop: Shop) -> None:
    first, _ = await tried_again_in_vain(shop, "tok_decline_invalid_card")
    can_be_paid_until_cancelled(shop)
    await hears(shop, first, money_of(first))
    shop.clock.forward(minutes=1)
    await work_off(shop.context)
    await assert_only_the_first_pays(shop, first.order_id)


async def test_a_hold_of_an_earlier_attempt_is_what_is_captured_and_cancelled(shop: Shop) -> None:
    for way in ("capture", "cancel"):
        first, second = await tried_again(shop, is_manual=True, token="tok_3ds")
        await hears(shop, first, money_of(first, is_captured=False))
        assert second.status is AttemptStatus.REQUIRES_ACTION
        assert (await shop.now(first.order_id)).order.status is OrderStatus.AUTHORIZED
        if way == "capture":
            shop.next_answers("capture", money_of(first))
            ended = await shop.capture(first.order_id)
            assert (ended.status, ended.processor_order_id) == (OrderStatus.CAPTURED, first.processor_reference)
        else:
            shop.next_answers("void", Voided(str(first.processor_reference)))
            ended = await shop.cancel(first.order_id)
            assert (ended.status, ended.amount_authorized_minor) == (OrderStatus.CANCELLED, 0)


@pytest.mark.parametrize("answer", [ActionRequired("sbx_1"), Unknown("no answer", "sbx_1")])
async def test_what_is_no_money_is_no_late_success(shop: Shop, answer: Outcome) -> None:
    before, tried = await given_up(shop)
    await hears(shop, tried, answer)
    assert (await shop.now(before.order.id)).order == before.order


async def tried_again_in_vain(shop: Shop, token: str) -> tuple[Attempt, Attempt]:
    """Return the attempts of an order whose first failed, and whose second got no answer."""
    failed = await shop.paid("tok_decline_invalid_card")
    shop.next_answers("authorize", Unknown("no answer"), is_done=token != "tok_timeout_then_nothing")
    await shop.pay(failed.order.id, token, is_retry=True)
    first, second = await shop.attempts(failed.order.id)
    assert second.status is AttemptStatus.UNKNOWN
    return first, second


async def test_the_newer_attempt_that_took_nothing_is_not_sent_again(shop: Shop) -> None:
    first, _ = await tried_again_in_vain(shop, "tok_timeout_then_nothing")
    await hears(shop, first, money_of(first))
    sent = len(shop.sandbox.called("authorize"))
    for _ in range(3):
        shop.clock.forward(minutes=10)
        await work_off(shop.context)
    assert (await shop.now(first.order_id)).order.status is OrderStatus.CAPTURED
    assert (shop.moved("charge"), len(shop.sandbox.called("authorize"))) == ([], sent)
    assert shop.sandbox.called("fetch")


# Late money that its merchant does not want leaves the order to the newer attempt.


@pytest.mark.parametrize(
    ("token", "status", "kept"),
    [("tok_approve", OrderStatus.CAPTURED, 1_000), ("tok_decline_invalid_card", OrderStatus.FAILED, 0)],
)
async def test_unwanted_money_goes_back_and_the_newer_attempt_s_is_the_order_s(
    shop: Shop, token: str, status: OrderStatus, kept: int
) -> None:
    await wants_refunds(shop)
    first, second = await tried_again_in_vain(shop, token)
    shop.next_answers("refund", RefundOutcome(RefundStatus.SUCCEEDED, "sbxr_1"))
    await hears(shop, first, money_of(first))
    assert (await shop.now(first.order_id)).order.status is OrderStatus.PROCESSING
    shop.clock.forward(minutes=1)
    await work_off(shop.context)
    order = (await shop.now(first.order_id)).order
    assert (order.status, order.amount_captured_minor, order.amount_refunded_minor) == (status, kept, 0)
    (refund,) = await shop.refunds(order.id)
    assert (refund.attempt_id, refund.reason, refund.is_reversal) == (first.id, TOO_LATE, True)
    assert await net(shop, order.id) == kept
    told = await shop.event_types(order.id)
    assert (told.count("payment.late_success"), told.count("payment.captured")) == (1, kept // 1_000)
    if kept:
        assert (await shop.refund(order.id)).attempt_id == second.id


async def test_unwanted_money_leaves_the_customer_s_new_try_alone(shop: Shop) -> None:
    await wants_refunds(shop)
    first, second = await tried_again(shop, token="tok_3ds")
    shop.next_answers("refund", RefundOutcome(RefundStatus.SUCCEEDED, "sbxr_1"))
    await hears(shop, first, money_of(first))
    assert (await shop.now(first.order_id)).order.status is OrderStatus.REQUIRES_ACTION
    assert shop.sandbox.called("void") == []
    await hears(shop, second, taken(second))
    order = (await shop.now(first.order_id)).order
    assert (order.status, order.amount_captured_minor, order.amount_refunded_minor) == (OrderStatus.CAPTURED, 1_000, 0)
