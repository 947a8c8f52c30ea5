"""Rate limits over HTTP: which limit a route counts against, who is counted, and what the caller hears of it."""

import time
from collections.abc import Callable, Collection, Mapping
from enum import StrEnum
from typing import Final, Protocol

from starlette.requests import Request
from starlette.types import Scope as RequestScope

from loop.config import Settings
from loop.domain.errors import ErrorKind, LoopError
from loop.domain.rate_limits import Buckets, Taken
from loop.domain.scopes import Scope
from loop.domain.throttling import address_key
from loop.server.request import client_address
from loop.server.scopes import SCOPES


class RouteClass(StrEnum):
    """Routes that one limit counts together."""

    READ = "read"
    WRITE = "write"
    PAY = "pay"
    """What moves money, or asks a processor to."""
    SIGN_IN = "sign_in"
    WEBHOOK = "webhook"
    """What processors send."""
    OPEN = "open"
    """What needs no key, such as pages; and keys that this process has yet to look up."""


Rates = Mapping[RouteClass, int]
"""Requests a second of each class; a class that is missing has no limit."""


def rates_of(settings: Settings) -> Rates:
    """Return the rates that are configured; 0 means no limit."""
    rates = {
        RouteClass.READ: settings.limit_read_per_s,
        RouteClass.WRITE: settings.limit_write_per_s,
        RouteClass.PAY: settings.limit_pay_per_s,
        RouteClass.SIGN_IN: settings.limit_sign_in_per_s,
        RouteClass.WEBHOOK: settings.limit_webhook_per_s,
        RouteClass.OPEN: settings.limit_open_per_s,
    }
    return {each: rate for each, rate in rates.items() if rate}


class Limiter(Protocol):
    """Counts requests, and knows whether Redis counts them."""

    async def take(self, route_class: RouteClass, who: str) -> Taken | None:
        """Take one request's room of somebody's; None where there is no limit. Never raises and never waits long."""
        ...

    async def redis_answers(self) -> bool | None:
        """Tell whether Redis answers and counts at this moment; None without one. Never raises, never waits long."""
        ...


class LocalLimiter:
    """Counts the requests of this process."""

    def __init__(self, rates: Rates, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets = {route_class: Buckets(rate) for route_class, rate in rates.items()}

    async def take(self, route_class: RouteClass, who: str) -> Taken | None:
        """See `Limiter`."""
        buckets = self._buckets.get(route_class)
        return None if buckets is None else buckets.take(who, self._clock())

    async def redis_answers(self) -> bool | None:
        """See `Limiter`."""
        return None


_TAKEN: Final = "loop.rate_limit"
"""Where a request's scope has what was taken for it."""

_MOVES_MONEY: Final = frozenset({Scope.PAYMENTS_WRITE, Scope.REFUNDS_WRITE})


async def charge_caller(request: Request, who: str, *, asked: Scope | None) -> None:
    """Count a request of a key or a merchant, whose route asks for this scope; raises `rate_limited`."""
    if request.method in ("GET", "HEAD"):
        route_class = RouteClass.READ
    else:
        route_class = RouteClass.PAY if asked in _MOVES_MONEY else RouteClass.WRITE
    await _charge(request, route_class, who)


async def charge_address(request: Request, route_class: RouteClass = RouteClass.OPEN) -> None:
    """Count a request of nobody known, by its network address; raises `rate_limited`."""
    await _charge(request, route_class, address_key(client_address(request)))


def limiter_of(request: Request) -> Limiter:
    """Return who counts the request."""
    limiter: Limiter = request.scope["app"].limiter
    return limiter


async def _charge(request: Request, route_class: RouteClass, who: str) -> None:
    room = await limiter_of(request).take(route_class, who)
    if room is None:
        return
    request.scope[_TAKEN] = room
    if room.retry_after_s:
        seconds = "1 second" if room.retry_after_s == 1 else f"{room.retry_after_s} seconds"
        raise LoopError(
            ErrorKind.RATE_LIMITED,
            "rate_limited",
            f"Too many requests; try again in {seconds}.",
            retry_after_s=room.retry_after_s,
        )


def class_by_address(path: str, methods: Collection[str]) -> RouteClass | None:
    """Return what a route counts against by network address; None where the caller is counted once it is known."""
    if path in SCOPES or path.startswith("/health"):  # who watches over Loop is always answered
        return None
    if path.startswith("/webhooks/"):
        return RouteClass.WEBHOOK
    is_form = path in ("/dashboard/sign-in", "/dashboard/welcome") and "POST" in methods
    is_sign_in = path.startswith("/api/auth/") or is_form
    return RouteClass.SIGN_IN if is_sign_in else RouteClass.OPEN


def headers_of(scope: RequestScope) -> list[tuple[bytes, bytes]]:
    """Return the headers that tell a caller of its limit; none where nothing was counted."""
    room: Taken | None = scope.get(_TAKEN)
    if room is None:
        return []
    return [
        (b"ratelimit-limit", b"%d" % room.limit),
        (b"ratelimit-remaining", b"%d" % room.remaining),
        (b"ratelimit-reset", b"%d" % room.reset_s),
    ]
