"""Signing in and out of the dashboard, and switching between test and live payments."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loop.domain.errors import LoopError
from loop.server.dashboard.frames import Page, acts, problem_page, render
from loop.server.dashboard.viewers import (
    MODES,
    SIGN_IN,
    Sent,
    close_session,
    keep_mode,
    open_session,
    own_address,
    read_own_form,
    session_token,
    viewer_of,
)
from loop.server.errors import STATUS_OF
from loop.server.pages import see_other
from loop.server.request import client_address, context_of, header, query_of, validation_failed
from loop.workflows import merchants

MAX_TYPED_CHARACTERS: Final = 1_024


def _page(wanted: str, *, email: str = "", problem: LoopError | None = None) -> Page:
    status = 200 if problem is None else STATUS_OF[problem.kind]
    return Page("sign_in.html", "", {"wanted": wanted, "email": email, "problem": problem}, status=status)


async def show(request: Request) -> Response:
    """Ask who it is; whoever is signed in goes on at once."""
    try:
        wanted = own_address(query_of(request).get("next"))
    except LoopError as error:
        return render(problem_page(error), None)
    return render(_page(wanted), None) if await viewer_of(request) is None else see_other(wanted)


async def sign_in(request: Request) -> Response:
    """Sign the browser in."""
    context = context_of(request)
    email, wanted = "", own_address(None)
    try:
        form = await read_own_form(request)
        email, password = (form.get(name, "")[:MAX_TYPED_CHARACTERS] for name in ("email", "password"))
        wanted = own_address(form.get("next"))
        address = client_address(request)
        signed_in = await merchants.login(
            context, email=email, password=password, address=address, user_agent=header(request, b"user-agent")
        )
    except LoopError as error:
        response = render(_page(wanted, email=email, problem=error), None)
        if error.retry_after_s is not None:
            response.headers["Retry-After"] = str(error.retry_after_s)
        return response
    response = see_other(wanted)
    open_session(context, response, signed_in.refresh_token)
    return response


async def sign_out(request: Request, _sent: Sent) -> Response:
    """End the session, here and for whoever else holds its token."""
    context = context_of(request)
    await merchants.logout(context, session_token(request) or "")
    response = see_other(SIGN_IN)
    close_session(context, response)
    return response


async def switch_mode(request: Request, sent: Sent) -> Response:
    """Show test or live payments from now on."""
    mode = next((each for each in MODES if each == sent.fields.get("mode")), None)
    if mode is None:
        raise validation_failed(("mode", f"must be one of {', '.join(MODES)}"))
    response = see_other(own_address(sent.fields.get("next")))
    keep_mode(context_of(request), response, mode)
    return response


routes: Final = [
    Route(SIGN_IN, show, methods=["GET"]),
    Route(SIGN_IN, sign_in, methods=["POST"]),
    Route("/dashboard/sign-out", acts(sign_out), methods=["POST"]),
    Route("/dashboard/mode", acts(switch_mode), methods=["POST"]),
]
