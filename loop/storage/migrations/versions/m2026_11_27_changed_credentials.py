"""When an account's credentials were replaced: a request from before may be of another account of the processor's."""

import sqlalchemy as sa
from alembic import op

from loop.storage.columns import UtcTime

revision = "2026_11_27_changed_credentials"
down_revision = "2026_11_27_token_expiry"
branch_labels = None
depends_on = None
is_expanding = True


def upgrade() -> None:
    """Add the column; of the accounts that are there nothing is known of changes before."""
    op.add_column("processor_configs", sa.Column("credentials_changed_at", UtcTime(), nullable=True))


def downgrade() -> None:
    """Remove it."""
    op.drop_column("processor_configs", "credentials_changed_at")
