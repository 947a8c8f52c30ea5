"""Test and live: orders, events, accounts and idempotency keys each of one mode."""

import sqlalchemy as sa
from alembic import op

from loop.storage.columns import UtcTime

revision = "2026_11_26_modes"
down_revision = "2026_11_26_sessions"
branch_labels = None
depends_on = None

_LIVE_ACCOUNT = (
    "SELECT 1 FROM processor_configs c WHERE c.merchant_id = {owner} "
    "AND NOT c.is_test_mode AND c.is_enabled AND c.removed_at IS NULL"
)
_ORDER_INDEXES = (("ix_orders_merchant_id_id", ["id"]), ("ix_orders_merchant_id_status_id", ["status", "id"]))
_ACCOUNT = "uq_processor_configs_merchant_processor"


def upgrade() -> None:
    """Add the modes, which what is there takes from the accounts that it was paid at.

    What was never paid is of the mode that its merchant's accounts have now, and so are keys: until now their mode was
    a word, and a key called live of a merchant without a live account must go on reaching that merchant's orders.
    """
    op.add_column("orders", sa.Column("is_test", sa.Boolean(), server_default=sa.true(), nullable=False))
    op.execute(
        "UPDATE orders SET is_test = false WHERE "  # noqa: S608 - our own words
        f"(orders.attempt_count = 0 AND EXISTS ({_LIVE_ACCOUNT.format(owner='orders.merchant_id')})) "
        "OR EXISTS (SELECT 1 FROM payment_attempts a JOIN processor_configs c ON c.id = a.processor_config_id "
        "WHERE a.order_id = orders.id AND a.number = orders.attempt_count AND NOT c.is_test_mode)"
    )
    for name, columns in _ORDER_INDEXES:
        op.drop_index(name, "orders")
        op.create_index(name, "orders", ["merchant_id", "is_test", *columns])
    op.add_column("webhook_events", sa.Column("is_test", sa.Boolean(), nullable=True))
    op.execute(
        "UPDATE webhook_events SET is_test = "
        "(SELECT orders.is_test FROM orders WHERE orders.id = webhook_events.order_id)"
    )
    op.execute(
        "UPDATE api_keys SET mode = 'test' "  # noqa: S608 - our own words
        f"WHERE mode = 'live' AND NOT EXISTS ({_LIVE_ACCOUNT.format(owner='api_keys.merchant_id')})"
    )
    with op.batch_alter_table("processor_configs") as accounts:
        accounts.drop_constraint(_ACCOUNT, type_="unique")
        accounts.create_unique_constraint(_ACCOUNT, ["merchant_id", "processor", "is_test_mode"])
    _remake_idempotency_keys(
        [sa.Column("is_test", sa.Boolean(), nullable=False)],
        f"merchant_id, NOT EXISTS ({_LIVE_ACCOUNT.format(owner='idempotency_keys.merchant_id')})",
    )


def _remake_idempotency_keys(mode: list[sa.Column[bool]], source: str) -> None:
    """Make the table anew with or without a mode in its primary key, which SQLite does not change in place."""
    rest = "key, request_hash, subject_id, status_code, answer, locked_until, created_at"
    names = ["merchant_id", *(column.name for column in mode)]
    op.create_table(
        "idempotency_keys_anew",
        sa.Column("merchant_id", sa.String(length=40), nullable=False),
        *mode,
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("request_hash", sa.String(length=64), nullable=False),
        sa.Column("subject_id", sa.String(length=40), nullable=True),
        sa.Column("status_code", sa.Integer(), nullable=True),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("locked_until", UtcTime(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint(*names, "key"),
    )
    op.execute(
        f"INSERT INTO idempotency_keys_anew ({', '.join(names)}, {rest}) "  # noqa: S608 - our own words
        f"SELECT {source}, {rest} FROM idempotency_keys"
    )
    op.drop_table("idempotency_keys")
    op.rename_table("idempotency_keys_anew", "idempotency_keys")
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])


def downgrade() -> None:
    """Remove the modes; what they alone told apart is lost: keys' answers, live accounts beside test ones."""
    op.execute("DELETE FROM idempotency_keys WHERE NOT is_test")
    _remake_idempotency_keys([], "merchant_id")
    op.execute(
        "DELETE FROM processor_configs WHERE NOT is_test_mode AND EXISTS (SELECT 1 FROM processor_configs t "
        "WHERE t.merchant_id = processor_configs.merchant_id AND t.processor = processor_configs.processor "
        "AND t.is_test_mode)"
    )
    with op.batch_alter_table("processor_configs") as accounts:
        accounts.drop_constraint(_ACCOUNT, type_="unique")
        accounts.create_unique_constraint(_ACCOUNT, ["merchant_id", "processor"])
    op.drop_column("webhook_events", "is_test")
    for name, columns in _ORDER_INDEXES:
        op.drop_index(name, "orders")
        op.create_index(name, "orders", ["merchant_id", *columns])
    op.drop_column("orders", "is_test")
