"""Attempts that Loop gave up so that another may follow: their cancellation is not their order's."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_27_given_up_attempts"
down_revision = "2026_11_27_event_correlation"
branch_labels = None
depends_on = None
is_expanding = True


def upgrade() -> None:
    """Add the column; of the attempts that are there none is said to be."""
    op.add_column("payment_attempts", sa.Column("is_given_up", sa.Boolean(), server_default=sa.false(), nullable=False))


def downgrade() -> None:
    """Remove it."""
    op.drop_column("payment_attempts", "is_given_up")
