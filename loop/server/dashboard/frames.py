"""Frames: what every page of the dashboard has around it, how it answers as JSON, and how it tells of errors."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import wraps
from pathlib import Path
from typing import Final

import orjson
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from loop.domain.errors import LoopError
from loop.server.dashboard import words
from loop.server.dashboard.amounts import digits, money
from loop.server.dashboard.assets import address_of
from loop.server.dashboard.navigation import NAVIGATION
from loop.server.dashboard.viewers import (
    HOME,
    Action,
    Sent,
    Viewer,
    read_own_form,
    require_proof,
    sent_to_sign_in,
    viewer_of,
)
from loop.server.errors import STATUS_OF
from loop.server.request import json_response, time_text
from loop.telemetry import correlation_id, get_logger

log = get_logger(__name__)

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
"""What browsers hold every page to: nothing inline, nothing from elsewhere."""

_HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    # A form's `Origin` is empty under `no-referrer`, and it is what tells our own forms from foreign ones.
    "Referrer-Policy": "same-origin",
}
_TIME: Final = Markup('<time datetime="{}" data-shown="{}">{}</time>')
_CLOCK_FORMS: Final[Mapping[str, str]] = {
    "full": "%-d %b %Y, %H:%M UTC",
    "brief": "%-d %b, %H:%M UTC",
    "step": "%-d %b, %H:%M:%S UTC",
    "day": "%-d %b %Y",
}


def _shown_time(moment: datetime, form: str = "full") -> Markup:
    """Return a time in UTC, for the script to show in the viewer's own zone."""
    return _TIME.format(time_text(moment), form, moment.strftime(_CLOCK_FORMS[form]))


def _shown_day(day: date) -> str:
    return day.strftime("%-d %b %Y")


def _readable_json(content: object) -> str:
    return orjson.dumps(content, option=orjson.OPT_INDENT_2).decode()


def _embedded_json(content: object) -> Markup:
    """Return JSON that no text in it can end the element around it."""
    return Markup(orjson.dumps(content).decode().replace("<", "\\u003c"))  # noqa: S704 - holds no markup any more


_TEMPLATES: Final = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    auto_reload=False,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.globals.update(asset=address_of, navigation=NAVIGATION, words=words, home=HOME)
_TEMPLATES.filters.update(
    digits=digits,
    money=money,
    when=_shown_time,
    day=_shown_day,
    in_words=words.in_words,
    readable_json=_readable_json,
    embedded_json=_embedded_json,
)


@dataclass(frozen=True, slots=True)
class Page:
    """A page: the template with its values, and the same as JSON; `place` is its name in the navigation."""

    template: str
    place: str
    values: Mapping[str, object] = field(default_factory=dict)
    json: object = None
    status: int = 200


Shower = Callable[[Request, Viewer], Awaitable[Page]]
Handler = Callable[[Request], Awaitable[Response]]


def render(page: Page, viewer: Viewer | None) -> Response:
    """Return a page as HTML; without a viewer it has no navigation."""
    text = _TEMPLATES.get_template(page.template).render({**page.values, "viewer": viewer, "place": page.place})
    return Response(text, page.status, headers=_HEADERS, media_type="text/html")


def problem_page(error: LoopError) -> Page:
    """Return the page that says what is wrong and what to do."""
    return Page("problem.html", "", {"problem": error}, status=STATUS_OF[error.kind])


def _failure_page() -> Page:
    """Return the page for what should not have happened, by whose number the log says what it was."""
    return Page("failure.html", "", {"correlation_id": correlation_id()}, status=500)


def shows(shower: Shower) -> Handler:
    """Answer a page as HTML to who is signed in."""

    @wraps(shower)
    async def answer(request: Request) -> Response:
        viewer = None
        try:
            viewer = await viewer_of(request)
            if viewer is None:
                return sent_to_sign_in(request)
            return render(await shower(request, viewer), viewer)
        except LoopError as error:
            return render(problem_page(error), viewer)
        except Exception:
            log.exception("http.failed", method=request.method, path=request.scope["route"].path)
            return render(_failure_page(), viewer)

    return answer


def _tells(shower: Shower) -> Handler:
    """Answer a page as JSON to who is signed in."""

    @wraps(shower)
    async def answer(request: Request) -> Response:
        viewer = await viewer_of(request)
        if viewer is None:
            return sent_to_sign_in(request)
        page = await shower(request, viewer)
        return json_response(page.json, page.status)

    return answer


def acts(action: Action) -> Handler:
    """Do what a form asks for, once it is certain that the viewer has sent it from our own page."""

    @wraps(action)
    async def answer(request: Request) -> Response:
        viewer = None
        try:
            viewer = await viewer_of(request)
            form = await read_own_form(request)
            if viewer is None:
                return sent_to_sign_in(request)
            require_proof(viewer, form)
            return await action(request, Sent(viewer, form))
        except LoopError as error:
            return render(problem_page(error), viewer)
        except ClientDisconnect:  # nobody is left to answer
            raise
        except Exception:
            log.exception("http.failed", method=request.method, path=request.scope["route"].path)
            return render(_failure_page(), viewer)

    return answer


def page_routes(path: str, shower: Shower) -> list[Route]:
    """Return the routes of a page: as JSON under `.json`, and as HTML."""
    return [
        Route(f"{path}.json", _tells(shower), methods=["GET"]),
        Route(path, shows(shower), methods=["GET"]),
    ]
