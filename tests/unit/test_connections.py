"""Connections: an answer's head and body leave in one write, and no client sends a request without end."""

import asyncio
import json
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from loop.server import connections
from loop.server.connections import MAX_HEAD_BYTES, MAX_REQUEST_BYTES, HttpProtocol

CLOSED = b"(closed)"


class Recorded(asyncio.Transport):
    """A transport that goes nowhere and keeps what is written, and when it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def write(self, data: Any) -> None:
        """Keep it."""
        self.written.append(bytes(data))

    def close(self) -> None:
        """Note it."""
        self.written.append(CLOSED)

    def is_closing(self) -> bool:
        """Return whether it was closed."""
        return CLOSED in self.written

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ARG002 - asyncio's signature
        """Know nothing."""
        return default


class Waiting:
    """An application that answers with `hello`, waiting for leave between the head and the body."""

    def __init__(self) -> None:
        self.may_go_on = asyncio.Event()

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Answer."""
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await self.may_go_on.wait()
        await send({"type": "http.response.body", "body": b"hello"})


def connect(app: ASGIApp) -> tuple[HttpProtocol, Recorded]:
    """Return a new connection and where it writes."""
    protocol = HttpProtocol(Config(app, log_config=None, access_log=False), ServerState(), {})
    transport = Recorded()
    protocol.connection_made(transport)
    return protocol, transport


@pytest.fixture
def app() -> Waiting:
    return Waiting()


async def ask(protocol: HttpProtocol, *lines: str) -> None:
    """Send a request and give it time to be answered."""
    protocol.data_received("\r\n".join([*lines, "Host: x", "", ""]).encode())
    await asyncio.sleep(0.01)


async def test_head_and_body_are_one_write(app: Waiting) -> None:
    app.may_go_on.set()
    protocol, transport = connect(app)
    for _ in range(2):
        await ask(protocol, "GET / HTTP/1.1")
    assert len(transport.written) == 2
    for answer in transport.written:
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\nhello")


async def test_a_head_does_not_wait_for_a_slow_body(app: Waiting) -> None:
    protocol, transport = connect(app)
    await ask(protocol, "GET / HTTP/1.1")
    (head,) = transport.written
    assert head.endswith(b"\r\n\r\n")
    app.may_go_on.set()
    await asyncio.sleep(0.01)
    assert transport.written == [head, b"hello"]


async def test_an_answer_without_a_body_is_sent(app: Waiting) -> None:
    app.may_go_on.set()
    protocol, transport = connect(app)
    await ask(protocol, "HEAD / HTTP/1.1")
    (head,) = transport.written
    assert head.endswith(b"\r\n\r\n")


async def test_all_is_written_before_the_connection_closes(app: Waiting) -> None:
    app.may_go_on.set()
    protocol, transport = connect(app)
    await ask(protocol, "GET / HTTP/1.1", "Connection: close")
    assert b"".join(transport.written).endswith(b"hello" + CLOSED)


async def test_a_request_that_is_no_http_is_refused_before_the_connection_closes(app: Waiting) -> None:
    protocol, transport = connect(app)
    await ask(protocol, "\x01")
    answer, closed = transport.written
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert closed == CLOSED


async def test_nothing_is_written_to_a_client_that_has_gone(app: Waiting) -> None:
    protocol, transport = connect(app)
    protocol.data_received(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.sleep(0)  # the head is held
    transport.close()
    protocol.connection_lost(None)
    app.may_go_on.set()
    await asyncio.sleep(0.01)
    assert set(transport.written) == {CLOSED}


def code_of(answer: bytes) -> str:
    """Return the code of a refusal that was written by the connection itself."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"X-Content-Type-Options: nosniff" in head
    assert b"Server" not in head
    code: str = json.loads(body)["code"]
    return code


PIECES = {
    "one header": (b"GET / HTTP/1.1\r\nX: ", b"x" * 1_000),
    "many headers": (b"GET / HTTP/1.1\r\n", b"X: y\r\n" * 100),
    "a target": (b"GET /", b"x" * 1_000),
}


@pytest.mark.parametrize("start", PIECES)
async def test_a_head_without_end_is_refused(app: Waiting, start: str) -> None:
    protocol, transport = connect(app)
    first, piece = PIECES[start]
    protocol.data_received(first)
    for _ in range(MAX_HEAD_BYTES // len(piece) + 1):
        assert not transport.written
        protocol.data_received(piece)
    await asyncio.sleep(0)
    answer, closed = transport.written
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert (code_of(answer), closed) == ("head_too_large", CLOSED)
    protocol.connection_lost(None)


async def test_what_follows_an_answer_without_end_is_cut_off(app: Waiting) -> None:
    app.may_go_on.set()
    protocol, transport = connect(app)
    await ask(protocol, "GET / HTTP/1.1", "Transfer-Encoding: chunked")
    assert transport.written[0].endswith(b"hello")
    protocol.data_received(b"0\r\nX-Trailer: ")
    piece = b"x" * 1_000_000
    for _ in range(MAX_REQUEST_BYTES // len(piece) + 1):
        if CLOSED not in transport.written:
            protocol.data_received(piece)
    assert transport.written[-1] == CLOSED
    protocol.connection_lost(None)


async def test_a_head_that_stops_is_refused_and_silence_is_hung_up_on(
    app: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_DEADLINE_S", 0.02)
    app.may_go_on.set()
    _, silent = connect(app)
    slow, answered = connect(app)
    slow.data_received(b"GET / HTTP/1.1\r\nX: y\r\n")
    second, kept = connect(app)
    await ask(second, "GET / HTTP/1.1")
    second.data_received(b"GET / HT")
    busy, waiting = connect(Waiting())
    busy.data_received(b"GET / HTTP/1.1\r\n\r\n")
    await asyncio.sleep(0.1)
    assert silent.written == [CLOSED]
    assert answered.written[0].startswith(b"HTTP/1.1 408 ")
    assert (code_of(answered.written[0]), answered.written[1]) == ("head_too_slow", CLOSED)
    assert (len(kept.written), code_of(kept.written[1]), kept.written[2]) == (3, "head_too_slow", CLOSED)
    assert CLOSED not in waiting.written  # its head is complete: what comes now is the application's to say
    for each in (slow, second, busy):
        each.connection_lost(None)


async def test_a_client_that_keeps_its_connection_is_not_hung_up_on(
    app: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_DEADLINE_S", 0.05)
    app.may_go_on.set()
    protocol, transport = connect(app)
    for _ in range(6):
        await ask(protocol, "GET / HTTP/1.1")
        await asyncio.sleep(0.02)
    assert len(transport.written) == 6
    assert CLOSED not in transport.written
