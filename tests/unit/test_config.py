"""The settings: which layer wins, what is refused and how, how secrets come to be, and that the documents agree."""

import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path

import pytest

from loop.config import SETTINGS, Secret, Settings, example_toml, load, reference_markdown
from loop.config_files import drop_earlier_keys, rotate_generated_key
from loop.config_forms import MASK
from loop.domain.errors import ErrorKind, LoopError

ROOT = Path(__file__).parents[2]
JWT = "jT9vQ2mX7kR4wZ8nB5cL1hF6dS3gP0aY"
KEY = "eK8pW3xN6uM1qV9tJ4rC7bH2zG5fD0sE"
POSTGRES = "postgresql://loop:hunter2-canary@db.internal:5432/loop"


def build(tmp_path: Path, environ: Mapping[str, str] = {}, /, **flags: object) -> Settings:
    """Return settings loaded with a data directory of the test's own and no other environment."""
    return load(flags, {"LOOP_DATA_DIR": str(tmp_path / "loop"), **environ})


def refuse(tmp_path: Path, environ: Mapping[str, str] = {}, /, **flags: object) -> LoopError:
    """Return the refusal that loading must end with."""
    with pytest.raises(LoopError) as caught:
        build(tmp_path, environ, **flags)
    assert caught.value.kind is ErrorKind.CONFIGURATION
    return caught.value


def write_toml(tmp_path: Path, text: str) -> Path:
    """Return the configuration file of the data directory, now holding `text`."""
    (tmp_path / "loop").mkdir(exist_ok=True)
    path = tmp_path / "loop" / "config.toml"
    path.write_text(text)
    return path


def test_each_layer_yields_to_the_one_above_it(tmp_path: Path) -> None:
    assert build(tmp_path).port == 8000
    path = write_toml(tmp_path, "port = 1001")
    assert build(tmp_path).port == 1001
    assert build(tmp_path, {"PORT": "1002"}).port == 1002
    assert build(tmp_path, {"PORT": "1002", "LOOP_PORT": "1003"}).port == 1003
    assert build(tmp_path, {"PORT": "1002", "LOOP_PORT": "1003"}, port=1004).port == 1004
    assert build(tmp_path, {"LOOP_PORT": "", "PORT": "1002"}, port=None).port == 1002
    sources = {
        each.name: each.source for each in build(tmp_path, {"LOOP_LOG_LEVEL": "debug"}, host="127.0.0.2").explain()
    }
    assert sources["host"] == "flag --host"
    assert sources["log_level"] == "environment variable LOOP_LOG_LEVEL"
    assert sources["port"] == str(path)
    assert sources["order_ttl_s"] == "default"


def test_the_file_is_named_by_flag_or_environment_or_lies_in_the_data_directory(tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text('port = 2001\nwebhook_allow_networks = ["127.0.0.0/8"]')
    write_toml(tmp_path, "port = 1001")
    assert build(tmp_path, {"LOOP_CONFIG": str(other)}).port == 2001
    assert build(tmp_path, config=other).webhook_allow_networks == (ip_network("127.0.0.0/8"),)
    absent = refuse(tmp_path, {"LOOP_CONFIG": str(tmp_path / "absent.toml")})
    assert absent.code == "unreadable_config"
    assert "absent.toml cannot be read: No such file" in absent.message
    other.write_text("port = ")
    assert "is not a TOML file" in refuse(tmp_path, config=other).message


def test_defaults_follow_what_they_are_made_from(tmp_path: Path) -> None:
    settings = load({}, {"HOME": str(tmp_path)})
    assert settings.data_dir == tmp_path / ".local/share/loop"
    assert settings.database_url == f"sqlite:///{tmp_path}/.local/share/loop/loop.db"
    assert settings.sqlite_path == tmp_path / ".local/share/loop/loop.db"
    assert settings.checkout_base_url == "http://127.0.0.1:8000"
    assert load({}, {"XDG_DATA_HOME": str(tmp_path / "xdg")}).data_dir == tmp_path / "xdg/loop"
    assert build(tmp_path, {"PORT": "9000"}, host="::").checkout_base_url == "http://127.0.0.1:9000"
    assert build(tmp_path, host="::1").checkout_base_url == "http://[::1]:8000"
    assert build(tmp_path, {"CHECKOUT_BASE_URL": "https://pay.example/"}).checkout_base_url == "https://pay.example"


def test_values_from_the_environment_take_their_types(tmp_path: Path) -> None:
    settings = build(
        tmp_path,
        {
            "LOOP_OPEN_REGISTRATION": "false",
            "CORS_ORIGINS": "https://Shop.example, http://localhost:3000",
            "LOOP_WEBHOOK_ALLOW_NETWORKS": "127.0.0.0/8,::1/128",
            "LOOP_ENCRYPTION_KEYS_PREVIOUS": f"{JWT},{KEY}",
            "LOOP_LOG_FILE": "logs/loop.log",
            "LOG_LEVEL": "WARNING",
        },
    )
    assert settings.is_registration_open is False
    assert settings.cors_origins == ("https://shop.example", "http://localhost:3000")
    assert settings.webhook_allow_networks == (ip_network("127.0.0.0/8"), ip_network("::1/128"))
    assert [key.reveal() for key in settings.encryption_keys_previous] == [JWT, KEY]
    assert settings.log_file == Path.cwd() / "logs/loop.log"
    assert settings.log_level == "warning"
    assert build(tmp_path, {"CORS_ORIGINS": "*"}).cors_origins == ("*",)


def test_a_database_is_a_sqlite_file_or_postgres(tmp_path: Path) -> None:
    secrets = {"JWT_SECRET": JWT, "ENCRYPTION_KEY": KEY}
    postgres = build(tmp_path, {"DATABASE_URL": POSTGRES.replace("postgresql", "postgres"), **secrets})
    assert postgres.database_url == POSTGRES
    assert postgres.sqlite_path is None
    assert not postgres.is_sqlite
    assert not (tmp_path / "loop").exists()
    socket = "postgresql:///loop?host=/run/postgresql"
    assert build(tmp_path, {"DATABASE_URL": socket, **secrets}).database_url == socket
    assert build(tmp_path, {"DATABASE_URL": "sqlite:///shop.db"}).sqlite_path == Path.cwd() / "shop.db"
    assert build(tmp_path, {"DATABASE_URL": f"sqlite:///{tmp_path}/shop.db"}).sqlite_path == tmp_path / "shop.db"
    elsewhere = refuse(tmp_path, {"DATABASE_URL": f"sqlite:///{tmp_path}/no/shop.db"})
    assert "whose directory is not there. Make it first." in elsewhere.message


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORT", "eighty"),
        ("PORT", "0"),
        ("PORT", "65536"),
        ("LOOP_OPEN_REGISTRATION", "maybe"),
        ("LOG_LEVEL", "loud"),
        ("LOOP_LOG_FORMAT", "xml"),
        ("LOOP_PROCESSOR_TIMEOUT_S", "30"),
        ("LOOP_WEBHOOK_TIMEOUT_S", "30"),
        ("LOOP_JOB_CONCURRENCY", "0"),
        ("LOOP_HOST", "a\nb"),
        ("DATABASE_URL", "mysql://loop:canary@db/loop"),
        ("DATABASE_URL", "postgresql://loop:canary@db:port/loop"),
        ("DATABASE_URL", "postgresql:///canary"),
        ("DATABASE_URL", "sqlite:///:memory:"),
        ("DATABASE_URL", "sqlite://canary.db"),
        ("REDIS_URL", "http://:canary@localhost"),
        ("REDIS_URL", "redis://"),
        ("STRIPE_API_BASE", "stripe.com"),
        ("STRIPE_API_BASE", "https://user:pw@stripe.com"),
        ("CHECKOUT_BASE_URL", "https://pay.example?x=1"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "grpc://collector"),
        ("CORS_ORIGINS", "https://shop.example/path"),
        ("CORS_ORIGINS", "https://shop.example,*"),
        ("CORS_ORIGINS", "shop.example"),
        ("LOOP_WEBHOOK_ALLOW_NETWORKS", "127.0.0.1/8"),
        ("LOOP_WEBHOOK_ALLOW_NETWORKS", "localhost"),
        ("LOOP_ENCRYPTION_KEYS_PREVIOUS", f"{KEY},canary"),
        ("LOOP_METRICS_TOKEN", "canary"),
        ("LOOP_OTEL_SAMPLE_PERCENT", "101"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "canary"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-token=canary,x-other"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-token=canary\r\nx-other: 1"),
    ],
)
def test_a_value_of_the_wrong_form_is_refused_with_what_it_must_be(tmp_path: Path, variable: str, value: str) -> None:
    error = refuse(tmp_path, {variable: value})
    assert error.code == "invalid_setting"
    assert f"(environment variable {variable}) must be " in error.message
    assert "canary" not in str(error)
    name = error.message.partition(" ")[0]
    assert SETTINGS[name].form.words in error.message


@pytest.mark.parametrize(
    "line", ['port = "8000"', "port = true", "port = 80.5", 'is_registration_open = "true"', "cors_origins = [1]"]
)
def test_the_file_must_use_the_right_types(tmp_path: Path, line: str) -> None:
    path = write_toml(tmp_path, line)
    error = refuse(tmp_path)
    assert error.code == "invalid_setting"
    assert str(path) in error.message


@pytest.mark.parametrize(
    ("line", "near"),
    [("prot = 1", "port"), ('databse_url = "x"', "database_url"), ("[logs]\nlevel = 1", "log"), ('config = ""', "")],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(tmp_path: Path, line: str, near: str) -> None:
    path = write_toml(tmp_path, line)
    error = refuse(tmp_path)
    assert error.code == "unknown_setting"
    assert str(path) in error.message
    assert f"Did you mean {near}" in error.message


def test_an_unknown_flag_is_refused(tmp_path: Path) -> None:
    assert refuse(tmp_path, prot=1).message == "prot (flag) is no setting. Did you mean port?"


def test_contradictions_are_refused_with_what_to_do(tmp_path: Path) -> None:
    redis = refuse(tmp_path, {"REDIS_URL": "redis://localhost"})
    assert redis.code == "contradicting_settings"
    assert "Set database_url to postgresql://..., or remove redis_url." in redis.message
    tokens = refuse(tmp_path, {"LOOP_ACCESS_TOKEN_TTL_S": "7200", "LOOP_REFRESH_TOKEN_TTL_S": "3600"})
    assert tokens.code == "contradicting_settings"


@pytest.mark.parametrize(
    ("secret", "reason"),
    [
        ("short", "has fewer than 32 characters"),
        ("x" * 64, "has fewer than 8 different characters"),
        ("abcdefg" * 6, "has fewer than 8 different characters"),
        ("change-me-to-something-long-and-random", "is a well-known placeholder"),
        ("development-secret-Change-In-Production", "is a well-known placeholder"),
        ("Your_Super_Secret_JWT_Key_For_The_Shop", "is a well-known placeholder"),
    ],
)
@pytest.mark.parametrize("variable", ["JWT_SECRET", "ENCRYPTION_KEY"])
def test_a_weak_secret_is_refused_without_being_told(tmp_path: Path, variable: str, secret: str, reason: str) -> None:
    error = refuse(tmp_path, {variable: secret})
    assert error.code == "weak_secret"
    assert error.message.startswith(f"{variable.lower()} (environment variable {variable}) {reason}")
    assert "openssl rand -hex 32" in error.message
    assert secret not in error.message


def test_one_secret_may_not_serve_as_both(tmp_path: Path) -> None:
    assert "are equal" in refuse(tmp_path, {"JWT_SECRET": JWT, "ENCRYPTION_KEY": JWT}).message


def test_postgres_needs_configured_secrets(tmp_path: Path) -> None:
    error = refuse(tmp_path, {"DATABASE_URL": POSTGRES, "JWT_SECRET": ""})
    assert error.code == "missing_secret"
    assert "set jwt_secret and encryption_key, to the same value in every process" in error.message
    assert "openssl rand -hex 32" in error.message
    assert "set encryption_key," in refuse(tmp_path, {"DATABASE_URL": POSTGRES, "JWT_SECRET": JWT}).message
    assert not (tmp_path / "loop").exists()


def test_whoever_only_looks_makes_nothing(tmp_path: Path) -> None:
    environ = {"LOOP_DATA_DIR": str(tmp_path / "loop")}
    looked = load({}, environ, makes=False)
    assert looked.sources["jwt_secret"] == f"{tmp_path}/loop/secrets.toml, not made yet"
    assert not (tmp_path / "loop").exists()
    made = build(tmp_path)
    assert load({}, environ, makes=False).jwt_secret == made.jwt_secret != looked.jwt_secret


def test_sqlite_generates_secrets_once_for_the_owner_only(tmp_path: Path) -> None:
    first = build(tmp_path, {"JWT_SECRET": "", "LOOP_ENCRYPTION_KEY": ""})
    path = tmp_path / "loop" / "secrets.toml"
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]
    for secret in (first.jwt_secret, first.encryption_key):
        assert re.fullmatch("[0-9a-f]{64}", secret.reveal())
    assert build(tmp_path) == first
    assert first.sources["jwt_secret"] == str(path)
    mixed = build(tmp_path, {"JWT_SECRET": JWT})
    assert mixed.jwt_secret.reveal() == JWT
    assert mixed.encryption_key == first.encryption_key


def test_earlier_keys_may_stand_beside_the_generated_one(tmp_path: Path) -> None:
    build(tmp_path)
    path = tmp_path / "loop" / "secrets.toml"
    path.write_text(path.read_text() + f'encryption_keys_previous = ["{KEY}"]\n')
    assert build(tmp_path).encryption_keys_previous == (Secret(KEY),)


def test_keys_are_loop_s_own_only_where_none_of_them_is_configured(tmp_path: Path) -> None:
    path = tmp_path / "loop" / "secrets.toml"
    assert build(tmp_path).generated_keys_path == path
    for configured in ({"ENCRYPTION_KEY": KEY}, {"LOOP_ENCRYPTION_KEYS_PREVIOUS": KEY}):
        assert build(tmp_path, configured).generated_keys_path is None


def test_a_rotated_secrets_file_is_the_owner_s_and_keeps_the_earlier_keys_until_they_are_dropped(
    tmp_path: Path,
) -> None:
    first = build(tmp_path)
    path = tmp_path / "loop" / "secrets.toml"
    keys = [first.encryption_key, *(Secret(rotate_generated_key(path)) for _ in range(2))]
    rotated = build(tmp_path)
    assert (rotated.encryption_key, rotated.encryption_keys_previous) == (keys[2], (keys[1], keys[0]))
    assert rotated.jwt_secret == first.jwt_secret
    drop_earlier_keys(path)
    assert (build(tmp_path).encryption_key, build(tmp_path).encryption_keys_previous) == (keys[2], ())
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


RACER = """
import sys, time
from loop.config import load
print(flush=True)
start_s = float(sys.stdin.readline())
for turn in range(150):
    while time.monotonic() < start_s + turn * 0.003: pass  # all racers begin each turn in the same instant
    made = load({}, {"LOOP_DATA_DIR": f"{sys.argv[1]}/{turn}"})
    print(made.jwt_secret.reveal(), made.encryption_key.reveal())
"""


def test_processes_that_start_together_agree_on_one_secret(tmp_path: Path) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for _ in range(2)
    ]
    for racer in racers:
        assert racer.stdout is not None
        racer.stdout.readline()  # it has imported what it needs
    start = str(time.monotonic() + 0.05)
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write(f"{start}\n")
        racer.stdin.flush()
    first, second = (racer.communicate(timeout=30)[0].split() for racer in racers)
    assert [racer.returncode for racer in racers] == [0, 0]
    assert first == second
    assert len(set(first)) == 300


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_secrets_that_others_may_read_are_refused(tmp_path: Path, mode: int) -> None:
    build(tmp_path)
    path = tmp_path / "loop" / "secrets.toml"
    path.chmod(mode)
    error = refuse(tmp_path)
    assert error.code == "secrets_exposed"
    assert f"chmod 600 {path}" in error.message


def test_a_database_without_its_secrets_is_refused(tmp_path: Path) -> None:
    build(tmp_path)
    path = tmp_path / "loop" / "secrets.toml"
    kept = path.read_text()
    path.unlink()
    (tmp_path / "loop" / "loop.db").write_bytes(b"SQLite format 3")
    error = refuse(tmp_path)
    assert error.code == "missing_secret"
    assert f"Bring back {path}" in error.message
    path.write_text(kept.splitlines()[1])
    path.chmod(0o600)
    assert "has no encryption_key" in refuse(tmp_path).message


def test_a_data_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    error = refuse(tmp_path, data_dir=tmp_path / "file" / "loop")
    assert error.code == "unwritable_data_dir"
    assert "Set data_dir to a directory you may write." in error.message


def test_no_secret_is_shown(tmp_path: Path) -> None:
    settings = build(
        tmp_path,
        {
            "DATABASE_URL": f"{POSTGRES}?sslpassword=canary-two&sslmode=require",
            "REDIS_URL": "rediss://:canary-three@cache:6379/0",
            "JWT_SECRET": JWT,
            "ENCRYPTION_KEY": KEY,
            "LOOP_ENCRYPTION_KEYS_PREVIOUS": f"{JWT[::-1]},{KEY[::-1]}",
            "LOOP_METRICS_TOKEN": "canary of the metrics 0123456789abcdef",
            "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Basic canary==",
        },
    )
    shown = f"{settings} {settings!r} {settings.explain()} {settings.jwt_secret} {[settings.encryption_key]}"
    for secret in ("canary", JWT, KEY, JWT[::-1], KEY[::-1]):
        assert secret not in shown
    values = {each.name: each.value for each in settings.explain()}
    assert values["database_url"] == (
        "postgresql://loop:********@db.internal:5432/loop?sslpassword=********&sslmode=require"
    )
    assert values["redis_url"] == "rediss://:********@cache:6379/0"
    assert values["jwt_secret"] == values["encryption_key"] == MASK
    assert values["encryption_keys_previous"] == "********, ********"
    assert settings.database_url.startswith(POSTGRES)


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("database_url", "postgresql:///loop?host=/run/postgresql&user=loop&password={}"),
        ("database_url", "postgresql:///loop?password={}&host=/run/postgresql"),
        ("database_url", "postgresql://loop:{}@/loop?host=/run/postgresql"),
        ("redis_url", "redis://cache:6379/0?password={}"),
        ("redis_url", "unix://loop:{}@/run/redis.sock"),
    ],
)
def test_an_address_is_shown_without_its_password_wherever_that_is(tmp_path: Path, name: str, url: str) -> None:
    secrets = {"DATABASE_URL": POSTGRES, "JWT_SECRET": JWT, "ENCRYPTION_KEY": KEY}
    settings = build(tmp_path, {**secrets, name.upper(): url.format("hunter2")})
    assert settings.shown(name) == url.format(MASK)


def test_secrets_compare_by_what_they_hide() -> None:
    assert Secret(JWT) == Secret(JWT)
    assert hash(Secret(JWT)) == hash(Secret(JWT))
    assert Secret(JWT) != Secret(KEY)
    assert Secret(JWT) != JWT


def test_every_name_of_the_contract_is_read_with_and_without_prefix() -> None:
    shared = """DATABASE_URL REDIS_URL JWT_SECRET ENCRYPTION_KEY CORS_ORIGINS CHECKOUT_BASE_URL PORT
        OTEL_EXPORTER_OTLP_ENDPOINT OTEL_EXPORTER_OTLP_HEADERS OTEL_SERVICE_NAME
        LOG_LEVEL STRIPE_API_BASE RAZORPAY_API_BASE"""
    own = "LOOP_DATA_DIR LOOP_CONFIG LOOP_WEBHOOK_ALLOW_NETWORKS"
    known = {variable for name, setting in SETTINGS.items() for variable in setting.variables(name)}
    assert {*shared.split(), *own.split()} <= known
    assert {f"LOOP_{name}" for name in shared.split()} <= known
    assert all(variable.startswith("LOOP_") or variable in shared.split() for variable in known)


def test_every_default_is_of_its_own_form() -> None:
    for setting in SETTINGS.values():
        if setting.default is not None and not callable(setting.default):
            assert setting.form.check(setting.default) == setting.default


def test_the_example_file_is_the_generated_one_and_loads(tmp_path: Path) -> None:
    assert (ROOT / "config.example.toml").read_text() == example_toml()
    assert tomllib.loads(example_toml()) == {}
    lines = [line.removeprefix("# ") for line in example_toml().splitlines() if re.match(r"# [a-z_]+ = ", line)]
    kept = [line for line in lines if not line.startswith(("data_dir", "redis_url")) and "<" not in line]
    assert {line.partition(" ")[0] for line in lines} == set(SETTINGS) - {"config"}
    write_toml(tmp_path, "\n".join(kept))
    loaded, default = build(tmp_path), load({}, {"LOOP_DATA_DIR": str(tmp_path / "other")})
    for name, setting in SETTINGS.items():
        if setting.default is not None and not callable(setting.default):
            assert getattr(loaded, name) == getattr(default, name)


def test_the_reference_is_the_generated_one() -> None:
    assert (ROOT / "docs/reference/configuration.md").read_text() == reference_markdown()


@pytest.mark.parametrize(("word", "text"), [("example", example_toml), ("reference", reference_markdown)])
def test_the_documents_are_printed_by_one_command(word: str, text: object) -> None:
    assert callable(text)
    printed = subprocess.run(
        [sys.executable, "-m", "loop.config", word], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert printed.stdout == text()
