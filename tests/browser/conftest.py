"""Fixtures of the browser's tests: a Chromium for each, which reaches this machine alone."""

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, async_playwright

from tests.browser.chromium import VARIABLE, chromium_path


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """Yield a browser; without Chromium on this machine the test is skipped."""
    path = chromium_path()
    if path is None:
        pytest.skip(f"no Chromium here: install one (apt-get install chromium), or name it in {VARIABLE}")
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        await launched.close()
