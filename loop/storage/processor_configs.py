"""Processor configs: a merchant's accounts at processors, their credentials encrypted and bound to their row."""

from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import bindparam, delete, select
from sqlalchemy.dialects import postgresql

from loop.storage.database import Reader, Session
from loop.storage.statements import Statement, Write, columns_of, field_names, parameters_for, values_of
from loop.storage.tables import ProcessorConfigs, table

_configs = table(ProcessorConfigs)


@dataclass(frozen=True, slots=True)
class ProcessorConfig:
    """One row of processor_configs; `credentials` is ciphertext."""

    id: str
    merchant_id: str
    processor: str
    credentials: str = field(repr=False)
    is_enabled: bool
    priority: int
    is_test_mode: bool
    created_at: datetime
    updated_at: datetime


_new = postgresql.insert(_configs).values(parameters_for(_configs, field_names(ProcessorConfig)))
_UPSERT = Write(
    _new.on_conflict_do_update(
        index_elements=["merchant_id", "processor"],
        set_={
            name: _new.excluded[name]
            for name in ("credentials", "is_enabled", "priority", "is_test_mode", "updated_at")
        },
    )
)
_OF_MERCHANT = Statement(
    select(*columns_of(_configs, ProcessorConfig))
    .where(_configs.c.merchant_id == bindparam("merchant_id"))
    .order_by(_configs.c.priority, _configs.c.processor)
    .limit(100),
    ProcessorConfig,
)
_GET = Statement(
    select(*columns_of(_configs, ProcessorConfig)).where(_configs.c.id == bindparam("config_id")), ProcessorConfig
)
_NAMED = Statement(
    select(*columns_of(_configs, ProcessorConfig)).where(
        _configs.c.merchant_id == bindparam("merchant_id"), _configs.c.processor == bindparam("processor")
    ),
    ProcessorConfig,
)
_OF_PROCESSOR = Statement(
    select(*columns_of(_configs, ProcessorConfig))
    .where(_configs.c.processor == bindparam("processor"))
    .order_by(_configs.c.id)
    .limit(bindparam("limit")),
    ProcessorConfig,
)
_IN_USE = Statement(select(_configs.c.processor).distinct().limit(100), str)
_DELETE = Write(
    delete(_configs).where(
        _configs.c.merchant_id == bindparam("merchant_id"), _configs.c.processor == bindparam("processor")
    )
)


async def put(session: Session, config: ProcessorConfig) -> None:
    """Insert a config, or replace the merchant's one for that processor (which keeps its id)."""
    await session.run(_UPSERT, values_of(config))


async def of_merchant(reader: Reader, merchant_id: str) -> list[ProcessorConfig]:
    """Return a merchant's configs by priority."""
    return await reader.all(_OF_MERCHANT, {"merchant_id": merchant_id})


async def get(reader: Reader, config_id: str) -> ProcessorConfig | None:
    """Return a config by its id, or None."""
    return await reader.first(_GET, {"config_id": config_id})


async def named(reader: Reader, merchant_id: str, processor: str) -> ProcessorConfig | None:
    """Return a merchant's config for one processor, or None."""
    return await reader.first(_NAMED, {"merchant_id": merchant_id, "processor": processor})


async def processors_in_use(reader: Reader) -> list[str]:
    """Return the names of the processors that any merchant has configured."""
    return await reader.all(_IN_USE, {})


async def of_processor(reader: Reader, processor: str, limit: int) -> list[ProcessorConfig]:
    """Return the configs of all merchants for one processor: those a shared webhook address may concern."""
    return await reader.all(_OF_PROCESSOR, {"processor": processor, "limit": limit})


async def remove(session: Session, merchant_id: str, processor: str) -> bool:
    """Remove a config; tell whether there was one."""
    return await session.run(_DELETE, {"merchant_id": merchant_id, "processor": processor}) == 1
