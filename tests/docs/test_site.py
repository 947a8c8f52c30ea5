"""The site: it is built without a warning, and none of its pages has a browser load anything from elsewhere."""

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT

BUILT_WITHIN_S = 120
_LOADED = re.compile(
    r'<(?:script|img|iframe|source|video)\b[^>]*\ssrc="(?P<src>[^"]+)"|<link\b[^>]*\shref="(?P<href>[^"]+)"'
)
_NEEDING_MORE = ('class="mermaid"', "glightbox", "pyodide")
"""What the theme's own script would fetch a library for."""


@pytest.mark.skipif(find_spec("zensical") is None, reason="the builder is not installed: pip install --group docs")
def test_the_site_builds_and_is_whole(tmp_path: Path) -> None:
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, timeout=BUILT_WITHIN_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    built = tmp_path / "build" / "docs"
    for page in sorted((tmp_path / "docs").rglob("*.md")):
        name = page.relative_to(tmp_path / "docs").with_suffix("")
        folder = name.parent if name.name in ("index", "README") else name
        text = (built / folder / "index.html").read_text("utf-8")
        loaded = [found["src"] or found["href"] for found in _LOADED.finditer(text)]
        assert loaded
        assert [each for each in loaded if "://" in each or each.startswith("//")] == [], name
        assert [each for each in _NEEDING_MORE if each in text] == [], name
    assert not list(built.rglob("*.py"))
