"""Fenced blocks: what the documentation's pages show, and what the comment before a block says of it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,})(?P<language>[\w-]*)[^\n]*$")
_COMMENT = re.compile(r"^<!-- (?P<text>.+?) -->$")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str
    """The page's path from the root of the tree."""
    line: int
    language: str
    text: str
    said: str
    """What the comment on the line before it says, or nothing."""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    def told(self, word: str) -> str | None:
        """Return what the comment says after `word:`, None where it says nothing of that."""
        before, colon, after = self.said.partition(":")
        return after.strip() if colon and before == word else None


def pages() -> list[str]:
    """Return every page, the README first."""
    found = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
    return ["README.md", *found]


def text_of(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def blocks_of(page: str) -> list[Block]:
    return list(blocks_in(text_of(page), page))


def blocks_in(text: str, page: str) -> Iterator[Block]:
    """Yield the blocks of a page in their order; an open fence at its end is a mistake of the page."""
    lines = text.splitlines()
    opened: tuple[int, re.Match[str]] | None = None
    for number, line in enumerate(lines, start=1):
        fence = _FENCE.match(line)
        if opened is None:
            opened = (number, fence) if fence else None
            continue
        begun, opening = opened
        if fence and fence["fence"] == opening["fence"] and not fence["language"]:
            inside = [each.removeprefix(opening["indent"]) for each in lines[begun : number - 1]]
            comment = _COMMENT.match(lines[begun - 2].strip()) if begun > 1 else None
            said = comment["text"] if comment else ""
            yield Block(page, begun, opening["language"], "\n".join(inside) + "\n", said)
            opened = None
    assert opened is None, f"{page}:{opened[0]}: the fence is not closed"


def prose_of(page: str) -> str:
    """Return a page without its blocks."""
    lines, shown = [], True
    for line in text_of(page).splitlines():
        if _FENCE.match(line):
            shown = not shown
        elif shown:
            lines.append(line)
    return "\n".join(lines)
