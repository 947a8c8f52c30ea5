"""The application: every resource's routes behind the edge, made for one context."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from http import HTTPStatus
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from loop.domain.errors import LoopError
from loop.domain.roles import ALL, Role
from loop.server import checkout_page, metrics_page, pages, processor_webhooks, qr_codes, sandbox_pages
from loop.server.api import (
    accounts,
    api_keys,
    audit_log,
    checkout,
    dashboard_orders,
    disputes,
    events,
    health,
    merchants,
    orders,
    processors,
    reconciliation,
    refunds,
    routing_rules,
    sessions,
    stats,
    webhook_endpoints,
    webhooks,
)
from loop.server.dashboard.routes import routes as dashboard_routes
from loop.server.documentation import documentation_routes
from loop.server.middleware import Edge
from loop.server.rate_limits import Limiter, LocalLimiter, RouteClass, charge_address, class_by_address, rates_of
from loop.server.request import header
from loop.workflows.context import Context

Handler = Callable[[Request], Awaitable[Response]]


API_ROUTES: Final[Sequence[BaseRoute]] = [
    *orders.routes,
    *refunds.routes,
    *disputes.routes,
    *checkout.routes,
    *events.routes,
    *accounts.routes,
    *sessions.routes,
    *merchants.routes,
    *api_keys.routes,
    *processors.routes,
    *routing_rules.routes,
    *audit_log.routes,
    *webhooks.routes,
    *webhook_endpoints.routes,
    *reconciliation.routes,
    *dashboard_orders.routes,
    *stats.routes,
    *health.routes,
    *processor_webhooks.routes,
]
"""What programs call, all of it in the API's document; the busiest come first, since routes are tried in order."""


class _Endpoint:
    """A handler as ASGI, without Starlette's layers for exceptions: all of them are answered at the edge."""

    def __init__(self, handler: Handler, counted_as: RouteClass | None) -> None:
        self._handler = handler
        self._counted_as = counted_as

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        response = None if self._counted_as is None else await _refused(request, self._counted_as)
        if response is None:
            response = await self._handler(request)
        await response(scope, receive, send)


async def _refused(request: Request, counted_as: RouteClass) -> Response | None:
    """Count a request by its address; one too many raises `rate_limited`, and gets a browser a page that says so."""
    try:
        await charge_address(request, counted_as)
    except LoopError as error:
        if "text/html" not in (header(request, b"accept") or ""):
            raise
        return pages.problem(request, error)
    return None


class _Router(Router):
    """Names every method that an address takes where it refuses one, not only those of its first route."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except HTTPException as error:
            if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
                path = scope["route"].path
                routes = [each for each in self.routes if isinstance(each, Route) and each.path == path]
                taken = {method for route in routes for method in route.methods or ()}
                error.headers = {"Allow": ", ".join(sorted(taken))}
            raise


def _routes_of(roles: Collection[Role]) -> list[BaseRoute]:
    """Return what a process with these roles answers: whoever watches over it is answered always."""
    routes: list[BaseRoute] = [] if Role.API in roles else [*health.routes]
    if Role.API in roles:
        routes += [*API_ROUTES, *documentation_routes(API_ROUTES)]
        routes += [*checkout_page.routes, *qr_codes.routes, *sandbox_pages.routes]
    if Role.DASHBOARD in roles:
        routes += dashboard_routes
    if Role.API in roles or Role.DASHBOARD in roles:
        routes += pages.routes
    return [*routes, *metrics_page.routes]


def create_app(context: Context, limiter: Limiter | None = None, *, roles: Collection[Role] = ALL) -> ASGIApp:
    """Return the ASGI application of some roles; without a limiter, requests are counted in this process."""
    router = _Router(routes=_routes_of(roles), redirect_slashes=False)
    for route in router.routes:
        if isinstance(route, Route):
            route.app = _Endpoint(route.endpoint, class_by_address(route.path, route.methods or ()))
    return Edge(router, context, limiter or LocalLimiter(rates_of(context.settings)))
