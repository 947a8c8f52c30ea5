"""Steps: how far a viewer's merchant has come, for the overview, unless the viewer does not want to see it."""

from typing import Final

from starlette.requests import Request

from loop.server.dashboard.viewers import Viewer, kept_cookie
from loop.server.request import context_of
from loop.workflows import first_steps
from loop.workflows.first_steps import FirstSteps

DISMISSED: Final = "loop_first_steps"
DISMISSED_KEPT_S: Final = 365 * 86_400


async def steps_of(request: Request, viewer: Viewer) -> FirstSteps | None:
    """Return the steps while there is one left to do; None also for who has put them away in this browser."""
    if kept_cookie(request, DISMISSED) is not None:
        return None
    found = await first_steps.of_merchant(context_of(request), viewer.merchant_id)
    return None if found.is_done else found


def steps_json(found: FirstSteps | None) -> dict[str, bool] | None:
    """Return which steps are done; None once there is nothing to show."""
    if found is None:
        return None
    return {
        "processorConnected": bool(found.processors),
        "orderPaid": found.paid_order_id is not None,
        "webhookDelivered": found.delivered is not None,
    }
