"""Inbound webhooks: verified, stored once, answered at once, and only ever a hint to ask what is true."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

import pytest

from loop.domain.attempts import Approved, Cancelled, Declined, Unknown
from loop.domain.declines import DeclineClass
from loop.domain.errors import ErrorKind, LoopError
from loop.domain.orders import OrderStatus
from loop.domain.refunds import RefundOutcome, RefundStatus
from loop.processors.base import WebhookEvent
from loop.processors.sandbox import SIGNATURE_HEADER
from loop.storage import jobs as job_rows
from loop.storage import processor_configs, processor_events
from loop.storage.orders import OrderInHand
from loop.storage.processor_events import ProcessorEvent
from loop.workers.execute import execute
from loop.workflows.processor_configs import ConfigChange, put
from loop.workflows.processor_events import MATCH_TRIES, receive
from tests.builders import Clock, MoodySandbox, Shop, open_shop, work_off

SILENCE = Unknown("no answer")


def reference_of(found: OrderInHand) -> str:
    assert found.attempt is not None
    assert found.attempt.processor_reference is not None
    return found.attempt.processor_reference


def signed(body: bytes, secret: str) -> dict[str, str]:
    return {SIGNATURE_HEADER: hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}


async def tell(shop: Shop, body: bytes, headers: dict[str, str], *, is_shared: bool = False) -> None:
    """Deliver a webhook to the shop's account, or to the address that all accounts share."""
    async with shop.context.database.reading() as reader:
        config = await processor_configs.named(reader, shop.merchant_id, "sandbox")
    assert config is not None
    await receive(shop.context, "sandbox", None if is_shared else config.id, body=body, headers=headers)


async def tell_of(shop: Shop, found: OrderInHand, *, event_id: str = "evt_1") -> None:
    body = json.dumps({"id": event_id, "type": "payment.changed", "payment": reference_of(found)}).encode()
    await tell(shop, body, signed(body, shop.webhook_secret))


async def stored(shop: Shop) -> list[ProcessorEvent]:
    """Read the stored events that still have a job, oldest first."""
    async with shop.context.database.transaction() as session:
        live = await job_rows.claim(session, shop.clock.at.replace(year=2999), 100)
        found = [await processor_events.get(session, each.subject) for each in live if each.subject.startswith("pev_")]
        for each in live:
            await session.run_together([job_rows.rescheduling(each, shop.clock.at, failures=each.failures)])
    return sorted((event for event in found if event is not None), key=lambda event: event.created_at)


async def given_up_by_us(shop: Shop) -> OrderInHand:
    """Return an order that was charged, though Loop was told that it was cancelled."""
    shop.next_answers("authorize", Cancelled(), is_done=True)
    return await shop.paid()


async def tell_of_late_money(shop: Shop, late: OrderInHand) -> None:
    assert late.attempt is not None
    body = json.dumps({"id": "e", "type": "t", "payment": f"sbx_{late.attempt.id[4:]}_approve"}).encode()
    await tell(shop, body, signed(body, shop.webhook_secret))


async def test_a_hint_makes_loop_ask_and_the_answer_counts(shop: Shop) -> None:
    waiting = await shop.paid("tok_pending")
    await tell_of(shop, waiting)
    assert (await shop.now(waiting.order.id)).order.status is OrderStatus.PROCESSING  # it is only stored so far
    (event,) = await stored(shop)
    assert (event.payment_reference, event.processed_at) == (reference_of(waiting), None)
    await work_off(shop.context)
    assert (await shop.now(waiting.order.id)).order.status is OrderStatus.CAPTURED
    async with shop.context.database.reading() as reader:
        done = await processor_events.get(reader, event.id)
    assert done is not None
    assert (done.outcome, done.processed_at is not None) == ("order captured", True)


@pytest.mark.parametrize("token", ["tok_webhook_duplicate", "tok_webhook_out_of_order", "tok_approve"])
async def test_however_they_come_there_is_one_state_and_one_event_for_each_change(shop: Shop, token: str) -> None:
    paid = await shop.paid(token)
    webhooks = shop.sandbox.webhooks_for(reference_of(paid), secret=shop.webhook_secret)
    for body, headers in [*webhooks, *webhooks[::-1], *webhooks]:
        await tell(shop, body, headers)
        await work_off(shop.context)
    assert (await shop.now(paid.order.id)).order.status is OrderStatus.CAPTURED
    assert await shop.event_types(paid.order.id) == ["order.created", "payment.processing", "payment.captured"]
    assert len(await shop.transactions(paid.order.id)) == 1


async def test_fifty_at_once_are_stored_once(shop: Shop) -> None:
    waiting = await shop.paid("tok_pending")
    await asyncio.gather(*(tell_of(shop, waiting) for _ in range(50)))
    assert len(await stored(shop)) == 1
    before = len(shop.sandbox.called("fetch"))
    await work_off(shop.context)
    assert len(shop.sandbox.called("fetch")) <= before + 2  # the event's question, and the payment's own
    assert (await shop.event_types(waiting.order.id)).count("payment.captured") == 1


async def test_a_captured_body_under_a_new_id_is_the_same_event(shop: Shop) -> None:
    waiting = await shop.paid("tok_pending")
    body = json.dumps({"id": "evt_1", "type": "t", "payment": reference_of(waiting)}).encode()
    await tell(shop, body, signed(body, shop.webhook_secret))
    spaced = body + b" "  # another body, the same id
    await tell(shop, spaced, signed(spaced, shop.webhook_secret))
    assert len(await stored(shop)) == 1


async def test_webhooks_before_between_and_after_the_answer_end_the_same(shop: Shop) -> None:
    thawed = asyncio.Event()
    order = await shop.order()
    shop.wait_s = 0
    shop.next_answers("authorize", SILENCE, is_done=True)
    shop.sandbox.moods[-1].thawed = thawed
    await shop.pay(order.id)
    await shop.until_called("authorize")
    attempt = (await shop.now(order.id)).attempt
    assert attempt is not None
    assert attempt.processor_reference is None
    reference = f"sbx_{attempt.id.removeprefix('att_')}_approve"
    for number in range(3):  # Loop does not know the reference yet: the attempt's id is in it
        body = json.dumps({"id": f"evt_{number}", "type": "t", "payment": reference}).encode()
        await tell(shop, body, signed(body, shop.webhook_secret))
    await work_off(shop.context)
    thawed.set()
    shop.wait_s = 10
    await shop.wait_for_jobs()
    shop.clock.forward(minutes=2)
    await work_off(shop.context)
    now = await shop.now(order.id)
    assert now.order.status is OrderStatus.CAPTURED
    assert shop.moved("charge") == [1_000]
    assert await shop.event_types(order.id) == ["order.created", "payment.processing", "payment.captured"]


async def test_money_that_comes_late_is_told_as_such(shop: Shop) -> None:
    lost = await given_up_by_us(shop)
    assert lost.order.status is OrderStatus.CANCELLED
    for _ in range(2):
        await tell_of_late_money(shop, lost)
        await work_off(shop.context)
    now = await shop.now(lost.order.id)
    assert (now.order.status, now.order.amount_captured_minor) == (OrderStatus.CAPTURED, 1_000)
    assert (await shop.event_types(lost.order.id))[-2:] == ["payment.captured", "payment.late_success"]


async def test_a_hint_that_is_not_answered_is_asked_about_again(shop: Shop, clock: Clock) -> None:
    waiting = await shop.paid("tok_3ds")
    reference = reference_of(waiting)
    approved = Approved(reference, is_captured=True, amount_minor=1_000)
    shop.next_answers("fetch", SILENCE, SILENCE, approved)
    await tell_of(shop, waiting)
    await work_off(shop.context)
    assert (await shop.now(waiting.order.id)).order.status is OrderStatus.REQUIRES_ACTION
    for _ in range(4):
        clock.forward(seconds=60)
        await work_off(shop.context)
    assert (await shop.now(waiting.order.id)).order.status is OrderStatus.CAPTURED
    assert await shop.jobs(waiting.order.id) == []


class RefundingSandbox(MoodySandbox):
    """The sandbox, whose webhooks may name a refund."""

    def parse_webhook(
        self, body: bytes, headers: Mapping[str, str], *, secrets: Sequence[str], now: datetime
    ) -> WebhookEvent:
        del headers, secrets, now  # the test signs nothing
        event = json.loads(body)
        return WebhookEvent(event["id"], "refund.changed", event["payment"], refund_reference=event["refund"])


@pytest.mark.parametrize("silences", [1, 30])
async def test_a_refund_that_the_bank_sent_back_is_undone_also_when_the_answer_is_late(
    shop: Shop, clock: Clock, silences: int
) -> None:
    shop.context.processors._made["sandbox"] = RefundingSandbox(shop.sandbox._setup)
    paid = await shop.paid()
    refund = await shop.refund(paid.order.id)
    assert (await shop.now(paid.order.id)).order.status is OrderStatus.REFUNDED
    reference = str(refund.processor_reference)
    sent_back = RefundOutcome(RefundStatus.FAILED, reference, error_code="refund_failed", error_message="Sent back.")
    shop.next_answers("fetch_refund", *[RefundOutcome(RefundStatus.UNKNOWN)] * silences, sent_back)
    body = json.dumps({"id": "evt_1", "payment": reference_of(paid), "refund": reference}).encode()
    await tell(shop, body, {})
    for _ in range(silences):
        await work_off(shop.context)
        assert (await shop.now(paid.order.id)).order.status is OrderStatus.REFUNDED
        clock.forward(hours=2)
    await work_off(shop.context)
    now = (await shop.now(paid.order.id)).order
    assert (now.status, now.amount_refunded_minor, now.amount_refund_reserved_minor) == (OrderStatus.CAPTURED, 0, 0)
    assert (await shop.event_types(paid.order.id))[-1] == "refund.failed"


async def test_a_refund_that_is_not_ours_is_looked_for_a_few_times(shop: Shop, clock: Clock) -> None:
    shop.context.processors._made["sandbox"] = RefundingSandbox(shop.sandbox._setup)
    paid = await shop.paid()
    body = json.dumps({"id": "evt_1", "payment": reference_of(paid), "refund": "re_of_nobody"}).encode()
    await tell(shop, body, {})
    looks = 0
    while await stored(shop):
        looks += await work_off(shop.context)
        clock.forward(hours=2)
    assert looks == MATCH_TRIES + 1
    assert shop.sandbox.called("fetch_refund") == []
    assert (await shop.now(paid.order.id)).order == paid.order


async def test_a_payment_that_is_not_ours_is_looked_for_a_few_times(shop: Shop, clock: Clock) -> None:
    body = json.dumps({"id": "evt_1", "type": "t", "payment": "sbx_1_approve"}).encode()
    await tell(shop, body, signed(body, shop.webhook_secret))
    looks = 0
    while await stored(shop):
        looks += await work_off(shop.context)
        clock.forward(hours=2)
    assert looks == MATCH_TRIES + 1
    assert shop.sandbox.calls == []


@pytest.mark.parametrize("silences", [1, 30])
async def test_late_money_is_heard_of_though_the_processor_says_nothing_for_hours(
    shop: Shop, clock: Clock, silences: int
) -> None:
    late = await given_up_by_us(shop)
    shop.next_answers("fetch", *[SILENCE] * silences)
    await tell_of_late_money(shop, late)
    for _ in range(silences):
        await work_off(shop.context)
        assert (await shop.now(late.order.id)).order.status is OrderStatus.CANCELLED
        clock.forward(hours=2)
    await work_off(shop.context)
    assert (await shop.now(late.order.id)).order.status is OrderStatus.CAPTURED
    assert (await shop.event_types(late.order.id))[-1] == "payment.late_success"
    assert await stored(shop) == []


async def test_late_money_is_heard_of_though_the_same_call_is_answered_with_its_first_decline(
    shop: Shop, clock: Clock
) -> None:
    shop.next_answers("authorize", SILENCE, is_done=True)
    shop.next_answers("authorize", Declined("declined", DeclineClass.LATER, "no"))
    paid = await shop.paid()
    shop.next_answers("fetch", SILENCE)
    await tell_of_late_money(shop, paid)
    await work_off(shop.context)
    assert (await shop.now(paid.order.id)).order.status is OrderStatus.PROCESSING
    clock.forward(hours=2)
    await work_off(shop.context)
    assert (await shop.event_types(paid.order.id))[-3:] == [
        "payment.failed",
        "payment.captured",
        "payment.late_success",
    ]


async def test_another_account_s_payment_is_none_of_this_one_s(shop: Shop, clock: Clock) -> None:
    other = await open_shop(shop.context, clock, number=2)
    waiting = await shop.paid("tok_pending")
    await tell_of(other, waiting)
    (event,) = await stored(other)
    async with shop.context.database.transaction() as session:
        claimed = await job_rows.claim(session, clock.now(), 10)
    (about_the_event,) = [each for each in claimed if each.subject == event.id]
    await execute(shop.context, about_the_event)
    assert shop.sandbox.called("fetch") == []
    assert (await shop.now(waiting.order.id)).order.status is OrderStatus.PROCESSING


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        (b"{}", {}, "missing_signature"),
        (b"{}", {SIGNATURE_HEADER: "0" * 64}, "invalid_signature"),
        (b"{}", {SIGNATURE_HEADER: "ä" * 64}, "invalid_signature"),
        (b"{}", {SIGNATURE_HEADER: ""}, "invalid_signature"),
        (b"{}", signed(b"{ }", "whsec_sandbox"), "invalid_signature"),
        (b"{}", signed(b"{}", "whsec_other"), "invalid_signature"),
        (b"{}", signed(b"{}", "whsec_sandbox"), "invalid_body"),
        (b"\xff", signed(b"\xff", "whsec_sandbox"), "invalid_body"),
    ],
)
@pytest.mark.parametrize("is_shared", [True, False])
async def test_what_the_processor_did_not_sign_is_refused(
    shop: Shop, body: bytes, headers: dict[str, str], code: str, is_shared: bool
) -> None:
    with pytest.raises(LoopError) as caught:
        await tell(shop, body, headers, is_shared=is_shared)
    assert (caught.value.code, caught.value.kind) == (code, ErrorKind.INVALID)
    assert await stored(shop) == []


async def test_on_the_shared_address_the_secret_decides_whose_it_is(shop: Shop, clock: Clock) -> None:
    other = Shop(shop.context, clock, "mer_2", webhook_secret="whsec_of_the_other")
    await open_shop(shop.context, clock, number=2)
    await put(
        shop.context, "mer_2", "sandbox", credentials={"webhookSecret": other.webhook_secret}, change=ConfigChange()
    )
    waiting = await other.paid("tok_pending")
    body = json.dumps({"id": "evt_1", "type": "t", "payment": reference_of(waiting)}).encode()
    await tell(shop, body, signed(body, other.webhook_secret), is_shared=True)
    (event,) = await stored(shop)
    assert event.merchant_id == "mer_2"
    await work_off(shop.context)
    assert (await other.now(waiting.order.id)).order.status is OrderStatus.CAPTURED


async def test_one_account_s_broken_row_does_not_close_the_shared_address(shop: Shop, clock: Clock) -> None:
    await open_shop(shop.context, clock, number=2)
    async with shop.context.database.transaction() as session:
        config = await processor_configs.named(session, "mer_2", "sandbox")
        mine = await processor_configs.named(session, "mer_1", "sandbox")
        assert config is not None
        assert mine is not None
        moved = replace(config, credentials=mine.credentials)
        await processor_configs.put(session, moved)  # a ciphertext moved to another merchant's row
    waiting = await shop.paid("tok_pending")
    body = json.dumps({"id": "evt_1", "type": "t", "payment": reference_of(waiting)}).encode()
    await tell(shop, body, signed(body, shop.webhook_secret), is_shared=True)
    assert len(await stored(shop)) == 1


async def test_an_account_without_a_secret_accepts_nothing(shop: Shop) -> None:
    await put(shop.context, shop.merchant_id, "sandbox", credentials={}, change=ConfigChange())
    for is_shared in (True, False):
        with pytest.raises(LoopError) as caught:
            await tell(shop, b"{}", signed(b"{}", ""), is_shared=is_shared)
        assert (caught.value.code, caught.value.kind) == ("webhook_secret_missing", ErrorKind.UNAVAILABLE)


async def test_accounts_and_processors_that_do_not_exist_are_not_found(shop: Shop) -> None:
    for processor, config_id in (("sandbox", "pcf_of_nobody"), ("nobody", None), ("stripe", "pcf_of_nobody")):
        with pytest.raises(LoopError, match="not_found"):
            await receive(shop.context, processor, config_id, body=b"{}", headers={})
