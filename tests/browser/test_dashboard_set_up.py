"""Setting Loop up in a browser: the first run to its end, rules, links, settings, and pages that keep up by themselves.

With and without script, as everything of the dashboard.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page

from loop.config import load
from loop.runtime import Running, running
from loop.server.dashboard.pages.welcome import link_of
from tests.browser.checkout_world import WATCH_POLICY, Visit
from tests.browser.desk import at_desk
from tests.browser.world import EMAIL, NAME, PASSWORD, World, free_port
from tests.merchant_server import merchant_server

WITH_AND_WITHOUT_SCRIPT = pytest.mark.parametrize("has_script", [True, False], ids=["script", "no script"])


@pytest.fixture
async def new_loop(tmp_path: Path) -> AsyncIterator[Running]:
    """Yield a Loop that nobody sells through yet."""
    flags = {"data_dir": str(tmp_path), "port": str(free_port()), "webhook_allow_networks": "127.0.0.0/8"}
    async with running(load({**flags, "log_level": "error"}, {})) as loop:
        yield loop


@asynccontextmanager
async def window(browser: Browser, *, has_script: bool) -> AsyncIterator[Visit]:
    context = await browser.new_context(java_script_enabled=has_script)
    context.set_default_timeout(15_000)
    if has_script:
        await context.add_init_script(WATCH_POLICY)
    visit = Visit(await context.new_page())
    visit.page.on("console", lambda said: visit.troubles.append(said.text) if said.type == "error" else None)
    visit.page.on("pageerror", lambda error: visit.troubles.append(str(error)))
    yield visit
    await context.close()


async def pay_at(page: Page, amount: str) -> None:
    """Pay on the page of a link, at the sandbox."""
    await page.locator("button", has_text=f"Pay {amount}").click()
    await page.locator("button", has_text="Approve the payment").click()
    await page.get_by_text("Paid").first.wait_for()


@WITH_AND_WITHOUT_SCRIPT
async def test_a_new_loop_is_set_up_to_its_first_webhook(browser: Browser, new_loop: Running, has_script: bool) -> None:
    link = await link_of(new_loop.context)
    assert link is not None
    async with window(browser, has_script=has_script) as visit, merchant_server() as shop_server:
        page = visit.page
        await page.goto(link)
        await page.fill("#field-name", NAME)
        await page.fill("#field-email", EMAIL)
        await page.fill("#field-password", PASSWORD)
        await visit.press("Make the merchant")
        await visit.reads("First steps")
        await visit.press("Connect the sandbox")
        await visit.reads("sandbox is connected.")
        await visit.press("Make a link for 49.99 USD")
        await page.wait_for_url("**/dashboard/links/cs_*")
        async with page.context.expect_page() as opened:
            await visit.press("Open the page")
        payment = await opened.value
        await pay_at(payment, "$49.99")
        await payment.close()
        await page.goto(f"{new_loop.url}/dashboard")
        await visit.reads("what happened")
        await page.fill("#field-url", f"{shop_server.url}/hooks")
        await visit.press("Send a trial there")
        if has_script:  # the overview sees by itself that it has arrived
            await page.locator(".first-steps").wait_for(state="detached")
        else:
            for _ in range(50):
                if not await page.locator(".first-steps").count():
                    break
                await page.reload()
        assert not await page.locator(".first-steps").count()
        assert [each.path for each in shop_server.received] == ["/hooks"]
        assert visit.troubles == []
        await page.goto(link)
        await visit.reads("This Loop has its first merchant already; sign in.")


@WITH_AND_WITHOUT_SCRIPT
async def test_a_rule_is_tried_saved_and_moved(browser: Browser, world: World, has_script: bool) -> None:
    async with at_desk(browser, world, has_script=has_script) as visit:
        page = visit.page
        await page.goto(f"{world.url}/dashboard/routing")
        await visit.press("New rule")
        await page.fill("#field-name", "Euros to Stripe")
        await page.fill("#field-currencies", "eur")
        await page.select_option("#field-target_1", "stripe")
        await visit.press("Try on recent orders")
        await visit.reads("Not saved yet")
        assert await page.input_value("#field-name") == "Euros to Stripe"
        await visit.press("Save the rule")
        await visit.reads("The rule was saved.")
        await visit.reads("will never be reached")
        for _ in range(3):
            await page.locator(".rule", has_text="Euros to Stripe").locator("button", has_text="up").click()
            await page.wait_for_url("**notice=moved")
        assert await page.locator(".rule-name").first.inner_text() == "Euros to Stripe"
        await page.fill("#field-amount", "10.00")
        await page.fill("#field-currency", "EUR")
        await visit.press("Try it")
        await page.locator(".decision-who", has_text="stripe takes it").wait_for()
        assert visit.troubles == []


async def test_the_weights_are_there_for_who_shares_out(browser: Browser, world: World) -> None:
    async with at_desk(browser, world) as visit:
        await visit.page.goto(f"{world.url}/dashboard/routing/new")
        assert not await visit.page.locator("#field-weight_1").is_visible()
        await visit.page.check("input[value=split]")
        assert await visit.page.locator("#field-weight_1").is_visible()


@WITH_AND_WITHOUT_SCRIPT
async def test_a_link_is_made_paid_and_its_order_follows(browser: Browser, world: World, has_script: bool) -> None:
    async with at_desk(browser, world, has_script=has_script) as visit:
        page = visit.page
        await page.goto(f"{world.url}/dashboard/links")
        await visit.press("New link")
        await page.fill("#field-amount", "30.00")
        await page.fill("#field-currency", "EUR")
        await page.fill("#field-purpose", "A lamp for the hall")
        await visit.press("Make the link")
        await visit.reads("The link is ready.")
        code = page.locator(".code-image")
        assert await code.evaluate("image => image.naturalWidth") > 0 if has_script else await code.is_visible()
        address = await page.input_value("#link-address")
        order = page.locator("dl a", has_text="Open it")
        await order.click()
        await page.locator(".order-status", has_text="Not paid yet").wait_for()
        payment = await page.context.new_page()
        await payment.goto(address)
        await pay_at(payment, "€30.00")
        await payment.close()
        if not has_script:
            await page.reload()
        await page.locator(".order-status", has_text="Captured").wait_for()
        assert visit.troubles == []


async def test_a_page_that_changes_leaves_a_form_alone_that_is_filled_in(browser: Browser, world: World) -> None:
    async with at_desk(browser, world) as visit:
        page, order_id = visit.page, world.orders["captured"]
        await page.goto(f"{world.url}/dashboard/orders/{order_id}")
        await page.click("summary:has-text('Refund')")
        await page.fill("#field-reason", "half written")
        await page.wait_for_timeout(1_500)  # its first look at what there was already
        await world.call("POST", f"/v1/orders/{order_id}/refund", {"amount": 100})
        await page.wait_for_timeout(5_000)
        assert await page.input_value("#field-reason") == "half written"
        await page.click("summary:has-text('Refund')")
        await page.locator(".order-status", has_text="Partly refunded").wait_for()
        assert visit.troubles == []


@WITH_AND_WITHOUT_SCRIPT
async def test_the_settings_are_saved_and_the_password_changed(
    browser: Browser, world: World, has_script: bool
) -> None:
    async with at_desk(browser, world) as elsewhere, at_desk(browser, world, has_script=has_script) as visit:
        page = visit.page
        await page.goto(f"{world.url}/dashboard/settings")
        await page.fill("#field-name", "Southlight Lamps")
        await page.check("input[value=refund]")
        await page.locator("button", has_text="Save").click()
        await visit.reads("The settings were saved.")
        assert await page.locator(".merchant").inner_text() == "Southlight Lamps"
        for name, typed in (("current", PASSWORD), ("new", "another lamp"), ("again", "another lamp")):
            await page.fill(f"#field-{name}", typed)
        await visit.press("Change the password")
        await visit.reads("every other session ended")
        assert await page.locator("button", has_text="Sign out everywhere else").count() == 0
        await elsewhere.page.goto(f"{world.url}/dashboard/settings")
        await elsewhere.page.wait_for_url("**/sign-in**")
        assert visit.troubles == []
