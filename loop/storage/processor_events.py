"""Processor events: inbound webhooks, each stored once before it is worked on."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import and_, bindparam, delete, select, update
from sqlalchemy.dialects import postgresql

from loop.storage.database import Reader, Session
from loop.storage.statements import Parameters, Statement, Write, columns_of, field_names, parameters_for, values_of
from loop.storage.tables import ProcessorEvents, table

_events = table(ProcessorEvents)


@dataclass(frozen=True, slots=True)
class ProcessorEvent:
    """One row of processor_events."""

    id: str
    merchant_id: str
    processor_config_id: str
    processor: str
    event_id: str
    event_type: str
    body_hash: str
    payment_reference: str | None
    attempt_id: str | None
    refund_reference: str | None
    dispute_reference: str | None
    amount_minor: int | None
    currency: str | None
    secret_ordinal: int | None
    """How often the account's secret had been replaced since the one that signed it: 0 is the current one."""
    is_quarantined: bool
    """Whether it contradicts what Loop knows: it was not followed, and waits for a person."""
    outcome: str | None
    processed_at: datetime | None
    created_at: datetime


_INSERT = Write(
    postgresql.insert(_events).values(parameters_for(_events, field_names(ProcessorEvent))).on_conflict_do_nothing()
)
_GET = Statement(
    select(*columns_of(_events, ProcessorEvent)).where(_events.c.id == bindparam("row_id")), ProcessorEvent
)
_LATEST = Statement(
    select(_events.c.created_at)
    .where(
        _events.c.merchant_id == bindparam("merchant_id"),
        _events.c.processor_config_id == bindparam("config_id"),
        _events.c.id >= bindparam("from_row"),
    )
    .order_by(_events.c.id.desc())
    .limit(1),
    lambda at: at,
)
_PROCESSED = Write(
    update(_events)
    .where(_events.c.id == bindparam("row_id"))
    .values(parameters_for(_events, ["outcome", "is_quarantined", "processed_at"]))
)
_IS_DONE = and_(_events.c.processed_at.is_not(None), _events.c.is_quarantined.is_(False))
_OLD = Statement(
    select(_events.c.id)
    .where(_events.c.id < bindparam("before_id"), _IS_DONE)
    .order_by(_events.c.id)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True),
    str,
)
_PURGE = Write(delete(_events).where(_events.c.id.between(bindparam("first_id"), bindparam("last_id")), _IS_DONE))


async def add(session: Session, event: ProcessorEvent) -> bool:
    """Store an inbound event; tell whether it is new (by event id and by body)."""
    return await session.run(_INSERT, values_of(event)) == 1


async def get(reader: Reader, row_id: str) -> ProcessorEvent | None:
    """Return an inbound event, or None."""
    return await reader.first(_GET, {"row_id": row_id})


async def latest_of(reader: Reader, merchant_id: str, config_id: str, *, from_row: str) -> datetime | None:
    """Return when an account's newest inbound event came, of those from an id on; None when none has."""
    return await reader.first(_LATEST, {"merchant_id": merchant_id, "config_id": config_id, "from_row": from_row})


def processed(row_id: str, outcome: str, *, is_quarantined: bool, now: datetime) -> tuple[Write, Parameters]:
    """Return the write that records what became of an inbound event."""
    return _PROCESSED, {"row_id": row_id, "outcome": outcome, "is_quarantined": is_quarantined, "processed_at": now}


async def purge(session: Session, before_id: str, limit: int) -> int:
    """Delete up to `limit` of those before an id that were worked on and not quarantined; return how many."""
    old = await session.all(_OLD, {"before_id": before_id, "limit": limit})
    return await session.run(_PURGE, {"first_id": old[0], "last_id": old[-1]}) if old else 0
