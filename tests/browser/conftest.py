"""Fixtures of the browser's tests: a Chromium for each, which reaches this machine alone."""

from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.chromium import VARIABLE, chromium_path
from tests.browser.world import World, lived_in_world

if TYPE_CHECKING:
    from playwright.async_api import Browser

collect_ignore_glob = [] if find_spec("playwright") and find_spec("axe_playwright_python") else ["test_*.py"]
"""Without the extra `browser` there is nothing here to run."""


PAST_DAYS = 3


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Yield a shop with a short past."""
    async with lived_in_world(tmp_path, PAST_DAYS) as lived_in:
        yield lived_in


@pytest.fixture
async def browser() -> "AsyncIterator[Browser]":
    """Yield a browser; without Chromium on this machine the test is skipped."""
    path = chromium_path()
    if path is None:
        pytest.skip(f"no Chromium here: install one (apt-get install chromium), or name it in {VARIABLE}")
    from playwright.async_api import async_playwright  # noqa: PLC0415 - the extra may be absent

    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        await launched.close()
