"""First steps: what the overview offers until money was taken once and a webhook has arrived."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loop.domain.errors import LoopError
from loop.server.dashboard.drafts import Draft
from loop.server.dashboard.frames import acts, render
from loop.server.dashboard.keyed_forms import keyed
from loop.server.dashboard.pages import overview
from loop.server.dashboard.steps import DISMISSED, DISMISSED_KEPT_S
from loop.server.dashboard.viewers import HOME, Sent, acting_as, keep_cookie, keep_mode
from loop.server.idempotency import once_under
from loop.server.pages import see_other
from loop.server.request import context_of
from loop.workflows import deliveries, first_steps, merchants, processor_configs
from loop.workflows.idempotency import Claim
from loop.workflows.merchants import ProfileChange
from loop.workflows.processor_configs import ConfigChange

HERE: Final = "/dashboard/first-steps"
SANDBOX: Final = "sandbox"


async def connect(request: Request, sent: Sent) -> Response:
    """Connect the sandbox, which needs no account anywhere, to a merchant without any processor."""
    context, merchant_id = acting_as(request, sent.viewer), sent.viewer.merchant_id
    if not (await first_steps.of_merchant(context, merchant_id)).processors:
        change = ConfigChange(is_test_mode=True)
        await processor_configs.put(context, merchant_id, SANDBOX, credentials={}, change=change, keeps_others=True)
    return see_other(HOME)


async def pay(request: Request, sent: Sent) -> Response:
    """Make a page for a first test payment, once for each form, and show its link."""
    context, merchant_id = acting_as(request, sent.viewer), sent.viewer.merchant_id

    async def run(_claim: Claim | None) -> Response:
        made = await first_steps.make_test_link(context, merchant_id)
        return Response(f"/dashboard/links/{made.id}")

    made = await once_under(context, keyed(request, sent), operation=run)
    response = see_other(bytes(made.body).decode())
    keep_mode(context, response, "test")
    return response


async def point(request: Request, sent: Sent) -> Response:
    """Set where webhooks go, and send a trial there."""
    context, merchant_id = acting_as(request, sent.viewer), sent.viewer.merchant_id
    url = sent.fields.get("url", "").strip()
    try:
        change = ProfileChange(has_webhook_url=True, webhook_url=url or None)
        profile = await merchants.update_profile(context, merchant_id, change)
        if profile.endpoint is not None and url:
            await deliveries.send_trial(context, merchant_id, profile.endpoint.id)
    except LoopError as error:
        draft = Draft({"url": url}, error)
        return render(await overview.show(request, sent.viewer, pointing=draft), sent.viewer)
    return see_other(HOME)


async def dismiss(request: Request, _sent: Sent) -> Response:
    """Put the steps away, in this browser."""
    response = see_other(HOME)
    keep_cookie(context_of(request), response, DISMISSED, value="dismissed", max_age_s=DISMISSED_KEPT_S)
    return response


routes: Final = [
    Route(f"{HERE}/{name}", acts(action), methods=["POST"])
    for name, action in (("processor", connect), ("payment", pay), ("webhook", point), ("dismiss", dismiss))
]
