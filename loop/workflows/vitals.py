"""Vitals: the figures that are not counted as things happen but read now and then, most of them from the database."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from math import nan
from typing import TYPE_CHECKING, Final

from loop import metrics
from loop.domain.errors import LoopError
from loop.metrics import of
from loop.storage import backlogs, processor_configs
from loop.storage.database import Reader
from loop.telemetry import get_logger

if TYPE_CHECKING:
    from loop.workflows.context import Context

log = get_logger(__name__)

KEPT_S: Final = 5.0
"""How long figures count as fresh: however many ask, the database is asked no more often."""

READ_WITHIN_S: Final = 3.0
"""How long the database may take; without an answer its figures are left out."""

ACCOUNTS_NAMED_MAX: Final = 200
"""How many accounts with an open circuit are looked up by name."""

_READ: Final = (metrics.JOBS_DUE, metrics.JOBS_LAG_S, metrics.JOBS_DEAD, metrics.CIRCUITS)
"""What has a series for each kind or processor that there is one of, and none for the others."""


class Vitals:
    """Reads the figures of one process, at most once within `KEPT_S`."""

    def __init__(self) -> None:
        self._read_at: float | None = None
        self._turn = asyncio.Lock()
        self._looks: list[Callable[[], Awaitable[object]]] = []

    @contextmanager
    def looking_also(self, look: Callable[[], Awaitable[object]]) -> Iterator[None]:
        """Have something look as well until the block ends; it sets its own figures, and neither raises nor lasts."""
        self._looks.append(look)
        try:
            yield
        finally:
            self._looks.remove(look)

    async def refresh(self, context: "Context") -> None:
        """Bring the figures up to date unless they are; never raises for a database that is away."""
        clock = asyncio.get_running_loop().time
        async with self._turn:
            if self._read_at is None or clock() - self._read_at >= KEPT_S:
                await _read(context)
                for look in tuple(self._looks):
                    await look()
                self._read_at = clock()


async def _read(context: "Context") -> None:
    database = "sqlite" if context.settings.is_sqlite else "postgres"
    of(metrics.BUILD, version("loop"), database).set(1)
    use = context.database.pool_use()
    for state, count in () if use is None else (("in_use", use.in_use), ("free", use.free), ("waiting", use.waiting)):
        of(metrics.CONNECTIONS, state).set(count)
    for each in _READ:
        each.clear()
    try:
        async with asyncio.timeout(READ_WITHIN_S), context.database.reading() as reader:
            await _read_backlogs(context, reader)
            await _read_circuits(context, reader)
    except (LoopError, TimeoutError) as error:
        metrics.DATABASE_UP.set(0)
        for unknown in (metrics.DELIVERIES_WAITING, metrics.IN_REVIEW):
            unknown.set(nan)
        log.warning("metrics.database_not_read", error=type(error).__name__)
    else:
        metrics.DATABASE_UP.set(1)


async def _read_backlogs(context: "Context", reader: Reader) -> None:
    now = context.now()
    for due in await backlogs.due_jobs(reader, now):
        metrics.JOBS_DUE.labels(due.kind).set(due.count)
        metrics.JOBS_LAG_S.labels(due.kind).set((now - due.oldest_at).total_seconds())
    for kind, count in (await backlogs.dead_jobs(reader)).items():
        metrics.JOBS_DEAD.labels(kind).set(count)
    metrics.DELIVERIES_WAITING.set(await backlogs.waiting_deliveries(reader))
    metrics.IN_REVIEW.set(await backlogs.orders_in_review(reader))


async def _read_circuits(context: "Context", reader: Reader) -> None:
    open_at: Counter[str] = Counter()
    for config_id in context.breakers.not_closed()[:ACCOUNTS_NAMED_MAX]:
        config = await processor_configs.get(reader, config_id)
        if config is not None:
            open_at[config.processor] += 1
    for processor, count in open_at.items():
        metrics.CIRCUITS.labels(processor).set(count)
