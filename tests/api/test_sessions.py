"""Sessions over HTTP: where somebody is signed in, and what ending a session ends at once."""

from loop.workflows import merchants
from tests.api.client import PASSWORD, Answer, Shop

NOBODY: dict[str, str] = {}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def log_in(shop: Shop, user_agent: str) -> Answer:
    content = {"email": shop.merchant.email, "password": PASSWORD}
    return await shop.post("/api/auth/login", content, auth=NOBODY, headers={"User-Agent": user_agent})


async def test_sessions_are_listed_with_the_caller_s_own_marked(bare_shop: Shop) -> None:
    signed_in = (await log_in(bare_shop, "Firefox")).body
    listed = (await bare_shop.get("/api/sessions", auth=bearer(signed_in["token"]))).body
    assert [(each["userAgent"], each["current"]) for each in listed] == [
        ("Firefox", True),
        ("the shop's own client", False),
    ]
    assert set(listed[0]) == {"id", "current", "address", "userAgent", "createdAt", "lastUsedAt", "expiresAt"}
    assert listed[0]["address"] == "127.0.0.1"
    assert signed_in["refreshToken"] not in str(listed)


async def test_a_session_that_is_ended_is_over_at_once(bare_shop: Shop) -> None:
    lost = (await log_in(bare_shop, "lost phone")).body
    (found,) = [
        each
        for each in (await bare_shop.get("/api/sessions", auth=bearer(bare_shop.token))).body
        if each["userAgent"] == "lost phone"
    ]
    path = f"/api/sessions/{found['id']}"
    ended = await bare_shop.call("DELETE", path, auth=bearer(bare_shop.token))
    assert (ended.status, ended.text) == (204, "")
    assert (await bare_shop.get("/v1/orders", auth=bearer(lost["token"]))).code == "invalid_token"
    again = await bare_shop.post("/api/auth/refresh", {"refreshToken": lost["refreshToken"]}, auth=NOBODY)
    assert again.code == "invalid_refresh_token"
    assert (await bare_shop.call("DELETE", path, auth=bearer(bare_shop.token))).code == "not_found"
    assert (await bare_shop.get("/v1/orders", auth=bearer(bare_shop.token))).status == 200


async def test_signing_out_ends_the_access_token_as_well(bare_shop: Shop) -> None:
    signed_in = (await log_in(bare_shop, "Firefox")).body
    await bare_shop.post("/api/auth/logout", {"refreshToken": signed_in["refreshToken"]}, auth=NOBODY)
    assert (await bare_shop.get("/v1/orders", auth=bearer(signed_in["token"]))).code == "invalid_token"


async def test_a_reset_password_signs_everybody_out(bare_shop: Shop) -> None:
    await merchants.reset_password(bare_shop.context, bare_shop.merchant.id, "another horse")
    assert (await bare_shop.get("/v1/orders", auth=bearer(bare_shop.token))).code == "invalid_token"
    assert (await log_in(bare_shop, "Firefox")).code == "invalid_credentials"
    assert (await bare_shop.get("/v1/orders")).status == 200  # by its key


async def test_another_merchant_s_session_is_not_found(bare_shop: Shop, shop: Shop) -> None:
    (theirs,) = (await shop.get("/api/sessions", auth=bearer(shop.token))).body
    for session_id in (theirs["id"], "fam_none", "%00", "x" * 300):
        answer = await bare_shop.call("DELETE", f"/api/sessions/{session_id}", auth=bearer(bare_shop.token))
        assert (answer.status, answer.code) == (404, "not_found")
    assert (await shop.get("/api/sessions", auth=bearer(shop.token))).body == [theirs]


async def test_a_key_sees_and_ends_no_sessions(bare_shop: Shop) -> None:
    for answer in (await bare_shop.get("/api/sessions"), await bare_shop.call("DELETE", "/api/sessions/fam_x")):
        assert (answer.status, answer.code) == (403, "person_required")
