"""A warm `loop`: one process that has imported Loop, and forks for each command instead of starting Python anew.

Importing takes two seconds of a processor, sixty times over the pages. What runs is the same `main`, in a process,
folder and environment of its own, on the caller's own standard input, output and error.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import loop.runtime  # noqa: F401 - what a command would import
from loop.cli import main

STARTED_WITHIN_S = 90.0
MAX_REQUEST_BYTES = 1 << 20
_LENGTH = 4

# Started without site, which takes longer than all that it does. SIGTERM and SIGINT are handed on to the fork.
_CALLER = """#!{python} -SE
import json, os, signal, socket, sys
with socket.socket(socket.AF_UNIX) as there:
    there.connect({address!r})
    told = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(there, [len(told).to_bytes({length}, "big")], [0, 1, 2])
    there.sendall(told)
    forked = int.from_bytes(there.recv({length}), "big")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda given, _: os.kill(forked, given))
    sys.exit(int.from_bytes(there.recv({length}), "big"))
"""


@contextmanager
def warm_loop(folder: Path) -> Iterator[Path]:
    """Yield a folder for PATH with a `loop` that is served by a process which ends with this context."""
    address = folder / "warm"
    script = folder / "bin" / "loop"
    script.parent.mkdir(parents=True)
    script.write_text(_CALLER.format(python=sys.executable, address=str(address), length=_LENGTH))
    script.chmod(0o755)
    with subprocess.Popen([sys.executable, "-m", "tests.docs.warm", str(address)], stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + STARTED_WITHIN_S
        while not address.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield script.parent
        process.terminate()


def _serve(address: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the one that waits for a command's end is its own parent below
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address + ".new")
        listening.listen()
        Path(address + ".new").rename(address)
        while True:
            connection, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _run(connection)
            connection.close()


def _run(connection: socket.socket) -> None:
    """Fork the command, tell its caller who it is and how it ended; never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, files, _, _ = socket.recv_fds(connection, _LENGTH, 3)
    told = b""
    while len(told) < min(int.from_bytes(length, "big"), MAX_REQUEST_BYTES):
        told += connection.recv(MAX_REQUEST_BYTES)
    arguments, folder, environment = json.loads(told)
    child = os.fork()
    if child == 0:
        connection.close()
        os._exit(_command(arguments, folder, files=files, environment=environment))
    for each in files:
        os.close(each)
    connection.sendall(child.to_bytes(_LENGTH, "big"))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.sendall((code if code >= 0 else 128 - code).to_bytes(_LENGTH, "big"))
    os._exit(0)


def _command(arguments: list[str], folder: str, *, files: list[int], environment: Mapping[str, str]) -> int:
    for number, each in enumerate(files):
        os.dup2(each, number)
        os.close(each)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115 - held to the end
    sys.argv = ["loop", *arguments]
    code: object = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    except BaseException as error:  # noqa: BLE001 - as the interpreter would, at the end of a process
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


if __name__ == "__main__":
    _serve(sys.argv[1])
