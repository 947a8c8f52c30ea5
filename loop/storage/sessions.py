"""Sign-in sessions and their refresh tokens, of which only hashes are kept."""

from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import bindparam, delete, insert, select, update

from loop.storage.columns import UtcTime
from loop.storage.database import Reader, Session
from loop.storage.statements import Statement, Write, columns_of, field_names, parameters_for, values_of
from loop.storage.tables import RefreshTokens, SignInSessions, table

_sessions = table(SignInSessions)
_tokens = table(RefreshTokens)

LIST_LIMIT = 1_000


@dataclass(frozen=True, slots=True)
class SignInSession:
    """One row of sign_in_sessions: a sign-in and all that was refreshed from it; it is over at `expires_at`.

    `last_used_at` is when it last got a pair of tokens, from `address` with `user_agent`.
    """

    id: str
    merchant_id: str
    address: str | None
    user_agent: str | None
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose session a refresh token keeps open, and which one."""

    merchant_id: str
    session_id: str


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """One row of refresh_tokens; `family_id` is the session's id, `used_at` None until it got its successor."""

    token_hash: str = field(repr=False)
    family_id: str
    merchant_id: str
    used_at: datetime | None
    expires_at: datetime
    created_at: datetime


_INSERT = Write(insert(_sessions).values(parameters_for(_sessions, field_names(SignInSession))))
_GET = Statement(
    select(*columns_of(_sessions, SignInSession)).where(_sessions.c.id == bindparam("session_id")), SignInSession
)
_LOCK = Statement(
    select(*columns_of(_sessions, SignInSession)).where(_sessions.c.id == bindparam("session_id")).with_for_update(),
    SignInSession,
)
_LIVE = Statement(
    select(*columns_of(_sessions, SignInSession))
    .where(
        _sessions.c.merchant_id == bindparam("merchant_id"), _sessions.c.expires_at > bindparam("now", type_=UtcTime)
    )
    .order_by(_sessions.c.last_used_at.desc(), _sessions.c.id.desc())
    .limit(LIST_LIMIT),
    SignInSession,
)
_USE = Write(
    update(_sessions)
    .where(_sessions.c.id == bindparam("session_id"))
    .values(parameters_for(_sessions, ["address", "user_agent", "last_used_at", "expires_at"]))
)
_END = Write(
    update(_sessions)
    .where(
        _sessions.c.id == bindparam("session_id"),
        _sessions.c.merchant_id == bindparam("merchant_id"),
        _sessions.c.expires_at > bindparam("now", type_=UtcTime),
    )
    .values(expires_at=bindparam("ended_at", type_=UtcTime))
)
_END_ALL = Write(
    update(_sessions)
    .where(
        _sessions.c.merchant_id == bindparam("merchant_id"), _sessions.c.expires_at > bindparam("now", type_=UtcTime)
    )
    .values(expires_at=bindparam("ended_at", type_=UtcTime))
)
_INSERT_TOKEN = Write(insert(_tokens).values(parameters_for(_tokens, field_names(RefreshToken))))
_TOKEN = Statement(
    select(*columns_of(_tokens, RefreshToken)).where(_tokens.c.token_hash == bindparam("token_hash")).with_for_update(),
    RefreshToken,
)
_HOLDER = Statement(
    select(_tokens.c.merchant_id, _tokens.c.family_id)
    .join(_sessions, _sessions.c.id == _tokens.c.family_id)
    .where(
        _tokens.c.token_hash == bindparam("token_hash"),
        _tokens.c.used_at.is_(None),
        _tokens.c.expires_at > bindparam("now", type_=UtcTime),
        _sessions.c.expires_at > bindparam("at", type_=UtcTime),
    ),
    Holder,
)
_USE_TOKEN = Write(
    update(_tokens)
    .where(_tokens.c.token_hash == bindparam("hash"), _tokens.c.used_at.is_(None))
    .values(used_at=bindparam("now", type_=UtcTime))
)
_OUTLIVED_TOKENS = (  # a CTE: Postgres may run a subquery again for each row, and then deletes more than the limit
    select(_tokens.c.token_hash)
    .where(_tokens.c.expires_at < bindparam("before", type_=UtcTime))
    .order_by(_tokens.c.expires_at)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)  # several processes purge at the same time
    .cte("outlived")
)
_PURGE_TOKENS = Write(delete(_tokens).where(_tokens.c.token_hash.in_(select(_OUTLIVED_TOKENS))))
_OUTLIVED = (
    select(_sessions.c.id)
    .where(_sessions.c.expires_at < bindparam("before", type_=UtcTime))
    .order_by(_sessions.c.expires_at)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
    .cte("outlived")
)
_PURGE = Write(delete(_sessions).where(_sessions.c.id.in_(select(_OUTLIVED))))


async def add(session: Session, sign_in: SignInSession) -> None:
    """Store a new sign-in session."""
    await session.run(_INSERT, values_of(sign_in))


async def get(reader: Reader, session_id: str) -> SignInSession | None:
    """Return a sign-in session, also one that is over, or None."""
    return await reader.first(_GET, {"session_id": session_id})


async def lock(session: Session, session_id: str) -> SignInSession | None:
    """Return a sign-in session, also one that is over, its row locked, or None."""
    return await session.first(_LOCK, {"session_id": session_id})


async def live_ones(reader: Reader, merchant_id: str, now: datetime) -> list[SignInSession]:
    """Return a merchant's sessions that are not over, the one used last first."""
    return await reader.all(_LIVE, {"merchant_id": merchant_id, "now": now})


async def note_use(session: Session, sign_in: SignInSession) -> None:
    """Store when and from where a session was used, and how long it now lasts."""
    used = {
        "address": sign_in.address,
        "user_agent": sign_in.user_agent,
        "last_used_at": sign_in.last_used_at,
        "expires_at": sign_in.expires_at,
    }
    await session.run(_USE, {"session_id": sign_in.id, **used})


async def end(session: Session, merchant_id: str, session_id: str, *, now: datetime) -> bool:
    """End a merchant's session; tell whether there was one that was not over."""
    about = {"merchant_id": merchant_id, "session_id": session_id}
    return await session.run(_END, {**about, "now": now, "ended_at": now}) == 1


async def end_all(session: Session, merchant_id: str, now: datetime) -> int:
    """End all of a merchant's sessions; return how many were not over."""
    return await session.run(_END_ALL, {"merchant_id": merchant_id, "now": now, "ended_at": now})


async def add_token(session: Session, token: RefreshToken) -> None:
    """Store a new refresh token."""
    await session.run(_INSERT_TOKEN, values_of(token))


async def lock_token(session: Session, token_hash: str) -> RefreshToken | None:
    """Return a refresh token, its row locked, or None."""
    return await session.first(_TOKEN, {"token_hash": token_hash})


async def holder(reader: Reader, token_hash: str, now: datetime) -> Holder | None:
    """Return whose session a refresh token keeps open, None for one that is used or over."""
    return await reader.first(_HOLDER, {"token_hash": token_hash, "now": now, "at": now})


async def use_token(session: Session, token_hash: str, now: datetime) -> bool:
    """Mark a token as used; tell whether it was unused."""
    return await session.run(_USE_TOKEN, {"hash": token_hash, "now": now}) == 1


async def purge(session: Session, before: datetime, limit: int) -> int:
    """Delete up to `limit` tokens, and as many sessions, that expired before a time; return how many in all."""
    bounds = {"before": before, "limit": limit}
    return await session.run(_PURGE_TOKENS, bounds) + await session.run(_PURGE, bounds)
