"""Live: tells an open page when something of its merchant's changes, as server-sent events."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from loop.domain.errors import unauthenticated
from loop.server.dashboard.listeners import listeners_of
from loop.server.dashboard.viewers import SIGN_IN, Viewer, session_token, viewer_of
from loop.server.request import context_of
from loop.workflows import browser_sessions

HEARTBEAT_S: Final = 15.0
"""How often a page hears that nothing has happened; whoever has signed out meanwhile hears nothing more."""

OPEN_MAX_S: Final = 900.0
"""How long one answer goes on; browsers ask anew by themselves."""

ASK_ANEW_AFTER_MS: Final = 5_000
_HEADERS: Final = {"X-Accel-Buffering": "no"}  # or nginx would hold each line back


async def listen(request: Request) -> Response:
    """Answer with what changes, for as long as the page is open and its person signed in."""
    viewer = await viewer_of(request)
    if viewer is None:
        raise unauthenticated("missing_session", f"Sign in at {SIGN_IN} first, in the same browser.")
    listeners_of(context_of(request)).require_room(viewer.merchant_id)
    return StreamingResponse(_told(request, viewer), media_type="text/event-stream", headers=_HEADERS)


async def _told(request: Request, viewer: Viewer) -> AsyncIterator[bytes]:
    context, token = context_of(request), session_token(request) or ""
    clock = asyncio.get_running_loop().time
    ends = clock() + OPEN_MAX_S
    with listeners_of(context).listening(context, viewer.merchant_id, is_test=viewer.is_test) as listener:
        yield b"retry: %d\n\n" % ASK_ANEW_AFTER_MS
        while clock() < ends:
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    orders = await listener.news()
            except TimeoutError:
                if await browser_sessions.holder(context, token) is None:
                    return
                yield b": nothing new\n\n"
                continue
            if listener.is_over:
                return
            yield b"event: change\ndata: %b\n\n" % orjson.dumps({"orders": orders})


routes: Final = [Route("/dashboard/live", listen, methods=["GET"])]
