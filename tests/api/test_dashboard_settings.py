"""The page of settings: saved, refused with what was typed, the password changed, and sessions ended elsewhere."""

from collections.abc import AsyncIterator

import pytest

from loop.server.dashboard.pages import overview
from tests.api.client import PASSWORD, Shop
from tests.api.dashboard_desk import Desk, Seen, new_desk

PAGE = "/dashboard/settings"
NEW_PASSWORD = "a different sentence altogether"


@pytest.fixture
async def desk(shop: Shop) -> AsyncIterator[Desk]:
    async with new_desk(shop) as signed_in:
        yield signed_in


async def send(desk: Desk, form: str, path: str = "", **typed: str) -> Seen:
    page = await desk.get(PAGE)
    return await desk.post(f"{PAGE}{path or form}", {**page.form(form), **typed})


async def test_the_name_and_the_policy_are_saved(desk: Desk) -> None:
    answer = await desk.post(
        PAGE, {**(await desk.get(PAGE)).form("/settings"), "name": "Lamps & more", "lateSuccess": "refund"}
    )
    assert answer.location == f"{PAGE}?notice=saved"
    merchant = (await desk.told(f"{PAGE}.json"))["merchant"]
    assert (merchant["name"], merchant["lateSuccess"]) == ("Lamps & more", "refund")
    page = (await desk.get(answer.location)).text
    assert "The settings were saved." in page
    assert "Lamps &amp; more" in page


async def test_the_api_takes_the_policy_as_well(desk: Desk, shop: Shop) -> None:
    person = {"Authorization": f"Bearer {shop.token}"}
    answer = await shop.call("PUT", "/api/merchants/me", {"lateSuccess": "refund"}, auth=person)
    assert (answer.status, answer.body["lateSuccess"]) == (200, "refund")
    refused = await shop.call("PUT", "/api/merchants/me", {"lateSuccess": "keep"}, auth=person)
    assert (refused.status, refused.code) == (400, "validation_failed")
    assert (await desk.told(f"{PAGE}.json"))["merchant"]["lateSuccess"] == "refund"


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ({"name": "x"}, "Must have 2 to"),
        ({"name": ""}, "Must have 2 to"),
        ({"lateSuccess": "keep"}, "must be one of accept, refund"),
    ],
)
async def test_what_cannot_be_is_refused_with_what_was_typed(desk: Desk, typed: dict[str, str], words: str) -> None:
    form = {**(await desk.get(PAGE)).form("/settings"), "name": "Other name", "lateSuccess": "refund", **typed}
    answer = await desk.post(PAGE, form)
    assert answer.status == 400
    assert words in answer.text
    assert f'value="{form["name"]}"' in answer.text
    assert (await desk.told(f"{PAGE}.json"))["merchant"]["name"] == "shop"


async def test_the_password_is_changed_and_others_are_signed_out(desk: Desk, shop: Shop) -> None:
    before = desk.cookie()
    async with new_desk(shop) as elsewhere:
        answer = await send(desk, "/password", current=PASSWORD, new=NEW_PASSWORD, again=NEW_PASSWORD)
        assert answer.location == f"{PAGE}?notice=password"
        assert desk.cookie() != before
        assert (await desk.get(answer.location)).status == 200
        assert (await elsewhere.get(PAGE)).status == 303
        assert (await elsewhere.sign_in(PASSWORD)).status == 401
        assert (await elsewhere.sign_in(NEW_PASSWORD)).status == 303


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ({"current": "not my password"}, "Is not your password"),
        ({"again": "something else here"}, "Is not the same as the new password"),
        ({"new": "short", "again": "short"}, "Must have 8 to"),
    ],
)
async def test_a_password_is_not_changed_by_mistake(desk: Desk, typed: dict[str, str], words: str) -> None:
    given = {"current": PASSWORD, "new": NEW_PASSWORD, "again": NEW_PASSWORD, **typed}
    answer = await send(desk, "/password", **given)
    assert answer.status == 400
    assert words in answer.text
    assert not any(each in answer.text for each in given.values())
    assert (await desk.get(PAGE)).status == 200
    assert (await desk.sign_in(PASSWORD)).status == 303


async def test_guesses_of_the_password_are_slowed_down(desk: Desk) -> None:
    statuses = [
        (await send(desk, "/password", current="a guess of it", new=NEW_PASSWORD, again=NEW_PASSWORD)).status
        for _ in range(11)
    ]
    assert statuses == [400] * 10 + [429]


async def test_sessions_are_listed_and_ended(desk: Desk, shop: Shop) -> None:
    async with new_desk(shop) as elsewhere:
        current: list[str] = []
        others: list[str] = []
        for each in (await desk.told(f"{PAGE}.json"))["sessions"]:
            (current if each["current"] else others).append(each["id"])
        assert len(current) == 1
        assert len(others) == 2  # the other browser, and the shop's own client
        newest = max(others)
        assert (await send(desk, f"{newest}/end", f"/sessions/{newest}/end")).location == f"{PAGE}?notice=ended"
        assert (await elsewhere.get(PAGE)).status == 303
        assert (await send(desk, "/others/end", "/sessions/others/end")).location == f"{PAGE}?notice=others"
        assert [each["id"] for each in (await desk.told(f"{PAGE}.json"))["sessions"]] == current
        assert not (await desk.get(PAGE)).offers("/end")
    async with new_desk(shop) as stranger:
        gone = await stranger.post(f"{PAGE}/sessions/{newest}/end", (await stranger.get(PAGE)).form("/password"))
        assert (gone.status, "not_found" in gone.text) == (404, True)


async def test_a_mistake_of_loops_own_is_a_page_with_its_number(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stumble(*_: object) -> None:
        raise RuntimeError("the figures do not add up")

    monkeypatch.setattr(overview, "_compared", stumble)
    answer = await desk.get("/dashboard", **{"X-Correlation-ID": "look-for-this"})
    assert answer.status == 500
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "look-for-this" in answer.text
    assert "add up" not in answer.text
    assert "the figures do not add up" in caplog.text
