"""Sums of each day's orders, and the trigger that says when they are no longer true."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_27_order_days"
down_revision = "2026_11_27_trace_context"
branch_labels = None
depends_on = None

_RAISE = (
    "INSERT INTO order_days (merchant_id, is_test, day, revision) VALUES (NEW.merchant_id, NEW.is_test, {day}, 1) "
    "ON CONFLICT (merchant_id, is_test, day) DO UPDATE SET revision = order_days.revision + 1"
)


def upgrade() -> None:
    """Create the table and the trigger."""
    op.create_table(
        "order_days",
        sa.Column("merchant_id", sa.String(40), primary_key=True),
        sa.Column("is_test", sa.Boolean(), primary_key=True),
        sa.Column("day", sa.String(10), primary_key=True),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("figures", sa.Text(), nullable=True),
        sa.Column("figures_revision", sa.BigInteger(), nullable=True),
    )
    if op.get_bind().dialect.name == "sqlite":
        raised = _RAISE.format(day="substr(NEW.created_at, 1, 10)")
        op.execute(
            "CREATE TRIGGER orders_changed_later AFTER UPDATE ON orders "
            f"WHEN substr(NEW.updated_at, 1, 10) > substr(NEW.created_at, 1, 10) BEGIN {raised}; END"
        )
    else:
        raised = _RAISE.format(day="to_char(NEW.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD')")
        op.execute(
            "CREATE FUNCTION raise_order_day() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN {raised}; RETURN NULL; END $$"
        )
        op.execute(
            "CREATE TRIGGER orders_changed_later AFTER UPDATE ON orders FOR EACH ROW "
            "WHEN ((NEW.updated_at AT TIME ZONE 'UTC')::date > (NEW.created_at AT TIME ZONE 'UTC')::date) "
            "EXECUTE FUNCTION raise_order_day()"
        )


def downgrade() -> None:
    """Drop them."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TRIGGER orders_changed_later")
    else:
        op.execute("DROP TRIGGER orders_changed_later ON orders")
        op.execute("DROP FUNCTION raise_order_day()")
    op.drop_table("order_days")
