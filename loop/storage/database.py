"""The database: sessions that run statements, and transactions, the same over SQLite and Postgres."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from loop.storage.statements import Parameters, Statement, Write

T = TypeVar("T")


class Reader(Protocol):
    """Runs statements that only read."""

    async def first(self, statement: Statement[T], parameters: Parameters) -> T | None:
        """Return the first row, or None."""
        ...

    async def all(self, statement: Statement[T], parameters: Parameters) -> list[T]:
        """Return every row; the statement itself carries the bound."""
        ...


class Session(Reader, Protocol):
    """Runs statements inside one transaction. Storage functions take it and never commit."""

    async def run(self, write: Write, parameters: Parameters) -> int:
        """Run one write; return how many rows it changed."""
        ...

    async def run_together(self, writes: Sequence[tuple[Write, Parameters]]) -> list[int]:
        """Run several writes that do not depend on each other, in one round trip where the database can.

        No two may touch the same row. Returns how many rows each changed.
        """
        ...


@dataclass(frozen=True, slots=True)
class PoolUse:
    """This process's connections: those in use, those that are free or may still be opened, and who waits for one."""

    in_use: int
    free: int
    waiting: int


class Database(Protocol):
    """One database. Waiting for it is bounded; when it is away, `unavailable` is raised."""

    def transaction(self) -> AbstractAsyncContextManager[Session]:
        """Open a transaction that commits durably at the end of the block, or leaves no trace if it raises."""
        ...

    def reading(self) -> AbstractAsyncContextManager[Reader]:
        """Open a session to read with; each statement sees what is committed when it starts."""
        ...

    async def write_at_once(self, writes: Sequence[tuple[Write, Parameters]]) -> list[int]:
        """Run writes as one transaction of their own, in one round trip where the database can."""
        ...

    def pool_use(self) -> PoolUse | None:
        """Return how many connections are in use; None where there is no pool."""
        ...

    async def close(self) -> None:
        """Finish what is running and let go of the database."""
        ...


class ConstraintError(Exception):
    """A constraint of the schema refused a write. `constraint` is its name where the database tells it."""

    def __init__(self, constraint: str) -> None:
        super().__init__(f"refused by {constraint}")
        self.constraint = constraint
