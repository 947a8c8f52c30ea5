"""Processor configs: store a merchant's credentials encrypted, and open them just before a call."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from loop.domain.errors import invalid, not_found
from loop.domain.ids import PREFIX_PROCESSOR_CONFIG
from loop.processors.base import Account
from loop.storage import merchants, processor_configs
from loop.storage.processor_configs import ProcessorConfig
from loop.telemetry import get_logger
from loop.workflows.context import Context

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """What a PATCH may change; None leaves a field as it is."""

    is_enabled: bool | None = None
    priority: int | None = None
    is_test_mode: bool | None = None


def account_of(context: Context, config: ProcessorConfig) -> Account:
    """Return the account with its credentials opened; raises `DecryptionError` if the row was tampered with."""
    text = context.keyring.decrypt(config.credentials, bound_to=_bound_to(config.merchant_id, config.processor))
    return Account(config.id, config.merchant_id, config.is_test_mode, json.loads(text))


def _bound_to(merchant_id: str, processor: str) -> tuple[str, ...]:
    # The pair is the row's own unique key, and unlike its id it is the same when credentials are replaced.
    return "processor_configs", "credentials", merchant_id, processor


def _require_credentials(context: Context, processor: str, credentials: Mapping[str, str]) -> None:
    schema = context.processors.credentials_schema(processor)
    known = {field.name for field in schema}
    wrong = [(f"credentials.{name}", "unknown field") for name in credentials if name not in known]
    wrong += [
        (f"credentials.{field.name}", "required")
        for field in schema
        if field.is_required and not credentials.get(field.name)
    ]
    if wrong:
        names = ", ".join(field.name for field in schema) or "none"
        raise invalid(
            "invalid_credentials_fields", f"{processor} takes these credentials: {names}.", details=tuple(wrong)
        )


async def put(
    context: Context,
    merchant_id: str,
    processor: str,
    *,
    credentials: Mapping[str, str],
    change: ConfigChange,
) -> ProcessorConfig:
    """Create a merchant's config for a processor, or replace it; raises `invalid_processor` for an unknown name."""
    _require_credentials(context, processor, credentials)
    now = context.now()
    sealed = context.keyring.encrypt(json.dumps(dict(credentials)), bound_to=_bound_to(merchant_id, processor))
    async with context.database.transaction() as session:
        if await merchants.get(session, merchant_id) is None:
            raise not_found("merchant")
        await processor_configs.put(
            session,
            ProcessorConfig(
                id=context.new_id(PREFIX_PROCESSOR_CONFIG),
                merchant_id=merchant_id,
                processor=processor,
                credentials=sealed,
                is_enabled=True if change.is_enabled is None else change.is_enabled,
                priority=1 if change.priority is None else change.priority,
                is_test_mode=True if change.is_test_mode is None else change.is_test_mode,
                created_at=now,
                updated_at=now,
            ),
        )
        stored = await processor_configs.named(session, merchant_id, processor)
    if stored is None:
        raise not_found("processor")
    log.info("processor_config.put", merchant_id=merchant_id, processor=processor)
    return stored


async def update(context: Context, merchant_id: str, processor: str, *, change: ConfigChange) -> ProcessorConfig:
    """Change a config; raises `not_found`."""
    async with context.database.transaction() as session:
        config = await processor_configs.named(session, merchant_id, processor)
        if config is None:
            raise not_found("processor")
        changed = replace(
            config,
            is_enabled=config.is_enabled if change.is_enabled is None else change.is_enabled,
            priority=config.priority if change.priority is None else change.priority,
            is_test_mode=config.is_test_mode if change.is_test_mode is None else change.is_test_mode,
            updated_at=context.now(),
        )
        await processor_configs.put(session, changed)
    return changed


async def remove(context: Context, merchant_id: str, processor: str) -> None:
    """Remove a config; raises `not_found`. Payments it has made stay, but can no longer be asked about."""
    async with context.database.transaction() as session:
        if not await processor_configs.remove(session, merchant_id, processor):
            raise not_found("processor")
    log.info("processor_config.removed", merchant_id=merchant_id, processor=processor)


async def list_all(context: Context, merchant_id: str) -> list[ProcessorConfig]:
    """Return a merchant's configs by priority."""
    async with context.database.reading() as reader:
        return await processor_configs.of_merchant(reader, merchant_id)
