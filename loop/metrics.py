"""Metrics: every figure that Loop keeps of itself, declared once, and their text as Prometheus reads it."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

__all__ = ["CONTENT_TYPE_LATEST", "DECLARED", "REGISTRY", "exposition", "of"]

MAX_SERIES: Final = 8192
"""How many series are found by their labels without the library's help; there are fewer."""

REGISTRY: Final = CollectorRegistry(auto_describe=True)
"""This process's own; several processes are told apart by whoever reads them."""

_Series = TypeVar("_Series", Counter, Gauge, Histogram)


@dataclass(frozen=True, slots=True)
class Declared:
    """What the reference says of a metric; `labels` are bounded: their values are words, never an id or a path."""

    name: str
    kind: str
    labels: tuple[str, ...]
    about: str


DECLARED: Final[list[Declared]] = []
"""Every metric of Loop's own, in the order of the reference."""


def _declared(name: str, kind: str, labels: tuple[str, ...], about: str) -> tuple[str, str, tuple[str, ...]]:
    DECLARED.append(Declared(name, kind, labels, about))
    return name, about, labels


def _counter(name: str, about: str, *labels: str) -> Counter:
    return Counter(*_declared(name, "counter", labels, about), registry=REGISTRY)


def _gauge(name: str, about: str, *labels: str) -> Gauge:
    return Gauge(*_declared(name, "gauge", labels, about), registry=REGISTRY)


def _histogram(name: str, about: str, *labels: str, buckets: Iterable[float]) -> Histogram:
    return Histogram(*_declared(name, "histogram", labels, about), registry=REGISTRY, buckets=tuple(buckets))


@lru_cache(maxsize=MAX_SERIES)
def of(metric: _Series, *labels: str) -> _Series:
    """Return a metric's series with these labels' values; the library itself takes ten times as long to find it."""
    return metric.labels(*labels)


def exposition() -> bytes:
    """Return every figure in Prometheus' text format."""
    return generate_latest(REGISTRY)


disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each, which nobody asks for
ProcessCollector(registry=REGISTRY)

_ANSWERS_S: Final = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_CALLS_S: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 8, 12, 20, 30)
_WAITS_S: Final = (0.01, 0.05, 0.1, 0.5, 1, 5, 30, 120, 600, 3600, 21600, 86400)

BUILD: Final = _gauge("loop_build_info", "Always 1; the labels say what runs.", "version", "database")
HTTP: Final = _histogram(
    "loop_http_request_seconds",
    "Requests and how long they took. `route` is the address with its parameters by name, or `unmatched`.",
    "method",
    "route",
    "status",
    buckets=_ANSWERS_S,
)

ROUTED: Final = _counter(
    "loop_routing_decisions_total",
    "Attempts to pay by who was chosen and why: a `rule`, the `default`, `forced` by the request, or `after_failure` "
    "of another; `refused` is when nobody could take the payment.",
    "processor",
    "mode",
    "by",
)
OUTCOMES: Final = _counter(
    "loop_payment_outcomes_total",
    "Changes of attempts' status. `decline_class` is empty for what was not declined.",
    "processor",
    "mode",
    "status",
    "decline_class",
)
CAPTURED: Final = _counter(
    "loop_captured_minor_units_total", "Money taken, in the currency's minor units.", "processor", "mode", "currency"
)
REFUNDS: Final = _counter("loop_refund_outcomes_total", "Changes of refunds' status.", "processor", "mode", "status")
REFUNDED: Final = _counter(
    "loop_refunded_minor_units_total",
    "Money given back, in the currency's minor units.",
    "processor",
    "mode",
    "currency",
)
UNCLEAR: Final = _counter(
    "loop_unclear_outcomes_total",
    "Payments and refunds of which the processor has not said for 15 minutes how they stand, or only that they are "
    "pending for 21 days.",
    "kind",
)
IN_REVIEW: Final = _gauge("loop_orders_in_review", "Orders that wait for a person's look; 10000 stands for more.")
CALLS: Final = _histogram(
    "loop_processor_call_seconds",
    "Calls to processors about a payment and how long they took. `outcome` is `unknown` where no clear answer came.",
    "processor",
    "operation",
    "outcome",
    buckets=_CALLS_S,
)
CIRCUITS: Final = _gauge(
    "loop_circuits_open", "Processor accounts that this process sends no new payments for now.", "processor"
)

INBOUND: Final = _counter(
    "loop_processor_events_total",
    "Webhooks from processors: `new`, a `repeat`, `refused` (nobody known has signed it), or `quarantined` when looked "
    "at.",
    "processor",
    "result",
)
INBOUND_S: Final = _histogram(
    "loop_processor_event_seconds", "From a webhook's arrival until it was acted on.", "processor", buckets=_WAITS_S
)
TRIES: Final = _counter(
    "loop_webhook_tries_total",
    "Tries to deliver to merchants: `delivered`, `retried` (to be tried again), or `given_up`.",
    "result",
)
DELIVERED_S: Final = _histogram(
    "loop_webhook_delivery_seconds", "From an event's commit until an endpoint had it.", buckets=_WAITS_S
)
DELIVERED_TRIES: Final = _histogram(
    "loop_webhook_delivery_tries", "Tries that a delivered event took.", buckets=(1, 2, 3, 4, 5, 6, 8, 10, 15)
)
DELIVERIES_WAITING: Final = _gauge(
    "loop_webhook_deliveries_waiting", "Deliveries to merchants that have yet to arrive; 10000 stands for more."
)

JOBS: Final = _histogram(
    "loop_job_run_seconds",
    "Runs of jobs and how long they took: `ended`, `failed` (to be tried again), `dead` (given up), `lease_lost` "
    "(another process has it now) or `cut_short` (by a shutdown).",
    "kind",
    "result",
    buckets=_CALLS_S,
)
JOBS_DUE: Final = _gauge("loop_jobs_due", "Jobs that could run now and do not; at most 10000 are counted.", "kind")
JOBS_LAG_S: Final = _gauge("loop_jobs_oldest_due_seconds", "For how long the oldest of them could have run.", "kind")
JOBS_DEAD: Final = _gauge("loop_jobs_dead", "Jobs that were given up; at most 10000 are counted.", "kind")

RECONCILED: Final = _counter("loop_reconciliations_total", "Days compared with a processor's list.", "processor")
MISMATCHES: Final = _counter(
    "loop_reconciliation_mismatches_total", "Differences that a comparison found and none before it.", "processor"
)

DATABASE_UP: Final = _gauge("loop_database_up", "Whether the database answered the last time it was asked: 1 or 0.")
CONNECTIONS: Final = _gauge(
    "loop_database_connections",
    "This process's connections to PostgreSQL: `in_use`, `free`, and the `waiting` who want one.",
    "state",
)
REDIS_UP: Final = _gauge(
    "loop_redis_up",
    "Whether Redis did what this process last asked of it, for its rate `limits`, for `wake_ups` and to share circuit "
    "`breakers`: 1 or 0; nothing without `redis_url`.",
    "used_for",
)

for _kind in ("payment", "refund"):  # from the start, so that the first one is seen as an increase
    of(UNCLEAR, _kind)
