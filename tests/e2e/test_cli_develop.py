"""A shop being developed beside a real Loop: set up, events made to happen and heard, a backup while orders come in."""

import asyncio
import json
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from loop.cli import EXIT_CODES
from loop.cli_listen import SCENES
from loop.domain.errors import ErrorKind
from loop.testing.demo_shop import Shop
from tests.e2e.shells import Commands, commands_in, send, serving_on

HEARD_WITHIN_S = 30.0


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    return commands_in(tmp_path / "loop")


@pytest.fixture
def serving(commands: Commands) -> Iterator[int]:
    with serving_on(commands) as port:
        yield port


def shop_of(commands: Commands) -> str:
    """Make a merchant with the sandbox, and return the API key."""
    made = json.loads(commands.ok("merchant", "create", "--name", "My shop", "--email", "me@example.com", "--json"))
    commands.ok("processor", "set", "me@example.com", "sandbox")
    return str(made["apiKey"])


def by_key(commands: Commands, key: str) -> Commands:
    return Commands({**commands.environment, "LOOP_API_KEY": key})


@asynccontextmanager
async def listening(commands: Commands, *arguments: str) -> AsyncIterator[tuple[asyncio.StreamReader, str]]:
    """Run `loop listen`, and yield its output and the signing secret that it tells."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loop", "listen", "--json", *arguments),
        env=commands.environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(HEARD_WITHIN_S):
            told = (await process.stderr.readline()).decode()
        assert told.startswith("Listening to http://127.0.0.1:"), told
        yield process.stdout, told.split()[-1]
    finally:
        process.terminate()
        await process.communicate()


async def test_a_shop_hears_what_was_made_to_happen(commands: Commands) -> None:
    assert "loop serve" in (await asyncio.to_thread(commands.run, "init")).stderr
    assert "broken" not in await asyncio.to_thread(commands.ok, "doctor")
    with serving_on(commands) as port:
        url = ("--url", f"http://127.0.0.1:{port}")
        held = by_key(commands, await asyncio.to_thread(shop_of, commands))
        await asyncio.to_thread(held.ok, "trigger", "order.created", *url)  # before anybody listens
        async with Shop() as shop, listening(held, *url, "--forward-to", shop.webhook_url) as (output, secret):
            shop.secret = secret
            done = json.loads(await asyncio.to_thread(held.ok, "trigger", "payment.captured", *url, "--json"))
            async with asyncio.timeout(HEARD_WITHIN_S):
                lines = [json.loads(await output.readline()) for _ in range(3)]
            assert [each.problem for each in shop.received] == [None] * 3
            assert [each.event["eventType"] for each in shop.received] == [line["eventType"] for line in lines]
            assert lines[-1] == {"id": shop.received[-1].event["id"], "eventType": "payment.captured", "answer": 204}
            assert {each.event["orderId"] for each in shop.received} == {done["orderId"]}


def test_events_are_made_to_happen_as_their_names_say(commands: Commands, serving: int) -> None:
    url = ("--url", f"http://127.0.0.1:{serving}")
    key = shop_of(commands)
    held = by_key(commands, key)
    for event in SCENES:
        done = json.loads(held.ok("trigger", event, *url, "--json"))
        told = send(serving, "GET", "/v1/events?limit=20", key=key)["data"]
        happened = {each["eventType"] for each in told if each["orderId"] == done["orderId"]}
        # A refund fails when it is next asked about, and that it does is its own test's.
        assert event in happened or (event == "refund.failed" and "refund.created" in happened), event


def test_what_cannot_be_made_to_happen_is_said(commands: Commands, serving: int) -> None:
    url = ("--url", f"http://127.0.0.1:{serving}")
    key = shop_of(commands)
    invalid = EXIT_CODES[ErrorKind.INVALID]
    assert by_key(commands, key).run("trigger", "payment.lost", *url).returncode == invalid
    assert commands.run("trigger", "payment.captured", *url).returncode == invalid
    live = commands.ok("api-key", "create", "me@example.com", "--name", "live", "--mode", "live").strip()
    assert by_key(commands, live).run("trigger", "payment.captured", *url).stderr.startswith("invalid_mode")
    wrong = by_key(commands, f"{key[:-1]}{'0' if key[-1] != '0' else '1'}")
    assert wrong.run("trigger", "payment.captured", *url).returncode == EXIT_CODES[ErrorKind.UNAUTHENTICATED]
    assert wrong.run("listen", *url).returncode == EXIT_CODES[ErrorKind.UNAUTHENTICATED]
    assert by_key(commands, f"{key}\r").run("trigger", "order.created", *url).returncode == 0, "a line of Windows'"
    for broken in (f"{key}\r\nX-More: 1", f"{key}\u00e9"):
        refused = by_key(commands, broken).run("trigger", "order.created", *url)
        assert refused.returncode == invalid
        assert key not in refused.stderr
    for nonsense in ("http://127.0.0.1:99999", "nonsense", "http://"):
        for option in (("--url", nonsense), (*url, "--forward-to", nonsense)):
            refused = by_key(commands, key).run("listen", *option)
            assert (refused.returncode, refused.stderr.partition(" must")[0]) == (
                invalid,
                f"validation_failed: {option[-2]}",
            )
    nowhere = by_key(commands, key).run("listen", "--url", "http://127.0.0.1:1")
    assert nowhere.returncode == EXIT_CODES[ErrorKind.UNAVAILABLE]
    assert nowhere.stderr.startswith("not_ready: No answer from http://127.0.0.1:1")


def test_a_backup_while_orders_come_in_holds_every_order_before_it(
    commands: Commands, serving: int, tmp_path: Path
) -> None:
    key = shop_of(commands)
    made: list[str] = []
    stop = threading.Event()

    def sell() -> None:
        while not stop.is_set():
            order = send(serving, "POST", "/v1/orders", key=key, body={"amount": 100, "currency": "USD"})
            token = {"paymentMethod": {"type": "card", "token": "tok_approve"}}
            send(serving, "POST", f"/v1/orders/{order['id']}/pay", key=key, body=token)
            made.append(order["id"])

    seller = threading.Thread(target=sell)
    seller.start()
    try:
        while len(made) < 5:
            assert seller.is_alive()
            stop.wait(0.05)
        before = [*made]
        commands.ok("backup", str(tmp_path / "loop.backup"))
        during = len(made)
    finally:
        stop.set()
        seller.join()
    assert during > len(before), "nothing was sold meanwhile"
    refused = commands.run("restore", str(tmp_path / "loop.backup"), "--replace")
    assert refused.stderr.startswith("already_running")

    new = commands_in(tmp_path / "new")
    (tmp_path / "new").mkdir(0o700)
    (tmp_path / "new" / "secrets.toml").write_bytes((tmp_path / "loop" / "secrets.toml").read_bytes())
    (tmp_path / "new" / "secrets.toml").chmod(0o600)
    new.ok("restore", str(tmp_path / "loop.backup"))
    assert "whole" in new.ok("audit", "verify")
    with closing(sqlite3.connect(tmp_path / "new" / "loop.db")) as database:
        captured = {name for (name,) in database.execute("SELECT id FROM orders WHERE status = 'captured'")}
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
    assert captured >= {*before}
