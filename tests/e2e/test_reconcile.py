"""`loop reconcile` as an operator runs it: in its own process, against a stand-in Stripe whose day is over."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest

# The stand-in of a process of its own, whose clock is a day behind.
STUB = """
import asyncio, sys, time
from loop.testing.stub_psp import StubProcessor

async def serve():
    async with StubProcessor(ledger_path=sys.argv[1], clock_ns=lambda: time.time_ns() - 86_400 * 10**9) as stub:
        print(stub.url, flush=True)
        await asyncio.Event().wait()

asyncio.run(serve())
"""
KEY = "sk_test_1"


@dataclass(frozen=True)
class Commands:
    """Runs `loop` with a data directory and a Stripe of its own."""

    environment: dict[str, str]
    stripe: str
    database: Path

    def run(self, *arguments: str, piped: str = "") -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "loop", *arguments],
            env=self.environment, input=piped, text=True, capture_output=True, timeout=60, check=False,
        )  # fmt: skip

    def open_shop(self, email: str, key: str = KEY) -> None:
        """Make a merchant whose Stripe account came to Loop a week ago."""
        assert self.run("merchant", "create", "--name", "Shop", "--email", email).returncode == 0
        set_up = self.run("processor", "set", email, "stripe", piped=json.dumps({"secretKey": key}))
        assert set_up.returncode == 0, set_up.stderr
        long_ago = (datetime.now(UTC) - timedelta(days=7)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")  # noqa: TID251 - a test's
        with closing(sqlite3.connect(self.database)) as connection, connection:
            connection.execute("UPDATE processor_configs SET created_at = ?", (long_ago,))

    def charge(self, key: str = KEY) -> None:
        """Charge at Stripe, yesterday and without Loop."""
        form = {
            "amount": "1234", "currency": "usd", "confirm": "true", "payment_method": "pm_card_visa",
            "automatic_payment_methods[enabled]": "true", "automatic_payment_methods[allow_redirects]": "never",
        }  # fmt: skip
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/x-www-form-urlencoded"}
        with closing(HTTPConnection(urlsplit(self.stripe).netloc, timeout=15)) as connection:
            connection.request("POST", "/v1/payment_intents", urlencode(form), headers)
            assert connection.getresponse().status == 200


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    with subprocess.Popen(
        [sys.executable, "-c", STUB, str(tmp_path / "ledger")], stdout=subprocess.PIPE, text=True
    ) as stub:
        assert stub.stdout is not None
        url = stub.stdout.readline().strip()
        environment = {**kept, "LOOP_DATA_DIR": str(tmp_path / "loop"), "STRIPE_API_BASE": url}
        yield Commands(environment, url, tmp_path / "loop" / "loop.db")
        stub.terminate()


def yesterday() -> str:
    return str((datetime.now(UTC) - timedelta(days=1)).date())  # noqa: TID251 - the command's own default


def test_a_charge_that_loop_does_not_know_is_reported(commands: Commands) -> None:
    commands.open_shop("me@example.com")
    done = commands.run("reconcile")
    assert (done.returncode, done.stderr) == (0, "")
    assert "agrees" in done.stdout
    commands.charge()
    done = commands.run("reconcile", "--merchant", "me@example.com", "--processor", "stripe")
    assert done.returncode == 1, done.stderr
    assert all(word in done.stdout for word in ("DIFFERS", "missing_here", "charge", "12.34 USD", "me@example.com"))
    again = commands.run("reconcile", "--day", yesterday(), "--json")
    assert again.returncode == 1
    [account] = json.loads(again.stdout)
    assert (account["merchant"], account["day"], account["missingHere"]) == ("me@example.com", yesterday(), 1)
    [finding] = account["findings"]
    assert (finding["amountThere"], finding["currencyThere"], finding["orderId"]) == (1_234, "USD", None)


def test_each_account_has_its_line_whatever_becomes_of_the_others(commands: Commands) -> None:
    commands.open_shop("one@example.com")
    assert commands.run("processor", "set", "one@example.com", "sandbox").returncode == 0
    commands.open_shop("two@example.com", "sk_test_invalid")
    done = commands.run("reconcile", "--json")
    assert done.returncode == 8
    assert "not_compared" in done.stderr
    found = {(each["merchant"], each["processor"]): each["status"] for each in json.loads(done.stdout)}
    assert found == {
        ("one@example.com", "stripe"): "matched",
        ("one@example.com", "sandbox"): "not_listed",
        ("two@example.com", "stripe"): "failed",
    }
    assert "sk_test_invalid" not in done.stdout + done.stderr
    table = commands.run("reconcile").stdout
    assert "does not list what moved" in table
    assert "does not accept the account's secret key" in table


WRONG = [
    (("--day", "tomorrow"), 2, "does not match"),
    (("--day", "2999-01-01"), 3, "day_not_over"),
    (("--processor", "nobody"), 3, "invalid_processor"),
    (("--merchant", "nobody@example.com"), 5, "not_found"),
]


def test_a_wrong_question_is_answered_in_a_line(commands: Commands) -> None:
    nothing = commands.run("reconcile")
    assert (nothing.returncode, nothing.stdout) == (0, "There is no processor account to compare.\n")
    commands.open_shop("me@example.com")
    for arguments, code, words in WRONG:
        done = commands.run("reconcile", *arguments)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr
