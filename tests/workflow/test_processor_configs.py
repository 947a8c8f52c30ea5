"""Processor accounts: replaced, changed and removed at the same time, and what their merchant is warned of."""

import asyncio
from dataclasses import replace

import pytest

from loop.domain.errors import LoopError
from loop.domain.orders import OrderStatus
from loop.domain.webhook_secrets import EARLIER_MAX
from loop.storage import processor_configs as config_rows
from loop.storage.processor_configs import ProcessorConfig
from loop.workflows import processor_configs
from loop.workflows.processor_configs import ConfigChange, account_of, warnings_about, webhook_secrets
from tests.builders import Clock, Shop, open_shop, work_off


async def put(shop: Shop, processor: str, **credentials: str) -> ProcessorConfig:
    return await processor_configs.put(
        shop.context, shop.merchant_id, processor, credentials=credentials, change=ConfigChange()
    )


async def read(shop: Shop, config_id: str) -> ProcessorConfig:
    async with shop.context.database.reading() as reader:
        found = await config_rows.get(reader, config_id)
    assert found is not None
    return found


async def test_many_who_replace_a_secret_at_once_lose_none_of_them(shop: Shop) -> None:
    configs = await asyncio.gather(*(put(shop, "sandbox", webhookSecret=f"whsec_{n}") for n in range(EARLIER_MAX)))
    (config_id,) = {config.id for config in configs}
    secrets = webhook_secrets(shop.context, await read(shop, config_id))
    assert sorted(secrets) == sorted(["whsec_sandbox", *(f"whsec_{n}" for n in range(EARLIER_MAX))])


async def test_a_change_at_the_same_time_does_not_bring_old_credentials_back(shop: Shop) -> None:
    for number in range(10):
        changes = [
            processor_configs.update(shop.context, shop.merchant_id, "sandbox", change=ConfigChange(priority=n + 1))
            for n in range(4)
        ]
        replaced, *_ = await asyncio.gather(put(shop, "sandbox", webhookSecret=f"whsec_{number}"), *changes)
        account = account_of(shop.context, await read(shop, replaced.id))
        assert account.credentials == {"webhookSecret": f"whsec_{number}"}


async def test_of_many_who_remove_it_one_does(shop: Shop) -> None:
    removals = [processor_configs.remove(shop.context, shop.merchant_id, "sandbox") for _ in range(5)]
    outcomes = await asyncio.gather(*removals, return_exceptions=True)
    assert [outcome.code for outcome in outcomes if isinstance(outcome, LoopError)] == ["not_found"] * 4
    with pytest.raises(LoopError, match="not_found"):
        await processor_configs.update(shop.context, shop.merchant_id, "sandbox", change=ConfigChange(is_enabled=True))
    assert await processor_configs.list_all(shop.context, shop.merchant_id) == []


async def test_what_is_under_way_at_a_removed_account_ends(shop: Shop, clock: Clock) -> None:
    pending, held = await shop.paid("tok_pending"), await shop.paid(is_manual_capture=True)
    unclear = await shop.paid("tok_timeout_then_charged")
    await processor_configs.remove(shop.context, shop.merchant_id, "sandbox")
    assert (await shop.capture(held.order.id)).status is OrderStatus.CAPTURED
    clock.forward(minutes=5)
    await work_off(shop.context)
    for order_id in (pending.order.id, unclear.order.id):
        assert (await shop.now(order_id)).order.status is OrderStatus.CAPTURED
    assert shop.moved("charge") == [1_000] * 2
    with pytest.raises(LoopError, match="no_processor"):
        await shop.paid()


async def test_removing_ends_the_overlap_and_taking_up_again_begins_none(shop: Shop) -> None:
    before = await put(shop, "sandbox", webhookSecret="whsec_second")
    assert webhook_secrets(shop.context, before) == ("whsec_second", "whsec_sandbox")
    await processor_configs.remove(shop.context, shop.merchant_id, "sandbox")
    assert webhook_secrets(shop.context, await read(shop, before.id)) == ("whsec_second",)
    after = await put(shop, "sandbox", webhookSecret="whsec_third")
    assert (after.id, after.created_at, after.removed_at, after.is_enabled) == (
        before.id,
        before.created_at,
        None,
        True,
    )
    assert webhook_secrets(shop.context, after) == ("whsec_third",)


async def test_what_cannot_be_read_can_be_replaced(shop: Shop, clock: Clock) -> None:
    other = await open_shop(shop.context, clock, number=2)
    mine, theirs = await put(shop, "sandbox", webhookSecret="whsec_mine"), await put(other, "sandbox")
    async with shop.context.database.transaction() as session:
        await config_rows.put(session, replace(mine, credentials=theirs.credentials))
    assert "cannot be read" in warnings_about(shop.context, await read(shop, mine.id))[0]
    again = await put(shop, "sandbox", webhookSecret="whsec_again")
    assert webhook_secrets(shop.context, again) == ("whsec_again",)


async def test_a_merchant_is_warned_of_an_account_that_takes_no_webhooks(shop: Shop) -> None:
    assert warnings_about(shop.context, await put(shop, "sandbox")) == ()  # which sends none by itself
    config = await put(shop, "stripe", secretKey="sk_test_1")
    for each in (config, await put(shop, "stripe", secretKey="sk_test_1", webhookSecret="")):
        assert "webhookSecret" in warnings_about(shop.context, each)[-1]
    [page] = warnings_about(shop.context, await put(shop, "stripe", secretKey="sk_test_1", webhookSecret="w"))
    assert "publishableKey" in page
    assert "checkout page" in page
    whole = await put(shop, "stripe", secretKey="sk_test_1", webhookSecret="w", publishableKey="pk_test_1")
    assert warnings_about(shop.context, whole) == ()
    gone = replace(config, processor="uninstalled")
    assert "uninstalled" in warnings_about(shop.context, gone)[0]
