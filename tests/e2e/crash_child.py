"""Serves Loop in processes that kill themselves at a named point; forked off one that has imported everything."""

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

from loop import config, telemetry
from loop.processors.registry import GROUP
from loop.runtime import Chance, running


def killing_at(point: str | None, nth: int) -> Callable[[str], None]:
    """Return what a context tells its points to: at the n-th time that one is reached the process is gone."""
    reached_so_far: Counter[str] = Counter()

    def reached(name: str) -> None:
        reached_so_far[name] += 1
        if name == point and reached_so_far[name] == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    return reached


async def serve(flags: dict[str, object], point: str | None, nth: int) -> None:
    """Serve until SIGTERM, or until the point is reached."""
    settings = config.load(flags, environ={})
    telemetry.configure(log_format="json", log_file=Path(str(flags["data_dir"])) / "loop.log")
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with running(settings, Chance(reached=killing_at(point, nth))):
        await stopping.wait()


def main() -> None:
    """Read lines of JSON `[flags, point, nth]`; for each write the pid of a Loop, and its exit code when it ended."""
    for found in entry_points(group=GROUP):  # so that no life of Loop spends its time on it
        found.load()
    for line in sys.stdin:
        flags, point, nth = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.close(sys.stdin.fileno())
            asyncio.run(serve(flags, point, nth))
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
