"""Deliveries: several endpoints, each with its own pace, pauses and end, and none of them in the way of another."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest

from loop.domain.deliveries import DeliveryAttempt, DeliveryStatus
from loop.domain.endpoint_health import (
    FAILURES_MAX,
    GIVEN_UP_AFTER,
    GONE,
    HOPELESS,
    IN_FLIGHT_MAX,
    MAX_PAUSE,
    EndpointHealth,
)
from loop.domain.errors import LoopError
from loop.domain.events import EventType
from loop.storage import deliveries as rows
from loop.storage import jobs as job_rows
from loop.storage import webhooks as webhook_rows
from loop.storage.deliveries import EventWithDelivery
from loop.storage.jobs import LEASE
from loop.storage.tables import DELIVER
from loop.storage.webhooks import Endpoint
from loop.workflows import deliveries, merchants, retention, webhook_endpoints
from loop.workflows.context import Context
from loop.workflows.merchants import ProfileChange
from loop.workflows.webhook_endpoints import MAX_ENDPOINTS, EndpointChange, NewEndpoint
from tests.builders import Clock, Shop, open_shop, running_jobs, work_off
from tests.merchant_server import MerchantServer, merchant_server
from tests.workflow.conftest import open_database


@pytest.fixture
async def server() -> AsyncIterator[MerchantServer]:
    async with merchant_server() as server:
        yield server


@pytest.fixture
async def shop(context: Context, clock: Clock, server: MerchantServer) -> Shop:
    """Return a merchant whose first endpoint is at /first."""
    return await open_shop(context, clock, webhook_url=f"{server.url}/first")


async def endpoints_of(shop: Shop) -> list[Endpoint]:
    return await webhook_endpoints.list_endpoints(shop.context, shop.merchant_id)


async def first_of(shop: Shop) -> Endpoint:
    return (await endpoints_of(shop))[0]


async def add(shop: Shop, url: str, *event_types: str) -> Endpoint:
    shop.clock.forward(seconds=1)  # the first one is the oldest
    new = NewEndpoint(url, event_types=event_types or ("*",))
    return await webhook_endpoints.create(shop.context, shop.merchant_id, new)


async def change(shop: Shop, endpoint: Endpoint, change: EndpointChange) -> Endpoint:
    return await webhook_endpoints.change(shop.context, shop.merchant_id, endpoint.id, change=change)


async def delivered_to(shop: Shop, endpoint: Endpoint) -> list[EventWithDelivery]:
    """Return the deliveries to an endpoint, the oldest event first."""
    async with shop.context.database.reading() as reader:
        found, _ = await rows.list_page(reader, shop.merchant_id, None, offset=0, limit=1_000)
    return [each for each in reversed(found) if each.delivery.endpoint_id == endpoint.id]


async def statuses_at(shop: Shop, endpoint: Endpoint) -> set[DeliveryStatus]:
    return {each.delivery.status for each in await delivered_to(shop, endpoint)}


async def attempts_of(shop: Shop, event_id: str) -> list[DeliveryAttempt]:
    async with shop.context.database.reading() as reader:
        return await rows.attempts_of(reader, shop.merchant_id, event_id)


async def create_orders(shop: Shop, count: int) -> None:
    for _ in range(count):
        await shop.order()


async def job_of(shop: Shop, endpoint: Endpoint) -> job_rows.Job:
    (job,) = await shop.jobs(endpoint.id)
    return job


# Who hears of what.


async def test_every_endpoint_hears_of_what_it_asked_for(shop: Shop, server: MerchantServer) -> None:
    await add(shop, f"{server.url}/all")
    await add(shop, f"{server.url}/money", EventType.PAYMENT_CAPTURED, EventType.REFUND_PROCESSED)
    await add(shop, f"{server.url}/none", EventType.DISPUTE_OPENED)
    order = (await shop.paid()).order
    await shop.refund(order.id)
    await work_off(shop.context)
    everything = ["order.created", "payment.processing", "payment.captured", "refund.created", "refund.processed"]
    assert sorted(server.at("/first")) == sorted(server.at("/all")) == sorted(everything)
    assert sorted(server.at("/money")) == ["payment.captured", "refund.processed"]
    assert server.at("/none") == []
    async with shop.context.database.reading() as reader:
        assert await job_rows.count(reader) == (0, 0)


async def test_a_disabled_or_removed_endpoint_hears_of_nothing_new(shop: Shop, server: MerchantServer) -> None:
    off, gone = await add(shop, f"{server.url}/off"), await add(shop, f"{server.url}/gone")
    await change(shop, off, EndpointChange(is_enabled=False))
    await webhook_endpoints.remove(shop.context, shop.merchant_id, gone.id)
    await shop.order()
    await work_off(shop.context)
    assert (server.at("/first"), server.at("/off"), server.at("/gone")) == (["order.created"], [], [])
    await change(shop, off, EndpointChange(is_enabled=True))
    await shop.order()
    await work_off(shop.context)
    assert server.at("/off") == ["order.created"]
    with pytest.raises(LoopError, match="not_found"):
        await webhook_endpoints.get(shop.context, shop.merchant_id, gone.id)


async def test_what_waits_for_an_endpoint_fails_when_it_is_switched_off(shop: Shop, server: MerchantServer) -> None:
    server.status = 500
    other = await add(shop, f"{server.url}/other")
    await create_orders(shop, 3)
    await work_off(shop.context)
    assert await statuses_at(shop, other) == {DeliveryStatus.PENDING}
    await change(shop, other, EndpointChange(is_enabled=False))
    await webhook_endpoints.remove(shop.context, shop.merchant_id, (await first_of(shop)).id)
    before = len(server.received)
    await work_off(shop.context)
    assert len(server.received) == before
    async with shop.context.database.reading() as reader:
        found, _ = await rows.list_page(reader, shop.merchant_id, None, offset=0, limit=100)
        assert await job_rows.count(reader) == (0, 0)
    assert {(each.delivery.status, each.delivery.last_error) for each in found} == {
        (DeliveryStatus.FAILED, "the endpoint is disabled"),
        (DeliveryStatus.FAILED, "nobody listens any more"),
    }


async def test_events_of_an_order_are_numbered_in_its_own_order(shop: Shop, server: MerchantServer) -> None:
    paid = (await shop.paid()).order
    for amount in (100, 200):
        await shop.refund(paid.id, amount)
    await shop.order()
    numbers = [json.loads(event.body)["seq"] for event in await shop.events(paid.id)]
    assert numbers == [1, 2, 3, 4, 5, 6, 7]
    await work_off(shop.context)
    assert sorted(json.loads(each.body)["seq"] for each in server.received) == [1, 1, 2, 3, 4, 5, 6, 7]


# The first one.


async def test_the_first_endpoint_is_the_oldest_one_with_an_address(
    context: Context, clock: Clock, server: MerchantServer
) -> None:
    shop = await open_shop(context, clock)
    assert [endpoint.url for endpoint in await endpoints_of(shop)] == [None]
    for name in ("a", "b"):
        await add(shop, f"{server.url}/{name}")

    async def webhook_url() -> str | None:
        profile = await merchants.get_profile(context, shop.merchant_id)
        return None if profile.endpoint is None else profile.endpoint.url

    assert await webhook_url() == f"{server.url}/a"
    await webhook_endpoints.remove(context, shop.merchant_id, (await first_of(shop)).id)
    assert await webhook_url() == f"{server.url}/b"
    await webhook_endpoints.remove(context, shop.merchant_id, (await first_of(shop)).id)
    assert (await webhook_url(), await endpoints_of(shop)) == (None, [])
    change = ProfileChange(has_webhook_url=True, webhook_url=f"{server.url}/c")
    await merchants.update_profile(context, shop.merchant_id, change)
    assert await webhook_url() == f"{server.url}/c"


async def test_there_is_a_bound_on_how_many(shop: Shop, server: MerchantServer) -> None:
    for number in range(MAX_ENDPOINTS - 1):
        await add(shop, f"{server.url}/{number}")
    with pytest.raises(LoopError, match="too_many_endpoints"):
        await add(shop, server.url)
    await webhook_endpoints.remove(shop.context, shop.merchant_id, (await first_of(shop)).id)
    await add(shop, server.url)


async def test_nobody_touches_somebody_else_s_endpoint(shop: Shop, clock: Clock) -> None:
    endpoint = await first_of(shop)
    other = await open_shop(shop.context, clock, number=2)
    mine = (shop.context, other.merchant_id, endpoint.id)
    for asked in (
        webhook_endpoints.get(*mine),
        webhook_endpoints.change(*mine, change=EndpointChange(is_enabled=False)),
        webhook_endpoints.remove(*mine),
        webhook_endpoints.rotate_secret(*mine),
        webhook_endpoints.promote_secret(*mine),
        deliveries.send_trial(*mine),
        deliveries.replay(*mine, since=clock.at),
    ):
        with pytest.raises(LoopError, match="not_found"):
            await asked
    assert await first_of(shop) == endpoint


# Pace.


async def test_four_are_on_their_way_to_one_endpoint_and_all_of_them_arrive(shop: Shop, server: MerchantServer) -> None:
    server.hang = asyncio.Event()
    await create_orders(shop, 20)
    working = asyncio.create_task(work_off(shop.context))
    async with asyncio.timeout(5):
        while server.at_once < IN_FLIGHT_MAX:  # noqa: ASYNC110 - the request is the event
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.1)
    assert server.at_once == IN_FLIGHT_MAX
    server.hang.set()
    await working
    assert server.most_at_once == IN_FLIGHT_MAX
    assert len(server.received) == 20
    assert await statuses_at(shop, await first_of(shop)) == {DeliveryStatus.DELIVERED}


async def test_one_endpoint_s_backlog_is_one_job(shop: Shop, server: MerchantServer) -> None:
    await create_orders(shop, 20)
    async with shop.context.database.transaction() as session:
        (claimed,) = await job_rows.claim(session, shop.clock.now(), 100)
    endpoint = await first_of(shop)
    assert (claimed.kind, claimed.subject, claimed.lane) == (DELIVER, endpoint.id, endpoint.id)
    assert server.received == []


async def test_an_endpoint_s_turn_ends_and_others_have_theirs(
    shop: Shop, server: MerchantServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "TURN", timedelta())
    monkeypatch.setattr(deliveries, "BATCH", 2)
    await create_orders(shop, 5)
    async with shop.context.database.transaction() as session:
        (claimed,) = await job_rows.claim(session, shop.clock.now(), 100)
    await deliveries.deliver(shop.context, claimed)
    assert len(server.received) == 2
    again = await job_of(shop, await first_of(shop))
    assert (again.is_leased, again.id) == (False, claimed.id)
    assert claimed.created_at < again.run_at <= shop.clock.at  # behind all who are due by now
    await work_off(shop.context)
    assert len(server.received) == 5


# Pauses.


async def test_an_endpoint_that_fails_five_times_is_left_alone_and_gets_one_probe_at_a_time(
    shop: Shop, server: MerchantServer, clock: Clock
) -> None:
    server.status = 500
    await create_orders(shop, 30)
    await work_off(shop.context)
    tried = len(server.received)
    assert FAILURES_MAX <= tried < FAILURES_MAX + IN_FLIGHT_MAX
    for pause_s in (60, 120, 240, 480, 960, 1_920, 3_600, 3_600):
        clock.forward(seconds=pause_s - 2)
        await work_off(shop.context)
        assert len(server.received) == tried
        endpoint = await first_of(shop)
        assert endpoint.paused_until is not None
        assert endpoint.paused_until - clock.at <= MAX_PAUSE
        clock.forward(seconds=2)
        await work_off(shop.context)
        tried += 1
        assert len(server.received) == tried
    server.status = 200
    clock.forward(hours=1)
    await work_off(shop.context)
    clock.forward(hours=2)
    await work_off(shop.context)  # those that had been tried before
    assert len({each.event_id for each in server.received}) == 30
    endpoint = await first_of(shop)
    assert (endpoint.failure_streak, endpoint.failing_since, endpoint.paused_until) == (0, None, None)
    assert await statuses_at(shop, endpoint) == {DeliveryStatus.DELIVERED}


async def test_a_new_event_does_not_end_a_pause(shop: Shop, server: MerchantServer, clock: Clock) -> None:
    server.status = 500
    await create_orders(shop, 10)
    await work_off(shop.context)
    tried = len(server.received)
    clock.forward(seconds=30)
    await shop.order()
    await work_off(shop.context)
    assert len(server.received) == tried


async def test_who_asks_for_an_event_or_moves_the_endpoint_ends_its_pause(shop: Shop, server: MerchantServer) -> None:
    server.status = 500
    await create_orders(shop, 10)
    await work_off(shop.context)
    tried, endpoint = len(server.received), await first_of(shop)
    server.next_statuses = [500]
    asked = (await delivered_to(shop, endpoint))[-1].event.id
    await deliveries.retry(shop.context, shop.merchant_id, asked)
    await work_off(shop.context)
    assert len(server.received) == tried + 1  # a probe, that failed
    server.status = 200
    await change(shop, endpoint, EndpointChange(url=f"{server.url}/moved"))
    await work_off(shop.context)
    assert (await first_of(shop)).failure_streak == 0
    shop.clock.forward(hours=1)
    await work_off(shop.context)
    assert len(server.at("/moved")) == 10


async def test_one_endpoint_s_pause_is_not_another_s(shop: Shop, server: MerchantServer, clock: Clock) -> None:
    sick = await add(shop, "http://127.0.0.1:1/")
    await create_orders(shop, 20)
    await work_off(shop.context)
    assert len(server.at("/first")) == 20
    await shop.order()
    await work_off(shop.context)
    assert len(server.at("/first")) == 21
    assert (await job_of(shop, sick)).run_at > clock.at


async def test_an_endpoint_says_when_to_come_back(shop: Shop, server: MerchantServer, clock: Clock) -> None:
    server.next_statuses, server.headers = [503, 503, 429], {"Retry-After": "8"}
    await shop.order()

    async def wait_s() -> float:
        (waiting,) = await delivered_to(shop, await first_of(shop))
        assert waiting.delivery.next_attempt_at is not None
        return (waiting.delivery.next_attempt_at - clock.at).total_seconds()

    await work_off(shop.context)
    assert await wait_s() == pytest.approx(8, abs=0.1)
    clock.forward(seconds=8)
    server.headers = {"Retry-After": "100000"}
    await work_off(shop.context)
    assert await wait_s() == pytest.approx(600, abs=0.1)
    clock.forward(seconds=600)
    await work_off(shop.context)
    assert await wait_s() == pytest.approx(3_600, abs=0.1)


@pytest.mark.parametrize(("status", "least_s"), [(429, 60), (502, 60), (504, 60), (500, 4)])
async def test_who_has_too_much_to_do_has_a_minute(
    shop: Shop, server: MerchantServer, clock: Clock, status: int, least_s: float
) -> None:
    server.next_statuses = [status]
    await shop.order()
    await work_off(shop.context)
    (waiting,) = await delivered_to(shop, await first_of(shop))
    assert waiting.delivery.next_attempt_at is not None
    assert least_s <= (waiting.delivery.next_attempt_at - clock.at).total_seconds() + 0.01 <= 61


# The end.


async def test_an_endpoint_that_is_gone_is_disabled_at_once_and_the_others_are_told(
    shop: Shop, server: MerchantServer
) -> None:
    first, other = await first_of(shop), await add(shop, f"{server.url}/other")
    await create_orders(shop, 10)
    server.next_statuses = [410]
    async with shop.context.database.transaction() as session:
        claimed = await job_rows.claim(session, shop.clock.now(), 100)
    job = next(job for job in claimed if job.subject == first.id)
    await deliveries.deliver(shop.context, job)
    assert len(server.received) <= IN_FLIGHT_MAX + 3
    disabled = await first_of(shop)
    assert (disabled.is_enabled, disabled.disabled_reason) == (False, GONE)
    failed = [each for each in await delivered_to(shop, first) if each.delivery.status is DeliveryStatus.FAILED]
    assert len(failed) >= 10 - IN_FLIGHT_MAX
    assert await shop.jobs(first.id) == []
    shop.clock.forward(seconds=LEASE.total_seconds())
    await work_off(shop.context)
    assert server.at("/other").count("order.created") == 10
    assert server.at("/other").count("endpoint.disabled") == 1
    (told,) = [json.loads(each.body) for each in server.received if each.event_type == "endpoint.disabled"]
    assert told["payload"] == {"endpointId": first.id, "url": first.url, "reason": GONE}
    assert (told["orderId"], told["seq"]) == (None, None)
    assert await statuses_at(shop, other) == {DeliveryStatus.DELIVERED}


async def test_five_days_without_a_success_are_the_end_and_one_call_is_a_new_beginning(
    shop: Shop, server: MerchantServer, clock: Clock
) -> None:
    server.status, began = 500, clock.at
    await create_orders(shop, 3)
    while (await first_of(shop)).is_enabled:
        assert clock.at - began < GIVEN_UP_AFTER + timedelta(hours=3)
        await work_off(shop.context)
        clock.forward(hours=1)
        if clock.at - began < timedelta(days=4):
            await shop.order()
    assert clock.at - began >= GIVEN_UP_AFTER
    endpoint = await first_of(shop)
    assert endpoint.disabled_reason == HOPELESS
    assert await statuses_at(shop, endpoint) == {DeliveryStatus.FAILED}
    waiting, tried = await delivered_to(shop, endpoint), len(server.received)
    assert len(waiting) > 20
    assert tried < 200  # the pauses bound it, not the number of events
    server.status = 200
    with pytest.raises(LoopError, match="no_endpoint"):
        await deliveries.replay(shop.context, shop.merchant_id, endpoint.id, since=began)
    endpoint = await change(shop, endpoint, EndpointChange(is_enabled=True))
    assert (endpoint.is_enabled, endpoint.disabled_reason, endpoint.failure_streak) == (True, None, 0)
    replayed = await deliveries.replay(shop.context, shop.merchant_id, endpoint.id, since=began)
    assert (replayed.count, replayed.has_more) == (len(waiting), False)
    await work_off(shop.context)
    assert await statuses_at(shop, endpoint) == {DeliveryStatus.DELIVERED}
    assert len(server.received) == tried + len(waiting)


async def test_a_success_now_and_then_keeps_an_endpoint(shop: Shop, server: MerchantServer, clock: Clock) -> None:
    for day in range(8):
        server.next_statuses = [500] * 5 if day % 2 else []
        await shop.order()
        await work_off(shop.context)
        clock.forward(days=1)
    assert (await first_of(shop)).is_enabled


async def test_a_new_address_is_a_new_beginning(shop: Shop, server: MerchantServer) -> None:
    server.next_statuses = [410]
    await shop.order()
    await work_off(shop.context)
    assert not (await first_of(shop)).is_enabled
    moved = ProfileChange(has_webhook_url=True, webhook_url=f"{server.url}/moved")
    await merchants.update_profile(shop.context, shop.merchant_id, moved)
    await shop.order()
    await work_off(shop.context)
    assert server.at("/moved") == ["order.created"]


async def test_who_switched_an_endpoint_off_is_not_overruled_by_a_new_address(shop: Shop) -> None:
    endpoint = await change(shop, await first_of(shop), EndpointChange(is_enabled=False))
    moved = await change(shop, endpoint, EndpointChange(url="http://127.0.0.1:1/elsewhere"))
    assert not moved.is_enabled


# Again.


async def test_what_failed_since_then_is_sent_again_in_bounded_steps(
    shop: Shop, server: MerchantServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "REPLAY_BATCH", 2)
    monkeypatch.setattr(deliveries, "REPLAY_MAX", 4)
    endpoint = await change(shop, await first_of(shop), EndpointChange(is_enabled=True))
    events = []
    for _ in range(7):
        clock.forward(minutes=1)
        (event,) = await shop.events((await shop.order()).id)
        events.append(event)
    await work_off(shop.context)
    failed = [replace(each.delivery, status=DeliveryStatus.FAILED) for each in await delivered_to(shop, endpoint)]
    for each in failed:
        await shop.context.database.write_at_once([rows.updating(each)])
    server.received.clear()
    since = events[1].created_at
    counts = []
    for _ in range(3):
        done = await deliveries.replay(shop.context, shop.merchant_id, endpoint.id, since=since)
        counts.append((done.count, done.has_more))
    assert counts == [(4, True), (2, False), (0, False)]
    await work_off(shop.context)
    assert [each.event_id for each in server.received] == [event.id for event in events[1:]]


async def test_an_event_is_sent_again_to_one_endpoint_or_to_all_that_hear_of_it(
    shop: Shop, server: MerchantServer
) -> None:
    other = await add(shop, f"{server.url}/other")
    await add(shop, f"{server.url}/deaf", EventType.DISPUTE_OPENED)
    (event,) = await shop.events((await shop.order()).id)
    await work_off(shop.context)
    await deliveries.retry(shop.context, shop.merchant_id, event.id)
    await work_off(shop.context)
    assert (len(server.at("/first")), len(server.at("/other")), server.at("/deaf")) == (2, 2, [])
    await deliveries.retry(shop.context, shop.merchant_id, event.id, endpoint_id=other.id)
    await work_off(shop.context)
    assert (len(server.at("/first")), len(server.at("/other"))) == (2, 3)
    await webhook_endpoints.remove(shop.context, shop.merchant_id, other.id)
    with pytest.raises(LoopError, match="not_found"):
        await deliveries.retry(shop.context, shop.merchant_id, event.id, endpoint_id=other.id)


async def test_a_trial_goes_to_one_endpoint_whatever_it_hears_of(shop: Shop, server: MerchantServer) -> None:
    endpoint = await add(shop, f"{server.url}/other", EventType.DISPUTE_OPENED)
    event_id = await deliveries.send_trial(shop.context, shop.merchant_id, endpoint.id)
    await work_off(shop.context)
    assert [(each.path, each.event_type, each.event_id) for each in server.received] == [
        ("/other", "endpoint.tested", event_id)
    ]
    await change(shop, endpoint, EndpointChange(is_enabled=False))
    with pytest.raises(LoopError, match="no_endpoint"):
        await deliveries.send_trial(shop.context, shop.merchant_id, endpoint.id)


# The log of tries.


async def test_every_try_is_logged_with_what_was_answered(shop: Shop, server: MerchantServer, clock: Clock) -> None:
    server.next_statuses, server.answer = [500], b"no\x00 luck: password=hunter2 whsec_abcdef \xff" + b"z" * 40_000
    (event,) = await shop.events((await shop.order()).id)
    await work_off(shop.context)
    clock.forward(hours=1)
    server.answer = "danke, Zoë".encode()
    await work_off(shop.context)
    later, earlier = await attempts_of(shop, event.id)
    assert (earlier.number, earlier.status_code, earlier.error) == (1, 500, "answered 500")
    assert (earlier.address, later.address) == ("127.0.0.1", "127.0.0.1")
    assert earlier.answer is not None
    assert earlier.answer.startswith("no luck: password=[redacted] [redacted] \ufffd")
    assert len(earlier.answer) < 17_000
    assert (later.number, later.status_code, later.error, later.answer) == (2, 200, None, "danke, Zoë")
    assert earlier.tried_at < later.tried_at
    assert all(each.duration_ms >= 0 for each in (earlier, later))


async def test_a_try_without_an_answer_is_logged_too_and_all_of_it_is_forgotten_in_time(
    context: Context, clock: Clock
) -> None:
    shop = await open_shop(context, clock, webhook_url="http://127.0.0.1:1/")
    (event,) = await shop.events((await shop.order()).id)
    await work_off(context)
    (attempt,) = await attempts_of(shop, event.id)
    assert (attempt.status_code, attempt.answer, attempt.address) == (None, None, None)
    assert attempt.error == "ClientConnectorError"
    clock.forward(days=context.settings.keep_attempts_days, seconds=-1)
    assert await retention.purge_delivery_attempts(context) == 0
    clock.forward(seconds=2)
    assert await retention.purge_delivery_attempts(context) == 1
    assert await attempts_of(shop, event.id) == []


async def test_a_secret_that_cannot_be_read_is_a_failed_try_and_stops_nobody_else(
    shop: Shop, server: MerchantServer
) -> None:
    broken, good = await first_of(shop), await add(shop, f"{server.url}/good")
    moved = replace(broken, secret=good.secret)  # another row's ciphertext
    await shop.context.database.write_at_once([webhook_rows.endpoint_updating(moved)])
    await shop.order()
    await work_off(shop.context)
    assert (server.at("/first"), server.at("/good")) == ([], ["order.created"])
    (waiting,) = await delivered_to(shop, broken)
    assert (waiting.delivery.attempts, waiting.delivery.last_error) == (1, "ciphertext_refused")


# Who holds the job.


async def test_a_holder_that_froze_stores_nothing_though_the_job_has_ended_and_begun_anew_since(
    shop: Shop, server: MerchantServer, clock: Clock
) -> None:
    server.hang = asyncio.Event()
    await shop.order()
    async with shop.context.database.transaction() as session:
        (stale,) = await job_rows.claim(session, clock.now(), 10)
    frozen = shop.context.runner.start(shop.context, stale)
    async with asyncio.timeout(5):
        while not server.received:  # noqa: ASYNC110 - the request is the event
            await asyncio.sleep(0.001)
    clock.forward(seconds=LEASE.total_seconds())
    thawed, server.hang = server.hang, None
    await work_off(shop.context)
    endpoint = await first_of(shop)
    assert await shop.jobs(endpoint.id) == []
    server.next_statuses = [500]
    await shop.order()
    async with shop.context.database.transaction() as session:
        (fresh,) = await job_rows.claim(session, clock.now(), 10)
    assert (fresh.fence, fresh.subject) == (stale.fence, stale.subject)
    before = await delivered_to(shop, endpoint)
    thawed.set()
    await frozen
    assert running_jobs(shop.context) == ()
    assert await delivered_to(shop, endpoint) == before
    assert await shop.jobs(endpoint.id) == [fresh]


async def test_what_becomes_due_while_a_job_runs_is_seen_before_it_ends(shop: Shop, server: MerchantServer) -> None:
    server.hang = asyncio.Event()
    await shop.order()
    working = asyncio.create_task(work_off(shop.context))
    async with asyncio.timeout(5):
        while not server.received:  # noqa: ASYNC110 - the request is the event
            await asyncio.sleep(0.001)
    await create_orders(shop, 3)
    async with shop.context.database.transaction() as session:
        assert await job_rows.claim(session, shop.clock.now(), 10) == []  # they are the job's that runs
    server.hang.set()
    await working
    assert len(server.received) == 4
    assert await shop.jobs((await first_of(shop)).id) == []


async def test_what_another_process_is_just_taking_notice_of_is_waited_for(
    shop: Shop, server: MerchantServer, database_url: str
) -> None:
    await shop.order()
    async with shop.context.database.transaction() as session:
        (held,) = await job_rows.claim(session, shop.clock.now(), 10)
    (sent,) = await delivered_to(shop, await first_of(shop))
    done = replace(sent.delivery, status=DeliveryStatus.DELIVERED)
    await shop.context.database.write_at_once([rows.updating(done)])
    await shop.order()
    other = await open_database(database_url)
    async with other.transaction() as session:
        assert await job_rows.claim(session, shop.clock.now(), 10) == []
        ending = asyncio.create_task(deliveries._end_turn(shop.context, held, EndpointHealth(), is_tried=True))
        await asyncio.sleep(0.2)
        assert not ending.done()
    await ending
    await other.close()
    assert not (await job_of(shop, await first_of(shop))).is_leased
    await work_off(shop.context)
    assert len(server.received) == 1
