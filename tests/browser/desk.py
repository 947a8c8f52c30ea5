"""The shop's person at the dashboard in a browser: signed in, with a watch on what goes wrong in the window."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from playwright.async_api import Browser, Page

from tests.browser.checkout_world import WATCH_POLICY, Visit
from tests.browser.world import EMAIL, PASSWORD, World

SIZES: Final = [(360, 720), (1280, 800)]


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
    """Sign in as the shop's person."""
    await page.goto(f"{url}/dashboard/sign-in")
    await page.fill("#field-email", EMAIL)
    await page.fill("#field-password", PASSWORD)
    await page.click("main button")
    await page.wait_for_url(f"{url}/dashboard")
