"""Sign-in sessions: open one, refresh it with a token that is used once, list and end them."""

import base64
import hashlib
import hmac
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from loop.domain.audit import ADDRESS_CHARACTERS, AuditAction
from loop.domain.errors import not_found
from loop.domain.ids import PREFIX_TOKEN_FAMILY
from loop.storage import sessions
from loop.storage.database import Session
from loop.storage.sessions import RefreshToken, SignInSession
from loop.telemetry import get_logger, redact_text
from loop.workflows import audit
from loop.workflows.context import Context
from loop.workflows.tokens import Claims, issue_access_token

log = get_logger(__name__)

REFRESH_TOKEN_BYTES: Final = 32
USER_AGENT_CHARACTERS: Final = 200
"""How much is kept of what a client calls itself."""

GRACE: Final = timedelta(seconds=10)
"""How long a used refresh token still gets the pair that it got: its answer may have been lost, or asked for twice."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A pair for one session: a short-lived access token and the refresh token that gets the next pair."""

    merchant_id: str
    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)


async def open_session(context: Context, session: Session, merchant_id: str, user_agent: str | None) -> Tokens:
    """Begin a session of a merchant's person, at the address of the context's actor."""
    now = context.now()
    sign_in = SignInSession(
        id=context.new_id(PREFIX_TOKEN_FAMILY),
        merchant_id=merchant_id,
        address=_address(context),
        user_agent=_shortened(user_agent),
        created_at=now,
        last_used_at=now,
        expires_at=_expiry(context, now),
    )
    await sessions.add(session, sign_in)
    return await _issue(context, session, sign_in, _text(context.random_bytes(REFRESH_TOKEN_BYTES)))


async def refresh(
    context: Context, session: Session, refresh_token: str, *, user_agent: str | None = None
) -> Tokens | None:
    """Take a refresh token and return the next pair, None when the token does not count.

    Within `GRACE` a used token gets the same pair again, unless that was used in turn. Later, or then, it is in two
    hands: its session ends, which the audit log tells. The caller commits in any case.
    """
    now = context.now()
    token = await sessions.lock_token(session, hash_of(refresh_token))
    sign_in = None if token is None else await sessions.lock(session, token.family_id)
    if token is None or sign_in is None or min(token.expires_at, sign_in.expires_at) <= now:
        return None
    successor = _successor(context, refresh_token)
    if token.used_at is None:
        await sessions.use_token(session, token.token_hash, now)
        used = replace(
            sign_in,
            address=_address(context),
            user_agent=_shortened(user_agent),
            last_used_at=now,
            expires_at=_expiry(context, now),
        )
        await sessions.note_use(session, used)
        return await _issue(context, session, used, successor)
    if now - token.used_at <= GRACE:
        given = await sessions.lock_token(session, hash_of(successor))
        if given is not None and given.used_at is None:
            claims = Claims(sign_in.merchant_id, sign_in.id)
            return Tokens(sign_in.merchant_id, issue_access_token(context, claims, token.used_at), successor)
    await sessions.end(session, sign_in.merchant_id, sign_in.id, now=now)
    action = AuditAction.REFRESH_TOKEN_REUSED
    await audit.record(context, session, action, sign_in.id, merchant_id=sign_in.merchant_id)
    log.warning("refresh_token.reused", merchant_id=sign_in.merchant_id, session_id=sign_in.id)
    return None


async def _issue(context: Context, session: Session, sign_in: SignInSession, refresh_token: str) -> Tokens:
    token = RefreshToken(
        token_hash=hash_of(refresh_token),
        family_id=sign_in.id,
        merchant_id=sign_in.merchant_id,
        used_at=None,
        expires_at=sign_in.expires_at,
        created_at=sign_in.last_used_at,
    )
    await sessions.add_token(session, token)
    claims = Claims(sign_in.merchant_id, sign_in.id)
    return Tokens(
        sign_in.merchant_id, issue_access_token(context, claims, sign_in.last_used_at), refresh_token=refresh_token
    )


def _successor(context: Context, refresh_token: str) -> str:
    """Return the token that follows one: made from it, so that it can be answered again without being kept."""
    key = context.settings.jwt_secret.reveal().encode()
    return _text(hmac.digest(key, b"loop refresh token successor\0" + refresh_token.encode(), "sha256"))


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode("ascii").rstrip("=")


def hash_of(refresh_token: str) -> str:
    """Return what is stored of a refresh token: its SHA-256 in hex."""
    return hashlib.sha256(refresh_token.encode()).hexdigest()


def _expiry(context: Context, now: datetime) -> datetime:
    return now + timedelta(seconds=context.settings.refresh_token_ttl_s)


def _address(context: Context) -> str | None:
    address = context.actor.address
    return None if address is None else address[:ADDRESS_CHARACTERS]


def _shortened(user_agent: str | None) -> str | None:
    if user_agent is None:
        return None
    shown = redact_text("".join(each for each in user_agent if each.isprintable()))
    return shown[:USER_AGENT_CHARACTERS] or None


async def close(context: Context, refresh_token: str) -> None:
    """End the session of a refresh token, and its access tokens with it; an unknown one is no error."""
    async with context.database.transaction() as session:
        token = await sessions.lock_token(session, hash_of(refresh_token))
        if token is not None:
            await sessions.end(session, token.merchant_id, token.family_id, now=context.now())


async def list_live(context: Context, merchant_id: str) -> list[SignInSession]:
    """Return a merchant's sessions that are not over, the one used last first."""
    async with context.database.reading() as reader:
        return await sessions.live_ones(reader, merchant_id, context.now())


async def end(context: Context, merchant_id: str, session_id: str) -> None:
    """End a merchant's session; its access tokens count no more. Raises `not_found`."""
    async with context.database.transaction() as session:
        if not await sessions.end(session, merchant_id, session_id, now=context.now()):
            raise not_found("session")
        await audit.record(context, session, AuditAction.SESSION_ENDED, session_id, merchant_id=merchant_id)
    log.info("session.ended", merchant_id=merchant_id, session_id=session_id)


async def end_others(context: Context, merchant_id: str, *, kept_id: str) -> int:
    """End all of a merchant's sessions but one; return how many there were."""
    now = context.now()
    async with context.database.transaction() as session:
        ended = [each.id for each in await sessions.live_ones(session, merchant_id, now) if each.id != kept_id]
        for session_id in ended:
            await sessions.end(session, merchant_id, session_id, now=now)
        for session_id in ended:
            await audit.record(context, session, AuditAction.SESSION_ENDED, session_id, merchant_id=merchant_id)
    log.info("sessions.ended", merchant_id=merchant_id, count=len(ended))
    return len(ended)
