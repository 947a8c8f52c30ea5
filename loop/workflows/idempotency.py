"""Idempotency: one effect and one answer for all requests that a merchant makes under one key."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from loop.domain.errors import LoopError, conflict
from loop.storage import idempotency
from loop.storage.database import ConstraintError, Session
from loop.storage.idempotency import IdempotencyKey
from loop.storage.statements import Parameters, Write
from loop.telemetry import get_logger
from loop.workflows.context import Context

log = get_logger(__name__)

LOCKED = timedelta(seconds=60)
"""How long a request may hold its key: longer than any takes, short enough to wait for when its process died."""


@dataclass(frozen=True, slots=True)
class KeyedRequest:
    """A request under a key of one mode; `fingerprint` is the same only for the same method, path and body."""

    merchant_id: str
    key: str
    fingerprint: str
    is_test: bool = True


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """What was answered to the first request under a key."""

    status_code: int
    text: str


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run a request. `began_at` is set when an earlier run of it died and may have had its effect.

    `row.subject_id` is the id for what the request makes, the same for the run that died and for the next.
    """

    row: IdempotencyKey
    began_at: datetime | None


def fingerprint(method: str, path: str, *, body: str) -> str:
    """Return what tells one request from another."""
    return hashlib.sha256(f"{method}\n{path}\n{body}".encode()).hexdigest()


async def write_once(
    context: Context, request: KeyedRequest, writes: Sequence[tuple[Write, Parameters]], *, answer: StoredAnswer
) -> StoredAnswer | None:
    """Run writes whose answer is known beforehand, in one commit with the key; None says that they ran now.

    Otherwise returns what was answered under the key before. Raises what `claim` raises.
    """
    now = context.now()
    row = _row(request, now, locked_until=now)
    row = replace(row, status_code=answer.status_code, answer=answer.text)
    try:
        await context.database.write_at_once([idempotency.insertion(row), *writes])
    except ConstraintError:
        # In a transaction: SQLite's readers do not see a row that waits for the commit of its group.
        async with context.database.transaction() as session:
            found = await idempotency.get(session, request.merchant_id, request.key, is_test=request.is_test)
        if found is None:  # another constraint refused it
            raise
        return _answer_of(found, request)
    return None


async def answered(context: Context, request: KeyedRequest) -> StoredAnswer | None:
    """Return what was answered under a key before; None for a new key. Raises what `claim` raises."""
    async with context.database.transaction() as session:  # for the reason that `write_once` has
        found = await idempotency.get(session, request.merchant_id, request.key, is_test=request.is_test)
    return None if found is None else _answer_of(found, request)


async def claim(context: Context, request: KeyedRequest, subject_id: str | None) -> Claim | StoredAnswer:
    """Begin a request that makes something with this id, or return what was answered to it before.

    Raises `idempotency_key_reuse` and `idempotency_in_progress` (both 409).
    """
    now = context.now()
    row = replace(_row(request, now, locked_until=now + LOCKED), subject_id=subject_id)
    async with context.database.transaction() as session:
        if await idempotency.claim(session, row):
            return Claim(row, None)
        return await _resume(session, request, now)


async def _resume(session: Session, request: KeyedRequest, now: datetime) -> Claim | StoredAnswer:
    found = await idempotency.get(session, request.merchant_id, request.key, is_test=request.is_test)
    if found is None:  # given back in this instant
        raise _in_progress()
    if found.status_code is None and found.request_hash == request.fingerprint and found.locked_until <= now:
        locked_until = now + LOCKED
        if await idempotency.take_over(session, found, locked_until):
            log.warning("idempotency.taken_over", merchant_id=request.merchant_id, since=found.created_at)
            return Claim(replace(found, locked_until=locked_until), found.created_at)
    return _answer_of(found, request)


def _answer_of(found: IdempotencyKey, request: KeyedRequest) -> StoredAnswer:
    if found.request_hash != request.fingerprint:
        raise conflict("idempotency_key_reuse", "This Idempotency-Key was used for another request; use a new key.")
    if found.status_code is None or found.answer is None:
        raise _in_progress()
    return StoredAnswer(found.status_code, found.answer)


def _in_progress() -> LoopError:
    return conflict(
        "idempotency_in_progress", "The first request with this key still runs; ask again.", retry_after_s=1
    )


async def finish(context: Context, claimed: Claim, answer: StoredAnswer) -> None:
    """Keep the answer of a request that had its effect."""
    async with context.database.transaction() as session:
        await idempotency.finish(session, claimed.row, status_code=answer.status_code, answer=answer.text)


async def release(context: Context, claimed: Claim) -> None:
    """Give the key back after a request that had no effect, so that it can be made again."""
    async with context.database.transaction() as session:
        await idempotency.release(session, claimed.row)


def _row(request: KeyedRequest, now: datetime, *, locked_until: datetime) -> IdempotencyKey:
    return IdempotencyKey(
        merchant_id=request.merchant_id,
        is_test=request.is_test,
        key=request.key,
        request_hash=request.fingerprint,
        subject_id=None,
        status_code=None,
        answer=None,
        locked_until=locked_until,
        created_at=now,
    )
