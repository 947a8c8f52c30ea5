"""Jobs: every kind of work, its handler, how long one run may take, and how failures are retried."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from loop.storage import webhooks as webhook_rows
from loop.storage.jobs import Job
from loop.workflows import captures, payments, processor_events, refunds, webhooks
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


MAX_BACKOFF_S = 600.0

JOBS: Mapping[str, JobKind] = {
    payments.ADVANCE: JobKind(payments.advance, deadline_s=60),
    captures.CAPTURE: JobKind(captures.run_capture, deadline_s=60),
    captures.VOID: JobKind(captures.run_void, deadline_s=60),
    refunds.SEND: JobKind(refunds.send, deadline_s=60),
    processor_events.PROCESS: JobKind(processor_events.process, deadline_s=60),
    webhook_rows.DELIVER: JobKind(webhooks.attempt_delivery, deadline_s=60),
}
"""kind -> how it is run; a job of another kind is dead at once and says so."""


def backoff_s(failures: int, unit_random: float) -> float:
    """Return seconds to wait after so many failures: exponential, with full jitter."""
    return min(MAX_BACKOFF_S, 2.0 ** min(failures, 20)) * unit_random
