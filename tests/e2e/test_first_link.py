"""The link of the first run: printed where somebody sits at a terminal, and to nobody else."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

from tests.e2e.houses import free_port
from tests.e2e.shells import commands_in

WITHIN_S = 60.0
LINK = re.compile(r"or open +(http://\S+/dashboard/welcome\?token=\S+)")


def said_by(data_dir: Path, output: int, heard: int, *, until: str) -> tuple[subprocess.Popen[bytes], str]:
    """Start `loop serve` with its standard error at `output`; return it and what came at `heard`."""
    serving = subprocess.Popen(
        [sys.executable, "-m", "loop", "serve", "--port", str(free_port())],
        env=commands_in(data_dir).environment,
        stdout=subprocess.DEVNULL,
        stderr=output,
    )
    said, ends = "", time.monotonic() + WITHIN_S
    while until not in said and time.monotonic() < ends:
        if select.select([heard], [], [], 1)[0]:
            said += os.read(heard, 4_096).decode()
    return serving, said


def stop(serving: subprocess.Popen[bytes]) -> None:
    serving.send_signal(signal.SIGTERM)
    assert serving.wait(WITHIN_S) == 0


def test_a_terminal_is_told_the_link_and_it_opens(tmp_path: Path) -> None:
    heard, terminal = pty.openpty()
    serving, said = said_by(tmp_path, terminal, heard, until="token=")
    try:
        if not said.endswith("\n"):
            said += os.read(heard, 4_096).decode()
        found = LINK.search(said)
        assert found is not None, said
        with urlopen(found[1]) as page:  # noqa: S310 - our own server
            assert "Make the first merchant" in page.read().decode()
    finally:
        stop(serving)
        os.close(terminal)
        os.close(heard)


def test_a_log_is_not(tmp_path: Path) -> None:
    heard, pipe = os.pipe()
    serving, said = said_by(tmp_path, pipe, heard, until="loop merchant create")
    stop(serving)
    os.set_blocking(heard, False)
    said += os.read(heard, 65_536).decode()
    assert "loop merchant create" in said
    assert "loop.stopped" in said
    assert "token" not in said
