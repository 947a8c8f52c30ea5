"""The application: every resource's routes behind the edge, made for one context."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from loop.server import checkout_page, pages, processor_webhooks, qr_codes, sandbox_pages
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
from loop.server.middleware import Edge
from loop.server.rate_limits import Limiter, LocalLimiter, RouteClass, charge_address, class_by_address, rates_of
from loop.workflows.context import Context

Handler = Callable[[Request], Awaitable[Response]]


class _Endpoint:
    """A handler as ASGI, without Starlette's layers for exceptions: all of them are answered at the edge."""

    def __init__(self, handler: Handler, counted_as: RouteClass | None) -> None:
        self._handler = handler
        self._counted_as = counted_as

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        if self._counted_as is not None:
            await charge_address(request, self._counted_as)
        response = await self._handler(request)
        await response(scope, receive, send)


def create_app(context: Context, limiter: Limiter | None = None) -> ASGIApp:
    """Return the ASGI application; routes are tried in order, so the busiest come first.

    Without a limiter, requests are counted in this process.
    """
    router = Router(
        routes=[
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
            *pages.routes,
            *checkout_page.routes,
            *qr_codes.routes,
            *sandbox_pages.routes,
            *dashboard_routes,
        ],
        redirect_slashes=False,
    )
    for route in router.routes:
        if isinstance(route, Route):
            route.app = _Endpoint(route.endpoint, class_by_address(route.path, route.methods or ()))
    return Edge(router, context, limiter or LocalLimiter(rates_of(context.settings)))
