"""The audit log: written with the change itself, one chain a merchant, and no change or gap in it goes unseen."""

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import cast

import asyncpg
import pytest

from loop.domain.audit import SYSTEM, Actor, ActorKind, AuditAction, AuditEntry, Head
from loop.domain.errors import LoopError
from loop.domain.events import timestamp
from loop.domain.failover import LateSuccess
from loop.domain.routing_rules import Conditions, Rule
from loop.storage import audit as rows
from loop.storage import merchants as merchant_rows
from loop.storage.database import ConstraintError
from loop.storage.jobs import Job
from loop.workflows import audit, captures, encryption_keys, merchants, processor_configs, refunds, routing, sessions
from loop.workflows.context import Context
from loop.workflows.jobs import JOBS, JobKind
from loop.workflows.merchants import NewApiKey, NewMerchant, ProfileChange
from loop.workflows.processor_configs import ConfigChange
from tests.builders import Clock, Shop, job, merchant, open_shop
from tests.servers import run_sql

PERSON = Actor(ActorKind.USER, "mer_1", "203.0.113.9")
NEW = NewMerchant("My shop", "me@example.com", "correct horse")
WRITERS = 50


async def entries(context: Context, merchant_id: str = "mer_1") -> Sequence[AuditEntry]:
    """Return a merchant's entries, oldest first."""
    async with context.database.reading() as reader:
        return (await rows.newest(reader, merchant_id, before_seq=None, limit=1_000))[::-1]


async def operator_entries(context: Context) -> Sequence[AuditEntry]:
    async with context.database.reading() as reader:
        return await rows.following(reader, "operator", after=None, limit=1_000)


async def last(context: Context, merchant_id: str = "mer_1") -> AuditEntry:
    return (await entries(context, merchant_id))[-1]


def acting(context: Context) -> Context:
    """Return the context in which a person acts."""
    return replace(context, actor=PERSON)


async def write(context: Context, subject: str, merchant_id: str | None = "mer_1") -> None:
    """Add an entry that says nothing."""
    async with context.database.transaction() as session:
        await audit.record(context, session, AuditAction.PROFILE_CHANGED, subject, merchant_id=merchant_id)


# What is recorded.


async def test_an_entry_says_who_did_what_from_where(context: Context, shop: Shop) -> None:
    del shop
    change = ProfileChange(name="Our shop", late_success=LateSuccess.REFUND)
    await merchants.update_profile(acting(context), "mer_1", change)
    entry = await last(context)
    assert (entry.action, entry.subject, entry.merchant_id) == ("profile.changed", "mer_1", "mer_1")
    assert (entry.actor_kind, entry.actor_id, entry.address) == ("user", "mer_1", "203.0.113.9")
    assert entry.before == {"name": "Shop 1", "late_success": "accept"}
    assert entry.after == {"name": "Our shop", "late_success": "refund"}


async def test_what_changes_nothing_is_not_recorded(context: Context, shop: Shop) -> None:
    del shop
    before = len(await entries(context))
    await merchants.update_profile(context, "mer_1", ProfileChange(name="Shop 1"))
    await processor_configs.update(context, "mer_1", "sandbox", change=ConfigChange(priority=1))
    assert len(await entries(context)) == before


async def test_what_is_undone_is_not_recorded(context: Context, shop: Shop) -> None:
    del shop
    before = await entries(context)

    async def fail_afterwards() -> None:
        async with context.database.transaction() as session:
            await audit.record(context, session, AuditAction.PROFILE_CHANGED, "mer_1", merchant_id="mer_1")
            await session.run_together([merchant_rows.insertion(merchant(1))])

    with pytest.raises(ConstraintError):
        await fail_afterwards()
    assert await entries(context) == before
    await write(context, "mer_1")
    assert [report.fault for report in await audit.verify(context)] == [""]


async def test_accounts_and_their_changes(context: Context, shop: Shop) -> None:
    del shop
    credentials = {"secretKey": "sk_test_canary", "webhookSecret": "whsec_canary"}
    await processor_configs.put(context, "mer_1", "stripe", credentials=credentials, change=ConfigChange())
    created = await last(context)
    assert created.action == "processor_config.created"
    assert created.subject.startswith("pcf_")
    assert created.after == {
        "processor": "stripe",
        "is_enabled": True,
        "priority": 1,
        "is_test_mode": True,
        "given": ["secretKey", "webhookSecret"],
    }
    await processor_configs.update(context, "mer_1", "stripe", change=ConfigChange(is_enabled=False, priority=2))
    changed = await last(context)
    assert (changed.action, changed.subject) == ("processor_config.changed", created.subject)
    assert (changed.before, changed.after) == (
        {"is_enabled": True, "priority": 1},
        {"is_enabled": False, "priority": 2},
    )
    await processor_configs.put(context, "mer_1", "stripe", credentials=credentials, change=ConfigChange())
    replaced = await last(context)
    assert (replaced.action, replaced.subject) == ("processor_config.replaced", created.subject)
    await processor_configs.remove(context, "mer_1", "stripe")
    removed = await last(context)
    assert (removed.action, removed.subject, removed.after) == ("processor_config.removed", created.subject, None)
    await processor_configs.put(context, "mer_1", "stripe", credentials=credentials, change=ConfigChange())
    assert (await last(context)).action == "processor_config.created"
    assert "canary" not in repr(await entries(context))


async def test_rules_and_their_changes(context: Context, shop: Shop) -> None:
    del shop
    rule = Rule(
        "rul_1", "All", priority=1, is_enabled=True, conditions=Conditions(), processors=("sandbox",), weights=()
    )
    await routing.save_rule(context, "mer_1", rule, is_new=True)
    created = await last(context)
    assert (created.action, created.subject) == ("routing_rule.created", "rul_1")
    assert created.after is not None
    assert created.after["processors"] == ["sandbox"]
    conditions = replace(rule.conditions, currencies=("EUR",), amount_min_minor=100)
    await routing.save_rule(context, "mer_1", replace(rule, conditions=conditions), is_new=False)
    changed = await last(context)
    assert changed.before == {"conditions": {}}
    assert changed.after == {"conditions": {"currencies": ["EUR"], "amount_min_minor": 100}}
    await routing.remove_rule(context, "mer_1", "rul_1")
    removed = await last(context)
    assert (removed.action, removed.after) == ("routing_rule.removed", None)
    assert removed.before is not None
    assert removed.before["name"] == "All"


async def test_keys_made_and_revoked(context: Context, shop: Shop) -> None:
    del shop
    key, secret = await merchants.create_api_key(context, "mer_1", NewApiKey("till", scopes=("orders:read",)))
    created = await last(context)
    assert (created.action, created.subject) == ("api_key.created", key.id)
    assert created.after == {"name": "till", "mode": "test", "scopes": ["orders:read"], "expires_at": None}
    old, new, new_secret = await merchants.rotate_api_key(context, "mer_1", key.id, overlap=timedelta(hours=1))
    rotated = await last(context)
    assert (rotated.action, rotated.subject) == ("api_key.rotated", key.id)
    assert old.expires_at is not None
    assert rotated.after == {"replacement": new.id, "expires_at": timestamp(old.expires_at)}
    await merchants.revoke_api_key(context, "mer_1", key.id)
    assert (await last(context)).action == "api_key.revoked"
    assert secret not in repr(await entries(context))
    assert new_secret not in repr(await entries(context))


async def test_a_webhook_address_is_recorded_without_what_is_secret_in_it(context: Context, shop: Shop) -> None:
    del shop
    url = "https://shop.example.com/hooks?token=hush-now"
    await merchants.update_profile(context, "mer_1", ProfileChange(has_webhook_url=True, webhook_url=url))
    changed = await last(context)
    assert (changed.action, changed.subject[:3]) == ("webhook_endpoint.changed", "ep_")
    assert changed.before == {"url": None}
    assert changed.after == {"url": "https://shop.example.com/hooks?token=[redacted]"}


async def test_registering_and_signing_in(context: Context, clock: Clock) -> None:
    visitor = replace(context, actor=Actor(ActorKind.ANONYMOUS, address="203.0.113.9"))
    signed_in = await merchants.register(visitor, NEW)
    merchant_id = signed_in.profile.merchant.id
    created = await last(context, merchant_id)
    assert (created.action, created.actor_kind, created.actor_id) == ("merchant.created", "user", merchant_id)
    assert (created.address, created.after) == ("203.0.113.9", {"name": "My shop", "email": "me@example.com"})
    await merchants.login(context, email=NEW.email, password=NEW.password, address="198.51.100.1")
    entry = await last(context, merchant_id)
    assert (entry.action, entry.actor_kind, entry.address) == ("sign_in.succeeded", "user", "198.51.100.1")
    second = await merchants.refresh(visitor, signed_in.refresh_token)
    assert (await last(context, merchant_id)).action == "sign_in.succeeded"
    clock.forward(seconds=11)
    with pytest.raises(LoopError):
        await merchants.refresh(visitor, signed_in.refresh_token)
    reused = await last(context, merchant_id)
    assert (reused.action, reused.actor_kind, reused.subject[:4]) == ("refresh_token.reused", "anonymous", "fam_")
    assert second.refresh_token not in repr(await entries(context, merchant_id))


async def test_sessions_ended_and_a_password_reset(context: Context) -> None:
    signed_in = await merchants.register(context, NEW)
    merchant_id = signed_in.profile.merchant.id
    (session,) = await sessions.list_live(context, merchant_id)
    await sessions.end(context, merchant_id, session.id)
    ended = await last(context, merchant_id)
    assert (ended.action, ended.subject) == ("session.ended", session.id)
    await merchants.login(context, email=NEW.email, password=NEW.password, address="198.51.100.1")
    await merchants.reset_password(context, merchant_id, "another horse")
    reset = await last(context, merchant_id)
    assert (reset.action, reset.subject, reset.after) == ("password.reset", merchant_id, {"sessions_ended": 1})
    assert "another horse" not in repr(await entries(context, merchant_id))


async def test_refused_sign_ins_are_of_the_account_and_those_of_nobody_are_the_operator_s(context: Context) -> None:
    merchant_id = (await merchants.create(context, NEW)).merchant.id
    for email in (NEW.email, "my password by mistake"):
        with pytest.raises(LoopError, match="invalid_credentials"):
            await merchants.login(context, email=email, password="wrong", address="203.0.113.9")
    refused = await last(context, merchant_id)
    assert (refused.action, refused.actor_kind, refused.actor_id) == ("sign_in.refused", "anonymous", None)
    assert refused.address == "203.0.113.9"
    (unknown,) = await operator_entries(context)
    assert (unknown.action, unknown.subject, unknown.merchant_id) == ("sign_in.refused", "unknown", None)
    assert "password" not in repr(unknown)


async def test_a_flood_of_throttled_sign_ins_is_one_entry_for_each_try_that_counted(
    context: Context, clock: Clock
) -> None:
    merchant_id = (await merchants.create(context, NEW)).merchant.id

    async def guess() -> None:
        with pytest.raises(LoopError):
            await merchants.login(context, email=NEW.email, password="wrong", address="203.0.113.9")

    for _ in range(30):
        await guess()
    actions = [entry.action for entry in await entries(context, merchant_id)]
    assert actions == ["merchant.created", *["sign_in.refused"] * 10, "sign_in.throttled"]
    clock.forward(seconds=1)
    for _ in range(20):
        await guess()
    actions = [entry.action for entry in await entries(context, merchant_id)]
    assert actions[-2:] == ["sign_in.refused", "sign_in.throttled"]
    assert len(actions) == 14


async def test_money_is_recorded_for_who_asked_and_not_for_what_loop_does_itself(context: Context, shop: Shop) -> None:
    person = replace(shop, context=acting(context))
    held = await shop.paid(is_manual_capture=True)
    before = len(await entries(context))
    await person.capture(held.order.id)
    await person.refund(held.order.id, 400, "broken")
    other = await shop.paid(is_manual_capture=True)
    await person.cancel(other.order.id, "changed my mind")
    new = (await entries(context))[before:]
    assert [(entry.action, entry.subject, entry.actor_kind) for entry in new] == [
        ("capture.requested", held.order.id, "user"),
        ("refund.requested", held.order.id, "user"),
        ("cancellation.requested", other.order.id, "user"),
    ]
    assert new[1].after is not None
    assert (new[1].after["amount_minor"], new[1].after["reason"]) == (400, "broken")
    await shop.refund(held.order.id, 100)
    assert len(await entries(context)) == before + 3


async def test_a_refused_request_for_money_is_not_recorded(context: Context, shop: Shop) -> None:
    order = await shop.order()
    before = await entries(context)
    for work in (
        refunds.refund(acting(context), "mer_1", order.id, amount_minor=None, reason=None, wait_s=1),
        captures.capture(acting(context), "mer_1", order.id, amount_minor=None, wait_s=1),
    ):
        with pytest.raises(LoopError):
            await work
    assert await entries(context) == before


async def test_what_a_job_does_is_loop_s_own_doing_whoever_asked_for_it(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def handler(context: Context, _: Job) -> Actor:
        return context.actor

    monkeypatch.setitem(cast("dict[str, JobKind]", JOBS), "test", JobKind(handler, deadline_s=10))
    assert await context.runner.start(acting(context), job(is_leased=True)) == SYSTEM


async def test_a_rotation_of_keys_is_the_operator_s(context: Context) -> None:
    operator = replace(context, actor=Actor(ActorKind.OPERATOR, "ada"))
    await encryption_keys.rotate(operator, is_new=False, progress=lambda _done, _total: None)
    found = await operator_entries(context)
    assert [(entry.action, entry.actor_kind, entry.actor_id, entry.subject) for entry in found] == [
        (action, "operator", "ada", context.keyring.current_id)
        for action in ("key_rotation.started", "key_rotation.finished")
    ]


async def test_what_looks_secret_is_redacted_whatever_it_is_called(context: Context, shop: Shop) -> None:
    del shop
    after = {"name": "card 4111 1111 1111 1111", "password": "hunter2", "note": "sk_live_abcdefgh12345678"}
    async with context.database.transaction() as session:
        action = AuditAction.PROFILE_CHANGED
        await audit.record(context, session, action, "mer_1", merchant_id="mer_1", after=after)
    assert (await last(context)).after == {
        "name": "card [redacted]",
        "password": "[redacted]",
        "note": "[redacted]",
    }


# The chain.


async def test_fifty_writers_at_once_make_one_chain(context: Context, clock: Clock) -> None:
    await open_shop(context, clock)
    await open_shop(context, clock, number=2)
    before = len(await entries(context))
    await asyncio.gather(
        *(write(context, f"subject {number}") for number in range(WRITERS)),
        *(write(context, f"subject {number}", "mer_2") for number in range(WRITERS)),
        *(write(context, f"subject {number}", None) for number in range(WRITERS)),
    )
    found = await entries(context)
    assert [entry.seq for entry in found] == list(range(1, before + WRITERS + 1))
    assert {entry.subject for entry in found[before:]} == {f"subject {number}" for number in range(WRITERS)}
    reports = await audit.verify(context)
    assert [(report.chain, report.fault) for report in reports] == [("mer_1", ""), ("mer_2", ""), ("operator", "")]
    assert reports[0].entries == before + WRITERS
    assert reports[0].hash == found[-1].hash


async def test_a_long_chain_is_verified_page_by_page(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "PAGE", 3)
    for number in range(7):
        await write(context, f"subject {number}")
    (report,) = await audit.verify(context, "mer_1")
    assert (report.entries, report.fault) == (7, "")


async def test_entries_that_come_while_a_chain_is_verified_are_no_fault(context: Context) -> None:
    async def keep_writing() -> None:
        for number in range(100):
            await write(context, f"subject {number}")

    writing = asyncio.create_task(keep_writing())
    while not writing.done():
        assert [report.fault for report in await audit.verify(context)] in ([], [""])
        await asyncio.sleep(0)
    await writing


def tamper(database_url: str, *statements: str) -> None:
    """Change the database as somebody does who may do everything there, triggers or not."""
    if database_url.startswith("postgresql:"):
        run_sql(database_url, "SET session_replication_role = replica", *statements)
        return
    with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"), isolation_level=None)) as connection:
        for verb in ("update", "delete", "replace"):
            connection.execute(f"DROP TRIGGER audit_log_no_{verb}")
        for statement in statements:
            connection.execute(statement)


SWAPPED = [
    "UPDATE audit_log SET seq = 99 WHERE merchant_id = 'mer_1' AND seq = 2",
    "UPDATE audit_log SET seq = 2 WHERE merchant_id = 'mer_1' AND seq = 3",
    "UPDATE audit_log SET seq = 3 WHERE merchant_id = 'mer_1' AND seq = 99",
]
CUT_OFF = "DELETE FROM audit_log WHERE merchant_id = 'mer_1' AND seq > 3"
SET_BACK = (
    "UPDATE audit_heads SET seq = 3, hash = (SELECT hash FROM audit_log WHERE merchant_id = 'mer_1' AND seq = 3) "
    "WHERE chain = 'mer_1'"
)
WAS_SET_BACK = "the record of where the chain ends was set back"


@pytest.mark.parametrize(
    ("statements", "broken_seq", "fault"),
    [
        (["UPDATE audit_log SET subject = 'x' WHERE merchant_id = 'mer_1' AND seq = 3"], 3, "it was changed"),
        (["UPDATE audit_log SET address = 'x' WHERE merchant_id = 'mer_1' AND seq = 5"], 5, "it was changed"),
        (["UPDATE audit_log SET merchant_id = 'mer_9' WHERE subject = '2'"], 4, "entry 3 is missing"),
        (["DELETE FROM audit_log WHERE merchant_id = 'mer_1' AND seq = 3"], 4, "entry 3 is missing"),
        (["DELETE FROM audit_log WHERE merchant_id = 'mer_1' AND seq = 1"], 2, "entry 1 is missing"),
        (SWAPPED, 2, "it was changed"),
        ([CUT_OFF], 3, "entry 4 and what follows is missing"),
        (["UPDATE audit_heads SET seq = 3 WHERE chain = 'mer_1'"], 3, "it is not the one that the chain ended with"),
        (["DELETE FROM audit_heads WHERE chain = 'mer_1'"], 5, WAS_SET_BACK),
        ([SET_BACK], 5, WAS_SET_BACK),
    ],
)
async def test_what_raw_sql_does_shows(
    context: Context, database_url: str, statements: list[str], broken_seq: int, fault: str
) -> None:
    for number in range(5):
        await write(context, str(number))
        await write(context, f"other {number}", "mer_2")
    tamper(database_url, *statements)
    ids = {entry.seq: entry.id for entry in await entries(context)}
    reports = {report.chain: report for report in await audit.verify(context)}
    assert (reports["mer_1"].fault, reports["mer_1"].broken_id) == (fault, ids[broken_seq])
    assert reports["mer_2"].fault == ""


async def test_a_chain_without_any_entry_left_is_missed(context: Context, database_url: str) -> None:
    await write(context, "subject")
    tamper(database_url, "DELETE FROM audit_log")
    (report,) = await audit.verify(context)
    assert (report.chain, report.fault, report.broken_id) == ("mer_1", "entry 1 and what follows is missing", None)


# Append-only.


@pytest.mark.parametrize(
    "statement",
    ["UPDATE audit_log SET subject = 'other'", "DELETE FROM audit_log", "UPDATE audit_log SET seq = seq + 1"],
)
async def test_the_database_refuses_to_change_or_delete(context: Context, database_url: str, statement: str) -> None:
    await write(context, "subject")
    before = await entries(context)
    if database_url.startswith("postgresql:"):
        with pytest.raises(asyncpg.RestrictViolationError, match="append-only"):
            run_sql(database_url, statement)
        with pytest.raises(asyncpg.RestrictViolationError, match="append-only"):
            run_sql(database_url, "TRUNCATE audit_log")
    else:
        path = Path(database_url.removeprefix("sqlite:///"))
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute("INSERT OR REPLACE INTO audit_log SELECT * FROM audit_log")
    assert await entries(context) == before


async def test_two_entries_never_share_a_place(context: Context) -> None:
    await write(context, "subject")
    await write(context, "subject", None)
    for entry in (await last(context), (await operator_entries(context))[-1]):
        again = replace(entry, id="aud_again")
        with pytest.raises(ConstraintError):
            async with context.database.transaction() as session:
                await session.run_together(rows.appending(again)[:1])


async def test_a_chain_that_two_begin_at_once_begins_once(context: Context) -> None:
    async def begin() -> Head:
        async with context.database.transaction() as session:
            return await rows.lock_head(session, "mer_new")

    assert await asyncio.gather(*(begin() for _ in range(8))) == [Head()] * 8
