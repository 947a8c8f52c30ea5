"""Jobs: every kind of work, its handler, how long one run may take, and how failures are retried."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from loop.storage.jobs import Job
from loop.storage.tables import DELIVER
from loop.workflows import (
    attempts,
    captures,
    deliveries,
    disputes,
    failovers,
    payments,
    processor_events,
    reconciliation,
    refunds,
)
from loop.workflows.context import Context


@dataclass(frozen=True, slots=True)
class JobKind:
    """How a kind of job is run.

    A handler ends or reschedules its job in its own last transaction. What it raises is a failure: the job is tried
    again with exponential backoff and full jitter, and is dead after `max_failures`.
    """

    handler: Callable[[Context, Job], Awaitable[object]]
    deadline_s: float
    max_failures: int = 20
    is_handed_back: bool = False
    """Whether another process may begin at once when a stop cuts a run short.

    Not where a request that moves money may be under way. Its outcome is unknown, and a successor treats it so: its
    fence is above the first. But what it then sends leans on the processor to refuse a repeat, and not every
    processor is sure to before it has seen the first request (Razorpay's refunds). So such a job keeps its lease: no
    request begins that might outlast it (`Lease.cover_call`).
    """


MAX_BACKOFF_S = 600.0

JOBS: Mapping[str, JobKind] = {
    attempts.ADVANCE: JobKind(payments.advance, deadline_s=60),
    attempts.FAIL_OVER: JobKind(failovers.fail_over, deadline_s=60),
    captures.CAPTURE: JobKind(captures.run_capture, deadline_s=60),
    attempts.VOID: JobKind(captures.run_void, deadline_s=60),
    refunds.SEND: JobKind(refunds.send, deadline_s=60),
    disputes.ASK: JobKind(disputes.ask, deadline_s=60, is_handed_back=True),
    processor_events.PROCESS: JobKind(processor_events.process, deadline_s=60, is_handed_back=True),
    reconciliation.RECONCILE: JobKind(reconciliation.run, deadline_s=900, is_handed_back=True),
    DELIVER: JobKind(deliveries.deliver, deadline_s=60, is_handed_back=True),
}
"""kind -> how it is run; a job of another kind waits for a process of a version that knows it."""


def backoff_s(failures: int, unit_random: float) -> float:
    """Return seconds to wait after so many failures: exponential, with full jitter."""
    return min(MAX_BACKOFF_S, 2.0 ** min(failures, 20)) * unit_random
