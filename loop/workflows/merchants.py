"""Merchants: register, sign in and out, change the profile, and make and revoke API keys."""

import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, Literal

from loop.domain.accounts import normal_email, require_email, require_name, require_password
from loop.domain.api_keys import hash_of, make_api_key, prefix_of
from loop.domain.audit import Actor, ActorKind, AuditAction
from loop.domain.endpoint_urls import require_endpoint_url
from loop.domain.errors import ErrorKind, LoopError, invalid, not_found, unauthenticated
from loop.domain.failover import LateSuccess
from loop.domain.ids import PREFIX_API_KEY, PREFIX_MERCHANT, PREFIX_TOKEN_FAMILY
from loop.storage import merchants, webhooks
from loop.storage.database import ConstraintError, Reader, Session
from loop.storage.merchants import ApiKey, Merchant, RefreshToken
from loop.storage.statements import Parameters, Write
from loop.storage.webhooks import Endpoint
from loop.telemetry import get_logger
from loop.workflows import audit
from loop.workflows.context import Context
from loop.workflows.passwords import hash_password, is_outdated, verify_password
from loop.workflows.sign_in_guard import guard_of
from loop.workflows.tokens import issue_access_token
from loop.workflows.webhook_endpoints import pointed, store
from loop.workflows.webhooks import new_endpoint

log = get_logger(__name__)

REFRESH_TOKEN_BYTES: Final = 32
PURGE_BATCH = 1_000
UNKNOWN_ACCOUNT: Final = "unknown"
"""What the audit log calls an account that is not here."""

MAX_API_KEYS: Final = 1000
"""Live keys of one merchant: as many as a list shows."""

ALL_SCOPES: Final = ("*",)
"""The only scopes there are: a key may do everything but what needs a person."""


@dataclass(frozen=True, slots=True)
class NewMerchant:
    """Who registers."""

    name: str
    email: str = field(repr=False)
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Profile:
    """A merchant and its first endpoint, whose address is the merchant's `webhookUrl`."""

    merchant: Merchant
    endpoint: Endpoint | None


@dataclass(frozen=True, slots=True)
class SignedIn:
    """What a sign-in answers: a short-lived access token and the refresh token that gets the next pair."""

    profile: Profile
    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ProfileChange:
    """What a merchant changes of its profile; `webhook_url` counts only with `has_webhook_url`, None removes it."""

    name: str | None = None
    has_webhook_url: bool = False
    webhook_url: str | None = None
    late_success: LateSuccess | None = None


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """A key to be made. `mode` only labels it: a merchant's test and live keys reach the same orders."""

    name: str
    expires_at: datetime | None = None
    mode: Literal["live", "test"] = "live"
    scopes: tuple[str, ...] = ALL_SCOPES


async def create(context: Context, new: NewMerchant) -> Profile:
    """Create a merchant with its first endpoint, which has no address yet; raises `email_exists`."""
    profile, writes = await _creating(context, new)
    async with _transaction_naming_taken_email(context) as session:
        await session.run_together(writes)
        await _record_created(context, session, profile.merchant)
    log.info("merchant.created", merchant_id=profile.merchant.id)
    return profile


async def register(context: Context, new: NewMerchant) -> SignedIn:
    """Create a merchant and sign it in, in one commit; raises `registration_closed` and `email_exists`."""
    if not context.settings.is_registration_open:
        raise LoopError(
            ErrorKind.FORBIDDEN, "registration_closed", "Registration is closed here; ask the operator for an account."
        )
    profile, writes = await _creating(context, new)
    async with _transaction_naming_taken_email(context) as session:
        await session.run_together(writes)
        signed_in = await _open_session(context, session, profile, family_id=context.new_id(PREFIX_TOKEN_FAMILY))
        await _record_created(_as_user(context, profile.merchant), session, profile.merchant)
    log.info("merchant.registered", merchant_id=profile.merchant.id)
    return signed_in


async def _record_created(context: Context, session: Session, merchant: Merchant) -> None:
    action, after = AuditAction.MERCHANT_CREATED, audit.facts_of(merchant, ("name", "email"))
    await audit.record(context, session, action, merchant.id, merchant_id=merchant.id, after=after)


def _as_user(context: Context, merchant: Merchant) -> Context:
    return replace(context, actor=replace(context.actor, kind=ActorKind.USER, id=merchant.id))


async def _creating(context: Context, new: NewMerchant) -> tuple[Profile, list[tuple[Write, Parameters]]]:
    name, email, password = require_name(new.name), require_email(new.email), require_password(new.password)
    async with context.database.reading() as reader:
        if await merchants.by_email(reader, email) is not None:  # before a hash is paid for
            raise _email_exists()
    now = context.now()
    merchant = Merchant(
        id=context.new_id(PREFIX_MERCHANT),
        name=name,
        email=email,
        password_hash=await hash_password(context, password),
        created_at=now,
        updated_at=now,
    )
    endpoint = new_endpoint(context, merchant.id, None)
    return Profile(merchant, endpoint), [merchants.insertion(merchant), webhooks.endpoint_insertion(endpoint)]


@asynccontextmanager
async def _transaction_naming_taken_email(context: Context) -> AsyncIterator[Session]:
    try:
        async with context.database.transaction() as session:
            yield session
    except ConstraintError as error:
        if "email" in error.constraint:
            raise _email_exists() from error
        raise


def _email_exists() -> LoopError:
    return invalid(
        "email_exists",
        "There is an account with this e-mail address; sign in instead.",
        details=(("email", "is taken"),),
    )


async def login(context: Context, *, email: str, password: str, address: str) -> SignedIn:
    """Sign a merchant in from a network address.

    Raises `invalid_credentials`, the same for an unknown address as for a wrong password, and `too_many_attempts`.
    """
    account = normal_email(email)
    guard = guard_of(context)
    context = replace(context, actor=Actor(ActorKind.ANONYMOUS, address=address))
    try:
        guard.begin(account, address, now=context.now())
    except LoopError:
        if guard.tell_once(account, address, now=context.now()):
            await _record_refused(context, AuditAction.SIGN_IN_THROTTLED, account)
        raise
    async with context.database.reading() as reader:
        merchant = await merchants.by_email(reader, account)
    is_right = await verify_password(password, None if merchant is None else merchant.password_hash)
    if merchant is None or not is_right:
        await _record_refused(context, AuditAction.SIGN_IN_REFUSED, account)
        log.info("sign_in.refused", merchant_id=None if merchant is None else merchant.id)
        raise unauthenticated("invalid_credentials", "The e-mail address or the password is wrong.")
    guard.succeed(account, address)
    fresh_hash = await hash_password(context, password) if is_outdated(merchant.password_hash) else None
    async with context.database.transaction() as session:
        profile = await _profile(session, merchant.id)
        if fresh_hash is not None:
            await merchants.update_profile(session, replace(profile.merchant, password_hash=fresh_hash))
        signed_in = await _open_session(context, session, profile, family_id=context.new_id(PREFIX_TOKEN_FAMILY))
        action, acting = AuditAction.SIGN_IN_SUCCEEDED, _as_user(context, merchant)
        await audit.record(acting, session, action, merchant.id, merchant_id=merchant.id)
    log.info("sign_in.succeeded", merchant_id=merchant.id)
    return signed_in


async def _record_refused(context: Context, action: AuditAction, account: str) -> None:
    """Record a refused sign-in with whose account it was; the name of one that is not here may be a password."""
    async with context.database.transaction() as session:
        merchant = await merchants.by_email(session, account)
        merchant_id = None if merchant is None else merchant.id
        await audit.record(context, session, action, merchant_id or UNKNOWN_ACCOUNT, merchant_id=merchant_id)


async def refresh(context: Context, refresh_token: str) -> SignedIn:
    """Take a refresh token and return a new pair.

    Raises `invalid_refresh_token`. A token that was used already is in two hands, so it ends its whole family.
    """
    now = context.now()
    signed_in, reused = None, None
    async with context.database.transaction() as session:
        token = await merchants.refresh_token(session, _hash(refresh_token))
        if token is not None and token.is_used:
            reused = token
            await merchants.end_family(session, token.family_id, now)
            action, merchant_id = AuditAction.REFRESH_TOKEN_REUSED, token.merchant_id
            await audit.record(context, session, action, token.family_id, merchant_id=merchant_id)
        elif token is not None and token.expires_at > now:
            await merchants.use_refresh_token(session, token.token_hash)
            profile = await _profile(session, token.merchant_id)
            signed_in = await _open_session(context, session, profile, family_id=token.family_id)
    if reused is not None:
        log.warning("refresh_token.reused", merchant_id=reused.merchant_id, family_id=reused.family_id)
    if signed_in is None:
        raise unauthenticated("invalid_refresh_token", "The refresh token is not valid any more; sign in again.")
    return signed_in


async def logout(context: Context, refresh_token: str) -> None:
    """End the session of a refresh token; an unknown one is no error, since its session is over as well.

    Access tokens that the session was given stay good until they expire.
    """
    async with context.database.transaction() as session:
        token = await merchants.refresh_token(session, _hash(refresh_token))
        if token is not None:
            await merchants.end_family(session, token.family_id, context.now())


async def _open_session(context: Context, session: Session, profile: Profile, *, family_id: str) -> SignedIn:
    now = context.now()
    merchant_id = profile.merchant.id
    refresh_token = base64.urlsafe_b64encode(context.random_bytes(REFRESH_TOKEN_BYTES)).decode("ascii").rstrip("=")
    await merchants.add_refresh_token(
        session,
        RefreshToken(
            token_hash=_hash(refresh_token),
            family_id=family_id,
            merchant_id=merchant_id,
            is_used=False,
            expires_at=now + timedelta(seconds=context.settings.refresh_token_ttl_s),
            created_at=now,
        ),
    )
    return SignedIn(profile, issue_access_token(context, merchant_id), refresh_token)


def _hash(refresh_token: str) -> str:
    return hashlib.sha256(refresh_token.encode()).hexdigest()


async def get_profile(context: Context, merchant_id: str) -> Profile:
    """Return a merchant's profile; raises `not_found`."""
    async with context.database.reading() as reader:
        return await _profile(reader, merchant_id)


async def _profile(reader: Reader, merchant_id: str) -> Profile:
    merchant = await merchants.get(reader, merchant_id)
    if merchant is None:
        raise not_found("merchant")
    return Profile(merchant, await webhooks.first_endpoint(reader, merchant_id))


async def update_profile(context: Context, merchant_id: str, change: ProfileChange) -> Profile:
    """Change a merchant's name, its policy and the address of its first endpoint; raises `invalid_webhook_url`."""
    name = None if change.name is None else require_name(change.name)
    url = change.webhook_url
    if url is not None:
        require_endpoint_url(url, context.settings.webhook_reach)
    now = context.now()
    async with context.database.transaction() as session:
        await merchants.lock(session, merchant_id)
        before = await _profile(session, merchant_id)
        merchant, endpoint = replace(before.merchant, updated_at=now), before.endpoint
        if name is not None:
            merchant = replace(merchant, name=name)
        if change.late_success is not None:
            merchant = replace(merchant, late_success=change.late_success)
        await merchants.update_profile(session, merchant)
        if change.has_webhook_url and endpoint is not None:
            endpoint = replace(pointed(endpoint, url), updated_at=now)
            await store(context, session, endpoint)
        elif change.has_webhook_url:
            endpoint = new_endpoint(context, merchant_id, url)
            await session.run_together([webhooks.endpoint_insertion(endpoint)])
        await _record_changed(context, session, before, Profile(merchant, endpoint))
    log.info("merchant.updated", merchant_id=merchant_id)
    return Profile(merchant, endpoint)


async def _record_changed(context: Context, session: Session, before: Profile, after: Profile) -> None:
    merchant_id = after.merchant.id
    was, now_is = audit.changes(before.merchant, after.merchant, names=("name", "late_success"))
    if now_is:
        action = AuditAction.PROFILE_CHANGED
        await audit.record(context, session, action, merchant_id, merchant_id=merchant_id, before=was, after=now_is)
    if after.endpoint is not None:
        await audit.record_endpoint(context, session, before.endpoint, after.endpoint)


async def create_api_key(context: Context, merchant_id: str, new: NewApiKey) -> tuple[ApiKey, str]:
    """Make an API key; the second value is the key itself, which is not kept.

    Raises `validation_failed` for an expiry in the past or a scope that does not exist, and `too_many_api_keys`.
    """
    now = context.now()
    if new.expires_at is not None and new.expires_at <= now:
        raise _refused("expiresAt", "must lie in the future")
    if new.scopes != ALL_SCOPES:
        raise _refused("scopes", 'must be ["*"]: a key may do all that the API offers')
    secret = make_api_key(new.mode, context.random_bytes)
    key = ApiKey(
        id=context.new_id(PREFIX_API_KEY),
        merchant_id=merchant_id,
        name=new.name,
        prefix=prefix_of(secret),
        secret_hash=hash_of(secret),
        mode=new.mode,
        scopes=new.scopes,
        expires_at=new.expires_at,
        last_used_at=None,
        revoked_at=None,
        created_at=now,
    )
    async with context.database.transaction() as session:
        if await merchants.get(session, merchant_id) is None:
            raise not_found("merchant")
        if len(await merchants.keys_of(session, merchant_id)) >= MAX_API_KEYS:
            raise invalid("too_many_api_keys", f"There are {MAX_API_KEYS} API keys; revoke one first.")
        await session.run_together([merchants.key_insertion(key)])
        action, after = AuditAction.API_KEY_CREATED, audit.facts_of(key, ("name", "mode", "scopes", "expires_at"))
        await audit.record(context, session, action, key.id, merchant_id=merchant_id, after=after)
    log.info("api_key.created", merchant_id=merchant_id, api_key_id=key.id)
    return key, secret


def _refused(field_name: str, problem: str) -> LoopError:
    return invalid("validation_failed", f"{field_name}: {problem}.", details=((field_name, problem),))


async def list_api_keys(context: Context, merchant_id: str) -> list[ApiKey]:
    """Return a merchant's API keys that are not revoked, newest first."""
    async with context.database.reading() as reader:
        return await merchants.keys_of(reader, merchant_id)


async def revoke_api_key(context: Context, merchant_id: str, key_id: str) -> None:
    """Revoke an API key for good; raises `not_found`."""
    async with context.database.transaction() as session:
        if not await merchants.revoke_key(session, merchant_id, key_id, now=context.now()):
            raise not_found("API key")
        await audit.record(context, session, AuditAction.API_KEY_REVOKED, key_id, merchant_id=merchant_id)
    log.info("api_key.revoked", merchant_id=merchant_id, api_key_id=key_id)


async def purge_sessions(context: Context) -> int:
    """Delete a batch of refresh tokens that have expired; return how many."""
    async with context.database.transaction() as session:
        return await merchants.purge_refresh_tokens(session, context.now(), PURGE_BATCH)
