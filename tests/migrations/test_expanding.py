"""Expanding migrations: the code before them runs on, and a migration that says so and is none is found out."""

import shutil
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from loop.storage.migrate import SchemaState, _state, _with_connection
from tests.migrations.expansions import contractions, emptied
from tests.next_versions import EXPANDING, PACKAGE, add_migration, newest_revision

MIGRATIONS = PACKAGE / "storage" / "migrations"
NEXT = "2999_01_01_next"


def config_of(migrations: Path) -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations))
    return config


async def found_in(database_url: str, config: Config, revisions: list[str]) -> dict[str, list[str]]:
    """Apply migrations, each of which is the next one, and return what the code before each would notice."""
    found: dict[str, list[str]] = {}

    def apply(connection: Connection) -> SchemaState:
        for revision in revisions:
            found[revision] = contractions(connection, config, revision)
        return _state(connection)

    await _with_connection(database_url, apply)
    return found


async def test_migrations_that_say_that_they_only_expand_do(empty_url: str) -> None:
    config = config_of(MIGRATIONS)
    scripts = [*reversed([*ScriptDirectory.from_config(config).walk_revisions()])]
    found = await found_in(empty_url, config, [each.revision for each in scripts])
    expanding = [each.revision for each in scripts if getattr(each.module, "is_expanding", False)]
    assert {revision: found[revision] for revision in expanding if found[revision]} == {}
    assert found["2026_11_26_modes"], "which changes rows and keys"


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MIGRATIONS, tmp_path / "migrations"))


async def found_by(database_url: str, migrations: Path, upgrade: str) -> list[str]:
    add_migration(migrations / "versions", NEXT, upgrade, after=newest_revision(), is_expanding=True)
    return (await found_in(database_url, config_of(migrations), [NEXT]))[NEXT]


REFERENCE = """
op.create_table("pages", sa.Column("id", sa.String(length=40), sa.ForeignKey("{}.id"{}), primary_key=True))
"""


@pytest.mark.parametrize(
    "upgrade",
    [
        EXPANDING,
        'op.execute("ALTER TABLE orders ADD COLUMN tip BIGINT DEFAULT 0 NOT NULL CHECK (tip >= 0)")',
        REFERENCE.format("orders", ""),
        REFERENCE.format("webhook_events", ", ondelete='CASCADE'"),
        'op.execute("INSERT INTO reconciliation_runs SELECT * FROM reconciliation_runs WHERE false")',
    ],
)
async def test_what_only_adds_is_let_through(database_url: str, migrations: Path, upgrade: str) -> None:
    assert await found_by(database_url, migrations, upgrade) == []


BATCH = "with op.batch_alter_table('orders') as batch:\n    batch."


@pytest.mark.parametrize(
    ("upgrade", "finding"),
    [
        ('op.drop_table("routing_rules")', "routing_rules is gone"),
        ('op.rename_table("routing_rules", "rules")', "routing_rules is gone"),
        ('op.drop_column("orders", "return_url")', "orders.return_url is gone"),
        (f"{BATCH}alter_column('country', new_column_name='land')", "orders.country is gone"),
        (f"{BATCH}alter_column('country', nullable=False)", "orders.country was "),
        (f"{BATCH}alter_column('country', type_=sa.String(length=1))", "orders.country was "),
        (f"{BATCH}alter_column('attempt_count', server_default=None)", "orders.attempt_count was "),
        (f"{BATCH}add_column(sa.Column('shelf', sa.Integer(), nullable=False))", "orders.shelf must be given"),
        (f"{BATCH}create_check_constraint('ck_x', 'amount_minor > 10')", "orders has to fulfil "),
        (f"{BATCH}create_unique_constraint('uq_x', ['external_id'])", "orders has another key: ('external_id',)"),
        (f"{BATCH}create_foreign_key('fk_x', 'disputes', ['processor'], ['id'])", "orders has another foreign key on "),
        ("op.drop_index('uq_jobs_dedupe_key', 'jobs')", "jobs has another key: ('dedupe_key',)"),
        ("op.create_index('ix_x', 'orders', ['country'])", "orders has another index: ('ix_x', 'country'"),
        ("op.execute(\"UPDATE orders SET country = 'DE'\")", "rows of orders are changed"),
        ('op.execute("DELETE FROM jobs")', "rows of jobs are changed"),
        (REFERENCE.format("webhook_events", ""), "pages keeps rows of webhook_events by ['id']"),
    ],
)
async def test_what_the_code_before_would_notice_is_found(
    database_url: str, migrations: Path, upgrade: str, finding: str
) -> None:
    found = await found_by(database_url, migrations, upgrade)
    assert [each for each in found if each.startswith(finding)], found


TRIGGERS = {
    "sqlite": "CREATE TRIGGER no AFTER UPDATE ON orders BEGIN SELECT RAISE(ABORT, 'no'); END",
    "postgres": "CREATE TRIGGER no BEFORE UPDATE ON orders "
    "FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
}


async def test_a_trigger_on_a_table_that_was_there_is_found(database_url: str, migrations: Path) -> None:
    trigger = TRIGGERS[database_url.partition(":")[0].removesuffix("ql")]
    assert await found_by(database_url, migrations, f"op.execute({trigger!r})") == ["orders has another trigger: no"]


async def test_a_table_that_is_written_anew_is_found(postgres_database_url: str, migrations: Path) -> None:
    upgrade = 'op.execute("ALTER TABLE orders ADD COLUMN luck DOUBLE PRECISION DEFAULT random() NOT NULL")'
    assert await found_by(postgres_database_url, migrations, upgrade) == ["orders is written anew"]


def test_the_tables_that_rows_are_deleted_from_are_known() -> None:
    assert {"jobs", "webhook_events", "idempotency_keys"} <= emptied()
    assert emptied().isdisjoint({"orders", "payment_attempts", "refunds", "transactions"})
