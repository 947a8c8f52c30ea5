"""The migration to modes: what is there goes where it was paid, and keys go on reaching their merchant's orders."""

from datetime import UTC, datetime
from typing import Any

from alembic import command
from sqlalchemy import Connection, bindparam, text

from loop.storage.columns import UtcTime
from loop.storage.migrate import SchemaState, _config, _state, _with_connection, migrate

BEFORE = "2026_11_26_webhook_endpoints"
THEN = datetime(2026, 3, 1, tzinfo=UTC)


def insert(connection: Connection, table: str, **values: object) -> None:
    names = ", ".join(values)
    marks = ", ".join(f":{name}" for name in values)
    given = [bindparam(name, value, UtcTime() if value is THEN else None) for name, value in values.items()]
    connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({marks})").bindparams(*given))  # noqa: S608


def fill(connection: Connection) -> None:
    """Make a merchant with a live and a test account, and one without a live one, as they were before."""
    then = {"created_at": THEN, "updated_at": THEN}
    for number in (1, 2):
        owner = f"mer_{number}"
        insert(connection, "merchants", id=owner, name="Shop", email=owner, password_hash="-", **then)
        insert(
            connection, "api_keys", id=f"key_{number}", merchant_id=owner, name="till", prefix="sk_live_",
            secret_hash=owner, mode="live", scopes='["*"]', created_at=THEN,
        )  # fmt: skip
        insert(
            connection, "refresh_tokens", token_hash=owner, family_id=f"fam_{number}", merchant_id=owner,
            is_used=number == 1, expires_at=THEN, created_at=THEN,
        )  # fmt: skip
        insert(
            connection, "idempotency_keys", merchant_id=owner, key="k", request_hash="h", status_code=201, answer="{}",
            locked_until=THEN, created_at=THEN,
        )  # fmt: skip
    for config_id, owner, processor, is_test in (
        ("pcf_live", "mer_1", "stripe", False),
        ("pcf_test", "mer_1", "sandbox", True),
        ("pcf_only", "mer_2", "sandbox", True),
    ):
        insert(
            connection, "processor_configs", id=config_id, merchant_id=owner, processor=processor, credentials="-",
            is_enabled=True, priority=1, is_test_mode=is_test, **then,
        )  # fmt: skip
    for order_id, owner, paid_at in (
        ("ord_live", "mer_1", "pcf_live"),
        ("ord_test", "mer_1", "pcf_test"),
        ("ord_new", "mer_1", None),
        ("ord_other", "mer_2", None),
    ):
        insert(
            connection, "orders", id=order_id, merchant_id=owner, external_id="x", amount_minor=100, currency="EUR",
            status="pending", is_manual_capture=False, metadata="{}", needs_review=False,
            attempt_count=0 if paid_at is None else 1, **then,
        )  # fmt: skip
        insert(
            connection, "webhook_events", id=f"evt_{order_id}", merchant_id=owner, order_id=order_id,
            event_type="order.created", body="{}", created_at=THEN,
        )  # fmt: skip
        if paid_at is not None:
            insert(
                connection, "payment_attempts", id=f"att_{order_id}", order_id=order_id, merchant_id=owner,
                processor_config_id=paid_at, processor="x", number=1, status="captured", amount_minor=100,
                currency="EUR", is_manual_capture=False, request="{}", routing_reasons="[]", **then,
            )  # fmt: skip


async def test_what_is_there_goes_to_the_mode_that_it_was_paid_in(empty_url: str) -> None:
    found: dict[str, list[Any]] = {}

    def there_and_back(connection: Connection) -> SchemaState:
        config = _config()
        config.attributes["connection"] = connection
        command.downgrade(config, BEFORE)
        fill(connection)
        command.upgrade(config, "head")
        for name, query in (
            ("orders", "SELECT id FROM orders WHERE NOT is_test ORDER BY id"),
            ("events", "SELECT id FROM webhook_events WHERE NOT is_test ORDER BY id"),
            ("live keys", "SELECT id FROM api_keys WHERE mode = 'live'"),
            ("idempotency", "SELECT merchant_id FROM idempotency_keys WHERE NOT is_test"),
            ("sessions", "SELECT id FROM sign_in_sessions ORDER BY id"),
            ("used", "SELECT family_id FROM refresh_tokens WHERE used_at IS NOT NULL"),
            ("accounts", "SELECT id FROM processor_configs ORDER BY id"),
        ):
            found[name] = [row[0] for row in connection.execute(text(query))]
        return _state(connection)

    await migrate(empty_url)
    assert (await _with_connection(empty_url, there_and_back)).is_current
    assert found == {
        "orders": ["ord_live", "ord_new"],
        "events": ["evt_ord_live", "evt_ord_new"],
        "live keys": ["key_1"],
        "idempotency": ["mer_1"],
        "sessions": ["fam_1", "fam_2"],
        "used": ["fam_1"],
        "accounts": ["pcf_live", "pcf_only", "pcf_test"],
    }
