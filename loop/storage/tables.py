"""The tables: SQLModel declarations with the constraints that hold money together, for both databases."""

from datetime import date, datetime
from typing import Any

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Date,
    Index,
    Integer,
    String,
    Table,
    UniqueConstraint,
    text,
    true,
)
from sqlmodel import Field, SQLModel

from loop.domain.attempts import LIVE_STATUSES, AttemptStatus
from loop.domain.disputes import DisputeStatus
from loop.domain.failover import LateSuccess
from loop.domain.movements import MovementKind
from loop.domain.orders import OrderStatus
from loop.domain.reconciliation import FindingKind
from loop.domain.refunds import RefundStatus
from loop.domain.transactions import TransactionStatus, TransactionType
from loop.storage import audit_tables, fields, stats_tables, webhook_tables  # noqa: F401 - their tables are among the metadata
from loop.storage.columns import Document, Sealed, UtcTime, Word

_big, _time, _flag, _sealed, _text = fields.big, fields.time, fields.flag, fields.sealed, fields.text

DELIVER = "deliver_webhooks"
"""The kind of the jobs that deliver: they have workers of their own, so that nothing else waits behind them."""

_LIVE = ", ".join(f"'{status}'" for status in sorted(LIVE_STATUSES))
_EXPIRING = "status IN ('pending', 'requires_action', 'failed') AND expires_at IS NOT NULL"


def table(model: type[SQLModel]) -> Table:
    """Return the Core table of a model: what statements are built from."""
    declared = model.__dict__["__table__"]
    if not isinstance(declared, Table):
        raise TypeError(f"{model.__name__} declares no table")
    return declared


class Merchants(SQLModel, table=True):
    """Who sells, and signs in."""

    __tablename__ = "merchants"
    id: str = Field(primary_key=True, max_length=40)
    name: str = Field(max_length=255)
    email: str = Field(max_length=320, unique=True)
    password_hash: str = _text(is_nullable=False)
    late_success: LateSuccess = Field(
        sa_column=Column(Word(LateSuccess), nullable=False, server_default=text("'accept'"))
    )
    created_at: datetime = _time()
    updated_at: datetime = _time()


class ApiKeys(SQLModel, table=True):
    """A merchant's API keys: only a SHA-256 is kept, since the key itself is 190 bits of chance."""

    __tablename__ = "api_keys"
    id: str = Field(primary_key=True, max_length=40)
    merchant_id: str = Field(foreign_key="merchants.id", index=True, max_length=40)
    name: str = Field(max_length=255)
    prefix: str = Field(max_length=20)
    secret_hash: str = Field(max_length=64, unique=True)
    mode: str = Field(max_length=4)
    scopes: list[str] = Field(sa_column=Column(Document, nullable=False))
    expires_at: datetime | None = _time(is_nullable=True)
    last_used_at: datetime | None = _time(is_nullable=True)
    revoked_at: datetime | None = _time(is_nullable=True)
    created_at: datetime = _time()


class SignInSessions(SQLModel, table=True):
    """Where somebody is signed in; a session is over at `expires_at`, which each refresh moves on."""

    __tablename__ = "sign_in_sessions"
    id: str = Field(primary_key=True, max_length=40)
    merchant_id: str = Field(foreign_key="merchants.id", index=True, max_length=40)
    address: str | None = Field(default=None, max_length=64)
    user_agent: str | None = Field(default=None, max_length=200)
    created_at: datetime = _time()
    last_used_at: datetime = _time()
    expires_at: datetime = Field(sa_column=Column(UtcTime, nullable=False, index=True))


class RefreshTokens(SQLModel, table=True):
    """What sessions are refreshed with: each token is used once; a used one shown again ends its session."""

    __tablename__ = "refresh_tokens"
    token_hash: str = Field(primary_key=True, max_length=64)
    family_id: str = Field(index=True, max_length=40)
    merchant_id: str = Field(foreign_key="merchants.id", index=True, max_length=40)
    used_at: datetime | None = _time(is_nullable=True)
    expires_at: datetime = Field(sa_column=Column(UtcTime, nullable=False, index=True))
    created_at: datetime = _time()


class ProcessorConfigs(SQLModel, table=True):
    """A merchant's account at a processor; credentials are encrypted, and bound to this row.

    One that was removed stays for the payments it has taken; added again, it is the same row.
    """

    __tablename__ = "processor_configs"
    __table_args__ = (
        UniqueConstraint("merchant_id", "processor", "is_test_mode", name="uq_processor_configs_merchant_processor"),
    )
    id: str = Field(primary_key=True, max_length=40)
    merchant_id: str = Field(foreign_key="merchants.id", max_length=40)
    processor: str = Field(max_length=40)
    credentials: str = _sealed()
    earlier_webhook_secrets: str | None = _sealed(is_nullable=True)
    is_enabled: bool
    priority: int
    is_test_mode: bool
    removed_at: datetime | None = _time(is_nullable=True)
    created_at: datetime = _time()
    updated_at: datetime = _time()
    credentials_changed_at: datetime | None = _time(is_nullable=True)


class RoutingRules(SQLModel, table=True):
    """Where a merchant's payments go; the rule with the lowest priority that matches decides."""

    __tablename__ = "routing_rules"
    id: str = Field(primary_key=True, max_length=40)
    merchant_id: str = Field(foreign_key="merchants.id", index=True, max_length=40)
    name: str = Field(max_length=255)
    priority: int
    is_enabled: bool
    conditions: dict[str, Any] = Field(sa_column=Column(Document, nullable=False))
    processors: list[str] = Field(sa_column=Column(Document, nullable=False))
    weights: list[int] = Field(sa_column=Column(Document, nullable=False))
    created_at: datetime = _time()
    updated_at: datetime = _time()


class Orders(SQLModel, table=True):
    """What is owed. The CHECKs hold whatever the code does."""

    __tablename__ = "orders"
    __table_args__ = (
        CheckConstraint("amount_minor > 0", name="ck_orders_amount"),
        CheckConstraint(
            "amount_refund_reserved_minor >= 0 AND amount_refund_reserved_minor <= amount_captured_minor",
            name="ck_orders_refunds_within_captured",
        ),
        CheckConstraint(
            "amount_refunded_minor >= 0 AND amount_refunded_minor <= amount_refund_reserved_minor",
            name="ck_orders_refunded_within_reserved",
        ),
        # No more: a bank may take back what was refunded already, and that must be written down.
        CheckConstraint("amount_disputed_minor >= 0", name="ck_orders_disputed"),
        Index("ix_orders_merchant_id_id", "merchant_id", "is_test", "id"),
        Index("ix_orders_merchant_id_external_id", "merchant_id", "external_id"),
        Index("ix_orders_merchant_id_status_id", "merchant_id", "is_test", "status", "id"),
        Index("ix_orders_merchant_id_amount_minor_id", "merchant_id", "is_test", "amount_minor", "id"),
        Index(
            "ix_orders_merchant_id_customer_email_id",
            "merchant_id",
            "is_test",
            "customer_email",
            "id",
            sqlite_where=text("customer_email IS NOT NULL"),
            postgresql_where=text("customer_email IS NOT NULL"),
        ),
        Index(
            "ix_orders_in_review",
            "merchant_id",
            "is_test",
            "needs_review",
            "id",
            sqlite_where=text("needs_review = 1"),
            postgresql_where=text("needs_review"),
        ),
        Index(
            "ix_orders_expiring",
            "expires_at",
            sqlite_where=text(_EXPIRING),
            postgresql_where=text(_EXPIRING),
        ),
        Index(
            "ix_orders_processing",
            "updated_at",
            sqlite_where=text("status = 'processing'"),
            postgresql_where=text("status = 'processing'"),
        ),
    )
    id: str = Field(primary_key=True, max_length=40)
    merchant_id: str = Field(foreign_key="merchants.id", max_length=40)
    external_id: str = Field(max_length=255)
    amount_minor: int = _big()
    currency: str = Field(max_length=3)
    status: OrderStatus = Field(sa_column=Column(Word(OrderStatus), nullable=False))
    processor: str | None = Field(default=None, max_length=40)
    processor_order_id: str | None = Field(default=None, max_length=255)
    is_test: bool = Field(sa_column=Column(Boolean, nullable=False, server_default=true()))
    is_manual_capture: bool
    country: str | None = Field(default=None, max_length=2)
    customer_id: str | None = Field(default=None, max_length=255)
    customer_email: str | None = Field(default=None, max_length=320)
    description: str | None = _text()
    metadata_: dict[str, Any] = Field(sa_column=Column("metadata", Document, nullable=False))
    return_url: str | None = _text()
    cancel_url: str | None = _text()
    amount_authorized_minor: int = _big(default=0)
    amount_captured_minor: int = _big(default=0)
    amount_refunded_minor: int = _big(default=0)
    amount_refund_reserved_minor: int = _big(default=0)
    amount_disputed_minor: int = _big(default=0)
    attempt_count: int = Field(sa_column=Column(Integer, nullable=False, server_default=text("0")))
    revision: int = Field(sa_column=Column(Integer, nullable=False, server_default=text("1")))
    last_error_code: str | None = Field(default=None, max_length=80)
    last_error_message: str | None = _text()
    needs_review: bool
    expires_at: datetime | None = _time(is_nullable=True)
    created_at: datetime = _time()
    updated_at: datetime = _time()


class PaymentAttempts(SQLModel, table=True):
    """One try at one processor; an order never has two live ones."""

    __tablename__ = "payment_attempts"
    __table_args__ = (
        UniqueConstraint("order_id", "number", name="uq_payment_attempts_order_number"),
        Index(
            "uq_payment_attempts_one_live",
            "order_id",
            unique=True,
            sqlite_where=text(f"status IN ({_LIVE})"),
            postgresql_where=text(f"status IN ({_LIVE})"),
        ),
        Index("ix_payment_attempts_reference", "processor_config_id", "processor_reference"),
    )
    id: str = Field(primary_key=True, max_length=40)
    order_id: str = Field(foreign_key="orders.id", max_length=40)
    merchant_id: str = Field(max_length=40)
    processor_config_id: str = Field(max_length=40)
    processor: str = Field(max_length=40)
    number: int
    status: AttemptStatus = Field(sa_column=Column(Word(AttemptStatus), nullable=False))
    amount_minor: int = _big()
    currency: str = Field(max_length=3)
    is_manual_capture: bool
    request: dict[str, Any] = Field(sa_column=Column(Document, nullable=False))
    routing_reasons: list[str] = Field(sa_column=Column(Document, nullable=False))
    processor_reference: str | None = Field(default=None, max_length=255)
    action: dict[str, Any] | None = Field(sa_column=Column(Document, nullable=True))
    error_code: str | None = Field(default=None, max_length=80)
    error_message: str | None = _text()
    decline_class: str | None = Field(default=None, max_length=20)
    raw_error_code: str | None = Field(default=None, max_length=120)
    is_duplicate: bool = _flag()
    is_given_up: bool = _flag()
    asked_count: int = Field(sa_column=Column(Integer, nullable=False, server_default=text("0")))
    unclear_since: datetime | None = _time(is_nullable=True)
    created_at: datetime = _time()
    updated_at: datetime = _time()


class Transactions(SQLModel, table=True):
    """Money movements, immutable."""

    __tablename__ = "transactions"
    __table_args__ = (
        CheckConstraint("amount_minor >= 0", name="ck_transactions_amount"),
        Index("ix_transactions_merchant_id_created_at", "merchant_id", "created_at"),
    )
    id: str = Field(primary_key=True, max_length=40)
    merchant_id: str = Field(max_length=40)
    order_id: str = Field(foreign_key="orders.id", index=True, max_length=40)
    attempt_id: str = Field(foreign_key="payment_attempts.id", max_length=40)
    refund_id: str | None = Field(default=None, max_length=40)
    type: TransactionType = Field(sa_column=Column(Word(TransactionType), nullable=False))
    status: TransactionStatus = Field(sa_column=Column(Word(TransactionStatus), nullable=False))
    amount_minor: int = _big()
    currency: str = Field(max_length=3)
    processor: str = Field(max_length=40)
    processor_transaction_id: str | None = Field(default=None, max_length=255)
    error_code: str | None = Field(default=None, max_length=80)
    error_message: str | None = _text()
    created_at: datetime = _time()


class Refunds(SQLModel, table=True):
    """Money given back; its amount is reserved on the order until it fails."""

    __tablename__ = "refunds"
    __table_args__ = (
        CheckConstraint("amount_minor > 0", name="ck_refunds_amount"),
        Index("ix_refunds_reference", "processor_reference", "merchant_id"),
        Index("ix_refunds_merchant_id_id", "merchant_id", "id"),
    )
    id: str = Field(primary_key=True, max_length=40)
    merchant_id: str = Field(max_length=40)
    order_id: str = Field(foreign_key="orders.id", index=True, max_length=40)
    attempt_id: str = Field(foreign_key="payment_attempts.id", max_length=40)
    amount_minor: int = _big()
    is_reversal: bool = _flag()
    currency: str = Field(max_length=3)
    status: RefundStatus = Field(sa_column=Column(Word(RefundStatus), nullable=False))
    reason: str | None = _text()
    processor_reference: str | None = Field(default=None, max_length=255)
    error_code: str | None = Field(default=None, max_length=80)
    error_message: str | None = _text()
    asked_count: int = Field(sa_column=Column(Integer, nullable=False, server_default=text("0")))
    created_at: datetime = _time()
    updated_at: datetime = _time()


class Disputes(SQLModel, table=True):
    """What a customer's bank takes back, as its processor last told."""

    __tablename__ = "disputes"
    __table_args__ = (
        CheckConstraint("amount_minor >= 0 AND counted_minor >= 0", name="ck_disputes_amounts"),
        UniqueConstraint("processor_config_id", "processor_reference", name="uq_disputes_reference"),
        Index("ix_disputes_merchant_id_id", "merchant_id", "id"),
    )
    id: str = Field(primary_key=True, max_length=40)
    merchant_id: str = Field(max_length=40)
    order_id: str = Field(foreign_key="orders.id", index=True, max_length=40)
    attempt_id: str = Field(foreign_key="payment_attempts.id", max_length=40)
    processor_config_id: str = Field(max_length=40)
    processor: str = Field(max_length=40)
    processor_reference: str = Field(max_length=255)
    status: DisputeStatus = Field(sa_column=Column(Word(DisputeStatus), nullable=False))
    amount_minor: int = _big()
    currency: str = Field(max_length=3)
    counted_minor: int = _big()
    reason: str | None = _text()
    due_by: datetime | None = _time(is_nullable=True)
    created_at: datetime = _time()
    updated_at: datetime = _time()


class CheckoutSessions(SQLModel, table=True):
    """A hosted page for one order."""

    __tablename__ = "checkout_sessions"
    __table_args__ = (
        Index(
            "ix_checkout_sessions_open",
            "expires_at",
            sqlite_where=text("completed_at IS NULL AND expired_at IS NULL"),
            postgresql_where=text("completed_at IS NULL AND expired_at IS NULL"),
        ),
    )
    id: str = Field(primary_key=True, max_length=40)
    merchant_id: str = Field(max_length=40, index=True)
    order_id: str = Field(foreign_key="orders.id", index=True, max_length=40)
    url: str = _text(is_nullable=False)
    success_url: str = _text(is_nullable=False)
    cancel_url: str | None = _text()
    line_items: list[dict[str, Any]] = Field(sa_column=Column(Document, nullable=False))
    expires_at: datetime = _time()
    completed_at: datetime | None = _time(is_nullable=True)
    expired_at: datetime | None = _time(is_nullable=True)
    created_at: datetime = _time()


class ProcessorEvents(SQLModel, table=True):
    """Inbound webhooks, verified and stored before they are worked on."""

    __tablename__ = "processor_events"
    __table_args__ = (
        UniqueConstraint("processor_config_id", "event_id", name="uq_processor_events_event"),
        UniqueConstraint("processor_config_id", "body_hash", name="uq_processor_events_body"),
    )
    id: str = Field(primary_key=True, max_length=40)
    merchant_id: str = Field(max_length=40, index=True)
    processor_config_id: str = Field(max_length=40)
    processor: str = Field(max_length=40)
    event_id: str = Field(max_length=255)
    event_type: str = Field(max_length=120)
    body_hash: str = Field(max_length=64)
    payment_reference: str | None = Field(default=None, max_length=255)
    attempt_id: str | None = Field(default=None, max_length=40)
    refund_reference: str | None = Field(default=None, max_length=255)
    dispute_reference: str | None = Field(default=None, max_length=255)
    amount_minor: int | None = _big(is_nullable=True)
    currency: str | None = Field(default=None, max_length=3)
    secret_ordinal: int | None = None
    is_quarantined: bool = _flag()
    outcome: str | None = _text()
    processed_at: datetime | None = _time(is_nullable=True)
    created_at: datetime = _time()


class ReconciliationRuns(SQLModel, table=True):
    """A day of a processor account as it was last compared with the processor's list."""

    __tablename__ = "reconciliation_runs"
    __table_args__ = (
        UniqueConstraint("processor_config_id", "day", name="uq_reconciliation_runs_account_day"),
        Index("ix_reconciliation_runs_merchant_id_day", "merchant_id", "day"),
    )
    id: str = Field(primary_key=True, max_length=40)
    merchant_id: str = Field(foreign_key="merchants.id", max_length=40)
    processor_config_id: str = Field(max_length=40)
    processor: str = Field(max_length=40)
    day: date = Field(sa_column=Column(Date, nullable=False))
    matched_count: int
    awaited_count: int
    missing_here_count: int
    missing_there_count: int
    amount_differs_count: int
    totals: list[dict[str, Any]] = Field(sa_column=Column(Document, nullable=False))
    ran_at: datetime = _time()


class ReconciliationFindings(SQLModel, table=True):
    """Where the two sides of a day differ; a side that has nothing has neither amount nor currency."""

    __tablename__ = "reconciliation_findings"
    run_id: str = Field(primary_key=True, foreign_key="reconciliation_runs.id", max_length=40)
    number: int = Field(primary_key=True)
    kind: FindingKind = Field(sa_column=Column(Word(FindingKind), nullable=False))
    movement_kind: MovementKind = Field(sa_column=Column(Word(MovementKind), nullable=False))
    reference: str | None = Field(default=None, max_length=255)
    order_id: str | None = Field(default=None, max_length=40)
    refund_id: str | None = Field(default=None, max_length=40)
    here_minor: int | None = _big(is_nullable=True)
    here_currency: str | None = Field(default=None, max_length=12)
    there_minor: int | None = _big(is_nullable=True)
    there_currency: str | None = Field(default=None, max_length=12)
    occurred_at: datetime = _time()


class IdempotencyKeys(SQLModel, table=True):
    """A merchant's own idempotency keys with the answer that was given."""

    __tablename__ = "idempotency_keys"
    merchant_id: str = Field(primary_key=True, max_length=40)
    is_test: bool = Field(primary_key=True)
    key: str = Field(primary_key=True, max_length=255)
    request_hash: str = Field(max_length=64)
    subject_id: str | None = Field(default=None, max_length=40)
    status_code: int | None = None
    answer: str | None = _text()
    locked_until: datetime = _time()
    created_at: datetime = Field(sa_column=Column(UtcTime, nullable=False, index=True))


class Jobs(SQLModel, table=True):
    """Work to be done, inserted by the transaction that makes it necessary.

    A job may be claimed when `run_at` has passed; a claim moves `run_at` to the end of its lease and raises `fence`,
    so that "due" and "lease ended" are one predicate.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index("uq_jobs_dedupe_key", "dedupe_key", unique=True),
        Index("ix_jobs_dead", "kind", sqlite_where=text("is_dead IS 1"), postgresql_where=text("is_dead IS true")),
        *(
            Index(
                name,
                "run_at",
                sqlite_where=text(f"is_dead IS 0 AND kind {sign} '{DELIVER}'"),
                postgresql_where=text(f"is_dead IS false AND kind {sign} '{DELIVER}'"),
            )
            for name, sign in (("ix_jobs_due", "<>"), ("ix_jobs_due_deliveries", "="))
        ),
    )
    id: str = Field(primary_key=True, max_length=100)
    kind: str = Field(max_length=40)
    subject: str = Field(max_length=120)
    arguments: dict[str, Any] = Field(sa_column=Column(Document, nullable=False))
    dedupe_key: str = Field(max_length=160)
    lane: str = Field(max_length=80)
    run_at: datetime = _time()
    fence: int = _big(default=0)
    failures: int = Field(sa_column=Column(Integer, nullable=False, server_default=text("0")))
    is_leased: bool
    is_dead: bool
    last_error: str | None = _text()
    correlation_id: str | None = Field(default=None, sa_column=Column(String(128), nullable=True))
    trace_context: str | None = Field(default=None, max_length=55)
    created_at: datetime = _time()


metadata = SQLModel.metadata
SEALED_COLUMNS = frozenset(
    (each.name, column.name)
    for each in metadata.sorted_tables
    for column in each.columns
    if isinstance(column.type, Sealed)
)
"""(table, column) of all that is encrypted at rest; such a table also has `id` and `merchant_id`, which bind it."""
