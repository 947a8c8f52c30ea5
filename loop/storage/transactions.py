"""Transactions: insert and list money movements."""

from sqlalchemy import bindparam, insert, select

from loop.domain.transactions import Transaction
from loop.storage.database import Reader
from loop.storage.statements import Parameters, Statement, Write, columns_of, field_names, parameters_for, values_of
from loop.storage.tables import Transactions, table

_transactions = table(Transactions)

_INSERT = Write(insert(_transactions).values(parameters_for(_transactions, field_names(Transaction))))
_OF_ORDER = Statement(
    select(*columns_of(_transactions, Transaction))
    .where(_transactions.c.order_id == bindparam("order_id"), _transactions.c.merchant_id == bindparam("merchant_id"))
    .order_by(_transactions.c.created_at.desc(), _transactions.c.id.desc())
    .limit(1000),
    Transaction,
)


def insertion(transaction: Transaction) -> tuple[Write, Parameters]:
    """Return the write that inserts a transaction, for `Session.run_together`."""
    return _INSERT, values_of(transaction)


async def of_order(reader: Reader, merchant_id: str, order_id: str) -> list[Transaction]:
    """Return an order's transactions, newest first."""
    return await reader.all(_OF_ORDER, {"merchant_id": merchant_id, "order_id": order_id})
