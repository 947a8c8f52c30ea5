"""One webhook endpoint: how it fares, what it hears of, its secrets, and what can be done with it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loop.domain.deliveries import DeliveryStatus
from loop.domain.errors import ErrorKind, LoopError
from loop.server.api.webhook_endpoints import endpoint_json
from loop.server.dashboard import endpoint_forms
from loop.server.dashboard.drafts import Draft
from loop.server.dashboard.frames import Page, acts, page_routes, render
from loop.server.dashboard.keyed_forms import done_once
from loop.server.dashboard.pages.webhooks import HERE, NEW, Tally, show_new, tallies
from loop.server.dashboard.viewers import Action, Sent, Viewer, acting_as, new_form_key
from loop.server.pages import see_other
from loop.server.request import parse_time, path_id, query_of, time_text, validation_failed, whole_number
from loop.storage import deliveries as delivery_rows
from loop.storage.deliveries import DeliveryFilter
from loop.workflows import deliveries, webhook_endpoints
from loop.workflows.context import Context
from loop.workflows.deliveries import REPLAY_MAX
from loop.workflows.webhook_endpoints import EndpointChange
from loop.workflows.webhooks import signing_secrets

SHOWN_DELIVERIES: Final = 8
NOTICES: Final = {
    "saved": "The endpoint was changed.",
    "enabled": "The endpoint gets events again. What it missed can be sent again below.",
    "disabled": "The endpoint gets no events any more.",
    "promoted": "The new secret is the only one from now on.",
}


@dataclass(frozen=True, slots=True)
class Secret:
    """A signing secret that is shown this once, and what it is for."""

    text: str
    is_pending: bool


def address_of(endpoint_id: str, notice: str | None = None) -> str:
    """Return where an endpoint's page is, with what it should say at the top."""
    return f"{HERE}/{endpoint_id}" + ("" if notice is None else f"?notice={notice}")


async def show(
    request: Request,
    viewer: Viewer,
    *,
    endpoint_id: str | None = None,
    draft: Draft | None = None,
    secret: Secret | None = None,
) -> Page:
    """Show an endpoint; after a form that was refused, with what was wrong; after a new secret, with that."""
    context = acting_as(request, viewer)
    endpoint_id = endpoint_id or path_id(request, "endpoint_id", noun="endpoint")
    endpoint = await webhook_endpoints.get(context, viewer.merchant_id, endpoint_id)
    wanted = DeliveryFilter(is_test=viewer.is_test, endpoint_id=endpoint_id)
    async with context.database.reading() as reader:
        recent = await delivery_rows.list_after(reader, viewer.merchant_id, wanted, before=None, limit=SHOWN_DELIVERIES)
    draft = draft or Draft(endpoint_forms.fields_of(endpoint))
    told = endpoint_json(context, endpoint)
    values = {
        "endpoint": endpoint,
        "state": endpoint_forms.state_of(endpoint, context.now()),
        "tally": (await tallies(context, viewer.merchant_id)).get(endpoint_id, Tally(0, 0, 0)),
        "recent": recent,
        "has_failed": any(each.delivery.status is DeliveryStatus.FAILED for each in recent),
        "pending_until": told["pendingSecretUntil"],
        "secret": secret,
        "draft": draft,
        "event_types": endpoint_forms.CHOSEN_TYPES,
        "since": draft.value("since") or f"{context.now():%Y-%m-%dT00:00}",
        "notice": _notice(request) if draft.problem is None and secret is None else None,
        "new_key": partial(new_form_key, context),
    }
    return Page("webhook_endpoint.html", "webhooks", values, told, draft.status)


def _notice(request: Request) -> str | None:
    query = query_of(request)
    if query.get("notice") != "replayed":
        return NOTICES.get(query.get("notice", ""))
    count = whole_number(query, "count", low=0, high=REPLAY_MAX) or 0
    if not count:
        return "Nothing has failed since then."
    sent = f"{count:,} {'delivery is' if count == 1 else 'deliveries are'} being sent again."
    return f"{sent} There are more: send those again as well." if query.get("more") else sent


# What is done with it.

Doing = Callable[[Context, Sent, str], Awaitable[str]]
"""Does what a form asks for with the endpoint of an id; returns the address of what is shown then."""


async def save(context: Context, sent: Sent, endpoint_id: str) -> str:
    """Change where an endpoint is, and what it hears of."""
    change = endpoint_forms.change_of(sent.fields)
    await webhook_endpoints.change(context, sent.viewer.merchant_id, endpoint_id, change=change)
    return address_of(endpoint_id, "saved")


async def switch(context: Context, sent: Sent, endpoint_id: str, *, is_on: bool) -> str:
    """Have an endpoint get events, or get none."""
    change = EndpointChange(is_enabled=is_on)
    await webhook_endpoints.change(context, sent.viewer.merchant_id, endpoint_id, change=change)
    return address_of(endpoint_id, "enabled" if is_on else "disabled")


async def try_out(context: Context, sent: Sent, endpoint_id: str) -> str:
    """Send an endpoint an event that says nothing, and show how that goes."""
    event_id = await deliveries.send_trial(context, sent.viewer.merchant_id, endpoint_id)
    return f"{HERE}/deliveries/{event_id}/{endpoint_id}?notice=tested"


async def replay(context: Context, sent: Sent, endpoint_id: str) -> str:
    """Send again what failed since a moment."""
    try:
        since = parse_time(f"{sent.fields.get('since', '')}Z")
    except ValueError as error:
        raise validation_failed(("since", "must be a day and a time, such as 2030-01-31T09:00")) from error
    done = await deliveries.replay(context, sent.viewer.merchant_id, endpoint_id, since=since)
    more = "&more=1" if done.has_more else ""
    return f"{address_of(endpoint_id, 'replayed')}&count={done.count}{more}"


async def promote(context: Context, sent: Sent, endpoint_id: str) -> str:
    """Have the new secret be the only one."""
    await webhook_endpoints.promote_secret(context, sent.viewer.merchant_id, endpoint_id)
    return address_of(endpoint_id, "promoted")


async def remove(context: Context, sent: Sent, endpoint_id: str) -> str:
    """Remove an endpoint."""
    await webhook_endpoints.remove(context, sent.viewer.merchant_id, endpoint_id)
    return f"{HERE}?notice=removed"


def _does(doing: Doing) -> Action:
    """Do something with an endpoint once for each form that was shown, then show what came of it."""

    async def act(request: Request, sent: Sent) -> Response:
        endpoint_id = path_id(request, "endpoint_id", noun="endpoint")
        try:
            address = await done_once(request, sent, doing=lambda context: doing(context, sent, endpoint_id))
        except LoopError as error:
            return await _refused(request, sent, endpoint_id, error=error)
        return see_other(address)

    return act


async def _refused(request: Request, sent: Sent, endpoint_id: str, *, error: LoopError) -> Response:
    """Show an endpoint with why something was not done with it, and what was typed."""
    if error.kind is ErrorKind.NOT_FOUND:
        raise error
    context = acting_as(request, sent.viewer)
    endpoint = await webhook_endpoints.get(context, sent.viewer.merchant_id, endpoint_id)
    kept: Mapping[str, str] = {} if "url" in sent.fields else endpoint_forms.fields_of(endpoint)
    return render(await show(request, sent.viewer, draft=Draft({**kept, **sent.fields}, error)), sent.viewer)


# What makes a secret, which is shown this once.


async def create(request: Request, sent: Sent) -> Response:
    """Add an endpoint and show it with its secret."""
    viewer, context = sent.viewer, acting_as(request, sent.viewer)

    async def make(acting: Context) -> str:
        new = endpoint_forms.new_endpoint_of(sent.fields)
        return (await webhook_endpoints.create(acting, viewer.merchant_id, new)).id

    try:
        endpoint_id = await done_once(request, sent, doing=make)
    except LoopError as error:
        return render(await show_new(request, viewer, draft=Draft(sent.fields, error)), viewer)
    endpoint = await webhook_endpoints.get(context, viewer.merchant_id, endpoint_id)
    secret = Secret(signing_secrets(context, endpoint).current, is_pending=False)
    return render(await show(request, viewer, endpoint_id=endpoint_id, secret=secret), viewer)


async def rotate(request: Request, sent: Sent) -> Response:
    """Make a new secret, which signs beside the one before, and show it."""
    viewer, context = sent.viewer, acting_as(request, sent.viewer)
    endpoint_id = path_id(request, "endpoint_id", noun="endpoint")

    async def make(acting: Context) -> str:
        return time_text((await webhook_endpoints.rotate_secret(acting, viewer.merchant_id, endpoint_id)).updated_at)

    try:
        await done_once(request, sent, doing=make)
        endpoint = await webhook_endpoints.get(context, viewer.merchant_id, endpoint_id)
    except LoopError as error:
        return await _refused(request, sent, endpoint_id, error=error)
    pending = signing_secrets(context, endpoint).pending
    secret = None if pending is None else Secret(pending, is_pending=True)
    return render(await show(request, viewer, secret=secret), viewer)


_ONE: Final = f"{HERE}/{{endpoint_id}}"
routes: Final[list[Route]] = [
    Route(NEW, acts(create), methods=["POST"]),
    *page_routes(_ONE, show),
    *(
        Route(f"{_ONE}/{name}", acts(_does(doing)), methods=["POST"])
        for name, doing in (
            ("save", save),
            ("enable", partial(switch, is_on=True)),
            ("disable", partial(switch, is_on=False)),
            ("test", try_out),
            ("replay", replay),
            ("promote", promote),
            ("remove", remove),
        )
    ),
    Route(f"{_ONE}/rotate", acts(rotate), methods=["POST"]),
]
