"""Runs Loop as on a machine without a network: no name is found, and no other machine is reached."""

import asyncio
import os
import signal
import sys

from loop.config import load
from loop.runtime import running
from loop.telemetry import configure
from tests.network import outside_host


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    if host := outside_host(event, arguments):
        raise OSError(f"there is no way to {host!r}")


async def serve() -> None:
    """Serve, configured by the environment, until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    settings = load({}, environ=os.environ)
    configure(level=settings.log_level, log_format=settings.log_format, log_file=settings.log_file)
    async with running(settings):
        await stop.wait()


if __name__ == "__main__":
    sys.addaudithook(_refuse)
    asyncio.run(serve())  # not uvloop, which reaches out without telling the hook
