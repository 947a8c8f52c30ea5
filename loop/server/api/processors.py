"""Processors: a merchant's accounts at them, whose credentials go in and never come out."""

from typing import Annotated, Final

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from loop.domain.errors import ErrorKind, LoopError, not_found
from loop.server.auth import Caller, acting, authenticate
from loop.server.operations import Link, Operation, describes
from loop.server.request import (
    Body,
    body,
    context_of,
    json_response,
    path_id,
    query_of,
    time_text,
    validation_failed,
)
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


class ConfigChanges(Body):
    """What to change; what is absent or null stays."""

    enabled: bool | None = None
    priority: _Priority | None = None
    test_mode: bool | None = None


class ConfigJson(TypedDict):
    """An account at a processor, without its credentials; `warnings` say what is missing or odd."""

    id: str
    processor: str
    enabled: bool
    priority: int
    testMode: bool
    health: str
    webhookUrl: str
    warnings: list[str]
    createdAt: str
    updatedAt: str


_MODE: Final = {"testMode": {"type": "string", "enum": ["true", "false"], "description": "Which account is meant."}}
_OF_CONFIG: Final = {"name": "/processor"}


@describes(Operation("listProcessors", answer=list[ConfigJson]))
async def list_all(request: Request) -> Response:
    """Answer the merchant's accounts by priority; a test key sees none that is live."""
    caller = await authenticate(request)
    context = context_of(request)
    found = await processor_configs.list_all(context, caller.merchant_id)
    return json_response([config_json(context, config) for config in found if _may_touch(caller, config.is_test_mode)])


@describes(
    Operation(
        "setProcessor",
        answer=ConfigJson,
        body=NewConfig,
        errors=("invalid_processor", "invalid_credentials_fields", "live_mode_required", "mode_taken"),
        example={"credentials": {}, "priority": 1},
        links=[Link("changeProcessor", _OF_CONFIG), Link("removeProcessor", _OF_CONFIG)],
    )
)
async def put(request: Request) -> Response:
    """Create the account at a processor of a mode, or replace it with its credentials."""
    caller = await authenticate(request)
    context = acting(request, caller)
    name: str = request.path_params["name"]
    context.processors.credentials_schema(name)  # an unknown name is refused before its body is judged
    sent = await body(request, NewConfig)
    _require_mode(caller, sent.test_mode)
    change = ConfigChange(sent.enabled, sent.priority, sent.test_mode)
    config = await processor_configs.put(context, caller.merchant_id, name, credentials=sent.credentials, change=change)
    return json_response(config_json(context, config))


@describes(
    Operation(
        "changeProcessor",
        answer=ConfigJson,
        body=ConfigChanges,
        query=_MODE,
        errors=("live_mode_required", "mode_in_use", "mode_taken"),
        example={"priority": 2},
    )
)
async def change(request: Request) -> Response:
    """Change an account, but not its credentials."""
    caller = await authenticate(request)
    context = acting(request, caller)
    name = path_id(request, "name", noun="processor")
    sent = await body(request, ConfigChanges)
    is_test = _mode_of(request, caller)
    _require_mode(caller, sent.test_mode)
    changes = ConfigChange(sent.enabled, sent.priority, sent.test_mode)
    config = await processor_configs.update(context, caller.merchant_id, name, change=changes, is_test=is_test)
    return json_response(config_json(context, config))


@describes(Operation("removeProcessor", status=204, query=_MODE))
async def remove(request: Request) -> Response:
    """Remove an account: it takes no new payment, and goes on with those that it has taken."""
    caller = await authenticate(request)
    name = path_id(request, "name", noun="processor")
    is_test = _mode_of(request, caller)
    await processor_configs.remove(acting(request, caller), caller.merchant_id, name, is_test=is_test)
    return Response(status_code=204)


def _may_touch(caller: Caller, is_test_mode: bool | None) -> bool:
    """Tell whether a caller may have to do with accounts of a mode: what a test key does never reaches live money."""
    return caller.is_person or not caller.is_test or is_test_mode is not False


def _require_mode(caller: Caller, is_test_mode: bool | None) -> None:
    if not _may_touch(caller, is_test_mode):
        raise LoopError(
            ErrorKind.FORBIDDEN,
            "live_mode_required",
            "A test key may not set a live account; use a live key or sign in.",
        )


def _mode_of(request: Request, caller: Caller) -> bool | None:
    """Return the mode whose account is meant: `testMode` of the query, else the one that the caller has chosen."""
    named = query_of(request).get("testMode")
    if named not in (None, "true", "false"):
        raise validation_failed(("testMode", "must be true or false"))
    if named is None:
        return caller.is_test if caller.has_chosen_mode else None
    if not _may_touch(caller, named == "true"):
        raise not_found("processor")
    return named == "true"


def webhook_address(context: Context, config: ProcessorConfig) -> str:
    """Return where an account's processor sends its webhooks."""
    return f"{context.settings.checkout_base_url}/webhooks/{config.processor}/{config.id}"


def config_json(context: Context, config: ProcessorConfig) -> ConfigJson:
    """Return an account without its credentials."""
    return {
        "id": config.id,
        "processor": config.processor,
        "enabled": config.is_enabled,
        "priority": config.priority,
        "testMode": config.is_test_mode,
        "health": HEALTH,
        "webhookUrl": webhook_address(context, config),
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
