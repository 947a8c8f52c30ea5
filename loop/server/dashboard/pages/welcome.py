"""Welcome: the page behind the link that a Loop without merchants prints, where the first one is made."""

from typing import Final
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loop.domain.errors import LoopError
from loop.server.auth import acting
from loop.server.dashboard.drafts import Draft
from loop.server.dashboard.frames import Page, problem_page, render
from loop.server.dashboard.viewers import HOME, open_session, read_own_form
from loop.server.pages import see_other
from loop.server.request import context_of, header, query_of
from loop.workflows import first_run
from loop.workflows.context import Context
from loop.workflows.merchants import NewMerchant

WELCOME: Final = "/dashboard/welcome"
MAX_TYPED_CHARACTERS: Final = 1_024
_KEPT: Final = ("name", "email")


def address_with(context: Context, token: str) -> str:
    """Return the link to print."""
    return f"{context.settings.checkout_base_url}{WELCOME}?{urlencode({'token': token})}"


async def link_of(context: Context) -> str | None:
    """Return the link with which the first merchant is made; None when there is one."""
    return address_with(context, first_run.make_token(context)) if await first_run.is_open(context) else None


async def show(request: Request) -> Response:
    """Ask for the shop's name and who signs in; without a good link say where to get one."""
    try:
        token = query_of(request).get("token", "")
        await first_run.require_open(context_of(request), token)
    except LoopError as error:
        return render(problem_page(error), None)
    return _form(token, Draft())


def _form(token: str, draft: Draft) -> Response:
    return render(Page("welcome.html", "", {"token": token, "draft": draft}, status=draft.status), None)


async def make(request: Request) -> Response:
    """Make the first merchant, sign the browser in and go on to the first steps."""
    context = acting(request, None)
    token, typed = "", dict.fromkeys(("name", "email", "password"), "")
    try:
        form = await read_own_form(request)
        token = form.get("token", "")
        typed = {name: form.get(name, "")[:MAX_TYPED_CHARACTERS] for name in typed}
        new = NewMerchant(typed["name"].strip(), typed["email"].strip(), typed["password"])
        signed_in = await first_run.make_merchant(context, token, new, user_agent=header(request, b"user-agent"))
    except LoopError as error:
        if not error.details:  # about the link, not about what was typed
            return render(problem_page(error), None)
        return _form(token, Draft({name: typed[name] for name in _KEPT}, error))
    response = see_other(HOME)
    open_session(context, response, signed_in.refresh_token)
    return response


routes: Final = [Route(WELCOME, show, methods=["GET"]), Route(WELCOME, make, methods=["POST"])]
