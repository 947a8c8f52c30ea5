"""Settings: the shop's name, what becomes of money that comes too late, the password, and where one is signed in."""

from collections.abc import Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loop.domain.errors import LoopError
from loop.domain.failover import LateSuccess
from loop.server.dashboard.drafts import Draft
from loop.server.dashboard.frames import Page, acts, page_routes, render
from loop.server.dashboard.viewers import Sent, Viewer, acting_as, open_session, session_token
from loop.server.dashboard_shapes import merchant_json
from loop.server.pages import see_other
from loop.server.request import header, path_id, query_of, time_text, validation_failed
from loop.storage.sessions import SignInSession
from loop.workflows import browser_sessions, merchants, sessions
from loop.workflows.context import Context
from loop.workflows.merchants import ProfileChange

HERE: Final = "/dashboard/settings"
MAX_TYPED_CHARACTERS: Final = 1_024
NOTICES: Final = {
    "saved": "The settings were saved.",
    "password": "The password was changed, and every other session ended.",
    "ended": "The session was ended.",
    "others": "You are signed in here only.",
}
POLICIES: Final[Mapping[str, tuple[str, str]]] = {
    LateSuccess.ACCEPT: ("Take it", "The order is paid after all. Ship it, or refund it yourself."),
    LateSuccess.REFUND: ("Give it back", "It is refunded at once, or released if it was only held."),
}


async def show(
    request: Request, viewer: Viewer, *, profile_draft: Draft | None = None, password_draft: Draft | None = None
) -> Page:
    """Show the settings; after a form that was refused, with what was typed and what was wrong."""
    context = acting_as(request, viewer)
    profile = await merchants.get_profile(context, viewer.merchant_id)
    current_id = await _current_id(context, request)
    live = await sessions.list_live(context, viewer.merchant_id)
    merchant = profile.merchant
    refused = profile_draft or password_draft
    values = {
        "merchant": merchant,
        "draft": profile_draft or Draft({"name": merchant.name, "lateSuccess": merchant.late_success}),
        "password_draft": password_draft or Draft(),
        "policies": POLICIES,
        "sessions": sorted(((each, each.id == current_id) for each in live), key=lambda pair: not pair[1]),
        "notice": NOTICES.get(query_of(request).get("notice", "")) if refused is None else None,
    }
    json = {"merchant": merchant_json(profile), "sessions": [_session_json(each, current_id) for each in live]}
    return Page("settings.html", "settings", values, json, 200 if refused is None else refused.status)


async def _current_id(context: Context, request: Request) -> str | None:
    return await browser_sessions.session_id(context, session_token(request) or "")


def _session_json(each: SignInSession, current_id: str | None) -> dict[str, object]:
    return {
        "id": each.id,
        "current": each.id == current_id,
        "address": each.address,
        "userAgent": each.user_agent,
        "createdAt": time_text(each.created_at),
        "lastUsedAt": time_text(each.last_used_at),
        "expiresAt": time_text(each.expires_at),
    }


async def save(request: Request, sent: Sent) -> Response:
    """Save the shop's name and its policy."""
    viewer, policy = sent.viewer, sent.fields.get("lateSuccess", "")
    try:
        if policy not in POLICIES:
            raise validation_failed(("lateSuccess", f"must be one of {', '.join(POLICIES)}"))
        change = ProfileChange(name=sent.fields.get("name", ""), late_success=LateSuccess(policy))
        await merchants.update_profile(acting_as(request, viewer), viewer.merchant_id, change)
    except LoopError as error:
        return render(await show(request, viewer, profile_draft=Draft(sent.fields, error)), viewer)
    return see_other(f"{HERE}?notice=saved")


async def change_password(request: Request, sent: Sent) -> Response:
    """Change the password, end all sessions, and sign this browser in anew."""
    viewer, context = sent.viewer, acting_as(request, sent.viewer)
    current, new, again = (sent.fields.get(name, "")[:MAX_TYPED_CHARACTERS] for name in ("current", "new", "again"))
    try:
        if new != again:
            raise validation_failed(("again", "is not the same as the new password"))
        signed_in = await merchants.change_password(
            context, viewer.merchant_id, current=current, new=new, user_agent=header(request, b"user-agent")
        )
    except LoopError as error:
        return render(await show(request, viewer, password_draft=Draft({}, error)), viewer)
    response = see_other(f"{HERE}?notice=password")
    open_session(context, response, signed_in.refresh_token)
    return response


async def end(request: Request, sent: Sent) -> Response:
    """Sign out somewhere else."""
    session_id = path_id(request, "session_id", noun="session")
    await sessions.end(acting_as(request, sent.viewer), sent.viewer.merchant_id, session_id)
    return see_other(f"{HERE}?notice=ended")


async def end_others(request: Request, sent: Sent) -> Response:
    """Sign out everywhere else."""
    context = acting_as(request, sent.viewer)
    kept_id = await _current_id(context, request) or ""
    await sessions.end_others(context, sent.viewer.merchant_id, kept_id=kept_id)
    return see_other(f"{HERE}?notice=others")


routes: Final[list[Route]] = [
    *page_routes(HERE, show),
    Route(HERE, acts(save), methods=["POST"]),
    Route(f"{HERE}/password", acts(change_password), methods=["POST"]),
    Route(f"{HERE}/sessions/others/end", acts(end_others), methods=["POST"]),
    Route(f"{HERE}/sessions/{{session_id}}/end", acts(end), methods=["POST"]),
]
