"""Accounts over HTTP: registering, signing in and out, the merchant's profile and its API keys."""

import pytest

from loop.domain.api_keys import is_well_formed
from tests.api.client import PASSWORD, Answer, Shop

NOBODY: dict[str, str] = {}
MERCHANT_FIELDS = {"id", "name", "email", "webhookUrl", "createdAt", "updatedAt", "lateSuccess"}
KEY_FIELDS = {"id", "name", "prefix", "mode", "scopes", "expiresAt", "lastUsedAt", "createdAt"}


def person(shop: Shop) -> dict[str, str]:
    return {"Authorization": f"Bearer {shop.token}"}


async def register(shop: Shop, **fields: object) -> Answer:
    content = {"name": "New shop", "email": "New@Example.com", "password": PASSWORD, **fields}
    return await shop.post("/api/auth/register", content, auth=NOBODY)


async def log_in(shop: Shop, email: str, password: str = PASSWORD) -> Answer:
    return await shop.post("/api/auth/login", {"email": email, "password": password}, auth=NOBODY)


async def test_registering_signs_in(bare_shop: Shop) -> None:
    answer = await register(bare_shop)
    assert answer.status == 201, answer.text
    assert set(answer.body) == {"token", "refreshToken", "merchant"}
    merchant = answer.body["merchant"]
    assert set(merchant) == MERCHANT_FIELDS
    assert merchant["id"].startswith("mer_")
    assert (merchant["name"], merchant["email"], merchant["webhookUrl"]) == ("New shop", "new@example.com", None)
    assert merchant["createdAt"].endswith("Z")
    me = await bare_shop.get("/api/merchants/me", auth={"Authorization": f"Bearer {answer.body['token']}"})
    assert me.body == {**merchant, "webhookSecret": me.body["webhookSecret"]}
    orders = await bare_shop.get("/v1/orders", auth={"Authorization": f"Bearer {answer.body['token']}"})
    assert orders.body["data"] == []


async def test_a_taken_address_is_refused(bare_shop: Shop) -> None:
    await register(bare_shop)
    again = await register(bare_shop, email=" NEW@example.com")
    assert (again.status, again.code) == (400, "email_exists")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": "x"}, "name"),
        ({"name": "x" * 256}, "name"),
        ({"name": None}, "name"),
        ({"email": "nobody"}, "email"),
        ({"email": "a@b@c"}, "email"),
        ({"email": 7}, "email"),
        ({"password": "7 chars"}, "password"),
        ({"password": "p" * 101}, "password"),
        ({"isAdmin": True}, "isAdmin"),
    ],
)
async def test_what_no_account_may_have_is_refused(bare_shop: Shop, fields: dict[str, object], field: str) -> None:
    answer = await register(bare_shop, **fields)
    assert (answer.status, answer.code) == (400, "validation_failed")
    assert answer.body["details"][0]["field"] == field
    assert PASSWORD not in answer.text


async def test_everything_is_asked_for(bare_shop: Shop) -> None:
    for path in ("register", "login", "refresh", "logout"):
        answer = await bare_shop.post(f"/api/auth/{path}", auth=NOBODY)
        assert (answer.status, answer.code) == (400, "validation_failed")


@pytest.mark.parametrize("flags", [{"is_registration_open": "false"}])
async def test_registration_can_be_closed(bare_shop: Shop) -> None:
    answer = await register(bare_shop)
    assert (answer.status, answer.code) == (403, "registration_closed")
    assert (await log_in(bare_shop, "bare@example.com")).status == 200


async def test_signing_in_answers_what_registering_does(bare_shop: Shop) -> None:
    registered = (await register(bare_shop)).body
    answer = await log_in(bare_shop, "new@EXAMPLE.com")
    assert answer.status == 200
    assert set(answer.body) == {"token", "refreshToken", "merchant"}
    assert answer.body["merchant"] == registered["merchant"]


async def test_a_wrong_password_and_an_unknown_address_are_answered_alike(bare_shop: Shop) -> None:
    wrong = await log_in(bare_shop, "bare@example.com", "wrong horse")
    unknown = await log_in(bare_shop, "nobody@example.com", "wrong horse")
    assert (wrong.status, wrong.code) == (unknown.status, unknown.code) == (401, "invalid_credentials")
    assert wrong.body["message"] == unknown.body["message"]
    assert (await log_in(bare_shop, "not even an address")).code == "invalid_credentials"


async def test_guessing_is_slowed_down_with_the_time_to_wait(bare_shop: Shop) -> None:
    for _ in range(10):
        assert (await log_in(bare_shop, "bare@example.com", "wrong horse")).status == 401
    slowed = await log_in(bare_shop, "bare@example.com")
    assert (slowed.status, slowed.code) == (429, "too_many_attempts")
    assert slowed.headers["Retry-After"] == "1"
    assert (await log_in(bare_shop, "nobody@example.com")).status == 401


async def test_refresh_tokens_rotate_and_a_used_one_ends_the_session(bare_shop: Shop) -> None:
    first = (await register(bare_shop)).body["refreshToken"]
    second = await bare_shop.post("/api/auth/refresh", {"refreshToken": first}, auth=NOBODY)
    assert second.status == 200
    assert set(second.body) == {"token", "refreshToken", "merchant"}
    me = await bare_shop.get("/api/me", auth={"Authorization": f"Bearer {second.body['token']}"})
    assert me.body["email"] == "new@example.com"
    again = await bare_shop.post("/api/auth/refresh", {"refreshToken": first}, auth=NOBODY)
    assert again.body == second.body  # as if the first answer had been lost
    third = await bare_shop.post("/api/auth/refresh", {"refreshToken": second.body["refreshToken"]}, auth=NOBODY)
    assert third.status == 200
    for token in (first, second.body["refreshToken"], third.body["refreshToken"], "unknown"):
        answer = await bare_shop.post("/api/auth/refresh", {"refreshToken": token}, auth=NOBODY)
        assert (answer.status, answer.code) == (401, "invalid_refresh_token")


async def test_signing_out_ends_the_session(bare_shop: Shop) -> None:
    token = (await register(bare_shop)).body["refreshToken"]
    for _ in range(2):
        out = await bare_shop.post("/api/auth/logout", {"refreshToken": token}, auth=NOBODY)
        assert (out.status, out.text) == (204, "")
    again = await bare_shop.post("/api/auth/refresh", {"refreshToken": token}, auth=NOBODY)
    assert again.code == "invalid_refresh_token"


@pytest.mark.parametrize("path", ["/api/merchants/me", "/api/me"])
async def test_only_a_person_sees_the_signing_secret(bare_shop: Shop, path: str) -> None:
    by_key = await bare_shop.get(path)
    assert by_key.status == 200
    assert set(by_key.body) == MERCHANT_FIELDS
    by_person = await bare_shop.get(path, auth=person(bare_shop))
    assert by_person.body["webhookSecret"].startswith("whsec_")
    changed = await bare_shop.call("PUT", path, {"name": "Renamed"}, auth=person(bare_shop))
    assert changed.body == {**by_person.body, "name": "Renamed", "updatedAt": changed.body["updatedAt"]}
    assert set((await bare_shop.call("PUT", path, {})).body) == MERCHANT_FIELDS
    assert (await bare_shop.get(path, auth=NOBODY)).status == 401


async def test_the_webhook_address_is_set_kept_and_removed(bare_shop: Shop) -> None:
    url = "https://shop.example.com/hooks"
    assert (await bare_shop.call("PUT", "/api/me", {"webhookUrl": url})).body["webhookUrl"] == url
    assert (await bare_shop.call("PUT", "/api/me", {"name": "Renamed"})).body["webhookUrl"] == url
    assert (await bare_shop.call("PUT", "/api/me", {"webhookUrl": None})).body["webhookUrl"] is None
    assert (await bare_shop.get("/api/me")).body["name"] == "Renamed"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ({"webhookUrl": "http://127.0.0.1:9/hooks"}, "invalid_webhook_url"),
        ({"webhookUrl": "http://169.254.169.254/"}, "invalid_webhook_url"),
        ({"webhookUrl": "ftp://shop.example.com/"}, "invalid_webhook_url"),
        ({"webhookUrl": ""}, "invalid_webhook_url"),
        ({"webhookUrl": 7}, "validation_failed"),
        ({"name": "x"}, "validation_failed"),
        ({"name": None}, "validation_failed"),
        ({"email": "other@example.com"}, "validation_failed"),
    ],
)
async def test_a_profile_that_cannot_be_is_refused(bare_shop: Shop, content: dict[str, object], code: str) -> None:
    before = (await bare_shop.get("/api/me")).body
    answer = await bare_shop.call("PUT", "/api/me", content)
    assert (answer.status, answer.code) == (400, code)
    assert (await bare_shop.get("/api/me")).body == before


async def test_a_key_is_shown_once_and_works(bare_shop: Shop) -> None:
    sent = {"name": "till", "expiresAt": "2099-01-01T00:00:00Z"}
    answer = await bare_shop.post("/api/api-keys", sent, auth=person(bare_shop))
    assert answer.status == 201, answer.text
    assert set(answer.body) == {"apiKey", "secret"}
    key, secret = answer.body["apiKey"], answer.body["secret"]
    assert set(key) == KEY_FIELDS
    assert is_well_formed(secret)
    assert secret.startswith(key["prefix"])
    assert (key["name"], key["mode"], key["scopes"]) == ("till", "test", ["*"])
    assert key["expiresAt"] == "2099-01-01T00:00:00.000Z"
    listed = await bare_shop.get("/api/api-keys", auth=person(bare_shop))
    assert listed.body[0] == key
    assert secret not in listed.text
    for headers in ({"X-API-Key": secret}, {"Authorization": f"Bearer {secret}"}):
        assert (await bare_shop.post("/v1/orders", {"amount": 100}, auth=headers)).status == 201


async def test_a_key_has_the_mode_that_is_asked_for(bare_shop: Shop) -> None:
    for mode in ("live", "test"):
        answer = await bare_shop.post("/api/api-keys", {"name": mode, "mode": mode}, auth=person(bare_shop))
        assert answer.body["secret"].startswith(f"sk_{mode}_")


async def test_a_revoked_key_is_refused_at_once(bare_shop: Shop) -> None:
    made = (await bare_shop.post("/api/api-keys", {"name": "till"}, auth=person(bare_shop))).body
    headers = {"X-API-Key": made["secret"]}
    assert (await bare_shop.get("/v1/orders", auth=headers)).status == 200
    path = f"/api/api-keys/{made['apiKey']['id']}"
    revoked = await bare_shop.call("DELETE", path, auth=person(bare_shop))
    assert (revoked.status, revoked.text) == (204, "")
    refused = await bare_shop.get("/v1/orders", auth=headers)
    assert (refused.status, refused.code) == (401, "invalid_api_key")
    assert (await bare_shop.call("DELETE", path, auth=person(bare_shop))).code == "not_found"
    listed = await bare_shop.get("/api/api-keys", auth=person(bare_shop))
    assert [key["name"] for key in listed.body] == ["till"]
    assert listed.body[0]["id"] != made["apiKey"]["id"]


@pytest.mark.parametrize("key_id", ["key_none", "%00", "x" * 300, "ord_00000000000000000000000000"])
async def test_an_unknown_key_is_not_found(bare_shop: Shop, key_id: str) -> None:
    answer = await bare_shop.call("DELETE", f"/api/api-keys/{key_id}", auth=person(bare_shop))
    assert (answer.status, answer.code) == (404, "not_found")


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"name": ""},
        {"name": "x" * 256},
        {"name": "till", "mode": "both"},
        {"name": "till", "expiresAt": "2020-01-01T00:00:00Z"},
        {"name": "till", "expiresAt": "soon"},
        {"name": "till", "expiresAt": 4102444800},
        {"name": "till", "scopes": ["read"]},
        {"name": "till", "scopes": ["*", "orders:everything"]},
        {"name": "till", "scopes": []},
        {"name": "till", "prefix": "sk_live_mine"},
    ],
)
async def test_a_key_that_cannot_be_is_refused(bare_shop: Shop, content: dict[str, object]) -> None:
    answer = await bare_shop.post("/api/api-keys", content, auth=person(bare_shop))
    assert (answer.status, answer.code) == (400, "validation_failed")
    assert len((await bare_shop.get("/api/api-keys")).body) == 1


async def test_a_key_neither_makes_nor_revokes_keys(bare_shop: Shop) -> None:
    (own,) = (await bare_shop.get("/api/api-keys")).body
    made = await bare_shop.post("/api/api-keys", {"name": "another"})
    revoked = await bare_shop.call("DELETE", f"/api/api-keys/{own['id']}")
    assert (made.status, made.code) == (revoked.status, revoked.code) == (403, "person_required")
    assert (await bare_shop.get("/api/api-keys")).body[0]["id"] == own["id"]
