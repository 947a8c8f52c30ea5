"""Statistics of a merchant's orders: summed by the database in one pass, and the sums of days that are over, kept."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import String, and_, bindparam, case, cast, func, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

from loop.domain.ids import PREFIX_ORDER, first_id
from loop.domain.orders import EXPIRED, OrderStatus
from loop.storage.columns import UtcTime
from loop.storage.database import Reader
from loop.storage.statements import Parameters, Statement, Write
from loop.storage.stats_tables import OrderDays
from loop.storage.tables import Orders, table

MAX_ROWS = 100_000
"""More groups than a year of days times every status, processor, currency and decline in use."""

MAX_DAYS = 2 * 366
"""More days than anybody asks for at once."""

ID_SLACK = timedelta(minutes=1)
"""How far an order's id may be from its time; the ids lead to the rows, and the times decide."""

UNNAMED_DECLINE = "declined"

_orders = table(Orders)
_days = table(OrderDays)


class utc_day(GenericFunction[str]):  # noqa: N801 - SQLAlchemy names functions by their class
    """The UTC date of a time, as the database compares it fastest."""

    type = String()
    inherit_cache = True


@compiles(utc_day, "sqlite")
def _utc_day_sqlite(element: utc_day, compiler: SQLCompiler, **kw: Any) -> str:  # noqa: ANN401 - SQLAlchemy's signature
    return f"substr({compiler.process(element.clauses, **kw)}, 1, 10)"


@compiles(utc_day, "postgresql")
def _utc_day_postgres(element: utc_day, compiler: SQLCompiler, **kw: Any) -> str:  # noqa: ANN401 - as above
    return f"({compiler.process(element.clauses, **kw)} AT TIME ZONE 'UTC')::date"


@dataclass(frozen=True, slots=True)
class OrderGroup:
    """Orders of one currency, day, status, processor and decline: how many, and what was captured in minor units.

    `error_code` is the unified decline code of orders that failed, also if they were cancelled then, and None of all
    others.
    """

    currency: str
    day: str
    status: str
    processor: str | None
    error_code: str | None
    count: int
    captured_minor: int


_DAY = utc_day(_orders.c.created_at)
_HAD_FAILED = and_(_orders.c.status == OrderStatus.CANCELLED, _orders.c.last_error_code != EXPIRED)
_ERROR = case(
    (_orders.c.status == OrderStatus.FAILED, func.coalesce(_orders.c.last_error_code, UNNAMED_DECLINE)),
    (_HAD_FAILED, _orders.c.last_error_code),
    else_=None,
)
_GROUPS = Statement(
    select(
        _orders.c.currency,
        cast(_DAY, String),
        cast(_orders.c.status, String),
        _orders.c.processor,
        _ERROR,
        func.count(),
        cast(func.coalesce(func.sum(_orders.c.amount_captured_minor), 0), _orders.c.amount_minor.type),
    )
    .where(
        _orders.c.merchant_id == bindparam("merchant_id"),
        _orders.c.is_test == bindparam("is_test"),
        _orders.c.id >= bindparam("first_id"),  # ids are in the order of time, and there is an index of them
        _orders.c.id < bindparam("end_id"),
        _orders.c.created_at >= bindparam("created_from", type_=UtcTime),
        _orders.c.created_at < bindparam("created_to", type_=UtcTime),
    )
    .group_by(_orders.c.currency, _DAY, _orders.c.status, _orders.c.processor, _ERROR)
    .limit(MAX_ROWS),
    OrderGroup,
)


async def groups(
    reader: Reader, merchant_id: str, *, is_test: bool, created_from: datetime, created_to: datetime
) -> list[OrderGroup]:
    """Return the sums of a merchant's orders of one mode created in the half-open range."""
    span = {
        "first_id": first_id(PREFIX_ORDER, created_from - ID_SLACK),
        "end_id": first_id(PREFIX_ORDER, created_to + ID_SLACK),
        "created_from": created_from,
        "created_to": created_to,
    }
    return await reader.all(_GROUPS, {"merchant_id": merchant_id, "is_test": is_test, **span})


@dataclass(frozen=True, slots=True)
class KeptDay:
    """A day's revision, and its sums unless an order of it has changed since they were made."""

    day: str
    revision: int
    groups: list[OrderGroup] | None


def _kept_day(day: str, revision: int, figures: list[Any] | None, figures_revision: int | None) -> KeptDay:
    is_true = figures is not None and figures_revision == revision
    return KeptDay(day, revision, [OrderGroup(*each) for each in figures or ()] if is_true else None)


_KEPT = Statement(
    select(_days.c.day, _days.c.revision, _days.c.figures, _days.c.figures_revision)
    .where(
        _days.c.merchant_id == bindparam("merchant_id"),
        _days.c.is_test == bindparam("is_test"),
        _days.c.day >= bindparam("first_day"),
        _days.c.day <= bindparam("last_day"),
    )
    .limit(MAX_DAYS),
    _kept_day,
)
_new = postgresql.insert(_days).values(
    merchant_id=bindparam("merchant_id"),
    is_test=bindparam("is_test"),
    day=bindparam("day"),
    revision=bindparam("revision", type_=_days.c.revision.type),
    figures=bindparam("figures", type_=_days.c.figures.type),
    figures_revision=bindparam("revision", type_=_days.c.revision.type),
)
_KEEP = Write(
    _new.on_conflict_do_update(
        index_elements=["merchant_id", "is_test", "day"],
        set_={"figures": _new.excluded.figures, "figures_revision": _new.excluded.figures_revision},
        where=_days.c.revision == _new.excluded.figures_revision,
    )
)


async def kept_days(reader: Reader, merchant_id: str, *, is_test: bool, first_day: str, last_day: str) -> list[KeptDay]:
    """Return what is known of the days between two, both included; of most days nothing is."""
    span = {"first_day": first_day, "last_day": last_day}
    return await reader.all(_KEPT, {"merchant_id": merchant_id, "is_test": is_test, **span})


def keeping(merchant_id: str, day: KeptDay, *, is_test: bool) -> tuple[Write, Parameters]:
    """Return the write that keeps a day's sums; it does nothing when an order of it has changed since its revision."""
    figures = [
        [each.currency, each.day, each.status, each.processor, each.error_code, each.count, each.captured_minor]
        for each in day.groups or ()
    ]
    return _KEEP, {
        "merchant_id": merchant_id,
        "is_test": is_test,
        "day": day.day,
        "revision": day.revision,
        "figures": figures,
    }
