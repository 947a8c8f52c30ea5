"""The dashboard's lists: orders by amount, by e-mail address and in review; refunds and disputes by merchant."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_26_dashboard_lists"
down_revision = "2026_11_26_modes"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the indexes."""
    op.create_index("ix_orders_merchant_id_amount_minor_id", "orders", ["merchant_id", "is_test", "amount_minor", "id"])
    has_email, is_in_review = sa.text("customer_email IS NOT NULL"), sa.text("needs_review")
    op.create_index(
        "ix_orders_merchant_id_customer_email_id",
        "orders",
        ["merchant_id", "is_test", "customer_email", "id"],
        sqlite_where=has_email,
        postgresql_where=has_email,
    )
    op.create_index(
        "ix_orders_in_review",
        "orders",
        ["merchant_id", "is_test", "needs_review", "id"],
        sqlite_where=sa.text("needs_review = 1"),
        postgresql_where=is_in_review,
    )
    op.drop_index("ix_refunds_reference", "refunds")
    op.create_index("ix_refunds_reference", "refunds", ["processor_reference", "merchant_id"])
    op.create_index("ix_refunds_merchant_id_id", "refunds", ["merchant_id", "id"])
    op.create_index("ix_disputes_merchant_id_id", "disputes", ["merchant_id", "id"])


def downgrade() -> None:
    """Drop them."""
    op.drop_index("ix_disputes_merchant_id_id", "disputes")
    op.drop_index("ix_refunds_merchant_id_id", "refunds")
    op.drop_index("ix_refunds_reference", "refunds")
    op.create_index("ix_refunds_reference", "refunds", ["processor_reference"])
    op.drop_index("ix_orders_in_review", "orders")
    op.drop_index("ix_orders_merchant_id_customer_email_id", "orders")
    op.drop_index("ix_orders_merchant_id_amount_minor_id", "orders")
