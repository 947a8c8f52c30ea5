"""The audit log: entries that triggers keep from being changed or deleted, and the ends of their chains."""

import sqlalchemy as sa
from alembic import op

from loop.storage.columns import UtcTime

revision = "2026_11_26_audit_log"
down_revision = "2026_11_26_reconciliation"
branch_labels = None
depends_on = None

_REFUSAL = "audit_log is append-only"


def upgrade() -> None:
    """Create the tables and their triggers."""
    op.create_table(
        "audit_log",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("merchant_id", sa.String(length=40), nullable=True),
        sa.Column("actor_kind", sa.String(length=20), nullable=False),
        sa.Column("actor_id", sa.String(length=80), nullable=True),
        sa.Column("address", sa.String(length=64), nullable=True),
        sa.Column("action", sa.String(length=60), nullable=False),
        sa.Column("subject", sa.String(length=120), nullable=False),
        sa.Column("before", sa.Text(), nullable=True),
        sa.Column("after", sa.Text(), nullable=True),
        sa.Column("correlation_id", sa.String(length=128), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("prev_hash", sa.String(length=64), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("uq_audit_log_merchant_id_seq", "audit_log", ["merchant_id", "seq"], unique=True)
    op.create_index(
        "uq_audit_log_operator_seq",
        "audit_log",
        ["seq"],
        unique=True,
        sqlite_where=sa.text("merchant_id IS NULL"),
        postgresql_where=sa.text("merchant_id IS NULL"),
    )
    op.create_table(
        "audit_heads",
        sa.Column("chain", sa.String(length=40), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("chain"),
    )
    (_guard_sqlite if op.get_bind().dialect.name == "sqlite" else _guard_postgres)()


def _guard_sqlite() -> None:
    refusal = f"BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
    op.execute(f"CREATE TRIGGER audit_log_no_update BEFORE UPDATE ON audit_log {refusal}")
    op.execute(f"CREATE TRIGGER audit_log_no_delete BEFORE DELETE ON audit_log {refusal}")
    # INSERT OR REPLACE deletes without a word to the trigger above.
    op.execute(
        "CREATE TRIGGER audit_log_no_replace BEFORE INSERT ON audit_log "  # noqa: S608 - our own words
        "WHEN EXISTS (SELECT 1 FROM audit_log WHERE id = NEW.id) "
        f"OR EXISTS (SELECT 1 FROM audit_log WHERE merchant_id IS NEW.merchant_id AND seq = NEW.seq) {refusal}"
    )


def _guard_postgres() -> None:
    op.execute(
        "CREATE FUNCTION refuse_audit_log_change() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{_REFUSAL}' USING ERRCODE = 'restrict_violation'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_log_no_change BEFORE UPDATE OR DELETE ON audit_log "
        "FOR EACH ROW EXECUTE FUNCTION refuse_audit_log_change()"
    )
    op.execute(
        "CREATE TRIGGER audit_log_no_truncate BEFORE TRUNCATE ON audit_log "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_log_change()"
    )


def downgrade() -> None:
    """Drop the tables with their triggers."""
    op.drop_table("audit_heads")
    op.drop_table("audit_log")
    if op.get_bind().dialect.name != "sqlite":
        op.execute("DROP FUNCTION refuse_audit_log_change()")
