"""OTLP: sends spans and metrics to an OpenTelemetry collector, on threads of its own; the SDK is known nowhere else."""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from math import isnan
from typing import Final

import requests
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace import Span as SdkSpan
from prometheus_client.metrics_core import Metric as Family

from loop import traces
from loop.telemetry import get_logger
from loop.traces import Attributes

log = get_logger(__name__)

QUEUE_MAX: Final = 4096
"""How many ended spans wait to be sent; what comes on top is dropped, and nobody waits for room."""

BATCH_MAX: Final = 512
DRAWN_BYTES: Final = 1024
"""How much chance is taken at a time; two bytes decide on one trace."""

SEND_EVERY_S: Final = 2.0
SEND_WITHIN_S: Final = 5.0
"""How long one batch may take, tries again included."""

STOP_WITHIN_S: Final = 5.0
"""How long what is still to be sent may take at the end, and one more batch."""

_KINDS: Final[Mapping[traces.SpanKind, SpanKind]] = {
    traces.SpanKind.SERVER: SpanKind.SERVER,
    traces.SpanKind.CLIENT: SpanKind.CLIENT,
    traces.SpanKind.CONSUMER: SpanKind.CONSUMER,
}


class _Chance:
    """Decides which traces are kept, for a twentieth of what the SDK's own sampler costs a trace that is not."""

    def __init__(self, part: float, random_bytes: Callable[[int], bytes]) -> None:
        self._below = round(part * 2**16)
        self._random_bytes = random_bytes
        self._drawn = b""
        self._at = 0

    def decides(self) -> bool:
        """Tell whether the next trace is kept."""
        if self._at >= len(self._drawn):
            self._drawn, self._at = self._random_bytes(DRAWN_BYTES), 0
        at = self._at
        self._at = at + 2
        return self._drawn[at] << 8 | self._drawn[at + 1] < self._below


class _Reach:
    """Says once that the collector is away, and once that it is back."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self.is_away = False
        self._lock = threading.Lock()

    def heard(self, *, is_there: bool) -> None:
        """Note whether something could be sent."""
        with self._lock:
            if is_there is not self.is_away:
                return
            self.is_away = not is_there
        if is_there:
            log.info("otlp.reached_again", endpoint=self._endpoint)
        else:
            log.warning("otlp.unreachable", endpoint=self._endpoint, hint="spans and metrics are dropped meanwhile")


class _Exporter(SpanExporter):
    """The SDK's exporter, which would log each of its failures."""

    def __init__(self, inner: OTLPSpanExporter, reach: _Reach) -> None:
        self._inner = inner
        self._reach = reach

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send ended spans."""
        result = self._inner.export(spans)
        self._reach.heard(is_there=result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        """Give up what is on its way."""
        self._inner.shutdown()  # type: ignore[no-untyped-call]


class _Span:
    """A span of the SDK's as `traces.Span`."""

    __slots__ = ("_span", "trace_id", "traceparent")

    def __init__(self, span: SdkSpan) -> None:
        self._span = span
        own = span.get_span_context()
        self.trace_id = f"{own.trace_id:032x}"
        self.traceparent = f"00-{self.trace_id}-{own.span_id:016x}-01"

    def rename(self, name: str) -> None:
        """See `traces.Span.rename`."""
        self._span.update_name(name)

    def note(self, attributes: Attributes) -> None:
        """See `traces.Span.note`."""
        self._span.set_attributes(attributes)

    def end(self, error: str | None) -> None:
        """See `traces.Span.end`."""
        if error is not None:
            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


@dataclass(frozen=True, slots=True)
class Collector:
    """Where spans and metrics go, and what is said of this process there; `sampled` is a part of 1."""

    endpoint: str
    headers: Mapping[str, str] = field(repr=False)
    service_name: str
    instance_id: str
    sampled: float


class Exports:
    """What goes to one collector: spans by themselves, and the metrics each time they are handed over."""

    def __init__(self, collector: Collector, started_at: datetime, *, random_bytes: Callable[[int], bytes]) -> None:
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # it logs every failure; `_Reach` says it once
        self._reach = _Reach(collector.endpoint)
        self._chance = _Chance(collector.sampled, random_bytes)
        self._started_ns = _ns(started_at)
        self._resource = Resource(
            {
                "service.name": collector.service_name,
                "service.version": version("loop"),
                "service.instance.id": collector.instance_id,
            }
        )
        self._exporter = OTLPSpanExporter(
            f"{collector.endpoint}/v1/traces",
            headers=collector.headers,
            timeout=SEND_WITHIN_S,
            session=_session(),
        )
        self._processor = BatchSpanProcessor(
            _Exporter(self._exporter, self._reach),
            max_queue_size=QUEUE_MAX,
            schedule_delay_millis=SEND_EVERY_S * 1000,
            max_export_batch_size=BATCH_MAX,
        )
        provider = TracerProvider(sampler=ParentBased(ALWAYS_ON), resource=self._resource, shutdown_on_exit=False)
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("loop", version("loop"))
        self._metrics = OTLPMetricExporter(
            f"{collector.endpoint}/v1/metrics",
            headers=collector.headers,
            timeout=SEND_WITHIN_S,
            session=_session(),
        )

    def begin(
        self, name: str, kind: traces.SpanKind, *, parent: str | None, link: str | None, attributes: Attributes
    ) -> traces.Span | None:
        """See `traces.Recorder.begin`."""
        if parent is None and not self._chance.decides():
            return None
        above = None if parent is None else set_span_in_context(NonRecordingSpan(_named(parent)))
        links = None if link is None else [Link(_named(link))]
        span = self._tracer.start_span(name, above, _KINDS[kind], attributes, links)
        return _Span(span) if span.is_recording() else None

    def send_metrics(self, families: Iterable[Family], at: datetime) -> None:
        """Send figures as they are now; blocks for `SEND_WITHIN_S` at most."""
        found = [metric for family in families if (metric := self._metric(family, _ns(at))) is not None]
        scope = ScopeMetrics(InstrumentationScope("loop", version("loop")), found, "")
        result = self._metrics.export(MetricsData([ResourceMetrics(self._resource, [scope], "")]))
        self._reach.heard(is_there=result is MetricExportResult.SUCCESS)

    def _metric(self, family: Family, now_ns: int) -> Metric | None:
        if family.type == "histogram":
            points = [self._distribution(labels, values, now_ns) for labels, values in _distributions(family).items()]
            shape: Histogram | Sum | Gauge = Histogram(points, AggregationTemporality.CUMULATIVE)
            return Metric(family.name, family.documentation, "", shape) if points else None
        numbers = [
            NumberDataPoint(each.labels, self._started_ns, now_ns, each.value)
            for each in family.samples
            if not isnan(each.value)  # not known now
        ]
        is_sum = family.type == "counter"
        shape = Sum(numbers, AggregationTemporality.CUMULATIVE, is_monotonic=True) if is_sum else Gauge(numbers)
        name = f"{family.name}_total" if is_sum else family.name
        return Metric(name, family.documentation, "", shape) if numbers else None

    def _distribution(
        self, labels: tuple[tuple[str, str], ...], values: Mapping[str, float], now_ns: int
    ) -> HistogramDataPoint:
        bounds = [each for each in values if each not in ("sum", "+Inf")]
        upto = [values[each] for each in (*bounds, "+Inf")]
        counts = [int(each - below) for each, below in zip(upto, [0.0, *upto], strict=False)]
        return HistogramDataPoint(
            dict(labels),
            self._started_ns,
            now_ns,
            count=int(upto[-1]),
            sum=values["sum"],
            bucket_counts=counts,
            explicit_bounds=[float(each) for each in bounds],
            min=None,  # type: ignore[arg-type] # not known, and then not sent
            max=None,  # type: ignore[arg-type]
        )

    def stop(self) -> None:
        """Send what waits, if the collector is there and for a bounded time; blocks."""
        giving_up = threading.Timer(0 if self._reach.is_away else STOP_WITHIN_S, self._exporter.shutdown)
        giving_up.daemon = True
        giving_up.start()
        self._processor.shutdown()  # type: ignore[no-untyped-call]
        giving_up.cancel()
        self._metrics.shutdown()


def _ns(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1_000


def _session() -> requests.Session:
    """Return a session that takes no proxy and no password from the environment."""
    session = requests.Session()
    session.trust_env = False
    return session


def _named(traceparent: str) -> SpanContext:
    _, trace_id, span_id, flags = traceparent.split("-")
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))


def _distributions(family: Family) -> dict[tuple[tuple[str, str], ...], dict[str, float]]:
    """Return, for each series of a histogram, how many lie below each bound, and their `sum`."""
    found: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}
    for sample in family.samples:
        labels = tuple((name, value) for name, value in sample.labels.items() if name != "le")
        if sample.name.endswith("_bucket"):
            found.setdefault(labels, {})[sample.labels["le"]] = sample.value
        elif sample.name.endswith("_sum"):
            found.setdefault(labels, {})["sum"] = sample.value
    return found
