"""Disputes over the sandbox: heard of by webhook, asked about, written on the order, and told once each."""

import asyncio
import hashlib
import hmac
import json
from dataclasses import replace
from datetime import timedelta

import pytest

from loop.domain.attempts import Approved, Unknown
from loop.domain.disputes import DisputeOutcome, DisputeStatus
from loop.domain.errors import LoopError
from loop.domain.money import Money
from loop.domain.orders import Order, OrderStatus
from loop.processors.base import TellsDisputes
from loop.processors.sandbox import SIGNATURE_HEADER, SandboxProcessor
from loop.storage import jobs as job_rows
from loop.storage import processor_configs, processor_events
from loop.storage.jobs import Job
from loop.storage.orders import OrderInHand
from loop.workflows import disputes, timeline
from loop.workflows.disputes import ASK, ASK_AGAIN_AFTER, ASKED_FOR
from loop.workflows.processor_events import PROCESS, UNANSWERED_TRIES, receive
from tests.builders import Clock, Shop, open_shop, work_off

PAID = ["order.created", "payment.processing", "payment.captured"]
SILENCE = Unknown("no answer")


def payment_of(found: OrderInHand) -> str:
    assert found.attempt is not None
    assert found.attempt.processor_reference is not None
    return found.attempt.processor_reference


def dispute_of(found: OrderInHand) -> str:
    return f"sbxd_{payment_of(found).split('_')[1]}"


async def tell(shop: Shop, found: OrderInHand, event_id: str = "evt_1", **changes: str) -> None:
    """Deliver a webhook that says that an order's payment is disputed, and do what follows."""
    told = {"id": event_id, "type": "dispute", "payment": payment_of(found), "dispute": dispute_of(found), **changes}
    body = json.dumps(told).encode()
    signed = {SIGNATURE_HEADER: hmac.new(shop.webhook_secret.encode(), body, hashlib.sha256).hexdigest()}
    async with shop.context.database.reading() as reader:
        config = await processor_configs.named(reader, shop.merchant_id, "sandbox")
    assert config is not None
    await receive(shop.context, "sandbox", config.id, body=body, headers=signed)
    await work_off(shop.context)


async def waiting_jobs(shop: Shop, kind: str) -> list[Job]:
    """Read the jobs of a kind that are still to be done."""
    async with shop.context.database.transaction() as session:
        live = await job_rows.claim(session, shop.clock.at.replace(year=2999), 100)
        for each in live:
            await session.run_together([job_rows.rescheduling(each, shop.clock.at, failures=each.failures)])
    return [each for each in live if each.kind == kind]


def amounts(order: Order) -> tuple[OrderStatus, int, int, bool]:
    return order.status, order.amount_disputed_minor, order.amount_refunded_minor, order.needs_review


def answer(
    found: OrderInHand, status: DisputeStatus, amount_minor: int = 1_000, currency: str = "EUR"
) -> DisputeOutcome:
    return DisputeOutcome(dispute_of(found), payment_of(found), status, Money(amount_minor, currency), "general")


@pytest.mark.parametrize(
    ("token", "end", "disputed", "event"),
    [("tok_dispute_won", "won", 0, "dispute.won"), ("tok_dispute_lost", "lost", 1_000, "dispute.lost")],
)
async def test_a_dispute_is_opened_and_decided(shop: Shop, token: str, end: str, disputed: int, event: str) -> None:
    paid = await shop.paid(token)
    await tell(shop, paid)
    assert amounts((await shop.now(paid.order.id)).order) == (OrderStatus.CAPTURED, 1_000, 0, False)
    await tell(shop, paid, "evt_2")
    assert amounts((await shop.now(paid.order.id)).order) == (OrderStatus.CAPTURED, disputed, 0, False)
    (row,) = await shop.disputes(paid.order.id)
    assert (row.status, row.amount_minor, row.currency, row.reason) == (end, 1_000, "EUR", "fraudulent")
    assert (row.processor, row.processor_reference) == ("sandbox", dispute_of(paid))
    assert row.id.startswith("dsp_")
    assert await shop.event_types(paid.order.id) == [*PAID, "dispute.opened", event]
    assert len(await shop.transactions(paid.order.id)) == 1  # no movement of money that Loop made


async def test_what_the_merchant_is_told(shop: Shop) -> None:
    paid = await shop.paid("tok_dispute_lost")
    await tell(shop, paid)
    await tell(shop, paid, "evt_2")
    (row,) = await shop.disputes(paid.order.id)
    opened, lost = [json.loads(event.body) for event in await shop.events(paid.order.id)][3:]
    for told, status in ((opened, "opened"), (lost, "lost")):
        assert (told["orderId"], told["amount"], told["status"]) == (paid.order.id, 1_000, "captured")
        payload = told["payload"]
        assert (payload["disputeId"], payload["disputeStatus"]) == (row.id, status)
        assert (payload["amount"], payload["currency"], payload["reason"]) == (1_000, "EUR", "fraudulent")
        assert payload["dueBy"] == "2026-03-08T00:00:00.000Z"
        assert payload["amountDisputed"] == 1_000


async def test_an_inquiry_takes_nothing_and_leaves_refunds_alone(shop: Shop) -> None:
    paid = await shop.paid("tok_dispute_inquiry")
    await tell(shop, paid)
    assert amounts((await shop.now(paid.order.id)).order) == (OrderStatus.CAPTURED, 0, 0, False)
    await shop.refund(paid.order.id, 400)
    await tell(shop, paid, "evt_2")
    (row,) = await shop.disputes(paid.order.id)
    assert row.status is DisputeStatus.CLOSED
    assert amounts((await shop.now(paid.order.id)).order) == (OrderStatus.PARTIALLY_REFUNDED, 0, 400, False)
    told = [json.loads(event.body) for event in await shop.events(paid.order.id)]
    statuses = [each["payload"]["disputeStatus"] for each in told if each["eventType"].startswith("dispute.")]
    assert statuses == ["inquiry", "closed"]


async def test_an_inquiry_that_becomes_a_dispute(shop: Shop) -> None:
    paid = await shop.paid("tok_dispute_inquiry")
    await tell(shop, paid)
    shop.next_answers("fetch_dispute", answer(paid, DisputeStatus.OPENED, 600))
    await tell(shop, paid, "evt_2")
    assert (await shop.now(paid.order.id)).order.amount_disputed_minor == 600
    assert await shop.event_types(paid.order.id) == [*PAID, "dispute.opened", "dispute.opened"]


async def test_what_is_disputed_is_not_refunded_until_it_is_won(shop: Shop) -> None:
    paid = await shop.paid("tok_dispute_won")
    shop.next_answers("fetch_dispute", answer(paid, DisputeStatus.OPENED, 700))
    await tell(shop, paid)
    with pytest.raises(LoopError, match="refund_exceeds_captured"):
        await shop.refund(paid.order.id, 301)
    assert (await shop.refund(paid.order.id)).amount_minor == 300
    with pytest.raises(LoopError, match="refund_exceeds_captured"):
        await shop.refund(paid.order.id)
    shop.next_answers("fetch_dispute", answer(paid, DisputeStatus.WON, 700))
    await tell(shop, paid, "evt_2")
    assert (await shop.refund(paid.order.id)).amount_minor == 700
    assert amounts((await shop.now(paid.order.id)).order) == (OrderStatus.REFUNDED, 0, 1_000, False)


async def test_the_sandbox_itself_refuses_a_refund_of_what_is_disputed(shop: Shop) -> None:
    paid = await shop.paid("tok_dispute")
    shop.next_answers("fetch_dispute", answer(paid, DisputeStatus.INQUIRY), is_done=True)  # Loop is behind
    await tell(shop, paid)
    refund = await shop.refund(paid.order.id)
    assert (refund.status, refund.error_code) == ("failed", "refund_refused")
    assert (await shop.now(paid.order.id)).order.amount_refund_reserved_minor == 0


@pytest.mark.parametrize("refunded", [1_000, 300])
async def test_a_loss_after_a_refund_is_written_down_and_shown_to_a_person(shop: Shop, refunded: int) -> None:
    paid = await shop.paid("tok_dispute_lost")
    await shop.refund(paid.order.id, refunded)
    status = (await shop.now(paid.order.id)).order.status
    for number in range(2):
        await tell(shop, paid, f"evt_{number}")
        assert amounts((await shop.now(paid.order.id)).order) == (status, 1_000, refunded, True)
    assert (await shop.disputes(paid.order.id))[0].status is DisputeStatus.LOST


async def test_a_refund_that_fails_after_the_loss_is_undone_as_ever(shop: Shop, clock: Clock) -> None:
    paid = await shop.paid("tok_refund_fails_later")
    await shop.refund(paid.order.id)
    shop.next_answers("fetch_dispute", answer(paid, DisputeStatus.LOST))
    await tell(shop, paid)
    clock.forward(seconds=2)
    await work_off(shop.context)
    now = (await shop.now(paid.order.id)).order
    assert (now.amount_refund_reserved_minor, now.amount_disputed_minor) == (0, 1_000)
    with pytest.raises(LoopError, match="refund_exceeds_captured"):
        await shop.refund(paid.order.id)


async def test_repeated_and_out_of_order_there_is_one_event_for_each_change(shop: Shop) -> None:
    paid = await shop.paid("tok_dispute_lost")
    truth = [answer(paid, status) for status in (DisputeStatus.OPENED, DisputeStatus.LOST)]
    for number, told in enumerate([truth[0], truth[0], truth[1], truth[0], truth[1], truth[0]]):
        shop.next_answers("fetch_dispute", told)
        await tell(shop, paid, f"evt_{number}")
        await tell(shop, paid, f"evt_{number}")  # known already
    assert await shop.event_types(paid.order.id) == [*PAID, "dispute.opened", "dispute.lost"]
    assert (await shop.now(paid.order.id)).order.amount_disputed_minor == 1_000
    assert len(await shop.disputes(paid.order.id)) == 1


async def test_a_bank_that_thinks_again_is_believed(shop: Shop) -> None:
    paid = await shop.paid("tok_dispute")
    for number, status in enumerate((DisputeStatus.LOST, DisputeStatus.WON, DisputeStatus.LOST)):
        shop.next_answers("fetch_dispute", answer(paid, status))
        await tell(shop, paid, f"evt_{number}")
    assert await shop.event_types(paid.order.id) == [*PAID, "dispute.lost", "dispute.won", "dispute.lost"]
    assert (await shop.now(paid.order.id)).order.amount_disputed_minor == 1_000


async def test_heard_of_twenty_times_at_once_it_is_one_dispute(shop: Shop) -> None:
    paid = await shop.paid("tok_dispute")
    config_id = paid.attempt.processor_config_id if paid.attempt else ""
    bodies = [
        json.dumps({"id": f"evt_{n}", "type": "t", "payment": payment_of(paid), "dispute": dispute_of(paid)}).encode()
        for n in range(20)
    ]
    await asyncio.gather(
        *(
            receive(
                shop.context,
                "sandbox",
                config_id,
                body=body,
                headers={SIGNATURE_HEADER: hmac.new(b"whsec_sandbox", body, hashlib.sha256).hexdigest()},
            )
            for body in bodies
        )
    )
    await work_off(shop.context)
    assert len(await shop.disputes(paid.order.id)) == 1
    assert await shop.event_types(paid.order.id) == [*PAID, "dispute.opened"]


async def test_several_disputes_of_one_order_add_up(shop: Shop) -> None:
    paid = await shop.paid("tok_dispute")
    for number, (amount, status) in enumerate(
        [(300, DisputeStatus.OPENED), (500, DisputeStatus.OPENED), (400, DisputeStatus.LOST)]
    ):
        told = replace(answer(paid, status, amount), reference=f"sbxd_{number}")
        shop.next_answers("fetch_dispute", told)
        await tell(shop, paid, f"evt_{number}", dispute=told.reference)
    now = (await shop.now(paid.order.id)).order
    assert (now.amount_disputed_minor, now.needs_review) == (1_200, True)
    assert [row.amount_minor for row in await shop.disputes(paid.order.id)] == [300, 500, 400]


async def test_a_dispute_in_another_currency_holds_all_that_was_captured(shop: Shop) -> None:
    paid = await shop.paid("tok_dispute")
    shop.next_answers("fetch_dispute", answer(paid, DisputeStatus.OPENED, 70, "USD"))
    await tell(shop, paid)
    assert amounts((await shop.now(paid.order.id)).order) == (OrderStatus.CAPTURED, 1_000, 0, True)
    assert (await shop.disputes(paid.order.id))[0].currency == "USD"


@pytest.mark.parametrize("silence", [SILENCE, RuntimeError("a bug")])
async def test_an_answer_that_fails_to_come_is_asked_for_again(
    shop: Shop, clock: Clock, silence: Unknown | Exception
) -> None:
    paid = await shop.paid("tok_dispute")
    shop.next_answers("fetch_dispute", *[silence] * 10)
    await tell(shop, paid)
    assert await shop.disputes(paid.order.id) == []
    for _ in range(10):
        clock.forward(hours=1)
        await work_off(shop.context)
    assert (await shop.now(paid.order.id)).order.amount_disputed_minor == 1_000
    assert await shop.event_types(paid.order.id) == [*PAID, "dispute.opened"]
    assert await waiting_jobs(shop, PROCESS) == []


@pytest.mark.parametrize("amount", [(-1, "EUR"), (10**12 + 1, "EUR"), (1_000, "EURO"), (1_000, "")])
async def test_an_answer_that_makes_no_sense_is_none(shop: Shop, amount: tuple[int, str]) -> None:
    paid = await shop.paid("tok_dispute")
    shop.next_answers("fetch_dispute", answer(paid, DisputeStatus.LOST, *amount))
    await tell(shop, paid)
    assert await shop.disputes(paid.order.id) == []
    assert len(await waiting_jobs(shop, PROCESS)) == 1


async def test_a_dispute_that_nobody_answers_about_is_asked_about_for_a_week(shop: Shop, clock: Clock) -> None:
    paid = await shop.paid()  # never disputed
    started = clock.at
    await tell(shop, paid)
    while await waiting_jobs(shop, PROCESS):
        clock.forward(hours=1)
        await work_off(shop.context)
    assert len(shop.sandbox.called("fetch_dispute")) == UNANSWERED_TRIES + 1
    assert clock.at - started > timedelta(days=7)
    assert await shop.disputes(paid.order.id) == []


async def test_a_dispute_of_another_payment_is_kept_for_a_person(shop: Shop) -> None:
    paid, other = await shop.paid("tok_dispute"), await shop.paid("tok_dispute")
    shop.next_answers("fetch_dispute", answer(other, DisputeStatus.LOST))
    await tell(shop, paid, dispute=dispute_of(other))
    assert amounts((await shop.now(paid.order.id)).order) == (OrderStatus.CAPTURED, 0, 0, True)
    assert await shop.disputes(paid.order.id) == await shop.disputes(other.order.id) == []


async def test_another_merchant_hears_nothing_of_it(shop: Shop, clock: Clock) -> None:
    other = await open_shop(shop.context, clock, number=2)
    paid = await shop.paid("tok_dispute")
    await tell(other, paid)
    assert await shop.disputes(paid.order.id) == await other.disputes(paid.order.id) == []
    await tell(shop, paid)
    assert len(await shop.disputes(paid.order.id)) == 1
    assert await other.disputes(paid.order.id) == []


async def test_a_payment_that_loop_has_not_heard_the_end_of_is_asked_about_first(shop: Shop) -> None:
    order = await shop.order()
    shop.next_answers("authorize", SILENCE, is_done=True)
    unclear = await shop.pay(order.id, "tok_dispute")
    assert unclear.attempt is not None
    reference = f"sbx_{unclear.attempt.id.removeprefix('att_')}_dispute"
    known = replace(unclear, attempt=replace(unclear.attempt, processor_reference=reference))
    shop.next_answers("fetch", SILENCE)
    await tell(shop, known)
    assert await shop.disputes(order.id) == []
    shop.clock.forward(seconds=2)
    await work_off(shop.context)
    now = await shop.now(order.id)
    assert amounts(now.order) == (OrderStatus.CAPTURED, 1_000, 0, False)
    assert await shop.event_types(order.id) == [*PAID, "dispute.opened"]


async def test_a_loss_of_money_that_never_came_is_written_down_all_the_same(shop: Shop) -> None:
    declined = await shop.paid("tok_decline_declined")
    shop.next_answers("fetch_dispute", answer(declined, DisputeStatus.LOST))
    await tell(shop, declined)
    assert amounts((await shop.now(declined.order.id)).order) == (OrderStatus.FAILED, 1_000, 0, True)


async def test_an_open_dispute_is_asked_about_daily_until_it_is_decided(shop: Shop, clock: Clock) -> None:
    paid = await shop.paid("tok_dispute_lost")
    shop.next_answers("fetch_dispute", *[answer(paid, DisputeStatus.OPENED)] * 2, SILENCE, RuntimeError("a bug"))
    await tell(shop, paid)  # and no other webhook ever comes
    for day in range(1, 6):
        assert len(await waiting_jobs(shop, ASK)) == 1
        assert (await shop.now(paid.order.id)).order.amount_disputed_minor == 1_000
        clock.forward(seconds=ASK_AGAIN_AFTER.total_seconds())
        await work_off(shop.context)
        assert len(shop.sandbox.called("fetch_dispute")) == 1 + day
    (row,) = await shop.disputes(paid.order.id)
    assert row.status is DisputeStatus.LOST
    assert await waiting_jobs(shop, ASK) == []
    assert await shop.event_types(paid.order.id) == [*PAID, "dispute.opened", "dispute.lost"]


async def test_nobody_is_asked_about_a_dispute_that_a_webhook_has_decided(shop: Shop, clock: Clock) -> None:
    paid = await shop.paid("tok_dispute_won")
    await tell(shop, paid)
    await tell(shop, paid, "evt_2")
    clock.forward(seconds=ASK_AGAIN_AFTER.total_seconds())
    await work_off(shop.context)
    assert len(shop.sandbox.called("fetch_dispute")) == 2
    assert await waiting_jobs(shop, ASK) == []


async def test_a_dispute_that_is_never_decided_is_not_asked_about_for_ever(shop: Shop, clock: Clock) -> None:
    paid = await shop.paid("tok_dispute")
    await tell(shop, paid)
    (asking,) = await waiting_jobs(shop, ASK)
    clock.forward(days=ASKED_FOR.days + 1)
    await work_off(shop.context)
    assert await waiting_jobs(shop, ASK) == []
    assert len(shop.sandbox.called("fetch_dispute")) == 1
    assert asking.subject == (await shop.disputes(paid.order.id))[0].id


async def test_a_process_that_lost_its_lease_records_nothing(shop: Shop) -> None:
    paid = await shop.paid("tok_dispute_lost")
    await tell(shop, paid)
    (asking,) = await waiting_jobs(shop, ASK)
    with pytest.raises(job_rows.LeaseLostError):
        await disputes.ask(shop.context, replace(asking, fence=asking.fence - 1))
    assert (await shop.disputes(paid.order.id))[0].status is DisputeStatus.OPENED
    assert await shop.event_types(paid.order.id) == [*PAID, "dispute.opened"]


class WithoutDisputes:
    """A processor that tells of no disputes, though its webhooks name some."""

    def __init__(self, sandbox: SandboxProcessor) -> None:
        self._sandbox = sandbox
        self.fetch = sandbox.fetch
        self.parse_webhook = sandbox.parse_webhook
        self.close = sandbox.close


async def test_a_processor_that_tells_of_none_is_asked_about_the_payment(shop: Shop) -> None:
    waiting = await shop.paid("tok_3ds")
    sandbox = shop.sandbox
    approved = Approved(payment_of(waiting), is_captured=True, amount_minor=1_000)
    shop.next_answers("fetch", approved)
    mute = WithoutDisputes(sandbox)
    assert isinstance(sandbox, TellsDisputes)
    assert not isinstance(mute, TellsDisputes)
    shop.context.processors._made["sandbox"] = mute  # type: ignore[assignment] # all that is called here
    await tell(shop, waiting)
    shop.context.processors._made["sandbox"] = sandbox
    assert (await shop.now(waiting.order.id)).order.status is OrderStatus.CAPTURED
    assert await shop.disputes(waiting.order.id) == []


async def test_what_became_of_the_event_is_kept(shop: Shop) -> None:
    paid = await shop.paid("tok_dispute")
    shop.next_answers("fetch_dispute", SILENCE)
    await tell(shop, paid)
    (parked,) = await waiting_jobs(shop, PROCESS)
    shop.clock.forward(seconds=2)
    await work_off(shop.context)
    async with shop.context.database.reading() as reader:
        event = await processor_events.get(reader, parked.subject)
    assert event is not None
    assert (event.dispute_reference, event.outcome) == (dispute_of(paid), "dispute opened")


async def test_it_is_in_the_timeline_in_its_time(shop: Shop) -> None:
    paid = await shop.paid("tok_dispute_lost")
    await tell(shop, paid)
    await tell(shop, paid, "evt_2")
    (row,) = await shop.disputes(paid.order.id)
    _, entries = await timeline.of_order(shop.context, shop.merchant_id, paid.order.id)
    (entry,) = [each for each in entries if each.kind == "dispute"]
    assert (entry.at, entry.title) == (row.created_at, "dispute lost")
    assert entry.details["disputeId"] == row.id
    assert entry.details["dueBy"] == "2026-03-08T00:00:00.000Z"
    kinds = [each.kind for each in entries]
    assert kinds.index("dispute") > kinds.index("transaction")
