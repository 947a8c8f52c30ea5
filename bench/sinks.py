"""A sink: what shops and collectors are to Loop under load. It answers everything at once, and notes when it came."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import httptools

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


@dataclass(slots=True)
class Sink:
    """An HTTP server in this process; `arrivals` has the `time.perf_counter` of each request, when it was whole."""

    url: str = ""
    arrivals: list[float] = field(default_factory=list)
    _wanted: int = 0
    _has_wanted: asyncio.Event = field(default_factory=asyncio.Event)

    def arrived(self) -> None:
        """Note a request."""
        self.arrivals.append(time.perf_counter())
        if len(self.arrivals) == self._wanted:
            self._has_wanted.set()

    async def until(self, count: int, *, within_s: float) -> None:
        """Wait until so many requests have come, raises TimeoutError."""
        if len(self.arrivals) >= count:
            return
        self._wanted = count
        self._has_wanted.clear()
        async with asyncio.timeout(within_s):
            await self._has_wanted.wait()

    def per_s(self) -> float:
        """Return the rate of the middle eight tenths of what has come, so that neither the start nor the end counts."""
        first, last = len(self.arrivals) // 10, len(self.arrivals) * 9 // 10
        return (last - first) / (self.arrivals[last] - self.arrivals[first])


class _Connection(asyncio.Protocol):
    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way out."""
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        """Read on."""
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Answer, and keep the connection."""
        self._sink.arrived()
        self._transport.write(_ANSWER)


@asynccontextmanager
async def sink() -> AsyncIterator[Sink]:
    """Listen on a free port of this machine."""
    made = Sink()
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(made), "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()
