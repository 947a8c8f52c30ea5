"""Webhooks: a merchant's endpoints and how each fares, and the form for another one."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from starlette.requests import Request
from starlette.routing import Route

from loop.domain.deliveries import DeliveryStatus
from loop.domain.ids import PREFIX_EVENT, first_id
from loop.server.api.webhook_endpoints import endpoint_json
from loop.server.dashboard import endpoint_forms
from loop.server.dashboard.drafts import Draft
from loop.server.dashboard.frames import Page, page_routes
from loop.server.dashboard.viewers import Viewer, acting_as, new_form_key
from loop.server.request import query_of
from loop.storage import deliveries
from loop.storage.deliveries import DeliveryCount
from loop.workflows import webhook_endpoints
from loop.workflows.context import Context
from loop.workflows.webhook_endpoints import MAX_ENDPOINTS

HERE: Final = "/dashboard/webhooks"
NEW: Final = f"{HERE}/new"
COUNTED: Final = timedelta(hours=24)
"""Of how long the deliveries are counted."""

NOTICES: Final = {"removed": "The endpoint was removed. What waited for it is not sent any more."}


@dataclass(frozen=True, slots=True)
class Tally:
    """How the deliveries of the last hours stand."""

    delivered: int
    failed: int
    waiting: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.delivered + self.failed + self.waiting


async def tallies(context: Context, merchant_id: str) -> dict[str, Tally]:
    """Return how each endpoint's deliveries of the last `COUNTED` stand."""
    from_event = first_id(PREFIX_EVENT, context.now() - COUNTED)
    async with context.database.reading() as reader:
        counts = await deliveries.counts_since(reader, merchant_id, from_event=from_event)
    return {each: _tally(counts, each) for each in {count.endpoint_id for count in counts}}


def _tally(counts: Iterable[DeliveryCount], endpoint_id: str) -> Tally:
    by = Counter({each.status: each.count for each in counts if each.endpoint_id == endpoint_id})
    return Tally(by[DeliveryStatus.DELIVERED], by[DeliveryStatus.FAILED], by[DeliveryStatus.PENDING])


async def show(request: Request, viewer: Viewer) -> Page:
    """Show the endpoints; those without an address are none yet."""
    context = acting_as(request, viewer)
    found = [each for each in await webhook_endpoints.list_endpoints(context, viewer.merchant_id) if each.url]
    counted = await tallies(context, viewer.merchant_id)
    values = {
        "endpoints": [
            (each, endpoint_forms.state_of(each, context.now()), counted.get(each.id, Tally(0, 0, 0))) for each in found
        ],
        "may_add": len(found) < MAX_ENDPOINTS,
        "max_endpoints": MAX_ENDPOINTS,
        "notice": NOTICES.get(query_of(request).get("notice", "")),
    }
    json = {
        "data": [
            {**endpoint_json(context, each), "state": state, "lastDay": _tally_json(tally)}
            for each, state, tally in values["endpoints"]  # type: ignore[attr-defined] # as it was made above
        ]
    }
    return Page("webhooks.html", "webhooks", values, json)


def _tally_json(tally: Tally) -> dict[str, int]:
    return {"delivered": tally.delivered, "failed": tally.failed, "waiting": tally.waiting}


async def show_new(request: Request, viewer: Viewer, *, draft: Draft | None = None) -> Page:
    """Show the form for a new endpoint, also one that was refused."""
    draft = draft or Draft(endpoint_forms.BLANK)
    values = {
        "draft": draft,
        "event_types": endpoint_forms.CHOSEN_TYPES,
        "key": new_form_key(acting_as(request, viewer)),
    }
    json = {"eventTypes": list(endpoint_forms.CHOSEN_TYPES)}
    return Page("webhook_new.html", "webhooks", values, json, draft.status)


routes: Final[list[Route]] = [*page_routes(HERE, show), *page_routes(NEW, show_new)]
