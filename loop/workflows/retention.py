"""Retention: what is deleted once it was kept for long enough, oldest first, in batches that hold nobody up."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Final, TypeVar

from loop.domain.ids import PREFIX_EVENT, PREFIX_PROCESSOR_EVENT, first_id
from loop.storage import deliveries, idempotency, processor_events, sessions, webhooks
from loop.storage.database import Session
from loop.workflows.context import Context

Bound = TypeVar("Bound", datetime, str)
"""What a row must come before: a moment, or the first id that could have been made in it."""

BATCH: Final = 100
"""Rows of one transaction: on SQLite a millisecond, for which everybody else waits."""

BATCHES_MAX: Final = 500
"""Transactions of one run; what is left over waits for the next one."""

KEYS_KEPT: Final = timedelta(days=2)
"""How long the answer to a request under an idempotency key is kept: longer than anybody repeats one."""


async def purge_keys(context: Context) -> int:
    """Delete idempotency keys with their answers; return how many."""
    return await _purge(context, idempotency.purge, context.now() - KEYS_KEPT)


async def purge_sessions(context: Context) -> int:
    """Delete sign-in sessions and refresh tokens that have expired; return how many."""
    return await _purge(context, sessions.purge, context.now())


async def purge_delivery_attempts(context: Context) -> int:
    """Delete the log of how deliveries were tried; return how many tries."""
    return await _purge(context, deliveries.purge_attempts, _before(context, context.settings.keep_attempts_days))


async def purge_events(context: Context) -> int:
    """Delete events and their deliveries, unless one is pending or the order unsettled; return how many events."""
    before = _before(context, context.settings.keep_events_days)
    return await _purge(context, webhooks.purge_events, first_id(PREFIX_EVENT, before))


async def purge_processor_events(context: Context) -> int:
    """Delete processors' webhooks that were worked on, but for quarantined ones; return how many."""
    before = _before(context, context.settings.keep_processor_events_days)
    return await _purge(context, processor_events.purge, first_id(PREFIX_PROCESSOR_EVENT, before))


def _before(context: Context, days: int) -> datetime:
    return context.now() - timedelta(days=days)


async def _purge(context: Context, delete: Callable[[Session, Bound, int], Awaitable[int]], before: Bound) -> int:
    count = 0
    for _ in range(BATCHES_MAX):
        async with context.database.transaction() as session:
            found = await delete(session, before, BATCH)
        count += found
        if found < BATCH:
            break
    return count
