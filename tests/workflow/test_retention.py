"""Retention: what has done its work goes when its time is up, in batches by index; what is needed yet stays."""

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from loop.domain.attempts import Unknown
from loop.domain.deliveries import DeliveryStatus
from loop.domain.ids import PREFIX_PROCESSOR_EVENT, first_id
from loop.domain.orders import Order
from loop.storage import deliveries as delivery_rows
from loop.storage import idempotency, orders, processor_events, sessions, webhooks
from loop.storage.database import Database
from loop.storage.processor_events import ProcessorEvent
from loop.storage.statements import Statement
from loop.workflows import retention
from loop.workflows.context import Context
from tests.builders import MIDNIGHT, Clock, Shop, open_shop, work_off
from tests.servers import run_sql

NOBODY_THERE = "http://127.0.0.1:1/"


async def event_ids(shop: Shop, order: Order) -> list[str]:
    return [event.id for event in await shop.events(order.id)]


async def purge_when_due(shop: Shop) -> int:
    """Turn the clock on until all that there is has been kept for long enough, and delete it."""
    shop.clock.forward(days=shop.context.settings.keep_events_days, seconds=1)
    return await retention.purge_events(shop.context)


# Events and their deliveries.


async def test_events_go_when_their_time_is_up_and_the_money_s_rows_stay(shop: Shop, clock: Clock) -> None:
    order = (await shop.paid()).order
    assert len(await shop.events(order.id)) == 3
    paid, moved = await shop.now(order.id), await shop.transactions(order.id)
    clock.forward(days=shop.context.settings.keep_events_days, seconds=-1)
    assert await retention.purge_events(shop.context) == 0
    clock.forward(seconds=2)
    assert await retention.purge_events(shop.context) == 3
    assert await shop.events(order.id) == []
    assert (await shop.now(order.id), await shop.transactions(order.id)) == (paid, moved)


async def test_deliveries_go_with_their_event_once_it_was_delivered_or_given_up(context: Context, clock: Clock) -> None:
    shop = await open_shop(context, clock, webhook_url=NOBODY_THERE)
    order = await shop.order()
    (event_id,) = await event_ids(shop, order)
    assert await purge_when_due(shop) == 0  # nobody has tried to deliver it
    await work_off(context)
    assert await retention.purge_events(context) == 0  # it is tried again
    async with context.database.transaction() as session:
        (delivery,) = await delivery_rows.of_event(session, "mer_1", event_id)
        assert (delivery.status, delivery.attempts) == (DeliveryStatus.PENDING, 1)
        assert await delivery_rows.give_up(session, delivery.endpoint_id, reason="enough", limit=10) == 1
    assert await retention.purge_events(context) == 1
    async with context.database.reading() as reader:
        assert await delivery_rows.of_event(reader, "mer_1", event_id) == []
        assert await delivery_rows.attempts_of(reader, "mer_1", event_id) == []


async def test_the_story_of_an_order_that_is_not_settled_stays(shop: Shop) -> None:
    held, waiting = await shop.paid(is_manual_capture=True), await shop.paid("tok_3ds")
    shop.next_answers("authorize", Unknown("no answer"))
    unclear, settled, in_review = await shop.paid(), await shop.paid(), await shop.paid()
    async with shop.context.database.transaction() as session:
        await orders.flag_for_review(session, shop.merchant_id, in_review.order.id, now=shop.clock.now())
    assert await purge_when_due(shop) == 3
    assert await shop.events(settled.order.id) == []
    for each in (held, waiting, unclear, in_review):
        assert len(await shop.events(each.order.id)) >= 2
    old = await shop.events(held.order.id)
    await shop.cancel(held.order.id)
    assert await retention.purge_events(shop.context) == len(old)  # what has just been told stays
    assert await shop.event_types(held.order.id) == ["payment.cancelled"]


async def test_more_than_a_batch_goes_in_batches_and_more_than_a_run_in_runs(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    monkeypatch.setattr(retention, "BATCHES_MAX", 2)
    unclear = await shop.paid("tok_pending")
    for _ in range(5):
        await shop.order()
    assert [await purge_when_due(shop), await retention.purge_events(shop.context)] == [4, 1]
    assert len(await shop.events(unclear.order.id)) >= 2


async def test_processes_that_delete_at_the_same_time_share_the_work(
    shop: Shop, same_database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(retention, "BATCH", 3)
    await asyncio.gather(*(shop.order() for _ in range(60)))
    shop.clock.forward(days=shop.context.settings.keep_events_days, seconds=1)
    sides = (shop.context, replace(shop.context, database=same_database))
    counts = await asyncio.gather(*(retention.purge_events(side) for side in sides * 2))
    left = await retention.purge_events(shop.context)  # what one side saw locked when it stopped
    assert sum(counts) + left == 60
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


# Processors' webhooks.


def inbound(number: int, **changes: object) -> ProcessorEvent:
    at = MIDNIGHT + timedelta(minutes=number)
    made = first_id(PREFIX_PROCESSOR_EVENT, at)
    usual: dict[str, object] = {
        "id": made, "merchant_id": "mer_1", "processor_config_id": "pcf_1", "processor": "sandbox", "event_id": made,
        "event_type": "payment", "body_hash": made, "payment_reference": None, "attempt_id": None,
        "refund_reference": None, "dispute_reference": None, "amount_minor": None, "currency": None,
        "secret_ordinal": 0, "is_quarantined": False, "outcome": "gone", "processed_at": at, "created_at": at,
    }  # fmt: skip
    return ProcessorEvent(**{**usual, **changes})  # type: ignore[arg-type] # any field


async def test_a_processor_s_webhooks_go_unless_they_wait_for_their_work_or_for_a_person(
    context: Context, clock: Clock
) -> None:
    parked, quarantined = inbound(1, processed_at=None, outcome=None), inbound(2, is_quarantined=True)
    done, later = inbound(3), inbound(4)
    async with context.database.transaction() as session:
        for each in (parked, quarantined, done, later):
            assert await processor_events.add(session, each)
    clock.at = MIDNIGHT + timedelta(days=context.settings.keep_processor_events_days, minutes=3, seconds=1)
    assert await retention.purge_processor_events(context) == 1
    async with context.database.reading() as reader:
        left = [each for each in (parked, quarantined, done, later) if await processor_events.get(reader, each.id)]
    assert left == [parked, quarantined, later]


# How the rows are found.

FILL_POSTGRES = """
    INSERT INTO merchants (id, name, email, password_hash, created_at, updated_at)
        VALUES ('mer_1', 'Shop', 'me@example.com', '-', now(), now());
    INSERT INTO webhook_endpoints (id, merchant_id, event_types, secret, is_enabled, created_at, updated_at)
        VALUES ('ep_1', 'mer_1', '[]', '-', true, now(), now());
    INSERT INTO orders (id, merchant_id, external_id, amount_minor, currency, status, is_manual_capture, metadata,
            amount_authorized_minor, amount_captured_minor, amount_refunded_minor, amount_refund_reserved_minor,
            amount_disputed_minor, needs_review, created_at, updated_at)
        SELECT 'ord_' || n, 'mer_1', n, 5, 'EUR', 'captured', false, '{}', 0, 0, 0, 0, 0, false, now(), now()
        FROM generate_series(1, 20000) n;
    INSERT INTO webhook_events (id, merchant_id, order_id, event_type, body, created_at)
        SELECT 'evt_' || n, 'mer_1', 'ord_' || n, 'order.created', '{}', now() FROM generate_series(1, 20000) n;
    INSERT INTO webhook_deliveries (event_id, endpoint_id, merchant_id, status, attempts)
        SELECT id, 'ep_1', 'mer_1', 'delivered', 1 FROM webhook_events;
    INSERT INTO delivery_attempts (event_id, endpoint_id, number, merchant_id, duration_ms, tried_at)
        SELECT id, 'ep_1', number, 'mer_1', 5, now() + random() * interval '30 days'
        FROM webhook_events, generate_series(1, 5) number;
    INSERT INTO processor_events (id, merchant_id, processor_config_id, processor, event_id, event_type, body_hash,
            is_quarantined, processed_at, created_at)
        SELECT 'pev_' || n, 'mer_1', 'pcf_1', 'sandbox', n, 'x', n, false, now(), now()
        FROM generate_series(1, 20000) n;
    INSERT INTO idempotency_keys (merchant_id, is_test, key, request_hash, locked_until, created_at)
        SELECT 'mer_1', false, n, '-', now(), now() + n * interval '1 minute' FROM generate_series(1, 100000) n;
    INSERT INTO sign_in_sessions (id, merchant_id, created_at, last_used_at, expires_at)
        SELECT 'ses_' || n, 'mer_1', now(), now(), now() + n * interval '1 minute' FROM generate_series(1, 100000) n;
    INSERT INTO refresh_tokens (token_hash, merchant_id, family_id, created_at, expires_at)
        SELECT 'tok_' || n, 'mer_1', 'ses_' || n, now(), now() + n * interval '1 minute'
        FROM generate_series(1, 100000) n;
    ANALYZE;
"""
BOUNDS = {
    "before_id": "zzz",
    "before": datetime.max.replace(tzinfo=UTC),
    "limit": retention.BATCH,
    "first_id": "evt_10",
    "last_id": "evt_1001",
}
OWN_LISTS = ("SCAN old", "SCAN outlived")
"""What SQLite says of the rows that a statement has just found by an index."""

PURGES: tuple[Statement[Any], ...] = (
    webhooks._OLD_EVENTS, *webhooks._PURGE_EVENTS, processor_events._OLD, processor_events._PURGE,
    delivery_rows._PURGE_ATTEMPTS, idempotency._PURGE, sessions._PURGE, sessions._PURGE_TOKENS,
)  # fmt: skip


async def test_postgres_finds_old_rows_by_index(postgres_database_url: str) -> None:
    run_sql(postgres_database_url, FILL_POSTGRES)
    connection = await asyncpg.connect(postgres_database_url)
    for statement in PURGES:
        compiled = statement.for_postgres()
        plan = [line[0] for line in await connection.fetch("EXPLAIN " + compiled.text, *compiled.arguments(BOUNDS))]
        assert not [line for line in plan if "Seq Scan" in line], "\n".join(plan)
        assert any("Index Cond" in line for line in plan)
    await connection.close()


def test_sqlite_finds_old_rows_by_index(sqlite_database_url: str) -> None:
    with closing(sqlite3.connect(sqlite_database_url.removeprefix("sqlite:///"))) as connection:
        for statement in PURGES:
            compiled = statement.for_sqlite()
            plan = connection.execute("EXPLAIN QUERY PLAN " + compiled.text, compiled.arguments(BOUNDS)).fetchall()
            steps = [row[3] for row in plan]
            assert [step for step in steps if "INDEX" in step]
            assert not [step for step in steps if step.startswith("SCAN") and step not in OWN_LISTS], steps
