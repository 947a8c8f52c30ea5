"""Listing: a list's page by cursor, filtered by status: what its address asks for, and where the next page is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Generic, Protocol, TypeVar
from urllib.parse import urlencode

from starlette.requests import Request

from loop.server.request import cursor_of, query_of, validation_failed

PAGE_ROWS: Final = 25

S = TypeVar("S", bound=StrEnum)


class Row(Protocol):
    """What can be listed: its id is the cursor."""

    @property
    def id(self) -> str:
        """The id, which sorts by time."""
        ...


R = TypeVar("R", bound=Row)


@dataclass(frozen=True, slots=True)
class ListPage(Generic[R]):
    """A page of rows; `given` is its filter, `next` the query of the page after it."""

    rows: Sequence[R]
    given: Mapping[str, str]
    is_first: bool
    has_more: bool

    @property
    def next(self) -> str | None:
        """The query of the next page; None on the last one."""
        return urlencode({**self.given, "cursor": self.rows[-1].id}) if self.has_more else None

    @property
    def first(self) -> str:
        """The query of the first page."""
        return urlencode(self.given)

    def json(self, told: Callable[[R], object]) -> dict[str, object]:
        """Return the page as the API's lists are."""
        return {
            "data": [told(row) for row in self.rows],
            "hasMore": self.has_more,
            "nextCursor": self.rows[-1].id if self.has_more else None,
        }


def page_after(found: Sequence[R], given: Mapping[str, str], *, before_id: str | None) -> ListPage[R]:
    """Return the page of what was read, of which one row more than it shows says that there are others."""
    return ListPage(found[:PAGE_ROWS], given, before_id is None, len(found) > PAGE_ROWS)


@dataclass(frozen=True, slots=True)
class Asked(Generic[S]):
    """What an address asks of a list."""

    status: S | None
    before_id: str | None
    rows_to_read: int = PAGE_ROWS + 1

    def page(self, found: Sequence[R]) -> ListPage[R]:
        """Return the page of what was read."""
        return page_after(found, {} if self.status is None else {"status": self.status}, before_id=self.before_id)


def listed(request: Request, statuses: type[S]) -> Asked[S]:
    """Return what a list's address asks for; raises `validation_failed`."""
    status = query_of(request).get("status")
    if status is not None and status not in list(statuses):
        raise validation_failed(("status", f"must be one of {', '.join(statuses)}"))
    return Asked(None if status is None else statuses(status), cursor_of(request).before_id)
