"""Sessions: a reader's terminals, in which a page's commands run in their order beside a `loop serve` of their own."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

from tests.e2e.shells import send

BASH = "/bin/bash"
RUNS_WITHIN_S = 90.0
"""Bounds one block and the start of a server; an idle machine needs a second or two."""

EMAIL, PASSWORD = "me@example.com", "a long password"
PORTS = ("8000", "8585", "3000")
"""Where the pages have Loop, the stand-in for processors and the shop listen; each session has ports of its own."""

MADE_UP = frozenset({"", "pk_test_", "sk_live_", "pk_live_", "whsec_", "rzp_test_", "pm_", "token_"})
"""What a reader has from elsewhere: any text of that kind will do. Everything else must have been printed before."""

_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_OWN_PORTS = cycle(range(20_000 + 1_000 * _WORKER, 20_999 + 1_000 * _WORKER))
"""Ports of this worker alone, which the system gives to no connection: a session uses its own late, or again."""

_PLACEHOLDER = re.compile(r"(?P<prefix>[A-Za-z0-9_]*)…")
_PORT = re.compile(rf"(?P<before>localhost:|127\.0\.0\.1:|--port |PORT=)(?P<port>{'|'.join(PORTS)})\b")


@dataclass
class Session:
    """A home, the variables and the folder of the first terminal, and what was printed in any of them."""

    home: Path
    commands: Path
    """A folder for PATH, with `loop`."""
    ports: dict[str, int] = field(default_factory=lambda: dict(zip(PORTS, _free_ports(len(PORTS)), strict=True)))
    printed: str = ""
    running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder = self.home / "work"
        self.folder.mkdir(parents=True, exist_ok=True)
        # An answer that is no success ends the block, and answers do not run into each other.
        (self.home / ".curlrc").write_text('fail-with-body\nmax-time = 30\nwrite-out = "\\n"\n')
        self.variables = {
            "PATH": f"{self.commands}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "LOOP_PORT": str(self.ports["8000"]),
        }

    def run(self, text: str) -> str:
        """Run a block in the first terminal; return what it printed."""
        state = self.home / "state"
        # $? is read first, so that a block that fails still fails when its variables are kept.
        keep = f'trap \'code=$?; {{ export -p; printf "cd %q\\n" "$PWD"; }} > {state}; exit $code\' EXIT'
        restore = f". {state}\n" if state.exists() else ""
        done = subprocess.run(
            [BASH, "-euo", "pipefail", "-c", f"{restore}{keep}\n{self.filled(text)}"],
            cwd=self.folder,
            env=self.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=RUNS_WITHIN_S,
            check=False,
        )
        self.printed += done.stdout
        assert done.returncode == 0, f"ended with {done.returncode}:\n{self.filled(text)}\n{done.stdout}"
        return done.stdout

    def keep_running(self, text: str, port: str) -> None:
        """Run a block in a terminal of its own until the session ends, once it listens on the port."""
        self.stop(port)
        output = self.home / f"terminal-{port}"
        with output.open("wb") as terminal:
            process = subprocess.Popen(
                [BASH, "-euo", "pipefail", "-c", self.filled(text)],
                cwd=self.folder,
                env={**self.variables, **self._exported()},
                stdin=subprocess.DEVNULL,
                stdout=terminal,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running[port] = process
        deadline = time.monotonic() + RUNS_WITHIN_S
        while not _listens(self.ports[port]):
            assert process.poll() is None, f"ended:\n{text}\n{output.read_text('utf-8')}"
            assert time.monotonic() < deadline, f"does not listen:\n{text}\n{output.read_text('utf-8')}"
            time.sleep(0.05)
        self.printed += output.read_text("utf-8")

    def wait_for(self, port: str, text: str) -> None:
        """Wait until each line of a text appears in the terminal that listens on a port."""
        lines = [_PLACEHOLDER.sub("\0", line).split("\0") for line in text.splitlines()]
        patterns = [re.compile(r"\w+".join(re.escape(part) for part in parts)) for parts in lines]
        deadline = time.monotonic() + RUNS_WITHIN_S
        output = self.home / f"terminal-{port}"
        while missing := [each.pattern for each in patterns if not each.search(output.read_text("utf-8"))]:
            assert time.monotonic() < deadline, f"{missing} does not appear in:\n{output.read_text('utf-8')}"
            time.sleep(0.05)

    def stop(self, port: str) -> None:
        """End what listens on a port, if anything does, as Ctrl-C would."""
        process = self.running.pop(port, None)
        if process is not None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(RUNS_WITHIN_S)

    def filled(self, text: str) -> str:
        """Return a block with this session's ports, and each `prefix…` as what was printed last with that prefix."""
        with_ports = _PORT.sub(lambda found: f"{found['before']}{self.ports[found['port']]}", text)
        return _PLACEHOLDER.sub(lambda found: self._value(found["prefix"]), with_ports)

    def _value(self, prefix: str) -> str:
        characters = "[A-Za-z0-9+/=]" if prefix == "whsec_" else "[A-Za-z0-9_.-]"
        seen = re.findall(rf"(?<![A-Za-z0-9_]){prefix}{characters}{{8,}}", self.printed) if prefix else []
        if seen:
            return str(seen[-1])
        assert prefix in MADE_UP, f"nothing that begins with {prefix} was printed before"
        return f"{prefix}example0123456789abcdef0123456789"

    def _exported(self) -> dict[str, str]:
        """Return the variables of the first terminal that a reader would have exported in the others too."""
        state = self.home / "state"
        if not state.exists():
            return {}
        told = subprocess.run(
            [BASH, "-c", f". {state} && env -0"], env=self.variables, capture_output=True, text=True, check=True
        )
        pairs = [each.partition("=") for each in told.stdout.split("\0") if each]
        return {name: value for name, _, value in pairs if name not in ("PWD", "OLDPWD", "SHLVL", "_")}


@contextmanager
def session_in(home: Path, commands: Path) -> Iterator[Session]:
    """Yield a session and end what still runs in it."""
    session = Session(home, commands)
    try:
        yield session
    finally:
        for port in list(session.running):
            session.stop(port)


def furnish(home: Path, commands: Path) -> None:
    """Make the merchant that the quickstart makes, with the sandbox, in a home that sessions begin as copies of."""
    with session_in(home, commands) as session:
        session.run(
            f"export LOOP_MERCHANT_PASSWORD='{PASSWORD}'\n"
            f"loop merchant create --name 'My shop' --email {EMAIL}\n"
            f"loop processor set {EMAIL} sandbox < /dev/null\n"
            "unset LOOP_MERCHANT_PASSWORD\n"
        )
        (home / "printed").write_text(session.printed)


def move_in(session: Session, furnished: Path) -> None:
    """Begin where the quickstart ends: Loop serves, `KEY`, `TOKEN` and `ORDER` are set, the order is paid."""
    shutil.copytree(furnished / ".local", session.home / ".local")
    session.printed += (furnished / "printed").read_text()
    session.keep_running("loop serve", "8000")
    port = session.ports["8000"]
    signed_in = send(port, "POST", "/api/auth/login", body={"email": EMAIL, "password": PASSWORD})
    key = session.filled("sk_test_…")
    order = send(port, "POST", "/v1/orders", key=key, body={"amount": 4999, "currency": "USD"})
    card = {"paymentMethod": {"type": "card", "token": "tok_approve"}}
    paid = send(port, "POST", f"/v1/orders/{order['id']}/pay", key=key, body=card)
    session.printed += json.dumps([signed_in, order, paid])
    session.variables |= {"KEY": key, "TOKEN": signed_in["token"], "ORDER": order["id"]}


def _free_ports(count: int) -> list[int]:
    free = (port for port in _OWN_PORTS if not _is_taken(port))
    return list(islice(free, count))


def _is_taken(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return True
    return False


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
