"""Routes: every address of the dashboard."""

from typing import Final

from starlette.routing import Route

from loop.server.dashboard import assets
from loop.server.dashboard.pages import (
    api_key,
    api_keys,
    audit,
    deliveries,
    disputes,
    first_steps,
    links,
    live,
    order,
    order_actions,
    orders,
    overview,
    patterns,
    processor_account,
    processors,
    reconciliation,
    refunds,
    routing,
    routing_rule,
    settings,
    sign_in,
    webhook_endpoint,
    webhooks,
    welcome,
)

routes: Final[list[Route]] = [
    *overview.routes,
    *orders.routes,
    *order_actions.routes,
    *order.routes,
    *refunds.routes,
    *disputes.routes,
    *reconciliation.routes,
    *live.routes,
    *links.routes,
    *first_steps.routes,
    *routing.routes,
    *routing_rule.routes,
    *processors.routes,
    *processor_account.routes,
    *webhooks.routes,
    *deliveries.routes,
    *webhook_endpoint.routes,
    *api_keys.routes,
    *api_key.routes,
    *audit.routes,
    *settings.routes,
    *patterns.routes,
    *sign_in.routes,
    *welcome.routes,
    *assets.routes,
]
