"""Webhook endpoints: add, change and remove a merchant's own, and rotate their secrets in two steps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from loop.domain.audit import AuditAction
from loop.domain.endpoint_health import EndpointHealth
from loop.domain.endpoint_urls import require_endpoint_url
from loop.domain.errors import invalid, not_found
from loop.storage import jobs, merchants, webhooks
from loop.storage.database import Session
from loop.storage.webhooks import ALL_EVENTS, Endpoint
from loop.telemetry import get_logger
from loop.workflows import audit
from loop.workflows.context import Context
from loop.workflows.webhooks import new_endpoint, new_secret, place_of_secret, signing_secrets

log = get_logger(__name__)

MAX_ENDPOINTS: Final = 10
"""Endpoints of one merchant: each of its events is sent to every one of them that hears of it."""


@dataclass(frozen=True, slots=True)
class NewEndpoint:
    """Where a merchant wants to listen, and to what; `url` is checked when the endpoint is made."""

    url: str
    description: str | None = None
    event_types: Sequence[str] = (ALL_EVENTS,)
    is_enabled: bool = True


@dataclass(frozen=True, slots=True)
class EndpointChange:
    """What a merchant changes of an endpoint; None leaves a field as it is, an empty description removes it."""

    url: str | None = None
    description: str | None = None
    event_types: Sequence[str] | None = None
    is_enabled: bool | None = None


async def create(context: Context, merchant_id: str, new: NewEndpoint) -> Endpoint:
    """Add an endpoint. One without an address makes room for it, so that the first one with an address is the first.

    Raises `invalid_webhook_url` and `too_many_endpoints`.
    """
    require_endpoint_url(new.url, context.settings.webhook_reach, field="url")
    endpoint = replace(
        new_endpoint(context, merchant_id, new.url),
        description=new.description or None,
        event_types=tuple(new.event_types),
        is_enabled=new.is_enabled,
    )
    async with context.database.transaction() as session:
        await merchants.lock(session, merchant_id)
        known = await webhooks.endpoints_of(session, merchant_id)
        if sum(each.url is not None for each in known) >= MAX_ENDPOINTS:
            raise invalid("too_many_endpoints", f"There are {MAX_ENDPOINTS} endpoints; remove one first.")
        for empty in (each for each in known if each.url is None):
            await webhooks.remove_endpoint(session, merchant_id, empty.id, now=endpoint.created_at)
        await session.run_together([webhooks.endpoint_insertion(endpoint)])
        await audit.record_endpoint(context, session, None, endpoint)
    log.info("webhook_endpoint.created", merchant_id=merchant_id, endpoint_id=endpoint.id)
    return endpoint


async def list_endpoints(context: Context, merchant_id: str) -> list[Endpoint]:
    """Return a merchant's endpoints, the first one first."""
    async with context.database.reading() as reader:
        return await webhooks.endpoints_of(reader, merchant_id)


async def get(context: Context, merchant_id: str, endpoint_id: str) -> Endpoint:
    """Return a merchant's endpoint; raises `not_found`."""
    async with context.database.reading() as reader:
        endpoint = await webhooks.endpoint(reader, merchant_id, endpoint_id)
    if endpoint is None:
        raise not_found("endpoint")
    return endpoint


async def change(context: Context, merchant_id: str, endpoint_id: str, *, change: EndpointChange) -> Endpoint:
    """Change an endpoint; enabling it or moving it ends its pause. Raises `not_found`, `invalid_webhook_url`."""
    if change.url is not None:
        require_endpoint_url(change.url, context.settings.webhook_reach, field="url")
    async with context.database.transaction() as session:
        before = await _locked(session, merchant_id, endpoint_id)
        after = before if change.url is None else pointed(before, change.url)
        after = after if change.is_enabled is None else _switched(after, is_enabled=change.is_enabled)
        after = replace(
            after,
            description=before.description if change.description is None else change.description or None,
            event_types=before.event_types if change.event_types is None else tuple(change.event_types),
            updated_at=context.now(),
        )
        await store(context, session, after)
        await audit.record_endpoint(context, session, before, after)
    context.runner.wake()
    log.info("webhook_endpoint.changed", merchant_id=merchant_id, endpoint_id=endpoint_id)
    return after


async def _locked(session: Session, merchant_id: str, endpoint_id: str) -> Endpoint:
    endpoint = await webhooks.lock_endpoint(session, merchant_id, endpoint_id)
    if endpoint is None:
        raise not_found("endpoint")
    return endpoint


def pointed(endpoint: Endpoint, url: str | None) -> Endpoint:
    """Return an endpoint at another address: what the one before did, its being given up as well, does not count."""
    if url == endpoint.url:
        return endpoint
    moved = replace(endpoint, url=url)
    return _switched(moved, is_enabled=moved.is_enabled or moved.disabled_reason is not None)


def _switched(endpoint: Endpoint, *, is_enabled: bool) -> Endpoint:
    if not is_enabled:
        return replace(endpoint, is_enabled=False)
    health = EndpointHealth()
    return replace(
        endpoint,
        is_enabled=True,
        disabled_reason=None,
        failure_streak=health.failure_streak,
        failing_since=health.failing_since,
        pause_s=int(health.pause.total_seconds()),
        paused_until=health.paused_until,
    )


async def store(context: Context, session: Session, endpoint: Endpoint) -> None:
    """Store a changed endpoint, and have its job see what has become of what waits for it."""
    await session.run_together([webhooks.endpoint_updating(endpoint)])
    await jobs.deliver_soon(session, endpoint.id, job_id=context.new_id("job"), now=context.now())


async def remove(context: Context, merchant_id: str, endpoint_id: str) -> None:
    """Remove an endpoint; what waits for it fails. Raises `not_found`."""
    now = context.now()
    async with context.database.transaction() as session:
        before = await _locked(session, merchant_id, endpoint_id)
        await webhooks.remove_endpoint(session, merchant_id, endpoint_id, now=now)
        await jobs.deliver_soon(session, endpoint_id, job_id=context.new_id("job"), now=now)
        was = audit.facts_of(before, audit.ENDPOINT_FIELDS)
        action = AuditAction.ENDPOINT_REMOVED
        await audit.record(context, session, action, endpoint_id, merchant_id=merchant_id, before=was)
    context.runner.wake()
    log.info("webhook_endpoint.removed", merchant_id=merchant_id, endpoint_id=endpoint_id)


async def rotate_secret(context: Context, merchant_id: str, endpoint_id: str) -> Endpoint:
    """Give an endpoint a pending secret, which signs beside the one that counts until it takes its place.

    Raises `not_found`, and `secret_pending` while there is one already.
    """
    now = context.now()
    async with context.database.transaction() as session:
        before = _settled(context, await _locked(session, merchant_id, endpoint_id))
        if before.pending_secret is not None:
            raise invalid("secret_pending", "A new secret is pending already; promote it first.")
        place = place_of_secret(endpoint_id, merchant_id, column="pending_secret")
        pending = context.keyring.encrypt(new_secret(context), bound_to=place)
        after = replace(before, pending_secret=pending, pending_since=now, updated_at=now)
        await _record_rotated(context, session, after, step="pending")
    log.info("webhook_endpoint.secret_pending", merchant_id=merchant_id, endpoint_id=endpoint_id)
    return after


async def promote_secret(context: Context, merchant_id: str, endpoint_id: str) -> Endpoint:
    """Have the pending secret be the only one from now on; raises `not_found`, `no_pending_secret`."""
    async with context.database.transaction() as session:
        before = await _locked(session, merchant_id, endpoint_id)
        if before.pending_secret is None:
            raise invalid("no_pending_secret", "No new secret is pending; rotate the secret first.")
        after = _promoted(context, before, context.now())
        await _record_rotated(context, session, after, step="promoted")
    log.info("webhook_endpoint.secret_promoted", merchant_id=merchant_id, endpoint_id=endpoint_id)
    return after


def _settled(context: Context, endpoint: Endpoint) -> Endpoint:
    """Return an endpoint whose pending secret has taken over by itself as if it had been promoted."""
    if endpoint.pending_secret is None or signing_secrets(context, endpoint).pending is not None:
        return endpoint
    return _promoted(context, endpoint, context.now())


def _promoted(context: Context, endpoint: Endpoint, now: datetime) -> Endpoint:
    secrets = signing_secrets(context, endpoint)
    place = place_of_secret(endpoint.id, endpoint.merchant_id)
    sealed = context.keyring.encrypt(secrets.pending or secrets.current, bound_to=place)
    return replace(endpoint, secret=sealed, pending_secret=None, pending_since=None, updated_at=now)


async def _record_rotated(context: Context, session: Session, endpoint: Endpoint, *, step: str) -> None:
    await session.run_together([webhooks.endpoint_updating(endpoint)])
    action, owner = AuditAction.ENDPOINT_SECRET_ROTATED, endpoint.merchant_id
    await audit.record(context, session, action, endpoint.id, merchant_id=owner, after={"step": step})
