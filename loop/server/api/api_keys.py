"""API keys: make one, list them, and revoke one."""

from typing import Annotated, Final, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loop.server.auth import acting, authenticate, authenticate_person, key_cache
from loop.server.request import Body, Time, body, context_of, json_response, path_id, time_text
from loop.storage.merchants import ApiKey
from loop.workflows import merchants
from loop.workflows.merchants import ALL_SCOPES, NewApiKey


class NewKey(Body):
    """A key to be made. `mode` labels it; a live and a test key of one merchant reach the same orders."""

    name: Annotated[str, Field(min_length=1, max_length=255)]
    expires_at: Time | None = None
    mode: Literal["live", "test"] = "live"
    scopes: Annotated[list[str], Field(max_length=20, default_factory=lambda: list(ALL_SCOPES))]


async def list_keys(request: Request) -> Response:
    """Answer the keys that are not revoked, newest first."""
    caller = await authenticate(request)
    found = await merchants.list_api_keys(context_of(request), caller.merchant_id)
    return json_response([_key_json(key) for key in found])


async def create(request: Request) -> Response:
    """Make a key and answer it this once. A key may not make keys: whoever found one could never be locked out."""
    caller = await authenticate_person(request)
    sent = await body(request, NewKey)
    new = NewApiKey(sent.name, sent.expires_at, sent.mode, tuple(sent.scopes))
    key, secret = await merchants.create_api_key(acting(request, caller), caller.merchant_id, new)
    return json_response({"apiKey": _key_json(key), "secret": secret}, status=201)


async def revoke(request: Request) -> Response:
    """Revoke a key: at once in this process, and in others when they have forgotten it."""
    caller = await authenticate_person(request)
    context = acting(request, caller)
    key_id = path_id(request, "key_id", noun="API key")
    await merchants.revoke_api_key(context, caller.merchant_id, key_id)
    key_cache(context).forget(key_id)
    return Response(status_code=204)


def _key_json(key: ApiKey) -> dict[str, object]:
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
]
