"""The audit log: record who did what in the transaction that does it, and prove that nothing recorded was changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import datetime
from typing import Final, cast

from loop.domain.audit import (
    ADDRESS_CHARACTERS,
    ActorKind,
    AuditAction,
    AuditEntry,
    Head,
    chain_of,
    find_fault,
    hash_of,
)
from loop.domain.events import timestamp
from loop.domain.ids import PREFIX_AUDIT_ENTRY
from loop.storage import audit
from loop.storage.database import Reader, Session
from loop.storage.webhooks import Endpoint
from loop.telemetry import correlation_id, redact
from loop.workflows.context import Context

ENDPOINT_FIELDS: Final = ("url", "is_enabled", "description", "event_types")
"""The fields of a webhook endpoint that the log holds."""

PAGE: Final = 1_000
"""Entries that are verified at a time."""

Facts = Mapping[str, object]


async def record(
    context: Context,
    session: Session,
    action: AuditAction,
    subject: str,
    *,
    merchant_id: str | None,
    before: Facts | None = None,
    after: Facts | None = None,
) -> None:
    """Record that the context's actor did something, as the last statement of the transaction that does it.

    `subject` is the id of what it was done to. `before` and `after` are made from named fields (`facts_of`, `changes`),
    and are redacted like a log line. The chain's end stays locked until the transaction ends.
    """
    head = await audit.lock_head(session, merchant_id)
    actor = context.actor
    entry = AuditEntry(
        id=context.new_id(PREFIX_AUDIT_ENTRY),
        seq=head.seq + 1,
        merchant_id=merchant_id,
        actor_kind=actor.kind.value,
        actor_id=actor.id,
        address=None if actor.address is None else actor.address[:ADDRESS_CHARACTERS],
        action=action.value,
        subject=subject,
        before=_redacted(before),
        after=_redacted(after),
        correlation_id=correlation_id(),
        created_at=context.now(),
        prev_hash=head.hash,
    )
    await session.run_together(audit.appending(replace(entry, hash=hash_of(entry))))


async def record_request(
    context: Context, session: Session, action: AuditAction, subject: str, *, merchant_id: str, after: Facts
) -> None:
    """Record that somebody asked for money to be moved; what Loop does by itself is in the order's timeline only."""
    if context.actor.kind is not ActorKind.SYSTEM:
        await record(context, session, action, subject, merchant_id=merchant_id, after=after)


async def record_endpoint(context: Context, session: Session, before: Endpoint | None, endpoint: Endpoint) -> None:
    """Record that a webhook endpoint was made or changed, as the last statement of the transaction that does it."""
    owner = endpoint.merchant_id
    if before is None:
        action, after = AuditAction.ENDPOINT_CREATED, facts_of(endpoint, ENDPOINT_FIELDS)
        await record(context, session, action, endpoint.id, merchant_id=owner, after=after)
        return
    was, now_is = changes(before, endpoint, names=ENDPOINT_FIELDS)
    if now_is:
        action = AuditAction.ENDPOINT_CHANGED
        await record(context, session, action, endpoint.id, merchant_id=owner, before=was, after=now_is)


def _redacted(facts: Facts | None) -> Facts | None:
    return None if facts is None else cast("Facts", redact(facts))


def facts_of(row: object, names: Sequence[str]) -> dict[str, object]:
    """Return the named fields of a row, which are the only ones that the log may hold."""
    return {name: _plain(getattr(row, name)) for name in names}


def changes(before: object, after: object, *, names: Sequence[str]) -> tuple[dict[str, object], dict[str, object]]:
    """Return what the named fields that differ were, and what they are; both are empty when none does."""
    old, new = facts_of(before, names), facts_of(after, names)
    differing = [name for name in names if old[name] != new[name]]
    return {name: old[name] for name in differing}, {name: new[name] for name in differing}


def _plain(value: object) -> object:
    """Return a field as JSON has it; of a row within a row, what it says."""
    if isinstance(value, datetime):
        return timestamp(value)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if is_dataclass(value):
        plain = facts_of(value, [each.name for each in fields(value)])
        return {name: each for name, each in plain.items() if each not in (None, [], {})}
    return value


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What verifying one chain has found: its entries up to the first fault, and where it ends.

    Whoever keeps `hash` elsewhere can tell later that the chain was not written anew from the start.
    """

    chain: str
    entries: int
    hash: str
    fault: str
    """What is wrong, in words, with the entry named by `broken_id`; empty when the chain is whole."""
    broken_id: str | None = None
    is_complete: bool = True
    """Whether the chain was followed to its end, or to its fault."""


async def verify(context: Context, merchant_id: str | None = None) -> list[ChainReport]:
    """Follow one merchant's chain, or all chains, from start to end; entries added meanwhile are no fault."""
    async with context.database.reading() as reader:
        chains = await audit.chains(reader) if merchant_id is None else [chain_of(merchant_id)]
        return [await _verify_chain(reader, chain) for chain in chains]


async def verify_start(context: Context, merchant_id: str, *, entries_max: int) -> ChainReport:
    """Follow a merchant's chain from its start on, some `entries_max` entries far at most."""
    async with context.database.reading() as reader:
        return await _verify_chain(reader, chain_of(merchant_id), entries_max)


async def _verify_chain(reader: Reader, chain: str, entries_max: int | None = None) -> ChainReport:
    promised = await audit.head(reader, chain)
    reached, last = Head(), None
    while page := await audit.following(reader, chain, after=last, limit=PAGE):  # ends: each begins after the last
        for entry in page:
            fault = find_fault(entry, reached)
            if not fault and entry.seq == promised.seq and entry.hash != promised.hash:
                fault = "it is not the one that the chain ended with"
            if fault:
                return ChainReport(chain, reached.seq, reached.hash, fault, entry.id)
            reached, last = Head(entry.seq, entry.hash), entry
        if entries_max is not None and entries_max <= reached.seq < promised.seq:
            return ChainReport(chain, reached.seq, reached.hash, "", is_complete=False)
    fault = ""
    if reached.seq < promised.seq:
        fault = f"entry {reached.seq + 1} and what follows is missing"
    elif reached.seq > (await audit.head(reader, chain)).seq:
        fault = "the record of where the chain ends was set back"
    return ChainReport(chain, reached.seq, reached.hash, fault, None if last is None or not fault else last.id)
