"""Reviews: an order that a person has looked at leaves the list, on record, and nothing else about it changes."""

from dataclasses import replace
from datetime import timedelta

import pytest

from loop.domain import polling
from loop.domain.attempts import Approved, Unknown
from loop.domain.audit import Actor, ActorKind
from loop.domain.errors import LoopError
from loop.domain.orders import Order, OrderStatus
from loop.storage import audit as rows
from loop.storage import orders
from loop.workflows import reviews
from loop.workflows.outcomes import record
from tests.builders import Clock, Shop, open_shop, work_off

PERSON = Actor(ActorKind.USER, "mer_1", "203.0.113.9")


async def in_review(shop: Shop) -> Order:
    """Return a paid order that somebody must look at."""
    order = (await shop.paid()).order
    async with shop.context.database.transaction() as session:
        assert await orders.flag_for_review(session, shop.merchant_id, order.id, now=shop.clock.now())
    return (await shop.now(order.id)).order


async def test_a_reviewed_order_leaves_the_list_with_a_note_on_record(shop: Shop) -> None:
    order = await in_review(shop)
    told, moved = await shop.events(order.id), await shop.transactions(order.id)
    context = replace(shop.context, actor=PERSON)
    reviewed = await reviews.mark_reviewed(context, "mer_1", order.id, note=" The bank says all is well. ")
    stored = (await shop.now(order.id)).order
    assert reviewed == stored == replace(order, needs_review=False, updated_at=stored.updated_at)
    assert reviewed.revision == stored.revision == order.revision + 1
    assert (await shop.events(order.id), await shop.transactions(order.id)) == (told, moved)
    async with context.database.reading() as reader:
        entry = (await rows.newest(reader, "mer_1", before_seq=None, limit=1))[0]
    assert (entry.action, entry.subject, entry.actor_kind) == ("order.reviewed", order.id, "user")
    assert entry.after == {"note": "The bank says all is well."}


async def test_an_order_that_waits_for_no_review_is_left_alone(shop: Shop) -> None:
    order = await in_review(shop)
    await reviews.mark_reviewed(shop.context, "mer_1", order.id, note="fine")
    with pytest.raises(LoopError, match="not_in_review"):
        await reviews.mark_reviewed(shop.context, "mer_1", order.id, note="fine")


async def test_another_merchant_s_order_or_one_of_the_other_mode_is_not_there(shop: Shop, clock: Clock) -> None:
    order = await in_review(shop)
    other = await open_shop(shop.context, clock, number=2)
    live = replace(shop.context, is_test=False)
    for context, merchant_id in ((other.context, other.merchant_id), (live, "mer_1")):
        with pytest.raises(LoopError, match="not_found"):
            await reviews.mark_reviewed(context, merchant_id, order.id, note="fine")
    assert (await shop.now(order.id)).order.needs_review


@pytest.mark.parametrize("note", ["", "  ", "x" * (reviews.NOTE_CHARACTERS + 1)])
async def test_a_note_says_something_and_is_short(shop: Shop, note: str) -> None:
    order = await in_review(shop)
    with pytest.raises(LoopError, match="validation_failed"):
        await reviews.mark_reviewed(shop.context, "mer_1", order.id, note=note)
    assert (await shop.now(order.id)).order.needs_review


async def test_a_payment_that_stays_unclear_comes_back_to_the_list(shop: Shop, clock: Clock) -> None:
    shop.next_answers("authorize", *[Unknown("no answer")] * 20)
    order = (await shop.paid()).order
    clock.forward(hours=1)
    await work_off(shop.context)
    assert (await shop.now(order.id)).order.needs_review
    await reviews.mark_reviewed(shop.context, "mer_1", order.id, note="I have asked the processor.")
    assert not (await shop.now(order.id)).order.needs_review
    clock.at += timedelta(days=1)
    await work_off(shop.context)
    assert (await shop.now(order.id)).order.needs_review


async def unheard_of(shop: Shop, clock: Clock) -> Order:
    """Return an order whose payment the processor has not found for a day."""
    shop.next_answers("authorize", *[Unknown("no answer")] * 100)
    shop.next_answers("fetch", *[Unknown("not found")] * 100)
    order = (await shop.paid()).order
    clock.forward(seconds=polling.KEY_HORIZON.total_seconds() - 1)
    await work_off(shop.context)
    return order


async def test_a_payment_that_a_person_does_not_find_at_the_processor_is_given_up(shop: Shop, clock: Clock) -> None:
    order = await unheard_of(shop, clock)
    context = replace(shop.context, actor=PERSON)
    with pytest.raises(LoopError, match="invalid_status: The processor is still asked"):
        await reviews.settle_unpaid(context, "mer_1", order.id, note="not in their dashboard")
    clock.forward(seconds=1)
    with pytest.raises(LoopError, match="validation_failed"):
        await reviews.settle_unpaid(context, "mer_1", order.id, note=" ")
    assert (await shop.now(order.id)).order.status is OrderStatus.PROCESSING

    settled = await reviews.settle_unpaid(context, "mer_1", order.id, note="not in their dashboard")
    assert (settled.status, settled.needs_review) == (OrderStatus.CANCELLED, False)
    assert (await shop.event_types(order.id))[-1] == "payment.cancelled"
    async with context.database.reading() as reader:
        entry = (await rows.newest(reader, "mer_1", before_seq=None, limit=1))[0]
    assert (entry.action, entry.subject, entry.actor_kind) == ("cancellation.requested", order.id, "user")
    assert entry.after == {"status": "processing", "reason": "not in their dashboard"}
    clock.forward(hours=1)
    asked = len(shop.sandbox.calls)
    await work_off(shop.context)
    assert (await shop.jobs(order.id), len(shop.sandbox.calls)) == ([], asked)

    (attempt,) = await shop.attempts(order.id)  # the person was wrong
    await record(shop.context, attempt, Approved("sbx_1", is_captured=True, amount_minor=1_000), job=None)
    assert (await shop.event_types(order.id))[-2:] == ["payment.captured", "payment.late_success"]


async def test_what_the_processor_has_answered_is_not_given_up_by_hand(shop: Shop, clock: Clock) -> None:
    paid, waiting, new = (await shop.paid()).order, (await shop.paid("tok_3ds")).order, await shop.order()
    pending = (await shop.paid("tok_pending")).order
    clock.forward(hours=24)
    for order in (paid, waiting, new, pending):
        before = (await shop.now(order.id)).order
        with pytest.raises(LoopError, match="invalid_status"):
            await reviews.settle_unpaid(shop.context, "mer_1", order.id, note="not in their dashboard")
        assert (await shop.now(order.id)).order == before
    with pytest.raises(LoopError, match="not_found"):
        await reviews.settle_unpaid(shop.context, "mer_2", paid.id, note="not in their dashboard")
