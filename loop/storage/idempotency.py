"""Idempotency keys of merchants: which requests were made under one, and what was answered."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import bindparam, delete, insert, select, tuple_, update
from sqlalchemy.dialects import postgresql

from loop.storage.columns import UtcTime
from loop.storage.database import Session
from loop.storage.statements import Parameters, Statement, Write, columns_of, field_names, parameters_for, values_of
from loop.storage.tables import IdempotencyKeys, table

_keys = table(IdempotencyKeys)


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """One row of idempotency_keys. Without `status_code` its request runs, or its process died before `locked_until`.

    `answer` is the exact text that was sent; `subject_id` what the request made.
    """

    merchant_id: str
    is_test: bool
    key: str
    request_hash: str
    subject_id: str | None
    status_code: int | None
    answer: str | None
    locked_until: datetime
    created_at: datetime


_OF = (
    _keys.c.merchant_id == bindparam("owner"),
    _keys.c.is_test == bindparam("of_test"),
    _keys.c.key == bindparam("named"),
)
_HELD = _keys.c.locked_until == bindparam("held_until", type_=UtcTime)
_VALUES = parameters_for(_keys, field_names(IdempotencyKey))

_INSERT = Write(insert(_keys).values(_VALUES))
_NAME = ["merchant_id", "is_test", "key"]
_CLAIM = Write(postgresql.insert(_keys).values(_VALUES).on_conflict_do_nothing(index_elements=_NAME))
_GET = Statement(select(*columns_of(_keys, IdempotencyKey)).where(*_OF).with_for_update(), IdempotencyKey)
_TAKE_OVER = Write(update(_keys).where(*_OF, _HELD).values(locked_until=bindparam("new_locked_until", type_=UtcTime)))
_FINISH = Write(update(_keys).where(*_OF, _HELD).values(parameters_for(_keys, ["status_code", "answer", "subject_id"])))
_RELEASE = Write(delete(_keys).where(*_OF, _HELD))
_OLD = (  # a CTE: Postgres may run a subquery again for each row, and then deletes more than the limit
    select(*(_keys.c[name] for name in _NAME))
    .where(_keys.c.created_at < bindparam("before", type_=UtcTime))
    .order_by(_keys.c.created_at)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)  # several processes purge at the same time
    .cte("old")
)
_PURGE = Write(delete(_keys).where(tuple_(*(_keys.c[name] for name in _NAME)).in_(select(_OLD))))


def insertion(row: IdempotencyKey) -> tuple[Write, Parameters]:
    """Return the write that stores a key with its answer; one that is taken raises `ConstraintError`."""
    return _INSERT, values_of(row)


async def claim(session: Session, row: IdempotencyKey) -> bool:
    """Store a key whose request begins now; tell whether it was free."""
    return await session.run(_CLAIM, values_of(row)) == 1


async def get(session: Session, merchant_id: str, key: str, *, is_test: bool) -> IdempotencyKey | None:
    """Return a merchant's key of one mode, its row locked, or None."""
    return await session.first(_GET, {"owner": merchant_id, "of_test": is_test, "named": key})


async def take_over(session: Session, row: IdempotencyKey, locked_until: datetime) -> bool:
    """Claim the key of a request whose process died; tell whether nobody else was faster."""
    return await session.run(_TAKE_OVER, {**_held(row), "new_locked_until": locked_until}) == 1


async def finish(session: Session, row: IdempotencyKey, *, status_code: int, answer: str) -> None:
    """Store the answer of a claimed key, unless another process has taken it over."""
    await session.run(
        _FINISH, {**_held(row), "status_code": status_code, "answer": answer, "subject_id": row.subject_id}
    )


async def release(session: Session, row: IdempotencyKey) -> None:
    """Give a claimed key back, as if its request had not been made."""
    await session.run(_RELEASE, _held(row))


async def purge(session: Session, before: datetime, limit: int) -> int:
    """Delete up to `limit` keys that are older than `before`; return how many."""
    return await session.run(_PURGE, {"before": before, "limit": limit})


def _held(row: IdempotencyKey) -> dict[str, object]:
    name = {"owner": row.merchant_id, "of_test": row.is_test, "named": row.key}
    return {**name, "held_until": row.locked_until}
