"""Razorpay's settlement report: its days and pages, and which of its rows are charges and refunds."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Final

from loop.domain.money import Money
from loop.domain.movements import Movement, MovementKind
from loop.processors.base import Account, MovementPage, MovementQuery
from loop.processors.razorpay_answers import items_of, notes_of, text_of
from loop.processors.razorpay_session import JsonObject, RazorpayCalls

PAGE_SIZE: Final = 100

LISTED_WITHIN: Final = timedelta(days=14)
"""The report has what was settled: at home within two working days, from abroad seven, and later over holidays."""

ZONE_AHEAD: Final = timedelta(days=1)
"""The report's days are India's: where a day of UTC has not ended, they may have a later date."""

KINDS: Mapping[str, MovementKind] = {"payment": MovementKind.CHARGE, "refund": MovementKind.REFUND}
"""Types of rows that are movements; the others are transfers and adjustments, disputes among them."""

_TEST_KEY_PREFIX = "rzp_test_"


def listed_within(account: Account) -> timedelta | None:
    """Return how late a settlement may be; None for a test key, whose payments are never settled."""
    is_test = account.credentials.get("keyId", "").startswith(_TEST_KEY_PREFIX)
    return None if is_test else LISTED_WITHIN


async def movement_page(calls: RazorpayCalls, account: Account, *, query: MovementQuery) -> MovementPage:
    """Return a page of one day of settlements, as far as its rows are of the time that is asked for.

    The report is by the day of settlement, so the days asked for go on until nothing of that time can be settled any
    more, or to the present one. Raises `RazorpayError`, and ValueError for a report that makes no sense.
    """
    day, skip = _place(query)
    wanted = {"year": day.year, "month": day.month, "day": day.day, "count": PAGE_SIZE, "skip": skip}
    rows = items_of(await calls.run(account, lambda client: client.settlement.report(wanted)))
    kinds = [(row, KINDS.get(text_of(row, "type"))) for row in rows]
    movements = tuple(_movement(row, kind) for row, kind in kinds if kind is not None)
    asked_for = tuple(each for each in movements if query.since <= each.occurred_at < query.until)
    return MovementPage(asked_for, _next_cursor(query, day, skip, is_full=len(rows) == PAGE_SIZE))


def _place(query: MovementQuery) -> tuple[date, int]:
    if query.cursor is None:
        return query.since.astimezone(UTC).date(), 0
    day, _, skip = query.cursor.partition(":")
    return date.fromisoformat(day), int(skip)


def _next_cursor(query: MovementQuery, day: date, skip: int, *, is_full: bool) -> str | None:
    if is_full:
        return f"{day}:{skip + PAGE_SIZE}"
    last = min(query.until + LISTED_WITHIN, query.now).astimezone(UTC) + ZONE_AHEAD
    return None if day >= last.date() else f"{day + timedelta(days=1)}:0"


def _movement(row: JsonObject, kind: MovementKind) -> Movement:
    order_id, payment_id = row.get("order_id"), row.get("payment_id")
    known_by = order_id or payment_id
    notes = notes_of(row)
    currency = text_of(row, "currency")
    return Movement(
        kind,
        text_of(row, "entity_id"),
        Money(_number(row, "amount"), currency),
        datetime.fromtimestamp(_number(row, "created_at"), UTC),
        payment_reference=known_by if isinstance(known_by, str) else None,
        attempt_id=_note(notes, "loop_attempt_id"),
        refund_id=_note(notes, "loop_refund_id"),
        fee=Money(_number(row, "fee"), currency),
        is_as_settled=True,
    )


def _number(row: JsonObject, name: str) -> int:
    value = row.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"Razorpay's row has no {name}")
    return value


def _note(notes: Mapping[str, object], name: str) -> str | None:
    value = notes.get(name)
    return value if isinstance(value, str) and value else None
