"""Changes: what has happened to anybody's orders since a moment, for pages that are being looked at."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import bindparam, select

from loop.storage.columns import UtcTime
from loop.storage.database import Reader
from loop.storage.statements import Statement
from loop.storage.tables import table
from loop.storage.webhook_tables import DeliveryAttempts, WebhookEvents

CHANGES_MAX: Final = 1_000
"""How many are read at once; of more, the latest."""

_events = table(WebhookEvents)
_attempts = table(DeliveryAttempts)


@dataclass(frozen=True, slots=True)
class Change:
    """Something happened: `key` tells it from every other, `is_test` is None for what concerns both modes."""

    key: str
    merchant_id: str
    order_id: str | None
    is_test: bool | None


def _tried(event_id: str, endpoint_id: str, number: int, *rest: Any) -> Change:  # noqa: ANN401 - the event's columns
    return Change(f"{event_id} {endpoint_id} {number}", *rest)


_ABOUT = (_events.c.merchant_id, _events.c.order_id, _events.c.is_test)
_EVENTS = Statement(
    select(_events.c.id, *_ABOUT)
    .where(_events.c.id >= bindparam("from_event"))
    .order_by(_events.c.id.desc())
    .limit(CHANGES_MAX),
    Change,
)
_TRIES = Statement(
    select(_attempts.c.event_id, _attempts.c.endpoint_id, _attempts.c.number, *_ABOUT)
    .select_from(_attempts.join(_events, _events.c.id == _attempts.c.event_id))
    .where(_attempts.c.tried_at >= bindparam("since", type_=UtcTime))
    .order_by(_attempts.c.tried_at.desc())
    .limit(CHANGES_MAX),
    _tried,
)


async def since(reader: Reader, moment: datetime, *, from_event: str) -> list[Change]:
    """Return every merchant's events from an id on, and the tries to deliver some since a moment."""
    events = await reader.all(_EVENTS, {"from_event": from_event})
    return [*events, *await reader.all(_TRIES, {"since": moment})]
