"""Rotating a secret: both sign for a while, every verifier takes each delivery, and then only the new one does."""

import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import pytest

from loop.domain.errors import LoopError
from loop.storage.webhooks import Endpoint
from loop.workflows import webhook_endpoints
from loop.workflows.context import Context
from loop.workflows.webhooks import SECRET_OVERLAP, reveal_secret, signing_secrets
from tests.builders import Clock, Shop, open_shop, work_off
from tests.merchant_server import (
    MerchantServer,
    Received,
    has_signed,
    merchant_server,
    verified_by_libraries,
    verified_by_own_rules,
)


@pytest.fixture
async def server() -> AsyncIterator[MerchantServer]:
    async with merchant_server() as server:
        yield server


@pytest.fixture
async def shop(context: Context, clock: Clock, server: MerchantServer) -> Shop:
    clock.at = datetime.now(clock.at.tzinfo)  # noqa: TID251 - the libraries compare with the machine's clock
    return await open_shop(context, clock, webhook_url=f"{server.url}/hooks")


async def endpoint_of(shop: Shop) -> Endpoint:
    (endpoint,) = await webhook_endpoints.list_endpoints(shop.context, shop.merchant_id)
    return endpoint


async def rotate(shop: Shop) -> Endpoint:
    return await webhook_endpoints.rotate_secret(shop.context, shop.merchant_id, (await endpoint_of(shop)).id)


async def promote(shop: Shop) -> Endpoint:
    return await webhook_endpoints.promote_secret(shop.context, shop.merchant_id, (await endpoint_of(shop)).id)


async def next_delivery(shop: Shop, server: MerchantServer) -> Received:
    await shop.order()
    await work_off(shop.context)
    return server.received[-1]


def is_own_signature(received: Received, secret: str, clock: Clock) -> bool:
    try:
        verified_by_own_rules(received, secret, now=clock.at)
    except AssertionError:
        return False
    return True


async def test_whoever_knows_either_secret_can_verify_until_the_new_one_is_promoted(
    shop: Shop, server: MerchantServer, clock: Clock
) -> None:
    old = reveal_secret(shop.context, await endpoint_of(shop))
    new = signing_secrets(shop.context, await rotate(shop)).pending
    assert new is not None
    assert new != old
    assert new.startswith("whsec_")
    received = await next_delivery(shop, server)
    body = json.loads(received.body)
    assert verified_by_libraries(received, old) == verified_by_libraries(received, new) == body
    assert received.headers["webhook-signature"].count("v1,") == 2
    # A client that takes the last v1= of Loop's own header finds one there, by the secret that it knows.
    assert received.headers["X-Loop-Signature"].count("v1=") == 1
    assert (is_own_signature(received, old, clock), is_own_signature(received, new, clock)) == (True, False)
    promoted = await promote(shop)
    assert reveal_secret(shop.context, promoted) == new
    received = await next_delivery(shop, server)
    assert verified_by_libraries(received, new) == json.loads(received.body)
    assert (has_signed(old, received), is_own_signature(received, old, clock)) == (False, False)
    assert verified_by_own_rules(received, new, now=clock.at) == json.loads(received.body)


async def test_a_secret_that_nobody_promotes_takes_over_after_a_day(
    shop: Shop, server: MerchantServer, clock: Clock
) -> None:
    old = reveal_secret(shop.context, await endpoint_of(shop))
    new = signing_secrets(shop.context, await rotate(shop)).pending
    assert new is not None
    clock.forward(seconds=SECRET_OVERLAP.total_seconds() - 1)
    before = await next_delivery(shop, server)
    assert (has_signed(old, before), has_signed(new, before)) == (True, True)
    assert is_own_signature(before, old, clock)
    clock.forward(seconds=2)
    after = await next_delivery(shop, server)
    assert (has_signed(old, after), has_signed(new, after)) == (False, True)
    assert is_own_signature(after, new, clock)
    assert reveal_secret(shop.context, await endpoint_of(shop)) == new
    newest = signing_secrets(shop.context, await rotate(shop))  # begins with the one that took over
    assert newest.current == new
    assert newest.pending not in (None, old, new)


async def test_a_retry_is_signed_by_the_secrets_of_its_own_time(
    shop: Shop, server: MerchantServer, clock: Clock
) -> None:
    server.next_statuses = [500]
    first = await next_delivery(shop, server)
    new = signing_secrets(shop.context, await rotate(shop)).pending
    assert new is not None
    await promote(shop)
    clock.forward(minutes=1)
    await work_off(shop.context)
    again = server.received[-1]
    assert (again.event_id, again.body) == (first.event_id, first.body)
    assert (has_signed(new, first), has_signed(new, again)) == (False, True)


async def test_one_new_secret_at_a_time(shop: Shop) -> None:
    with pytest.raises(LoopError, match="no_pending_secret"):
        await promote(shop)
    await rotate(shop)
    with pytest.raises(LoopError, match="secret_pending"):
        await rotate(shop)
    await promote(shop)
    with pytest.raises(LoopError, match="no_pending_secret"):
        await promote(shop)
    await rotate(shop)


async def test_secrets_are_stored_for_their_own_place_only(shop: Shop) -> None:
    rotated = await rotate(shop)
    secrets = signing_secrets(shop.context, rotated)
    for stored, plain in ((rotated.secret, secrets.current), (rotated.pending_secret, secrets.pending)):
        assert stored is not None
        assert plain is not None
        assert plain not in stored
    assert "whsec_" not in repr(rotated)
    assert rotated.pending_since is not None
    assert shop.clock.at - rotated.pending_since < timedelta(seconds=1)
