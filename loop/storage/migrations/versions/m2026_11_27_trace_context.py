"""Trace context: a job and a delivery know the span that caused them; and dead jobs are counted by an index."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_27_trace_context"
down_revision = "2026_11_26_dashboard_lists"
branch_labels = None
depends_on = None

_TABLES = ("jobs", "webhook_deliveries")


def upgrade() -> None:
    """Add the columns, empty for what is there, and the index."""
    for name in _TABLES:
        op.add_column(name, sa.Column("trace_context", sa.String(length=55), nullable=True))
    op.create_index(
        "ix_jobs_dead",
        "jobs",
        ["kind"],
        sqlite_where=sa.text("is_dead IS 1"),
        postgresql_where=sa.text("is_dead IS true"),
    )


def downgrade() -> None:
    """Remove them; what goes on from there is not traced."""
    op.drop_index("ix_jobs_dead", "jobs")
    for name in _TABLES:
        op.drop_column(name, "trace_context")
