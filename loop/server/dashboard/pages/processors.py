"""Processors: a merchant's accounts of one mode with how each fares, and the processors that can be connected."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from starlette.requests import Request
from starlette.routing import Route

from loop.domain.attempts import UNPAID_STATUSES, AttemptStatus
from loop.domain.breakers import BreakerState
from loop.domain.ids import PREFIX_ATTEMPT, PREFIX_PROCESSOR_EVENT, first_id
from loop.server.api.processors import config_json
from loop.server.dashboard import words
from loop.server.dashboard.frames import Page, page_routes
from loop.server.dashboard.viewers import Viewer, acting_as
from loop.server.request import query_of, time_text
from loop.storage import attempts, processor_events
from loop.storage.attempts import AttemptCount
from loop.storage.processor_configs import ProcessorConfig
from loop.workflows import processor_configs
from loop.workflows.context import Context

HERE: Final = "/dashboard/processors"
COUNTED: Final = timedelta(days=7)
"""Of how long payments are counted for the rate of success."""

HEARD: Final = timedelta(days=30)
"""How far back the latest webhook is looked for."""

NOTICES: Final = {
    "removed": "The account was removed: it takes no new payment, and goes on with those that it has taken.",
}

_SUCCEEDED: Final = frozenset({AttemptStatus.AUTHORIZED, AttemptStatus.CAPTURED, AttemptStatus.VOIDED})


@dataclass(frozen=True, slots=True)
class AccountHealth:
    """How an account fares: `state` is a key of `words.ACCOUNTS`; the counts are of the last `COUNTED`."""

    state: str
    rests_until: datetime | None
    succeeded: int
    declined: int
    webhook_at: datetime | None

    @property
    def rate(self) -> float | None:
        """The share of payments that succeeded, in percent; None where none has ended."""
        ended = self.succeeded + self.declined
        return round(100 * self.succeeded / ended, 1) if ended else None


def called(processor: str) -> str:
    """Return a processor's name as people write it."""
    return words.PROCESSORS.get(processor, processor)


async def of_mode(context: Context, viewer: Viewer) -> list[ProcessorConfig]:
    """Return the accounts of the mode that is shown, the first choice first."""
    found = await processor_configs.list_all(context, viewer.merchant_id)
    return [each for each in found if each.is_test_mode is viewer.is_test]


async def health_of(context: Context, viewer: Viewer, configs: Iterable[ProcessorConfig]) -> dict[str, AccountHealth]:
    """Return how accounts fare, by their ids."""
    now = context.now()
    from_attempt = first_id(PREFIX_ATTEMPT, now - COUNTED)
    from_row = first_id(PREFIX_PROCESSOR_EVENT, now - HEARD)
    found = {}
    async with context.database.reading() as reader:
        counts = await attempts.counts_since(reader, viewer.merchant_id, from_attempt=from_attempt)
        for each in configs:
            heard_at = await processor_events.latest_of(reader, viewer.merchant_id, each.id, from_row=from_row)
            found[each.id] = _health(
                context, each, [row for row in counts if row.processor_config_id == each.id], heard_at
            )
    return found


def _health(
    context: Context, config: ProcessorConfig, counts: Iterable[AttemptCount], webhook_at: datetime | None
) -> AccountHealth:
    counts = list(counts)
    breaker = context.breakers.of_account(config.id)
    is_resting = breaker.state is BreakerState.OPEN and breaker.is_shut(context.now())
    return AccountHealth(
        state=_state(context, config, breaker.state, is_resting=is_resting),
        rests_until=breaker.since + breaker.pause if breaker.since is not None and is_resting else None,
        succeeded=sum(each.count for each in counts if each.status in _SUCCEEDED),
        declined=sum(each.count for each in counts if each.is_declined and each.status in UNPAID_STATUSES),
        webhook_at=webhook_at,
    )


def _state(context: Context, config: ProcessorConfig, breaker: BreakerState, *, is_resting: bool) -> str:
    if not processor_configs.is_readable(context, config):
        return "unreadable"
    if not config.is_enabled:
        return "off"
    if is_resting:
        return "resting"
    return "taking" if breaker is BreakerState.CLOSED else "probed"


def health_json(health: AccountHealth) -> dict[str, object]:
    """Return how an account fares."""
    return {
        "state": health.state,
        "restsUntil": time_text(health.rests_until),
        "succeeded": health.succeeded,
        "declined": health.declined,
        "successRate": health.rate,
        "lastWebhookAt": time_text(health.webhook_at),
    }


def connectable(context: Context, viewer: Viewer, configs: Iterable[ProcessorConfig]) -> list[str]:
    """Return the installed processors that have no account of this mode and may have one."""
    taken = {each.processor for each in configs}
    return [name for name in context.processors.names() if name not in taken and may_connect(context, viewer, name)]


def may_connect(context: Context, viewer: Viewer, processor: str) -> bool:
    """Tell whether a processor takes accounts of the mode that is shown; raises `invalid_processor`."""
    return viewer.is_test or not context.processors.get(processor).capabilities.is_test_only


async def show(request: Request, viewer: Viewer) -> Page:
    """Show the accounts, and what else can be connected."""
    context = acting_as(request, viewer)
    configs = await of_mode(context, viewer)
    health = await health_of(context, viewer, configs)
    first = next((each.id for each in configs if each.is_enabled), None)
    values = {
        "accounts": [(each, health[each.id]) for each in configs],
        "first": first,
        "warned": {each.id for each in configs if processor_configs.warnings_about(context, each)},
        "connectable": connectable(context, viewer, configs),
        "called": called,
        "notice": NOTICES.get(query_of(request).get("notice", "")),
    }
    json = {
        "data": [{**config_json(context, each), "lately": health_json(health[each.id])} for each in configs],
        "connectable": values["connectable"],
    }
    return Page("processors.html", "processors", values, json)


routes: Final[list[Route]] = page_routes(HERE, show)
