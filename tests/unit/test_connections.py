"""Connections: an answer's head and body leave in one write, and nothing is held for longer than a moment."""

import asyncio
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from loop.server.connections import HttpProtocol

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
