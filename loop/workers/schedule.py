"""The schedule: what has to be looked at by the clock, and not because somebody asked."""

import asyncio
from collections.abc import Awaitable, Callable

from loop.telemetry import get_logger
from loop.workflows import (
    captures,
    checkout,
    payments,
    processor_configs,
    reconciliation,
    retention,
)
from loop.workflows.context import Context

log = get_logger(__name__)

SCHEDULE: tuple[tuple[str, float, Callable[[Context], Awaitable[int]]], ...] = (
    ("expire", 15.0, captures.expire_due),
    ("expire_checkout", 15.0, checkout.expire_due),
    ("rescue", 60.0, payments.rescue_stale),
    ("purge_keys", 60.0, retention.purge_keys),
    ("purge_sessions", 60.0, retention.purge_sessions),
    ("purge_attempts", 60.0, retention.purge_delivery_attempts),
    ("purge_events", 60.0, retention.purge_events),
    ("purge_processor_events", 60.0, retention.purge_processor_events),
    ("reconcile", 60.0, reconciliation.schedule_due),
    ("purge_processors", 3600.0, processor_configs.purge_removed),
)
"""(name, seconds between runs, what runs); each run is bounded."""


async def run_schedule(context: Context) -> None:
    """Run every entry of the schedule at its own pace, until cancelled."""
    async with asyncio.TaskGroup() as group:
        for name, every_s, run in SCHEDULE:
            group.create_task(_repeat(context, name, every_s, run))


async def _repeat(context: Context, name: str, every_s: float, run: Callable[[Context], Awaitable[int]]) -> None:
    while True:
        await asyncio.sleep(every_s)
        try:
            count = await run(context)
        except Exception:
            log.exception("schedule.failed", entry=name)
        else:
            if count:
                log.info("schedule.ran", entry=name, count=count)
