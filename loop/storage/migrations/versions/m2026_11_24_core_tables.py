"""The core tables: merchants and keys, orders and money, events and their delivery, jobs."""

import sqlalchemy as sa
from alembic import op

from loop.storage.columns import UtcTime

revision = "2026_11_24_core"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table, parents first."""
    _create_idempotency_keys()
    _create_jobs()
    _create_merchants()
    _create_processor_events()
    _create_webhook_events()
    _create_api_keys()
    _create_orders()
    _create_processor_configs()
    _create_refresh_tokens()
    _create_webhook_endpoints()
    _create_checkout_sessions()
    _create_payment_attempts()
    _create_webhook_deliveries()
    _create_refunds()
    _create_transactions()


def downgrade() -> None:
    """Drop every table, children first."""
    for name in (
        "transactions",
        "refunds",
        "webhook_deliveries",
        "payment_attempts",
        "checkout_sessions",
        "webhook_endpoints",
        "refresh_tokens",
        "processor_configs",
        "orders",
        "api_keys",
        "webhook_events",
        "processor_events",
        "merchants",
        "jobs",
        "idempotency_keys",
    ):
        op.drop_table(name)


def _create_idempotency_keys() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("merchant_id", sa.String(length=40), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("request_hash", sa.String(length=64), nullable=False),
        sa.Column("subject_id", sa.String(length=40), nullable=True),
        sa.Column("status_code", sa.Integer(), nullable=True),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("locked_until", UtcTime(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("merchant_id", "key"),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"], unique=False)


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(length=100), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("subject", sa.String(length=120), nullable=False),
        sa.Column("arguments", sa.Text(), nullable=False),
        sa.Column("dedupe_key", sa.String(length=160), nullable=False),
        sa.Column("lane", sa.String(length=80), nullable=False),
        sa.Column("run_at", UtcTime(), nullable=False),
        sa.Column("fence", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("failures", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("is_leased", sa.Boolean(), nullable=False),
        sa.Column("is_dead", sa.Boolean(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("correlation_id", sa.String(length=128), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "ix_jobs_due",
        "jobs",
        ["run_at"],
        unique=False,
        sqlite_where=sa.text("is_dead IS 0"),
        postgresql_where=sa.text("is_dead IS false"),
    )
    op.create_index("uq_jobs_dedupe_key", "jobs", ["dedupe_key"], unique=True)


def _create_merchants() -> None:
    op.create_table(
        "merchants",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("email", sa.String(length=320), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("email"),
    )


def _create_processor_events() -> None:
    op.create_table(
        "processor_events",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("merchant_id", sa.String(length=40), nullable=False),
        sa.Column("processor_config_id", sa.String(length=40), nullable=False),
        sa.Column("processor", sa.String(length=40), nullable=False),
        sa.Column("event_id", sa.String(length=255), nullable=False),
        sa.Column("event_type", sa.String(length=120), nullable=False),
        sa.Column("body_hash", sa.String(length=64), nullable=False),
        sa.Column("payment_reference", sa.String(length=255), nullable=True),
        sa.Column("attempt_id", sa.String(length=40), nullable=True),
        sa.Column("refund_reference", sa.String(length=255), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("processed_at", UtcTime(), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("processor_config_id", "body_hash", name="uq_processor_events_body"),
        sa.UniqueConstraint("processor_config_id", "event_id", name="uq_processor_events_event"),
    )
    op.create_index("ix_processor_events_merchant_id", "processor_events", ["merchant_id"], unique=False)


def _create_webhook_events() -> None:
    op.create_table(
        "webhook_events",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("merchant_id", sa.String(length=40), nullable=False),
        sa.Column("order_id", sa.String(length=40), nullable=True),
        sa.Column("event_type", sa.String(40), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_webhook_events_merchant_id_id", "webhook_events", ["merchant_id", "id"], unique=False)
    op.create_index("ix_webhook_events_order_id", "webhook_events", ["order_id"], unique=False)


def _create_api_keys() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("merchant_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("prefix", sa.String(length=20), nullable=False),
        sa.Column("secret_hash", sa.String(length=64), nullable=False),
        sa.Column("mode", sa.String(length=4), nullable=False),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("expires_at", UtcTime(), nullable=True),
        sa.Column("last_used_at", UtcTime(), nullable=True),
        sa.Column("revoked_at", UtcTime(), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["merchant_id"],
            ["merchants.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("secret_hash"),
    )
    op.create_index("ix_api_keys_merchant_id", "api_keys", ["merchant_id"], unique=False)


def _create_orders() -> None:
    op.create_table(
        "orders",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("merchant_id", sa.String(length=40), nullable=False),
        sa.Column("external_id", sa.String(length=255), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("status", sa.String(40), nullable=False),
        sa.Column("processor", sa.String(length=40), nullable=True),
        sa.Column("processor_order_id", sa.String(length=255), nullable=True),
        sa.Column("is_manual_capture", sa.Boolean(), nullable=False),
        sa.Column("country", sa.String(length=2), nullable=True),
        sa.Column("customer_id", sa.String(length=255), nullable=True),
        sa.Column("customer_email", sa.String(length=320), nullable=True),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("return_url", sa.Text(), nullable=True),
        sa.Column("cancel_url", sa.Text(), nullable=True),
        sa.Column("amount_authorized_minor", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("amount_captured_minor", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("amount_refunded_minor", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("amount_refund_reserved_minor", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("attempt_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_error_code", sa.String(length=80), nullable=True),
        sa.Column("last_error_message", sa.Text(), nullable=True),
        sa.Column("needs_review", sa.Boolean(), nullable=False),
        sa.Column("expires_at", UtcTime(), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.CheckConstraint("amount_minor > 0", name="ck_orders_amount"),
        sa.CheckConstraint(
            "amount_refund_reserved_minor >= 0 AND amount_refund_reserved_minor <= amount_captured_minor",
            name="ck_orders_refunds_within_captured",
        ),
        sa.CheckConstraint(
            "amount_refunded_minor >= 0 AND amount_refunded_minor <= amount_refund_reserved_minor",
            name="ck_orders_refunded_within_reserved",
        ),
        sa.ForeignKeyConstraint(
            ["merchant_id"],
            ["merchants.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "ix_orders_expiring",
        "orders",
        ["expires_at"],
        unique=False,
        sqlite_where=sa.text("status IN ('pending', 'requires_action')"),
        postgresql_where=sa.text("status IN ('pending', 'requires_action')"),
    )
    op.create_index("ix_orders_merchant_id_external_id", "orders", ["merchant_id", "external_id"], unique=False)
    op.create_index("ix_orders_merchant_id_id", "orders", ["merchant_id", "id"], unique=False)
    op.create_index("ix_orders_merchant_id_status_id", "orders", ["merchant_id", "status", "id"], unique=False)
    op.create_index(
        "ix_orders_processing",
        "orders",
        ["updated_at"],
        unique=False,
        sqlite_where=sa.text("status = 'processing'"),
        postgresql_where=sa.text("status = 'processing'"),
    )


def _create_processor_configs() -> None:
    op.create_table(
        "processor_configs",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("merchant_id", sa.String(length=40), nullable=False),
        sa.Column("processor", sa.String(length=40), nullable=False),
        sa.Column("credentials", sa.Text(), nullable=False),
        sa.Column("is_enabled", sa.Boolean(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("is_test_mode", sa.Boolean(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["merchant_id"],
            ["merchants.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("merchant_id", "processor", name="uq_processor_configs_merchant_processor"),
    )


def _create_refresh_tokens() -> None:
    op.create_table(
        "refresh_tokens",
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("family_id", sa.String(length=40), nullable=False),
        sa.Column("merchant_id", sa.String(length=40), nullable=False),
        sa.Column("is_used", sa.Boolean(), nullable=False),
        sa.Column("expires_at", UtcTime(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["merchant_id"],
            ["merchants.id"],
        ),
        sa.PrimaryKeyConstraint("token_hash"),
    )
    op.create_index("ix_refresh_tokens_family_id", "refresh_tokens", ["family_id"], unique=False)
    op.create_index("ix_refresh_tokens_merchant_id", "refresh_tokens", ["merchant_id"], unique=False)


def _create_webhook_endpoints() -> None:
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("merchant_id", sa.String(length=40), nullable=False),
        sa.Column("url", sa.Text(), nullable=True),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("is_enabled", sa.Boolean(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["merchant_id"],
            ["merchants.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_webhook_endpoints_merchant_id", "webhook_endpoints", ["merchant_id"], unique=False)


def _create_checkout_sessions() -> None:
    op.create_table(
        "checkout_sessions",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("merchant_id", sa.String(length=40), nullable=False),
        sa.Column("order_id", sa.String(length=40), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("success_url", sa.Text(), nullable=False),
        sa.Column("cancel_url", sa.Text(), nullable=True),
        sa.Column("line_items", sa.Text(), nullable=False),
        sa.Column("expires_at", UtcTime(), nullable=False),
        sa.Column("completed_at", UtcTime(), nullable=True),
        sa.Column("expired_at", UtcTime(), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["order_id"],
            ["orders.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_checkout_sessions_merchant_id", "checkout_sessions", ["merchant_id"], unique=False)
    op.create_index(
        "ix_checkout_sessions_open",
        "checkout_sessions",
        ["expires_at"],
        unique=False,
        sqlite_where=sa.text("completed_at IS NULL AND expired_at IS NULL"),
        postgresql_where=sa.text("completed_at IS NULL AND expired_at IS NULL"),
    )
    op.create_index("ix_checkout_sessions_order_id", "checkout_sessions", ["order_id"], unique=False)


def _create_payment_attempts() -> None:
    op.create_table(
        "payment_attempts",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("order_id", sa.String(length=40), nullable=False),
        sa.Column("merchant_id", sa.String(length=40), nullable=False),
        sa.Column("processor_config_id", sa.String(length=40), nullable=False),
        sa.Column("processor", sa.String(length=40), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(40), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("is_manual_capture", sa.Boolean(), nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("routing_reasons", sa.Text(), nullable=False),
        sa.Column("processor_reference", sa.String(length=255), nullable=True),
        sa.Column("action", sa.Text(), nullable=True),
        sa.Column("error_code", sa.String(length=80), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("decline_class", sa.String(length=20), nullable=True),
        sa.Column("raw_error_code", sa.String(length=120), nullable=True),
        sa.Column("asked_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("unclear_since", UtcTime(), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["order_id"],
            ["orders.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("order_id", "number", name="uq_payment_attempts_order_number"),
    )
    op.create_index(
        "ix_payment_attempts_reference",
        "payment_attempts",
        ["processor_config_id", "processor_reference"],
        unique=False,
    )
    op.create_index(
        "uq_payment_attempts_one_live",
        "payment_attempts",
        ["order_id"],
        unique=True,
        sqlite_where=sa.text("status IN ('pending', 'requires_action', 'submitting', 'unknown')"),
        postgresql_where=sa.text("status IN ('pending', 'requires_action', 'submitting', 'unknown')"),
    )


def _create_webhook_deliveries() -> None:
    op.create_table(
        "webhook_deliveries",
        sa.Column("event_id", sa.String(length=40), nullable=False),
        sa.Column("endpoint_id", sa.String(length=40), nullable=False),
        sa.Column("merchant_id", sa.String(length=40), nullable=False),
        sa.Column("status", sa.String(40), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("last_attempt_at", UtcTime(), nullable=True),
        sa.Column("delivered_at", UtcTime(), nullable=True),
        sa.Column("last_status_code", sa.Integer(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["endpoint_id"],
            ["webhook_endpoints.id"],
        ),
        sa.ForeignKeyConstraint(
            ["event_id"],
            ["webhook_events.id"],
        ),
        sa.PrimaryKeyConstraint("event_id", "endpoint_id"),
    )
    op.create_index(
        "ix_webhook_deliveries_merchant_id_event_id", "webhook_deliveries", ["merchant_id", "event_id"], unique=False
    )


def _create_refunds() -> None:
    op.create_table(
        "refunds",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("merchant_id", sa.String(length=40), nullable=False),
        sa.Column("order_id", sa.String(length=40), nullable=False),
        sa.Column("attempt_id", sa.String(length=40), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("status", sa.String(40), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("processor_reference", sa.String(length=255), nullable=True),
        sa.Column("error_code", sa.String(length=80), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("asked_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.CheckConstraint("amount_minor > 0", name="ck_refunds_amount"),
        sa.ForeignKeyConstraint(
            ["attempt_id"],
            ["payment_attempts.id"],
        ),
        sa.ForeignKeyConstraint(
            ["order_id"],
            ["orders.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_refunds_order_id", "refunds", ["order_id"], unique=False)
    op.create_index("ix_refunds_reference", "refunds", ["processor_reference"], unique=False)


def _create_transactions() -> None:
    op.create_table(
        "transactions",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("merchant_id", sa.String(length=40), nullable=False),
        sa.Column("order_id", sa.String(length=40), nullable=False),
        sa.Column("attempt_id", sa.String(length=40), nullable=False),
        sa.Column("refund_id", sa.String(length=40), nullable=True),
        sa.Column("type", sa.String(40), nullable=False),
        sa.Column("status", sa.String(40), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("processor", sa.String(length=40), nullable=False),
        sa.Column("processor_transaction_id", sa.String(length=255), nullable=True),
        sa.Column("error_code", sa.String(length=80), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.CheckConstraint("amount_minor >= 0", name="ck_transactions_amount"),
        sa.ForeignKeyConstraint(
            ["attempt_id"],
            ["payment_attempts.id"],
        ),
        sa.ForeignKeyConstraint(
            ["order_id"],
            ["orders.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_transactions_merchant_id", "transactions", ["merchant_id"], unique=False)
    op.create_index("ix_transactions_order_id", "transactions", ["order_id"], unique=False)
