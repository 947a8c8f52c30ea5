"""The merchant who calls: its profile, and for a person the secret that signs its webhooks."""

from typing import Annotated, Final, NotRequired

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loop.domain.failover import LateSuccess
from loop.server.auth import Caller, acting, authenticate
from loop.server.dashboard_shapes import MerchantJson, merchant_json
from loop.server.operations import Operation, describes
from loop.server.request import Body, body, context_of, json_response
from loop.workflows import merchants
from loop.workflows.context import Context
from loop.workflows.merchants import Profile, ProfileChange
from loop.workflows.webhooks import reveal_secret

_Text = Annotated[str, Field(max_length=4096)]


class ProfileChanges(Body):
    """What to change; what is absent stays, and a `webhookUrl` of null removes the address."""

    name: _Text = ""
    webhook_url: _Text | None = None
    late_success: Annotated[LateSuccess, Field(strict=False)] = LateSuccess.ACCEPT


class ProfileJson(MerchantJson):
    """A merchant; a person is shown the secret that signs what goes to its first endpoint."""

    webhookSecret: NotRequired[str]


@describes(Operation("getMerchant", answer=ProfileJson))
async def show(request: Request) -> Response:
    """Answer the profile."""
    caller = await authenticate(request)
    context = context_of(request)
    profile = await merchants.get_profile(context, caller.merchant_id)
    return json_response(_profile_json(context, caller, profile))


@describes(
    Operation(
        "changeMerchant",
        answer=ProfileJson,
        body=ProfileChanges,
        errors=("invalid_webhook_url",),
        example={"name": "Ada's shop"},
    )
)
async def change(request: Request) -> Response:
    """Change the profile and answer it."""
    caller = await authenticate(request)
    sent = await body(request, ProfileChanges)
    context = acting(request, caller)
    changes = ProfileChange(
        name=sent.name if "name" in sent.model_fields_set else None,
        has_webhook_url="webhook_url" in sent.model_fields_set,
        webhook_url=sent.webhook_url,
        late_success=sent.late_success if "late_success" in sent.model_fields_set else None,
    )
    profile = await merchants.update_profile(context, caller.merchant_id, changes)
    return json_response(_profile_json(context, caller, profile))


def _profile_json(context: Context, caller: Caller, profile: Profile) -> MerchantJson | ProfileJson:
    shown = merchant_json(profile)
    if caller.is_person and profile.endpoint is not None:
        return {**shown, "webhookSecret": reveal_secret(context, profile.endpoint)}
    return shown


routes: Final = [
    route
    for path in ("/api/merchants/me", "/api/me")
    for route in (Route(path, show, methods=["GET"]), Route(path, change, methods=["PUT"]))
]
