"""Spreadsheets: rows as CSV that no program runs as a formula, and the columns of what is exported."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Final

from loop.domain.orders import Order
from loop.domain.transactions import Transaction
from loop.server.dashboard.amounts import digits
from loop.server.request import time_text

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""How a cell begins that a spreadsheet would run; the last four are the first ones' wide forms."""

ORDER_COLUMNS: Final = (
    "id", "externalId", "createdAt", "status", "currency", "amount", "authorized", "captured", "refunded", "disputed",
    "processor", "processorOrderId", "customerId", "customerEmail", "description", "lastErrorCode",
)  # fmt: skip

TRANSACTION_COLUMNS: Final = (
    "id", "orderId", "createdAt", "type", "status", "currency", "amount", "processor", "processorTransactionId",
    "refundId", "errorCode",
)  # fmt: skip


def csv_text(rows: Iterable[Sequence[str]]) -> str:
    """Return rows as CSV."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def order_cells(order: Order) -> tuple[str, ...]:
    """Return an order's row, with amounts in major units."""
    amounts = (
        order.amount_minor, order.amount_authorized_minor, order.amount_captured_minor, order.amount_refunded_minor,
        order.amount_disputed_minor,
    )  # fmt: skip
    texts = (
        order.processor, order.processor_order_id, order.customer_id, order.customer_email, order.description,
        order.last_error_code,
    )  # fmt: skip
    return (
        order.id,
        _inert(order.external_id),
        time_text(order.created_at) or "",
        order.status,
        order.currency,
        *(digits(each, order.currency, is_grouped=False) for each in amounts),
        *(_inert(each or "") for each in texts),
    )


def transaction_cells(row: Transaction) -> tuple[str, ...]:
    """Return a transaction's row, with its amount in major units."""
    texts = (row.processor, row.processor_transaction_id, row.refund_id, row.error_code)
    return (
        row.id,
        row.order_id,
        time_text(row.created_at) or "",
        row.type,
        row.status,
        row.currency,
        digits(row.amount_minor, row.currency, is_grouped=False),
        *(_inert(each or "") for each in texts),
    )


def _inert(text: str) -> str:
    """Return text that a spreadsheet takes for text."""
    return f"'{text}" if text.startswith(_FORMULA) else text
