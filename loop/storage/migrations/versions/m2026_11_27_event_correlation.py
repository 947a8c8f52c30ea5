"""Correlation of events: an event knows the request or job that it happened in, by its correlation id."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_27_event_correlation"
down_revision = "2026_11_27_order_days"
branch_labels = None
depends_on = None
is_expanding = True


def upgrade() -> None:
    """Add the column, empty for what is there."""
    op.add_column("webhook_events", sa.Column("correlation_id", sa.String(length=128), nullable=True))


def downgrade() -> None:
    """Remove it; the deliveries of an event keep theirs."""
    op.drop_column("webhook_events", "correlation_id")
