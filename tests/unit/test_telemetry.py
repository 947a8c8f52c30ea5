"""The log: its lines, what is redacted from them, what a task carries with it, and how libraries join in."""

import asyncio
import json
import logging
import logging.handlers
import os
import pty
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

import pytest

from loop import telemetry
from loop.config import Secret
from loop.domain.errors import LoopError
from loop.telemetry import REDACTED, bind, configure, correlation_id, get_logger, redact, redact_text

ROOT = Path(__file__).parents[2]
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJtZXJfMSJ9.c2lnbmF0dXJlLWNhbmFyeQ"

CANARIES = {
    "api key": "sk_live_51C4naryAAAAAAAAAAAAAAAAAAAA",
    "test key": "sk_test_51C4naryBBBBBBBBBBBBBBBBBBBB",
    "restricted key": "rk_live_51C4naryCCCCCCCCCCCCCCCCCC",
    "webhook secret": "whsec_C4naryDDDD+DDDD/DDDDDDDDDDDDDD=",
    "razorpay key": "rzp_live_C4naryEEEEEE",
    "token": JWT,
    "bearer": "Bearer c4nary-FFFF.FFFF~FFFF",
    "client secret": "pi_3MtwBwLkdIwHu7ix_secret_C4naryGGGGGGGG",
    "card": "4111111111111111",
    "card with spaces": "5555 5555 5555 4444",
    "card with dashes": "3782-822463-10005",
    "address": "postgresql://loop:c4nary-HHHH@db:5432/loop",
    "redis address": "redis://:c4nary-IIII@cache/0",
}
"""Secrets that give themselves away by their look, whatever they are called."""

HELD = {
    "password": "c4nary-1",
    "secretKey": "c4nary-2",
    "webhook_secret": "c4nary-3",
    "Authorization": "Basic c4nary-4",
    "Stripe-Signature": "t=1,v1=c4nary-5",
    "X-API-Key": "c4nary-6",
    "cvv": "c4nary-7",
    "card_cvc": "c4nary-8",
    "credentials": {"keyId": "c4nary-9"},
    "refresh_token": "c4nary-10",
    "Set-Cookie": "session=c4nary-11; id=c4nary-11",
    "encryptionKey": "c4nary-12",
    "passphrase": ["c4nary-13"],
}
"""Secrets that only their names give away."""


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    """Yield a file that gets the log as JSON, and put logging back as it was."""
    root = logging.getLogger()
    loggers = [root, *(logging.getLogger(name) for name in ("loop", "uvicorn", *telemetry.QUIET))]
    before = [(each, each.level, each.handlers[:], each.propagate) for each in loggers]
    flags = (logging.raiseExceptions, logging.logThreads, logging.logProcesses, logging.logMultiprocessing)
    path = tmp_path / "loop.log"
    configure(level="debug", log_file=path)
    yield path
    for handler in root.handlers:
        if isinstance(handler, logging.handlers.WatchedFileHandler):
            handler.close()
    for each, level, handlers, propagate in before:
        each.setLevel(level)
        each.handlers[:] = handlers
        each.propagate = propagate
    (logging.raiseExceptions, logging.logThreads, logging.logProcesses, logging.logMultiprocessing) = flags


def read(path: Path) -> list[dict[str, object]]:
    """Return the lines of a log file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def canaries_in(text: str) -> list[str]:
    """Return which secrets, or telling parts of them, stand in `text`."""
    parts = ["4nary", "c2lnbmF0dXJl", "4111111111111111", "5555 5555", "3782-822463"]
    return [part for part in parts if part in text]


def test_a_line_has_time_level_event_logger_and_fields(log_file: Path) -> None:
    get_logger("loop.workflows.orders").info("order.created", order_id="ord_1", amount_minor=4999, is_test=True, x=None)
    (line,) = read(log_file)
    moment = datetime.fromisoformat(str(line.pop("time")))
    assert abs(log_file.stat().st_mtime - moment.timestamp()) < 60
    assert line == {
        "level": "info",
        "event": "order.created",
        "logger": "loop.workflows.orders",
        "order_id": "ord_1",
        "amount_minor": 4999,
        "is_test": True,
        "x": None,
    }


def test_each_method_logs_at_its_level(log_file: Path) -> None:
    log = get_logger("loop.x")
    for write in (log.debug, log.info, log.warning, log.error, log.exception):
        write("happened")
    assert [line["level"] for line in read(log_file)] == ["debug", "info", "warning", "error", "error"]
    configure(level="warning", log_file=log_file)
    for write in (log.debug, log.info, log.warning):
        write("happened again")
    assert [line["level"] for line in read(log_file) if line["event"] == "happened again"] == ["warning"]


def test_a_field_never_hides_what_every_line_has(log_file: Path) -> None:
    get_logger("loop.x").info("order.created", level="mine", event="mine", time="mine")
    (line,) = read(log_file)
    assert (line["level"], line["event"]) == ("info", "order.created")
    assert (line["level_"], line["event_"], line["time_"]) == ("mine", "mine", "mine")


def test_any_value_becomes_json(log_file: Path) -> None:
    class Status(StrEnum):
        PAID = "paid"

    get_logger("loop.x").info(
        "values",
        path=Path("/a"),
        at=datetime(2026, 1, 2, tzinfo=UTC),
        status=Status.PAID,
        items=[1, ("a", 2), {3}],
        nested={"a": {"b": b"bytes"}},
        error=ValueError("no"),
        nan=float("nan"),
        surrogate="\ud800",
        text="Grüße\n\u2028\x1b[31m",
    )
    (line,) = read(log_file)
    assert line["path"] == "/a"
    assert line["at"] == "2026-01-02 00:00:00+00:00"
    assert line["status"] == "paid"
    assert line["items"] == [1, ["a", 2], [3]]
    assert line["nested"] == {"a": {"b": "bytes"}}
    assert line["error"] == "ValueError: no"
    assert line["nan"] == "nan"
    assert line["surrogate"] == "\ud800"
    assert line["text"] == "Grüße\n\u2028\x1b[31m"


def test_the_bound_fields_reach_every_line_of_the_task(log_file: Path) -> None:
    log = get_logger("loop.x")
    assert correlation_id() is None
    with bind(correlation_id="cor-1", order_id="ord_1"):
        assert correlation_id() == "cor-1"
        log.info("one")
        with bind(order_id="ord_2"):
            log.info("two", attempt_id="att_1")
            logging.getLogger("uvicorn.error").info("of a library")
        log.info("three")
    log.info("four")
    assert correlation_id() is None
    one, two, library, three, four = read(log_file)
    assert (one["correlation_id"], one["order_id"]) == ("cor-1", "ord_1")
    assert (two["correlation_id"], two["order_id"], two["attempt_id"]) == ("cor-1", "ord_2", "att_1")
    assert library["order_id"] == "ord_2"
    assert three["order_id"] == "ord_1"
    assert "order_id" not in four


async def test_tasks_do_not_share_what_they_bind() -> None:
    async def work(name: str) -> str | None:
        bind(correlation_id=name)
        await asyncio.sleep(0)
        return correlation_id()

    assert [*await asyncio.gather(work("a"), work("b"))] == ["a", "b"]
    assert correlation_id() is None


def test_a_transaction_is_marked_while_it_is_open() -> None:
    assert telemetry.transaction_is_open.get() is False

    def fail() -> None:
        with telemetry.open_transaction():
            assert telemetry.transaction_is_open.get() is True
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert telemetry.transaction_is_open.get() is False


@pytest.mark.parametrize("kind", CANARIES)
@pytest.mark.parametrize(
    "around", ["{}", "before {} after", "a={}, b=1", '{{"a": "{}"}}', "https://x.example/?q={}", "({})", "[{}]\n"]
)
def test_a_secret_is_known_by_its_look(kind: str, around: str) -> None:
    redacted = redact_text(around.format(CANARIES[kind]))
    assert not canaries_in(redacted)
    assert REDACTED in redacted
    assert redacted.startswith(around.partition("{}")[0].replace("{{", "{")[:3])


@pytest.mark.parametrize("name", HELD)
def test_a_secret_is_known_by_its_name(name: str) -> None:
    assert redact({name: HELD[name]}) == {name: REDACTED}
    assert redact({"a": [{name: HELD[name]}]}) == {"a": [{name: REDACTED}]}
    assert redact([(name, HELD[name])]) == [[name, REDACTED]]
    assert redact({name.encode(): HELD[name]}) == {name: REDACTED}


@pytest.mark.parametrize("name", [name for name, value in HELD.items() if isinstance(value, str)])
@pytest.mark.parametrize(
    "around",
    [
        "GET / HTTP/1.1\r\n{name}: {value}\r\nHost: x",
        "{name} = '{value}'",
        '"{name}": "{value}"',
        r"{{\"{name}\": \"{value}\"}}",
        "{{'{name}': '{value}'}}",
        "[('{name}', '{value}')]",
        "[(b'{name}', b'{value}')]",
        "Card({name}='{value}', x=1)",
        "Card({name}=SecretStr('{value}'), x=1)",
        "{name}: ['{value}', ['{value}']]",
        "{name}: ('{value}',)",
        "{name}: {{'a': {{'b': '{value}'}}}}",
        "{name}: {{'a': {{'b': {{'c': '{value}'}}}}}}",
        "'{name}': 'cut off in {value}",
        "'{name}': {{'cut off': {{'in': '{value}",
        r"'{name}': 'one\'s {value}'",
    ],
)
def test_a_name_gives_a_secret_away_in_text_too(name: str, around: str) -> None:
    redacted = redact_text(around.format(name=name, value=HELD[name]))
    assert not canaries_in(redacted)
    assert name in redacted


@pytest.mark.parametrize("text", ["password=c4nary&a=1", "a&client_secret=c4nary", "Token: c4nary", "api key = c4nary"])
def test_a_name_gives_a_bare_word_away(text: str) -> None:
    assert redact_text(text) == text.replace("c4nary", REDACTED)


def test_what_is_no_secret_stays() -> None:
    plain = {
        "order_id": "ord_01j9x5k6z2m3n4p5q6r7s8t9va",
        "api_key_id": "key_01j9x5k6z2m3n4p5q6r7s8t9va",
        "access_token_ttl_s": 86_400,
        "has_token": True,
        "token": None,
        "idempotency_key": "lpi_ABCDEFGHIJKLMNOPQRSTUVWXYZ234567",
        "at_ms": 1_732_463_813_123,
        "url": "https://shop.example:8443/hooks?order=1",
        "risk_test_group": "brisk_test_a",
        "amount": 4999,
        "ratio": 0.5,
        "text": "A basic payment failed: the bank said no.",
    }
    assert redact(plain) == plain


def test_numbers_keys_bytes_and_unknown_objects_are_looked_into() -> None:
    @dataclass
    class Card:
        number: str
        cvv: str

    assert redact(4111111111111111) == REDACTED
    assert redact({"4111111111111111": 1}) == {REDACTED: 1}
    assert redact(b"whsec_abcdefgh") == REDACTED
    assert not canaries_in(str(redact(Card("4111111111111111", "c4nary-1"))))
    assert redact({"key": Secret("canary")}) == {"key": "********"}


@pytest.mark.parametrize(
    "unit",
    ["secret", "token:", "token: {", "token: ([", "token='", "token=a(", "eyJaaaaaa.", "Bearer ", "a://b:", "_secret_"],
)
def test_long_hostile_text_takes_linear_time(unit: str) -> None:
    text = unit * (65_536 // len(unit))
    started_s = time.perf_counter()
    redact_text(text)
    assert time.perf_counter() - started_s < 2  # a twentieth of that, when nothing else runs


def test_containers_in_one_another_have_a_bound() -> None:
    endless: list[object] = []
    endless.append(endless)
    assert "[too deep]" in str(redact(endless))


def fail_with_them_all() -> None:
    """Raise an exception that names every secret, because of one that does so too."""
    cause = ValueError(HELD, list(CANARIES.values()))
    raise RuntimeError(f"failed with {json.dumps(CANARIES)} and {json.dumps(HELD)}") from cause


def test_no_secret_reaches_the_log(log_file: Path) -> None:
    log = get_logger("loop.x")
    log.info("values", **CANARIES, held=HELD, everything=[CANARIES, HELD], **HELD)
    log.info(" ".join(["message", str(CANARIES), repr(HELD)]))
    logging.getLogger("stripe").warning("call %s %s", CANARIES, HELD)
    with bind(headers=HELD, **HELD):
        log.info("bound")
    try:
        fail_with_them_all()
    except RuntimeError as error:
        log.exception("failed", error=error, text=repr(error))
        logging.getLogger("aiohttp.server").exception("failed %s", HELD)
    text = log_file.read_text()
    lines = read(log_file)
    assert len(lines) == 6
    assert "Traceback" in str(lines[4]["traceback"])
    assert "RuntimeError: failed with" in str(lines[4]["traceback"])
    assert "ValueError" in str(lines[5]["traceback"])
    assert not canaries_in(text)


def test_libraries_write_through_the_same_formatter_but_not_their_noise(log_file: Path) -> None:
    for name in ("aiohttp.access", "aiohttp.client", "alembic.runtime", "asyncio", "stripe", "uvicorn.access"):
        logging.getLogger(name).info("noise")
        logging.getLogger(name).debug("noise")
    logging.getLogger("aiosqlite").debug("noise")
    logging.getLogger("uvicorn.error").info("Started server process [%d]", 1)
    logging.getLogger("asyncio").error("Task was destroyed but it is pending!")
    logging.getLogger("redis.client").info("arguments that %d not fit", "do")
    events = [(line["logger"], line["event"]) for line in read(log_file)]
    assert events == [
        ("uvicorn.error", "Started server process [1]"),
        ("asyncio", "Task was destroyed but it is pending!"),
        ("redis.client", "arguments that %d not fit [with arguments that do not fit]"),
    ]


def test_the_console_has_one_line_for_each_event_and_the_traceback_below() -> None:
    program = """
import logging, sys
from loop.telemetry import bind, configure, get_logger
configure(log_format="console")
log = get_logger("loop.x")
with bind(order_id="ord_1"):
    log.info("order.created", amount_minor=4999, note="two words", tricky="a\\nb\\x1b[31m", nested={"a": 1}, none=None)
logging.getLogger("uvicorn.error").warning("two\\nlines")
try:
    raise ValueError("password=canary")
except ValueError:
    log.exception("failed")
log.debug("unseen")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == ""
    first, second, third, *traceback = done.stderr.splitlines()
    assert first[13:] == (
        'info    order.created order_id=ord_1 amount_minor=4999 note="two words"'
        r' tricky="a\nb\u001b[31m" nested={"a":1} none=null'
    )
    assert first[2] == first[5] == ":"
    assert second[13:] == r"warning two\nlines"
    assert third[13:] == "error   failed"
    assert traceback[0] == "  Traceback (most recent call last):"
    assert traceback[-1] == "  ValueError: password=[redacted]"
    assert all(line.startswith("  ") for line in traceback)


def test_standard_error_that_is_no_terminal_gets_json() -> None:
    program = "from loop.telemetry import configure, get_logger; configure(); get_logger('loop.x').info('a.b', c=1)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    line = json.loads(done.stderr)
    assert (line["event"], line["c"]) == ("a.b", 1)


def test_standard_error_that_is_a_terminal_gets_lines_for_people() -> None:
    program = "from loop.telemetry import configure, get_logger; configure(); get_logger('loop.x').info('a.b', c=1)"
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", program], stderr=theirs, check=True, cwd=ROOT)
    os.close(theirs)
    assert os.read(ours, 1000).decode().rstrip()[13:] == "info    a.b c=1"
    os.close(ours)


def test_configuring_again_does_not_double_the_lines(log_file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        configure(level="info", log_file=log_file)
        configure(level="info", log_file=log_file)
    get_logger("loop.x").info("once")
    assert len(read(log_file)) == 1


def test_a_file_that_was_moved_away_is_opened_anew(log_file: Path) -> None:
    log = get_logger("loop.x")
    log.info("before")
    log_file.rename(log_file.with_suffix(".1"))
    log.info("after")
    assert [line["event"] for line in read(log_file)] == ["after"]


async def test_the_lines_of_one_turn_come_together_and_at_its_end(log_file: Path) -> None:
    log = get_logger("loop.x")
    log.info("one")
    log.info("two")
    assert read(log_file) == []
    await asyncio.sleep(0)
    assert [line["event"] for line in read(log_file)] == ["one", "two"]
    log.info("three")
    await asyncio.sleep(0)
    assert [line["event"] for line in read(log_file)] == ["one", "two", "three"]


async def test_a_warning_does_not_wait_for_the_end_of_the_turn(log_file: Path) -> None:
    log = get_logger("loop.x")
    log.info("before")
    log.warning("worse")
    assert [line["event"] for line in read(log_file)] == ["before", "worse"]


async def test_a_turn_holds_back_so_many_lines_at_most(log_file: Path) -> None:
    log = get_logger("loop.x")
    for number in range(telemetry.MAX_WAITING_LINES + 1):
        log.info("one", number=number)
    assert len(read(log_file)) == telemetry.MAX_WAITING_LINES


async def test_another_thread_s_line_comes_after_those_that_wait(log_file: Path) -> None:
    log = get_logger("loop.x")
    log.info("before")
    thread = threading.Thread(target=log.info, args=("of another",))
    thread.start()
    thread.join()
    assert [line["event"] for line in read(log_file)] == ["before", "of another"]


async def test_each_turn_finds_a_file_that_was_moved_away(log_file: Path) -> None:
    log = get_logger("loop.x")
    log.info("before")
    await asyncio.sleep(0)
    await asyncio.to_thread(log_file.rename, log_file.with_suffix(".1"))
    log.info("after")
    await asyncio.sleep(0)
    assert [line["event"] for line in read(log_file)] == ["after"]


def test_what_an_ended_loop_left_is_written_by_the_next_or_when_the_process_ends(log_file: Path) -> None:
    log = get_logger("loop.x")

    def log_last(event: str) -> None:
        loop = asyncio.new_event_loop()
        loop.call_soon(log.info, event)
        loop.call_soon(loop.stop)
        loop.run_forever()
        loop.close()

    async def go_on() -> None:
        log.info("three")
        await asyncio.sleep(0)

    log_last("one")
    log_last("two")
    asyncio.run(go_on())
    assert [line["event"] for line in read(log_file)] == ["one", "two", "three"]
    log_last("four")
    logging.shutdown()
    assert [line["event"] for line in read(log_file)] == ["one", "two", "three", "four"]


def test_a_long_line_is_redacted_however_often_it_comes(log_file: Path) -> None:
    for _ in range(2):
        get_logger("loop.x").info("a.b", long="x" * 300 + " password=canary", short="password=canary")
    assert "canary" not in log_file.read_text()


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoopError, match="cannot be written: Is a directory") as caught:
        configure(log_file=tmp_path)
    assert caught.value.code == "unwritable_log_file"
