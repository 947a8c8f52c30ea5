"""The dashboard's API keys: made and shown once, replaced with an overlap, revoked at once."""

import json
import re
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import aiohttp
import pytest

from loop.domain.scopes import Scope
from loop.runtime import Running
from loop.workflows import merchants
from loop.workflows.merchants import NewApiKey
from tests.api.client import Shop, open_shop
from tests.api.dashboard_desk import Desk, Seen, new_desk
from tests.canaries import aviary

HERE = "/dashboard/api-keys"
_KEY = re.compile(r'value="(sk_(?:test|live)_[0-9A-Za-z]{38})"')


@pytest.fixture
async def desk(shop: Shop) -> AsyncIterator[Desk]:
    async with new_desk(shop) as signed_in:
        yield signed_in


async def keys(desk: Desk) -> list[dict[str, Any]]:
    answer = await desk.get(f"{HERE}.json")
    assert answer.status == 200, answer.text
    found: list[dict[str, Any]] = json.loads(answer.text)["data"]
    return found


async def make(desk: Desk, **fields: str) -> tuple[Seen, str | None]:
    """Make a key by its form; return the page and the key that it shows."""
    form = (await desk.get(f"{HERE}/new")).form("/new")
    page = await desk.post(f"{HERE}/new", {**form, "mode": "test", "may": "all", **fields})
    return page, shown_in(page)


def shown_in(page: Seen) -> str | None:
    """Return the key that a page shows, which may be seen nowhere else."""
    shown = _KEY.findall(page.text)
    for each in shown:
        aviary.keep(each)
    return shown[0] if shown else None


async def send(desk: Desk, key_id: str, action: str, **fields: str) -> Seen:
    form = (await desk.get(f"{HERE}/{key_id}")).form(f"/{action}")
    return await desk.post(f"{HERE}/{key_id}/{action}", {**form, **fields})


async def status_with(shop: Shop, key: str) -> int:
    return (await shop.get("/v1/orders", auth={"X-API-Key": key})).status


async def test_a_key_is_made_shown_once_and_works(desk: Desk, shop: Shop) -> None:
    page, key = await make(desk, name="bookkeeping", may="some", life="90", **{"scope.orders:read": "1"})
    assert page.status == 200
    assert key is not None
    assert await status_with(shop, key) == 200
    (row,) = [each for each in await keys(desk) if each["name"] == "bookkeeping"]
    assert (row["scopes"], row["mode"], row["prefix"]) == (["orders:read"], "test", key[:12])
    lasts = datetime.fromisoformat(row["expiresAt"]) - datetime.fromisoformat(row["createdAt"])
    assert timedelta(days=90) - lasts < timedelta(minutes=1)
    refused = await shop.post("/v1/orders", {"amount": 1, "currency": "USD"}, auth={"X-API-Key": key})
    assert refused.status == 403
    for path in (HERE, f"{HERE}.json", f"{HERE}/{row['id']}", f"{HERE}/{row['id']}.json", f"{HERE}/new"):
        assert key not in (await desk.get(path)).text


async def test_the_same_form_makes_one_key_and_does_not_show_it_twice(desk: Desk) -> None:
    form = {**(await desk.get(f"{HERE}/new")).form("/new"), "name": "till", "mode": "live", "may": "all"}
    first = await desk.post(f"{HERE}/new", form)
    assert str(shown_in(first)).startswith("sk_live_")
    again = await desk.post(f"{HERE}/new", form)
    assert (again.status, shown_in(again)) == (200, None)
    assert "shown only once" in again.text
    assert [each["mode"] for each in await keys(desk)].count("live") == 1


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ({"name": " "}, "type one"),
        ({"name": "x" * 256}, "at most 255 characters"),
        ({"may": "some", "scope.refunds:write": ""}, "Choose at least one"),
        ({"life": "7000"}, "Choose one of the list"),
        ({"mode": "both"}, "&#39;live&#39; or &#39;test&#39;"),
    ],
)
async def test_a_refused_form_keeps_what_was_typed(desk: Desk, typed: dict[str, str], said: str) -> None:
    before = len(await keys(desk))
    page, key = await make(desk, **{"name": "kept name", "scope.refunds:write": "1", **typed})
    assert (page.status, key, len(await keys(desk))) == (400, None, before)
    assert said in page.text
    assert f'value="{typed.get("name", "kept name").strip()}' in page.text
    is_checked = re.search(r'name="scope\.refunds:write" value="1" checked', page.text) is not None
    assert is_checked is bool(typed.get("scope.refunds:write", "1"))


async def test_a_key_is_rotated_with_an_overlap(desk: Desk, shop: Shop) -> None:
    _, old = await make(desk, name="shop", may="some", **{"scope.orders:read": "1"})
    assert old is not None
    (row,) = [each for each in await keys(desk) if each["name"] == "shop"]
    form = {**(await desk.get(f"{HERE}/{row['id']}")).form("/rotate"), "overlap": "24"}
    page = await desk.post(f"{HERE}/{row['id']}/rotate", form)
    new = shown_in(page)
    assert new is not None
    assert [await status_with(shop, each) for each in (old, new)] == [200, 200]
    again = await desk.post(f"{HERE}/{row['id']}/rotate", form)
    assert (shown_in(again), "shown only once" in again.text) == (None, True)
    both = [each for each in await keys(desk) if each["name"] == "shop"]
    assert [each["scopes"] for each in both] == [["orders:read"]] * 2
    ended = await send(desk, both[0]["id"], "rotate", overlap="0")
    last = shown_in(ended)
    assert last is not None
    assert [await status_with(shop, each) for each in (new, last)] == [401, 200]
    expired = await desk.get(f"{HERE}/{both[0]['id']}")
    assert "Expired" in expired.text
    assert not expired.offers("/rotate")
    assert (
        await desk.post(f"{HERE}/{both[0]['id']}/rotate", {**form, "key": expired.form("/revoke")["key"]})
    ).status == 400


async def test_a_key_is_revoked_at_once(desk: Desk, shop: Shop) -> None:
    _, key = await make(desk, name="lost")
    assert key is not None
    assert await status_with(shop, key) == 200
    (row,) = [each for each in await keys(desk) if each["name"] == "lost"]
    revoked = await send(desk, row["id"], "revoke")
    assert revoked.location == f"{HERE}?notice=revoked"
    assert "The key was revoked" in (await desk.get(revoked.location)).text
    assert await status_with(shop, key) == 401
    assert (await desk.get(f"{HERE}/{row['id']}")).status == 404


async def test_a_key_says_what_it_may_do_and_when_it_ends(desk: Desk, shop: Shop, served: Running) -> None:
    context = served.context
    ends_at = context.now() + timedelta(days=2)
    new = NewApiKey('"><script>alert(1)</script>', ends_at, "live", (Scope.REFUNDS_WRITE.value,))
    key, secret = await merchants.create_api_key(context, shop.merchant.id, new)
    aviary.keep(secret)
    page = (await desk.get(f"{HERE}/{key.id}")).text
    assert "<script>alert" not in page
    assert "Ends soon" in page
    assert "refunds:write" in page
    assert "orders:write" not in page
    assert "Ends soon" in (await desk.get(HERE)).text
    refused = await send(desk, key.id, "rotate", overlap="9999")
    assert (refused.status, "Choose one of the list" in refused.text) == (400, True)


async def test_an_empty_place_says_how_it_fills(desk: Desk) -> None:
    for each in await keys(desk):
        await send(desk, each["id"], "revoke")
    assert "No API keys yet" in (await desk.get(HERE)).text


async def test_anothers_keys_are_as_if_they_were_not_there(
    desk: Desk, served: Running, session: aiohttp.ClientSession
) -> None:
    (row,) = await keys(desk)
    other = await open_shop(session, served.url, served.context, name="other")
    async with new_desk(other) as stranger:
        for path in (f"{HERE}/{row['id']}", f"{HERE}/{row['id']}.json"):
            assert (await stranger.get(path)).status == 404
        for action in ("rotate", "revoke"):
            form = (await stranger.get(f"{HERE}/new")).form("/new")
            answer = await stranger.post(f"{HERE}/{row['id']}/{action}", {**form, "overlap": "0"})
            assert answer.status == 404, action
        assert [each["id"] for each in await keys(stranger)] != [row["id"]]
    assert await status_with(desk.shop, desk.shop.key) == 200


async def test_forms_count_only_from_our_own_pages(desk: Desk) -> None:
    (row,) = await keys(desk)
    form = (await desk.get(f"{HERE}/{row['id']}")).form("/revoke")
    foreign = {"Sec-Fetch-Site": "same-site"}
    assert (await desk.post(f"{HERE}/{row['id']}/revoke", form, headers=foreign)).status == 403
    assert (await desk.post(f"{HERE}/{row['id']}/revoke", {**form, "csrf": "x"})).status == 403
    assert len(await keys(desk)) == 1
