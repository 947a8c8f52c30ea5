"""The database's own clock, which a command compares with this machine's."""

from datetime import datetime

from sqlalchemy import func, select

from loop.storage.database import Reader
from loop.storage.statements import Statement

_CLOCK = Statement(select(func.clock_timestamp()), lambda at: at)


async def read_clock(reader: Reader) -> datetime | None:
    """Return what time it is at a Postgres server; a SQLite file's clock is this machine's."""
    return await reader.first(_CLOCK, {})
