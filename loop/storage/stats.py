"""Statistics of a merchant's orders, summed by the database in one pass."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, cast, func, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import String

from loop.domain.ids import PREFIX_ORDER, first_id
from loop.domain.orders import OrderStatus
from loop.storage.columns import UtcTime
from loop.storage.database import Reader
from loop.storage.statements import Statement
from loop.storage.tables import Orders, table

MAX_ROWS = 100_000
"""More groups than a year of days times every status, processor and currency in use."""

_orders = table(Orders)


class utc_day(GenericFunction[str]):  # noqa: N801 - SQLAlchemy names functions by their class
    """The UTC date of a time, as `YYYY-MM-DD`."""

    type = String()
    inherit_cache = True


@compiles(utc_day, "sqlite")
def _utc_day_sqlite(element: utc_day, compiler: SQLCompiler, **kw: Any) -> str:  # noqa: ANN401 - SQLAlchemy's signature
    return f"substr({compiler.process(element.clauses, **kw)}, 1, 10)"


@compiles(utc_day, "postgresql")
def _utc_day_postgres(element: utc_day, compiler: SQLCompiler, **kw: Any) -> str:  # noqa: ANN401 - as above
    return f"to_char({compiler.process(element.clauses, **kw)} AT TIME ZONE 'UTC', 'YYYY-MM-DD')"


@dataclass(frozen=True, slots=True)
class OrderGroup:
    """Orders of one currency, day, status and processor: how many, and what was captured in minor units."""

    currency: str
    day: str
    status: str
    processor: str | None
    count: int
    captured_minor: int


_DAY = utc_day(_orders.c.created_at)
_GROUPS = Statement(
    select(
        _orders.c.currency,
        _DAY,
        cast(_orders.c.status, String),
        _orders.c.processor,
        func.count(),
        cast(func.coalesce(func.sum(_orders.c.amount_captured_minor), 0), _orders.c.amount_minor.type),
    )
    .where(
        _orders.c.merchant_id == bindparam("merchant_id"),
        _orders.c.is_test == bindparam("is_test"),
        _orders.c.created_at >= bindparam("created_from", type_=UtcTime),
        _orders.c.created_at < bindparam("created_to", type_=UtcTime),
    )
    .group_by(_orders.c.currency, _DAY, _orders.c.status, _orders.c.processor)
    .limit(MAX_ROWS),
    OrderGroup,
)


@dataclass(frozen=True, slots=True)
class DeclineGroup:
    """Failed orders of one currency and unified decline code: how many."""

    currency: str
    code: str
    count: int


_DECLINES = Statement(
    select(_orders.c.currency, func.coalesce(_orders.c.last_error_code, "declined"), func.count())
    .where(
        _orders.c.merchant_id == bindparam("merchant_id"),
        _orders.c.is_test == bindparam("is_test"),
        _orders.c.status == OrderStatus.FAILED,
        _orders.c.id >= bindparam("first_id"),  # ids are in the order of time, which an index has for each status
        _orders.c.created_at >= bindparam("created_from", type_=UtcTime),
        _orders.c.created_at < bindparam("created_to", type_=UtcTime),
    )
    .group_by(_orders.c.currency, _orders.c.last_error_code)
    .limit(MAX_ROWS),
    DeclineGroup,
)


async def groups(
    reader: Reader, merchant_id: str, *, is_test: bool, created_from: datetime, created_to: datetime
) -> list[OrderGroup]:
    """Return the sums of a merchant's orders of one mode created in the half-open range."""
    span = {"is_test": is_test, "created_from": created_from, "created_to": created_to}
    return await reader.all(_GROUPS, {"merchant_id": merchant_id, **span})


async def declines(
    reader: Reader, merchant_id: str, *, is_test: bool, created_from: datetime, created_to: datetime
) -> list[DeclineGroup]:
    """Return why a merchant's orders of one mode and the half-open range have failed, as they stand."""
    first = first_id(PREFIX_ORDER, created_from)
    span = {"first_id": first, "is_test": is_test, "created_from": created_from, "created_to": created_to}
    return await reader.all(_DECLINES, {"merchant_id": merchant_id, **span})
