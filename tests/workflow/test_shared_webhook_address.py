"""Webhooks at the address that all accounts of a processor share: whose they are, and what a stranger's cost."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime

import pytest
from sqlalchemy import select

from loop.domain.errors import ErrorKind, LoopError
from loop.domain.orders import OrderStatus
from loop.domain.webhook_secrets import OVERLAP
from loop.processors.base import WebhookEvent
from loop.processors.sandbox import SIGNATURE_HEADER
from loop.storage import processor_configs as config_rows
from loop.storage.processor_events import ProcessorEvent
from loop.storage.statements import Statement, columns_of
from loop.storage.tables import ProcessorEvents, table
from loop.workflows import processor_configs
from loop.workflows.processor_configs import ConfigChange
from loop.workflows.processor_events import SHARED_HASHED_MAX_BYTES, receive
from tests.builders import Clock, MoodySandbox, Shop, open_shop, work_off
from tests.workflow.test_processor_events import reference_of, signed

STORED = Statement(
    select(*columns_of(table(ProcessorEvents), ProcessorEvent))
    .order_by(table(ProcessorEvents).c.created_at)
    .limit(100),
    ProcessorEvent,
)


async def stored(shop: Shop) -> list[ProcessorEvent]:
    async with shop.context.database.reading() as reader:
        return await reader.all(STORED, {})


async def set_secret(shop: Shop, secret: str) -> str:
    """Give a shop's account a webhook secret; return the account's id."""
    credentials = {"webhookSecret": secret}
    config = await processor_configs.put(
        shop.context, shop.merchant_id, "sandbox", credentials=credentials, change=ConfigChange()
    )
    return config.id


async def test_accounts_that_share_a_secret_each_hear_of_their_own_payments(shop: Shop, clock: Clock) -> None:
    other = await open_shop(shop.context, clock, number=2)
    for owner in (shop, other):
        await set_secret(owner, "whsec_shared")
    for number, owner in enumerate((other, shop, other)):
        waiting = await owner.paid("tok_pending")
        body = json.dumps({"id": f"evt_{number}", "type": "t", "payment": reference_of(waiting)}).encode()
        await receive(shop.context, "sandbox", None, body=body, headers=signed(body, "whsec_shared"))
        await work_off(shop.context)
        assert (await owner.now(waiting.order.id)).order.status is OrderStatus.CAPTURED
    assert [event.merchant_id for event in await stored(shop)] == ["mer_2", "mer_1", "mer_2"]
    assert not any(event.is_quarantined for event in await stored(shop))


async def test_an_earlier_secret_of_one_account_is_another_s_current_one(shop: Shop, clock: Clock) -> None:
    other = await open_shop(shop.context, clock, number=2)
    await set_secret(shop, "whsec_moved")
    await set_secret(shop, "whsec_new")
    await set_secret(other, "whsec_moved")
    body = json.dumps({"id": "evt_1", "type": "t", "payment": "sbx_1_approve"}).encode()
    await receive(shop.context, "sandbox", None, body=body, headers=signed(body, "whsec_moved"))
    (event,) = await stored(shop)
    assert (event.merchant_id, event.secret_ordinal) == ("mer_2", 0)


async def test_which_secret_signed_is_kept_and_the_secret_is_not(shop: Shop, clock: Clock) -> None:
    for secret in ("whsec_first", "whsec_second"):
        await set_secret(shop, secret)
        clock.forward(hours=1)
    config_id = await set_secret(shop, "whsec_third")
    for number, secret in enumerate(("whsec_third", "whsec_second", "whsec_first", "whsec_sandbox")):
        body = json.dumps({"id": f"evt_{number}", "type": "t", "payment": "sbx_1_approve"}).encode()
        await receive(shop.context, "sandbox", config_id, body=body, headers=signed(body, secret))
    assert [event.secret_ordinal for event in await stored(shop)] == [0, 1, 2, 3]
    assert "whsec" not in repr(await stored(shop))
    async with shop.context.database.reading() as reader:
        config = await config_rows.get(reader, config_id)
    assert config is not None
    assert "whsec" not in repr(config) + config.credentials + str(config.earlier_webhook_secrets)
    clock.forward(seconds=OVERLAP.total_seconds())
    body = b'{"id": "evt_late", "type": "t", "payment": "sbx_1_approve"}'
    for secret in ("whsec_second", "whsec_first", "whsec_sandbox"):
        with pytest.raises(LoopError, match="invalid_signature"):
            await receive(shop.context, "sandbox", config_id, body=body, headers=signed(body, secret))


async def test_a_stranger_s_largest_body_is_not_hashed_for_every_account(shop: Shop, clock: Clock) -> None:
    size = 1024 * 1024
    accounts = [shop]
    while len(accounts) <= SHARED_HASHED_MAX_BYTES // size:
        clock.forward(milliseconds=1)  # ids sort by it, and accounts are tried by their ids
        accounts.append(await open_shop(shop.context, clock, number=len(accounts) + 1))
    ids = [await set_secret(each, f"whsec_{each.merchant_id}") for each in accounts]
    last = f"whsec_{accounts[-1].merchant_id}"
    for length, is_taken in ((2_000, True), (size, False)):
        body = json.dumps({"id": f"evt_{length}", "type": "t", "payment": "sbx_1_approve"}).encode().ljust(length)
        headers = signed(body, last)
        if is_taken:
            await receive(shop.context, "sandbox", None, body=body, headers=headers)
            continue
        with pytest.raises(LoopError, match="invalid_signature"):
            await receive(shop.context, "sandbox", None, body=body, headers=headers)
        await receive(shop.context, "sandbox", ids[-1], body=body, headers=headers)  # its own address has room for it
    assert len(await stored(shop)) == 2


class ClumsySandbox(MoodySandbox):
    """The sandbox, with an adapter that trips over what it reads."""

    def parse_webhook(
        self, body: bytes, headers: Mapping[str, str], *, secrets: Sequence[str], now: datetime
    ) -> WebhookEvent:
        del body, headers, secrets, now
        raise RuntimeError("tripped")


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b"null", b'{"id": 1}'])
async def test_signed_nonsense_is_refused_as_such(shop: Shop, body: bytes) -> None:
    with pytest.raises(LoopError) as caught:
        await receive(shop.context, "sandbox", None, body=body, headers=signed(body, shop.webhook_secret))
    assert (caught.value.code, caught.value.kind) == ("invalid_body", ErrorKind.INVALID)
    assert await stored(shop) == []


async def test_an_adapter_that_trips_over_a_body_is_no_fault_of_this_server(shop: Shop) -> None:
    shop.context.processors._made["sandbox"] = ClumsySandbox(shop.sandbox._setup)
    with pytest.raises(LoopError) as caught:
        await receive(shop.context, "sandbox", None, body=b"{}", headers={SIGNATURE_HEADER: "0"})
    assert (caught.value.code, caught.value.kind) == ("invalid_body", ErrorKind.INVALID)
