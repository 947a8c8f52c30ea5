"""Payments over the sandbox: what the merchant is answered, what is written down, and one charge whatever happens."""

import asyncio
import json
from dataclasses import replace
from datetime import timedelta

import pytest

from loop.domain import polling
from loop.domain.attempts import Approved, AttemptStatus, Declined, NotSent, Pending, Unknown
from loop.domain.declines import DECLINES, DeclineClass
from loop.domain.errors import ErrorKind, LoopError
from loop.domain.orders import OrderStatus
from loop.processors.base import AuthorizeRequest
from loop.processors.sandbox import RESULT_PARAMETER, SIGNATURE_PARAMETER, Result
from loop.storage import checkout
from loop.storage import jobs as job_rows
from loop.storage.checkout import CheckoutSession
from loop.storage.jobs import LEASE
from loop.storage.orders import OrderInHand
from loop.workflows import payments, processor_configs
from loop.workflows.attempts import prepare
from loop.workflows.outcomes import record
from loop.workflows.processor_configs import ConfigChange
from tests.builders import Clock, Mood, Shop, open_shop, work_off

SILENCE = Unknown("no answer")
UNREACHABLE = NotSent("processor_unreachable", "Nobody was there.")


def refused(code: str, caught: pytest.ExceptionInfo[LoopError]) -> bool:
    return caught.value.code == code and caught.value.kind in (ErrorKind.INVALID, ErrorKind.NOT_FOUND)


async def test_an_approved_payment(shop: Shop) -> None:
    paid = await shop.paid()
    order, attempt = paid.order, paid.attempt
    assert attempt is not None
    assert (order.status, order.processor, order.attempt_count) == (OrderStatus.CAPTURED, "sandbox", 1)
    assert (order.amount_authorized_minor, order.amount_captured_minor) == (1_000, 1_000)
    assert (attempt.status, attempt.number) == (AttemptStatus.CAPTURED, 1)
    assert order.processor_order_id == attempt.processor_reference
    assert not order.needs_review
    assert await shop.now(order.id) == paid
    assert await shop.event_types(order.id) == ["order.created", "payment.processing", "payment.captured"]
    (moved,) = await shop.transactions(order.id)
    assert (moved.type, moved.status, moved.amount_minor, moved.attempt_id) == ("capture", "success", 1_000, attempt.id)
    assert await shop.jobs(order.id) == []
    assert shop.moved("charge") == [1_000]


async def test_a_payment_that_is_only_to_be_authorized(shop: Shop) -> None:
    paid = await shop.paid(is_manual_capture=True)
    assert (paid.order.status, paid.order.amount_authorized_minor) == (OrderStatus.AUTHORIZED, 1_000)
    assert paid.order.amount_captured_minor == 0
    assert (await shop.event_types(paid.order.id))[-1] == "payment.authorized"
    assert [row.type for row in await shop.transactions(paid.order.id)] == ["authorization"]


@pytest.mark.parametrize("code", ["insufficient_funds", "card_blocked", "invalid_card", "processor_error"])
async def test_a_declined_payment_is_an_answer(shop: Shop, code: str) -> None:
    paid = await shop.paid(f"tok_decline_{code}")
    assert paid.attempt is not None
    assert (paid.order.status, paid.order.last_error_code) == (OrderStatus.FAILED, code)
    assert (paid.attempt.status, paid.attempt.decline_class) == (AttemptStatus.FAILED, DECLINES[code].decline_class)
    told = json.loads((await shop.events(paid.order.id))[-1].body)
    assert (told["eventType"], told["status"]) == ("payment.failed", "failed")
    assert (told["payload"]["errorCode"], told["payload"]["declineCategory"]) == (code, DECLINES[code].decline_class)
    assert [row.status for row in await shop.transactions(paid.order.id)] == ["failed"]
    assert shop.moved("charge") == []


async def come_back(shop: Shop, order_id: str, result: Result, *, is_signed: bool = True) -> OrderInHand:
    """Have the customer come back from the bank's page."""
    attempt = (await shop.now(order_id)).attempt
    assert attempt is not None
    assert attempt.processor_reference is not None
    signature = shop.sandbox.sign_result(attempt.processor_reference, result)
    parameters = {RESULT_PARAMETER: result, SIGNATURE_PARAMETER: signature if is_signed else "0" * 64}
    return await payments.complete_action(shop.context, attempt.id, parameters)


@pytest.mark.parametrize(
    ("result", "status", "event"),
    [
        ("approved", OrderStatus.CAPTURED, "payment.captured"),
        ("declined", OrderStatus.FAILED, "payment.failed"),
        ("failed", OrderStatus.FAILED, "payment.failed"),
    ],
)
async def test_a_customer_who_must_prove_who_they_are(
    shop: Shop, result: Result, status: OrderStatus, event: str
) -> None:
    waiting = await shop.paid("tok_3ds")
    assert waiting.order.status is OrderStatus.REQUIRES_ACTION
    assert waiting.attempt is not None
    assert waiting.attempt.action is not None
    assert "/sandbox/challenge/" in str(waiting.attempt.action["redirectUrl"])
    assert waiting.order.expires_at is not None
    assert await shop.jobs(waiting.order.id) == []
    forged = await come_back(shop, waiting.order.id, result, is_signed=False)
    assert forged.order.status is OrderStatus.REQUIRES_ACTION
    assert (await come_back(shop, waiting.order.id, result)).order.status is status
    assert (await come_back(shop, waiting.order.id, result)).order.status is status  # the page is loaded again
    assert await shop.event_types(waiting.order.id) == [
        "order.created", "payment.processing", "payment.requires_action", event,
    ]  # fmt: skip
    assert shop.moved("charge") == ([1_000] if status is OrderStatus.CAPTURED else [])


async def test_without_a_token_the_customer_s_browser_pays(shop: Shop) -> None:
    order = await shop.order()
    waiting = await shop.pay(order.id, None)
    assert waiting.order.status is OrderStatus.REQUIRES_ACTION
    assert waiting.attempt is not None
    assert waiting.attempt.action is not None
    assert "/sandbox/payments/" in str(waiting.attempt.action["redirectUrl"])
    assert (await come_back(shop, order.id, "approved")).order.status is OrderStatus.CAPTURED


async def test_an_answer_about_the_customer_s_return_that_is_lost_is_asked_for_again(shop: Shop, clock: Clock) -> None:
    waiting = await shop.paid("tok_3ds")
    await come_back(shop, waiting.order.id, "approved", is_signed=False)
    attempt = waiting.attempt
    assert attempt is not None
    assert attempt.processor_reference is not None
    shop.next_answers("fetch", SILENCE)
    unclear = (await record(shop.context, attempt, SILENCE, job=None)).in_hand
    assert unclear.order.status is OrderStatus.REQUIRES_ACTION
    (asking,) = await shop.jobs(waiting.order.id)
    assert asking.run_at - clock.at <= timedelta(seconds=polling.STEPS_S[0])
    signature = shop.sandbox.sign_result(attempt.processor_reference, "approved")
    account = processor_configs.account_of(
        shop.context, (await processor_configs.list_all(shop.context, shop.merchant_id))[0]
    )
    call = await prepare(shop.context, attempt.id)
    assert call is not None
    await shop.sandbox.complete_action(
        account, call.payment, parameters={RESULT_PARAMETER: "approved", SIGNATURE_PARAMETER: signature}
    )
    clock.forward(seconds=2)
    await work_off(shop.context)  # silence once more
    assert (await shop.now(waiting.order.id)).order.status is OrderStatus.REQUIRES_ACTION
    clock.forward(seconds=10)
    await work_off(shop.context)
    assert (await shop.now(waiting.order.id)).order.status is OrderStatus.CAPTURED
    assert await shop.jobs(waiting.order.id) == []


async def test_a_pending_payment_is_asked_about_until_it_is_known(shop: Shop, clock: Clock) -> None:
    waiting = await shop.paid("tok_pending")
    assert waiting.order.status is OrderStatus.PROCESSING
    assert waiting.attempt is not None
    assert waiting.attempt.status is AttemptStatus.PENDING
    shop.next_answers("fetch", *[Pending(str(waiting.attempt.processor_reference))] * 2)
    asked_at = []
    while (await shop.now(waiting.order.id)).order.status is OrderStatus.PROCESSING:
        (asking,) = await shop.jobs(waiting.order.id)
        asked_at.append(round((asking.run_at - clock.at).total_seconds()))
        clock.forward(seconds=asked_at[-1])
        await work_off(shop.context)
    assert asked_at == [2, 10, 30]
    assert len(shop.sandbox.called("authorize")) == 1  # what is pending there is not sent again
    assert await shop.event_types(waiting.order.id) == ["order.created", "payment.processing", "payment.captured"]


@pytest.mark.parametrize("token", ["tok_timeout_then_charged", "tok_timeout_then_nothing"])
async def test_silence_is_unclear_until_the_same_request_is_answered(shop: Shop, clock: Clock, token: str) -> None:
    waiting = await shop.paid(token)
    assert waiting.order.status is OrderStatus.PROCESSING
    assert waiting.attempt is not None
    assert waiting.attempt.status is AttemptStatus.UNKNOWN
    assert await shop.transactions(waiting.order.id) == []
    clock.forward(seconds=1)
    assert await work_off(shop.context) == 0
    clock.forward(seconds=1)
    assert await work_off(shop.context) == 1
    known = await shop.now(waiting.order.id)
    assert known.attempt is not None
    assert known.order.status is OrderStatus.CAPTURED
    assert (known.attempt.unclear_since, known.attempt.asked_count) == (None, 0)
    assert shop.moved("charge") == [1_000]
    first, second = shop.sandbox.called("authorize")
    assert first == second  # the same request under the same key


async def test_a_request_is_repeated_as_it_was_though_the_order_s_settings_changed(shop: Shop, clock: Clock) -> None:
    shop.next_answers("authorize", SILENCE)
    order = await shop.order(description="Shoes", customer_email="zoe@example.com")
    await shop.pay(order.id, return_url="https://shop.example/back", payment_method="wallet")
    clock.forward(seconds=2)
    await work_off(shop.context)
    (first, key), again = shop.sandbox.called("authorize")
    assert again == (first, key)
    assert isinstance(first, AuthorizeRequest)
    assert (first.description, first.customer_email, first.payment_method) == ("Shoes", "zoe@example.com", "wallet")
    assert first.return_url.startswith(shop.context.settings.checkout_base_url)


async def test_an_adapter_that_raises_says_nothing_of_the_money(shop: Shop, clock: Clock) -> None:
    shop.next_answers("authorize", RuntimeError("a bug"), is_done=True)
    waiting = await shop.paid()
    assert waiting.order.status is OrderStatus.PROCESSING
    clock.forward(seconds=2)
    await work_off(shop.context)
    assert (await shop.now(waiting.order.id)).order.status is OrderStatus.CAPTURED
    assert shop.moved("charge") == [1_000]


async def test_a_request_that_was_not_sent_twice_has_failed(shop: Shop) -> None:
    shop.next_answers("authorize", UNREACHABLE, UNREACHABLE)
    paid = await shop.paid()
    assert (paid.order.status, paid.order.last_error_code) == (OrderStatus.FAILED, "processor_unreachable")


async def test_a_request_that_was_not_sent_is_sent_once_more_under_the_same_key(shop: Shop) -> None:
    shop.next_answers("authorize", UNREACHABLE)
    paid = await shop.paid()
    assert (paid.order.status, paid.order.attempt_count) == (OrderStatus.CAPTURED, 1)
    assert len({key for _, key in shop.sandbox.called("authorize")}) == 1


async def test_a_request_that_makes_no_sense_is_not_sent_again(shop: Shop) -> None:
    shop.next_answers("authorize", NotSent("invalid_request", "No."))
    paid = await shop.paid()
    assert paid.order.status is OrderStatus.FAILED
    assert len(shop.sandbox.called("authorize")) == 1


async def test_a_repeat_that_was_not_sent_says_nothing_of_the_first(shop: Shop, clock: Clock) -> None:
    shop.next_answers("authorize", SILENCE, is_done=True)
    shop.next_answers("authorize", UNREACHABLE, UNREACHABLE)
    waiting = await shop.paid()
    for step in polling.STEPS_S[:2]:
        clock.forward(seconds=step)
        await work_off(shop.context)
        assert (await shop.now(waiting.order.id)).order.status is OrderStatus.PROCESSING
    clock.forward(seconds=polling.STEPS_S[2])
    await work_off(shop.context)
    assert (await shop.now(waiting.order.id)).order.status is OrderStatus.CAPTURED
    assert shop.moved("charge") == [1_000]


async def test_what_stays_unclear_is_shown_to_a_person_and_asked_about_for_ever(shop: Shop, clock: Clock) -> None:
    shop.next_answers("authorize", *[SILENCE] * 200)
    waiting = await shop.paid()
    began = clock.at
    reviewed_after: timedelta | None = None
    for _ in range(40):
        (asking,) = await shop.jobs(waiting.order.id)
        assert timedelta() < asking.run_at - clock.at <= timedelta(hours=1)
        assert asking.failures == 0  # to be without an answer is no failure of the job
        clock.at = asking.run_at
        await work_off(shop.context)
        if reviewed_after is None and (await shop.now(waiting.order.id)).order.needs_review:
            reviewed_after = clock.at - began
    assert reviewed_after is not None
    assert timedelta(minutes=10) < reviewed_after < timedelta(hours=2)
    assert clock.at - began > timedelta(hours=24)
    assert (await shop.now(waiting.order.id)).order.status is OrderStatus.PROCESSING
    keys = {key for _, key in shop.sandbox.called("authorize")}
    assert len(keys) == 1
    assert shop.sandbox.called("fetch")  # the processor has forgotten the key by now: it is only looked up


async def test_the_processor_that_surely_never_heard_of_it_makes_an_old_payment_fail(shop: Shop, clock: Clock) -> None:
    shop.next_answers("authorize", SILENCE)
    waiting = await shop.paid()
    clock.forward(hours=24)
    shop.next_answers("fetch", NotSent("invalid_request", "There is no such payment."))
    await work_off(shop.context)
    assert (await shop.now(waiting.order.id)).order.status is OrderStatus.FAILED


async def test_an_order_is_paid_once(shop: Shop) -> None:
    paid = await shop.paid()
    with pytest.raises(LoopError) as caught:
        await shop.pay(paid.order.id)
    assert refused("invalid_status", caught)
    assert shop.moved("charge") == [1_000]


async def test_of_many_who_pay_at_once_one_does(shop: Shop) -> None:
    order = await shop.order()
    outcomes = await asyncio.gather(*(shop.pay(order.id) for _ in range(12)), return_exceptions=True)
    errors = [outcome.code for outcome in outcomes if isinstance(outcome, LoopError)]
    assert errors == ["invalid_status"] * 11
    assert shop.moved("charge") == [1_000]
    assert len(await shop.attempts(order.id)) == 1
    assert (await shop.event_types(order.id)).count("payment.processing") == 1


async def test_a_failed_order_is_tried_again_when_asked_to_until_its_attempts_are_used_up(shop: Shop) -> None:
    order = (await shop.paid("tok_decline_declined")).order
    with pytest.raises(LoopError) as caught:
        await shop.pay(order.id)
    assert refused("invalid_status", caught)
    again = await shop.pay(order.id, "tok_decline_declined", is_retry=True)
    assert (again.order.status, again.order.attempt_count) == (OrderStatus.FAILED, 2)
    third = await shop.pay(order.id, "tok_decline_declined", is_retry=True)
    assert third.order.attempt_count == shop.context.settings.max_attempts_per_order == 3
    with pytest.raises(LoopError) as caught:
        await shop.pay(order.id, is_retry=True)
    assert refused("attempts_exhausted", caught)
    assert [attempt.number for attempt in await shop.attempts(order.id)] == [1, 2, 3]


async def test_a_second_attempt_that_succeeds_leaves_no_error(shop: Shop) -> None:
    order = (await shop.paid("tok_decline_declined")).order
    paid = await shop.pay(order.id, is_retry=True)
    assert (paid.order.status, paid.order.last_error_code) == (OrderStatus.CAPTURED, None)
    assert paid.attempt is not None
    assert paid.order.processor_order_id == paid.attempt.processor_reference


async def test_asking_to_retry_a_pending_order_just_pays_it(shop: Shop) -> None:
    order = await shop.order()
    assert (await shop.pay(order.id, is_retry=True)).order.status is OrderStatus.CAPTURED


@pytest.mark.parametrize("how", ["disabled", "removed", "forced to another"])
async def test_without_a_processor_the_order_stays_pending(shop: Shop, how: str) -> None:
    order = await shop.order()
    if how == "disabled":
        await processor_configs.update(shop.context, shop.merchant_id, "sandbox", change=ConfigChange(is_enabled=False))
    elif how == "removed":
        await processor_configs.remove(shop.context, shop.merchant_id, "sandbox")
    with pytest.raises(LoopError) as caught:
        await shop.pay(order.id, processor="stripe" if how == "forced to another" else None)
    assert refused("no_processor", caught)
    now = await shop.now(order.id)
    assert (now.order, now.attempt) == (order, None)
    assert await shop.event_types(order.id) == ["order.created"]
    assert (await shop.pay(order.id)).order.status is OrderStatus.CAPTURED if how == "forced to another" else True


async def test_who_does_not_wait_is_told_that_it_is_processing(shop: Shop) -> None:
    shop.wait_s = 0
    order = await shop.order()
    told = await shop.pay(order.id)
    assert told.order.status is OrderStatus.PROCESSING
    await shop.wait_for_jobs()
    assert (await shop.now(order.id)).order.status is OrderStatus.CAPTURED


async def test_who_waits_too_short_is_told_that_it_is_processing(shop: Shop) -> None:
    thawed = asyncio.Event()
    order = await shop.order()
    shop.sandbox.moods.append(Mood("authorize", SILENCE, thawed=thawed))
    shop.wait_s = 0.05
    told = await shop.pay(order.id)
    assert told.order.status is OrderStatus.PROCESSING
    thawed.set()
    await shop.wait_for_jobs()


async def test_a_caller_who_goes_away_does_not_take_the_payment_along(shop: Shop) -> None:
    thawed = asyncio.Event()
    order = await shop.order()
    approved = Approved("sbx_1", is_captured=True, amount_minor=1_000)
    shop.sandbox.moods.append(Mood("authorize", approved, is_done=True, thawed=thawed))
    paying = asyncio.create_task(shop.pay(order.id))
    await shop.until_called("authorize")
    paying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await paying
    thawed.set()
    await shop.wait_for_jobs()
    assert (await shop.now(order.id)).order.status is OrderStatus.CAPTURED


async def test_nobody_pays_somebody_else_s_order(shop: Shop) -> None:
    order = await shop.order()
    other = await open_shop(shop.context, shop.clock, number=2)
    for order_id in (order.id, "ord_of_nobody"):
        with pytest.raises(LoopError) as caught:
            await other.pay(order_id)
        assert refused("not_found", caught)
    assert (await shop.now(order.id)).order == order


async def test_a_process_that_dies_before_the_call_is_succeeded_after_the_lease(shop: Shop, clock: Clock) -> None:
    shop.wait_s = 0
    order = await shop.order()
    shop.hang_next("authorize")
    await shop.pay(order.id)
    await shop.until_called("authorize")
    await shop.lose_process()
    assert shop.moved("charge") == []
    clock.forward(seconds=LEASE.total_seconds() - 1)
    assert await work_off(shop.context) == 0
    clock.forward(seconds=1)
    await work_off(shop.context)
    assert (await shop.now(order.id)).order.status is OrderStatus.CAPTURED
    assert shop.moved("charge") == [1_000]


async def test_two_that_run_one_payment_charge_once_and_tell_once(shop: Shop, clock: Clock) -> None:
    thawed = asyncio.Event()
    order = await shop.order()
    approved = Approved("sbx_x", is_captured=True, amount_minor=1_000)
    shop.sandbox.moods.append(Mood("authorize", approved, is_done=True, thawed=thawed))
    shop.wait_s = 0
    await shop.pay(order.id)
    await shop.until_called("authorize")
    clock.forward(seconds=LEASE.total_seconds() + 1)  # frozen for longer than its lease
    await work_off(shop.context)
    finished = await shop.now(order.id)
    assert finished.order.status is OrderStatus.CAPTURED
    thawed.set()
    shop.wait_s = 10
    await shop.wait_for_jobs()
    assert await shop.now(order.id) == finished
    assert shop.moved("charge") == [1_000]
    assert (await shop.event_types(order.id)).count("payment.captured") == 1
    assert len(await shop.transactions(order.id)) == 1


async def test_the_same_answer_from_two_sides_at_once_is_written_down_once(shop: Shop) -> None:
    shop.next_answers("authorize", SILENCE, is_done=True)
    waiting = await shop.paid()
    assert waiting.attempt is not None
    approved = Approved("sbx_x", is_captured=True, amount_minor=1_000)
    await asyncio.gather(*(record(shop.context, waiting.attempt, approved, job=None) for _ in range(8)))
    assert len(await shop.transactions(waiting.order.id)) == 1
    assert (await shop.event_types(waiting.order.id)).count("payment.captured") == 1
    assert not (await shop.now(waiting.order.id)).order.needs_review


async def test_events_are_told_in_the_order_of_what_happened_with_what_was_true_then(shop: Shop) -> None:
    order = (await shop.paid("tok_3ds", external_id="basket-7", metadata={"colour": "grün"})).order
    await come_back(shop, order.id, "approved")
    told = [json.loads(event.body) for event in await shop.events(order.id)]
    assert [(each["eventType"], each["status"]) for each in told] == [
        ("order.created", "pending"),
        ("payment.processing", "processing"),
        ("payment.requires_action", "requires_action"),
        ("payment.captured", "captured"),
    ]
    assert {(each["orderId"], each["externalId"], each["amount"]) for each in told} == {(order.id, "basket-7", 1_000)}
    assert [each["payload"]["amountCaptured"] for each in told] == [0, 0, 0, 1_000]
    assert told[-1]["payload"]["metadata"] == {"colour": "grün"}
    assert told[0]["processor"] is None
    assert told[-1]["processor"] == "sandbox"


async def test_what_was_told_stays_as_it_was_told(shop: Shop) -> None:
    paid = await shop.paid()
    before = [event.body for event in await shop.events(paid.order.id)]
    await shop.refund(paid.order.id)
    assert [event.body for event in await shop.events(paid.order.id)][: len(before)] == before


async def test_a_change_and_its_event_are_one_commit(shop: Shop, clock: Clock) -> None:
    thawed = asyncio.Event()
    order = await shop.order()
    declined = Declined("declined", DeclineClass.CASCADE, "No.")
    shop.sandbox.moods.append(Mood("authorize", declined, thawed=thawed))
    shop.wait_s = 0
    await shop.pay(order.id)
    clock.forward(minutes=1)
    async with shop.context.database.transaction() as session:  # somebody takes the job and does nothing
        await job_rows.claim(session, clock.now(), 10)
    before = (await shop.now(order.id), await shop.events(order.id))
    thawed.set()
    shop.wait_s = 10
    await shop.wait_for_jobs()  # its fence is too old: neither the change nor its event is there
    assert (await shop.now(order.id), await shop.events(order.id)) == before
    assert await shop.transactions(order.id) == []


async def test_a_captured_order_completes_its_checkout_session_once(shop: Shop) -> None:
    order = (await shop.paid("tok_3ds")).order
    session = CheckoutSession(
        id="cs_1",
        merchant_id=shop.merchant_id,
        order_id=order.id,
        url="https://pay.example/checkout/cs_1",
        success_url="https://shop.example/thanks",
        cancel_url=None,
        line_items=[],
        expires_at=shop.clock.at + timedelta(hours=1),
        completed_at=None,
        expired_at=None,
        created_at=shop.clock.at,
    )
    await shop.context.database.write_at_once([checkout.insertion(session)])
    for _ in range(2):
        await come_back(shop, order.id, "approved")
    assert (await shop.event_types(order.id))[-2:] == ["payment.captured", "checkout.completed"]
    async with shop.context.database.reading() as reader:
        stored = await checkout.get(reader, "cs_1")
    assert stored is not None
    assert stored.completed_at is not None
    assert replace(stored, completed_at=None) == session
