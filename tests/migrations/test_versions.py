"""Versions: which code runs on whose schema, and what a migration does to those who work meanwhile."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import monotonic

import asyncpg
import pytest

from loop.domain.errors import ErrorKind, LoopError
from loop.runtime import opened
from loop.storage.migrate import LOCK_PAUSE_S, LOCK_WAIT_S, migrate, pending, schema_state
from tests.builders import settings_for
from tests.migrations.test_migrations import KILLED, tables_in
from tests.next_versions import CONTRACTING, EXPANDING, TIME_S, migrate_as, newest_revision, next_version

EXPAND, CONTRACT = (EXPANDING, True), (CONTRACTING, False)
SHELVES = ('op.create_table("more_shelves", sa.Column("id", sa.String(length=40), primary_key=True))', True)


@pytest.mark.parametrize(
    ("migrations", "is_fit"),
    [([EXPAND], True), ([EXPAND, SHELVES], True), ([EXPAND, CONTRACT], False), ([CONTRACT, SHELVES], False)],
    ids=["expanding", "expanding twice", "expanding, contracting", "contracting, expanding"],
)
async def test_an_older_version_runs_on_a_schema_that_was_only_expanded_since(
    database_url: str, tmp_path: Path, migrations: list[tuple[str, bool]], *, is_fit: bool
) -> None:
    async def start(url: str) -> None:
        async with opened(settings_for(url, tmp_path)) as context, context.database.reading():
            pass

    code, said = await migrate_as(next_version(tmp_path / "next", *migrations), database_url)
    assert (code, said) == (0, f"2999_01_{len(migrations):02}_next")
    tables = await tables_in(database_url)
    if is_fit:
        await start(database_url)
        state = await migrate(database_url)
        assert (state.current, state.is_current, state.is_fit, pending(state)) == (said, False, True, [])
    else:
        for attempt in (start, migrate):
            with pytest.raises(LoopError, match=said) as caught:
                await attempt(database_url)
            assert (caught.value.code, caught.value.kind) == ("schema_newer", ErrorKind.CONFIGURATION)
    assert ((await schema_state(database_url)).current, await tables_in(database_url)) == (said, tables)


@pytest.mark.parametrize("statement", [1, 3])
async def test_the_next_version_s_migration_that_is_killed_half_way_leaves_the_schema_as_it_was(
    database_url: str, tmp_path: Path, statement: int
) -> None:
    version, tables, before = next_version(tmp_path / "next", EXPAND), await tables_in(database_url), newest_revision()
    killed = subprocess.run(  # noqa: ASYNC221 - nothing else runs meanwhile
        [sys.executable, "-c", KILLED, database_url, str(statement)], check=False, capture_output=True, env=version
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert await tables_in(database_url) == tables
    state = await schema_state(database_url)
    assert (state.current, state.is_current, "2999_01_01_next" in state.supported) == (before, True, False)
    assert await migrate_as(version, database_url) == (0, "2999_01_01_next")
    assert {before, "2999_01_01_next"} <= (await schema_state(database_url)).supported


async def test_a_plan_says_which_migrations_need_a_stop(postgres_database_url: str, tmp_path: Path) -> None:
    version = next_version(tmp_path / "next", EXPAND, CONTRACT)
    planned = await command(version, postgres_database_url, "migrate", "plan", "--json")
    assert [each["upgrade"] for each in json.loads(planned.stdout)] == ["rolling", "stop all first"]
    status = await command(version, postgres_database_url, "migrate", "status", "--json")
    assert (status.returncode, json.loads(status.stdout)) == (
        1,
        {
            "current": newest_revision(),
            "wanted": "2999_01_02_next",
            "isCurrent": False,
            "mayRun": False,
            "upgrade": "stop all first",
        },
    )
    refused = await command(version, postgres_database_url, "jobs", "list")
    assert refused.stderr.startswith("schema_outdated: ")


async def command(version: Mapping[str, str], database_url: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of another version."""
    secrets = {"JWT_SECRET": "canary that signs " * 3, "ENCRYPTION_KEY": "canary that seals " * 3}
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "loop", *arguments],
        env={**version, **secrets, "DATABASE_URL": database_url},
        capture_output=True,
        text=True,
        timeout=TIME_S,
        check=False,
    )


async def test_what_running_processes_need_is_not_taken_away(postgres_database_url: str, tmp_path: Path) -> None:
    contracting = next_version(tmp_path / "next", CONTRACT)
    async with opened(settings_for(postgres_database_url, tmp_path)) as context, context.database.reading():
        code, said = await migrate_as(contracting, postgres_database_url)
        assert (code, "schema_in_use: A migration takes away" in said) == (1, True), said
        assert (await schema_state(postgres_database_url)).current == newest_revision()
    assert await migrate_as(contracting, postgres_database_url) == (0, "2999_01_01_next")


@asynccontextmanager
async def reading(database_url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """Read a table in a transaction that does not end, as a long report or a backup does."""
    connection = await asyncpg.connect(database_url)
    await connection.execute("BEGIN; SELECT 1 FROM orders")
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def writing(database_url: str) -> AsyncIterator[list[float]]:
    """Write to that table again and again; yield how long each write took, in seconds."""
    connection = await asyncpg.connect(database_url)
    took: list[float] = []

    async def write() -> None:
        while True:
            began = monotonic()
            await connection.execute("UPDATE orders SET needs_review = false WHERE id = 'ord_1'")
            took.append(monotonic() - began)
            await asyncio.sleep(0.01)

    writer = asyncio.create_task(write())
    try:
        yield took
    finally:
        writer.cancel()
        with suppress(asyncio.CancelledError):
            await writer
        await connection.close()


async def test_a_migration_gives_up_a_table_that_is_in_use_and_writers_go_on(
    postgres_database_url: str, tmp_path: Path
) -> None:
    version, tries = next_version(tmp_path / "next", EXPAND), 2
    async with reading(postgres_database_url), writing(postgres_database_url) as took:
        began = monotonic()
        code, said = await migrate_as(version, postgres_database_url, tries=tries)
        lasted = monotonic() - began
    assert (code, "schema_locked: The migration needs a table" in said) == (1, True), said
    assert tries * LOCK_WAIT_S + LOCK_PAUSE_S <= lasted < TIME_S
    assert sum(each > LOCK_WAIT_S / 2 for each in took) == tries, (
        "each try holds writers up, and between two they go on"
    )
    assert (await schema_state(postgres_database_url)).current == newest_revision()


async def test_a_migration_goes_through_once_the_table_is_let_go(postgres_database_url: str, tmp_path: Path) -> None:
    async with reading(postgres_database_url) as reader:
        migrating = asyncio.create_task(
            command(next_version(tmp_path / "next", EXPAND), postgres_database_url, "migrate", "apply")
        )
        for tried in (True, False):  # it waits, and has given up for now
            async with asyncio.timeout(TIME_S):
                while tried != await is_waiting(postgres_database_url):  # noqa: ASYNC110 - another process does
                    await asyncio.sleep(0.02)
        await reader.execute("ROLLBACK")
        done = await migrating
    assert (done.returncode, done.stdout) == (0, "The schema is 2999_01_01_next.\n"), done.stderr
    assert "migration.waits" in done.stderr


async def is_waiting(database_url: str) -> bool:
    """Tell whether anybody waits for a lock."""
    connection = await asyncpg.connect(database_url)
    found = await connection.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    await connection.close()
    return bool(found)
