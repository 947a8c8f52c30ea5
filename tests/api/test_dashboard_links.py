"""The pages of checkout links: made once, listed by how they stand, shown to send, paid, and closed."""

from collections.abc import AsyncIterator

import pytest

from tests.api.client import Shop
from tests.api.dashboard_desk import Desk, Seen, new_desk

PAGE = "/dashboard/links"
TYPED = {"amount": "49.99", "currency": "eur", "purpose": "Two <lamps>", "email": "ana@example.com", "hours": "24"}


@pytest.fixture
async def desk(shop: Shop) -> AsyncIterator[Desk]:
    async with new_desk(shop) as signed_in:
        yield signed_in


async def make(desk: Desk, **typed: str) -> Seen:
    page = await desk.get(f"{PAGE}/new")
    return await desk.post(f"{PAGE}/new", {**page.form("/new"), **TYPED, **typed})


async def made(desk: Desk, **typed: str) -> str:
    """Make a link and return its session's id."""
    answer = await make(desk, **typed)
    assert answer.status == 303, answer.text
    return answer.location.removeprefix(f"{PAGE}/").removesuffix("?notice=made")


async def test_an_empty_list_says_what_links_are_for(desk: Desk) -> None:
    assert "No links yet" in (await desk.get(PAGE)).text


async def test_a_link_is_made_and_shown_with_its_code(desk: Desk, shop: Shop) -> None:
    session_id = await made(desk)
    page = await desk.get(f"{PAGE}/{session_id}?notice=made")
    assert "The link is ready." in page.text
    assert "Two &lt;lamps&gt;" in page.text
    assert f"{shop.url}/checkout/{session_id}" in page.text
    assert f'src="/checkout/{session_id}/qr.svg"' in page.text
    session = (await shop.get(f"/v1/checkout/sessions/{session_id}")).body
    assert (session["amount"], session["currency"], session["customerEmail"]) == (4_999, "EUR", "ana@example.com")
    assert session["lineItems"] == [{"name": "Two <lamps>", "amount": 4_999, "quantity": 1}]
    assert (await desk.told(f"{PAGE}/{session_id}.json"))["status"] == "open"


async def test_a_form_that_is_sent_twice_makes_one_link(desk: Desk) -> None:
    form = {**(await desk.get(f"{PAGE}/new")).form("/new"), **TYPED}
    first, second = [await desk.post(f"{PAGE}/new", form) for _ in range(2)]
    assert first.location == second.location
    assert len((await desk.told(f"{PAGE}.json"))["data"]) == 1


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ({"amount": "0"}, "must be an amount such as"),
        ({"amount": "ten"}, "must be an amount such as"),
        ({"currency": "EURO"}, "must be a code of three letters"),
        ({"currency": "JPY"}, "must be an amount such as 12345, in JPY"),
        ({"hours": "9"}, "must be one of"),
        ({"email": "ana"}, "must be an e-mail address"),
        ({"purpose": "x" * 256}, "must have at most 255"),
    ],
)
async def test_what_cannot_be_is_refused_with_what_was_typed(desk: Desk, typed: dict[str, str], words: str) -> None:
    answer = await make(desk, **typed)
    assert answer.status == 400
    assert words in answer.text
    assert 'value="Two &lt;lamps&gt;"' in answer.text or "purpose" in typed
    assert (await desk.told(f"{PAGE}.json"))["data"] == []


async def test_the_list_is_by_how_links_stand(desk: Desk, shop: Shop) -> None:
    paid, closed, left = [await made(desk, purpose=name) for name in ("paid", "closed", "left")]
    session = (await shop.get(f"/v1/checkout/sessions/{paid}")).body
    card = {"paymentMethod": {"type": "card", "token": "tok_approve"}}
    assert (await shop.post(f"/v1/orders/{session['orderId']}/pay", card)).body["status"] == "captured"
    page = await desk.get(f"{PAGE}/{closed}")
    answer = await desk.post(f"{PAGE}/{closed}/close", page.form("/close"))
    assert answer.location == f"{PAGE}/{closed}?notice=closed"
    for status, session_id in (("open", left), ("completed", paid), ("expired", closed)):
        found = (await desk.told(f"{PAGE}.json?status={status}"))["data"]
        assert [(each["id"], each["status"]) for each in found] == [(session_id, status)]
    assert not (await desk.get(f"{PAGE}/{paid}")).offers("/close")
    refused = await desk.post(f"{PAGE}/{paid}/close", page.form("/close"))
    assert refused.status == 400
    assert "refund its order instead" in refused.text


async def test_pages_of_links_follow_each_other(desk: Desk) -> None:
    ids = [await made(desk, purpose=f"link {number}") for number in range(27)]
    first = await desk.told(f"{PAGE}.json")
    assert [each["id"] for each in first["data"]] == ids[:1:-1]
    second = await desk.told(f"{PAGE}.json?cursor={first['nextCursor']}")
    assert [each["id"] for each in second["data"]] == ids[1::-1]
    assert not second["hasMore"]
    assert f"cursor={first['nextCursor']}" in (await desk.get(PAGE)).text


async def test_links_of_the_other_mode_and_of_others_are_not_there(desk: Desk, shop: Shop, bare_shop: Shop) -> None:
    session_id = await made(desk)
    async with new_desk(bare_shop) as stranger:
        assert (await stranger.get(f"{PAGE}/{session_id}")).status == 404
        assert (await stranger.told(f"{PAGE}.json"))["data"] == []
        form = (await stranger.get(PAGE)).form("/sign-out")
        assert (await stranger.post(f"{PAGE}/{session_id}/close", form)).status == 404
    await desk.post("/dashboard/mode", {**(await desk.get(PAGE)).form("/mode"), "mode": "live"})
    assert (await desk.get(f"{PAGE}/{session_id}")).status == 404
    assert (await desk.told(f"{PAGE}.json"))["data"] == []
    assert (await shop.get(f"/v1/checkout/sessions/{session_id}")).body["status"] == "open"
