"""Open pages hear of what changes: of their own merchant and mode only, from one look for all, until it is over."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import pytest

from loop.runtime import Running
from loop.server.dashboard import listeners
from loop.server.dashboard.pages import live
from tests.api.client import Shop
from tests.api.dashboard_desk import Desk, new_desk

LIVE = "/dashboard/live"


@pytest.fixture
async def desk(shop: Shop) -> AsyncIterator[Desk]:
    async with new_desk(shop) as signed_in:
        yield signed_in


@dataclass
class Ear:
    """One open page."""

    answer: aiohttp.ClientResponse

    async def hears(self) -> list[str]:
        """Wait for the next change and return its orders."""
        async with asyncio.timeout(10):
            async for line in self.answer.content:
                if line.startswith(b"data: "):
                    orders: list[str] = json.loads(line[6:])["orders"]
                    return orders
        raise AssertionError("the answer ended")

    async def is_ended(self) -> bool:
        async with asyncio.timeout(10):
            async for _ in self.answer.content:
                pass
        return True


@asynccontextmanager
async def listening(desk: Desk) -> AsyncIterator[Ear]:
    async with desk.client.get(desk.shop.url + LIVE) as answer:
        assert answer.status == 200, await answer.text()
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert answer.headers["Cache-Control"] == "no-store"
        assert await answer.content.readline() == b"retry: 5000\n"
        await asyncio.sleep(listeners.LOOK_EVERY_S * 1.5)  # what was there before the first look is no news
        yield Ear(answer)


async def test_a_page_hears_of_its_merchants_orders_only(desk: Desk, shop: Shop, bare_shop: Shop) -> None:
    await shop.order()
    async with listening(desk) as ear:
        await bare_shop.order()
        order = await shop.order()
        assert await ear.hears() == [order["id"]]
        paid = await shop.paid_order()
        heard = await ear.hears()
        assert heard == [paid["id"]]


async def test_a_page_hears_of_its_own_mode_only(desk: Desk, shop: Shop) -> None:
    form = (await desk.get("/dashboard/orders")).form("/mode")
    await desk.post("/dashboard/mode", {**form, "mode": "live"})
    async with listening(desk) as ear:
        await shop.order()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(listeners.LOOK_EVERY_S * 3):
                await ear.hears()


async def test_who_is_not_signed_in_hears_nothing(shop: Shop) -> None:
    async with new_desk(shop, is_signed_in=False) as stranger:
        answer = await stranger.get(LIVE)
    assert answer.status == 401
    assert "missing_session" in answer.text


async def test_who_signs_out_hears_nothing_more(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "HEARTBEAT_S", 0.2)
    page = await desk.get("/dashboard/orders")
    async with listening(desk) as ear:
        assert (await desk.post("/dashboard/sign-out", page.form("/sign-out"))).status == 303
        assert await ear.is_ended()


async def test_a_merchant_opens_so_many_pages_and_no_more(
    desk: Desk, shop: Shop, served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "MAX_OF_MERCHANT", 1)
    async with listening(desk):
        refused = await desk.get(LIVE)
        assert (refused.status, "too_many_listeners" in refused.text) == (429, True)
        assert int(refused.headers["Retry-After"]) > 0
        async with new_desk(shop) as another:
            assert (await another.get(LIVE)).status == 429
    held = listeners.listeners_of(served.context)
    async with asyncio.timeout(10):
        while not held.is_empty:  # noqa: ASYNC110 - the server notices by itself that the page is gone
            await asyncio.sleep(0.05)
    async with listening(desk):
        pass


async def test_many_pages_cost_one_look(desk: Desk, shop: Shop, served: Running) -> None:
    async with listening(desk), new_desk(shop) as another, listening(another):
        looks = [task for task in asyncio.all_tasks() if task.get_name() == "changes"]
        assert len(looks) == 1
    assert served.url


async def test_a_loop_that_stops_ends_its_open_pages(desk: Desk, served: Running) -> None:
    async with listening(desk) as ear:
        listeners.listeners_of(served.context).close()
        assert await ear.is_ended()
