"""Scopes over HTTP: every route asks for one, and a key does what its scopes grant and nothing else."""

import pytest
from starlette.routing import Route

from loop.domain.scopes import ALL, Scope
from loop.server import app
from loop.server.scopes import SCOPES
from loop.workflows import merchants
from loop.workflows.merchants import NewApiKey
from tests.api.client import Shop

OPEN = frozenset(
    {
        "/api/auth/register",
        "/api/auth/login",
        "/api/auth/refresh",
        "/api/auth/logout",
    }
)
"""Routes of the API that nobody has to be signed in for: they have a proof of their own."""


def api_routes() -> set[tuple[str, str]]:
    """Return path and method of all that a merchant's program may call."""
    resources = [each for each in vars(app).values() if getattr(each, "__name__", "").startswith("loop.server.api.")]
    routes = [route for each in resources for route in each.routes if isinstance(route, Route)]
    guarded = [each for each in routes if each.path.startswith(("/v1/", "/api/")) and each.path not in OPEN]
    return {(each.path, method) for each in guarded for method in (each.methods or ()) if method != "HEAD"}


ASKED = [(path, method, scope) for path, methods in SCOPES.items() for method, scope in methods.items()]


def filled(path: str) -> str:
    return "/".join("absent" if part.startswith("{") else part for part in path.split("/"))


async def key_with(shop: Shop, *scopes: str) -> dict[str, str]:
    _, secret = await merchants.create_api_key(shop.context, shop.merchant.id, NewApiKey("narrow", scopes=scopes))
    return {"X-API-Key": secret}


def test_every_route_asks_for_a_scope_and_every_scope_is_asked_for() -> None:
    assert {(path, method) for path, method, _ in ASKED} == api_routes()
    assert {scope for _, _, scope in ASKED if scope is not None} == set(Scope)


async def test_a_key_without_the_scope_is_refused_by_every_route(shop: Shop) -> None:
    keys = {
        scope: await key_with(shop, *(each for each in Scope if each is not scope))
        if scope
        else await key_with(shop, ALL)
        for _, _, scope in ASKED
    }
    for path, method, scope in ASKED:
        answer = await shop.call(method, filled(path), auth=keys[scope])
        expected = "person_required" if scope is None else "insufficient_scope"
        assert (answer.status, answer.code) == (403, expected), (method, path)
        assert scope is None or str(scope) in answer.body["message"]


async def test_a_key_with_the_scope_alone_comes_in(shop: Shop) -> None:
    keys = {scope: await key_with(shop, scope) for _, _, scope in ASKED if scope is not None}
    for path, method, scope in ASKED:
        if scope is not None:
            answer = await shop.call(method, filled(path), auth=keys[scope])
            assert answer.status not in (401, 403), (method, path, answer.text)


async def test_a_person_needs_no_scope(shop: Shop) -> None:
    person = {"Authorization": f"Bearer {shop.token}"}
    for path, method, _ in ASKED:
        answer = await shop.call(method, filled(path), auth=person)
        assert answer.status not in (401, 403), (method, path, answer.text)


async def test_a_reading_key_reads_what_another_one_wrote(shop: Shop) -> None:
    reading = await key_with(shop, Scope.ORDERS_READ)
    order = await shop.paid_order()
    path = f"/v1/orders/{order['id']}"
    assert (await shop.get(path, auth=reading)).body["status"] == "captured"
    refused = await shop.post(f"{path}/refund", auth=reading)
    assert (refused.status, refused.code) == (403, "insufficient_scope")
    assert refused.body["message"] == "The API key lacks the scope refunds:write; use one that has it."
    assert (await shop.get(f"{path}/refunds", auth=reading)).body == []


@pytest.mark.parametrize("overlap_hours", [0, 24])
async def test_a_rotated_key_is_good_for_the_overlap(shop: Shop, overlap_hours: int) -> None:
    person = {"Authorization": f"Bearer {shop.token}"}
    (old,) = (await shop.get("/api/api-keys")).body
    path = f"/api/api-keys/{old['id']}/rotate"
    answer = await shop.post(path, {"overlapHours": overlap_hours}, auth=person)
    assert answer.status == 201, answer.text
    assert set(answer.body) == {"apiKey", "secret", "replaced"}
    assert answer.body["replaced"]["id"] == old["id"]
    assert answer.body["replaced"]["expiresAt"] is not None
    assert (await shop.get("/v1/orders", auth={"X-API-Key": answer.body["secret"]})).status == 200
    by_old = await shop.get("/v1/orders")
    assert by_old.status == (200 if overlap_hours else 401)


@pytest.mark.parametrize("content", [{"overlapHours": -1}, {"overlapHours": 169}, {"overlapHours": 1.5}, {"hours": 1}])
async def test_an_overlap_that_cannot_be_is_refused(shop: Shop, content: dict[str, object]) -> None:
    (key,) = (await shop.get("/api/api-keys")).body
    person = {"Authorization": f"Bearer {shop.token}"}
    answer = await shop.post(f"/api/api-keys/{key['id']}/rotate", content, auth=person)
    assert (answer.status, answer.code) == (400, "validation_failed")
    assert (await shop.get("/api/api-keys")).body == [{**key, "lastUsedAt": key["lastUsedAt"]}]
