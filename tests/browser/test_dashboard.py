"""The dashboard in a browser: found, refunded and looked at, with and without script, in both themes and two widths."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from playwright.async_api import Browser, Page, Response

from tests.browser.checkout_world import WATCH_POLICY, Visit
from tests.browser.world import EMAIL, PASSWORD, World, lived_in_world

PAGE_BYTES_MAX = 150_000
PAST_DAYS = 3
SIZES = [(360, 720), (1280, 800)]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with lived_in_world(tmp_path, PAST_DAYS) as lived_in:
        yield lived_in


@asynccontextmanager
async def at_desk(
    browser: Browser, world: World, *, theme: str = "light", size: tuple[int, int] = SIZES[1], has_script: bool = True
) -> AsyncIterator[Visit]:
    """Open a window for the shop's person, who signs in, and watch what goes wrong in it."""
    context = await browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if theme == "dark" else "light",
        java_script_enabled=has_script,
    )
    context.set_default_timeout(15_000)
    if has_script:
        await context.add_init_script(WATCH_POLICY)
    visit = Visit(await context.new_page())
    visit.page.on("console", lambda said: visit.troubles.append(said.text) if said.type == "error" else None)
    visit.page.on("pageerror", lambda error: visit.troubles.append(str(error)))
    await sign_in(visit.page, world.url)
    yield visit
    await context.close()


async def sign_in(page: Page, url: str) -> None:
    await page.goto(f"{url}/dashboard/sign-in")
    await page.fill("#field-email", EMAIL)
    await page.fill("#field-password", PASSWORD)
    await page.click("main button")
    await page.wait_for_url(f"{url}/dashboard")


@pytest.mark.parametrize("has_script", [True, False], ids=["script", "no script"])
async def test_an_order_is_found_and_refunded(browser: Browser, world: World, has_script: bool) -> None:
    async with at_desk(browser, world, has_script=has_script) as visit:
        page = visit.page
        await page.click("text=Orders")
        await page.fill("#field-q", "NL-2001")
        await page.press("#field-q", "Enter")
        await page.locator("tbody tr").nth(1).wait_for(state="detached")
        await page.click("text=NL-2001")
        await page.wait_for_url(f"**/orders/{world.orders['captured']}")
        await page.click("summary:has-text('Refund')")
        await page.fill("#field-amount", "29.50")
        await page.fill("#field-reason", "one lamp sent back")
        await page.click("button:has-text('Refund the money')")
        await visit.reads("The refund was asked for.")
        await page.locator(".order-status", has_text="Partly refunded").wait_for()
        refunds = await world.call("GET", f"/v1/orders/{world.orders['captured']}/refunds")
        assert [(each["amount"], each["reason"]) for each in refunds] == [(2_950, "one lamp sent back")]
        assert visit.troubles == []


async def test_a_double_click_refunds_once(browser: Browser, world: World) -> None:
    for has_script in (True, False):
        async with at_desk(browser, world, has_script=has_script) as visit:
            await visit.page.goto(f"{world.url}/dashboard/orders/{world.orders['captured']}")
            await visit.page.click("summary:has-text('Refund')")
            await visit.page.fill("#field-amount", "10.00")
            await visit.page.dblclick("button:has-text('Refund the money')")
            await visit.page.wait_for_url("**notice=**")
    refunds = await world.call("GET", f"/v1/orders/{world.orders['captured']}/refunds")
    assert [each["amount"] for each in refunds] == [1_000, 1_000]


async def test_typing_narrows_the_list_and_the_address(browser: Browser, world: World) -> None:
    async with at_desk(browser, world) as visit:
        page = visit.page
        await page.goto(f"{world.url}/dashboard/orders")
        await page.click("summary:has-text('Filters')")
        await page.select_option("#field-status", "authorized")
        await page.wait_for_url("**status=authorized**")
        await page.locator("tbody tr").nth(1).wait_for(state="detached")
        assert await page.locator("tbody tr").count() == 1
        assert await page.locator("time[data-shown]").count() == 0  # what came later is in the viewer's zone as well
        assert visit.troubles == []


async def test_times_are_in_the_viewers_zone(browser: Browser, world: World) -> None:
    context = await browser.new_context(timezone_id="Asia/Kolkata")
    page = await context.new_page()
    await sign_in(page, world.url)
    await page.goto(f"{world.url}/dashboard/orders")
    shown = page.locator("tbody tr", has_text="NL-2001").locator("td.wide time")
    at = datetime.fromisoformat(str(await shown.get_attribute("datetime"))).astimezone(ZoneInfo("Asia/Kolkata"))
    assert f"{at:%H:%M}" in await shown.inner_text()
    assert "UTC" in str(await shown.get_attribute("title"))
    await context.close()


async def test_without_script_times_are_utc_and_figures_a_table(browser: Browser, world: World) -> None:
    async with at_desk(browser, world, has_script=False) as visit:
        assert await visit.page.locator("#chart-table table").is_visible()
        await visit.page.goto(f"{world.url}/dashboard/orders")
        assert (await visit.page.locator("tbody time").first.inner_text()).endswith("UTC")


async def test_the_chart_is_drawn_and_its_table_folded(browser: Browser, world: World) -> None:
    async with at_desk(browser, world) as visit:
        await visit.page.locator("#chart canvas").wait_for()
        assert not await visit.page.locator("#chart-table table").is_visible()
        await visit.page.hover("#chart .u-over", position={"x": 5, "y": 50})
        await visit.page.locator("#readout", has_text=":").wait_for()
        assert visit.troubles == []


def addresses(world: World) -> list[str]:
    pages = [
        "",
        "/orders",
        "/orders?status=failed",
        "/refunds",
        "/disputes",
        "/reconciliation",
        "/patterns",
        "/orders/ord_0",
    ]
    named = (world.orders[name] for name in ("failover", "authorized", "pending", "disputed", "in-review"))
    return [f"/dashboard{page}" for page in pages] + [f"/dashboard/orders/{order_id}" for order_id in named]


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES, ids=["phone", "desktop"])
async def test_pages_are_sound(browser: Browser, world: World, theme: str, size: tuple[int, int]) -> None:
    """No serious finding of axe, nothing wider than the window, no console error, at most 150 kB."""
    async with at_desk(browser, world, theme=theme, size=size) as visit:
        page = visit.page
        for address in addresses(world):
            answers: list[Response] = []

            def note(answer: Response, noted: list[Response] = answers) -> None:
                noted.append(answer)

            page.on("response", note)
            await page.goto(world.url + address)
            await page.wait_for_load_state("networkidle")
            page.remove_listener("response", note)
            for summary in await page.locator("main summary").all():
                await summary.click()
            sizes = [int(each.headers["content-length"]) for each in answers if each.status == 200]
            assert 0 < sum(sizes) <= PAGE_BYTES_MAX or "ord_0" in address, address
            assert await visit.findings() == [], address
            widths = await page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert widths[0] <= widths[1], address
            visit.troubles = [each for each in visit.troubles if "404 (Not Found)" not in each]
            assert visit.troubles == [], address
