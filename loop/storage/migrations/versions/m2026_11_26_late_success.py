"""Late successes: the merchant's policy, and money that is given back because another attempt has paid."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_26_late_success"
down_revision = "2026_11_24_routing_rules"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    policy = sa.Column("late_success", sa.String(length=40), server_default=sa.text("'accept'"), nullable=False)
    op.add_column("merchants", policy)
    for table, column in (("payment_attempts", "is_duplicate"), ("refunds", "is_reversal")):
        op.add_column(table, sa.Column(column, sa.Boolean(), server_default=sa.false(), nullable=False))


def downgrade() -> None:
    """Remove the columns."""
    op.drop_column("refunds", "is_reversal")
    op.drop_column("payment_attempts", "is_duplicate")
    op.drop_column("merchants", "late_success")
