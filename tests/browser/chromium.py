"""The browser that the tests drive: Debian's Chromium, or another one that an environment variable names."""

import os
import shutil
from typing import Final

VARIABLE: Final = "LOOP_TEST_CHROMIUM"
NAMES: Final = ("chromium", "chromium-browser", "google-chrome")


def chromium_path() -> str | None:
    """Return the path of a Chromium, None where there is none."""
    return os.environ.get(VARIABLE) or next(filter(None, map(shutil.which, NAMES)), None)
