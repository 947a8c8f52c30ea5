"""Merchants: register, sign in and out, change the profile, and make, rotate and revoke API keys."""

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
from loop.domain.ids import PREFIX_API_KEY, PREFIX_MERCHANT
from loop.domain.scopes import ALL, find_problem
from loop.storage import audit as audit_rows
from loop.storage import merchants, webhooks
from loop.storage import sessions as session_rows
from loop.storage.database import ConstraintError, Reader, Session
from loop.storage.merchants import ApiKey, Merchant
from loop.storage.statements import Parameters, Write
from loop.storage.webhooks import Endpoint
from loop.telemetry import get_logger
from loop.workflows import audit, sessions
from loop.workflows.context import Context
from loop.workflows.passwords import hash_password, is_outdated, verify_password
from loop.workflows.processor_configs import usual_mode
from loop.workflows.sign_in_guard import guard_of
from loop.workflows.webhook_endpoints import pointed, store
from loop.workflows.webhooks import new_endpoint

log = get_logger(__name__)

UNKNOWN_ACCOUNT: Final = "unknown"
"""What the audit log calls an account that is not here."""

MAX_API_KEYS: Final = 1000
"""Live keys of one merchant: as many as a list shows."""

MAX_OVERLAP: Final = timedelta(days=7)
"""How long a rotated key may stay good beside the one that replaces it."""


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
    """A key to be made; without a mode it is what `usual_mode` says of its merchant."""

    name: str
    expires_at: datetime | None = None
    mode: Literal["live", "test"] | None = None
    scopes: tuple[str, ...] = (ALL,)


async def create(context: Context, new: NewMerchant) -> Profile:
    """Create a merchant with its first endpoint, which has no address yet; raises `email_exists`."""
    profile, writes = await _creating(context, new)
    async with _transaction_naming_taken_email(context) as session:
        await session.run_together(writes)
        await _record_created(context, session, profile.merchant)
    log.info("merchant.created", merchant_id=profile.merchant.id)
    return profile


async def register(context: Context, new: NewMerchant, *, user_agent: str | None = None) -> SignedIn:
    """Create a merchant and sign it in, in one commit; raises `registration_closed` and `email_exists`."""
    if not context.settings.is_registration_open:
        raise LoopError(
            ErrorKind.FORBIDDEN, "registration_closed", "Registration is closed here; ask the operator for an account."
        )
    profile, writes = await _creating(context, new)
    async with _transaction_naming_taken_email(context) as session:
        await session.run_together(writes)
        given = await sessions.open_session(context, session, profile.merchant.id, user_agent)
        await _record_created(_as_user(context, profile.merchant), session, profile.merchant)
    log.info("merchant.registered", merchant_id=profile.merchant.id)
    return SignedIn(profile, given.access_token, given.refresh_token)


async def register_first(context: Context, new: NewMerchant, *, user_agent: str | None = None) -> SignedIn | None:
    """Create a merchant and sign it in, unless there is one already: None then."""
    profile, writes = await _creating(context, new)
    async with _transaction_naming_taken_email(context) as session:
        await audit_rows.lock_head(session, None)  # of two who try at once, one waits here and finds the other's
        if await merchants.list_all(session, 1):
            return None
        await session.run_together(writes)
        given = await sessions.open_session(context, session, profile.merchant.id, user_agent)
        await _record_created(_as_user(context, profile.merchant), session, profile.merchant)
    log.info("merchant.registered", merchant_id=profile.merchant.id)
    return SignedIn(profile, given.access_token, given.refresh_token)


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
        "There is an account with this e-mail address already; use that one, or another address.",
        details=(("email", "is taken"),),
    )


async def login(
    context: Context, *, email: str, password: str, address: str, user_agent: str | None = None
) -> SignedIn:
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
        raise _wrong_credentials()
    guard.succeed(account, address)
    fresh_hash = await hash_password(context, password) if is_outdated(merchant.password_hash) else None
    async with context.database.transaction() as session:
        await merchants.lock(session, merchant.id)  # or a password that is reset meanwhile would leave this session
        profile = await _profile(session, merchant.id)
        if profile.merchant.password_hash != merchant.password_hash:
            raise _wrong_credentials()
        if fresh_hash is not None:
            await merchants.update_profile(session, replace(profile.merchant, password_hash=fresh_hash))
        given = await sessions.open_session(context, session, merchant.id, user_agent)
        action, acting = AuditAction.SIGN_IN_SUCCEEDED, _as_user(context, merchant)
        await audit.record(acting, session, action, merchant.id, merchant_id=merchant.id)
    log.info("sign_in.succeeded", merchant_id=merchant.id)
    return SignedIn(profile, given.access_token, given.refresh_token)


def _wrong_credentials() -> LoopError:
    return unauthenticated("invalid_credentials", "The e-mail address or the password is wrong.")


async def _record_refused(context: Context, action: AuditAction, account: str) -> None:
    """Record a refused sign-in with whose account it was; the name of one that is not here may be a password."""
    async with context.database.transaction() as session:
        merchant = await merchants.by_email(session, account)
        merchant_id = None if merchant is None else merchant.id
        await audit.record(context, session, action, merchant_id or UNKNOWN_ACCOUNT, merchant_id=merchant_id)


async def refresh(context: Context, refresh_token: str, *, user_agent: str | None = None) -> SignedIn:
    """Take a refresh token and return a new pair; see `sessions.refresh`. Raises `invalid_refresh_token`."""
    profile = None
    async with context.database.transaction() as session:
        given = await sessions.refresh(context, session, refresh_token, user_agent=user_agent)
        if given is not None:
            profile = await _profile(session, given.merchant_id)
    if given is None or profile is None:
        raise unauthenticated("invalid_refresh_token", "The refresh token is not valid any more; sign in again.")
    return SignedIn(profile, given.access_token, given.refresh_token)


async def logout(context: Context, refresh_token: str) -> None:
    """End the session of a refresh token; an unknown one is no error, since its session is over as well."""
    await sessions.close(context, refresh_token)


async def reset_password(context: Context, merchant_id: str, password: str) -> int:
    """Set a merchant's password anew and end all its sessions; return how many there were. Raises `not_found`.

    API keys stay: they are no sessions, and are revoked one by one.
    """
    password_hash = await hash_password(context, require_password(password))
    now = context.now()
    async with context.database.transaction() as session:
        await merchants.lock(session, merchant_id)
        merchant = (await _profile(session, merchant_id)).merchant
        await merchants.update_profile(session, replace(merchant, password_hash=password_hash, updated_at=now))
        ended = await session_rows.end_all(session, merchant_id, now)
        action, after = AuditAction.PASSWORD_RESET, {"sessions_ended": ended}
        await audit.record(context, session, action, merchant_id, merchant_id=merchant_id, after=after)
    log.info("password.reset", merchant_id=merchant_id)
    return ended


async def change_password(
    context: Context, merchant_id: str, *, current: str, new: str, user_agent: str | None = None
) -> SignedIn:
    """Set a new password for who knows the current one, end all sessions, and sign in anew.

    Guesses are slowed down as those of a sign-in are. Raises `validation_failed` and `too_many_attempts`.
    """
    new = require_password(new)
    async with context.database.reading() as reader:
        merchant = (await _profile(reader, merchant_id)).merchant
    address, guard = context.actor.address or "unknown", guard_of(context)
    guard.begin(merchant.email, address, now=context.now())
    if not await verify_password(current, merchant.password_hash):
        log.info("password.refused", merchant_id=merchant_id)
        raise _refused("current", "is not your password")
    guard.succeed(merchant.email, address)
    await reset_password(context, merchant_id, new)
    return await login(context, email=merchant.email, password=new, address=address, user_agent=user_agent)


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
    if problem := find_problem(new.scopes):
        raise _refused("scopes", problem)
    async with context.database.transaction() as session:
        if not await merchants.lock(session, merchant_id):
            raise not_found("merchant")
        named = replace(new, mode=new.mode or await usual_mode(session, merchant_id))
        key, secret = await _add_key(context, session, merchant_id, named)
        action, after = AuditAction.API_KEY_CREATED, audit.facts_of(key, ("name", "mode", "scopes", "expires_at"))
        await audit.record(context, session, action, key.id, merchant_id=merchant_id, after=after)
    log.info("api_key.created", merchant_id=merchant_id, api_key_id=key.id)
    return key, secret


async def _add_key(context: Context, session: Session, merchant_id: str, new: NewApiKey) -> tuple[ApiKey, str]:
    if len(await merchants.keys_of(session, merchant_id)) >= MAX_API_KEYS:
        raise invalid("too_many_api_keys", f"There are {MAX_API_KEYS} API keys; revoke one first.")
    mode = new.mode or "test"
    secret = make_api_key(mode, context.random_bytes)
    key = ApiKey(
        id=context.new_id(PREFIX_API_KEY),
        merchant_id=merchant_id,
        name=new.name,
        prefix=prefix_of(secret),
        secret_hash=hash_of(secret),
        mode=mode,
        scopes=tuple(sorted(set(new.scopes))),
        expires_at=new.expires_at,
        last_used_at=None,
        revoked_at=None,
        created_at=context.now(),
    )
    await session.run_together([merchants.key_insertion(key)])
    return key, secret


async def rotate_api_key(
    context: Context, merchant_id: str, key_id: str, *, overlap: timedelta
) -> tuple[ApiKey, ApiKey, str]:
    """Replace an API key by one that may do the same; return the old one, the new one, and the new key itself.

    The old one stays good for `overlap`, or until it expires if that is sooner. A new one lasts as long as the old one
    was made for. Raises `not_found`, `invalid_status` for a key that has expired, and `too_many_api_keys`.
    """
    now = context.now()
    async with context.database.transaction() as session:
        await merchants.lock(session, merchant_id)
        old = await merchants.lock_key(session, merchant_id, key_id)
        if old is None:
            raise not_found("API key")
        if old.expires_at is not None and old.expires_at <= now:
            raise invalid("invalid_status", "The API key has expired; make a new one instead.")
        life = None if old.expires_at is None else old.expires_at - old.created_at
        mode: Literal["live", "test"] = "live" if old.mode == "live" else "test"
        new = NewApiKey(old.name, None if life is None else now + life, mode, tuple(old.scopes))
        key, secret = await _add_key(context, session, merchant_id, new)
        ends_at = now + overlap
        old = replace(old, expires_at=ends_at if old.expires_at is None else min(old.expires_at, ends_at))
        await merchants.expire_key(session, old.id, old.expires_at or ends_at)
        after = {"replacement": key.id, **audit.facts_of(old, ("expires_at",))}
        action = AuditAction.API_KEY_ROTATED
        await audit.record(context, session, action, old.id, merchant_id=merchant_id, after=after)
    log.info("api_key.rotated", merchant_id=merchant_id, api_key_id=old.id, replacement_id=key.id)
    return old, key, secret


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
