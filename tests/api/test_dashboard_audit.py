"""The page of the audit log: found by what, who, which and when, with what was and is, and whether it is whole."""

from collections.abc import AsyncIterator

import pytest

from loop.server.dashboard.pages import audit as audit_page
from loop.workflows import audit
from tests.api.client import Shop
from tests.api.dashboard_desk import Desk, new_desk
from tests.workflow.test_audit import tamper

PAGE = "/dashboard/audit"


@pytest.fixture
async def desk(shop: Shop) -> AsyncIterator[Desk]:
    async with new_desk(shop) as signed_in:
        yield signed_in


async def rename(shop: Shop, name: str) -> None:
    answer = await shop.call("PUT", "/api/me", {"name": name}, auth={"Authorization": f"Bearer {shop.token}"})
    assert answer.status == 200, answer.text


async def test_an_entry_says_who_what_was_and_is(desk: Desk, shop: Shop) -> None:
    await rename(shop, "Lamps <and> more")
    page = (await desk.get(PAGE)).text
    assert "Profile changed" in page
    assert "Signed-in person" in page
    assert '<td class="was">shop</td><td class="is">Lamps &lt;and&gt; more</td>' in page


async def test_entries_are_found_by_what_who_which_and_when(desk: Desk, shop: Shop) -> None:
    await rename(shop, "Another name")
    [changed] = (await desk.told(f"{PAGE}.json?action=profile.changed"))["data"]
    assert changed["after"] == {"name": "Another name"}
    by_person = {each["action"] for each in (await desk.told(f"{PAGE}.json?actor=user"))["data"]}
    assert by_person == {"profile.changed", "sign_in.succeeded"}
    assert {
        each["action"] for each in (await desk.told(f"{PAGE}.json?subject={shop.merchant.id}"))["data"]
    } >= by_person
    today = changed["createdAt"][:10]
    assert (await desk.told(f"{PAGE}.json?from={today}&to={today}&action=profile.changed"))["data"] == [changed]
    for nothing in ("?to=2020-01-01", "?from=2100-01-01", "?action=order.eaten"):
        assert (await desk.told(f"{PAGE}.json{nothing}"))["data"] == []
    assert "No such entries" in (await desk.get(f"{PAGE}?to=2020-01-01")).text
    assert (await desk.get(f"{PAGE}?from=yesterday")).status == 400


async def test_pages_of_entries_follow_each_other_and_keep_the_filter(desk: Desk, shop: Shop) -> None:
    for number in range(27):
        await rename(shop, f"Name {number}")
    first = await desk.told(f"{PAGE}.json?action=profile.changed")
    names = [each["after"]["name"] for each in first["data"]]
    assert names == [f"Name {number}" for number in range(26, 1, -1)]
    second = await desk.told(f"{PAGE}.json?action=profile.changed&cursor={first['nextCursor']}")
    assert [each["after"]["name"] for each in second["data"]] == ["Name 1", "Name 0"]
    page = (await desk.get(f"{PAGE}?action=profile.changed")).text
    assert f"action=profile.changed&amp;cursor={first['nextCursor']}" in page


async def test_a_whole_chain_is_said_to_be_so_with_its_end(desk: Desk) -> None:
    assert (await desk.told(f"{PAGE}.json"))["chain"] is None
    content = await desk.told(f"{PAGE}.json?check=1")
    assert (content["chain"]["isWhole"], content["chain"]["isComplete"]) == (True, True)
    assert content["chain"]["hash"] == content["data"][0]["hash"]
    page = (await desk.get(f"{PAGE}?check=1")).text
    assert "The chain is whole" in page
    assert content["chain"]["hash"] in page


async def test_a_changed_entry_is_named(desk: Desk, shop: Shop, database_url: str) -> None:
    await rename(shop, "Another name")
    [changed] = (await desk.told(f"{PAGE}.json?action=profile.changed"))["data"]
    tamper(database_url, "UPDATE audit_log SET subject = 'mer_x' WHERE action = 'profile.changed'")
    chain = (await desk.told(f"{PAGE}.json?check=1"))["chain"]
    assert (chain["isWhole"], chain["brokenId"]) == (False, changed["id"])
    page = (await desk.get(f"{PAGE}?check=1")).text
    assert f"The chain is broken at <code>{changed['id']}</code>" in page
    assert 'class="is-broken"' in page


async def test_a_long_chain_is_followed_so_far_and_no_further(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_page, "CHECKED_MAX", 1)
    monkeypatch.setattr(audit, "PAGE", 1)
    chain = (await desk.told(f"{PAGE}.json?check=1"))["chain"]
    assert (chain["isWhole"], chain["isComplete"], chain["entries"]) == (True, False, 1)
    assert "loop audit verify" in (await desk.get(f"{PAGE}?check=1")).text


async def test_the_log_of_others_is_not_there(desk: Desk, shop: Shop, bare_shop: Shop) -> None:
    await rename(shop, "Another name")
    async with new_desk(bare_shop) as stranger:
        assert (await stranger.told(f"{PAGE}.json?action=profile.changed"))["data"] == []
        assert (await stranger.told(f"{PAGE}.json?subject={shop.merchant.id}"))["data"] == []
    assert desk.shop is shop
