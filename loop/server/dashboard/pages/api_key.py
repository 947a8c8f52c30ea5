"""One API key: what it may do, and replacing or revoking it."""

from datetime import timedelta
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loop.domain.errors import ErrorKind, LoopError
from loop.domain.scopes import ALL, Scope
from loop.server.api.api_keys import HOUR, Rotation, key_json
from loop.server.auth import key_cache
from loop.server.dashboard.drafts import Draft
from loop.server.dashboard.frames import Page, acts, page_routes, render
from loop.server.dashboard.keyed_forms import done_once
from loop.server.dashboard.pages.api_keys import HERE, MADE_BEFORE, MadeKey, find, state_of
from loop.server.dashboard.viewers import Sent, Viewer, acting_as, new_form_key
from loop.server.pages import see_other
from loop.server.request import parse, path_id, validation_failed
from loop.workflows import merchants
from loop.workflows.context import Context

OVERLAPS_H: Final = (0, 1, 24, 72, 168)
"""For how many hours a key may stay good beside the one that replaces it."""

USUAL_OVERLAP_H: Final = 24


async def show(request: Request, viewer: Viewer, *, draft: Draft | None = None, made: MadeKey | None = None) -> Page:
    """Show a key; after it was replaced, with the new one, which is shown this once."""
    context = acting_as(request, viewer)
    key = await find(context, viewer.merchant_id, path_id(request, "key_id", noun="API key"))
    draft = draft or Draft()
    values = {
        "key": key,
        "state": state_of(key, context.now()),
        "scopes": list(Scope) if ALL in key.scopes else [each for each in Scope if each in key.scopes],
        "may_everything": ALL in key.scopes,
        "overlaps_h": OVERLAPS_H,
        "overlap_h": draft.value("overlap") or str(USUAL_OVERLAP_H),
        "draft": draft,
        "made": made,
        "made_before": MADE_BEFORE,
        "new_key": partial(new_form_key, context),
    }
    return Page("api_key.html", "api-keys", values, key_json(key), draft.status)


def _overlap(sent: Sent) -> timedelta:
    typed = sent.fields.get("overlap", "")
    if typed not in map(str, OVERLAPS_H):
        raise validation_failed(("overlap", "choose one of the list"))
    return parse(Rotation, {"overlapHours": int(typed)}).overlap_hours * HOUR


async def rotate(request: Request, sent: Sent) -> Response:
    """Replace a key, once for each form, and show the new one this once."""
    viewer, context = sent.viewer, acting_as(request, sent.viewer)
    key_id = path_id(request, "key_id", noun="API key")
    secret: str | None = None  # never among what is kept of the form

    async def make(acting: Context) -> str:
        nonlocal secret
        overlap = _overlap(sent)
        old, key, secret = await merchants.rotate_api_key(acting, viewer.merchant_id, key_id, overlap=overlap)
        key_cache(acting).forget(old.id)
        return key.id

    try:
        made_id = await done_once(request, sent, doing=make)
        made = MadeKey(await find(context, viewer.merchant_id, made_id), secret)
    except LoopError as error:
        return await _refused(request, sent, error)
    return render(await show(request, viewer, made=made), viewer)


async def revoke(request: Request, sent: Sent) -> Response:
    """Revoke a key: at once in this process, and in others when they have forgotten it."""
    viewer, key_id = sent.viewer, path_id(request, "key_id", noun="API key")

    async def end(acting: Context) -> str:
        await merchants.revoke_api_key(acting, viewer.merchant_id, key_id)
        key_cache(acting).forget(key_id)
        return f"{HERE}?notice=revoked"

    try:
        return see_other(await done_once(request, sent, doing=end))
    except LoopError as error:
        return await _refused(request, sent, error)


async def _refused(request: Request, sent: Sent, error: LoopError) -> Response:
    if error.kind is ErrorKind.NOT_FOUND:
        raise error
    return render(await show(request, sent.viewer, draft=Draft(sent.fields, error)), sent.viewer)


_ONE: Final = f"{HERE}/{{key_id}}"
routes: Final[list[Route]] = [
    *page_routes(_ONE, show),
    Route(f"{_ONE}/rotate", acts(rotate), methods=["POST"]),
    Route(f"{_ONE}/revoke", acts(revoke), methods=["POST"]),
]
