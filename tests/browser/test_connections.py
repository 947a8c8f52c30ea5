"""Processors, webhooks and API keys in a browser: connected, sent again, made and revoked, with and without script."""

import asyncio
from typing import Any

import aiohttp
import pytest
from playwright.async_api import Browser

from tests.browser.desk import at_desk
from tests.browser.world import World
from tests.canaries import aviary

SCRIPTS = pytest.mark.parametrize("has_script", [True, False], ids=["script", "no script"])
WITHIN_S = 15


async def answer_to(world: World, key: str) -> int:
    async with world.session.get(f"{world.url}/v1/orders", headers={"X-API-Key": key}) as answer:
        return answer.status


@SCRIPTS
async def test_a_delivery_is_sent_again(browser: Browser, world: World, has_script: bool) -> None:
    async with at_desk(browser, world, has_script=has_script) as visit:
        page = visit.page
        await page.click("nav >> text=Webhooks")
        await page.click("nav >> text=Deliveries")
        await page.select_option("#field-type", "payment.failed")
        if not has_script:
            await page.click("button:has-text('Show')")
        await page.wait_for_url("**type=payment.failed**")
        await page.locator("tbody tr", has_text="Payment failed").first.wait_for()
        assert await page.locator("tbody tr", has_text="Payment captured").count() == 0
        await page.locator("a.row-link").first.click()
        await page.locator(".try", has_text="HTTP 500").first.wait_for()
        before = await page.locator(".try").count()
        await page.click("button:has-text('Send it again')")
        await visit.reads("The event is being sent again.")
        if has_script:  # the page looks by itself
            await page.locator(".try").nth(before).wait_for()
        else:
            async with asyncio.timeout(WITHIN_S):
                while await page.locator(".try").count() == before:
                    await page.reload()
        assert visit.troubles == []


@SCRIPTS
async def test_an_endpoint_is_added_and_tested(browser: Browser, world: World, has_script: bool) -> None:
    (listening,) = {each["url"] for each in await endpoints(world) if "?" not in each["url"]}
    async with at_desk(browser, world, has_script=has_script) as visit:
        page = visit.page
        await page.goto(f"{world.url}/dashboard/webhooks")
        await visit.press("Add an endpoint")
        await page.fill("#field-url", f"{listening}?for=books")
        await page.check("input[name=hears][value=some]")
        await page.check("input[name='event.refund.processed']")
        await visit.press("Add the endpoint")
        secret = await page.input_value("#secret")
        assert secret.startswith("whsec_")
        aviary.keep(secret)
        assert await page.locator("button[data-copies]").is_visible() is has_script
        await page.click("button:has-text('Send a test event')")
        await visit.reads("The test was sent.")
        if has_script:
            await page.locator(".try", has_text="HTTP 204").wait_for()
        assert secret not in await page.content()
        assert visit.troubles == []
    made = next(each for each in await endpoints(world) if each["url"].endswith("books"))
    assert made["events"] == ["refund.processed"]


async def endpoints(world: World) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = await world.call("GET", "/api/webhook-endpoints")
    return found


@SCRIPTS
async def test_a_key_is_made_and_revoked(browser: Browser, world: World, has_script: bool) -> None:
    async with at_desk(browser, world, has_script=has_script) as visit:
        page = visit.page
        await page.click("nav >> text=API keys")
        await visit.press("Make a key")
        await page.press("#field-name", "Enter")  # the browser itself asks for a name
        assert page.url.endswith("/api-keys/new")
        await page.fill("#field-name", "warehouse")
        await page.check("input[name=may][value=some]")
        await visit.press("Make the key")
        await page.locator(".field-problem").wait_for()
        assert await page.input_value("#field-name") == "warehouse"
        await page.check("input[name='scope.orders:read']")
        await visit.press("Make the key")
        key = await page.input_value("#secret")
        aviary.keep(key)
        assert await answer_to(world, key) == 200
        await visit.press("Done")
        assert key not in await page.content()
        await page.click("text=warehouse")
        await page.click("summary:has-text('Revoke')")
        await visit.press("Revoke the key")
        await visit.reads("The key was revoked")
        assert await answer_to(world, key) == 401
        assert await page.locator("tbody tr", has_text="warehouse").count() == 0
        assert [each for each in visit.troubles if "400 (Bad Request)" not in each] == []


@SCRIPTS
async def test_a_processor_is_connected_and_tested(browser: Browser, world: World, has_script: bool) -> None:
    async with at_desk(browser, world, has_script=has_script) as visit:
        page = visit.page
        await page.click("nav >> text=Processors")
        await page.click("a.button:has-text('Razorpay')")
        await page.get_by_label("Key id").fill("rzp_test_loop")
        await page.get_by_label("Key secret").fill("a-key-secret")
        await page.get_by_label("Webhook secret").fill("a-webhook-secret")
        await visit.press("Connect")
        await visit.reads("The account is connected.")
        assert "a-key-secret" not in await page.content()
        address = await page.input_value("#webhook-address")
        async with aiohttp.ClientSession() as stranger, stranger.post(address, data=b"{}") as answer:
            assert answer.status == 400  # it is there, and asks for a signature
        await page.click("button:has-text('Test the credentials')")
        await visit.reads("The credentials work.")
        assert visit.troubles == []
