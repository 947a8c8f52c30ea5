"""Signing in to the dashboard: the cookie, what it opens, and forms that were not sent from our own pages."""

from collections.abc import AsyncIterator

import pytest

from tests.api.client import Shop
from tests.api.dashboard_desk import Desk, new_desk

PAGES = [
    "",
    "/overview",
    "/orders",
    "/refunds",
    "/disputes",
    "/reconciliation",
    "/patterns",
    "/links",
    "/links/new",
    "/routing",
    "/routing/new",
    "/audit",
    "/settings",
]
HTTPS = "https://pay.example.com"


@pytest.fixture
async def stranger(shop: Shop) -> AsyncIterator[Desk]:
    async with new_desk(shop, is_signed_in=False) as desk:
        yield desk


@pytest.fixture
async def desk(shop: Shop) -> AsyncIterator[Desk]:
    async with new_desk(shop) as signed_in:
        yield signed_in


async def test_the_cookie_is_kept_from_scripts_and_foreign_forms(stranger: Desk) -> None:
    answer = await stranger.sign_in(next="/dashboard/orders?status=failed")
    assert (answer.status, answer.location) == (303, "/dashboard/orders?status=failed")
    cookie = answer.headers["Set-Cookie"]
    assert cookie.startswith("loop_session=")
    assert {"HttpOnly", "Path=/", "SameSite=lax"} <= set(cookie.split("; "))
    assert "Secure" not in cookie  # this Loop is reached by plain HTTP
    assert (await stranger.get("/dashboard")).status == 200


@pytest.mark.parametrize("flags", [{"checkout_base_url": HTTPS}])
async def test_over_https_the_cookie_is_bound_to_its_host(stranger: Desk, flags: dict[str, object]) -> None:
    assert flags
    cookie = (await stranger.sign_in()).headers["Set-Cookie"]
    assert cookie.startswith("__Host-loop_session=")
    assert {"HttpOnly", "Path=/", "SameSite=lax", "Secure"} <= set(cookie.split("; "))
    assert "Domain" not in cookie


async def test_a_wrong_password_opens_nothing(stranger: Desk) -> None:
    answer = await stranger.sign_in("wrong <b>password</b>")
    assert answer.status == 401
    assert "The e-mail address or the password is wrong." in answer.text
    assert "wrong <b>" not in answer.text
    assert "password</b>" not in answer.text
    assert "Set-Cookie" not in answer.headers
    assert (await stranger.get("/dashboard")).location == "/dashboard/sign-in"


async def test_guesses_are_slowed_down(stranger: Desk) -> None:
    for _ in range(10):
        assert (await stranger.sign_in("a wrong password")).status == 401
    answer = await stranger.sign_in()
    assert answer.status == 429
    assert int(answer.headers["Retry-After"]) > 0
    assert "too many failed sign-ins" in answer.text


@pytest.mark.parametrize(
    "wanted",
    [
        "//evil.example", "https://evil.example", "/dashboard//evil", "/api/me", "/dashboard\\@evil", "",
        "/dashboard/../return/att_1", "/dashboard/./../x", "/dashboard/orders/..",
    ],
)  # fmt: skip
async def test_a_sign_in_leads_nowhere_else(stranger: Desk, wanted: str) -> None:
    assert (await stranger.sign_in(next=wanted)).location == "/dashboard"


@pytest.mark.parametrize("page", PAGES)
async def test_pages_are_for_who_is_signed_in(stranger: Desk, page: str) -> None:
    answer = await stranger.get(f"/dashboard{page}")
    assert answer.status == 303
    assert answer.location.startswith("/dashboard/sign-in")
    if page:
        told = await stranger.get(f"/dashboard{page}.json")
        assert told.status == 401
        assert '"missing_session"' in told.text


@pytest.mark.parametrize("page", PAGES)
async def test_each_page_keeps_to_the_policy(desk: Desk, page: str) -> None:
    answer = await desk.get(f"/dashboard{page}")
    assert answer.status == 200
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Referrer-Policy"] == "same-origin"
    assert desk.cookie() not in answer.text
    if page:
        assert (await desk.get(f"/dashboard{page}.json")).headers["Content-Type"] == "application/json"


async def test_signing_out_ends_the_session_for_every_holder(desk: Desk, shop: Shop) -> None:
    token = desk.cookie()
    page = await desk.get("/dashboard")
    assert (await desk.post("/dashboard/sign-out", page.form("/sign-out"))).location == "/dashboard/sign-in"
    async with new_desk(shop, is_signed_in=False) as thief:
        thief.client.cookie_jar.update_cookies({"loop_session": token})
        assert (await thief.get("/dashboard")).status == 303


async def test_a_session_can_be_ended_from_the_api(desk: Desk, shop: Shop) -> None:
    person = {"Authorization": f"Bearer {shop.token}"}
    (await desk.get("/dashboard")).form("/sign-out")
    sessions = (await shop.get("/api/sessions", auth=person)).body
    for each in sessions["data"] if isinstance(sessions, dict) else sessions:
        await shop.call("DELETE", f"/api/sessions/{each['id']}", auth=person)
    assert (await desk.get("/dashboard")).status == 303


FOREIGN = [
    {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {},
]


@pytest.mark.parametrize("headers", FOREIGN)
async def test_a_foreign_form_changes_nothing(desk: Desk, shop: Shop, headers: dict[str, str]) -> None:
    order = await shop.paid_order()
    form = (await desk.get(f"/dashboard/orders/{order['id']}")).form("/refund")
    answer = await desk.post(f"/dashboard/orders/{order['id']}/refund", form, headers=headers)
    assert answer.status == 403
    assert "foreign_form" in answer.text
    assert (await shop.get(f"/v1/orders/{order['id']}")).body["amountRefunded"] == 0


@pytest.mark.parametrize("headers", FOREIGN)
async def test_nobody_is_signed_in_by_a_foreign_form(shop: Shop, headers: dict[str, str]) -> None:
    async with new_desk(shop, is_signed_in=False) as stranger:
        form = {"email": shop.merchant.email, "password": "correct horse battery"}
        answer = await stranger.post("/dashboard/sign-in", form, headers=headers)
        assert answer.status == 403
        assert "Set-Cookie" not in answer.headers


async def test_an_old_browser_says_its_origin_only(desk: Desk, shop: Shop) -> None:
    order = await shop.paid_order()
    form = (await desk.get(f"/dashboard/orders/{order['id']}")).form("/refund")
    answer = await desk.post(f"/dashboard/orders/{order['id']}/refund", form, headers={"Origin": shop.url})
    assert answer.status == 303


@pytest.mark.parametrize("csrf", [None, "", "0" * 64, "another"])
async def test_a_form_without_its_proof_changes_nothing(desk: Desk, shop: Shop, csrf: str | None) -> None:
    order = await shop.paid_order()
    form = (await desk.get(f"/dashboard/orders/{order['id']}")).form("/refund")
    kept = {name: value for name, value in form.items() if name != "csrf"}
    if csrf == "another":
        async with new_desk(shop) as other:
            csrf = (await other.get(f"/dashboard/orders/{order['id']}")).form("/refund")["csrf"]
    answer = await desk.post(
        f"/dashboard/orders/{order['id']}/refund", kept if csrf is None else {**kept, "csrf": csrf}
    )
    assert answer.status == 403
    assert "stale_form" in answer.text
    assert (await shop.get(f"/v1/orders/{order['id']}")).body["amountRefunded"] == 0


async def test_a_form_of_somebody_not_signed_in_changes_nothing(desk: Desk, shop: Shop) -> None:
    order = await shop.paid_order()
    form = (await desk.get(f"/dashboard/orders/{order['id']}")).form("/refund")
    async with new_desk(shop, is_signed_in=False) as stranger:
        answer = await stranger.post(f"/dashboard/orders/{order['id']}/refund", form)
    assert answer.location == "/dashboard/sign-in"
    assert (await shop.get(f"/v1/orders/{order['id']}")).body["amountRefunded"] == 0


async def test_the_mode_is_switched_by_a_form_and_kept(desk: Desk, shop: Shop) -> None:
    order = await shop.paid_order()
    assert order["externalId"] in (await desk.get("/dashboard/orders")).text
    form = (await desk.get("/dashboard")).form("/mode")
    assert (await desk.post("/dashboard/mode", {**form, "mode": "live"})).status == 303
    assert order["externalId"] not in (await desk.get("/dashboard/orders")).text
    assert (await desk.get(f"/dashboard/orders/{order['id']}")).status == 404
    assert (await desk.post("/dashboard/mode", {**form, "mode": "both"})).status == 400
