"""Pages for customers' browsers: templates, the strict policies they are sent with, and errors people can read."""

import hashlib
import re
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from loop.domain.errors import ErrorKind, LoopError, not_found
from loop.server.errors import STATUS_OF
from loop.server.languages import Language, language_of, languages

_HERE: Final = Path(__file__).parent
_TYPES: Final = {".css": "text/css", ".js": "text/javascript"}
_ASSETS: Final = {path.name: path.read_bytes() for path in sorted((_HERE / "static").iterdir())}
_HASH_CHARACTERS: Final = 12
_HOST: Final = re.compile(r"[A-Za-z0-9.:\[\]-]+")
_WITHOUT: Final = (
    "accelerometer=(), camera=(), display-capture=(), geolocation=(), gyroscope=(), magnetometer=(), microphone=(), "
    "midi=(), usb=()"
)
ASSET_KEPT_S: Final = 3_600

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Policy:
    """What a page may reach besides this server: browsers refuse everything else.

    `form_targets` are addresses that its forms may lead on to, redirects included; the others are origins. `payers`
    are the origins whose frames may offer a wallet of the browser's. With `is_scripted` the page runs our own scripts.
    """

    is_scripted: bool = False
    form_targets: Collection[str] = ()
    scripts: tuple[str, ...] = ()
    frames: tuple[str, ...] = ()
    connections: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    payers: tuple[str, ...] = ()

    def headers(self) -> dict[str, str]:
        """Return the page's headers. Where a processor's script runs, other sites learn our origin but no address."""
        own = ("'self'",) if self.is_scripted else ()
        targets = sorted({origin for origin in map(_origin, self.form_targets) if origin})
        directives = {
            "default-src": ("'none'",),
            "style-src": ("'self'",),
            "script-src": (*own, *self.scripts),
            "connect-src": (*own, *self.connections),
            "frame-src": self.frames,
            "img-src": self.images,
            "base-uri": ("'none'",),
            "frame-ancestors": ("'none'",),
            "form-action": ("'self'", *targets),
        }
        payment = " ".join(("self", *(f'"{origin}"' for origin in self.payers))) if self.payers else ""
        return {
            "Content-Security-Policy": "; ".join(
                f"{name} {' '.join(sources)}" for name, sources in directives.items() if sources
            ),
            "Permissions-Policy": f"{_WITHOUT}, payment=({payment})",
            "Referrer-Policy": "strict-origin" if self.scripts else "no-referrer",
        }


def render(
    template: str, language: Language, *, status: int = 200, policy: Policy | None = None, **values: object
) -> Response:
    """Return a page in a language, with the policy that it is held to."""
    policy = policy or Policy()
    text = _TEMPLATES.get_template(template).render(
        values, language=language, languages=languages(), _=language.say, is_scripted=policy.is_scripted
    )
    headers = {**policy.headers(), "Content-Language": language.code, "Vary": "Accept-Language"}
    return Response(text, status, headers=headers, media_type="text/html")


def _origin(url: str) -> str:
    """Return an address's origin as a policy may name it, or nothing where it could end the policy's directive."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" if _HOST.fullmatch(parts.netloc) else ""


def see_other(url: str) -> Response:
    """Send the browser to another address, with GET."""
    return RedirectResponse(url, 303)


FOR_CUSTOMERS: Final = {
    ErrorKind.NOT_FOUND: "There is no such page, or it is no longer there.",
    ErrorKind.CONFLICT: "Something else is going on with this payment. Please try again in a moment.",
    ErrorKind.RATE_LIMITED: "Too many people are doing this at once. Please try again in a moment.",
    ErrorKind.UNAVAILABLE: "This cannot be done at the moment. Please try again in a moment.",
}
OTHERWISE: Final = "This is not possible here."


def page(handler: Handler) -> Handler:
    """Answer an expected error of a page's handler as a page, in words for customers: messages are for merchants."""

    @wraps(handler)
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except LoopError as error:
            return problem(request, error)

    return answer


def problem(request: Request, error: LoopError) -> Response:
    """Return an expected error as a page for customers."""
    language = language_of(request)
    text = language.say(FOR_CUSTOMERS.get(error.kind, OTHERWISE))
    title = language.say("Not possible")
    response = render("message.html", language, status=STATUS_OF[error.kind], title=title, text=text)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    return response


def address_of(name: str) -> str:
    """Return where browsers find a file of `static/`; the address changes with what is in the file."""
    return f"/assets/{name}?v={hashlib.sha256(_ASSETS[name]).hexdigest()[:_HASH_CHARACTERS]}"


async def _asset(request: Request) -> Response:
    name = request.path_params["name"]
    content = _ASSETS.get(name)
    if content is None:
        raise not_found("file")
    headers = {"Cache-Control": f"public, max-age={ASSET_KEPT_S}"}
    return Response(content, media_type=_TYPES[Path(name).suffix], headers=headers)


_TEMPLATES: Final = Environment(
    loader=FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=StrictUndefined, auto_reload=False
)
_TEMPLATES.globals["address_of"] = address_of

routes = [Route("/assets/{name}", _asset, methods=["GET"])]
