"""The tables of webhooks out: endpoints, events, the delivery of each event to each endpoint, and every try of it."""

from datetime import datetime

from sqlalchemy import Column, Index, Integer, text
from sqlmodel import Field, SQLModel

from loop.domain.deliveries import DeliveryStatus
from loop.domain.events import EventType
from loop.storage import fields
from loop.storage.columns import Document, UtcTime, Word


def _index_where(name: str, *columns: str, where: str) -> Index:
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


class WebhookEndpoints(SQLModel, table=True):
    """Where a merchant listens; without a url nothing is sent. One that was removed stays for its deliveries."""

    __tablename__ = "webhook_endpoints"
    id: str = Field(primary_key=True, max_length=40)
    merchant_id: str = Field(foreign_key="merchants.id", index=True, max_length=40)
    url: str | None = fields.text()
    description: str | None = fields.text()
    event_types: list[str] = Field(sa_column=Column(Document, nullable=False, server_default=text("'[\"*\"]'")))
    secret: str = fields.sealed()
    pending_secret: str | None = fields.sealed(is_nullable=True)
    pending_since: datetime | None = fields.time(is_nullable=True)
    is_enabled: bool
    disabled_reason: str | None = fields.text()
    failure_streak: int = Field(sa_column=Column(Integer, nullable=False, server_default=text("0")))
    failing_since: datetime | None = fields.time(is_nullable=True)
    pause_s: int = Field(sa_column=Column(Integer, nullable=False, server_default=text("0")))
    paused_until: datetime | None = fields.time(is_nullable=True)
    removed_at: datetime | None = fields.time(is_nullable=True)
    created_at: datetime = fields.time()
    updated_at: datetime = fields.time()


class WebhookEvents(SQLModel, table=True):
    """What happened, as the exact text that merchants receive."""

    __tablename__ = "webhook_events"
    __table_args__ = (Index("ix_webhook_events_merchant_id_id", "merchant_id", "id"),)
    id: str = Field(primary_key=True, max_length=40)
    merchant_id: str = Field(max_length=40)
    order_id: str | None = Field(default=None, index=True, max_length=40)
    is_test: bool | None = None
    event_type: EventType = Field(sa_column=Column(Word(EventType), nullable=False))
    body: str = fields.text(is_nullable=False)
    created_at: datetime = fields.time()
    correlation_id: str | None = Field(default=None, max_length=128)


class WebhookDeliveries(SQLModel, table=True):
    """One event on its way to one endpoint, new until `next_attempt_at` is set and its endpoint has a job."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index("ix_webhook_deliveries_merchant_id_event_id", "merchant_id", "event_id"),
        _index_where("ix_webhook_deliveries_new", "event_id", where="status = 'pending' AND next_attempt_at IS NULL"),
        _index_where(
            "ix_webhook_deliveries_due",
            "endpoint_id",
            "next_attempt_at",
            "event_id",
            where="status = 'pending' AND next_attempt_at IS NOT NULL",
        ),
        _index_where("ix_webhook_deliveries_failed", "endpoint_id", "event_id", where="status = 'failed'"),
    )
    event_id: str = Field(primary_key=True, foreign_key="webhook_events.id", max_length=40)
    endpoint_id: str = Field(primary_key=True, foreign_key="webhook_endpoints.id", max_length=40)
    merchant_id: str = Field(max_length=40)
    status: DeliveryStatus = Field(sa_column=Column(Word(DeliveryStatus), nullable=False))
    attempts: int
    last_attempt_at: datetime | None = fields.time(is_nullable=True)
    delivered_at: datetime | None = fields.time(is_nullable=True)
    last_status_code: int | None = None
    last_error: str | None = fields.text()
    next_attempt_at: datetime | None = fields.time(is_nullable=True)
    correlation_id: str | None = Field(default=None, max_length=128)
    trace_context: str | None = Field(default=None, max_length=55)


class DeliveryAttempts(SQLModel, table=True):
    """One try of a delivery, kept for a while."""

    __tablename__ = "delivery_attempts"
    event_id: str = Field(primary_key=True, max_length=40)
    endpoint_id: str = Field(primary_key=True, max_length=40)
    number: int = Field(primary_key=True)
    merchant_id: str = Field(max_length=40)
    status_code: int | None = None
    duration_ms: int
    address: str | None = Field(default=None, max_length=64)
    answer: str | None = fields.text()
    error: str | None = fields.text()
    tried_at: datetime = Field(sa_column=Column(UtcTime, nullable=False, index=True))
