"""The page that shows the API's document works in a browser under its own policy, and asks nobody else."""

import pytest
from playwright.async_api import Browser, expect

from loop.runtime import Running
from tests.api.conftest import flags, served, settings

__all__ = ["flags", "served", "settings"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_the_page_shows_the_document(browser: Browser, served: Running) -> None:
    page = await browser.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error.stack)))
    await page.goto(f"{served.url}/docs")
    await expect(page.get_by_text("Give back captured money").first).to_be_attached(timeout=30_000)
    await expect(page.get_by_text("orders", exact=False).first).to_be_visible()
    elsewhere = [url for url in asked if not url.startswith((served.url, "data:"))]
    assert not elsewhere
    assert not said
