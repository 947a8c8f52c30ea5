"""Webhooks out: every event reaches the merchant's server, signed in both schemes, by schedule until it is taken."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import pytest

from loop.domain.deliveries import JITTER, MAX_TRIES, RETRY_STEPS_S, Delivery, DeliveryStatus
from loop.domain.errors import LoopError
from loop.storage import deliveries as delivery_rows
from loop.storage import jobs as job_rows
from loop.storage import webhooks as rows
from loop.storage.jobs import LEASE
from loop.storage.webhooks import Endpoint
from loop.telemetry import bind
from loop.workflows import deliveries, merchants
from loop.workflows.context import Context
from loop.workflows.merchants import ProfileChange
from loop.workflows.webhooks import reveal_secret
from tests.builders import Clock, Shop, open_shop, running_jobs, work_off
from tests.merchant_server import MerchantServer, merchant_server, verified_by_libraries, verified_by_own_rules


@pytest.fixture
async def server() -> AsyncIterator[MerchantServer]:
    async with merchant_server() as server:
        yield server


@pytest.fixture
async def shop(context: Context, clock: Clock, server: MerchantServer) -> Shop:
    """Return a merchant whose own server listens."""
    return await open_shop(context, clock, webhook_url=f"{server.url}/hooks?shop=1")


async def endpoint_of(shop: Shop) -> Endpoint:
    async with shop.context.database.reading() as reader:
        endpoint = await rows.first_endpoint(reader, shop.merchant_id)
    assert endpoint is not None
    return endpoint


async def delivery_of(shop: Shop, event_id: str) -> Delivery:
    async with shop.context.database.reading() as reader:
        found = await delivery_rows.get(reader, event_id, (await endpoint_of(shop)).id)
    assert found is not None
    return found.delivery


async def created_event(shop: Shop) -> str:
    """Create an order and return the id of its one event."""
    (event,) = await shop.events((await shop.order()).id)
    return event.id


async def redeliver(shop: Shop, event_id: str) -> None:
    await deliveries.retry(shop.context, shop.merchant_id, event_id)
    await work_off(shop.context)


async def test_every_event_arrives_as_it_is_stored(shop: Shop, server: MerchantServer) -> None:
    order = (await shop.paid(metadata={"name": "Zoë 🛒"})).order
    await work_off(shop.context)
    await shop.refund(order.id, 300)
    await work_off(shop.context)
    events = await shop.events(order.id)
    assert [event.event_type for event in events] == [
        "order.created", "payment.processing", "payment.captured", "refund.created", "refund.processed",
    ]  # fmt: skip
    for event in events:
        (received,) = server.of(event.id)
        assert received.body == event.body.encode()
        delivery = await delivery_of(shop, event.id)
        assert (delivery.status, delivery.attempts, delivery.last_status_code) == (DeliveryStatus.DELIVERED, 1, 200)
        assert delivery.delivered_at == delivery.last_attempt_at is not None
        assert await shop.jobs(delivery.endpoint_id) == []
    assert len(server.received) == 5


async def test_both_signatures_of_a_delivery_verify(shop: Shop, server: MerchantServer, clock: Clock) -> None:
    # The library compares with the machine's clock; and this one goes on by microseconds, in one and the same second.
    clock.at = datetime.now(clock.at.tzinfo).replace(microsecond=0)  # noqa: TID251 - see above
    event_id = await created_event(shop)
    await work_off(shop.context)
    (received,) = server.received
    secret = reveal_secret(shop.context, await endpoint_of(shop))
    assert verified_by_libraries(received, secret) == json.loads(received.body)
    assert verified_by_own_rules(received, secret, now=clock.at) == json.loads(received.body)
    headers = received.headers
    assert headers["X-Loop-Event-Id"] == headers["webhook-id"] == event_id == json.loads(received.body)["id"]
    assert headers["X-Loop-Timestamp"] == str(int(clock.at.timestamp() * 1000))
    assert headers["Content-Type"] == "application/json"


async def test_a_merchant_that_answers_later_gets_it_by_schedule_signed_anew(
    shop: Shop, server: MerchantServer, clock: Clock
) -> None:
    server.next_statuses = [500, 302, 404]
    event_id = await created_event(shop)
    await work_off(shop.context)
    began = clock.at
    for tries, (status, step) in enumerate(zip((500, 302, 404), RETRY_STEPS_S, strict=False), start=1):
        delivery = await delivery_of(shop, event_id)
        assert (delivery.status, delivery.attempts, delivery.last_status_code) == (
            DeliveryStatus.PENDING,
            tries,
            status,
        )
        assert delivery.last_error == f"answered {status}"
        clock.forward(seconds=step * (1 - JITTER) - 1)
        assert await work_off(shop.context) == 0
        clock.forward(seconds=step * 2 * JITTER + 2)
        assert await work_off(shop.context) == 1
    delivery = await delivery_of(shop, event_id)
    assert (delivery.status, delivery.attempts, delivery.last_error) == (DeliveryStatus.DELIVERED, 4, None)
    assert clock.at - began > timedelta(seconds=2_000)
    secret = reveal_secret(shop.context, await endpoint_of(shop))
    assert len({each.body for each in server.received}) == 1  # a redirect is not followed either
    assert len({each.headers["X-Loop-Signature"] for each in server.received}) == 4
    verified_by_own_rules(server.received[-1], secret, now=clock.at)


async def test_a_merchant_that_never_answers_is_given_up_after_the_last_try_and_can_ask_for_it(
    shop: Shop, server: MerchantServer, clock: Clock
) -> None:
    server.next_statuses = [503] * (MAX_TRIES + 1)
    event_id = await created_event(shop)
    began = clock.at
    for step in (*RETRY_STEPS_S, 3600, 3600):
        await work_off(shop.context)
        clock.forward(seconds=step * (1 + JITTER))
    delivery = await delivery_of(shop, event_id)
    assert (delivery.status, delivery.attempts) == (DeliveryStatus.FAILED, MAX_TRIES)
    assert len(server.received) == MAX_TRIES
    assert timedelta(hours=75) < clock.at - began < timedelta(hours=95)
    await redeliver(shop, event_id)  # once, and not through the whole schedule again
    assert (await delivery_of(shop, event_id)).status is DeliveryStatus.FAILED
    await redeliver(shop, event_id)
    assert (await delivery_of(shop, event_id)).status is DeliveryStatus.DELIVERED
    assert len(server.received) == MAX_TRIES + 2


async def test_nobody_there_is_a_failed_try(context: Context, clock: Clock) -> None:
    shop = await open_shop(context, clock, webhook_url="http://127.0.0.1:1/hooks")
    event_id = await created_event(shop)
    await work_off(context)
    delivery = await delivery_of(shop, event_id)
    assert (delivery.status, delivery.attempts, delivery.last_status_code) == (DeliveryStatus.PENDING, 1, None)
    assert delivery.last_error == "ClientConnectorError"


async def test_addresses_within_are_never_connected_to(context: Context, clock: Clock) -> None:
    shop = await open_shop(context, clock, webhook_url="http://169.254.169.254/latest/meta-data")
    event_id = await created_event(shop)
    await work_off(context)
    delivery = await delivery_of(shop, event_id)
    assert delivery.attempts == 1
    assert delivery.last_error is not None
    assert "169.254.169.254 is not a public address" in delivery.last_error


async def test_an_event_can_be_sent_again_though_it_was_delivered(shop: Shop, server: MerchantServer) -> None:
    event_id = await created_event(shop)
    await work_off(shop.context)
    await redeliver(shop, event_id)
    first, second = server.of(event_id)
    assert first.body == second.body
    assert (await delivery_of(shop, event_id)).attempts == 2


async def test_asking_for_it_does_not_wait_for_the_schedule(shop: Shop, server: MerchantServer, clock: Clock) -> None:
    server.next_statuses = [500] * 3
    event_id = await created_event(shop)
    for _ in range(3):
        await work_off(shop.context)
        clock.forward(hours=2)
    await work_off(shop.context)
    assert (await delivery_of(shop, event_id)).status is DeliveryStatus.DELIVERED
    server.next_statuses = [500]
    await redeliver(shop, event_id)
    await redeliver(shop, event_id)
    assert (await delivery_of(shop, event_id)).status is DeliveryStatus.DELIVERED
    assert len(server.received) == 6


async def test_what_happened_before_anybody_listened_can_be_asked_for(
    context: Context, clock: Clock, server: MerchantServer
) -> None:
    shop = await open_shop(context, clock)
    event_id = await created_event(shop)
    assert await work_off(context) == 0
    with pytest.raises(LoopError, match="no_endpoint"):
        await redeliver(shop, event_id)
    await set_url(shop, server.url)
    await redeliver(shop, event_id)
    assert [each.event_id for each in server.received] == [event_id]
    assert (await delivery_of(shop, event_id)).status is DeliveryStatus.DELIVERED


async def set_url(shop: Shop, url: str | None) -> None:
    change = ProfileChange(has_webhook_url=True, webhook_url=url)
    await merchants.update_profile(shop.context, shop.merchant_id, change)


async def test_what_nobody_listens_to_any_more_is_shown_as_failed(shop: Shop, server: MerchantServer) -> None:
    server.next_statuses = [500]
    event_id = await created_event(shop)
    await work_off(shop.context)
    await set_url(shop, None)
    shop.clock.forward(hours=1)
    await work_off(shop.context)
    delivery = await delivery_of(shop, event_id)
    assert (delivery.status, delivery.attempts) == (DeliveryStatus.FAILED, 1)
    assert delivery.last_error == "nobody listens any more"
    await set_url(shop, server.url)
    await redeliver(shop, event_id)
    assert (await delivery_of(shop, event_id)).status is DeliveryStatus.DELIVERED


async def test_nobody_asks_for_somebody_else_s_event(shop: Shop) -> None:
    event_id = await created_event(shop)
    other = await open_shop(shop.context, shop.clock, number=2)
    for asked in (event_id, "evt_of_nobody"):
        with pytest.raises(LoopError, match="not_found"):
            await deliveries.retry(shop.context, other.merchant_id, asked)


async def test_each_merchant_is_told_of_its_own_orders_only(shop: Shop, server: MerchantServer) -> None:
    other = await open_shop(shop.context, shop.clock, number=2, webhook_url=f"{server.url}/other")
    mine, theirs = await created_event(shop), await created_event(other)
    await work_off(shop.context)
    assert {each.event_id for each in server.received} == {mine, theirs}
    assert len(server.received) == 2
    assert reveal_secret(shop.context, await endpoint_of(shop)) != reveal_secret(shop.context, await endpoint_of(other))


async def test_a_process_that_dies_after_sending_sends_it_again(
    shop: Shop, server: MerchantServer, clock: Clock
) -> None:
    server.hang = asyncio.Event()
    event_id = await created_event(shop)
    async with shop.context.database.transaction() as session:
        (claimed,) = await job_rows.claim(session, clock.now(), 10)
    shop.context.runner.start(shop.context, claimed)
    async with asyncio.timeout(5):
        while not server.received:  # noqa: ASYNC110 - the request is the event
            await asyncio.sleep(0.001)
    await shop.lose_process()
    assert running_jobs(shop.context) == ()
    server.hang.set()
    clock.forward(seconds=LEASE.total_seconds())
    await work_off(shop.context)
    assert len(server.of(event_id)) == 2
    assert (await delivery_of(shop, event_id)).status is DeliveryStatus.DELIVERED


async def test_the_correlation_id_of_the_request_goes_along(shop: Shop, server: MerchantServer) -> None:
    with bind(correlation_id="basket-page-17"):
        event_id = await created_event(shop)
    await work_off(shop.context)
    async with shop.context.database.reading() as reader:
        event = await rows.event(reader, shop.merchant_id, event_id)
    assert event is not None
    assert event.correlation_id == "basket-page-17"
    assert server.received[0].headers["X-Correlation-ID"] == "basket-page-17"


async def test_lists_page_and_filter(shop: Shop, server: MerchantServer) -> None:
    for _ in range(5):
        await created_event(shop)
    server.next_statuses = [500, 500]
    await work_off(shop.context)
    async with shop.context.database.reading() as reader:
        page, count = await delivery_rows.list_page(reader, shop.merchant_id, None, offset=1, limit=3)
        assert (len(page), count) == (3, 5)
        page, count = await delivery_rows.list_page(
            reader, shop.merchant_id, DeliveryStatus.PENDING, offset=0, limit=10
        )
        assert (len(page), count) == (2, 2)
        assert all(each.delivery.attempts == 1 for each in page)
        newest = await rows.events_after(reader, shop.merchant_id, before_id=None, limit=2)
        older = await rows.events_after(reader, shop.merchant_id, before_id=newest[-1].id, limit=10)
    assert len(older) == 3
    ids = [event.id for event in [*newest, *older]]
    assert ids == sorted(ids, reverse=True)
