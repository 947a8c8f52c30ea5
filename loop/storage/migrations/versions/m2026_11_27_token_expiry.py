"""Refresh tokens that have expired are found by an index, as the sessions that they are of."""

from alembic import op

revision = "2026_11_27_token_expiry"
down_revision = "2026_11_27_failed_orders_expire"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the index."""
    op.create_index("ix_refresh_tokens_expires_at", "refresh_tokens", ["expires_at"], unique=False)


def downgrade() -> None:
    """Remove it; the whole table is looked through for what has expired."""
    op.drop_index("ix_refresh_tokens_expires_at", "refresh_tokens")
