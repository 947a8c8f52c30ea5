"""Migrations: from nothing to exactly the tables, whole or not at all, and never a schema that does not fit."""

import asyncio
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from textwrap import dedent

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import URL, Connection, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from loop.domain.errors import ErrorKind, LoopError
from loop.runtime import opened
from loop.storage.migrate import migrate, schema_state
from loop.storage.tables import metadata
from tests.builders import settings_for

ABOUT_THE_SCHEMA = {"alembic_version", "supported_revisions"}


def differences(connection: Connection) -> list[object]:
    opts = {
        "compare_type": True,
        "compare_server_default": True,
        "include_name": lambda name, *_: name not in ABOUT_THE_SCHEMA,
    }
    context = MigrationContext.configure(connection, opts=opts)
    return [*compare_metadata(context, metadata)]


async def differences_from_tables(database_url: str) -> list[object]:
    """Return how the database differs from the tables that the code declares."""
    if database_url.startswith("sqlite"):
        engine = create_engine(URL.create("sqlite", database=database_url.removeprefix("sqlite:///")))
        with engine.connect() as connection:
            found = differences(connection)
        engine.dispose()
        return found
    async_engine = create_async_engine(database_url.replace("postgresql://", "postgresql+asyncpg://"))
    async with async_engine.connect() as async_connection:
        found = await async_connection.run_sync(differences)
    await async_engine.dispose()
    return found


async def tables_in(database_url: str) -> set[str]:
    if database_url.startswith("sqlite"):
        with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"))) as connection:
            return {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    postgres = await asyncpg.connect(database_url)
    rows = await postgres.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    await postgres.close()
    return {row["tablename"] for row in rows}


async def set_revision(database_url: str, revision: str | None) -> None:
    """Pretend that another version of Loop has migrated the database, or none."""
    change = f"UPDATE alembic_version SET version_num = '{revision}'"  # noqa: S608 - a revision of our own
    if revision is None:
        change = "DELETE FROM alembic_version"
    if database_url.startswith("sqlite"):
        with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"), isolation_level=None)) as connection:
            connection.execute(change)
        return
    postgres = await asyncpg.connect(database_url)
    await postgres.execute(change)
    await postgres.close()


async def test_from_nothing_to_exactly_the_tables(empty_url: str) -> None:
    before = await schema_state(empty_url)
    assert (before.current, before.is_current) == (None, False)
    after = await migrate(empty_url)
    assert after == await schema_state(empty_url)
    assert (after.current, after.wanted, after.is_fit) == (before.wanted, before.wanted, True)
    assert await tables_in(empty_url) == {*metadata.tables, *ABOUT_THE_SCHEMA}
    assert await differences_from_tables(empty_url) == []


async def test_the_comparison_can_fail(empty_url: str) -> None:
    await migrate(empty_url)
    if empty_url.startswith("sqlite"):
        with closing(sqlite3.connect(empty_url.removeprefix("sqlite:///"))) as connection:
            connection.execute("DROP INDEX uq_payment_attempts_one_live")
    else:
        postgres = await asyncpg.connect(empty_url)
        await postgres.execute("DROP INDEX uq_payment_attempts_one_live")
        await postgres.close()
    assert len(await differences_from_tables(empty_url)) == 1


async def test_looking_at_a_file_that_is_not_there_makes_none(tmp_path: Path) -> None:
    path = tmp_path / "absent.db"
    assert (await schema_state(f"sqlite:///{path}")).current is None
    assert not path.exists()


async def test_migrating_twice_is_migrating_once(empty_url: str) -> None:
    first = await migrate(empty_url)
    assert await migrate(empty_url) == first
    assert await differences_from_tables(empty_url) == []


async def test_who_migrate_at_once_take_turns(empty_url: str) -> None:
    script = f"import asyncio; from loop.storage.migrate import migrate; asyncio.run(migrate({empty_url!r}))"
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", script, stderr=asyncio.subprocess.PIPE)
        for _ in range(3)
    ]
    errors = [(await process.communicate())[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    assert await differences_from_tables(empty_url) == []


KILLED = dedent("""
    import asyncio, os, signal, sys
    from sqlalchemy import event
    from sqlalchemy.engine import Engine
    from loop.storage.migrate import migrate

    url, last = sys.argv[1], int(sys.argv[2])
    statements = 0

    @event.listens_for(Engine, "after_cursor_execute")
    def count(connection, cursor, statement, parameters, context, executemany):
        global statements
        statements += statement.lstrip().startswith(("CREATE", "INSERT", "UPDATE"))
        if statements == last:
            os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(migrate(url))
""")


@pytest.mark.parametrize("statement", [1, 2, 12, 25])
async def test_a_migration_that_is_killed_half_way_leaves_nothing_and_can_be_run_again(
    empty_url: str, statement: int
) -> None:
    killed = subprocess.run(  # noqa: ASYNC221 - nothing else runs meanwhile
        [sys.executable, "-c", KILLED, empty_url, str(statement)], check=False, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert await tables_in(empty_url) == set()
    assert (await migrate(empty_url)).is_current
    assert await differences_from_tables(empty_url) == []


async def test_an_old_schema_on_postgres_is_refused_with_the_command_that_helps(
    empty_postgres_url: str, tmp_path: Path
) -> None:
    for prepare in (None, migrate):
        if prepare is not None:
            await prepare(empty_postgres_url)
            await set_revision(empty_postgres_url, None)
        with pytest.raises(LoopError, match="loop migrate") as caught:
            async with opened(settings_for(empty_postgres_url, tmp_path)):
                pass
        assert (caught.value.code, caught.value.kind) == ("schema_outdated", ErrorKind.CONFIGURATION)


async def test_a_migrated_postgres_is_opened(empty_postgres_url: str, tmp_path: Path) -> None:
    await migrate(empty_postgres_url)
    async with opened(settings_for(empty_postgres_url, tmp_path)) as context, context.database.reading():
        pass


async def test_a_url_may_say_what_postgres_tools_understand(empty_postgres_url: str, tmp_path: Path) -> None:
    url = f"{empty_postgres_url}&sslmode=prefer&application_name=loop"
    await migrate(url)
    async with opened(settings_for(url, tmp_path)) as context, context.database.reading():
        pass


async def test_sqlite_is_migrated_when_it_is_opened(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'loop.db'}"
    async with opened(settings_for(url, tmp_path)):
        assert (await schema_state(url)).is_current


async def test_a_schema_of_a_newer_loop_is_left_alone(empty_url: str, tmp_path: Path) -> None:
    await migrate(empty_url)
    await set_revision(empty_url, "2999_01_01_future")
    with pytest.raises(LoopError, match="2999_01_01_future") as caught:
        await migrate(empty_url)
    assert (caught.value.code, caught.value.kind) == ("schema_newer", ErrorKind.CONFIGURATION)
    with pytest.raises(LoopError, match="2999_01_01_future"):
        async with opened(settings_for(empty_url, tmp_path)):
            pass
    assert (await schema_state(empty_url)).current == "2999_01_01_future"


async def test_a_database_that_is_away_is_unavailable(tmp_path: Path) -> None:
    away = "postgresql://nobody@127.0.0.1:1/nothing"
    for act in (migrate, schema_state):
        with pytest.raises(LoopError) as caught:
            await act(away)
        assert (caught.value.code, caught.value.kind) == ("database_unavailable", ErrorKind.UNAVAILABLE)
    with pytest.raises(LoopError, match="database_unavailable"):
        async with opened(settings_for(away, tmp_path)):
            pass


async def test_a_file_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "loop.db").mkdir()
    with pytest.raises(LoopError, match="database_unavailable"):
        await migrate(f"sqlite:///{tmp_path / 'loop.db'}")


async def test_what_is_in_the_tables_stays(sqlite_template: Path, tmp_path: Path) -> None:
    path = shutil.copy(sqlite_template, tmp_path / "loop.db")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        row = ("mer_1", "Zoë", "zoe@example.com", "-", *["2026-03-01T00:00:00.000000Z"] * 2)
        connection.execute(
            "INSERT INTO merchants (id, name, email, password_hash, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?)",
            row,
        )
        await migrate(f"sqlite:///{path}")
        assert connection.execute("SELECT name FROM merchants").fetchall() == [("Zoë",)]
