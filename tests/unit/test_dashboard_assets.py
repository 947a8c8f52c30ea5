"""The dashboard's vendored files are the ones that are listed, and its own pages keep to their strict policy."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from loop.server.dashboard.assets import STATIC, address_of

VENDOR = STATIC / "vendor"
LIST = VENDOR / "vendored.json"
TEMPLATES = sorted((STATIC.parent / "templates").glob("*.html"))


def test_vendored_files_are_as_listed() -> None:
    listed = {each["file"]: each["sha256"] for each in json.loads(LIST.read_text("utf-8"))}
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in VENDOR.iterdir() if path != LIST}
    assert found == listed


def test_each_vendored_file_says_where_it_is_from() -> None:
    for each in json.loads(LIST.read_text("utf-8")):
        assert set(each) == {"file", "package", "version", "licence", "path", "sha256"}
        assert each["licence"] in ("0BSD", "MIT")
        assert re.fullmatch(r"\d+\.\d+\.\d+", each["version"])


def test_the_address_of_a_file_changes_with_what_it_holds() -> None:
    version = hashlib.sha256((STATIC / "app.css").read_bytes()).hexdigest()[:12]
    assert address_of("app.css") == f"/dashboard/static/{version}/app.css"


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_nothing_inline(template: Path) -> None:
    text = template.read_text("utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|hx-on|javascript:|hx-vals=.js", text)
    scripts = re.findall(r"<script[^>]*>", text)
    assert all(" src=" in each or 'type="application/json"' in each for each in scripts)
    assert "http://" not in text
    assert "https://" not in text
    assert "|safe" not in text.replace(" ", "")


def test_own_scripts_make_no_markup_and_run_no_text() -> None:
    for path in STATIC.glob("*.js"):
        assert not re.search(
            r"innerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|outerHTML", path.read_text()
        )
