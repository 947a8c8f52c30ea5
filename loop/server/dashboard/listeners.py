"""Listeners: pages that are open in browsers and hear of changes, found by one look at the database for all of them."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final
from weakref import WeakKeyDictionary

from loop.domain.errors import ErrorKind, LoopError
from loop.domain.ids import PREFIX_EVENT, first_id
from loop.storage import changes
from loop.storage.changes import Change
from loop.storage.database import Database
from loop.telemetry import get_logger
from loop.workflows.context import Context

log = get_logger(__name__)

LOOK_EVERY_S: Final = 1.0
OVERLAP: Final = timedelta(seconds=10)
"""How far each look reaches back: what is committed late, or by a clock that is behind, is found as well."""

MAX_LISTENERS: Final = 500
MAX_OF_MERCHANT: Final = 30
MAX_ORDERS_TOLD: Final = 50
"""Of more orders that change at once a page hears as of one that it may be about."""

RETRY_AFTER_S: Final = 60


class Listener:
    """One open page: the orders of its merchant and mode that have changed since it was told last."""

    def __init__(self, merchant_id: str, *, is_test: bool) -> None:
        self.merchant_id = merchant_id
        self.is_over = False
        self._is_test = is_test
        self._orders: set[str] = set()
        self._has_news = asyncio.Event()

    def hear(self, change: Change) -> None:
        """Take note of a change, unless it is of the other mode."""
        if change.is_test is None or change.is_test is self._is_test:
            self._orders.add(change.order_id or "")
            self._has_news.set()

    def end(self) -> None:
        """Wake it for good: there is nothing more to hear."""
        self.is_over = True
        self._has_news.set()

    async def news(self) -> list[str]:
        """Wait for changes and return the ids of their orders; nothing for so many that it may be any."""
        await self._has_news.wait()
        self._has_news.clear()
        found, self._orders = sorted(self._orders), set()
        return found if len(found) <= MAX_ORDERS_TOLD else []


class Listeners:
    """All listeners of one process. While there is one, a task looks for changes."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()
        self._looking: asyncio.Task[None] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no page is open."""
        return not self._listeners

    @contextmanager
    def listening(self, context: Context, merchant_id: str, *, is_test: bool) -> Iterator[Listener]:
        """Listen to a merchant's changes for as long as the block runs."""
        listener = Listener(merchant_id, is_test=is_test)
        self._listeners.add(listener)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(context), name="changes")
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    def require_room(self, merchant_id: str) -> None:
        """Raise `too_many_listeners` when the process, or a merchant, has as many pages open as it may."""
        own = sum(each.merchant_id == merchant_id for each in self._listeners)
        if len(self._listeners) >= MAX_LISTENERS or own >= MAX_OF_MERCHANT:
            raise LoopError(
                ErrorKind.RATE_LIMITED,
                "too_many_listeners",
                "Too many pages are open and wait for changes; this one does not, and has to be loaded again.",
                retry_after_s=RETRY_AFTER_S,
            )

    def close(self) -> None:
        """End every listener, since the process ends."""
        for each in list(self._listeners):
            each.end()
        if self._looking is not None:
            self._looking.cancel()

    async def _look(self, context: Context) -> None:
        seen: set[str] | None = None
        while self._listeners:
            try:
                seen = await self._tell(context, seen)
            except LoopError as error:  # the database is away
                log.warning("changes.not_read", code=error.code)
            except Exception:  # pages wait for the next look, and hear nothing for good if there is none
                log.exception("changes.not_read")
            await asyncio.sleep(LOOK_EVERY_S)

    async def _tell(self, context: Context, seen: set[str] | None) -> set[str]:
        """Tell of what was not seen before, which before the first look is everything; return what is seen now."""
        start = context.now() - OVERLAP
        async with context.database.reading() as reader:
            found = await changes.since(reader, start, from_event=first_id(PREFIX_EVENT, start))
        for change in found if seen is not None else ():
            if seen is not None and change.key not in seen:
                for each in self._listeners:
                    if each.merchant_id == change.merchant_id:
                        each.hear(change)
        return {change.key for change in found}


_of_database: WeakKeyDictionary[Database, Listeners] = WeakKeyDictionary()


def listeners_of(context: Context) -> Listeners:
    """Return the listeners of a context's database in this process."""
    found = _of_database.get(context.database)
    if found is None:
        found = _of_database[context.database] = Listeners()
    return found
