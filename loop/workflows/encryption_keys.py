"""Encryption keys: tell which are in use, refuse to start without one, and wrap what is stored under the newest."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from loop.config import Secret
from loop.config_files import drop_earlier_keys, rotate_generated_key
from loop.domain.audit import AuditAction
from loop.domain.errors import configuration
from loop.storage import encryption_keys
from loop.storage.database import Reader
from loop.storage.keyring import DecryptionError, Keyring, Place, is_key_id
from loop.storage.tables import SEALED_COLUMNS
from loop.telemetry import get_logger
from loop.workflows import audit
from loop.workflows.context import Context

log = get_logger(__name__)

BATCH: Final = 100
"""Rows that one transaction of a rotation wraps anew."""

NAMED_MAX: Final = 20
"""How many rows that cannot be read a rotation names."""


@dataclass(frozen=True, slots=True)
class KeyStatus:
    """A master key: whether it encrypts, whether it can be read with, and the rows under it by `table.column`."""

    key_id: str
    is_current: bool
    is_loaded: bool
    rows: Mapping[str, int]

    @property
    def count(self) -> int:
        """How many rows are under the key."""
        return sum(self.rows.values())


@dataclass(frozen=True, slots=True)
class Rotation:
    """What a rotation has done: rows wrapped anew, and rows that still are under other keys than the current one."""

    key_id: str
    rewrapped: int
    remaining: int
    unreadable: tuple[Place, ...]
    """The first `NAMED_MAX` places whose ciphertext could not be read."""
    has_dropped_keys: bool
    """Whether earlier keys were taken out of the generated secrets."""


async def status(context: Context) -> list[KeyStatus]:
    """Return every master key that is loaded or that a row is under, the current one first."""
    async with context.database.reading() as reader:
        return await _status(reader, context.keyring)


async def _status(reader: Reader, keyring: Keyring) -> list[KeyStatus]:
    rows: dict[str, dict[str, int]] = defaultdict(dict, {key_id: {} for key_id in keyring.key_ids})
    for (table, column), found in (await encryption_keys.uses(reader)).items():
        for use in found:
            rows[use.key_id][f"{table}.{column}"] = use.count
    listed = [
        KeyStatus(key_id, key_id == keyring.current_id, key_id in keyring.key_ids, counts)
        for key_id, counts in rows.items()
    ]
    return sorted(listed, key=lambda key: (not key.is_current, not key.is_loaded, key.key_id))


async def require_loaded(reader: Reader, keyring: Keyring) -> None:
    """Raise `encryption_key_needed` when a row is under a key that is not loaded.

    A row that names no key at all is broken for itself, and keeps nobody from starting.
    """
    missing = [key for key in await _status(reader, keyring) if not key.is_loaded and is_key_id(key.key_id)]
    if missing:
        names = " and ".join(key.key_id for key in missing)
        raise configuration(
            "encryption_key_needed",
            f"{sum(key.count for key in missing)} stored secrets are under encryption keys that are not loaded: "
            f"{names}. Put them back into encryption_keys_previous and run `loop keys rotate`; they may go when "
            "`loop keys status` shows no row under them.",
        )


async def rotate(context: Context, *, is_new: bool, progress: Callable[[int, int], None]) -> Rotation:
    """Wrap every stored secret under the current key, in batches; one that was killed half-way goes on when run again.

    With `is_new` that is a key made now, where Loop keeps its own in the data directory. Generated keys that are not
    needed any more are dropped at the end. `progress` is told how many rows are done, and of how many. Raises
    `configured_encryption_key`.
    """
    if is_new:
        context = _with_new_key(context)
    current_id = context.keyring.current_id
    before = [key for key in await status(context) if not key.is_current]
    total = sum(key.count for key in before)
    await _record(context, AuditAction.KEY_ROTATION_STARTED, {"from": [key.key_id for key in before], "rows": total})
    rewrapped, unreadable = 0, list[Place]()
    for names in sorted(SEALED_COLUMNS):
        after_id = ""
        while batch := await _next_batch(context, names, after_id):  # ends: each begins after the one before it
            done, failed = await _rewrap(context, batch)
            rewrapped += done
            unreadable += failed[: NAMED_MAX - len(unreadable)]
            after_id = batch[-1][0].row_id
            progress(rewrapped, total)
            context.reached("keys.batch_rewrapped")
    remaining = sum(key.count for key in await status(context) if not key.is_current)
    path = context.settings.generated_keys_path
    is_dropping = path is not None and len(context.keyring.key_ids) > 1 and not remaining
    if path is not None and is_dropping:
        drop_earlier_keys(path)
    await _record(context, AuditAction.KEY_ROTATION_FINISHED, {"rewrapped": rewrapped, "remaining": remaining})
    log.info("encryption_keys.rotated", key_id=current_id, rewrapped=rewrapped, remaining=remaining)
    return Rotation(current_id, rewrapped, remaining, tuple(unreadable), is_dropping)


async def _record(context: Context, action: AuditAction, after: dict[str, object]) -> None:
    async with context.database.transaction() as session:
        await audit.record(context, session, action, context.keyring.current_id, merchant_id=None, after=after)


def _with_new_key(context: Context) -> Context:
    settings = context.settings
    if settings.generated_keys_path is None:
        raise configuration(
            "configured_encryption_key",
            "The encryption keys are configured: set encryption_key to a new one and put the present one into "
            "encryption_keys_previous, everywhere, then run `loop keys rotate` without --new.",
        )
    new = Secret(rotate_generated_key(settings.generated_keys_path))
    keys = (new, settings.encryption_key, *settings.encryption_keys_previous)
    return replace(context, keyring=Keyring([key.reveal() for key in keys]))


async def _next_batch(context: Context, names: tuple[str, str], after_id: str) -> list[tuple[Place, str]]:
    async with context.database.reading() as reader:
        return await encryption_keys.under_other_keys(
            reader, names, current_id=context.keyring.current_id, after_id=after_id, limit=BATCH
        )


async def _rewrap(context: Context, batch: list[tuple[Place, str]]) -> tuple[int, list[Place]]:
    """Wrap a batch anew in one transaction; return how many rows, and those that could not be read."""
    failed = []
    done = 0
    async with context.database.transaction() as session:
        for place, before in batch:
            try:
                after = context.keyring.rewrap(before, bound_to=place)
            except DecryptionError as error:
                log.warning("encryption_keys.unreadable", code=error.code, place=".".join(place[:3]))
                failed.append(place)
            else:
                # Somebody may have replaced the secret meanwhile: then it is as it shall be, or is counted at the end.
                done += await encryption_keys.replace(session, place, before=before, after=after)
    return done, failed
