"""Processors: a merchant's accounts at them, whose credentials go in and never come out."""

from typing import Annotated, Final

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loop.server.auth import acting, authenticate
from loop.server.request import Body, body, context_of, json_response, path_id, time_text
from loop.storage.processor_configs import ProcessorConfig
from loop.workflows import processor_configs
from loop.workflows.context import Context
from loop.workflows.processor_configs import ConfigChange

_Credentials = Annotated[
    dict[Annotated[str, Field(max_length=100)], Annotated[str, Field(max_length=4096)]], Field(max_length=20)
]
_Priority = Annotated[int, Field(ge=1, le=100)]

HEALTH: Final = "unknown"
"""How an account fares is told by its payments; nothing asks processors in between, so nothing better is known."""


class NewConfig(Body):
    """An account to be used; the names of its credentials are the processor's own."""

    credentials: _Credentials
    enabled: bool = True
    priority: _Priority = 1
    test_mode: bool = True


class Changes(Body):
    """What to change; what is absent or null stays."""

    enabled: bool | None = None
    priority: _Priority | None = None
    test_mode: bool | None = None


async def list_all(request: Request) -> Response:
    """Answer the merchant's accounts by priority."""
    caller = await authenticate(request)
    context = context_of(request)
    found = await processor_configs.list_all(context, caller.merchant_id)
    return json_response([_config_json(context, config) for config in found])


async def put(request: Request) -> Response:
    """Create the account at a processor, or replace it with its credentials."""
    caller = await authenticate(request)
    context = acting(request, caller)
    name: str = request.path_params["name"]
    context.processors.credentials_schema(name)  # an unknown name is refused before its body is judged
    sent = await body(request, NewConfig)
    change = ConfigChange(sent.enabled, sent.priority, sent.test_mode)
    config = await processor_configs.put(context, caller.merchant_id, name, credentials=sent.credentials, change=change)
    return json_response(_config_json(context, config))


async def change(request: Request) -> Response:
    """Change an account, but not its credentials."""
    caller = await authenticate(request)
    context = acting(request, caller)
    name = path_id(request, "name", noun="processor")
    sent = await body(request, Changes)
    changes = ConfigChange(sent.enabled, sent.priority, sent.test_mode)
    config = await processor_configs.update(context, caller.merchant_id, name, change=changes)
    return json_response(_config_json(context, config))


async def remove(request: Request) -> Response:
    """Remove an account: it takes no new payment, and goes on with those that it has taken."""
    caller = await authenticate(request)
    name = path_id(request, "name", noun="processor")
    await processor_configs.remove(acting(request, caller), caller.merchant_id, name)
    return Response(status_code=204)


def _config_json(context: Context, config: ProcessorConfig) -> dict[str, object]:
    return {
        "id": config.id,
        "processor": config.processor,
        "enabled": config.is_enabled,
        "priority": config.priority,
        "testMode": config.is_test_mode,
        "health": HEALTH,
        "webhookUrl": f"{context.settings.checkout_base_url}/webhooks/{config.processor}/{config.id}",
        "warnings": list(processor_configs.warnings_about(context, config)),
        "createdAt": time_text(config.created_at),
        "updatedAt": time_text(config.updated_at),
    }


routes: Final = [
    Route("/api/processors", list_all, methods=["GET"]),
    Route("/api/processors/{name}", put, methods=["POST"]),
    Route("/api/processors/{name}", change, methods=["PATCH"]),
    Route("/api/processors/{name}", remove, methods=["DELETE"]),
]
