"""Canaries: what no log, table or answer may hold, and the search for it wherever a test leaves something."""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from loop import telemetry
from loop.domain.api_keys import is_well_formed
from loop.domain.cards import contains_card_number

CANARY: Final = "canary"
"""Stands in secrets that tests plant: processors' credentials, webhook secrets, master keys."""

PASSWORD: Final = "correct horse battery"
"""What every person of the tests signs in with."""

SHOWN_ONCE: Final = frozenset({"secret", "pendingSecret", "webhookSecret", "token", "refreshToken", "signingSecret"})
"""Fields of answers that hold a secret by contract: where it is made, and for a person who signed in."""

_LOOKS: Final = re.compile(
    rf"{CANARY}|{PASSWORD}"
    r"|whsec_[0-9A-Za-z+/=_-]{6,}"
    r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\."
    r"|4242[ -]?4242[ -]?4242[ -]?4242"
)
"""How the secrets look that are made while a test runs, besides the canaries themselves and the tests' usual card."""

_KEY: Final = re.compile(r"sk_(?:test|live)_[0-9A-Za-z]{38}")
"""An API key, which also has its own checksum: a key's prefix may stand before any letters in a file."""

_DIGITS: Final = re.compile(r"(?<![0-9A-Za-z])[0-9](?:[ -]?[0-9]){12,18}(?![0-9A-Za-z])")


class Aviary:
    """The secrets of one test: those that all have in common, and those that it was given by answers."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def forget(self) -> None:
        """Begin anew, with another test."""
        self._given.clear()

    def keep(self, secret: str) -> None:
        """Remember a secret that was shown as the contract says: it may be seen nowhere else."""
        if len(secret) >= 16:
            self._given.add(secret)

    def found_in(self, text: str) -> list[str]:
        """Return the secrets and card numbers that a text holds, each shortened so that no report holds it too."""
        found = self._secrets_in(text)
        found += [match.group() for match in _DIGITS.finditer(text) if contains_card_number(match.group())]
        return [f"{each[:9]}…" for each in found]

    def _secrets_in(self, text: str) -> list[str]:
        found = [match.group() for match in _LOOKS.finditer(text)]
        found += [match.group() for match in _KEY.finditer(text) if is_well_formed(match.group())]
        return found + [each for each in self._given if each in text]

    def taken_from(self, content: object) -> object:
        """Return an answer's JSON without the secrets that it shows by contract, which are remembered."""
        if isinstance(content, Mapping):
            for name in SHOWN_ONCE & content.keys():
                if isinstance(content[name], str):
                    self.keep(content[name])
            return {name: self.taken_from(each) for name, each in content.items() if name not in SHOWN_ONCE}
        if isinstance(content, list):
            return [self.taken_from(each) for each in content]
        return content

    def require_none_in_answer(self, text: str, *, where: str) -> None:
        """Fail if an answer holds a secret in any field that is not for secrets."""
        try:
            shown = json.dumps(self.taken_from(json.loads(text)), ensure_ascii=False)
        except ValueError:
            shown = text
        self.require_none_in(shown, where=where)

    def require_none_in(self, text: str, *, where: str) -> None:
        """Fail if a text holds a secret."""
        found = self.found_in(text)
        assert not found, f"{where} holds {found}"

    def require_none_in_file(self, path: Path) -> None:
        """Fail if a SQLite database holds a secret, in a table or in what it has not yet written over."""
        for each in (path, path.with_name(f"{path.name}-wal")):
            if each.exists():
                # Other cards are not looked for: where columns stand side by side in a file, any digits may meet.
                self.require_none_in_rows(each.read_bytes().decode("latin-1"))

    def require_none_in_rows(self, text: str) -> None:
        """Fail if what a database holds has a secret in it."""
        found = self._secrets_in(text)
        assert not found, f"the database holds {[f'{one[:9]}…' for one in found]}"


aviary = Aviary()
"""The secrets of the test that runs: each process runs one test at a time."""


class _Listening(logging.Handler):
    """Keeps the log as it would be written."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.setFormatter(telemetry._JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@contextmanager
def listening(name: str = "loop", *, is_alone: bool = False) -> Iterator[list[str]]:
    """Yield the log of Loop's own loggers, or others, line by line, while it is written.

    Who listens alone keeps it from everybody else, such as from pytest, which keeps each line for its report.
    """
    ours, handler = logging.getLogger(name), _Listening()
    level, others, is_passed_on = ours.level, ours.handlers[:], ours.propagate
    if is_alone:
        ours.handlers.clear()
        ours.propagate = False
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        yield handler.lines
    finally:
        ours.removeHandler(handler)
        ours.setLevel(level)
        if is_alone:
            ours.handlers[:], ours.propagate = others, is_passed_on
