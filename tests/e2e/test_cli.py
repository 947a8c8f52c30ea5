"""The command line as an operator uses it: every command in its own process, beside a running `loop serve`."""

import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pytest

from loop.cli import EXIT_CODES
from loop.domain.errors import ErrorKind
from tests.e2e.shells import Commands, commands_in, send, serving_on

HEAVY_MODULES = {"sqlalchemy", "sqlmodel", "alembic", "starlette", "uvicorn", "aiohttp", "stripe", "cryptography"}
"""Of Loop's own choice; Typer itself takes pydantic where it is installed."""


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    return commands_in(tmp_path / "loop")


@pytest.fixture
def serving(commands: Commands) -> Iterator[int]:
    with serving_on(commands) as port:
        yield port


def test_a_first_payment_with_the_words_of_the_readme(commands: Commands, serving: int) -> None:
    made = json.loads(commands.ok("merchant", "create", "--name", "My shop", "--email", "me@example.com", "--json"))
    key = made["apiKey"]
    commands.ok("processor", "set", "me@example.com", "sandbox")
    order = send(serving, "POST", "/v1/orders", key=key, body={"amount": 4999, "currency": "USD"})
    token = {"paymentMethod": {"type": "card", "token": "tok_approve"}}
    paid = send(serving, "POST", f"/v1/orders/{order['id']}/pay", key=key, body=token)
    assert paid["status"] == "captured"
    refunded = send(serving, "POST", f"/v1/orders/{order['id']}/refund", key=key, body={"amount": 1000})
    assert refunded["status"] == "success"
    assert str(order["id"]) in commands.ok("order", "list", "me@example.com")
    shown = commands.ok("order", "show", str(order["id"]))
    assert "partially_refunded" in shown
    assert "payment.captured" in shown
    listed = json.loads(commands.ok("order", "list", made["id"], "--json"))
    assert [row["status"] for row in listed] == ["partially_refunded"]


def test_routing_is_listed_and_tried_out(commands: Commands, serving: int) -> None:
    made = json.loads(commands.ok("merchant", "create", "--name", "My shop", "--email", "me@example.com", "--json"))
    commands.ok("processor", "set", "me@example.com", "sandbox")
    commands.ok("processor", "set", "me@example.com", "stripe", piped=json.dumps({"secretKey": "sk_test_1"}))
    content = {"name": "[Visa]", "conditions": {"brands": ["visa"], "countries": ["IN"]}, "processors": ["sandbox"]}
    rule = send(serving, "POST", "/api/routing-rules", key=made["apiKey"], body=content)
    listed = commands.ok("routing", "list", "me@example.com")
    assert rule["id"] in listed
    assert "[Visa]" in listed
    (row,) = json.loads(commands.ok("routing", "list", made["id"], "--json"))
    assert (row["name"], row["conditions"], row["processors"]) == ("[Visa]", content["conditions"], ["sandbox"])
    example = ("routing", "test", "me@example.com", "--amount", "4999", "--currency", "usd")
    assert commands.ok(*example).splitlines() == ["stripe takes it.", "  stripe is the default for USD"]
    ruled = json.loads(commands.ok(*example, "--brand", "Visa", "--country", "in", "--json"))
    assert (ruled["processor"], ruled["rule"]) == ("sandbox", {"id": rule["id"], "name": "[Visa]"})
    upi = commands.ok(*example, "--method", "upi").splitlines()
    assert upi[:2] == ["sandbox takes it.", "  stripe left out: it does not take upi payments"]
    assert commands.run(*example[:-1], "xxx").returncode == EXIT_CODES[ErrorKind.INVALID]
    assert commands.run(*example[:2], "nobody", *example[3:]).returncode == EXIT_CODES[ErrorKind.NOT_FOUND]


def test_a_payment_link_is_an_address_and_a_code_for_a_phone(commands: Commands, serving: int) -> None:
    commands.ok("merchant", "create", "--name", "My shop", "--email", "me@example.com")
    amount = ("--amount", "4999", "--currency", "eur")
    made = commands.run("checkout", "link", "me@example.com", *amount, "--for", "Two lamps")
    assert made.returncode == 0, made.stderr
    url = made.stdout.strip()
    assert "/checkout/cs_" in url
    assert "\u2588" in made.stderr  # the code's dark squares
    state = send(serving, "GET", f"/checkout/{url.rpartition('/')[2]}/state")
    assert state == {"face": "payable", "attempt": ""}
    told = json.loads(commands.ok("checkout", "link", "me@example.com", *amount, "--live", "--json"))
    assert set(told) == {"id", "url", "orderId"}
    assert "49.99 EUR  pending" in commands.ok("order", "show", told["orderId"])
    for wrong in ((), (*amount, "--order", "ord_x"), (*amount, "--success-url", "ftp://x")):
        refused = commands.run("checkout", "link", "me@example.com", *wrong)
        assert (refused.returncode, refused.stdout) == (3, "")
        assert refused.stderr.startswith("validation_failed:")


def test_a_second_serve_on_the_same_file_is_refused(commands: Commands, serving: int) -> None:
    assert serving
    done = commands.run("serve", "--port", "1")
    assert done.returncode == EXIT_CODES[ErrorKind.CONFIGURATION]
    assert done.stderr.startswith("already_running: ")


def test_merchants_and_keys(commands: Commands) -> None:
    made = json.loads(
        commands.ok(
            "merchant", "create", "--name", "Shop", "--email", "a@example.com", "--json", piped="a long password\n"
        )
    )
    assert "password" not in made
    assert [m["email"] for m in json.loads(commands.ok("merchant", "list", "--json"))] == ["a@example.com"]
    key = json.loads(commands.ok("api-key", "create", "a@example.com", "--name", "shop", "--live", "--json"))
    assert key["secret"].startswith("sk_live_")
    rows = json.loads(commands.ok("api-key", "list", "a@example.com", "--json"))
    assert {row["name"] for row in rows} == {"first key", "shop"}
    assert key["secret"] not in json.dumps(rows)
    follower = json.loads(
        commands.ok("api-key", "rotate", "a@example.com", key["id"], "--overlap-hours", "1", "--json")
    )
    assert follower["secret"].startswith("sk_live_")
    narrow = ("api-key", "create", "a@example.com", "--name", "report", "--scope")
    assert commands.ok(*narrow, "orders:read").startswith("sk_test_")
    assert commands.run(*narrow, "everything").returncode == EXIT_CODES[ErrorKind.INVALID]
    rows = json.loads(commands.ok("api-key", "list", "a@example.com", "--json"))
    assert {tuple(row["scopes"]) for row in rows} == {("*",), ("orders:read",)}
    assert [row["expiresAt"] is not None for row in rows if row["id"] == key["id"]] == [True]
    commands.ok("api-key", "revoke", "a@example.com", key["id"])
    assert commands.run("api-key", "revoke", "a@example.com", key["id"]).returncode == EXIT_CODES[ErrorKind.NOT_FOUND]


def test_a_password_is_reset_and_nobody_stays_signed_in(commands: Commands, serving: int) -> None:
    new = {"name": "Shop", "email": "a@example.com", "password": "a long password"}
    signed_in = send(serving, "POST", "/api/auth/register", body=new)
    said = commands.ok("merchant", "reset-password", "a@example.com", piped="another password\n")
    assert said == "The password is set; 1 sessions were ended.\n"
    refused = _status(serving, "/api/auth/refresh", {"refreshToken": signed_in["refreshToken"]})
    old = _status(serving, "/api/auth/login", {"email": new["email"], "password": new["password"]})
    assert (refused, old) == (401, 401)
    send(serving, "POST", "/api/auth/login", body={"email": new["email"], "password": "another password"})
    made_up = json.loads(commands.ok("merchant", "reset-password", "a@example.com", "--json"))
    assert made_up["sessionsEnded"] == 1
    send(serving, "POST", "/api/auth/login", body={"email": new["email"], "password": made_up["password"]})


def _status(port: int, path: str, body: object) -> int:
    with closing(HTTPConnection("127.0.0.1", port, timeout=15)) as connection:
        connection.request("POST", path, json.dumps(body))
        return connection.getresponse().status


def test_a_first_key_is_of_the_mode_that_is_said(commands: Commands) -> None:
    for number, flag in enumerate(("--live", "--test")):
        email = f"{number}@example.com"
        made = json.loads(commands.ok("merchant", "create", "--name", "Shop", "--email", email, flag, "--json"))
        assert (made["mode"], made["apiKey"][:8]) == (flag[2:], f"sk_{flag[2:]}_")
    commands.ok("processor", "set", "0@example.com", "sandbox", "--live")
    commands.ok("processor", "set", "0@example.com", "sandbox")
    rows = json.loads(commands.ok("processor", "list", "0@example.com", "--json"))
    assert sorted(row["testMode"] for row in rows) == [False, True]


def test_processor_credentials_come_by_pipe_or_environment_and_are_not_shown(commands: Commands) -> None:
    commands.ok("merchant", "create", "--name", "Shop", "--email", "a@example.com")
    canary = "sk_test_canary51Abc"
    piped = json.dumps({"secretKey": canary, "publishableKey": "pk_test_1", "webhookSecret": "whsec_canary"})
    assert canary not in commands.ok("processor", "set", "a@example.com", "stripe", piped=piped)
    rows = json.loads(commands.ok("processor", "list", "a@example.com", "--json"))
    assert [row["processor"] for row in rows] == ["stripe"]
    assert canary not in json.dumps(rows)
    with_variables = Commands(
        {**commands.environment, "LOOP_STRIPE_SECRET_KEY": canary, "LOOP_STRIPE_WEBHOOK_SECRET": "w"}
    )
    with_variables.ok("processor", "set", "a@example.com", "stripe")
    database = Path(commands.environment["LOOP_DATA_DIR"]) / "loop.db"
    assert canary.encode() not in database.read_bytes()


KILLED_IN_A_ROTATION = """
import asyncio, os, signal, sys
from loop import config
from loop.runtime import Chance, opened
from loop.workflows import encryption_keys

encryption_keys.BATCH = 1
batches = iter(range(2))

def die(_):
    if next(batches):
        os.kill(os.getpid(), signal.SIGKILL)

async def rotate():
    settings = config.load({"data_dir": sys.argv[1]}, environ={})
    async with opened(settings, Chance(reached=die), is_rotating=True) as context:
        await encryption_keys.rotate(context, is_new=True, progress=lambda done, total: None)

asyncio.run(rotate())
"""


def test_encryption_keys_are_rotated_and_a_killed_rotation_goes_on(commands: Commands) -> None:
    for letter in "abc":
        commands.ok("merchant", "create", "--name", "Shop", "--email", f"{letter}@example.com")
    commands.ok("processor", "set", "a@example.com", "sandbox", piped='{"webhookSecret": "whsec_1"}')
    folder = commands.environment["LOOP_DATA_DIR"]
    killed = subprocess.run([sys.executable, "-c", KILLED_IN_A_ROTATION, folder], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    statuses = json.loads(commands.ok("keys", "status", "--json"))
    assert [(key["current"], key["loaded"], key["rows"]) for key in statuses] == [(True, True, 2), (False, True, 2)]
    done = json.loads(commands.ok("keys", "rotate", "--json"))
    assert (done["keyId"], done["rewrapped"], done["remaining"], done["droppedKeys"]) == (
        statuses[0]["keyId"], 2, 0, True,
    )  # fmt: skip
    assert "encryption_keys_previous" not in Path(folder, "secrets.toml").read_text()
    assert commands.ok("keys", "rotate", "--new").startswith("4 secrets were brought under the key ")
    (status,) = json.loads(commands.ok("keys", "status", "--json"))
    assert (status["rows"], status["keyId"] != done["keyId"]) == (4, True)
    newest = json.loads(commands.ok("audit", "list", "--limit", "2", "--json"))
    assert [entry["action"] for entry in newest] == ["key_rotation.finished", "key_rotation.started"]


def test_keys_are_not_rotated_beside_a_running_loop(commands: Commands, serving: int) -> None:
    assert serving
    done = commands.run("keys", "rotate", "--new")
    assert done.returncode == EXIT_CODES[ErrorKind.CONFIGURATION]
    assert done.stderr.startswith("already_running: ")


def test_a_key_that_is_still_needed_is_missed_at_start(commands: Commands) -> None:
    commands.ok("merchant", "create", "--name", "Shop", "--email", "a@example.com")
    other = Commands({**commands.environment, "LOOP_ENCRYPTION_KEY": "seals 0123456789abcdef0123456789abcdef"})
    done = other.run("serve", "--port", "1")
    assert done.returncode == EXIT_CODES[ErrorKind.CONFIGURATION]
    assert done.stderr.startswith("encryption_key_needed: 1 stored secrets ")
    assert [key["loaded"] for key in json.loads(other.ok("keys", "status", "--json"))] == [True, False]


def test_the_audit_log_is_listed_and_verified(commands: Commands) -> None:
    commands.ok("merchant", "create", "--name", "Shop", "--email", "a@example.com")
    commands.ok("merchant", "create", "--name", "Shop", "--email", "b@example.com")
    listed = json.loads(commands.ok("audit", "list", "--merchant", "a@example.com", "--json"))
    assert [entry["action"] for entry in listed] == ["api_key.created", "merchant.created"]
    assert all(entry["actor"].startswith("operator ") for entry in listed)
    assert commands.ok("audit", "list").count("merchant.created") == 2
    reports = json.loads(commands.ok("audit", "verify", "--json"))
    assert [(each["entries"], each["state"]) for each in reports] == [(2, "whole")] * 2
    database = Path(commands.environment["LOOP_DATA_DIR"]) / "loop.db"
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("DROP TRIGGER audit_log_no_update")
        connection.execute(
            "UPDATE audit_log SET subject = 'other' WHERE seq = 2 AND merchant_id = ?", [listed[0]["merchantId"]]
        )
    broken = commands.run("audit", "verify")
    assert broken.returncode == 1
    (row,) = (each for each in json.loads(commands.run("audit", "verify", "--json").stdout) if each["brokenId"])
    assert (row["chain"], row["state"]) == (listed[0]["merchantId"], "it was changed")
    assert f"at {row['brokenId']}: it was changed" in broken.stderr
    assert commands.run("audit", "verify", "--merchant", "b@example.com").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("order", "show", "ord_nothing"), ErrorKind.NOT_FOUND),
        (("order", "list", "nobody@example.com"), ErrorKind.NOT_FOUND),
        (("merchant", "create", "--name", "S", "--email", "no address"), ErrorKind.INVALID),
        (("--config", "/nowhere.toml", "merchant", "list"), ErrorKind.CONFIGURATION),
    ],
)
def test_an_error_is_one_line_and_a_code_of_its_kind(
    commands: Commands, arguments: tuple[str, ...], kind: ErrorKind
) -> None:
    done = commands.run(*arguments)
    assert done.returncode == EXIT_CODES[kind]
    assert "Traceback" not in done.stderr
    assert ": " in done.stderr.splitlines()[0]


def test_every_kind_of_error_has_an_exit_code_of_its_own_meaning() -> None:
    assert set(EXIT_CODES) == set(ErrorKind)
    assert not {0, 1, 2} & set(EXIT_CODES.values())


@pytest.mark.parametrize("arguments", [["--help"], ["version"], ["merchant", "--help"]])
def test_help_and_version_import_nothing_heavy(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "loop", *arguments],
        text=True,
        capture_output=True,
        timeout=60,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & HEAVY_MODULES
