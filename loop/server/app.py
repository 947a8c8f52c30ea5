"""The application: every resource's routes behind the edge, made for one context."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from loop.domain.errors import LoopError
from loop.server import checkout_page, pages, processor_webhooks, sandbox_pages
from loop.server.api import (
    accounts,
    api_keys,
    checkout,
    dashboard_orders,
    events,
    health,
    merchants,
    orders,
    processors,
    refunds,
    routing_rules,
    stats,
    webhooks,
)
from loop.server.errors import answer_http_exception, answer_loop_error
from loop.server.middleware import Edge
from loop.workflows.context import Context


def create_app(context: Context) -> Starlette:
    """Return the ASGI application; routes are tried in order, so the busiest come first."""
    app = Starlette(
        routes=[
            *orders.routes,
            *refunds.routes,
            *checkout.routes,
            *events.routes,
            *accounts.routes,
            *merchants.routes,
            *api_keys.routes,
            *processors.routes,
            *routing_rules.routes,
            *webhooks.routes,
            *dashboard_orders.routes,
            *stats.routes,
            *health.routes,
            *processor_webhooks.routes,
            *pages.routes,
            *checkout_page.routes,
            *sandbox_pages.routes,
        ],
        middleware=[Middleware(Edge, context=context)],
        exception_handlers={LoopError: answer_loop_error, HTTPException: answer_http_exception},
    )
    app.router.redirect_slashes = False
    app.state.context = context
    return app
