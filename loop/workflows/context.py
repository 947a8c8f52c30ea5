"""The context: everything that workflows reach outside themselves, handed in by the runtime."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import aiohttp

from loop.config import Settings
from loop.domain.audit import SYSTEM, Actor
from loop.domain.ids import make_id
from loop.processors.registry import Registry
from loop.storage.database import Database
from loop.storage.jobs import Job
from loop.storage.keyring import Keyring
from loop.workflows.breakers import Breakers
from loop.workflows.leases import Lease
from loop.workflows.vitals import Vitals


class JobRunner(Protocol):
    """Runs jobs; workflows use it to run one that they have just claimed, and to say that there are new ones."""

    def start(self, context: "Context", job: Job) -> asyncio.Task[object]:
        """Run a job whose lease this process holds; the task ends with the handler's result, None if it failed."""
        ...

    def wake(self) -> None:
        """Say that a job may be due."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """One running Loop: its resources, its clock and its chance."""

    settings: Settings
    database: Database
    keyring: Keyring
    processors: Registry
    webhook_sender: aiohttp.ClientSession
    runner: JobRunner
    now: Callable[[], datetime]
    """The time, aware, in UTC."""
    random_bytes: Callable[[int], bytes]
    reached: Callable[[str], None]
    """Told each named point of a foreign call; a crash test kills the process there."""
    breakers: Breakers = field(default_factory=Breakers)
    """What this process has seen of the processor accounts."""
    vitals: Vitals = field(default_factory=Vitals)
    """The figures that this process reads of itself."""
    actor: Actor = SYSTEM
    """Who acts, for the audit log; whoever knows better hands on a context that says so."""
    lease: Lease | None = None
    """The hold on the job that is being run; None for whoever runs none, such as a request."""
    is_test: bool | None = None
    """The mode whose orders there are for whoever acts: test (True), live (False), or both for Loop itself."""

    def new_id(self, prefix: str) -> str:
        """Return a new id of the kind that the prefix names."""
        return make_id(prefix, self.now(), random_bytes=self.random_bytes)

    def random_unit(self) -> float:
        """Return a uniform number from 0 up to 1."""
        return int.from_bytes(self.random_bytes(6), "big") / 2**48
