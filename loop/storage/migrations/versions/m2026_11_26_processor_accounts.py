"""Processor accounts: earlier webhook secrets, removal that keeps the row, and what an inbound event was checked by."""

import sqlalchemy as sa
from alembic import op

from loop.storage.columns import UtcTime

revision = "2026_11_26_processor_accounts"
down_revision = "2026_11_26_disputes"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    op.add_column("processor_configs", sa.Column("earlier_webhook_secrets", sa.Text(), nullable=True))
    op.add_column("processor_configs", sa.Column("removed_at", UtcTime(), nullable=True))
    op.add_column("processor_events", sa.Column("amount_minor", sa.BigInteger(), nullable=True))
    op.add_column("processor_events", sa.Column("currency", sa.String(length=3), nullable=True))
    op.add_column("processor_events", sa.Column("secret_ordinal", sa.Integer(), nullable=True))
    op.add_column(
        "processor_events", sa.Column("is_quarantined", sa.Boolean(), server_default=sa.false(), nullable=False)
    )


def downgrade() -> None:
    """Remove the columns."""
    for name in ("is_quarantined", "secret_ordinal", "currency", "amount_minor"):
        op.drop_column("processor_events", name)
    op.drop_column("processor_configs", "removed_at")
    op.drop_column("processor_configs", "earlier_webhook_secrets")
