"""A collector of OpenTelemetry for tests: a real OTLP receiver on a free port, and what it was sent so far."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from oteltap import OtelTapHttpProtobufReceiver, OtelTapHttpProtobufReceiverSettings

WAITS_S = 30.0


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def attributes_of(sent: Any) -> dict[str, object]:
    """Return the attributes of a span, or of a point of a metric."""
    found = {}
    for each in sent.attributes:
        kind = each.value.WhichOneof("value")
        found[each.key] = getattr(each.value, kind) if kind else None
    return found


@dataclass
class Collector:
    """What a collector was sent."""

    spans: list[Span] = field(default_factory=list)
    metrics: dict[str, Metric] = field(default_factory=dict)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, sent: Span | Metric) -> None:
        if isinstance(sent, Span):
            self.spans.append(sent)
        else:
            self.metrics[sent.name] = sent
        self._arrived.set()

    async def until(self, is_there: Callable[["Collector"], bool]) -> None:
        """Wait until what was sent is enough."""
        async with asyncio.timeout(WAITS_S):
            while not is_there(self):
                self._arrived.clear()
                await self._arrived.wait()

    def named(self, name: str) -> list[Span]:
        return [each for each in self.spans if each.name == name]

    def trace_of(self, span: Span) -> list[Span]:
        """Return every span of a span's trace, in the order of their beginnings."""
        return sorted(
            (each for each in self.spans if each.trace_id == span.trace_id), key=lambda s: s.start_time_unix_nano
        )

    def text(self) -> str:
        """Return all that was sent, as text."""
        return "\n".join(map(str, [*self.spans, *self.metrics.values()]))


@asynccontextmanager
async def collecting(port: int) -> AsyncIterator[Collector]:
    """Receive on a port of this machine until the block ends."""
    collector = Collector()
    async with OtelTapHttpProtobufReceiver(OtelTapHttpProtobufReceiverSettings(http_port=port)) as tap:
        hearing = [
            asyncio.create_task(_hear(stream, collector)) for stream in (tap.stream_traces(), tap.stream_metrics())
        ]
        try:
            yield collector
        finally:
            for each in hearing:
                each.cancel()
            await asyncio.gather(*hearing, return_exceptions=True)


async def _hear(stream: AsyncIterator[Any], collector: Collector) -> None:
    async for sent in stream:
        collector.hear(sent)
