"""The command line, in processes of its own beside a `loop serve`, or inside this process."""

import io
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from loop.cli import main
from loop.cli_console import find_merchant, flags, run_work
from loop.domain.money import Money
from loop.workflows import orders
from loop.workflows.context import Context
from loop.workflows.orders import NewOrder

STARTED_WITHIN_S = 30.0


@dataclass(frozen=True)
class Commands:
    """Runs `loop` with a data directory of its own."""

    environment: dict[str, str]

    def run(self, *arguments: str, piped: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "loop", *arguments],
            env=self.environment,
            input=piped,
            text=True,
            capture_output=True,
            timeout=60,
            check=False,
        )

    def ok(self, *arguments: str, piped: str = "") -> str:
        done = self.run(*arguments, piped=piped)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, *arguments: str) -> tuple[int, str]:
        """Run a command that must end with an error of one line, by a user whom modes of files bind; return both."""
        bound = [] if os.geteuid() else ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
        command = [*bound, sys.executable, "-m", "loop", *arguments]
        done = subprocess.run(
            command, env=self.environment, stdin=subprocess.DEVNULL, text=True, capture_output=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout + done.stderr


def commands_in(data_dir: Path) -> Commands:
    """Return commands that know nothing of this machine but a data directory."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return Commands({**kept, "LOOP_DATA_DIR": str(data_dir)})


@contextmanager
def serving_on(commands: Commands) -> Iterator[int]:
    """Run `loop serve` with no configuration but a free port, and yield the port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # To a file: a pipe that nobody reads is full one day, and whoever writes to it stands still.
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as log,
        subprocess.Popen(
            [sys.executable, "-m", "loop", "serve", "--port", str(port)],
            env=commands.environment,
            stderr=log,
            text=True,
        ) as process,
    ):
        try:
            _wait_for(port, process)
            yield port
        finally:
            process.terminate()
            process.wait(timeout=30)
            log.seek(0)
            said = log.read()
        assert process.returncode == 0, said
        assert "loop merchant create" in said


def _wait_for(port: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + STARTED_WITHIN_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "loop serve ended at once"
        try:
            send(port, "GET", "/health")
        except ConnectionError:
            time.sleep(0.05)
        else:
            return
    pytest.fail("loop serve did not start")


def send(port: int, method: str, path: str, *, key: str = "", body: object = None) -> Any:
    """Return what an HTTP request is answered, which must be a success."""
    connection = HTTPConnection("127.0.0.1", port, timeout=15)
    with closing(connection):
        connection.request(method, path, None if body is None else json.dumps(body), {"X-API-Key": key})
        answer = connection.getresponse()
        content = json.loads(answer.read())
    assert answer.status < 300, content
    return content


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Desk:
    """Runs commands inside this process, as `loop` would run them."""

    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def run(self, *arguments: str, piped: str = "") -> Done:
        """Run a command and return how it ended."""
        flags.clear()
        self.monkeypatch.setattr(sys, "argv", ["loop", *arguments])
        self.monkeypatch.setattr(sys, "stdin", io.StringIO(piped))
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = self.capsys.readouterr()
        return Done(int(ended.value.code or 0), said.out, said.err)

    def ok(self, *arguments: str, piped: str = "") -> str:
        """Run a command that must succeed, and return what it printed."""
        done = self.run(*arguments, piped=piped)
        assert done.code == 0, done.err
        return done.out

    def json(self, *arguments: str, piped: str = "") -> Any:
        """Run a command that must succeed, and return the JSON that it printed."""
        return json.loads(self.ok(*arguments, "--json", piped=piped))

    def merchant(self, name: str = "My shop") -> str:
        """Make a merchant who takes test payments at the sandbox, and return the address to name them by."""
        email = f"{name.replace(' ', '-').lower()}@example.com"
        self.ok("merchant", "create", "--name", name, "--email", email)
        self.ok("processor", "set", email, "sandbox", piped='{"webhookSecret": "whsec_of_the_sandbox"}')
        return email

    def order(self, email: str, amount_minor: int = 4999, **more: Any) -> str:
        """Make an order of a merchant's, and return its id."""

        async def work(context: Context) -> str:
            owner = await find_merchant(context, email)
            new = NewOrder(amount=Money(amount_minor, "USD"), **more)
            return (await orders.create(replace(context, is_test=True), owner.id, new)).id

        return run_work(work)


@contextmanager
def desk_over(
    database_url: str, data_dir: Path, *, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Desk]:
    """Yield a desk whose commands know of this database and data directory, and leave this process's log as it was."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.getLogger("loop").level
    for name in os.environ:
        if name.startswith("LOOP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LOOP_DATABASE_URL", database_url)
    monkeypatch.setenv("LOOP_DATA_DIR", str(data_dir))
    monkeypatch.setenv("LOOP_JWT_SECRET", "signs 0123456789abcdef0123456789abcdef")
    monkeypatch.setenv("LOOP_ENCRYPTION_KEY", "seals 0123456789abcdef0123456789abcdef")
    try:
        yield Desk(monkeypatch, capsys)
    finally:
        flags.clear()
        root.handlers[:], root.level = before[0], before[1]
        logging.getLogger("loop").setLevel(before[2])
