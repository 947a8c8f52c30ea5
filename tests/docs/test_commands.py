"""Every `loop …` of the documentation, run by these tests or not, is a command with the options that it is given."""

import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from typer.main import get_command

from loop.cli import app
from tests.docs.blocks import blocks_of, pages, prose_of

ROOT_COMMAND: Any = get_command(app)
_INLINE = re.compile(r"`(loop [^`]+)`", re.DOTALL)
_WORD = re.compile(r"[a-z][a-z-]*")
_ENDS_A_COMMAND = {"|", "||", "&&", ";", "<", ">", "&"}


def texts_of(page: str) -> Iterator[str]:
    """Yield the lines of shell blocks, continued ones as one, and what prose shows inline."""
    for block in blocks_of(page):
        if block.language == "sh":
            yield from block.text.replace("\\\n", " ").replace("|\n", "| ").splitlines()
    yield from (" ".join(found.split()) for found in _INLINE.findall(prose_of(page)))


def words_of(text: str) -> list[str]:
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        return list(lexer)
    except ValueError:  # one line of a text in quotes that goes over several
        return []


def calls_in(text: str) -> Iterator[list[str]]:
    """Yield the words after each `loop` that is called: `-u loop` is a user, `loop loop` a container with a command."""
    words = words_of(text)
    for number, word in enumerate(words):
        following = words[number + 1 : number + 2]
        is_called = word.rpartition("/")[2] == "loop" and words[max(0, number - 1)] not in ("-u", "-g")
        if (
            is_called
            and following
            and following != ["loop"]
            and (_WORD.fullmatch(following[0]) or following[0][:2] == "--")
        ):
            rest = words[number + 1 :]
            end = next((index for index, each in enumerate(rest) if each in _ENDS_A_COMMAND), len(rest))
            yield rest[:end]


def problem_of(call: Sequence[str]) -> str | None:
    """Return what is wrong with the words after `loop`, None if nothing is."""
    command = ROOT_COMMAND
    for number, word in enumerate(call):
        inside = getattr(command, "commands", {})
        if word.startswith("--"):
            known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
            if word.partition("=")[0] not in known | {"--help", "--install-completion"}:
                return f"loop {' '.join(call[:number])} has no {word}"
        elif inside and not (number and call[number - 1].startswith("--")):
            if word not in inside and _WORD.fullmatch(word):
                return f"there is no loop {' '.join(call[: number + 1])}"
            command = inside.get(word, command)
    return None


@pytest.mark.parametrize("page", pages())
def test_commands_are_there(page: str) -> None:
    problems = {problem_of(call) for text in texts_of(page) for call in calls_in(text)}
    assert problems <= {None}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("loop serve --port 1", None),
        ("sudo -u loop env A=b /opt/loop/bin/loop merchant list", None),
        ("docker compose exec loop loop merchant create --name 'My shop'", None),
        ("echo x | loop processor set me@example.com stripe", None),
        ("loop --config x.toml merchant list", None),
        ("loop sing", "there is no loop sing"),
        ("true && loop merchant sing", "there is no loop merchant sing"),
        ("/opt/loop/bin/loop order list --louder", "loop order list has no --louder"),
    ],
)
def test_a_wrong_command_is_noticed(text: str, problem: str | None) -> None:
    (call,) = calls_in(text)
    assert problem_of(call) == problem
