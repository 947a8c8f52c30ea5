"""The dashboard's webhooks: endpoints made, changed, given new secrets and removed; deliveries found and sent again."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from html import unescape
from typing import Any

import aiohttp
import pytest

from loop.domain.deliveries import DeliveryStatus
from loop.runtime import Running
from loop.server.dashboard.pages import deliveries as deliveries_page
from loop.storage import deliveries, webhooks
from loop.storage.deliveries import DeliveryFilter
from loop.workflows import webhook_endpoints
from loop.workflows.webhook_endpoints import EndpointChange
from tests.api.client import Shop, open_shop
from tests.api.dashboard_desk import Desk, Seen, new_desk
from tests.canaries import aviary
from tests.merchant_server import MerchantServer, merchant_server, verified_by_libraries

HERE = "/dashboard/webhooks"
WITHIN_S = 10.0
_SECRET = re.compile(r'value="(whsec_[^"]+)"')


@pytest.fixture
def flags() -> dict[str, object]:
    return {"webhook_allow_networks": "127.0.0.0/8"}


@pytest.fixture
async def server() -> AsyncIterator[MerchantServer]:
    async with merchant_server() as listening:
        yield listening


@pytest.fixture
async def desk(shop: Shop) -> AsyncIterator[Desk]:
    async with new_desk(shop) as signed_in:
        yield signed_in


async def send(desk: Desk, page: str, action: str, **fields: str) -> Seen:
    """Open a page and send the form of it that leads to an action."""
    form = (await desk.get(page)).form(action)
    return await desk.post(f"{page.partition('?')[0]}{action}", {**form, **fields})


async def add(desk: Desk, url: str, **fields: str) -> str:
    """Add an endpoint by its form; return its id."""
    form = (await desk.get(f"{HERE}/new")).form("/new")
    made = await desk.post(f"{HERE}/new", {**form, "url": url, "hears": "all", **fields})
    assert made.status == 200, made.text
    for secret in _SECRET.findall(made.text):
        aviary.keep(unescape(secret))
    return (await desk.told(f"{HERE}.json"))["data"][-1]["id"]  # type: ignore[no-any-return] # as JSON has it


async def eventually(is_so: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not await is_so():  # noqa: ASYNC110 - what is waited for is in the server
            await asyncio.sleep(0.02)


async def settled(desk: Desk, *, count: int) -> list[dict[str, Any]]:
    """Wait until so many deliveries have ended or wait for another try, and return them."""

    async def are_there() -> bool:
        rows = (await desk.told(f"{HERE}/deliveries.json"))["data"]
        return len(rows) == count and all(each["attempts"] for each in rows)

    await eventually(are_there)
    rows: list[dict[str, Any]] = (await desk.told(f"{HERE}/deliveries.json"))["data"]
    return rows


async def test_an_empty_place_says_how_it_fills(desk: Desk) -> None:
    assert "Nobody listens yet" in (await desk.get(HERE)).text
    assert "Nothing was sent yet" in (await desk.get(f"{HERE}/deliveries")).text
    assert (await desk.told(f"{HERE}.json")) == {"data": []}


async def test_an_endpoint_is_made_and_its_secret_shown_once(desk: Desk, shop: Shop, server: MerchantServer) -> None:
    form = (await desk.get(f"{HERE}/new")).form("/new")
    wanted = {**form, "url": f"{server.url}/a", "description": "stock", "hears": "some", "event.order.created": "1"}
    made = await desk.post(f"{HERE}/new", wanted)
    (secret,) = map(unescape, _SECRET.findall(made.text))
    aviary.keep(secret)
    again = await desk.post(f"{HERE}/new", wanted)  # the page loaded anew: the same endpoint, not another
    assert _SECRET.findall(again.text) == _SECRET.findall(made.text)
    (endpoint,) = (await desk.told(f"{HERE}.json"))["data"]
    assert (endpoint["events"], endpoint["description"], endpoint["state"]) == (["order.created"], "stock", "listening")
    assert secret not in (await desk.get(f"{HERE}/{endpoint['id']}")).text
    await shop.order()
    (row,) = await settled(desk, count=1)
    assert (row["eventType"], row["status"]) == ("order.created", "delivered")
    assert verified_by_libraries(server.received[0], secret)
    assert "1 of 1" in (await desk.get(HERE)).text


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ({"url": "http://10.0.0.1/x"}, "is not a public address"),
        ({"url": "ftp://shop.example"}, "must begin with https:// or http://"),
        ({"url": ""}, "must have 1 to 2048 characters"),
        ({"url": "https://shop.example", "hears": "some"}, "Choose at least one"),
        ({"url": "https://shop.example", "description": "x" * 1_001}, "at most 1000 characters"),
    ],
)
async def test_a_refused_form_keeps_what_was_typed(desk: Desk, typed: dict[str, str], said: str) -> None:
    form = (await desk.get(f"{HERE}/new")).form("/new")
    content = {**form, "hears": "all", "description": "my stock", **typed}
    refused = await desk.post(f"{HERE}/new", content)
    assert refused.status == 400
    assert said in unescape(refused.text)
    assert 'aria-invalid="true"' in refused.text or "field-problem" in refused.text
    assert content["description"] in refused.text
    assert content["url"] in refused.text
    assert (await desk.told(f"{HERE}.json")) == {"data": []}
    mended = {**content, "url": "https://shop.example/hooks", "hears": "all", "description": "mine"}
    assert (await desk.post(f"{HERE}/new", mended)).status == 200  # the same form, its key not used up


async def test_an_endpoint_is_changed_switched_and_removed(desk: Desk, server: MerchantServer) -> None:
    endpoint_id = await add(desk, f"{server.url}/a")
    page = f"{HERE}/{endpoint_id}"
    changed = await send(desk, page, "/save", url=f"{server.url}/b", hears="some", **{"event.refund.created": "1"})
    assert changed.location == f"{page}?notice=saved"
    assert "The endpoint was changed." in (await desk.get(changed.location)).text
    shown = await desk.told(f"{page}.json")
    assert (shown["url"], shown["events"]) == (f"{server.url}/b", ["refund.created"])
    refused = await send(desk, page, "/save", url="nowhere", hears="all")
    assert (refused.status, 'value="nowhere"' in refused.text) == (400, True)
    assert (await send(desk, page, "/disable")).location == f"{page}?notice=disabled"
    off = await desk.get(page)
    assert not off.offers("/test")
    assert (await desk.post(f"{page}/test", off.form("/remove"))).status == 400
    assert (await send(desk, page, "/enable")).location == f"{page}?notice=enabled"
    assert (await send(desk, page, "/remove")).location == f"{HERE}?notice=removed"
    assert (await desk.get(page)).status == 404
    assert (await desk.told(f"{HERE}.json")) == {"data": []}


async def test_the_secret_is_changed_in_two_steps(desk: Desk, shop: Shop, server: MerchantServer) -> None:
    page = f"{HERE}/{await add(desk, server.url)}"
    form = (await desk.get(page)).form("/rotate")
    rotated = await desk.post(f"{page}/rotate", form)
    (pending,) = map(unescape, _SECRET.findall(rotated.text))
    aviary.keep(pending)
    assert _SECRET.findall((await desk.post(f"{page}/rotate", form)).text)  # the same form: the same secret
    shown = await desk.get(page)
    assert pending not in shown.text
    assert not shown.offers("/rotate")
    refused = await desk.post(f"{page}/rotate", shown.form("/promote"))
    assert (refused.status, "secret_pending" in refused.text) == (400, True)
    assert (await send(desk, page, "/promote")).location == f"{page}?notice=promoted"
    await shop.order()
    await settled(desk, count=1)
    assert verified_by_libraries(server.received[0], pending)


async def test_a_test_event_is_sent_and_shown_as_it_goes(desk: Desk, server: MerchantServer) -> None:
    server.status, server.answer = 418, b"short and stout, Authorization: Bearer abcdefghijklmnop"
    page = f"{HERE}/{await add(desk, server.url)}"
    sent = await send(desk, page, "/test")
    assert sent.location.startswith(f"{HERE}/deliveries/evt_")
    (row,) = await settled(desk, count=1)
    assert (row["eventType"], row["lastStatusCode"], row["status"]) == ("endpoint.tested", 418, "pending")
    shown = await desk.get(sent.location)
    assert "HTTP 418" in shown.text
    assert "short and stout" in shown.text
    assert "abcdefghijklmnop" not in shown.text
    assert unescape(shown.text).count(server.received[0].body.decode()) == 1
    assert "Latest try failed" in (await desk.get(page)).text


async def test_a_delivery_names_the_request_that_its_event_happened_in(
    desk: Desk, shop: Shop, server: MerchantServer
) -> None:
    endpoint_id = await add(desk, server.url)
    await shop.post("/v1/orders", {"amount": 100}, headers={"X-Correlation-ID": "basket-17"})
    (row,) = await settled(desk, count=1)
    page = f"{HERE}/deliveries/{row['id']}/{endpoint_id}"
    assert "<dd>basket-17</dd>" in (await desk.get(page)).text
    assert (await desk.told(f"{page}.json"))["correlationId"] == "basket-17"


async def test_a_delivery_is_sent_again_once_for_each_form(desk: Desk, shop: Shop, server: MerchantServer) -> None:
    endpoint_id = await add(desk, server.url)
    await shop.order()
    (row,) = await settled(desk, count=1)
    page = f"{HERE}/deliveries/{row['id']}/{endpoint_id}"
    form = (await desk.get(page)).form("/resend")
    for _ in range(2):
        assert (await desk.post(f"{page}/resend", form)).location == f"{page}?notice=resent"

    async def was_tried_again() -> bool:
        return bool((await desk.told(f"{page}.json"))["attempts"] == 2)

    await eventually(was_tried_again)
    content = await desk.told(f"{page}.json")
    assert [each["attempt"] for each in content["tries"]] == [2, 1]
    assert content["body"] == json.loads(server.received[0].body)
    assert len(server.received) == 2
    await send(desk, f"{HERE}/{endpoint_id}", "/remove")
    gone = await desk.get(page)
    assert "was removed" in gone.text
    refused = await desk.post(f"{page}/resend", (await desk.get(HERE + "/new")).form("/new"))
    assert (refused.status, "no_endpoint" in refused.text) == (400, True)


async def test_what_failed_is_sent_again_since_a_moment(
    desk: Desk, shop: Shop, server: MerchantServer, served: Running
) -> None:
    endpoint_id = await add(desk, server.url)
    for _ in range(3):
        await shop.order()
    await settled(desk, count=3)
    async with served.context.database.transaction() as session:
        wanted = DeliveryFilter(endpoint_id=endpoint_id)
        found = await deliveries.list_after(session, shop.merchant.id, wanted, before=None, limit=2)
        lost = [replace(each.delivery, status=DeliveryStatus.FAILED) for each in found]
        await session.run_together([deliveries.updating(each) for each in lost])
    page = f"{HERE}/{endpoint_id}"
    assert len((await desk.told(f"{HERE}/deliveries.json?status=failed"))["data"]) == 2
    day_before = f"{served.context.now() - timedelta(days=1):%Y-%m-%dT%H:%M}"
    replayed = await send(desk, page, "/replay", since=day_before)
    assert replayed.location == f"{page}?notice=replayed&count=2"
    assert "2 deliveries are being sent again" in (await desk.get(replayed.location)).text
    for wrong in ("", "yesterday", "2030-13-01T00:00"):
        refused = await send(desk, page, "/replay", since=wrong)
        assert refused.status == 400
        assert "must be a day and a time" in refused.text.lower()
    nothing = await send(desk, page, "/replay", since=f"{served.context.now() + timedelta(days=1):%Y-%m-%dT%H:%M}")
    assert "Nothing has failed since then." in (await desk.get(nothing.location)).text


async def test_deliveries_are_filtered_and_follow_each_other(
    desk: Desk, shop: Shop, server: MerchantServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await add(desk, f"{server.url}/a")
    second = await add(desk, f"{server.url}/b", hears="some", **{"event.order.created": "1"})
    await shop.paid_order()
    await shop.order()
    rows = await settled(desk, count=6)
    assert {each["endpointId"] for each in rows} == {first, second}
    for query, count in (
        (f"endpoint={second}", 2), ("type=payment.captured", 1), ("status=failed", 0), ("status=delivered", 6),
        (f"endpoint={second}&type=payment.captured", 0),
    ):  # fmt: skip
        found = (await desk.told(f"{HERE}/deliveries.json?{query}"))["data"]
        assert len(found) == count, query
    assert "No such deliveries" in (await desk.get(f"{HERE}/deliveries?status=failed")).text
    for query in ("status=lost", "type=nothing", "cursor=evt_1"):
        assert (await desk.get(f"{HERE}/deliveries?{query}")).status == 400
    monkeypatch.setattr(deliveries_page, "PAGE_ROWS", 2)
    monkeypatch.setattr("loop.server.dashboard.listing.PAGE_ROWS", 2)
    page: dict[str, Any] = {}
    walked, query = [], ""
    for _ in range(3):
        page = await desk.told(f"{HERE}/deliveries.json?{query}")
        walked += [(each["id"], each["endpointId"]) for each in page["data"]]
        query = f"cursor={page['nextCursor']}"
    assert walked == sorted(((each["id"], each["endpointId"]) for each in rows), reverse=True)
    assert not page["hasMore"]


async def test_a_mode_has_its_own_deliveries(desk: Desk, shop: Shop, server: MerchantServer) -> None:
    endpoint_id = await add(desk, server.url)
    await shop.order()
    (row,) = await settled(desk, count=1)
    await desk.post("/dashboard/mode", {**(await desk.get(HERE)).form("/mode"), "mode": "live"})
    assert (await desk.told(f"{HERE}/deliveries.json"))["data"] == []
    assert (await desk.get(f"{HERE}/deliveries/{row['id']}/{endpoint_id}")).status == 404
    assert len((await desk.told(f"{HERE}.json"))["data"]) == 1


async def test_anothers_webhooks_are_as_if_they_were_not_there(
    desk: Desk, shop: Shop, server: MerchantServer, served: Running, session: aiohttp.ClientSession
) -> None:
    endpoint_id = await add(desk, server.url)
    await shop.order()
    (row,) = await settled(desk, count=1)
    other = await open_shop(session, served.url, served.context, name="other")
    async with new_desk(other) as stranger:
        form = (await stranger.get(f"{HERE}/new")).form("/new")
        delivery = f"{HERE}/deliveries/{row['id']}/{endpoint_id}"
        for path in (f"{HERE}/{endpoint_id}", f"{HERE}/{endpoint_id}.json", delivery, f"{delivery}.json"):
            assert (await stranger.get(path)).status == 404, path
        for name in ("save", "enable", "disable", "test", "replay", "rotate", "promote", "remove"):
            sent = {**form, "url": "https://evil.example", "hears": "all", "since": "2020-01-01T00:00"}
            answer = await stranger.post(f"{HERE}/{endpoint_id}/{name}", sent)
            assert answer.status == 404, name
            form = (await stranger.get(f"{HERE}/new")).form("/new")
        assert (await stranger.post(f"{delivery}/resend", form)).status == 404
        assert (await stranger.told(f"{HERE}.json"))["data"] == []
    assert (await desk.told(f"{HERE}/{endpoint_id}.json"))["url"] == server.url


async def test_forms_count_only_from_our_own_pages(desk: Desk, server: MerchantServer) -> None:
    page = f"{HERE}/{await add(desk, server.url)}"
    form = (await desk.get(page)).form("/remove")
    foreign = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
    assert (await desk.post(f"{page}/remove", form, headers=foreign)).status == 403
    assert (await desk.post(f"{page}/remove", {**form, "csrf": "0" * 64})).status == 403
    assert (await desk.post(f"{page}/remove", {"csrf": form["csrf"]})).status == 400  # without a key of its own
    assert (await desk.get(page)).status == 200


async def test_one_that_was_given_up_says_why(desk: Desk, shop: Shop, served: Running) -> None:
    context = served.context
    endpoint_id = await add(desk, "https://shop.example/hooks")
    async with context.database.transaction() as session:
        endpoint = await webhooks.endpoint(session, shop.merchant.id, endpoint_id)
        assert endpoint is not None
        await webhooks.disable(session, endpoint, "the endpoint answered 410 Gone", now=context.now())
    page = (await desk.get(f"{HERE}/{endpoint_id}")).text
    assert "Given up" in page
    assert "the endpoint answered 410 Gone" in page
    await webhook_endpoints.change(context, shop.merchant.id, endpoint_id, change=EndpointChange(is_enabled=True))
    assert "Given up" not in (await desk.get(f"{HERE}/{endpoint_id}")).text
