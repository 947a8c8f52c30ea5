"""Takes a picture of every page that people see: both themes, desktop and phone, into a folder."""

import argparse
import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final, Literal

from playwright.async_api import Browser, Page, async_playwright

from loop.config import load
from loop.runtime import Running, running
from loop.server.dashboard.pages.welcome import link_of
from tests.browser.checkout_world import Street, Visit, new_street
from tests.browser.chromium import chromium_path
from tests.browser.desk import sign_in
from tests.browser.world import DAYS, World, free_port, lived_in_world, new_world

SIZES: Final = {"desktop": (1280, 800), "phone": (360, 720)}
THEMES: Final[tuple[Literal["light", "dark"], ...]] = ("light", "dark")
PAGES: Final = {
    "overview": "/dashboard",
    "orders": "/dashboard/orders",
    "orders-filtered": "/dashboard/orders?status=failed&q=ana%40example.com",
    "orders-none": "/dashboard/orders?q=nothing-like-it",
    "refunds": "/dashboard/refunds",
    "disputes": "/dashboard/disputes",
    "reconciliation": "/dashboard/reconciliation",
    "links": "/dashboard/links",
    "links-new": "/dashboard/links/new",
    "routing": "/dashboard/routing",
    "routing-tried": "/dashboard/routing?amount=49.99&currency=EUR&method=card",
    "routing-new": "/dashboard/routing/new",
    "audit": "/dashboard/audit?check=1",
    "settings": "/dashboard/settings",
    "processors": "/dashboard/processors",
    "processor": "/dashboard/processors/stripe",
    "processor-new": "/dashboard/processors/razorpay",
    "webhooks": "/dashboard/webhooks",
    "webhook-new": "/dashboard/webhooks/new",
    "deliveries": "/dashboard/webhooks/deliveries",
    "deliveries-none": "/dashboard/webhooks/deliveries?type=dispute.won",
    "api-keys": "/dashboard/api-keys",
    "api-key-new": "/dashboard/api-keys/new",
    "patterns": "/dashboard/patterns",
    "not-found": "/dashboard/orders/ord_0",
}
ENDED: Final[Mapping[str, Literal["pay", "expire"]]] = {"checkout-paid": "pay", "checkout-expired": "expire"}
EMPTY_PAGES: Final = (
    "overview",
    "orders",
    "refunds",
    "disputes",
    "reconciliation",
    "links",
    "routing",
    "webhooks",
    "deliveries",
)


async def _take(browser: Browser, world: World, pages: dict[str, str], *, folder: Path, only: str) -> None:
    for theme in THEMES:
        for size, (width, height) in SIZES.items():
            viewport = {"width": width, "height": height}
            context = await browser.new_context(viewport=viewport, color_scheme=theme)  # type: ignore[arg-type] # as its TypedDict
            page = await context.new_page()
            await page.goto(f"{world.url}/dashboard/sign-in")
            if "sign-in" in pages and only in "sign-in":
                await page.screenshot(path=folder / f"sign-in-{size}-{theme}.png", full_page=True)
            await sign_in(page, world.url)
            for name, address in pages.items():
                if only not in name or name == "sign-in":
                    continue
                await page.goto(world.url + address)
                await page.screenshot(path=folder / f"{name}-{size}-{theme}.png", full_page=True)
                if name == "order-captured":
                    await page.click("details.action.tone-bad > summary")
                    await page.screenshot(path=folder / f"{name}-refund-{size}-{theme}.png", full_page=True)
            await context.close()


async def _take_checkout(street: Street, *, folder: Path, only: str) -> None:
    """Take the checkout page as a customer comes to see it, on each processor's way and when nothing can be paid."""
    await street.connect("stripe", "razorpay", "sandbox")
    for theme in THEMES:
        for size, (width, _) in SIZES.items():
            view = f"{size}-{theme}"
            await street.prefer("stripe", "razorpay", "sandbox")
            async with street.visit(theme=theme, width=width) as visit:
                await _walk(street, visit, partial(_picture, visit.page, folder, view, only))


async def _picture(page: Page, folder: Path, view: str, only: str, name: str) -> None:
    if only in name:
        await page.screenshot(path=folder / f"{name}-{view}.png", full_page=True)


async def _walk(street: Street, visit: Visit, picture: Callable[[str], Awaitable[None]]) -> None:
    session = await street.session()
    await visit.page.goto(session["url"])
    await picture("checkout")
    await visit.press("Pay €49.99")
    await visit.page.locator("#stripe button:not([disabled])").wait_for()
    await picture("checkout-stripe")
    await visit.page.frame_locator("#stripe-fields iframe").locator("#card").select_option(label="Visa: declined")
    await visit.press("Pay €49.99")
    await visit.reads("The payment was declined.")
    await picture("checkout-declined")

    await street.prefer("sandbox")
    session = await street.session()
    await visit.page.goto(session["url"])
    await visit.press("Pay €49.99")
    await visit.reads("Approve the payment")
    await picture("checkout-sandbox")

    for name, how in ENDED.items():
        session = await street.session()
        await street.end(session, how)
        await visit.page.goto(session["url"])
        await picture(name)

    for language in ("de", "hi"):
        session = await street.session(currency="INR", amount=49_900)
        await visit.page.goto(f"{session['url']}?lang={language}")
        await picture(f"checkout-{language}")


async def _take_welcome(browser: Browser, serving: Running, *, folder: Path, only: str) -> None:
    """Take the page on which a new Loop gets its first merchant."""
    link = await link_of(serving.context)
    assert link is not None
    for theme in THEMES:
        for size, (width, height) in SIZES.items():
            page = await browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
            await page.goto(link)
            await _picture(page, folder, f"{size}-{theme}", only, "welcome")
            await page.close()


async def take(folder: Path, *, days: int, only: str) -> None:
    """Take the pictures whose names hold `only`."""
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=chromium_path(), args=["--no-sandbox"])
        with tempfile.TemporaryDirectory() as place:
            async with lived_in_world(Path(place), days) as world:
                orders = {f"order-{name}": f"/dashboard/orders/{order_id}" for name, order_id in world.orders.items()}
                pages = {"sign-in": "/dashboard", **PAGES, **orders, **world.places}
                await _take(browser, world, pages, folder=folder, only=only)
        with tempfile.TemporaryDirectory() as place:
            async with new_world(Path(place)) as world:
                empty = {f"{name}-empty": PAGES[name] for name in EMPTY_PAGES}
                await _take(browser, world, empty, folder=folder, only=only)
        with tempfile.TemporaryDirectory() as place:
            flags = {"data_dir": place, "port": str(free_port()), "log_level": "error"}
            async with running(load(flags, {})) as serving:
                await _take_welcome(browser, serving, folder=folder, only=only)
        with tempfile.TemporaryDirectory() as place:
            async with new_street(browser, f"sqlite:///{place}/loop.db", Path(place)) as street:
                await _take_checkout(street, folder=folder, only=only)
        await browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("screenshots"))
    parser.add_argument("--days", type=int, default=DAYS, help="how much of a past the shop has")
    parser.add_argument("--only", default="", help="a part of the names of the pictures to take")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(take(**vars(arguments)))
