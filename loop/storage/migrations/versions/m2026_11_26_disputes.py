"""Disputes: what customers' banks take back, and how much of it counts on each order."""

import sqlalchemy as sa
from alembic import op

from loop.storage.columns import UtcTime

revision = "2026_11_26_disputes"
down_revision = "2026_11_26_late_success"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table and add the columns."""
    op.create_table(
        "disputes",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("merchant_id", sa.String(length=40), nullable=False),
        sa.Column("order_id", sa.String(length=40), nullable=False),
        sa.Column("attempt_id", sa.String(length=40), nullable=False),
        sa.Column("processor_config_id", sa.String(length=40), nullable=False),
        sa.Column("processor", sa.String(length=40), nullable=False),
        sa.Column("processor_reference", sa.String(length=255), nullable=False),
        sa.Column("status", sa.String(length=40), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("counted_minor", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("due_by", UtcTime(), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.CheckConstraint("amount_minor >= 0 AND counted_minor >= 0", name="ck_disputes_amounts"),
        sa.ForeignKeyConstraint(["attempt_id"], ["payment_attempts.id"]),
        sa.ForeignKeyConstraint(["order_id"], ["orders.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("processor_config_id", "processor_reference", name="uq_disputes_reference"),
    )
    op.create_index("ix_disputes_order_id", "disputes", ["order_id"], unique=False)
    # In words: SQLite takes a CHECK with the column it belongs to, which Alembic adds apart.
    op.execute(
        "ALTER TABLE orders ADD COLUMN amount_disputed_minor BIGINT DEFAULT 0 NOT NULL "
        "CONSTRAINT ck_orders_disputed CHECK (amount_disputed_minor >= 0)"
    )
    op.add_column("processor_events", sa.Column("dispute_reference", sa.String(length=255), nullable=True))


def downgrade() -> None:
    """Remove the columns and drop the table."""
    op.drop_column("processor_events", "dispute_reference")
    op.drop_column("orders", "amount_disputed_minor")
    op.drop_table("disputes")
