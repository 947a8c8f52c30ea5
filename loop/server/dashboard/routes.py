"""Routes: every address of the dashboard."""

from typing import Final

from starlette.routing import Route

from loop.server.dashboard import assets
from loop.server.dashboard.pages import (
    disputes,
    order,
    order_actions,
    orders,
    overview,
    patterns,
    reconciliation,
    refunds,
    sign_in,
)

routes: Final[list[Route]] = [
    *overview.routes,
    *orders.routes,
    *order_actions.routes,
    *order.routes,
    *refunds.routes,
    *disputes.routes,
    *reconciliation.routes,
    *patterns.routes,
    *sign_in.routes,
    *assets.routes,
]
