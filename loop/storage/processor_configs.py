"""Processor configs: a merchant's accounts at processors, their credentials encrypted and bound to their row.

One that is removed keeps its row, hidden from lists and from routing: the payments that it has taken still need it.
"""

from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import bindparam, delete, select
from sqlalchemy.dialects import postgresql

from loop.storage.columns import UtcTime
from loop.storage.database import Reader, Session
from loop.storage.statements import Statement, Write, columns_of, field_names, parameters_for, values_of
from loop.storage.tables import ProcessorConfigs, table

_configs = table(ProcessorConfigs)


@dataclass(frozen=True, slots=True)
class ProcessorConfig:
    """One row of processor_configs; `credentials` and `earlier_webhook_secrets` are ciphertexts."""

    id: str
    merchant_id: str
    processor: str
    credentials: str = field(repr=False)
    earlier_webhook_secrets: str | None = field(repr=False)
    is_enabled: bool
    priority: int
    is_test_mode: bool
    removed_at: datetime | None
    created_at: datetime
    updated_at: datetime
    credentials_changed_at: datetime | None = None
    """When they were last replaced, not counting the webhook secret: it may be another account since then."""


_MUTABLE = [
    "credentials", "earlier_webhook_secrets", "is_enabled", "priority", "is_test_mode", "removed_at", "updated_at",
    "credentials_changed_at",
]  # fmt: skip
_new = postgresql.insert(_configs).values(parameters_for(_configs, field_names(ProcessorConfig)))
_UPSERT = Write(
    _new.on_conflict_do_update(index_elements=["id"], set_={name: _new.excluded[name] for name in _MUTABLE})
)
_OF_MERCHANT = Statement(
    select(*columns_of(_configs, ProcessorConfig))
    .where(_configs.c.merchant_id == bindparam("merchant_id"), _configs.c.removed_at.is_(None))
    .order_by(_configs.c.priority, _configs.c.processor)
    .limit(100),
    ProcessorConfig,
)
_GET = Statement(
    select(*columns_of(_configs, ProcessorConfig)).where(_configs.c.id == bindparam("config_id")), ProcessorConfig
)
_NAMED = select(*columns_of(_configs, ProcessorConfig)).where(
    _configs.c.merchant_id == bindparam("merchant_id"),
    _configs.c.processor == bindparam("processor"),
    _configs.c.is_test_mode == bindparam("is_test_mode"),
)
_IN_USE_NAMED = Statement(_NAMED.where(_configs.c.removed_at.is_(None)), ProcessorConfig)
_LOCK = Statement(_NAMED.with_for_update(), ProcessorConfig)
_OF_PROCESSOR = Statement(
    select(*columns_of(_configs, ProcessorConfig))
    .where(_configs.c.processor == bindparam("processor"))
    .order_by(_configs.c.id)
    .limit(bindparam("limit")),
    ProcessorConfig,
)
_AFTER = Statement(
    select(*columns_of(_configs, ProcessorConfig))
    .where(_configs.c.id > bindparam("after_id"))
    .order_by(_configs.c.id)
    .limit(bindparam("limit")),
    ProcessorConfig,
)
_LIVE_ONES = Statement(
    select(_configs.c.id)
    .where(
        _configs.c.merchant_id == bindparam("merchant_id"),
        _configs.c.is_test_mode.is_(False),
        _configs.c.is_enabled.is_(True),
        _configs.c.removed_at.is_(None),
    )
    .limit(1),
    str,
)
_IN_USE = Statement(select(_configs.c.processor).distinct().limit(100), str)
_LONG_REMOVED = (  # a CTE, as whatever is limited: Postgres may run a subquery again for each row
    select(_configs.c.id)
    .where(_configs.c.removed_at < bindparam("before", type_=UtcTime))
    .limit(bindparam("limit"))
    .cte("long_removed")
)
_PURGE = Write(delete(_configs).where(_configs.c.id.in_(select(_LONG_REMOVED))))


async def put(session: Session, config: ProcessorConfig) -> None:
    """Insert a config, or replace the one with that id, also a removed one.

    A merchant has one for each processor and mode, a removed one among them.
    """
    await session.run(_UPSERT, values_of(config))


async def of_merchant(reader: Reader, merchant_id: str) -> list[ProcessorConfig]:
    """Return a merchant's configs by priority, without those that were removed."""
    return await reader.all(_OF_MERCHANT, {"merchant_id": merchant_id})


async def has_live(reader: Reader, merchant_id: str) -> bool:
    """Tell whether a merchant has a live account that is enabled."""
    return await reader.first(_LIVE_ONES, {"merchant_id": merchant_id}) is not None


async def get(reader: Reader, config_id: str) -> ProcessorConfig | None:
    """Return a config by its id, also a removed one, or None."""
    return await reader.first(_GET, {"config_id": config_id})


async def named(
    reader: Reader, merchant_id: str, processor: str, *, is_test_mode: bool = True
) -> ProcessorConfig | None:
    """Return a merchant's config for one processor and mode, or None; a removed one is None."""
    place = {"merchant_id": merchant_id, "processor": processor, "is_test_mode": is_test_mode}
    return await reader.first(_IN_USE_NAMED, place)


async def lock(session: Session, merchant_id: str, processor: str, *, is_test_mode: bool) -> ProcessorConfig | None:
    """Return a merchant's config for one processor and mode, also a removed one, its row locked, or None."""
    place = {"merchant_id": merchant_id, "processor": processor, "is_test_mode": is_test_mode}
    return await session.first(_LOCK, place)


async def processors_in_use(reader: Reader) -> list[str]:
    """Return the names of the processors that any merchant has configured."""
    return await reader.all(_IN_USE, {})


async def of_processor(reader: Reader, processor: str, limit: int) -> list[ProcessorConfig]:
    """Return all merchants' configs for one processor: those that a shared webhook address may concern.

    Removed ones are among them, since their payments still change.
    """
    return await reader.all(_OF_PROCESSOR, {"processor": processor, "limit": limit})


async def all_after(reader: Reader, after_id: str, limit: int) -> list[ProcessorConfig]:
    """Return a page of all merchants' configs by id, removed ones among them; the next is after its last id."""
    return await reader.all(_AFTER, {"after_id": after_id, "limit": limit})


async def purge(session: Session, before: datetime, limit: int) -> int:
    """Delete up to `limit` configs that were removed before a time, credentials and all; return how many."""
    return await session.run(_PURGE, {"before": before, "limit": limit})
