"""Takes a picture of every page of the dashboard: both themes, desktop and phone, into a folder."""

import argparse
import asyncio
import tempfile
from pathlib import Path
from typing import Final, Literal

from playwright.async_api import Browser, async_playwright

from tests.browser.chromium import chromium_path
from tests.browser.desk import sign_in
from tests.browser.world import DAYS, World, lived_in_world, new_world

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
        await browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("screenshots"))
    parser.add_argument("--days", type=int, default=DAYS, help="how much of a past the shop has")
    parser.add_argument("--only", default="", help="a part of the names of the pictures to take")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(take(**vars(arguments)))
