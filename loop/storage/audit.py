"""The audit log: entries added to the end of their chain, read from either end, and never changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, Text, bindparam, func, insert, or_, select, tuple_, union, update
from sqlalchemy.dialects import postgresql

from loop.domain.audit import GENESIS, OPERATOR_CHAIN, AuditEntry, Head, chain_of
from loop.storage.audit_tables import AuditHeads, AuditLog
from loop.storage.columns import UtcTime
from loop.storage.database import Reader, Session
from loop.storage.statements import Parameters, Statement, Write, columns_of, field_names, parameters_for, values_of
from loop.storage.tables import table

_log = table(AuditLog)
_heads = table(AuditHeads)

CHAINS_MAX: Final = 1_000_000
"""How many chains are listed: more merchants than one Loop has."""

SEQ_MAX: Final = 2**62
"""Above every entry's number."""

_INSERT = Write(insert(_log).values(parameters_for(_log, field_names(AuditEntry))))
_BEGIN = Write(
    postgresql.insert(_heads)
    .values(parameters_for(_heads, ["chain", "seq", "hash"]))
    .on_conflict_do_nothing(index_elements=["chain"])
)
_HEAD = select(_heads.c.seq, _heads.c.hash).where(_heads.c.chain == bindparam("of_chain"))
_LOCK_HEAD = Statement(_HEAD.with_for_update(), Head)
_READ_HEAD = Statement(_HEAD, Head)
_MOVE_HEAD = Write(
    update(_heads).where(_heads.c.chain == bindparam("of_chain")).values(parameters_for(_heads, ["seq", "hash"]))
)
_ENTRY = select(*columns_of(_log, AuditEntry))
_CHAIN: Final = {True: _log.c.merchant_id.is_(None), False: _log.c.merchant_id == bindparam("merchant_id")}
"""By whether it is the operator's chain."""

_FOLLOWING = {
    is_operator: Statement(
        _ENTRY.where(condition, tuple_(_log.c.seq, _log.c.id) > tuple_(bindparam("seq"), bindparam("entry_id")))
        .order_by(_log.c.seq, _log.c.id)
        .limit(bindparam("limit")),
        AuditEntry,
    )
    for is_operator, condition in _CHAIN.items()
}
_NEWEST = Statement(
    _ENTRY.where(_CHAIN[False], _log.c.seq < bindparam("before_seq"))
    .order_by(_log.c.seq.desc())
    .limit(bindparam("limit")),
    AuditEntry,
)


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which of a merchant's entries; None leaves a condition out."""

    action: str | None = None
    actor_kind: str | None = None
    subject: str | None = None
    created_from: datetime | None = None
    created_to: datetime | None = None


_CONDITIONS: Final[dict[str, ColumnElement[bool]]] = {
    "action": _log.c.action == bindparam("action"),
    "actor_kind": _log.c.actor_kind == bindparam("actor_kind"),
    "subject": _log.c.subject == bindparam("subject"),
    "created_from": _log.c.created_at >= bindparam("created_from", type_=UtcTime),
    "created_to": _log.c.created_at < bindparam("created_to", type_=UtcTime),
}
_FOUND: dict[tuple[str, ...], Statement[AuditEntry]] = {}
_NEWEST_OF_ALL = Statement(
    _ENTRY.where(or_(bindparam("before_id", type_=Text).is_(None), _log.c.id < bindparam("before_id", type_=Text)))
    .order_by(_log.c.id.desc())
    .limit(bindparam("limit")),
    AuditEntry,
)
_GET = Statement(_ENTRY.where(_log.c.id == bindparam("entry_id")), AuditEntry)
_CHAINS = Statement(
    union(select(_heads.c.chain), select(func.coalesce(_log.c.merchant_id, OPERATOR_CHAIN))).limit(CHAINS_MAX), str
)


async def lock_head(session: Session, merchant_id: str | None) -> Head:
    """Return where a chain ends, which nobody else adds to until the transaction ends.

    To be called last in a transaction: whoever holds a chain's end waits for nothing else, so that no two wait for
    each other.
    """
    chain = chain_of(merchant_id)
    head = await session.first(_LOCK_HEAD, {"of_chain": chain})
    if head is None:
        await session.run(_BEGIN, {"chain": chain, "seq": 0, "hash": GENESIS})
        head = await session.first(_LOCK_HEAD, {"of_chain": chain})
    return head or Head()


def appending(entry: AuditEntry) -> list[tuple[Write, Parameters]]:
    """Return the writes that add an entry to the end of its chain, for the session that has locked it."""
    return [
        (_INSERT, values_of(entry)),
        (_MOVE_HEAD, {"of_chain": chain_of(entry.merchant_id), "seq": entry.seq, "hash": entry.hash}),
    ]


async def head(reader: Reader, chain: str) -> Head:
    """Return where a chain ends."""
    return await reader.first(_READ_HEAD, {"of_chain": chain}) or Head()


async def following(reader: Reader, chain: str, *, after: AuditEntry | None, limit: int) -> Sequence[AuditEntry]:
    """Return a chain's entries in order, from the one after `after` on."""
    is_operator = chain == OPERATOR_CHAIN
    start: Parameters = {"seq": 0, "entry_id": ""} if after is None else {"seq": after.seq, "entry_id": after.id}
    owner: Parameters = {} if is_operator else {"merchant_id": chain}
    return await reader.all(_FOLLOWING[is_operator], {**start, **owner, "limit": limit})


async def newest(reader: Reader, merchant_id: str, *, before_seq: int | None, limit: int) -> Sequence[AuditEntry]:
    """Return a merchant's entries, newest first, that come after the one numbered `before_seq` in that order."""
    parameters: Parameters = {
        "merchant_id": merchant_id,
        "before_seq": SEQ_MAX if before_seq is None else before_seq,
        "limit": limit,
    }
    return await reader.all(_NEWEST, parameters)


async def found(
    reader: Reader, merchant_id: str, wanted: AuditFilter, *, before_seq: int | None, limit: int
) -> Sequence[AuditEntry]:
    """Return those of a merchant's entries that a filter names, newest first, as `newest` does."""
    given = {name: value for name, value in values_of(wanted).items() if value is not None}
    key = tuple(given)
    if key not in _FOUND:
        _FOUND[key] = Statement(
            _ENTRY.where(_CHAIN[False], _log.c.seq < bindparam("before_seq"), *(_CONDITIONS[name] for name in given))
            .order_by(_log.c.seq.desc())
            .limit(bindparam("limit")),
            AuditEntry,
        )
    place = {"before_seq": SEQ_MAX if before_seq is None else before_seq, "limit": limit}
    return await reader.all(_FOUND[key], {"merchant_id": merchant_id, **place, **given})


async def get(reader: Reader, entry_id: str) -> AuditEntry | None:
    """Return an entry of any chain, or None: for the operator's commands only."""
    return await reader.first(_GET, {"entry_id": entry_id})


async def newest_of_all(reader: Reader, limit: int, *, before_id: str | None = None) -> Sequence[AuditEntry]:
    """Return the newest entries of every chain, from before one of them: for the operator's commands only."""
    found = await reader.all(_NEWEST_OF_ALL, {"before_id": before_id, "limit": limit})
    return sorted(found, key=lambda entry: (entry.created_at, entry.seq), reverse=True)  # ids of a millisecond mingle


async def chains(reader: Reader) -> Sequence[str]:
    """Return the names of all chains, also of one whose end, or whose entries, were deleted."""
    return sorted(await reader.all(_CHAINS, {}))
