"""The dashboard in a browser: found, refunded and looked at, with and without script, in both themes and two widths."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from playwright.async_api import Browser, Response

from tests.browser.desk import SIZES, at_desk, sign_in
from tests.browser.world import World

PAGE_BYTES_MAX = 150_000

SHIFT_MAX = 0.01
"""How far a page may move under its reader while it loads; from 0.1 on it counts as poor."""

SHIFT = """new Promise(tell => {
  let shift = 0;
  new PerformanceObserver(seen => seen.getEntries().forEach(each => { shift += each.value; }))
    .observe({ type: "layout-shift", buffered: true });
  requestAnimationFrame(() => requestAnimationFrame(() => tell(shift)));
})"""
"""What a browser says of that, as cumulative layout shift."""


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
        "/processors",
        "/processors/stripe",
        "/processors/razorpay",
        "/webhooks",
        "/webhooks/new",
        "/webhooks/deliveries",
        "/api-keys",
        "/api-keys/new",
        "/links",
        "/links/new",
        "/routing?amount=49.99&currency=EUR&method=card",
        "/routing/new",
        "/audit?check=1",
        "/settings",
    ]
    named = (world.orders[name] for name in ("failover", "authorized", "pending", "disputed", "in-review"))
    addressed = [f"/dashboard/orders/{order_id}" for order_id in named]
    return [f"/dashboard{page}" for page in pages] + addressed + list(world.places.values())


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES, ids=["phone", "desktop"])
async def test_pages_are_sound(browser: Browser, world: World, theme: str, size: tuple[int, int]) -> None:
    """No serious finding of axe, nothing wider than the window or on the move, no console error, at most 150 kB."""
    async with at_desk(browser, world, theme=theme, size=size) as visit:
        page = visit.page
        for address in addresses(world):
            answers: list[Response] = []

            def note(answer: Response, noted: list[Response] = answers) -> None:
                noted.append(answer)

            page.on("response", note)
            await page.goto(world.url + address)  # an open page listens for changes: its network is never idle
            page.remove_listener("response", note)
            assert await page.evaluate(SHIFT) <= SHIFT_MAX, address
            for summary in await page.locator("main summary").all():
                await summary.click()
            whole = [each for each in answers if each.status == 200 and not each.url.endswith("/dashboard/live")]
            sizes = [int(each.headers["content-length"]) for each in whole]
            assert 0 < sum(sizes) <= PAGE_BYTES_MAX or address.endswith("/ord_0"), address
            assert await visit.findings() == [], address
            widths = await page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert widths[0] <= widths[1], address
            visit.troubles = [each for each in visit.troubles if "404 (Not Found)" not in each]
            assert visit.troubles == [], address
