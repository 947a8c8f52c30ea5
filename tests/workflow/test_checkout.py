"""Checkout sessions of held money: session, event and page say the same, before and after the session's time is up."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from loop.domain.attempts import Approved, Voided
from loop.domain.orders import Order, OrderStatus
from loop.server.checkout_page import Face, face_of
from loop.storage import checkout as checkout_rows
from loop.storage.checkout import CheckoutSession, SessionFilter
from loop.workflows import checkout
from loop.workflows.checkout import NewSession, SessionInHand, SessionStatus
from loop.workflows.outcomes import record
from tests.builders import Clock, Shop

HELD = ["order.created", "payment.processing", "payment.authorized", "checkout.completed"]


async def page_for(shop: Shop, order: Order) -> CheckoutSession:
    new = NewSession("https://shop.example/thanks", None, timedelta(hours=1), order_id=order.id)
    return await checkout.create_session(shop.context, shop.merchant_id, new)


async def held_page(shop: Shop, clock: Clock, hours: int) -> CheckoutSession:
    """Return the page of an order whose money is held, so many hours after."""
    order = await shop.order(is_manual_capture=True)
    page = await page_for(shop, order)
    await shop.pay(order.id)
    clock.forward(hours=hours)
    await checkout.expire_due(shop.context)
    return page


async def found(shop: Shop, page: CheckoutSession) -> SessionInHand:
    """Return the page's session as it is now, which is in the list of its status and in no other."""
    now = await checkout.find(shop.context, page.id)
    status = checkout.status_of(shop.context, now)
    async with shop.context.database.reading() as reader:
        for word in SessionStatus:
            wanted = SessionFilter(is_test=True, status=word, now=shop.clock.at)
            listed = await checkout_rows.list_after(reader, shop.merchant_id, wanted, before_id=None, limit=10)
            assert (page.id in [each.id for each in listed]) is (word is status)
    assert (now.session.completed_at is not None) is (status is SessionStatus.COMPLETED)
    return now


@pytest.mark.parametrize("hours", [0, 2])
async def test_a_page_is_completed_once_when_the_money_is_held(shop: Shop, clock: Clock, hours: int) -> None:
    page = await held_page(shop, clock, hours)
    for _ in range(2):
        now = await found(shop, page)
        assert checkout.status_of(shop.context, now) is SessionStatus.COMPLETED
        assert face_of(shop.context, now) is Face.COMPLETED
        await checkout.expire_due(shop.context)
    completed = json.loads((await shop.events(page.order_id))[-1].body)
    assert (completed["status"], completed["payload"]["checkoutSessionId"]) == ("authorized", page.id)
    await shop.capture(page.order_id)
    assert await shop.event_types(page.order_id) == [*HELD, "payment.captured"]
    assert checkout.status_of(shop.context, await found(shop, page)) is SessionStatus.COMPLETED


@pytest.mark.parametrize("hours", [0, 2])
@pytest.mark.parametrize("does_lapse", [True, False])
async def test_a_hold_that_is_let_go_takes_it_back(shop: Shop, clock: Clock, hours: int, does_lapse: bool) -> None:
    page = await held_page(shop, clock, hours)
    (attempt,) = await shop.attempts(page.order_id)
    if does_lapse:
        await record(shop.context, attempt, Voided(str(attempt.processor_reference)), job=None)
    else:
        await shop.cancel(page.order_id)
    clock.forward(hours=2)
    await checkout.expire_due(shop.context)
    now = await found(shop, page)
    assert now.order.order.status is OrderStatus.CANCELLED
    assert checkout.status_of(shop.context, now) is SessionStatus.EXPIRED
    assert face_of(shop.context, now) is Face.CANCELLED
    assert await shop.event_types(page.order_id) == [*HELD, "payment.cancelled", "checkout.expired"]


async def test_a_page_that_was_made_while_its_order_was_paid_is_told_of(shop: Shop, clock: Clock) -> None:
    order, other = await shop.order(), await shop.order()
    await shop.pay(order.id)
    late = replace(await page_for(shop, other), id="cs_late", order_id=order.id)  # looked before, and written after
    await shop.context.database.write_at_once([checkout_rows.insertion(late)])
    clock.forward(hours=2)
    for _ in range(2):
        await checkout.expire_due(shop.context)
    assert checkout.status_of(shop.context, await found(shop, late)) is SessionStatus.COMPLETED
    assert (await shop.event_types(order.id))[-2:] == ["payment.captured", "checkout.completed"]


async def test_late_money_completes_a_page_that_had_expired(shop: Shop, clock: Clock) -> None:
    order = await shop.order()
    page = await page_for(shop, order)
    failed = await shop.pay(order.id, "tok_decline_invalid_card")
    assert failed.attempt is not None
    clock.forward(hours=2)
    await checkout.expire_due(shop.context)
    assert checkout.status_of(shop.context, await found(shop, page)) is SessionStatus.EXPIRED
    late = Approved(str(failed.attempt.processor_reference), is_captured=True, amount_minor=1_000)
    await record(shop.context, failed.attempt, late, job=None)
    assert checkout.status_of(shop.context, await found(shop, page)) is SessionStatus.COMPLETED
    assert (await shop.event_types(order.id))[-2:] == ["payment.late_success", "checkout.completed"]
