"""Test and live in the workflows: who works in one mode neither reaches the other's orders nor pays at its accounts."""

from collections.abc import Awaitable
from dataclasses import replace

import pytest

from loop.domain.errors import LoopError
from loop.domain.money import Money
from loop.domain.orders import OrderStatus
from loop.domain.routing_rules import PaymentTraits
from loop.workflows import deliveries, orders, processor_configs, routing, timeline
from loop.workflows.processor_configs import ConfigChange, usual_mode
from tests.builders import Shop


def live(shop: Shop) -> Shop:
    """Return the same shop at work in its live mode."""
    return replace(shop, context=replace(shop.context, is_test=False))


async def absent(work: Awaitable[object]) -> None:
    with pytest.raises(LoopError) as error:
        await work
    assert error.value.code == "not_found"


async def test_no_command_reaches_an_order_of_the_other_mode(shop: Shop) -> None:
    held = await shop.paid(is_manual_capture=True)
    order, other = held.order, live(shop)
    (event, *_) = await shop.events(order.id)
    await absent(other.pay(order.id))
    await absent(other.pay(order.id, is_retry=True))
    await absent(other.capture(order.id))
    await absent(other.cancel(order.id))
    await absent(other.refund(order.id))
    await absent(orders.get(other.context, shop.merchant_id, order.id))
    await absent(orders.get_in_hand(other.context, shop.merchant_id, order.id))
    await absent(timeline.of_order(other.context, shop.merchant_id, order.id))
    await absent(deliveries.retry(other.context, shop.merchant_id, event.id))
    assert await shop.now(order.id) == held
    own = replace(shop, context=replace(shop.context, is_test=True))
    assert (await own.capture(order.id)).status is OrderStatus.CAPTURED


async def test_an_order_is_a_test_unless_whoever_makes_it_works_live(shop: Shop) -> None:
    assert (await shop.order()).is_test
    made = await live(shop).order()
    assert not made.is_test
    assert await shop.now(made.id) == await live(shop).now(made.id)


async def test_a_live_order_is_not_paid_at_a_test_account(shop: Shop) -> None:
    other = live(shop)
    order = await other.order()
    with pytest.raises(LoopError, match="it is a test account, and this is a live order"):
        await other.pay(order.id)
    assert shop.sandbox.calls == []


async def test_each_mode_has_its_own_candidates(shop: Shop) -> None:
    credentials = {"secretKey": "sk_live_1", "publishableKey": "pk_live_1"}
    change = ConfigChange(is_test_mode=False)
    await processor_configs.put(shop.context, shop.merchant_id, "stripe", credentials=credentials, change=change)
    for is_test, expected in ((True, ["sandbox"]), (False, ["stripe"])):
        payment = PaymentTraits("ord_x", Money(1_000, "USD"), is_test=is_test)
        decision = await routing.try_out(shop.context, shop.merchant_id, payment, forced_processor=None)
        assert [each.processor for each in decision.candidates] == expected


async def test_the_usual_mode_is_live_once_a_live_account_is_enabled(shop: Shop) -> None:
    async def now_usual() -> str:
        async with shop.context.database.reading() as reader:
            return await usual_mode(reader, shop.merchant_id)

    assert await now_usual() == "test"
    change = ConfigChange(is_enabled=False, is_test_mode=False)
    await processor_configs.put(shop.context, shop.merchant_id, "sandbox", credentials={}, change=change)
    assert await now_usual() == "test"
    change = ConfigChange(is_enabled=True)
    await processor_configs.update(shop.context, shop.merchant_id, "sandbox", change=change, is_test=False)
    assert await now_usual() == "live"
    await processor_configs.remove(shop.context, shop.merchant_id, "sandbox", is_test=False)
    assert await now_usual() == "test"
