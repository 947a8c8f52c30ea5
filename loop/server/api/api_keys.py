"""API keys: make one, list them, replace one, and revoke one."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Final, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from loop.domain.scopes import ALL
from loop.server.auth import acting, authenticate, key_cache
from loop.server.operations import Link, Operation, describes
from loop.server.request import Body, Time, body, context_of, json_response, path_id, time_text
from loop.storage.merchants import ApiKey
from loop.workflows import merchants
from loop.workflows.merchants import MAX_OVERLAP, NewApiKey

HOUR: Final = timedelta(hours=1)


class NewKey(Body):
    """A key to be made. Without a mode it is live once the merchant has an enabled live account, before that test."""

    name: Annotated[str, Field(min_length=1, max_length=255)]
    expires_at: Time | None = None
    mode: Literal["live", "test"] | None = None
    scopes: Annotated[list[str], Field(max_length=20, default_factory=lambda: [ALL])]


class Rotation(Body):
    """How long the key that is replaced stays good, in hours; 0 ends it now."""

    overlap_hours: Annotated[int, Field(ge=0, le=MAX_OVERLAP // HOUR)] = 24


class KeyJson(TypedDict):
    """An API key, of which only the beginning is shown."""

    id: str
    name: str
    prefix: str
    mode: str
    scopes: Sequence[str]
    expiresAt: str | None
    lastUsedAt: str | None
    createdAt: str


class MadeKeyJson(TypedDict):
    """A new key, whose secret is shown this once."""

    apiKey: KeyJson
    secret: str


class RotatedKeyJson(MadeKeyJson):
    """A new key and the one that it replaces."""

    replaced: KeyJson


_OF_KEY: Final = {"key_id": "/apiKey/id"}


@describes(Operation("listApiKeys", answer=list[KeyJson]))
async def list_keys(request: Request) -> Response:
    """Answer the keys that are not revoked, newest first."""
    caller = await authenticate(request)
    found = await merchants.list_api_keys(context_of(request), caller.merchant_id)
    return json_response([key_json(key) for key in found])


@describes(
    Operation(
        "createApiKey",
        answer=MadeKeyJson,
        status=201,
        body=NewKey,
        errors=("too_many_api_keys",),
        example={"name": "till", "mode": "test"},
        links=[Link("rotateApiKey", _OF_KEY), Link("revokeApiKey", _OF_KEY)],
    )
)
async def create(request: Request) -> Response:
    """Make a key and answer it this once. A key may not make keys: whoever found one could never be locked out."""
    caller = await authenticate(request)
    sent = await body(request, NewKey)
    new = NewApiKey(sent.name, sent.expires_at, sent.mode, tuple(sent.scopes))
    key, secret = await merchants.create_api_key(acting(request, caller), caller.merchant_id, new)
    return json_response({"apiKey": key_json(key), "secret": secret}, status=201)


@describes(
    Operation(
        "rotateApiKey",
        answer=RotatedKeyJson,
        status=201,
        body=Rotation,
        errors=("invalid_status", "too_many_api_keys"),
        example={"overlapHours": 24},
    )
)
async def rotate(request: Request) -> Response:
    """Replace a key by one that may do the same, and answer that this once; the old one stays good for a while."""
    caller = await authenticate(request)
    context = acting(request, caller)
    key_id = path_id(request, "key_id", noun="API key")
    sent = await body(request, Rotation)
    overlap = sent.overlap_hours * HOUR
    old, key, secret = await merchants.rotate_api_key(context, caller.merchant_id, key_id, overlap=overlap)
    key_cache(context).forget(old.id)
    return json_response({"apiKey": key_json(key), "secret": secret, "replaced": key_json(old)}, status=201)


@describes(Operation("revokeApiKey", status=204))
async def revoke(request: Request) -> Response:
    """Revoke a key: at once in this process, and in others when they have forgotten it."""
    caller = await authenticate(request)
    context = acting(request, caller)
    key_id = path_id(request, "key_id", noun="API key")
    await merchants.revoke_api_key(context, caller.merchant_id, key_id)
    key_cache(context).forget(key_id)
    return Response(status_code=204)


def key_json(key: ApiKey) -> KeyJson:
    """Return an API key, of which only the beginning is shown."""
    return {
        "id": key.id,
        "name": key.name,
        "prefix": key.prefix,
        "mode": key.mode,
        "scopes": list(key.scopes),
        "expiresAt": time_text(key.expires_at),
        "lastUsedAt": time_text(key.last_used_at),
        "createdAt": time_text(key.created_at),
    }


routes: Final = [
    Route("/api/api-keys", list_keys, methods=["GET"]),
    Route("/api/api-keys", create, methods=["POST"]),
    Route("/api/api-keys/{key_id}", revoke, methods=["DELETE"]),
    Route("/api/api-keys/{key_id}/rotate", rotate, methods=["POST"]),
]
