"""Transactions: immutable rows of money that moved, or failed to, at a processor."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class TransactionType(StrEnum):
    """Which movement it was."""

    AUTHORIZATION = "authorization"
    CAPTURE = "capture"
    REFUND = "refund"
    VOID = "void"


class TransactionStatus(StrEnum):
    """How it ended."""

    PENDING = "pending"
    SUCCESS = "success"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class NewTransaction:
    """A movement to be recorded; amount in minor units of the order's currency."""

    type: TransactionType
    status: TransactionStatus
    amount_minor: int
    processor_transaction_id: str | None
    error_code: str | None = None
    error_message: str | None = None


@dataclass(frozen=True, slots=True)
class Transaction:
    """One row of transactions."""

    id: str
    merchant_id: str
    order_id: str
    attempt_id: str
    refund_id: str | None
    type: TransactionType
    status: TransactionStatus
    amount_minor: int
    currency: str
    processor: str
    processor_transaction_id: str | None
    error_code: str | None
    error_message: str | None
    created_at: datetime
