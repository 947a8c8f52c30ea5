"""A Loop without merchants: the link that makes the first one, once, and the steps that it is led through."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import aiohttp
import pytest
from yarl import URL

from loop.domain.errors import LoopError
from loop.runtime import Running, system_now
from loop.server.dashboard.pages.welcome import link_of
from loop.workflows import first_run
from loop.workflows.merchants import NewMerchant
from tests.api.client import PASSWORD, Shop
from tests.api.dashboard_desk import Desk, Seen, new_desk
from tests.merchant_server import merchant_server

WELCOME = "/dashboard/welcome"
PERSON = {"name": "Northlight", "email": "mira@example.com", "password": PASSWORD}


@pytest.fixture
async def browser(served: Running) -> AsyncIterator[Desk]:
    """Yield a browser in which nobody is signed in, at a Loop that has no merchant."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as client:
        yield Desk(client, Stranger(served.url))  # type: ignore[arg-type] # a desk asks a shop for its address alone


@dataclass(frozen=True)
class Stranger:
    """Where the browser is, with no shop yet."""

    url: str


async def link(served: Running) -> str:
    found = await link_of(served.context)
    assert found is not None
    return URL(found).path_qs


async def make(browser: Desk, served: Running, **typed: str) -> Seen:
    token = URL(await link(served)).query["token"]
    return await browser.post(WELCOME, {"token": token, **PERSON, **typed})


async def steps_done(desk: Desk) -> Any:
    return (await desk.told("/dashboard.json"))["firstSteps"]


async def test_the_link_makes_the_first_merchant_and_signs_it_in(browser: Desk, served: Running) -> None:
    opened = await link(served)
    assert "Make the first merchant" in (await browser.get(opened)).text
    answer = await make(browser, served)
    assert (answer.status, answer.location) == (303, "/dashboard")
    page = await browser.get("/dashboard")
    assert page.status == 200
    assert "Northlight" in page.text
    assert "First steps" in page.text


async def test_the_link_is_good_once(browser: Desk, served: Running) -> None:
    opened = await link(served)
    token = URL(opened).query["token"]
    assert (await make(browser, served)).status == 303
    assert await link_of(served.context) is None
    for seen in (
        await browser.get(opened),
        await browser.post(WELCOME, {"token": token, **PERSON, "email": "another@example.com"}),
    ):
        assert seen.status == 403
        assert "first_run_over" in seen.text


async def test_two_who_hold_the_link_make_one_merchant(served: Running) -> None:
    context = served.context
    token = first_run.make_token(context)

    async def claim(number: int) -> str:
        try:
            new = NewMerchant("Shop", f"p{number}@example.com", PASSWORD)
            await first_run.make_merchant(context, token, new, user_agent=None)
        except LoopError as error:
            return error.code
        return "made"

    assert sorted(await asyncio.gather(*(claim(number) for number in range(4)))) == ["first_run_over"] * 3 + ["made"]


@pytest.mark.parametrize("token", ["", "1", "9999999999.", "9999999999.AAAA", "x" * 4_000, "9999999999.é"])
async def test_a_link_that_loop_did_not_make_opens_nothing(browser: Desk, token: str) -> None:
    seen = await browser.client.get(URL(browser.shop.url + WELCOME).with_query(token=token))
    assert seen.status == 403
    assert "invalid_link" in await seen.text()
    answer = await browser.post(WELCOME, {"token": token, **PERSON})
    assert answer.status == 403
    assert "Set-Cookie" not in answer.headers


async def test_a_link_ends_after_an_hour(browser: Desk, served: Running) -> None:
    then = system_now() - first_run.LINK_KEPT - timedelta(seconds=1)
    token = first_run.make_token(replace(served.context, now=lambda: then))
    answer = await browser.post(WELCOME, {"token": token, **PERSON})
    assert answer.status == 403
    assert "invalid_link" in answer.text


async def test_what_was_typed_stays_but_the_password(browser: Desk, served: Running) -> None:
    answer = await make(browser, served, password="short")
    assert answer.status == 400
    assert 'value="mira@example.com"' in answer.text
    assert 'value="Northlight"' in answer.text
    assert "short" not in answer.text
    assert "Must have 8 to" in answer.text
    assert (await make(browser, served)).status == 303


async def test_a_foreign_form_makes_no_merchant(browser: Desk, served: Running) -> None:
    token = URL(await link(served)).query["token"]
    answer = await browser.post(
        WELCOME, {"token": token, **PERSON}, headers={"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
    )
    assert answer.status == 403
    assert await first_run.is_open(served.context)


# The steps.


@pytest.fixture
async def desk(shop: Shop) -> AsyncIterator[Desk]:
    async with new_desk(shop) as signed_in:
        yield signed_in


async def step(desk: Desk, name: str, **typed: str) -> Seen:
    page = await desk.get("/dashboard")
    return await desk.post(f"/dashboard/first-steps/{name}", {**page.form(f"/{name}"), **typed})


@pytest.mark.parametrize("flags", [{"webhook_allow_networks": "127.0.0.0/8"}])
async def test_each_step_says_what_is_there(bare_shop: Shop, flags: dict[str, object]) -> None:
    assert flags
    async with new_desk(bare_shop) as desk, merchant_server() as server:
        assert await steps_done(desk) == {
            "processorConnected": False,
            "orderPaid": False,
            "webhookDelivered": False,
        }
        assert not (await desk.get("/dashboard")).offers("/payment")
        await step(desk, "processor")
        assert await steps_done(desk) == {
            "processorConnected": True,
            "orderPaid": False,
            "webhookDelivered": False,
        }
        made = await step(desk, "payment")
        assert made.location.startswith("/dashboard/links/cs_")
        assert "First test payment" in (await desk.get(made.location)).text
        await bare_shop.paid_order()
        assert (await steps_done(desk))["orderPaid"]
        assert (await step(desk, "webhook", url=server.url)).status == 303
        async with asyncio.timeout(10):
            while await steps_done(desk) is not None:  # noqa: ASYNC110 - told by the page, which is what is asked about
                await asyncio.sleep(0.05)
        assert "First steps" not in (await desk.get("/dashboard")).text


async def test_an_address_that_may_not_be_reached_is_refused_on_the_form(desk: Desk) -> None:
    answer = await step(desk, "webhook", url="http://127.0.0.1:1/hooks")
    assert answer.status == 400
    assert 'value="http://127.0.0.1:1/hooks"' in answer.text
    assert 'aria-invalid="true"' in answer.text


async def test_the_steps_are_put_away_in_this_browser(desk: Desk, shop: Shop) -> None:
    assert "First steps" in (await desk.get("/dashboard")).text
    await step(desk, "dismiss")
    assert "First steps" not in (await desk.get("/dashboard")).text
    async with new_desk(shop) as another:
        assert "First steps" in (await another.get("/dashboard")).text
