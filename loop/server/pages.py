"""Pages for customers' browsers: templates, their strict policy, and errors that people can read."""

import re
from collections.abc import Awaitable, Callable, Collection
from functools import wraps
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from loop.domain.errors import LoopError
from loop.server.errors import STATUS_OF

_HERE: Final = Path(__file__).parent
_STYLE: Final = (_HERE / "static" / "pages.css").read_bytes()
_TEMPLATES: Final = Environment(
    loader=FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=StrictUndefined, auto_reload=False
)
_POLICY: Final = (
    "default-src 'none'; style-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'{targets}"
)
_HOST: Final = re.compile(r"[A-Za-z0-9.:\[\]-]+")
STYLE_KEPT_S: Final = 3_600

Handler = Callable[[Request], Awaitable[Response]]


def render(template: str, *, status: int = 200, form_targets: Collection[str] = (), **values: object) -> Response:
    """Return a page. `form_targets` are addresses that its form may lead on to, which browsers hold it to."""
    targets = "".join(sorted({f" {origin}" for origin in map(_origin, form_targets) if origin}))
    return Response(
        _TEMPLATES.get_template(template).render(values),
        status,
        headers={"Content-Security-Policy": _POLICY.format(targets=targets)},
        media_type="text/html",
    )


def _origin(url: str) -> str:
    """Return an address's origin as a policy may name it, or nothing where it could end the policy's directive."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" if _HOST.fullmatch(parts.netloc) else ""


def see_other(url: str) -> Response:
    """Send the browser to another address, with GET."""
    return RedirectResponse(url, 303)


def page(handler: Handler) -> Handler:
    """Answer an expected error of a page's handler as a page, not as JSON."""

    @wraps(handler)
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except LoopError as error:
            return render("message.html", status=STATUS_OF[error.kind], title="Not possible", text=error.message)

    return answer


async def _style(_request: Request) -> Response:
    return Response(_STYLE, media_type="text/css", headers={"Cache-Control": f"public, max-age={STYLE_KEPT_S}"})


routes = [Route("/assets/pages.css", _style, methods=["GET"])]
