"""Links between the pages, and from them into the tree, lead to something; every page has a place in the site."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import ROOT, pages, prose_of

LINKED = [*pages(), "CHANGELOG.md", "CONTRIBUTING.md", "bench/README.md"]
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#+ (?P<text>.+)$", re.MULTILINE)


def anchor_of(heading: str) -> str:
    """Return a heading's anchor, as GitHub and the site make it."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")


def anchors_of(path: Path) -> set[str]:
    return {anchor_of(found["text"]) for found in _HEADING.finditer(path.read_text("utf-8"))}


def broken_links(page: str, text: str) -> Iterator[str]:
    for found in _LINK.finditer(text):
        target, _, anchor = found["target"].partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        if not path.exists():
            yield f"{page}: {found['target']} is not there"
        elif page.startswith("docs/") and not path.resolve().is_relative_to(ROOT / "docs"):
            yield f"{page}: {found['target']} leads out of the site; name the file instead"
        elif anchor and anchor not in anchors_of(path):
            yield f"{page}: {found['target']} has no such heading"


@pytest.mark.parametrize("page", LINKED)
def test_links_lead_to_something(page: str) -> None:
    assert list(broken_links(page, prose_of(page))) == []


def test_a_broken_link_is_noticed() -> None:
    text = (
        "[a](nowhere.md) [b](README.md#nothing) [c](#nothing) [d](README.md#a-first-payment) [e](https://example.com)"
    )
    assert [each.rpartition(": ")[2] for each in broken_links("README.md", text)] == [
        "nowhere.md is not there",
        "README.md#nothing has no such heading",
        "#nothing has no such heading",
    ]


def in_navigation(entries: Any) -> Iterator[str]:
    """Yield the pages that a part of the site's navigation names."""
    if isinstance(entries, str):
        yield f"docs/{entries}"
        return
    for each in entries.values() if isinstance(entries, dict) else entries:
        yield from in_navigation(each)


def test_every_page_has_its_place_in_the_site_once() -> None:
    site = tomllib.loads((ROOT / "zensical.toml").read_text("utf-8"))["project"]
    assert sorted(in_navigation(site["nav"])) == [page for page in pages() if page.startswith("docs/")]
