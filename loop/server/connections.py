"""Connections: uvicorn's side of HTTP/1.1, with the head and the body of an answer sent together."""

import asyncio
from typing import cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


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
    """What uvicorn speaks with one client."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; see `asyncio.BaseProtocol.connection_made`."""
        joining = _JoiningTransport(cast("asyncio.Transport", transport), self.loop)
        super().connection_made(cast("asyncio.Transport", joining))
