"""`loop demo` as a stranger runs it, and whether it would notice if its books did not agree."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

import aiohttp
import pytest
from multidict import CIMultiDict
from standardwebhooks import Webhook, WebhookVerificationError

from loop.cli_demo import staged
from loop.domain.money import Money
from loop.domain.roles import Role
from loop.testing.demo_books import Movement, close_books, compare_events, compare_ledgers
from loop.testing.demo_orders import SCRIPTS, Stage, play
from loop.testing.demo_shop import DemoError, problem_of
from tests.servers import rows_of, run_sql, with_database

ENDS_WITHIN_S = 60
"""Bounds a hang; on an idle machine the demo takes about four seconds."""

SHARED_ENDS_WITHIN_S = 150
"""The same where Loop is three processes, each of which imports all of it anew."""

SHELL = "/bin/sh"
FOREIGN_SETTINGS = {"DATABASE_URL": "postgresql://127.0.0.1:1/none", "PORT": "none", "LOOP_CONFIG": "/nowhere.toml"}
"""What the caller may have set for a Loop of their own."""

SIGNED_HEADERS = ("X-Loop-Signature", "X-Loop-Timestamp", "X-Loop-Event-Id", "webhook-id", "webhook-timestamp",
                  "webhook-signature")  # fmt: skip

PAID = Movement("ord_1", "capture", Money(4_999, "USD"))
HELD = Movement("ord_2", "authorization", Money(2_000, "EUR"))


AS_MODULE = (sys.executable, "-m", "loop")
AS_SCRIPT = (str(Path(sys.executable).parent / "loop"),)
"""What the wheel installs."""


def processes_in(folder: Path) -> Mapping[int, str]:
    """Return the processes that have a folder in their environment, each with the words that everybody sees."""
    found = {}
    for each in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile, or is somebody else's
            if os.fsencode(folder) in (each / "environ").read_bytes():
                found[int(each.name)] = (each / "cmdline").read_text("utf-8").replace("\0", " ").strip()
    return found


@contextmanager
def demo(folder: Path, *arguments: str, begun_as: Sequence[str] = AS_MODULE) -> Iterator[subprocess.Popen[str]]:
    """Run the demo with its temporary files in `folder`; kill it if the test has not ended it."""
    with subprocess.Popen(
        [*begun_as, "demo", *arguments],
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
            for number in processes_in(folder):
                os.kill(number, signal.SIGKILL)


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


def test_who_has_read_enough_leaves_nothing_behind(tmp_path: Path) -> None:
    with demo(tmp_path) as process:
        read_until(process, "1. Paid")
        assert process.stdout is not None
        process.stdout.close()
        process.wait(timeout=ENDS_WITHIN_S)
    assert list(tmp_path.iterdir()) == []


def test_as_json_its_end_stands_alone_on_standard_output(tmp_path: Path) -> None:
    with demo(tmp_path, "--json") as process:
        told, story = process.communicate(timeout=ENDS_WITHIN_S)
    assert json.loads(told) == {"agrees": True, "orders": len(SCRIPTS), "problems": []}
    assert "All books agree" in story


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        demo(tmp_path, "--port", str(other.getsockname()[1])) as process,
    ):
        _, trouble = process.communicate(timeout=ENDS_WITHIN_S)
    assert process.returncode == 9
    assert trouble.startswith("port_in_use: ")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def empty_url(postgres_url: str) -> Iterator[str]:
    """Yield the URL of a PostgreSQL database without a table."""
    name = f"loop_demo_{secrets.token_hex(4)}"
    run_sql(postgres_url, f"CREATE DATABASE {name}")
    yield with_database(postgres_url, name)
    run_sql(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


def answer_of(url: str) -> tuple[int, str]:
    with closing(HTTPConnection(url.partition("://")[2].partition("/")[0], timeout=ENDS_WITHIN_S)) as connection:
        connection.request("GET", f"/{url.partition('://')[2].partition('/')[2]}")
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def until_redis_is_used(part: str) -> None:
    """Wait until a process says that Redis answers it, for which Redis has a quarter of a second each time."""
    deadline = time.monotonic() + ENDS_WITHIN_S
    while (checks := json.loads(answer_of(f"{part}/health/ready")[1])["checks"]) != {"database": "ok", "redis": "ok"}:
        assert time.monotonic() < deadline, checks


@pytest.mark.slow
def test_the_same_demo_runs_in_three_processes_over_postgres_and_redis(
    tmp_path: Path, empty_url: str, redis_url: str
) -> None:
    where = ("--database-url", empty_url, "--redis-url", redis_url)
    with demo(tmp_path, *where, begun_as=AS_SCRIPT) as process:
        told = read_until(process, "1. Paid")
        begun = [words for words in processes_in(tmp_path).values() if " demo " not in words]
        api, worker, dashboard = re.findall(r"^Loop's (?:api|worker|dashboard) +(http://\S+)$", told, re.MULTILINE)
        paths = ("/v1/orders", "/dashboard/sign-in")
        answered = [[answer_of(f"{part}{path}")[0] for path in paths] for part in (api, worker, dashboard)]
        for part in (api, worker, dashboard):
            until_redis_is_used(part)
        more, trouble = process.communicate(timeout=SHARED_ENDS_WITHIN_S)
    told += more
    assert (process.returncode, trouble) == (0, ""), told
    assert answered == [[401, 404], [404, 404], [404, 200]]
    assert "NO" not in told
    assert "All books agree: 7 orders" in told
    assert not re.search(r"sk_|whsec_|eyJ|\x1b", told), "a secret, or a terminal's codes, went into a pipe"
    # Nothing secret is in the words that everybody on this machine sees.
    assert sorted(begun) == [f"{sys.executable} {AS_SCRIPT[0]} serve --only {role}" for role in sorted(Role)]
    assert processes_in(tmp_path) == {}
    assert len(set(re.findall(r"ord_\w+", rows_of(empty_url)))) == 7
    assert list(tmp_path.iterdir()) == []


def test_a_database_with_merchants_or_orders_is_left_as_it_is(
    tmp_path: Path, empty_url: str, postgres_database_url: str, redis_url: str
) -> None:
    run_sql(
        postgres_database_url,
        "INSERT INTO merchants (id, name, email, password_hash, created_at, updated_at) "
        "VALUES ('mer_1', 'Shop', 'a@example.com', '-', now(), now())",
    )
    run_sql(empty_url, "CREATE TABLE orders (of_another_program text)", "INSERT INTO orders VALUES ('a dozen')")
    for url in (postgres_database_url, empty_url):
        before = rows_of(url)
        with demo(tmp_path, "--database-url", url, "--redis-url", redis_url) as process:
            told, trouble = process.communicate(timeout=ENDS_WITHIN_S)
        assert (process.returncode, told) == (9, "")
        assert trouble.startswith("database_in_use: ")
        assert "Give it an empty one" in trouble
        assert rows_of(url) == before
        assert list(tmp_path.iterdir()) == []


def test_nothing_is_changed_while_redis_is_away(tmp_path: Path, empty_url: str) -> None:
    with demo(tmp_path, "--database-url", empty_url, "--redis-url", "redis://127.0.0.1:1/0") as process:
        _, trouble = process.communicate(timeout=ENDS_WITHIN_S)
    assert process.returncode == 8
    assert trouble.startswith("not_ready: Redis does not answer")
    assert rows_of(empty_url) == ""


@pytest.mark.parametrize("given", ["--database-url", "--redis-url"])
def test_one_address_without_the_other_is_refused(tmp_path: Path, given: str) -> None:
    with demo(tmp_path, given, "postgresql://127.0.0.1:1/none") as process:
        _, trouble = process.communicate(timeout=ENDS_WITHIN_S)
    assert (process.returncode, trouble.partition(":")[0]) == (3, "validation_failed")


@pytest.mark.slow
def test_told_to_stop_in_the_middle_it_ends_its_processes(tmp_path: Path, empty_url: str, redis_url: str) -> None:
    with demo(tmp_path, "--database-url", empty_url, "--redis-url", redis_url, begun_as=AS_MODULE) as process:
        read_until(process, "1. Paid")
        begun = [words for words in processes_in(tmp_path).values() if " demo " not in words]
        process.terminate()
        told, trouble = process.communicate(timeout=SHARED_ENDS_WITHIN_S)
    assert (process.returncode, trouble) == (130, "")
    assert told.endswith("Stopped.\n")
    assert sorted(begun) == [f"{sys.executable} -m loop serve --only {role}" for role in sorted(Role)]
    assert processes_in(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_process_that_does_not_begin_ends_the_others_and_says_why(
    tmp_path: Path, empty_url: str, redis_url: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        with demo(tmp_path, "--port", port, "--database-url", empty_url, "--redis-url", redis_url) as process:
            told, _ = process.communicate(timeout=SHARED_ENDS_WITHIN_S)
            assert processes_in(tmp_path) == {}
    assert process.returncode == 1
    assert "The process of the api ended with 9: port_in_use: " in told
    (kept,) = tmp_path.iterdir()
    assert str(kept) in told
    assert {path.name for path in kept.iterdir()} >= {"api.log", "worker.log", "dashboard.log"}


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
