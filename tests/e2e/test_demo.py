"""`loop demo` as a stranger runs it, and whether it would notice if its books did not agree."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from multidict import CIMultiDict
from standardwebhooks import Webhook, WebhookVerificationError

from loop.cli_demo import staged
from loop.domain.money import Money
from loop.testing.demo_books import Movement, close_books, compare_events, compare_ledgers
from loop.testing.demo_orders import SCRIPTS, Stage, play
from loop.testing.demo_shop import DemoError, problem_of

ENDS_WITHIN_S = 60
"""Bounds a hang; on an idle machine the demo takes about four seconds."""

SHELL = "/bin/sh"
FOREIGN_SETTINGS = {"DATABASE_URL": "postgresql://127.0.0.1:1/none", "PORT": "none", "LOOP_CONFIG": "/nowhere.toml"}
"""What the caller may have set for a Loop of their own."""

SIGNED_HEADERS = ("X-Loop-Signature", "X-Loop-Timestamp", "X-Loop-Event-Id", "webhook-id", "webhook-timestamp",
                  "webhook-signature")  # fmt: skip

PAID = Movement("ord_1", "capture", Money(4_999, "USD"))
HELD = Movement("ord_2", "authorization", Money(2_000, "EUR"))


@contextmanager
def demo(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run the demo with its temporary files in `folder`; kill it if the test has not ended it."""
    with subprocess.Popen(
        [sys.executable, "-m", "loop", "demo", *arguments],
        env={**os.environ, **FOREIGN_SETTINGS, "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """Return the output up to the line with these words, or all of it if they never come."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            break
    return "".join(lines)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """Run Loop, the stand-in processor and the shop in this process."""
    async with staged(tmp_path) as made:
        yield made


def test_the_demo_shows_every_order_and_ends_with_books_that_agree(tmp_path: Path) -> None:
    with demo(tmp_path) as process:
        told, trouble = process.communicate(timeout=ENDS_WITHIN_S)
    assert process.returncode == 0, told + trouble
    assert trouble == ""
    for number, script in enumerate(SCRIPTS, start=1):
        assert f"{number}. {script.title} - {script.amount} - ord_" in told
    table = told[told.index("Money that moved") : told.index("Webhooks to the shop")]
    # USD 49.99 and 19.99 paid at once, 150.00 of 200.00 taken; the declined and the cancelled are not there.
    assert re.search(r"capture\s+│\s+3 x 219\.98 USD │\s+3 x 219\.98 USD │ yes", table)
    assert re.search(r"refund\s+│\s+1 x 2000 JPY │\s+1 x 2000 JPY │ yes", table)
    assert re.search(r"void\s+│\s+1 x 30\.00 EUR │\s+1 x 30\.00 EUR │ yes", table)
    assert "NO" not in table
    assert "All books agree: 7 orders" in told
    assert not re.search(r"sk_|whsec_|eyJ|\x1b", told), "a secret, or a terminal's codes, went into a pipe"
    assert max(map(len, told.splitlines())) <= 100
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("curl") is None, reason="the lines to try are for curl")
def test_kept_it_serves_what_it_says_to_try_until_it_is_interrupted(tmp_path: Path) -> None:
    with demo(tmp_path, "--keep") as process:
        told = read_until(process, "Ctrl-C")
        to_try = [line for line in told.splitlines() if line.startswith("  ") and "curl" in line]
        answered = subprocess.run(
            [SHELL, "-ec", "\n".join(to_try)], capture_output=True, text=True, check=False, timeout=ENDS_WITHIN_S
        )
        process.send_signal(signal.SIGINT)
        _, trouble = process.communicate(timeout=ENDS_WITHIN_S)
    assert '"status":"captured"' in answered.stdout, told + answered.stderr
    assert process.returncode == 0, trouble
    assert trouble == ""
    assert list(tmp_path.iterdir()) == []


def test_interrupted_in_the_middle_it_cleans_up_and_says_so(tmp_path: Path) -> None:
    with demo(tmp_path) as process:
        read_until(process, "1. Paid")
        process.send_signal(signal.SIGINT)
        told, trouble = process.communicate(timeout=ENDS_WITHIN_S)
    assert (process.returncode, trouble) == (130, "")
    assert told.endswith("Stopped.\n")
    assert list(tmp_path.iterdir()) == []


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        demo(tmp_path, "--port", str(other.getsockname()[1])) as process,
    ):
        _, trouble = process.communicate(timeout=ENDS_WITHIN_S)
    assert process.returncode == 9
    assert trouble.startswith("port_in_use: ")
    assert list(tmp_path.iterdir()) == []


def test_equal_ledgers_agree_whatever_their_order() -> None:
    lines = compare_ledgers([PAID, HELD, PAID], [HELD, PAID, PAID])
    assert all(line.is_equal for line in lines)
    assert [(line.kind, line.loop_count, line.loop_sum) for line in lines] == [
        ("authorization", 1, Money(2_000, "EUR")),
        ("capture", 2, Money(9_998, "USD")),
    ]


@pytest.mark.parametrize(
    "by_processor",
    [
        [],
        [PAID, PAID],
        [replace(PAID, amount=Money(4_998, "USD"))],
        [replace(PAID, amount=Money(4_999, "EUR"))],
        [replace(PAID, kind="refund")],
        [replace(PAID, order_id="ord_9")],
    ],
    ids=["missing", "twice", "other amount", "other currency", "other kind", "other order, equal sums"],
)
def test_unequal_ledgers_do_not_agree(by_processor: list[Movement]) -> None:
    assert not all(line.is_equal for line in compare_ledgers([PAID], by_processor))
    assert not all(line.is_equal for line in compare_ledgers(by_processor, [PAID]))


def test_an_event_that_only_one_side_knows_is_noticed() -> None:
    event = {"id": "evt_1", "eventType": "order.created"}
    assert all(line.is_equal for line in compare_events([event], [event]))
    for recorded, received in (([event], []), ([], [event]), ([event], [{**event, "id": "evt_2"}])):
        assert not all(line.is_equal for line in compare_events(recorded, received))


async def test_a_charge_that_loop_does_not_know_of_is_noticed(stage: Stage) -> None:
    tale = await play(stage, SCRIPTS[0])
    assert (await close_books(stage, [tale])).problems == []
    line = stage.stub.ledger_path.read_bytes().splitlines(keepends=True)[-1]
    with stage.stub.ledger_path.open("ab") as ledger:
        ledger.write(line)
    assert (await close_books(stage, [tale])).problems == ["The ledgers differ in capture USD."]


async def test_an_order_that_goes_another_way_than_its_script_is_noticed(stage: Stage) -> None:
    with pytest.raises(DemoError, match="answered failed, not captured"):
        await play(stage, replace(SCRIPTS[1], pays_as="captured"))


async def test_a_webhook_that_the_shop_cannot_verify_is_noticed(stage: Stage) -> None:
    tale = await play(stage, SCRIPTS[0])
    genuine = stage.shop.received[0]
    forged = genuine.body.replace(b"pending", b"captured")
    async with (
        aiohttp.ClientSession() as session,
        session.post(stage.shop.webhook_url, data=forged, headers=CIMultiDict(genuine.headers)) as answer,
    ):
        assert answer.status == 400
    assert (await close_books(stage, [tale])).problems == [
        "The shop could not verify 1 webhooks: X-Loop-Signature does not fit."
    ]


async def test_deliveries_satisfy_the_standard_webhooks_library_and_the_shop_alike(stage: Stage) -> None:
    await stage.loop.post("/v1/orders", {"amount": 100, "currency": "USD", "externalId": "Öl & Käse"})
    await stage.shop.until(lambda: bool(stage.shop.received), 10)
    sent = stage.shop.received[0]
    verifier = Webhook(stage.shop.secret)
    assert verifier.verify(sent.body, dict(sent.headers)) == sent.event
    assert sent.event["eventType"] == "order.created"
    assert sent.event["externalId"] == "Öl & Käse"

    tampered = sent.body.replace(b'"amount":100,', b'"amount":900,')
    assert tampered != sent.body
    with pytest.raises(WebhookVerificationError):
        verifier.verify(tampered, dict(sent.headers))
    now_ms = stage.shop.now_ms()
    assert problem_of(stage.shop.secret, sent.headers, body=sent.body, now_ms=now_ms) is None
    assert problem_of(stage.shop.secret, sent.headers, body=tampered, now_ms=now_ms) == "X-Loop-Signature does not fit"
    assert problem_of("whsec_AAAA", sent.headers, body=sent.body, now_ms=now_ms) == "X-Loop-Signature does not fit"
    late = problem_of(stage.shop.secret, sent.headers, body=sent.body, now_ms=now_ms + 600_000)
    assert late == "X-Loop-Signature is missing or too old"

    for name in SIGNED_HEADERS:
        without = CIMultiDict(sent.headers)
        del without[name]
        assert problem_of(stage.shop.secret, without, body=sent.body, now_ms=now_ms) is not None, name
