"""The demo's Loop in processes: one `loop serve` for each role, begun together, waited for, and ended in order."""

import asyncio
import os
import secrets
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp

from loop.config import SETTINGS
from loop.domain.roles import Role
from loop.testing.demo_shop import HOST, DemoError

READY_WITHIN_S: Final = 60.0
"""How long the processes may take to serve; on an idle machine it is three seconds."""

ASK_EVERY_S: Final = 0.1
ANSWER_WITHIN_S: Final = 5.0

ENDED_WITHIN_S: Final = 60.0
"""How long a process may take to end before it is killed: requests have 20 seconds of it, and then jobs 20."""

ENDING: Final = (Role.API, Role.DASHBOARD, Role.WORKER)
"""In this order, so that the worker still does what the others have left to it."""

PORT_TRIES: Final = 100
PORTS: Final = range(20_000, 30_000)
"""Systems give outgoing connections ports above these, so nobody takes one before the process that it is for."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One process of `loop serve`, and where all that it writes goes."""

    role: Role
    process: Process
    url: str
    log: Path

    def last_words(self) -> str:
        """Return the last line that it wrote."""
        lines = self.log.read_text("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing."


def free_port() -> int:
    """Return a port of this machine's on which nobody listens; raises DemoError without one."""
    for _ in range(PORT_TRIES):
        port = PORTS.start + secrets.randbelow(len(PORTS))
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise DemoError(f"No port from {PORTS.start} to {PORTS.stop - 1} is free.")


@asynccontextmanager
async def in_processes(directory: Path, settings: Mapping[str, object]) -> AsyncIterator[Mapping[Role, str]]:
    """Serve each role in a process of its own, with logs in `directory`; yield where each of them listens.

    `settings` are all that is set, by name; `port` among them is the API's. The processes get them by their
    environment, which nobody else sees, and none of the caller's own settings. Raises DemoError when a process does not
    begin, or has not ended well.
    """
    ports = {role: settings["port"] if role is Role.API else free_port() for role in Role}
    shared = {**settings, "host": HOST, "checkout_base_url": f"http://{HOST}:{ports[Role.API]}", "log_format": "json"}
    parts: list[_Part] = []
    try:
        for role in Role:
            part = await _begin(directory, role, {**shared, "port": ports[role]})
            parts.append(part)
        await _all_ready(parts)
        yield {part.role: part.url for part in parts}
    except BaseException:
        await _end_all(parts)  # whatever they end with, what was raised is what went wrong
        raise
    if problems := await _end_all(parts):
        raise DemoError(" ".join(problems))


async def _begin(directory: Path, role: Role, settings: Mapping[str, object]) -> _Part:
    log = directory / f"{role}.log"
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *(*this_program(), "serve", "--only", role),
            env={
                **_environment(),
                **{SETTINGS[name].variables(name)[0]: str(value) for name, value in settings.items()},
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    return _Part(role, process, f"http://{HOST}:{settings['port']}", log)


def this_program() -> Sequence[str]:
    """Return the words that this program was begun with before its own arguments: a script, an archive or a module."""
    given = len(sys.argv) - 1
    before = sys.orig_argv[1 : len(sys.orig_argv) - given]
    is_whole = sys.orig_argv[len(sys.orig_argv) - given :] == sys.argv[1:]
    return (sys.executable, *before) if is_whole and before else (sys.executable, "-m", "loop")


def _environment() -> Mapping[str, str]:
    """Return the caller's environment without settings of Loop's, which are for a Loop of the caller's own."""
    names = {variable for name, setting in SETTINGS.items() for variable in setting.variables(name)}
    return {name: value for name, value in os.environ.items() if name not in names}


async def _all_ready(parts: Sequence[_Part]) -> None:
    """Wait until every process says that it can serve; DemoError when one ends instead, or none of it comes in time."""
    timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN_S)
    waiting = list(parts)
    try:
        async with asyncio.timeout(READY_WITHIN_S), aiohttp.ClientSession(timeout=timeout) as session:
            while waiting:
                for part in waiting:
                    if part.process.returncode is not None:
                        raise DemoError(f"{_of(part)} ended with {part.process.returncode}: {part.last_words()}")
                waiting = [part for part in waiting if not await _is_ready(session, part)]
                await asyncio.sleep(ASK_EVERY_S if waiting else 0)
    except TimeoutError as error:
        raise DemoError(f"{_of(waiting[0])} was not ready within {READY_WITHIN_S:g} s.") from error


async def _is_ready(session: aiohttp.ClientSession, part: _Part) -> bool:
    try:
        async with session.get(f"{part.url}/health/ready") as answer:
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


async def _end_all(parts: Sequence[_Part]) -> list[str]:
    """End the processes in their order, and kill one that takes too long; return what was not as it should be."""
    problems = []
    try:
        for part in sorted(parts, key=lambda each: ENDING.index(each.role)):
            problem = await _end(part)
            if problem is not None:
                problems.append(problem)
    finally:
        for part in parts:  # those left by a caller who is told once more to stop, and waits no longer
            if part.process.returncode is None:
                part.process.kill()
    return problems


async def _end(part: _Part) -> str | None:
    if part.process.returncode is None:
        part.process.terminate()
    try:
        async with asyncio.timeout(ENDED_WITHIN_S):
            code = await part.process.wait()
    except TimeoutError:
        part.process.kill()
        await part.process.wait()
        return f"{_of(part)} did not end within {ENDED_WITHIN_S:g} s and was killed."
    return f"{_of(part)} ended with {code}: {part.last_words()}" if code else None


def _of(part: _Part) -> str:
    return f"The process of the {part.role}"
