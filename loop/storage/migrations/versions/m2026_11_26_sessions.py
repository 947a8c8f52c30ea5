"""Sign-in sessions: a row for each, and when each refresh token was used."""

import sqlalchemy as sa
from alembic import op

from loop.storage.columns import UtcTime

revision = "2026_11_26_sessions"
down_revision = "2026_11_26_webhook_endpoints"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table with the sessions that there are; whoever is signed in stays so with the refresh token."""
    op.create_table(
        "sign_in_sessions",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("merchant_id", sa.String(length=40), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=True),
        sa.Column("user_agent", sa.String(length=200), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("last_used_at", UtcTime(), nullable=False),
        sa.Column("expires_at", UtcTime(), nullable=False),
        sa.ForeignKeyConstraint(["merchant_id"], ["merchants.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_sign_in_sessions_merchant_id", "sign_in_sessions", ["merchant_id"], unique=False)
    op.create_index("ix_sign_in_sessions_expires_at", "sign_in_sessions", ["expires_at"], unique=False)
    op.execute(
        "INSERT INTO sign_in_sessions (id, merchant_id, created_at, last_used_at, expires_at) "
        "SELECT family_id, merchant_id, min(created_at), max(created_at), max(expires_at) "
        "FROM refresh_tokens GROUP BY family_id, merchant_id"
    )
    op.add_column("refresh_tokens", sa.Column("used_at", UtcTime(), nullable=True))
    op.execute("UPDATE refresh_tokens SET used_at = created_at WHERE is_used")
    op.drop_column("refresh_tokens", "is_used")


def downgrade() -> None:
    """Remove the table; a token that was used stays so."""
    op.add_column("refresh_tokens", sa.Column("is_used", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.execute("UPDATE refresh_tokens SET is_used = (used_at IS NOT NULL)")
    op.drop_column("refresh_tokens", "used_at")
    op.drop_table("sign_in_sessions")
