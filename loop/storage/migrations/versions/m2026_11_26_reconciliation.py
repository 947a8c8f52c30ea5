"""Reconciliation: the days of accounts that were compared, what differed, and a merchant's transactions by time."""

import sqlalchemy as sa
from alembic import op

from loop.storage.columns import UtcTime

revision = "2026_11_26_reconciliation"
down_revision = "2026_11_26_processor_accounts"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables, and give an index its second column."""
    op.create_table(
        "reconciliation_runs",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("merchant_id", sa.String(length=40), nullable=False),
        sa.Column("processor_config_id", sa.String(length=40), nullable=False),
        sa.Column("processor", sa.String(length=40), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("matched_count", sa.Integer(), nullable=False),
        sa.Column("awaited_count", sa.Integer(), nullable=False),
        sa.Column("missing_here_count", sa.Integer(), nullable=False),
        sa.Column("missing_there_count", sa.Integer(), nullable=False),
        sa.Column("amount_differs_count", sa.Integer(), nullable=False),
        sa.Column("totals", sa.Text(), nullable=False),
        sa.Column("ran_at", UtcTime(), nullable=False),
        sa.ForeignKeyConstraint(["merchant_id"], ["merchants.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("processor_config_id", "day", name="uq_reconciliation_runs_account_day"),
    )
    op.create_index(
        "ix_reconciliation_runs_merchant_id_day", "reconciliation_runs", ["merchant_id", "day"], unique=False
    )
    op.create_table(
        "reconciliation_findings",
        sa.Column("run_id", sa.String(length=40), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("movement_kind", sa.String(length=40), nullable=False),
        sa.Column("reference", sa.String(length=255), nullable=True),
        sa.Column("order_id", sa.String(length=40), nullable=True),
        sa.Column("refund_id", sa.String(length=40), nullable=True),
        sa.Column("here_minor", sa.BigInteger(), nullable=True),
        sa.Column("here_currency", sa.String(length=12), nullable=True),
        sa.Column("there_minor", sa.BigInteger(), nullable=True),
        sa.Column("there_currency", sa.String(length=12), nullable=True),
        sa.Column("occurred_at", UtcTime(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["reconciliation_runs.id"]),
        sa.PrimaryKeyConstraint("run_id", "number"),
    )
    op.create_index(
        "ix_transactions_merchant_id_created_at", "transactions", ["merchant_id", "created_at"], unique=False
    )
    op.drop_index("ix_transactions_merchant_id", "transactions")


def downgrade() -> None:
    """Drop the tables, and take the second column away."""
    op.create_index("ix_transactions_merchant_id", "transactions", ["merchant_id"], unique=False)
    op.drop_index("ix_transactions_merchant_id_created_at", "transactions")
    op.drop_table("reconciliation_findings")
    op.drop_table("reconciliation_runs")
