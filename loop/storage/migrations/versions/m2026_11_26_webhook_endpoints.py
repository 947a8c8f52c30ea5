"""Webhook endpoints: several for each merchant, their health and secrets, one job for each, and a log of every try."""

from typing import Any

import sqlalchemy as sa
from alembic import op

from loop.storage.columns import UtcTime

revision = "2026_11_26_webhook_endpoints"
down_revision = "2026_11_26_audit_log"
branch_labels = None
depends_on = None

_JOB_OF_EACH_DELIVERY = "deliver_webhook"
_JOBS_DUE = (("ix_jobs_due", "<>"), ("ix_jobs_due_deliveries", "="))
_DELIVERY_INDEXES = (
    ("ix_webhook_deliveries_new", ["event_id"], "status = 'pending' AND next_attempt_at IS NULL"),
    (
        "ix_webhook_deliveries_due",
        ["endpoint_id", "next_attempt_at", "event_id"],
        "status = 'pending' AND next_attempt_at IS NOT NULL",
    ),
    ("ix_webhook_deliveries_failed", ["endpoint_id", "event_id"], "status = 'failed'"),
)


def _endpoint_columns() -> tuple[sa.Column[Any], ...]:
    return (
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("event_types", sa.Text(), server_default=sa.text("'[\"*\"]'"), nullable=False),
        sa.Column("pending_secret", sa.Text(), nullable=True),
        sa.Column("pending_since", UtcTime(), nullable=True),
        sa.Column("disabled_reason", sa.Text(), nullable=True),
        sa.Column("failure_streak", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("failing_since", UtcTime(), nullable=True),
        sa.Column("pause_s", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("paused_until", UtcTime(), nullable=True),
        sa.Column("removed_at", UtcTime(), nullable=True),
    )


def _delivery_columns() -> tuple[sa.Column[Any], ...]:
    return (
        sa.Column("next_attempt_at", UtcTime(), nullable=True),
        sa.Column("correlation_id", sa.String(length=128), nullable=True),
    )


def upgrade() -> None:
    """Add the columns and the log, and leave what waits to be delivered to the endpoints' own jobs."""
    op.add_column("orders", sa.Column("revision", sa.Integer(), server_default=sa.text("1"), nullable=False))
    for column in _endpoint_columns():
        op.add_column("webhook_endpoints", column)
    for column in _delivery_columns():
        op.add_column("webhook_deliveries", column)
    for name, columns, where in _DELIVERY_INDEXES:
        condition = sa.text(where)
        op.create_index(name, "webhook_deliveries", columns, sqlite_where=condition, postgresql_where=condition)
    op.drop_index("ix_jobs_due", "jobs")
    for name, sign in _JOBS_DUE:
        op.create_index(
            name,
            "jobs",
            ["run_at"],
            sqlite_where=sa.text(f"is_dead IS 0 AND kind {sign} 'deliver_webhooks'"),
            postgresql_where=sa.text(f"is_dead IS false AND kind {sign} 'deliver_webhooks'"),
        )
    # Deliveries without next_attempt_at are new, and get their endpoint's job when Loop starts.
    op.execute(f"DELETE FROM jobs WHERE kind = '{_JOB_OF_EACH_DELIVERY}'")  # noqa: S608 - a word of our own
    _create_delivery_attempts()


def _create_delivery_attempts() -> None:
    op.create_table(
        "delivery_attempts",
        sa.Column("event_id", sa.String(length=40), nullable=False),
        sa.Column("endpoint_id", sa.String(length=40), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("merchant_id", sa.String(length=40), nullable=False),
        sa.Column("status_code", sa.Integer(), nullable=True),
        sa.Column("duration_ms", sa.Integer(), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=True),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("tried_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("event_id", "endpoint_id", "number"),
    )
    op.create_index("ix_delivery_attempts_tried_at", "delivery_attempts", ["tried_at"], unique=False)


def downgrade() -> None:
    """Remove what was added; deliveries that wait are not tried again by themselves."""
    op.drop_table("delivery_attempts")
    op.execute("DELETE FROM jobs WHERE kind = 'deliver_webhooks'")
    for name, _ in _JOBS_DUE:
        op.drop_index(name, "jobs")
    op.create_index(
        "ix_jobs_due",
        "jobs",
        ["run_at"],
        sqlite_where=sa.text("is_dead IS 0"),
        postgresql_where=sa.text("is_dead IS false"),
    )
    for name, _, _ in _DELIVERY_INDEXES:
        op.drop_index(name, "webhook_deliveries")
    for column in _delivery_columns():
        op.drop_column("webhook_deliveries", column.name)
    for column in _endpoint_columns():
        op.drop_column("webhook_endpoints", column.name)
    op.drop_column("orders", "revision")
