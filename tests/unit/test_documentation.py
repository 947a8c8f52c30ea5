"""The page that shows the document is made of the vendored files that are listed, and of nothing from elsewhere."""

import hashlib
import json
import re

from loop.server.documentation import STATIC

LIST = STATIC / "vendored.json"
OWN = {"docs.html", LIST.name}
MAX_BYTES = 2_000_000


def test_vendored_files_are_as_listed() -> None:
    listed = {each["file"]: each["sha256"] for each in json.loads(LIST.read_text("utf-8"))}
    files = [path for path in STATIC.iterdir() if path.name not in OWN]
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files} == listed
    assert sum(path.stat().st_size for path in files) < MAX_BYTES


def test_each_vendored_file_says_where_it_is_from() -> None:
    for each in json.loads(LIST.read_text("utf-8")):
        assert set(each) == {"file", "package", "version", "licence", "path", "sha256"}
        assert each["licence"] == "MIT"
        assert re.fullmatch(r"\d+\.\d+\.\d+", each["version"])


def test_the_page_asks_for_nothing_from_elsewhere_and_runs_nothing_inline() -> None:
    page = (STATIC / "docs.html").read_text("utf-8")
    assert "://" not in page
    assert re.findall(r"<script[^>]*>", page) == ['<script type="module" src="/docs/rapidoc-min.js">']
    assert not re.search(r"<style|\sstyle=|\son\w+=", page)
