"""Connections: uvicorn's side of HTTP/1.1, with answers sent in one piece and bounds on what a client may send."""

import asyncio
import json
from http import HTTPStatus
from typing import Any, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_HEAD_BYTES: Final = 65_536
"""Of a request's head that comes in pieces. One that comes at once is bounded by what is read at once."""

MAX_REQUEST_BYTES: Final = 32 * 1024 * 1024
"""Of one request: more than is read of any body, so that refusals of large bodies are heard before."""

HEAD_DEADLINE_S: Final = 10.0
"""How long a head may take to arrive, in seconds; a new connection's first one from the connecting on."""

KEEP_ALIVE_S: Final = 75
"""How long an idle connection is kept, in seconds: longer than clients and proxies keep theirs (nginx, AWS: 60).

Whoever sends into a connection that is just being closed cannot know whether the payment was heard.
"""


class _JoiningTransport:
    """A transport that makes one system call and one packet of two writes, where uvloop makes two of each."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._call_soon = loop.call_soon
        self._held = b""

    def __getattr__(self, name: str) -> object:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Hold the first of two until the second comes, or until the event loop's turn has ended without one."""
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(held + data)
        else:
            self._held = data
            self._call_soon(self._write_held)

    def _write_held(self) -> None:
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)

    def close(self) -> None:
        """Close once all is written."""
        self._write_held()
        self._transport.close()

    def is_closing(self) -> bool:
        """See `asyncio.BaseTransport.is_closing`."""
        return self._transport.is_closing()


class HttpProtocol(HttpToolsProtocol):
    """What uvicorn speaks with one client, which it would let send a head without end, or none for ever."""

    _head_timer: asyncio.TimerHandle | None = None
    _counted: object = None
    """The scope of the request that `_received` counts the bytes of."""
    _received = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; see `asyncio.BaseProtocol.connection_made`."""
        joining = _JoiningTransport(cast("asyncio.Transport", transport), self.loop)
        super().connection_made(cast("asyncio.Transport", joining))
        self._head_timer = self.loop.call_later(HEAD_DEADLINE_S, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """End; see `asyncio.BaseProtocol.connection_lost`."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take in a piece; see `asyncio.Protocol.data_received`."""
        super().data_received(data)
        scope = cast("dict[str, Any] | None", self.scope)
        is_head_complete = scope is not None and "method" in scope
        if scope is not self._counted:
            self._counted, self._received = scope, 0
        else:
            self._received += len(data)
            if self._received > (MAX_REQUEST_BYTES if is_head_complete else MAX_HEAD_BYTES):
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large", "The request is too large.")
        if is_head_complete:
            self._stop_timer()
        elif self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(HEAD_DEADLINE_S, self._give_up)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in the shape of every error."""
        self._refuse(HTTPStatus.BAD_REQUEST, "invalid_http", msg)

    def _give_up(self) -> None:
        if self._counted is None:  # nothing was asked: browsers connect ahead of need, and no answer is waited for
            self.transport.close()
        else:
            message = f"The head of the request did not come within {HEAD_DEADLINE_S:g} seconds."
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "head_too_slow", message)

    def _refuse(self, status: HTTPStatus, code: str, message: str) -> None:
        """Answer and close the connection; only close it where an earlier request is still being answered."""
        if self.transport.is_closing():
            return
        if self._may_answer():
            body = json.dumps({"code": code, "message": message}, separators=(",", ":"))
            head = (
                f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
            )
            self.transport.write((head + body).encode())
        self.transport.close()

    def _may_answer(self) -> bool:
        """Whether an answer written now would be taken for that of the request which is coming in."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is None or cycle.response_complete:
            return True
        return cycle.scope is self.scope and not cycle.response_started and not self.pipeline

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
