"""Tried orders: a merchant's latest orders that were paid or tried, each with its first attempt."""

from typing import Any

from sqlalchemy import and_, bindparam, select

from loop.domain.attempts import Attempt
from loop.domain.orders import Order
from loop.storage.database import Reader
from loop.storage.statements import Statement, columns_of, field_names
from loop.storage.tables import Orders, PaymentAttempts, table

_orders = table(Orders)
_attempts = table(PaymentAttempts)
_ORDER_FIELDS = len(field_names(Order))


def _pair(*row: Any) -> tuple[Order, Attempt]:  # noqa: ANN401 - one row of two tables
    return Order(*row[:_ORDER_FIELDS]), Attempt(*row[_ORDER_FIELDS:])


_LATEST = Statement(
    select(*columns_of(_orders, Order), *columns_of(_attempts, Attempt))
    .select_from(_orders.join(_attempts, and_(_attempts.c.order_id == _orders.c.id, _attempts.c.number == 1)))
    .where(_orders.c.merchant_id == bindparam("merchant_id"), _orders.c.is_test == bindparam("is_test"))
    .order_by(_orders.c.id.desc())
    .limit(bindparam("limit")),
    _pair,
)


async def latest(reader: Reader, merchant_id: str, *, is_test: bool, limit: int) -> list[tuple[Order, Attempt]]:
    """Return a merchant's newest orders that were tried, each with its first attempt."""
    return await reader.all(_LATEST, {"merchant_id": merchant_id, "is_test": is_test, "limit": limit})
