"""Viewers: who looks at the dashboard, from which cookie, and the proof that a form was sent from our own page."""

import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import quote, urlsplit

from starlette.requests import Request
from starlette.responses import Response

from loop.domain.cards import contains_card_number
from loop.domain.errors import ErrorKind, LoopError, unauthenticated
from loop.server.auth import Caller, acting
from loop.server.pages import see_other
from loop.server.request import card_number_refusal, context_of, header, read_form, refuse_unstorable, validation_failed
from loop.workflows import browser_sessions
from loop.workflows.context import Context
from loop.workflows.processor_configs import usual_mode

HOME: Final = "/dashboard"
SIGN_IN: Final = "/dashboard/sign-in"

Mode = Literal["live", "test"]
MODES: Final[tuple[Mode, ...]] = ("test", "live")
MODE_KEPT_S: Final = 365 * 86_400

_SESSION: Final = "loop_session"
_MODE: Final = "loop_mode"
_FORM_PREFIX: Final = "form"
_FORM_KEY: Final = re.compile(r"form_[0-9a-z]{26}")
_FORM_PURPOSE: Final = b"loop dashboard form"
_OWN_ADDRESS: Final = re.compile(r"/dashboard(?:/[A-Za-z0-9._/-]*)?(?:\?[A-Za-z0-9._~%&=+:@-]*)?")


@dataclass(frozen=True, slots=True)
class Viewer:
    """A merchant's person who is signed in. `csrf_token` goes into every form that they are shown."""

    merchant_id: str
    merchant_name: str
    is_test: bool
    csrf_token: str = field(repr=False)

    @property
    def mode(self) -> Mode:
        """Which payments are shown."""
        return "test" if self.is_test else "live"


def is_public_https(context: Context) -> bool:
    """Tell whether browsers reach Loop by HTTPS; only then do they take a cookie that is bound to this host."""
    return context.settings.checkout_base_url.startswith("https://")


def _cookie_name(context: Context, name: str) -> str:
    return f"__Host-{name}" if is_public_https(context) else name


def keep_cookie(context: Context, response: Response, name: str, *, value: str, max_age_s: int) -> None:
    """Have the browser keep a cookie that no script reads and no other site's form sends."""
    response.set_cookie(
        _cookie_name(context, name), value, max_age=max_age_s, path="/", secure=is_public_https(context),
        httponly=True, samesite="lax",
    )  # fmt: skip


def kept_cookie(request: Request, name: str) -> str | None:
    """Return what the browser was given to keep under a name, or None."""
    return request.cookies.get(_cookie_name(context_of(request), name)) or None


def open_session(context: Context, response: Response, refresh_token: str) -> None:
    """Sign the browser in."""
    keep_cookie(context, response, _SESSION, value=refresh_token, max_age_s=context.settings.refresh_token_ttl_s)


def close_session(context: Context, response: Response) -> None:
    """Have the browser forget who was signed in."""
    keep_cookie(context, response, _SESSION, value="", max_age_s=0)


def keep_mode(context: Context, response: Response, mode: Mode) -> None:
    """Have the browser remember whether it shows test or live payments."""
    keep_cookie(context, response, _MODE, value=mode, max_age_s=MODE_KEPT_S)


def session_token(request: Request) -> str | None:
    """Return the token in the session's cookie, or None."""
    return kept_cookie(request, _SESSION)


def _csrf_token(token: str) -> str:
    """Return the proof for one session's forms; who cannot read the cookie cannot make it."""
    return hmac.new(token.encode(), _FORM_PURPOSE, hashlib.sha256).hexdigest()


async def viewer_of(request: Request) -> Viewer | None:
    """Return who is signed in, or None."""
    token = session_token(request)
    context = context_of(request)
    merchant = None if token is None else await browser_sessions.holder(context, token)
    if merchant is None or token is None:
        return None
    mode = kept_cookie(request, _MODE)
    if mode not in MODES:
        async with context.database.reading() as reader:
            mode = await usual_mode(reader, merchant.id)
    return Viewer(merchant.id, merchant.name, mode == "test", _csrf_token(token))


def acting_as(request: Request, viewer: Viewer) -> Context:
    """Return the context in which a viewer looks and acts: the audit log hears who, and it has one mode's orders."""
    return acting(request, Caller(viewer.merchant_id, viewer.is_test))


def own_address(text: str | None) -> str:
    """Return an address of the dashboard that a sign-in may lead on to; the overview for anything else."""
    # A browser takes `/..` for the way up, and addresses above the dashboard may lead on to merchants' own sites.
    is_own = bool(text and _OWN_ADDRESS.fullmatch(text)) and not any(each in str(text) for each in ("//", "/."))
    return text if text and is_own else HOME


def sent_to_sign_in(request: Request) -> Response:
    """Send somebody who is not signed in to sign in, and from there back to the page that they asked for."""
    if request.url.path.endswith(".json"):
        raise unauthenticated("missing_session", f"Sign in at {SIGN_IN} first, in the same browser.")
    query = f"?{request.url.query}" if request.url.query else ""
    wanted = own_address(request.url.path + query) if request.method == "GET" else HOME
    return see_other(SIGN_IN if wanted == HOME else f"{SIGN_IN}?next={quote(wanted, safe='')}")


# Forms.


def _is_from_own_page(request: Request) -> bool:
    """Tell whether a browser says that its form was on a page of ours. Every browser says one of the two."""
    site = header(request, b"sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = header(request, b"origin")
    own = urlsplit(context_of(request).settings.checkout_base_url)
    return origin is not None and origin != "null" and urlsplit(origin).netloc in (header(request, b"host"), own.netloc)


async def read_own_form(request: Request) -> Mapping[str, str]:
    """Return the fields of a form that was sent from one of our own pages.

    Raises `foreign_form` (403), `raw_card_data`, and what `read_form` raises.
    """
    if not _is_from_own_page(request):
        raise LoopError(
            ErrorKind.FORBIDDEN,
            "foreign_form",
            "This form was not sent from the dashboard; open the page and try again.",
        )
    form = await read_form(request)
    for value in form.values():
        refuse_unstorable(value)
        if contains_card_number(value):
            raise card_number_refusal()
    return form


def require_proof(viewer: Viewer, form: Mapping[str, str]) -> None:
    """Refuse a form that does not carry the viewer's own token; raises `stale_form` (403)."""
    if not hmac.compare_digest(form.get("csrf", "").encode(), viewer.csrf_token.encode()):
        raise LoopError(
            ErrorKind.FORBIDDEN, "stale_form", "You signed in anew since this page was opened; load it again."
        )


def new_form_key(context: Context) -> str:
    """Return what tells one form that was shown from every other: what it asks for is done once."""
    return context.new_id(_FORM_PREFIX)


def form_key(form: Mapping[str, str]) -> str:
    """Return a form's own key, under which no request of the API is kept; raises `validation_failed`."""
    key = form.get("key", "")
    if not _FORM_KEY.fullmatch(key):
        raise validation_failed(("key", "is missing; open the page again"))
    return key


@dataclass(frozen=True, slots=True)
class Sent:
    """A form that a viewer has sent from one of our own pages."""

    viewer: Viewer
    fields: Mapping[str, str]


Action = Callable[[Request, Sent], Awaitable[Response]]
