"""Commands on files that are damaged, another user's or not to be written: an error that says what to do."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.e2e.shells import Commands, commands_in

EMAIL = "me@example.com"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def commands(home: Path) -> Commands:
    made = commands_in(home)
    made.ok("merchant", "create", "--name", "My shop", "--email", EMAIL)
    return made


@contextmanager
def mode_of(path: Path, mode: int) -> Iterator[None]:
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        yield
    finally:
        path.chmod(before)


def test_a_file_that_is_no_database_is_named_and_a_backup_replaces_it(
    commands: Commands, home: Path, tmp_path: Path
) -> None:
    commands.ok("backup", str(tmp_path / "loop.backup"))
    (home / "loop.db").write_bytes(b"no database" * 1000)
    for command in (
        ("merchant", "list"),
        ("serve", "--port", "1"),
        ("migrate", "status"),
        ("backup", str(tmp_path / "none")),
    ):
        code, said = commands.refused(*command)
        assert (code, said.partition(":")[0]) == (9, "database_damaged"), command
        assert str(home / "loop.db") in said
        assert "loop restore" in said
    code, said = commands.refused("doctor")
    assert (code, "broken  database" in said, "loop restore" in said) == (1, True, True)
    assert commands.refused("restore", str(tmp_path / "loop.backup"))[0] == 9
    commands.ok("restore", str(tmp_path / "loop.backup"), "--replace")
    assert EMAIL in commands.ok("merchant", "list")
    assert [path for path in home.glob("loop.db.2*") if path.read_bytes().startswith(b"no database")]


def test_a_malformed_page_is_named(commands: Commands, home: Path) -> None:
    with closing(sqlite3.connect(home / "loop.db")) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = database.execute("PRAGMA page_size").fetchone()[0]
        (page,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'merchants'").fetchone()
    with (home / "loop.db").open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    code, said = commands.refused("merchant", "list")
    assert (code, said.partition(":")[0]) == (9, "database_damaged")
    code, said = commands.refused("doctor")
    assert (code, "broken  database" in said, "loop restore" in said) == (1, True, True)


def test_a_directory_that_this_user_may_not_enter_is_named(commands: Commands, home: Path) -> None:
    with mode_of(home, 0o000):
        for command in (("merchant", "list"), ("init",), ("health",), ("migrate", "status")):
            code, said = commands.refused(*command)
            assert (code, said.partition(":")[0]) == (9, "unreadable_config"), command
            assert str(home) in said
        code, said = commands.refused("doctor")
        assert (code, "broken  settings    unreadable_config" in said) == (1, True)


def test_a_directory_that_this_user_may_not_write_is_named(commands: Commands, home: Path) -> None:
    (home / "loop.db.keys.lock").unlink()
    with mode_of(home, 0o500):
        for command in (("merchant", "list"), ("serve", "--port", "1")):
            code, said = commands.refused(*command)
            assert (code, said.partition(":")[0]) == (9, "unwritable_data_dir"), command
        code, said = commands.refused("doctor")
        assert (code, f"This user may not write to {home}" in said) == (1, True)


def test_another_user_s_lock_is_named(commands: Commands, home: Path) -> None:
    lock = home / "loop.db.keys.lock"
    with mode_of(lock, 0o000):
        for command in (("keys", "status"), ("merchant", "list")):
            code, said = commands.refused(*command)
            assert (code, said.partition(":")[0]) == (9, "unwritable_data_dir"), command
            assert str(lock) in said
        assert commands.refused("doctor")[0] == 1


@pytest.mark.parametrize("mode", [0o000, 0o400])
def test_a_database_that_this_user_may_not_write_is_named_as_a_file(commands: Commands, home: Path, mode: int) -> None:
    with mode_of(home / "loop.db", mode):
        code, said = commands.refused("merchant", "create", "--name", "Shop", "--email", "other@example.com")
        assert (code, said.partition(":")[0]) == (8, "database_unavailable")
        assert "server" not in said
        code, said = commands.refused("doctor")
        assert (code, f"This user may not write to {home}/loop.db." in said) == (1, True)
        assert "Start the database" not in said


def test_commands_that_look_make_nothing(home: Path) -> None:
    fresh = commands_in(home)
    for command in (("doctor",), ("config", "explain"), ("migrate", "plan")):
        fresh.ok(*command)
    for command in (("health",), ("migrate", "status"), ("backup", str(home.with_name("none")))):
        assert fresh.run(*command).returncode in {1, 8, 9}, command
    assert not home.exists()
