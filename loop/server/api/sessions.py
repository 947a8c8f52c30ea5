"""Sessions: where the merchant's person is signed in, and signing out there."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from loop.server.auth import Caller, acting, authenticate
from loop.server.operations import Operation, describes
from loop.server.request import context_of, json_response, path_id, time_text
from loop.storage.sessions import SignInSession
from loop.workflows import sessions


class SignInSessionJson(TypedDict):
    """Where somebody is signed in; `current` is the session that asks."""

    id: str
    current: bool
    address: str | None
    userAgent: str | None
    createdAt: str
    lastUsedAt: str
    expiresAt: str


@describes(Operation("listSessions", answer=list[SignInSessionJson]))
async def list_sessions(request: Request) -> Response:
    """Answer the sessions that are not over, the one used last first."""
    caller = await authenticate(request)
    found = await sessions.list_live(context_of(request), caller.merchant_id)
    return json_response([_session_json(caller, session) for session in found])


@describes(Operation("endSession", status=204))
async def end(request: Request) -> Response:
    """End a session: its refresh token and its access tokens count no more."""
    caller = await authenticate(request)
    session_id = path_id(request, "session_id", noun="session")
    await sessions.end(acting(request, caller), caller.merchant_id, session_id)
    return Response(status_code=204)


def _session_json(caller: Caller, session: SignInSession) -> SignInSessionJson:
    return {
        "id": session.id,
        "current": session.id == caller.session_id,
        "address": session.address,
        "userAgent": session.user_agent,
        "createdAt": time_text(session.created_at),
        "lastUsedAt": time_text(session.last_used_at),
        "expiresAt": time_text(session.expires_at),
    }


routes: Final = [
    Route("/api/sessions", list_sessions, methods=["GET"]),
    Route("/api/sessions/{session_id}", end, methods=["DELETE"]),
]
