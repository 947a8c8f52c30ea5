"""Serves Loop in processes that kill themselves at a named point; forked off one that has imported everything."""

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib.metadata import entry_points
from pathlib import Path

from loop import config, telemetry
from loop.processors.registry import GROUP
from loop.processors.sandbox import SandboxProcessor
from loop.runtime import Chance, running, system_now
from loop.workers.schedule import SCHEDULE
from loop.workflows.context import Context
from tests.e2e.clocks import SharedClock

ANY_POINT = "*"
SANDBOX_LEDGER = "sandbox-ledger"
"""The file in the data directory that tells what the sandbox's make-believe money did."""


@dataclass(frozen=True)
class Life:
    """How one process of Loop shall live: the settings, and the n-th time of which point is its end."""

    flags: dict[str, object]
    point: str | None = None
    nth: int = 1
    clock: str | None = None
    log_level: str = "info"


@dataclass
class SandboxBooks:
    """Writes the sandbox's ledger down before anything is committed of it: its own memory dies with the process."""

    path: Path
    contexts: list[Context] = field(default_factory=list)
    written: int = 0

    def write_down(self) -> None:
        for context in self.contexts:
            sandbox = context.processors.get("sandbox")
            assert isinstance(sandbox, SandboxProcessor)
            count = sum(len(books.entries) for books in sandbox._books.values())  # asked at every look at the clock
            if count > self.written:
                lines = (json.dumps(asdict(entry)) + "\n" for entry in sandbox.ledger()[self.written :])
                with self.path.open("a", encoding="utf-8") as file:
                    file.write("".join(lines))
                self.written = count


def killing_at(life: Life, books: SandboxBooks) -> Callable[[str], None]:
    """Return what a context tells its points to: at the n-th time that one is reached the process is gone."""
    reached_so_far: Counter[str] = Counter()

    def reached(name: str) -> None:
        books.write_down()
        for known_as in (name, ANY_POINT):
            reached_so_far[known_as] += 1
            if known_as == life.point and reached_so_far[known_as] == life.nth:
                os.kill(os.getpid(), signal.SIGKILL)

    return reached


def telling(life: Life, books: SandboxBooks) -> Callable[[], datetime]:
    """Return the clock of a life."""
    now = system_now if life.clock is None else SharedClock(life.clock).now

    def look() -> datetime:
        books.write_down()
        return now()

    return look


async def catch_up(context: Context) -> None:
    """Do at once what the clock, which has just been set forward, has made due."""
    for _, _, run in SCHEDULE:
        await run(context)
    context.runner.wake()


async def serve(life: Life) -> None:
    """Serve until SIGTERM, or until the point is reached; SIGUSR1 says that the clock was set forward."""
    settings = config.load(life.flags, environ={})
    data_dir = Path(str(life.flags["data_dir"]))
    telemetry.configure(level=life.log_level, log_format="json", log_file=data_dir / "loop.log")
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()
    books = SandboxBooks(data_dir / SANDBOX_LEDGER)
    catching_up: set[asyncio.Task[None]] = set()

    def hurry() -> None:
        for context in books.contexts:
            catching_up.add(task := asyncio.create_task(catch_up(context)))
            task.add_done_callback(catching_up.discard)

    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    loop.add_signal_handler(signal.SIGUSR1, hurry)
    chance = Chance(now=telling(life, books), reached=killing_at(life, books))
    async with running(settings, chance) as started:
        books.contexts.append(started.context)
        await stopping.wait()


def main() -> None:
    """Read a life as JSON from each line; write the pid of its process, and its exit code when it has ended."""
    for found in entry_points(group=GROUP):  # so that no life of Loop spends its time on it
        found.load()
    for line in sys.stdin:
        life = Life(**json.loads(line))
        pid = os.fork()
        if pid == 0:
            os.close(sys.stdin.fileno())
            asyncio.run(serve(life))
            os._exit(0)
        tell(pid)
        _, status = os.waitpid(pid, 0)
        tell(os.waitstatus_to_exitcode(status))


def tell(number: int) -> None:
    """Write a line for the test to read."""
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
