"""Failed orders expire as well: the index of the orders whose time may be up has them too."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_27_failed_orders_expire"
down_revision = "2026_11_27_given_up_attempts"
branch_labels = None
depends_on = None

_NAME = "ix_orders_expiring"


def _make(condition: str) -> None:
    where = sa.text(condition)
    op.drop_index(_NAME, "orders")
    op.create_index(_NAME, "orders", ["expires_at"], sqlite_where=where, postgresql_where=where)


def upgrade() -> None:
    """Make the index anew; orders that never expire need no place in it."""
    _make("status IN ('pending', 'requires_action', 'failed') AND expires_at IS NOT NULL")


def downgrade() -> None:
    """Make it as it was."""
    _make("status IN ('pending', 'requires_action')")
