"""API keys: the keys of a merchant's programs, and the form for another one, which is shown this once."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loop.domain.errors import LoopError, not_found
from loop.domain.scopes import ALL, Scope
from loop.server.api.api_keys import NewKey, key_json
from loop.server.dashboard.drafts import Draft
from loop.server.dashboard.frames import Page, acts, page_routes, render
from loop.server.dashboard.keyed_forms import done_once
from loop.server.dashboard.viewers import Sent, Viewer, acting_as, new_form_key
from loop.server.request import parse, query_of, validation_failed
from loop.storage.merchants import ApiKey
from loop.workflows import merchants
from loop.workflows.context import Context
from loop.workflows.merchants import NewApiKey

HERE: Final = "/dashboard/api-keys"
NEW: Final = f"{HERE}/new"
ENDING: Final = timedelta(days=7)
"""How long before its end a key is said to end soon."""

LIVES_DAYS: Final = (30, 90, 365)
EVERYTHING: Final = "all"
NOTICES: Final = {"revoked": "The key was revoked: whoever still uses it is refused."}
MADE_BEFORE: Final = "This form has made its key already, and a key is shown only once. Rotate it if you lack it."


@dataclass(frozen=True, slots=True)
class MadeKey:
    """A key that was just made; `secret` is None for who sends the form of one again."""

    key: ApiKey
    secret: str | None


def state_of(key: ApiKey, now: datetime) -> str:
    """Return how a key stands: one of `words.KEYS`."""
    if key.expires_at is None or key.expires_at - now > ENDING:
        return "good"
    return "ending" if key.expires_at > now else "expired"


def field_of(scope: str) -> str:
    """Return the name of a scope's checkbox."""
    return f"scope.{scope}"


async def show(request: Request, viewer: Viewer) -> Page:
    """Show the keys that are not revoked, of both modes, newest first."""
    context = acting_as(request, viewer)
    found = await merchants.list_api_keys(context, viewer.merchant_id)
    values = {
        "keys": [(each, state_of(each, context.now())) for each in found],
        "notice": NOTICES.get(query_of(request).get("notice", "")),
    }
    return Page("api_keys.html", "api-keys", values, {"data": [key_json(each) for each in found]})


async def show_new(
    request: Request, viewer: Viewer, *, draft: Draft | None = None, made: MadeKey | None = None
) -> Page:
    """Show the form for a new key, one that was refused, or the key that was made."""
    draft = draft or Draft({"mode": viewer.mode, "may": EVERYTHING})
    values = {
        "draft": draft,
        "made": made,
        "scopes": list(Scope),
        "lives_days": LIVES_DAYS,
        "made_before": MADE_BEFORE,
        "key": new_form_key(acting_as(request, viewer)),
    }
    return Page("api_key_new.html", "api-keys", values, {"scopes": [ALL, *Scope]}, draft.status)


def _typed(fields: Mapping[str, str], now: datetime) -> NewApiKey:
    name, life = (fields.get(each, "").strip() for each in ("name", "life"))
    if not name:
        raise validation_failed(("name", "is how people will know the key; type one, such as the program that has it"))
    if life and life not in map(str, LIVES_DAYS):
        raise validation_failed(("life", "choose one of the list"))
    scopes = [ALL] if fields.get("may") == EVERYTHING else [each for each in Scope if fields.get(field_of(each))]
    if not scopes:
        raise validation_failed(("scopes", "choose at least one, or everything"))
    mode = fields.get("mode")
    typed = parse(NewKey, {"name": name, "mode": mode, "scopes": [str(each) for each in scopes]})
    return NewApiKey(typed.name, now + timedelta(days=int(life)) if life else None, typed.mode, tuple(typed.scopes))


async def create(request: Request, sent: Sent) -> Response:
    """Make a key, once for each form, and show it this once."""
    viewer, context = sent.viewer, acting_as(request, sent.viewer)
    secret: str | None = None  # never among what is kept of the form

    async def make(acting: Context) -> str:
        nonlocal secret
        new = _typed(sent.fields, acting.now())
        key, secret = await merchants.create_api_key(acting, viewer.merchant_id, new)
        return key.id

    try:
        key_id = await done_once(request, sent, doing=make)
        key = await find(context, viewer.merchant_id, key_id)
    except LoopError as error:
        return render(await show_new(request, viewer, draft=Draft(sent.fields, error)), viewer)
    return render(await show_new(request, viewer, made=MadeKey(key, secret)), viewer)


async def find(context: Context, merchant_id: str, key_id: str) -> ApiKey:
    """Return a key that is not revoked; raises `not_found`."""
    found = await merchants.list_api_keys(context, merchant_id)
    key = next((each for each in found if each.id == key_id), None)
    if key is None:
        raise not_found("API key")
    return key


routes: Final[list[Route]] = [
    *page_routes(HERE, show),
    *page_routes(NEW, show_new),
    Route(NEW, acts(create), methods=["POST"]),
]
