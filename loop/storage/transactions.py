"""Transactions: insert and list money movements."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, bindparam, insert, select, tuple_

from loop.domain.transactions import Transaction
from loop.storage.columns import UtcTime
from loop.storage.database import Reader
from loop.storage.statements import Parameters, Statement, Write, columns_of, field_names, parameters_for, values_of
from loop.storage.tables import Orders, Transactions, table

_transactions = table(Transactions)
_orders = table(Orders)

_INSERT = Write(insert(_transactions).values(parameters_for(_transactions, field_names(Transaction))))
_OF_ORDER = Statement(
    select(*columns_of(_transactions, Transaction))
    .where(_transactions.c.order_id == bindparam("order_id"), _transactions.c.merchant_id == bindparam("merchant_id"))
    .order_by(_transactions.c.created_at.desc(), _transactions.c.id.desc())
    .limit(1000),
    Transaction,
)


@dataclass(frozen=True, slots=True)
class Period:
    """The transactions of one mode within a time; None leaves an end open, and `until` is exclusive."""

    is_test: bool
    since: datetime | None = None
    until: datetime | None = None


_CONDITIONS: dict[str, ColumnElement[bool]] = {
    "since": _transactions.c.created_at >= bindparam("since", type_=UtcTime),
    "until": _transactions.c.created_at < bindparam("until", type_=UtcTime),
    "before_at": tuple_(_transactions.c.created_at, _transactions.c.id)
    < tuple_(bindparam("before_at", type_=UtcTime), bindparam("before_id")),
}
_LISTS: dict[tuple[str, ...], Statement[Transaction]] = {}


def insertion(transaction: Transaction) -> tuple[Write, Parameters]:
    """Return the write that inserts a transaction, for `Session.run_together`."""
    return _INSERT, values_of(transaction)


async def of_order(reader: Reader, merchant_id: str, order_id: str) -> list[Transaction]:
    """Return an order's transactions, newest first."""
    return await reader.all(_OF_ORDER, {"merchant_id": merchant_id, "order_id": order_id})


def _listing(given: tuple[str, ...]) -> Statement[Transaction]:
    return Statement(
        select(*columns_of(_transactions, Transaction))
        .join(_orders, _orders.c.id == _transactions.c.order_id)
        .where(
            _transactions.c.merchant_id == bindparam("merchant_id"),
            _orders.c.merchant_id == bindparam("merchant_id"),
            _orders.c.is_test == bindparam("is_test"),
            *(_CONDITIONS[name] for name in given),
        )
        .order_by(_transactions.c.created_at.desc(), _transactions.c.id.desc())
        .limit(bindparam("limit")),
        Transaction,
    )


async def list_after(
    reader: Reader, merchant_id: str, period: Period, *, before: Transaction | None, limit: int
) -> list[Transaction]:
    """Return a merchant's transactions, newest first, that come after `before` in that order."""
    at, last_id = (None, None) if before is None else (before.created_at, before.id)
    bounds = {"since": period.since, "until": period.until, "before_at": at}
    given = tuple(name for name, value in bounds.items() if value is not None)
    if given not in _LISTS:
        _LISTS[given] = _listing(given)
    parameters = {"merchant_id": merchant_id, "is_test": period.is_test, "before_id": last_id, "limit": limit, **bounds}
    return await reader.all(_LISTS[given], parameters)
