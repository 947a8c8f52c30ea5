"""Webhook endpoints: where a merchant listens, to which events, with which secret, and whether it does."""

from typing import Annotated, Final, NotRequired

from pydantic import AfterValidator, Field, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from loop.domain.events import EventType
from loop.server.auth import Caller, acting, authenticate
from loop.server.idempotency import once
from loop.server.operations import Link, Operation, describes
from loop.server.request import (
    Body,
    Time,
    body,
    context_of,
    json_response,
    parse,
    path_id,
    read_json,
    time_text,
)
from loop.storage.webhooks import ALL_EVENTS, Endpoint
from loop.workflows import deliveries, webhook_endpoints
from loop.workflows.context import Context
from loop.workflows.idempotency import Claim
from loop.workflows.webhook_endpoints import EndpointChange, NewEndpoint
from loop.workflows.webhooks import SECRET_OVERLAP, signing_secrets

_NAMES: Final = frozenset({ALL_EVENTS, *EventType})
_ONE_TYPE: Final = {"type": "string", "enum": sorted(map(str, _NAMES))}
_Url = Annotated[str, Field(max_length=4096)]
_Description = Annotated[str, Field(max_length=1000)]


def _require_event_types(names: list[str] | str) -> list[str]:
    """Return a list of event types that exist, each once, or all of them; else ValueError."""
    listed = [names] if isinstance(names, str) else names
    unknown = [name for name in listed if name not in _NAMES]
    if unknown or not listed:
        what = f"{unknown[0][:80]!r} is none" if unknown else "name one at least"
        raise ValueError(f"must be types of events, or {ALL_EVENTS!r} for all of them; {what}")
    return [ALL_EVENTS] if ALL_EVENTS in listed else sorted(set(listed))


_EventTypes = Annotated[
    Annotated[str, Field(max_length=80)] | Annotated[list[str], Field(max_length=100)],
    AfterValidator(_require_event_types),
    WithJsonSchema({"anyOf": [_ONE_TYPE, {"type": "array", "items": _ONE_TYPE, "minItems": 1, "maxItems": 100}]}),
]


class NewEndpointBody(Body):
    """An endpoint to be added."""

    url: _Url
    description: _Description = ""
    events: _EventTypes = Field(default_factory=lambda: [ALL_EVENTS])
    enabled: bool = True


class EndpointChangeBody(Body):
    """What to change; what is absent stays, and an empty description removes it."""

    url: _Url | None = None
    description: _Description | None = None
    events: _EventTypes | None = None
    enabled: bool | None = None


class Since(Body):
    """From when on failed deliveries are sent again."""

    since: Time


class EndpointJson(TypedDict):
    """An endpoint; a person is shown its secrets."""

    id: str
    url: str | None
    description: str | None
    events: list[str]
    enabled: bool
    disabledReason: str | None
    failingSince: str | None
    pausedUntil: str | None
    pendingSecretUntil: str | None
    createdAt: str
    updatedAt: str
    secret: NotRequired[str]
    pendingSecret: NotRequired[str | None]


class SentJson(TypedDict):
    """The event that is on its way."""

    id: str


class ReplayedJson(TypedDict):
    """How many deliveries are sent again."""

    replayed: int
    hasMore: bool


_OF_ENDPOINT: Final = {"endpoint_id": "/id"}
_NEXT: Final = [
    Link(name, _OF_ENDPOINT)
    for name in (
        "getWebhookEndpoint",
        "changeWebhookEndpoint",
        "rotateWebhookSecret",
        "promoteWebhookSecret",
        "testWebhookEndpoint",
        "replayWebhooks",
        "removeWebhookEndpoint",
    )
]


@describes(Operation("listWebhookEndpoints", answer=list[EndpointJson]))
async def list_endpoints(request: Request) -> Response:
    """Answer the merchant's endpoints; the first one is at its `webhookUrl`."""
    caller = await authenticate(request)
    context = context_of(request)
    found = await webhook_endpoints.list_endpoints(context, caller.merchant_id)
    return json_response([_shown_to(context, caller, endpoint) for endpoint in found])


@describes(
    Operation(
        "createWebhookEndpoint",
        answer=EndpointJson,
        status=201,
        body=NewEndpointBody,
        errors=("invalid_webhook_url", "too_many_endpoints"),
        example={"url": "https://shop.example/webhooks", "events": ["payment.captured"]},
        links=_NEXT,
    )
)
async def create(request: Request) -> Response:
    """Add an endpoint and answer it with its secret, whoever asks: it has signed nothing yet."""
    caller = await authenticate(request)
    sent = await body(request, NewEndpointBody)
    context = acting(request, caller)
    new = NewEndpoint(sent.url, sent.description, tuple(sent.events), sent.enabled)
    endpoint = await webhook_endpoints.create(context, caller.merchant_id, new)
    secret = signing_secrets(context, endpoint).current
    return json_response({**_shown_to(context, caller, endpoint), "secret": secret}, 201)


@describes(Operation("getWebhookEndpoint", answer=EndpointJson))
async def get(request: Request) -> Response:
    """Answer one endpoint; a person is shown its secrets."""
    caller = await authenticate(request)
    context = context_of(request)
    endpoint = await webhook_endpoints.get(context, caller.merchant_id, _id_of(request))
    return json_response(_shown_to(context, caller, endpoint))


@describes(
    Operation(
        "changeWebhookEndpoint",
        answer=EndpointJson,
        body=EndpointChangeBody,
        errors=("invalid_webhook_url",),
        example={"enabled": True},
    )
)
async def change(request: Request) -> Response:
    """Change an endpoint, or enable it again, and answer it."""
    caller = await authenticate(request)
    endpoint_id = _id_of(request)
    sent = await body(request, EndpointChangeBody)
    wanted = EndpointChange(
        url=sent.url,
        description=sent.description,
        event_types=None if sent.events is None else tuple(sent.events),
        is_enabled=sent.enabled,
    )
    context = acting(request, caller)
    endpoint = await webhook_endpoints.change(context, caller.merchant_id, endpoint_id, change=wanted)
    return json_response(_shown_to(context, caller, endpoint))


@describes(Operation("removeWebhookEndpoint", status=204))
async def remove(request: Request) -> Response:
    """Remove an endpoint; what waits for it fails."""
    caller = await authenticate(request)
    await webhook_endpoints.remove(acting(request, caller), caller.merchant_id, _id_of(request))
    return Response(status_code=204)


@describes(Operation("rotateWebhookSecret", answer=EndpointJson, errors=("secret_pending",)))
async def rotate_secret(request: Request) -> Response:
    """Make a pending secret and answer it, whoever asks: it signs beside the one before, and has signed nothing yet."""
    caller = await authenticate(request)
    context = acting(request, caller)
    endpoint = await webhook_endpoints.rotate_secret(context, caller.merchant_id, _id_of(request))
    pending = signing_secrets(context, endpoint).pending
    return json_response({**_shown_to(context, caller, endpoint), "pendingSecret": pending})


@describes(Operation("promoteWebhookSecret", answer=EndpointJson, errors=("no_pending_secret",)))
async def promote_secret(request: Request) -> Response:
    """Let the pending secret take the other one's place at once."""
    caller = await authenticate(request)
    context = acting(request, caller)
    endpoint = await webhook_endpoints.promote_secret(context, caller.merchant_id, _id_of(request))
    return json_response(_shown_to(context, caller, endpoint))


@describes(
    Operation(
        "testWebhookEndpoint",
        answer=SentJson,
        status=202,
        body=Body,
        errors=("no_endpoint", "invalid_status"),
        is_keyed=True,
        example={},
    )
)
async def try_out(request: Request) -> Response:
    """Send the endpoint an event that says nothing, and answer its id: how it went, its attempts tell."""
    caller = await authenticate(request)
    endpoint_id = _id_of(request)
    content = await read_json(request)
    parse(Body, content)

    async def run(_: Claim | None) -> Response:
        event_id = await deliveries.send_trial(context_of(request), caller.merchant_id, endpoint_id)
        return json_response({"id": event_id}, 202)

    return await once(request, caller, content=content, operation=run)


@describes(
    Operation(
        "replayWebhooks",
        answer=ReplayedJson,
        body=Since,
        errors=("no_endpoint", "invalid_status"),
        is_keyed=True,
        example={"since": "2030-01-31T00:00:00Z"},
    )
)
async def replay(request: Request) -> Response:
    """Send what failed since a moment again, a bounded number of deliveries, and say how many."""
    caller = await authenticate(request)
    endpoint_id = _id_of(request)
    content = await read_json(request)
    sent = parse(Since, content)

    async def run(_: Claim | None) -> Response:
        done = await deliveries.replay(context_of(request), caller.merchant_id, endpoint_id, since=sent.since)
        return json_response({"replayed": done.count, "hasMore": done.has_more})

    return await once(request, caller, content=content, operation=run)


def _id_of(request: Request) -> str:
    return path_id(request, "endpoint_id", noun="endpoint")


def endpoint_json(context: Context, endpoint: Endpoint) -> EndpointJson:
    """Return an endpoint without its secrets."""
    is_pending = endpoint.pending_since is not None and context.now() - endpoint.pending_since < SECRET_OVERLAP
    pending_until = endpoint.pending_since + SECRET_OVERLAP if endpoint.pending_since and is_pending else None
    return {
        "id": endpoint.id,
        "url": endpoint.url,
        "description": endpoint.description,
        "events": list(endpoint.event_types),
        "enabled": endpoint.is_enabled,
        "disabledReason": None if endpoint.is_enabled else endpoint.disabled_reason,
        "failingSince": time_text(endpoint.failing_since),
        "pausedUntil": time_text(endpoint.paused_until),
        "pendingSecretUntil": time_text(pending_until),
        "createdAt": time_text(endpoint.created_at),
        "updatedAt": time_text(endpoint.updated_at),
    }


def _shown_to(context: Context, caller: Caller, endpoint: Endpoint) -> EndpointJson:
    shown = endpoint_json(context, endpoint)
    if caller.is_person:
        secrets = signing_secrets(context, endpoint)
        shown["secret"] = secrets.current
        if secrets.pending is not None:
            shown["pendingSecret"] = secrets.pending
    return shown


_ONE: Final = "/api/webhook-endpoints/{endpoint_id}"

routes: Final = [
    Route("/api/webhook-endpoints", list_endpoints, methods=["GET"]),
    Route("/api/webhook-endpoints", create, methods=["POST"]),
    Route(_ONE, get, methods=["GET"]),
    Route(_ONE, change, methods=["PUT", "PATCH"]),
    Route(_ONE, remove, methods=["DELETE"]),
    Route(f"{_ONE}/rotate-secret", rotate_secret, methods=["POST"]),
    Route(f"{_ONE}/promote-secret", promote_secret, methods=["POST"]),
    Route(f"{_ONE}/test", try_out, methods=["POST"]),
    Route(f"{_ONE}/replay", replay, methods=["POST"]),
]
