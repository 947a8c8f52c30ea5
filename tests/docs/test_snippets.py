"""Every fenced block of the documentation is run or checked; what cannot be run says why in the comment before it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from configparser import ConfigParser
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from loop import config
from loop.domain.errors import LoopError
from tests.api.contract import api_document
from tests.docs.blocks import ROOT, Block, blocks_in, blocks_of, pages
from tests.docs.sessions import BASH, RUNS_WITHIN_S, Session, furnish, move_in, session_in
from tests.docs.warm import warm_loop

EXAMPLE = ROOT / "examples" / "acme-processor"
NODE = shutil.which("node")
RUN_ELSEWHERE = {"run-command": "tests/e2e/test_demo.py", "test-command": ".ci/run"}
"""The comments before the README's own two commands, and what runs those."""

NOTICED = (AssertionError, ValueError, LoopError)
"""What a block that is wrong is noticed by."""

SHOWN = {"text", "http"}
"""Languages in which nothing is run or typed."""


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with warm_loop(tmp_path_factory.mktemp("warm")) as folder:
        yield folder


@pytest.fixture(scope="session")
def furnished(tmp_path_factory: pytest.TempPathFactory, commands: Path) -> Path:
    home = tmp_path_factory.mktemp("furnished")
    furnish(home, commands)
    return home


@pytest.fixture
def session(tmp_path: Path, commands: Path) -> Iterator[Session]:
    with session_in(tmp_path, commands) as made:
        yield made


def is_excused(block: Block) -> bool:
    return block.told("not run") is not None or block.said in RUN_ELSEWHERE


def begins_by_itself(blocks: list[Block]) -> bool:
    """Tell whether a page starts Loop itself before it does anything else with it."""
    commands = [block for block in blocks if block.language == "sh" and not is_excused(block)]
    return bool(commands) and commands[0].told("keeps running") == "8000"


@pytest.mark.parametrize("page", [page for page in pages() if blocks_of(page)])
def test_a_page_does_what_it_shows(page: str, session: Session, request: pytest.FixtureRequest) -> None:
    blocks = blocks_of(page)
    if any(block.language == "sh" and not is_excused(block) for block in blocks) and not begins_by_itself(blocks):
        move_in(session, request.getfixturevalue("furnished"))
    for block in blocks:
        try:
            check(block, session)
        except NOTICED as wrong:
            pytest.fail(f"{block.place}: {wrong}")


def check(block: Block, session: Session) -> None:
    """Run or check one block; a language that nobody knows here, and no reason, is a failure."""
    if (port := block.told("appears at")) is not None:
        session.wait_for(port, block.text)
    if is_excused(block) or block.language in SHOWN:
        return
    if "." in block.said and " " not in block.said:
        written_as_file(block, session)
        return
    known = CHECKS.get(block.language)
    assert known, f"nothing runs {block.language or 'a block without a language'}: say why by <!-- not run: … -->"
    known(block, session)


def run_in_shell(block: Block, session: Session) -> None:
    port = block.told("keeps running")
    if port is not None:
        session.keep_running(block.text, port)
    else:
        session.run(block.text)


def written_as_file(block: Block, session: Session) -> None:
    """Hold a part of the example plug-in to its file; write any other file where the page's commands run."""
    given = EXAMPLE / block.said
    if given.exists():
        assert block.text.strip() in given.read_text("utf-8"), f"is not in {given}"
        return
    if block.language == "python":
        compile(block.text, block.place, "exec")
    (session.folder / block.said).write_text(session.filled(block.text))


def run_python(block: Block, session: Session) -> None:
    run_script([sys.executable, "-"], block, session)


def run_js(block: Block, session: Session) -> None:
    run_script([NODE or "true", "-"], block, session)


def run_script(command: list[str], block: Block, session: Session) -> None:
    given: Any = {"input": block.text, "cwd": session.folder, "timeout": RUNS_WITHIN_S}
    done = subprocess.run(command, text=True, capture_output=True, check=False, **given)
    assert done.returncode == 0, done.stderr


class _Scripts(HTMLParser):
    is_inside = False

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.is_inside = tag == "script" and "src" not in dict(attrs)

    def handle_data(self, data: str) -> None:
        if self.is_inside:
            self.scripts.append(data)
            self.is_inside = False


def parse_scripts(block: Block, _: Session) -> None:
    """Have Node parse, not run, the scripts of a page, whose names are a browser's."""
    parser = _Scripts()
    parser.feed(block.text)
    node = [NODE or "true", "--check", "-"]
    for script in parser.scripts:
        done = subprocess.run(node, input=script, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr


def check_json(block: Block, _: Session) -> None:
    """Parse JSON; what is shown as an answer, a body or an event must be as the API's document says."""
    shown = json.loads(block.text)
    for word in ("answer", "body"):
        if (operation := block.told(word)) is not None:
            require_fits(shown, schema_of(operation, word))
    if isinstance(shown, dict) and "eventType" in shown:
        require_fits(shown, content_of(api_document()["webhooks"]["event"]["post"]["requestBody"]))


def schema_of(operation: str, word: str) -> Any:
    method, path = operation.split(" ")
    described = api_document()["paths"][path][method.lower()]
    if word == "body":
        return content_of(described["requestBody"])
    (success,) = [answer for status, answer in described["responses"].items() if status.startswith("2")]
    return content_of(success)


def content_of(described: Any) -> Any:
    return described["content"]["application/json"]["schema"]


def require_fits(shown: object, schema: Any) -> None:
    jsonschema_rs.validate({**schema, "components": api_document()["components"]}, shown)


def load_settings(block: Block, session: Session) -> None:
    path = session.folder / "config.toml"
    path.write_text(session.filled(block.text))
    config.load({"config": path, "data_dir": session.home / "data"}, environ={})


def parse_ini(block: Block, _: Session) -> None:
    ConfigParser().read_string(block.text)


CHECKS: Mapping[str, Callable[[Block, Session], None]] = {
    "sh": run_in_shell,
    "python": run_python,
    "js": run_js,
    "html": parse_scripts,
    "json": check_json,
    "toml": load_settings,
    "ini": parse_ini,
}

NOT_RUN = [block for page in pages() for block in blocks_of(page) if block.told("not run") is not None]


@pytest.mark.parametrize(
    "block", [pytest.param(block, id=f"{block.place} {block.told('not run')}") for block in NOT_RUN]
)
def test_what_is_not_run_says_why_and_can_be_read(block: Block) -> None:
    assert len(str(block.told("not run"))) > 10, "say why it cannot be run here"
    if block.language == "sh":
        done = subprocess.run([BASH, "-n"], input=block.text, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ("```sh\nfalse\n```", "ended with 1"),
        ("```sh\ntrue\n```\n\n```sh\nexport A=1\nfalse | true\n```", "ended with 1"),
        ("```sh\necho ord_…\n```", "nothing that begins with ord_"),
        ("```\nanything\n```", "a block without a language"),
        ("```ruby\nputs 1\n```", "nothing runs ruby"),
        ("```json\n{,}\n```", "Expecting property name"),
        ('<!-- answer: POST /v1/orders -->\n```json\n{"id": 1}\n```', "is a required property"),
        ("```toml\nno_setting = 1\n```", "no_setting"),
        ("```python\nraise KeyError(3)\n```", "KeyError: 3"),
        ("<!-- acme_processor.py -->\n```python\nnot_there = 1\n```", "is not in"),
    ],
)
def test_a_wrong_block_is_noticed(page: str, problem: str, session: Session) -> None:
    *earlier, wrong = blocks_in(page, "page.md")
    for block in earlier:
        check(block, session)
    with pytest.raises(NOTICED, match=problem):
        check(wrong, session)


def test_placeholders_are_what_was_printed_last(session: Session) -> None:
    session.run("echo sk_test_first01234567 sk_test_second0123456; export A=1; cd /tmp")
    assert session.run("echo key=sk_test_… $A $PWD") == "key=sk_test_second0123456 1 /tmp\n"
