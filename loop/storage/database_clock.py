"""The database's clock: what every process on one PostgreSQL goes by, whatever its own machine's clock says."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import func, select

from loop.domain.errors import LoopError
from loop.storage.columns import UtcTime
from loop.storage.database import Database, Reader
from loop.storage.statements import Statement
from loop.telemetry import get_logger

log = get_logger(__name__)

LOOK_EVERY_S: Final = 30.0

SLOW_LOOK_S: Final = 0.5
"""A look that takes longer says too little of when it was; the one before it counts on."""

OFF_S: Final = 1.0
"""A machine's clock that is further off is told of."""

_NOW: Final[Statement[datetime]] = Statement(select(func.clock_timestamp(type_=UtcTime)), lambda at: at)


async def read_clock(reader: Reader) -> datetime:
    """Return what time it is at a PostgreSQL server, aware, in UTC."""
    seen = await reader.first(_NOW, {})
    if seen is None:
        raise RuntimeError("the database did not say what time it is")
    return seen


class DatabaseClock:
    """The database's time as it was last seen, carried on by a clock of this machine's that nobody can set."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._seen: datetime | None = None
        self._seen_at = 0.0

    def now(self) -> datetime:
        """Return the database's time, aware, in UTC; there must have been a look."""
        if self._seen is None:
            raise RuntimeError("nobody has looked at the database's clock yet")
        return self._seen + timedelta(seconds=self._monotonic() - self._seen_at)

    async def look(self, database: Database) -> None:
        """See what time it is in the database; raises `unavailable` when that is away."""
        async with database.reading() as reader:
            began = self._monotonic()
            seen = await read_clock(reader)
            took_s = self._monotonic() - began
        if self._seen is None or took_s <= SLOW_LOOK_S:
            self._seen, self._seen_at = seen, began + took_s / 2


@asynccontextmanager
async def running_clock(
    database: Database, machine_now: Callable[[], datetime]
) -> AsyncIterator[Callable[[], datetime]]:
    """Yield what tells a PostgreSQL database's time, and look at it again and again until the block ends.

    `machine_now` is only compared with it. Raises `unavailable` when the database is away.
    """
    clock = DatabaseClock()
    await clock.look(database)
    off_s = (machine_now() - clock.now()).total_seconds()
    if abs(off_s) > OFF_S:
        log.warning("clock.off", off_s=round(off_s, 1), hint="Loop goes by the database's clock; set this machine's")
    looking = asyncio.create_task(_look_again(clock, database), name="clock")
    try:
        yield clock.now
    finally:
        looking.cancel()


async def _look_again(clock: DatabaseClock, database: Database) -> None:
    while True:  # ends with the process
        await asyncio.sleep(LOOK_EVERY_S)
        try:
            await clock.look(database)
        except LoopError as error:
            log.warning("clock.not_seen", code=error.code)
        except Exception:
            log.exception("clock.not_seen")  # it goes on by the last look, and looks again
