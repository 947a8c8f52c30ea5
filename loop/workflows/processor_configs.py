"""Processor configs: store a merchant's credentials encrypted, and open them just before a call."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Literal

from loop.domain.audit import AuditAction
from loop.domain.errors import LoopError, invalid, not_found
from loop.domain.ids import PREFIX_PROCESSOR_CONFIG
from loop.domain.webhook_secrets import EarlierSecret, accepted, after_change
from loop.processors.base import Account
from loop.storage import attempts, merchants, processor_configs
from loop.storage.database import Reader, Session
from loop.storage.keyring import DecryptionError, Place
from loop.storage.processor_configs import ProcessorConfig
from loop.telemetry import get_logger, redact_text
from loop.workflows import audit
from loop.workflows.context import Context

log = get_logger(__name__)

WEBHOOK_SECRET: Final = "webhookSecret"  # noqa: S105 - the name of a field
"""The credential that signs an account's webhooks, whatever its processor."""

KEPT_AFTER_REMOVAL = timedelta(days=180)
"""How long a removed config's credentials stay: processors take refunds for about half a year."""

PURGE_BATCH: Final = 100

AUDITED: Final = ("processor", "is_enabled", "priority", "is_test_mode")
"""The fields of a config that the audit log holds; of credentials only the names that were given."""


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """What a PATCH may change; None leaves a field as it is."""

    is_enabled: bool | None = None
    priority: int | None = None
    is_test_mode: bool | None = None


async def usual_mode(reader: Reader, merchant_id: str) -> Literal["live", "test"]:
    """Return the mode of whoever names none: live once the merchant has an enabled live account, before that test."""
    return "live" if await processor_configs.has_live(reader, merchant_id) else "test"


def account_of(context: Context, config: ProcessorConfig) -> Account:
    """Return the account with its credentials opened; raises `DecryptionError`."""
    text = context.keyring.decrypt(config.credentials, bound_to=_place_of(config.id, config.merchant_id))
    return Account(config.id, config.merchant_id, config.is_test_mode, json.loads(text))


def webhook_secrets(context: Context, config: ProcessorConfig) -> tuple[str, ...]:
    """Return the secrets that an account's webhooks may be signed with, the current one first; empty when it has none.

    Raises `DecryptionError`.
    """
    current = account_of(context, config).credentials.get(WEBHOOK_SECRET) or None
    return accepted(current, _earlier_secrets(context, config), now=context.now())


def _earlier_secrets(context: Context, config: ProcessorConfig) -> list[EarlierSecret]:
    if config.earlier_webhook_secrets is None:
        return []
    place = _place_of(config.id, config.merchant_id, column="earlier_webhook_secrets")
    listed = json.loads(context.keyring.decrypt(config.earlier_webhook_secrets, bound_to=place))
    return [EarlierSecret(each["secret"], datetime.fromisoformat(each["validUntil"])) for each in listed]


def _place_of(config_id: str, merchant_id: str, *, column: str = "credentials") -> Place:
    return Place("processor_configs", column, config_id, merchant_id)


def warnings_about(context: Context, config: ProcessorConfig) -> tuple[str, ...]:
    """Return what a merchant should put right about an account, in words for a person."""
    try:
        processor = context.processors.get(config.processor)
        held = account_of(context, config).credentials
    except DecryptionError:
        return ("The credentials cannot be read; set them again.",)
    except LoopError:
        return (f"No processor {config.processor} is installed any more.",)
    if processor.capabilities.is_test_only:
        return ()
    lacks = {field.name: field.lack for field in processor.credentials_schema if not held.get(field.name)}
    if WEBHOOK_SECRET in lacks:
        lacks[WEBHOOK_SECRET] = "webhooks for this account are refused with 503, and a payment's news comes late."
    return tuple(f"No {name} is set: {lack}" for name, lack in lacks.items() if lack)


def is_readable(context: Context, config: ProcessorConfig) -> bool:
    """Tell whether an account's credentials can be opened; else they have to be set again."""
    try:
        account_of(context, config)
    except DecryptionError:
        return False
    return True


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
    keeps_others: bool = False,
) -> ProcessorConfig:
    """Create a merchant's config for a processor and mode, or replace it; raises `invalid_processor`.

    One that was removed is taken up again under its own id, so that the payments it has taken go on. A webhook secret
    that is replaced counts for a while longer (`webhook_secrets.OVERLAP`), unless the config was removed in between.
    With `keeps_others` credentials that are not given stay as they are; without, they are gone.
    """
    now = context.now()
    is_test_mode = True if change.is_test_mode is None else change.is_test_mode
    async with context.database.transaction() as session:
        if not await merchants.lock(session, merchant_id):  # so that the row's id, which binds the ciphertext, is known
            raise not_found("merchant")
        before = await processor_configs.lock(session, merchant_id, processor, is_test_mode=is_test_mode)
        config_id = context.new_id(PREFIX_PROCESSOR_CONFIG) if before is None else before.id
        held = {**(_kept(context, before) if keeps_others else {}), **credentials}
        _require_credentials(context, processor, held)
        sealed = context.keyring.encrypt(json.dumps(held), bound_to=_place_of(config_id, merchant_id))
        config = ProcessorConfig(
            id=config_id,
            merchant_id=merchant_id,
            processor=processor,
            credentials=sealed,
            earlier_webhook_secrets=_sealed_earlier(context, before, held.get(WEBHOOK_SECRET) or None, now),
            is_enabled=True if change.is_enabled is None else change.is_enabled,
            priority=1 if change.priority is None else change.priority,
            is_test_mode=is_test_mode,
            removed_at=None,
            created_at=now if before is None else before.created_at,
            updated_at=now,
            credentials_changed_at=_changed_at(context, before, held, now),
        )
        await processor_configs.put(session, config)
        await _record_put(context, session, before, config, given=sorted(credentials))
    log.info("processor_config.put", merchant_id=merchant_id, processor=processor)
    for warning in warnings_about(context, config):
        log.warning("processor_config.incomplete", merchant_id=merchant_id, processor=processor, warning=warning)
    return config


def _changed_at(
    context: Context, before: ProcessorConfig | None, held: Mapping[str, str], now: datetime
) -> datetime | None:
    """Return since when a config has these credentials, its webhook secret aside; None for since it is there."""
    if before is None:
        return None
    try:
        replaced = account_of(context, before).credentials
    except DecryptionError:  # nobody can tell
        return now
    names = (replaced.keys() | held.keys()) - {WEBHOOK_SECRET}
    is_same = all((replaced.get(name) or None) == (held.get(name) or None) for name in names)
    return before.credentials_changed_at if is_same else now


def _kept(context: Context, before: ProcessorConfig | None) -> Mapping[str, str]:
    if before is None or before.removed_at is not None:
        return {}
    try:
        return account_of(context, before).credentials
    except DecryptionError:  # what cannot be read must be given anew, and is asked for
        return {}


async def _record_put(
    context: Context, session: Session, before: ProcessorConfig | None, config: ProcessorConfig, *, given: list[str]
) -> None:
    is_new = before is None or before.removed_at is not None
    await audit.record(
        context,
        session,
        AuditAction.PROCESSOR_CONFIG_CREATED if is_new else AuditAction.PROCESSOR_CONFIG_REPLACED,
        config.id,
        merchant_id=config.merchant_id,
        before=None if is_new else audit.facts_of(before, AUDITED),
        after={**audit.facts_of(config, AUDITED), "given": given},
    )


def _sealed_earlier(context: Context, before: ProcessorConfig | None, secret: str | None, now: datetime) -> str | None:
    """Return the earlier webhook secrets of a config whose secret becomes this one, encrypted; None for none."""
    if before is None or before.removed_at is not None:
        return None
    try:
        replaced = account_of(context, before).credentials.get(WEBHOOK_SECRET) or None
        earlier = after_change(_earlier_secrets(context, before), before=replaced, after=secret, now=now)
    except DecryptionError:  # what cannot be read must not keep it from being replaced
        log.exception("processor_config.unreadable", config_id=before.id)
        return None
    if not earlier:
        return None
    listed = [{"secret": each.secret, "validUntil": each.valid_until.isoformat()} for each in earlier]
    place = _place_of(before.id, before.merchant_id, column="earlier_webhook_secrets")
    return context.keyring.encrypt(json.dumps(listed), bound_to=place)


async def update(
    context: Context, merchant_id: str, processor: str, *, change: ConfigChange, is_test: bool | None = None
) -> ProcessorConfig:
    """Change the config of a mode, without one the one there is or, of two, that of the mode at hand.

    Raises `not_found`, `validation_failed` for one of two where no mode is at hand, and for a change of the mode
    `mode_in_use` when it was paid at, or `mode_taken` when there is a config of the other mode already.
    """
    async with context.database.transaction() as session:
        await merchants.lock(session, merchant_id)
        config = await _locked(context, session, merchant_id, processor, is_test=is_test)
        changed = replace(
            config,
            is_enabled=config.is_enabled if change.is_enabled is None else change.is_enabled,
            priority=config.priority if change.priority is None else change.priority,
            is_test_mode=config.is_test_mode if change.is_test_mode is None else change.is_test_mode,
            updated_at=context.now(),
        )
        if changed.is_test_mode is not config.is_test_mode:
            await _require_unused(session, config)
            await _require_free(session, changed)
        await processor_configs.put(session, changed)
        was, now_is = audit.changes(config, changed, names=AUDITED)
        if now_is:
            action = AuditAction.PROCESSOR_CONFIG_CHANGED
            await audit.record(context, session, action, config.id, merchant_id=merchant_id, before=was, after=now_is)
    return changed


async def _require_unused(session: Session, config: ProcessorConfig) -> None:
    """Raise `mode_in_use` for a config that was paid at: its orders' captures and refunds stay in its mode."""
    if await attempts.is_any_at(session, config.merchant_id, config.id):
        own, other = ("test", "live") if config.is_test_mode else ("live", "test")
        raise invalid(
            "mode_in_use",
            f"Orders were paid at the {own} account for {config.processor}, so it stays one; "
            f"set a {other} account beside it, with its credentials.",
        )


async def _require_free(session: Session, config: ProcessorConfig) -> None:
    owner, mode = config.merchant_id, config.is_test_mode
    there = await processor_configs.lock(session, owner, config.processor, is_test_mode=mode)
    if there is not None:
        state = "there is" if there.removed_at is None else "payments are still asked about at"
        kind = "test" if mode else "live"
        raise invalid(
            "mode_taken", f"For {config.processor} {state} a {kind} account already; set it anew with its credentials."
        )


async def remove(context: Context, merchant_id: str, processor: str, *, is_test: bool | None = None) -> ProcessorConfig:
    """Remove a config, which is found as `update` finds it, and return what it was; raises as that does.

    It takes no new payment from then on. The payments it has taken are still asked about, captured, refunded and told
    of by webhooks: for that its credentials stay, encrypted, for `KEPT_AFTER_REMOVAL`.
    """
    now = context.now()
    async with context.database.transaction() as session:
        config = await _locked(context, session, merchant_id, processor, is_test=is_test)
        await processor_configs.put(
            session,
            replace(config, is_enabled=False, removed_at=now, earlier_webhook_secrets=None, updated_at=now),
        )
        action, was = AuditAction.PROCESSOR_CONFIG_REMOVED, audit.facts_of(config, AUDITED)
        await audit.record(context, session, action, config.id, merchant_id=merchant_id, before=was)
    log.info("processor_config.removed", merchant_id=merchant_id, processor=processor)
    return config


async def _locked(
    context: Context, session: Session, merchant_id: str, processor: str, *, is_test: bool | None
) -> ProcessorConfig:
    at_hand = context.is_test if is_test is None else is_test
    modes = [is_test] if is_test is not None else [at_hand is not False, at_hand is False]
    found = []
    for mode in modes:
        config = await processor_configs.lock(session, merchant_id, processor, is_test_mode=mode)
        if config is not None and config.removed_at is None:
            found.append(config)
        if found and at_hand is not None:  # the mode at hand goes before the other
            break
    if not found:
        raise not_found("processor")
    if at_hand is None and len(found) > 1:  # nobody guesses which money is meant
        raise invalid(
            "validation_failed",
            f"There are two accounts at {processor}, a test one and a live one: name the mode that is meant.",
        )
    return found[0]


async def purge_removed(context: Context) -> int:
    """Delete configs that were removed long ago, with their credentials; return how many. One bounded batch."""
    async with context.database.transaction() as session:
        return await processor_configs.purge(session, context.now() - KEPT_AFTER_REMOVAL, PURGE_BATCH)


async def check(context: Context, merchant_id: str, processor: str, *, is_test: bool) -> str | None:
    """Ask a processor whether an account's credentials work; return None when they do, else what is wrong.

    No money moves. Raises `not_found`.
    """
    async with context.database.reading() as reader:
        config = await processor_configs.named(reader, merchant_id, processor, is_test_mode=is_test)
    if config is None:
        raise not_found("processor")
    try:
        account = account_of(context, config)
        wrong = await context.processors.get(processor).check(account)
    except LoopError as error:
        return error.message
    except Exception as error:
        log.exception("processor.raised")
        return f"The processor's adapter raised {type(error).__name__}."
    log.info("processor_config.checked", merchant_id=merchant_id, processor=processor, is_working=wrong is None)
    return None if wrong is None else redact_text(wrong)


async def list_all(context: Context, merchant_id: str) -> list[ProcessorConfig]:
    """Return a merchant's configs by priority, without those that were removed."""
    async with context.database.reading() as reader:
        return await processor_configs.of_merchant(reader, merchant_id)
