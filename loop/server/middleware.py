"""The edge: what every request and every answer passes, in one layer of plain ASGI."""

import re
import time
from itertools import chain
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loop import metrics, traces
from loop.domain.cards import contains_card_number
from loop.domain.errors import LoopError, invalid
from loop.metrics import of
from loop.server.errors import error_response, internal_error_response, refusal_response
from loop.server.rate_limits import Limiter, headers_of
from loop.telemetry import bind, get_logger
from loop.traces import Span
from loop.workflows.context import Context

log = get_logger(__name__)

MAX_HEADERS: Final = 100
MAX_HEADER_BYTES: Final = 32_768
"""Of all names and values together."""

MAX_QUERY_BYTES: Final = 8_192
PREFLIGHT_MAX_AGE_S: Final = 600
CORRELATION_BYTES: Final = 12
"""Random bytes of a correlation id that we make, shown in hex."""

_SANE_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_ALLOWED_METHODS: Final = b"GET, POST, PUT, PATCH, DELETE"
_ALLOWED_HEADERS: Final = (
    b"Authorization, Content-Type, Idempotency-Key, X-API-Key, X-Correlation-ID, X-Loop-Mode, X-Request-ID"
)
_EXPOSED_HEADERS: Final = (
    b"Idempotent-Replayed, Location, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, Retry-After, "
    b"X-Correlation-ID"
)
_KNOWN_METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_HSTS: Final = (b"strict-transport-security", b"max-age=31536000; includeSubDomains")

_Header = tuple[bytes, bytes]

ALWAYS: Final[tuple[_Header, ...]] = ((b"x-content-type-options", b"nosniff"),)
UNLESS_SET: Final[tuple[_Header, ...]] = (
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""What an answer gets when its handler says nothing else."""


class Edge:
    """Gives each request a correlation id, and each answer its headers, its log line, and a body if it failed."""

    def __init__(self, app: ASGIApp, context: Context, limiter: Limiter) -> None:
        self._app = app
        self.context = context
        self.limiter = limiter
        self._random_bytes = context.random_bytes
        origins = context.settings.cors_origins
        self._is_any_origin = "*" in origins
        self._origins = frozenset(origin.encode() for origin in origins)
        self._is_traceparent_trusted = context.settings.is_traceparent_trusted
        self._is_always_https = context.settings.checkout_base_url.startswith("https://")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["app"] = self  # so that the router raises what it refuses, and handlers find the context and the limiter
        started = time.perf_counter()
        correlation, origin, is_preflight, caller = self._read(scope)
        status = 0

        async def send_completed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._complete(scope, message["headers"], correlation, origin)
            await send(message)

        with (
            bind(correlation_id=correlation.decode()),
            traces.request(scope["method"], caller, is_trusted=self._is_traceparent_trusted) as span,
        ):
            try:
                if is_preflight:
                    await self._answer_preflight(send_completed, origin)
                else:
                    _refuse_oversize(scope)
                    await self._app(scope, receive, send_completed)
            except ClientDisconnect:
                status = 499  # nobody is left to answer; the number is what proxies log for it
            except LoopError as error:
                await error_response(error, correlation.decode())(scope, receive, send_completed)
            except HTTPException as error:
                await refusal_response(error, correlation.decode())(scope, receive, send_completed)
            except Exception:
                log.exception("http.failed", method=scope["method"], path=_template(scope))
                if status:  # half an answer is out: closing the connection is all that is left
                    raise
                await internal_error_response(correlation.decode())(scope, receive, send_completed)
            finally:
                _tell(scope, status, time.perf_counter() - started, correlation, span)

    def _read(self, scope: Scope) -> tuple[bytes, bytes | None, bool, str | None]:
        """Return the correlation id, the calling page's origin if it may call, whether it asks, and the traceparent."""
        correlation = request_id = origin = caller = None
        has_asked = False
        for name, value in scope["headers"]:
            if name == b"x-correlation-id":
                correlation = value
            elif name == b"x-request-id":
                request_id = value
            elif name == b"origin":
                origin = value
            elif name == b"access-control-request-method":
                has_asked = True
            elif name == b"traceparent":
                caller = value.decode("latin-1")
        is_preflight = has_asked and origin is not None and scope["method"] == "OPTIONS"
        if correlation is None or not _is_sane(correlation):
            correlation = request_id
        if correlation is None or not _is_sane(correlation):
            correlation = self._random_bytes(CORRELATION_BYTES).hex().encode()
        return correlation, self._allowed(origin), is_preflight, caller

    def _allowed(self, origin: bytes | None) -> bytes | None:
        if origin is not None and self._is_any_origin:
            return b"*"
        return origin if origin in self._origins else None

    def _complete(self, scope: Scope, headers: list[_Header], correlation: bytes, origin: bytes | None) -> None:
        names = {name for name, _ in headers}
        headers.extend(header for header in UNLESS_SET if header[0] not in names)
        headers.extend(ALWAYS)
        if self._is_always_https or scope.get("scheme") == "https":
            headers.append(_HSTS)
        headers.extend(headers_of(scope))
        headers.append((b"x-correlation-id", correlation))
        if self._origins and not self._is_any_origin:
            headers.append((b"vary", b"Origin"))
        if origin is not None:
            headers.append((b"access-control-allow-origin", origin))
            headers.append((b"access-control-expose-headers", _EXPOSED_HEADERS))

    async def _answer_preflight(self, send: Send, origin: bytes | None) -> None:
        headers: list[_Header] = [(b"content-length", b"0")]
        if origin is not None:
            headers += [
                (b"access-control-allow-methods", _ALLOWED_METHODS),
                (b"access-control-allow-headers", _ALLOWED_HEADERS),
                (b"access-control-max-age", str(PREFLIGHT_MAX_AGE_S).encode()),
            ]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def _is_sane(correlation: bytes) -> bool:
    """Tell whether a correlation id may be kept and answered: it is short and plain, and no card number."""
    return _SANE_ID.fullmatch(correlation) is not None and not contains_card_number(correlation.decode())


def _refuse_oversize(scope: Scope) -> None:
    if len(scope["headers"]) > MAX_HEADERS:
        raise invalid("too_many_headers", f"The request has more than {MAX_HEADERS} headers.")
    if sum(map(len, chain.from_iterable(scope["headers"]))) > MAX_HEADER_BYTES:
        raise invalid("headers_too_large", f"The headers have more than {MAX_HEADER_BYTES} bytes.")
    if len(scope["query_string"]) > MAX_QUERY_BYTES:
        raise invalid("query_too_long", f"The query is longer than {MAX_QUERY_BYTES} bytes.")


def _template(scope: Scope) -> str:
    """Return the route's path, with its parameters by name; for an unknown address the path as it came."""
    route = scope.get("route")
    path: str = scope["path"] if route is None else route.path
    return path


def _tell(scope: Scope, status: int, took_s: float, correlation: bytes, span: Span | None) -> None:
    """Tell the log, the metrics and the trace of a request that has ended."""
    path, method = _template(scope), scope["method"]
    log.info("http.request", method=method, path=path, status=status, ms=round(took_s * 1000, 2))
    # Out of a bounded number both: anybody can make up others.
    route = path if "route" in scope else "unmatched"
    if method not in _KNOWN_METHODS:
        method = "OTHER"
    of(metrics.HTTP, method, route, str(status)).observe(took_s)
    if span is None:
        return
    span.rename(f"{method} {route}")
    span.note(
        {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "loop.correlation_id": correlation.decode(),
        }
    )
