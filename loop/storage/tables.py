"""The tables: SQLModel declarations with the constraints that hold money together, for both databases."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, Integer, String, Table, Text, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from loop.domain.attempts import LIVE_STATUSES, AttemptStatus
from loop.domain.deliveries import DeliveryStatus
from loop.domain.events import EventType
from loop.domain.orders import OrderStatus
from loop.domain.refunds import RefundStatus
from loop.domain.transactions import TransactionStatus, TransactionType
from loop.storage.columns import Document, UtcTime, Word

_LIVE = ", ".join(f"'{status}'" for status in sorted(LIVE_STATUSES))


def table(model: type[SQLModel]) -> Table:
    """Return the Core table of a model: what statements are built from."""
    declared = model.__dict__["__table__"]
    if not isinstance(declared, Table):
        raise TypeError(f"{model.__name__} declares no table")
    return declared


def _big(*, default: int | None = None, is_nullable: bool = False) -> Any:  # noqa: ANN401 - SQLModel's Field is Any
    server_default = None if default is None else text(str(default))
    return Field(sa_column=Column(BigInteger, nullable=is_nullable, server_default=server_default))


def _time(*, is_nullable: bool = False) -> Any:  # noqa: ANN401 - as above
    return Field(sa_column=Column(UtcTime, nullable=is_nullable))


def _text(*, is_nullable: bool = True) -> Any:  # noqa: ANN401 - as above
    return Field(sa_column=Column(Text, nullable=is_nullable))


class Merchants(SQLModel, table=True):
    """Who sells, and signs in."""

    __tablename__ = "merchants"
    id: str = Field(primary_key=True, max_length=40)
    name: str = Field(max_length=255)
    email: str = Field(max_length=320, unique=True)
    password_hash: str = _text(is_nullable=False)
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


class RefreshTokens(SQLModel, table=True):
    """Sign-in sessions: each token is used once; a used one shown again ends its family."""

    __tablename__ = "refresh_tokens"
    token_hash: str = Field(primary_key=True, max_length=64)
    family_id: str = Field(index=True, max_length=40)
    merchant_id: str = Field(foreign_key="merchants.id", index=True, max_length=40)
    is_used: bool = False
    expires_at: datetime = _time()
    created_at: datetime = _time()


class ProcessorConfigs(SQLModel, table=True):
    """A merchant's account at a processor; credentials are AES-256-GCM under a key id, bound to this row."""

    __tablename__ = "processor_configs"
    __table_args__ = (UniqueConstraint("merchant_id", "processor", name="uq_processor_configs_merchant_processor"),)
    id: str = Field(primary_key=True, max_length=40)
    merchant_id: str = Field(foreign_key="merchants.id", max_length=40)
    processor: str = Field(max_length=40)
    credentials: str = _text(is_nullable=False)
    is_enabled: bool
    priority: int
    is_test_mode: bool
    created_at: datetime = _time()
    updated_at: datetime = _time()


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
        Index("ix_orders_merchant_id_id", "merchant_id", "id"),
        Index("ix_orders_merchant_id_external_id", "merchant_id", "external_id"),
        Index("ix_orders_merchant_id_status_id", "merchant_id", "status", "id"),
        Index(
            "ix_orders_expiring",
            "expires_at",
            sqlite_where=text("status IN ('pending', 'requires_action')"),
            postgresql_where=text("status IN ('pending', 'requires_action')"),
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
    attempt_count: int = Field(sa_column=Column(Integer, nullable=False, server_default=text("0")))
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
    asked_count: int = Field(sa_column=Column(Integer, nullable=False, server_default=text("0")))
    unclear_since: datetime | None = _time(is_nullable=True)
    created_at: datetime = _time()
    updated_at: datetime = _time()


class Transactions(SQLModel, table=True):
    """Money movements, immutable."""

    __tablename__ = "transactions"
    __table_args__ = (CheckConstraint("amount_minor >= 0", name="ck_transactions_amount"),)
    id: str = Field(primary_key=True, max_length=40)
    merchant_id: str = Field(max_length=40, index=True)
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
        Index("ix_refunds_reference", "processor_reference"),
    )
    id: str = Field(primary_key=True, max_length=40)
    merchant_id: str = Field(max_length=40)
    order_id: str = Field(foreign_key="orders.id", index=True, max_length=40)
    attempt_id: str = Field(foreign_key="payment_attempts.id", max_length=40)
    amount_minor: int = _big()
    currency: str = Field(max_length=3)
    status: RefundStatus = Field(sa_column=Column(Word(RefundStatus), nullable=False))
    reason: str | None = _text()
    processor_reference: str | None = Field(default=None, max_length=255)
    error_code: str | None = Field(default=None, max_length=80)
    error_message: str | None = _text()
    asked_count: int = Field(sa_column=Column(Integer, nullable=False, server_default=text("0")))
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


class WebhookEndpoints(SQLModel, table=True):
    """Where a merchant listens; without a url nothing is sent."""

    __tablename__ = "webhook_endpoints"
    id: str = Field(primary_key=True, max_length=40)
    merchant_id: str = Field(foreign_key="merchants.id", index=True, max_length=40)
    url: str | None = _text()
    secret: str = _text(is_nullable=False)
    is_enabled: bool
    created_at: datetime = _time()
    updated_at: datetime = _time()


class WebhookEvents(SQLModel, table=True):
    """What happened, as the exact text that merchants receive."""

    __tablename__ = "webhook_events"
    __table_args__ = (Index("ix_webhook_events_merchant_id_id", "merchant_id", "id"),)
    id: str = Field(primary_key=True, max_length=40)
    merchant_id: str = Field(max_length=40)
    order_id: str | None = Field(default=None, index=True, max_length=40)
    event_type: EventType = Field(sa_column=Column(Word(EventType), nullable=False))
    body: str = _text(is_nullable=False)
    created_at: datetime = _time()


class WebhookDeliveries(SQLModel, table=True):
    """One event on its way to one endpoint."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (Index("ix_webhook_deliveries_merchant_id_event_id", "merchant_id", "event_id"),)
    event_id: str = Field(primary_key=True, foreign_key="webhook_events.id", max_length=40)
    endpoint_id: str = Field(primary_key=True, foreign_key="webhook_endpoints.id", max_length=40)
    merchant_id: str = Field(max_length=40)
    status: DeliveryStatus = Field(sa_column=Column(Word(DeliveryStatus), nullable=False))
    attempts: int
    last_attempt_at: datetime | None = _time(is_nullable=True)
    delivered_at: datetime | None = _time(is_nullable=True)
    last_status_code: int | None = None
    last_error: str | None = _text()


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
    outcome: str | None = _text()
    processed_at: datetime | None = _time(is_nullable=True)
    created_at: datetime = _time()


class IdempotencyKeys(SQLModel, table=True):
    """A merchant's own idempotency keys with the answer that was given."""

    __tablename__ = "idempotency_keys"
    merchant_id: str = Field(primary_key=True, max_length=40)
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
        Index(
            "ix_jobs_due", "run_at", sqlite_where=text("is_dead IS 0"), postgresql_where=text("is_dead IS false")
        ),
    )  # fmt: skip
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
    created_at: datetime = _time()


metadata = SQLModel.metadata
