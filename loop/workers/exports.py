"""Exports: hand spans and metrics to an OpenTelemetry collector for as long as this process runs, if one is set."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from loop import metrics, traces
from loop.domain.errors import configuration
from loop.telemetry import get_logger
from loop.workflows.context import Context

if TYPE_CHECKING:
    from loop.otlp import Exports

log = get_logger(__name__)

METRICS_EVERY_S: Final = 15.0
"""Seconds between two times that the metrics are sent, and before the first."""

INSTANCE_BYTES: Final = 8
"""Random bytes of the name by which a collector tells processes apart, shown in hex."""


@asynccontextmanager
async def exporting(context: Context) -> AsyncIterator[None]:
    """Record spans and send metrics until the block ends; nothing at all without `otel_exporter_otlp_endpoint`.

    Raises `otel_not_installed`.
    """
    endpoint = context.settings.otel_exporter_otlp_endpoint
    if endpoint is None:
        yield
        return
    exports = _opened(context, endpoint)
    traces.record_with(exports)
    sending = asyncio.create_task(_send_metrics(context, exports), name="metrics")
    try:
        yield
    finally:
        traces.record_with(None)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await asyncio.to_thread(exports.stop)


def _opened(context: Context, endpoint: str) -> "Exports":
    try:
        from loop.otlp import Collector, Exports  # noqa: PLC0415 - an extra, and a process without it starts faster
    except ModuleNotFoundError as error:
        raise configuration(
            "otel_not_installed",
            "otel_exporter_otlp_endpoint is set, and what sends there is not installed: it is Loop's extra `otel`.",
        ) from error
    settings = context.settings
    collector = Collector(
        endpoint=endpoint,
        headers=_headers_of(context),
        service_name=settings.otel_service_name,
        instance_id=context.random_bytes(INSTANCE_BYTES).hex(),
        sampled=settings.otel_sample_percent / 100,
    )
    return Exports(collector, context.now(), random_bytes=context.random_bytes)


def _headers_of(context: Context) -> Mapping[str, str]:
    given = context.settings.otel_exporter_otlp_headers
    pairs = [] if given is None else [each.partition("=") for each in given.reveal().split(",")]
    # Percent-encoded, as OpenTelemetry specifies the variable: a comma, say, could not be written otherwise.
    return {name.strip(): unquote(value.strip()) for name, _, value in pairs}


async def _send_metrics(context: Context, exports: "Exports") -> None:
    while True:
        await asyncio.sleep(METRICS_EVERY_S)
        try:
            await context.vitals.refresh(context)
            await asyncio.to_thread(exports.send_metrics, metrics.REGISTRY.collect(), context.now())
        except Exception:
            log.exception("otlp.metrics_not_sent")
