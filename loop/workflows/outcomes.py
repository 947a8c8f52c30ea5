"""Outcomes: the one function that applies what a processor says of an attempt, by whatever door it came in."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from loop import metrics
from loop.domain import polling
from loop.domain.attempts import LIVE_STATUSES, Attempt, AttemptStatus, Outcome, Pending, Unknown, is_overtaken
from loop.domain.errors import not_found
from loop.domain.events import EventType
from loop.domain.failover import Step, going_on, step_after
from loop.domain.ids import PREFIX_TRANSACTION
from loop.domain.orders import Change, Order, OrderStatus, apply_outcome
from loop.domain.transactions import NewTransaction, Transaction
from loop.metrics import of
from loop.storage import attempts, checkout, jobs, orders, transactions
from loop.storage.database import Session
from loop.storage.jobs import Job
from loop.storage.orders import OrderInHand
from loop.telemetry import get_logger
from loop.workflows import counts, late_successes, routing, webhooks
from loop.workflows.attempts import ADVANCE, VOID, Writes, advance_job, fail_over_job, has_token
from loop.workflows.context import Context
from loop.workflows.runs import Recorded, waiting

log = get_logger(__name__)

_SETTLED = frozenset(AttemptStatus) - LIVE_STATUSES - {AttemptStatus.AUTHORIZED}
"""Attempts of which nothing more is asked, however an answer to a question was lost."""

_TURNS_CHECKOUT = frozenset({OrderStatus.AUTHORIZED, OrderStatus.CAPTURED, OrderStatus.CANCELLED})


async def record(
    context: Context,
    attempt: Attempt,
    outcome: Outcome,
    *,
    job: Job | None,
    payload: Mapping[str, object] | None = None,
) -> Recorded:
    """Apply what a processor says of an attempt: the one function for every door that a fact comes in by.

    The attempt is given as it was when the processor was asked. With a job, its end (or its next run, while the outcome
    stays unclear) is part of the same commit. So are the jobs that a fact makes necessary: the next processor's turn,
    or the way back of money that came too late.
    """
    async with context.database.transaction() as session:
        in_hand = await orders.lock(session, attempt.merchant_id, attempt.order_id)
        if in_hand is None:
            raise not_found("order")
        current = in_hand.attempt
        if current is None or current.id != attempt.id:
            current = await attempts.get(session, attempt.id) or attempt
        if is_overtaken(outcome, asked=attempt, current=current):
            outcome = Unknown("another answer came while the processor was asked")
        now = context.now()
        change = apply_outcome(in_hand.order, current, outcome=outcome, now=now)
        change = _expiring(context, change, now)
        change, failing_over = await _failing_over(context, session, in_hand.order, change, outcome)
        change = await late_successes.judging(session, change, in_hand)
        told = _telling(context, change, payload)
        change, settling = await late_successes.settling(context, session, change, latest=in_hand.attempt)
        change, ending = _with_next_question(context, change, outcome, job, now)
        writes = [
            *([orders.updating(change.order)] if change.order != in_hand.order else []),
            *([attempts.updating(change.attempt)] if change.attempt != current else []),
            *(transactions.insertion(_row(context, t, change, now)) for t in change.transactions),
            *told,
            *settling,
            *([] if failing_over is None else [jobs.insertion(failing_over)]),
            *(await turning_checkout(context, session, change.order) if _news(change) & _TURNS_CHECKOUT else []),
            *ending,
        ]
        if writes:
            changed = await session.run_together(writes)
            if job is not None:
                jobs.require_held(changed[-1])
    context.reached("charge.recorded")
    context.runner.wake()
    counts.payment(change.order, change.attempt, before=current, moved=change.transactions)
    log.info(
        "payment.recorded",
        order_id=change.order.id,
        attempt_id=attempt.id,
        outcome=type(outcome).__name__,
        status=change.order.status,
        ignored=change.ignored,
    )
    following = None if failing_over is None else context.runner.start(context, failing_over)
    return Recorded(OrderInHand(change.order, change.attempt), following)


async def _failing_over(
    context: Context, session: Session, before: Order, change: Change, outcome: Outcome
) -> tuple[Change, Job | None]:
    """Return the change, or one after which the order goes on at the next processor with the job that is for it."""
    attempt = change.attempt
    if EventType.PAYMENT_FAILED not in change.events or before.status not in (
        OrderStatus.PROCESSING,
        OrderStatus.REQUIRES_ACTION,
    ):
        return change, None
    finality = context.processors.get(attempt.processor).capabilities.decline_finality
    step = step_after(outcome, finality=finality, has_token=has_token(attempt.request))
    if step is Step.STOP or before.attempt_count >= context.settings.max_attempts_per_order:
        return change, None
    if await routing.choose_next(context, session, before, after=attempt) is None:
        return change, None
    log.info("payment.failing_over", order_id=before.id, attempt_id=attempt.id, code=attempt.error_code)
    return going_on(before, change), fail_over_job(context, attempt, needs_fence=step is Step.FENCE)


def _news(change: Change) -> set[OrderStatus]:
    return {change.order.status} if change.events else set()


def _expiring(context: Context, change: Change, now: datetime) -> Change:
    if change.order.status is OrderStatus.REQUIRES_ACTION and change.order.expires_at is None:
        return replace(
            change, order=replace(change.order, expires_at=now + timedelta(seconds=context.settings.order_ttl_s))
        )
    return change


def _is_still_asked(attempt: Attempt, job: Job | None) -> bool:
    """Tell whether an answer is still wanted; of a payment that failed only whether it is cancelled now."""
    is_to_be_cancelled = attempt.status is AttemptStatus.FAILED and job is not None and job.kind == VOID
    return is_to_be_cancelled or attempt.status not in _SETTLED


def _with_next_question(
    context: Context, change: Change, outcome: Outcome, job: Job | None, now: datetime
) -> tuple[Change, Writes]:
    """Return the change with when the processor is asked next, should its answer have left the attempt open."""
    attempt, order = change.attempt, change.order
    is_open = attempt.status in (AttemptStatus.UNKNOWN, AttemptStatus.PENDING)
    is_unanswered = isinstance(outcome, Unknown) and _is_still_asked(attempt, job)
    if not is_open and not is_unanswered:
        answered = replace(change, attempt=replace(attempt, asked_count=0, unclear_since=None))
        return answered, [jobs.finishing(job)] if job is not None else []
    is_pending = isinstance(outcome, Pending)
    unclear_since = None if is_pending else attempt.unclear_since or now
    since = unclear_since or attempt.updated_at
    if now - since >= (polling.PENDING_ALERT_AFTER if is_pending else polling.ALERT_AFTER) and not order.needs_review:
        of(metrics.UNCLEAR, "payment").inc()
        log.error("payment.unclear", order_id=order.id, attempt_id=attempt.id, since=since)
        order = replace(order, needs_review=True)
    again = now + polling.delay(attempt.asked_count, is_pending=is_pending)
    change = replace(
        change,
        order=order,
        attempt=replace(attempt, asked_count=attempt.asked_count + 1, unclear_since=unclear_since),
    )
    if job is not None and (job.kind == ADVANCE or not is_pending):
        reason = outcome.reason if isinstance(outcome, Unknown) else None
        return change, [jobs.rescheduling(job, again, last_error=reason)]
    asking = jobs.insertion(waiting(advance_job(context, attempt), again))
    # A payment that is pending can be neither cancelled nor captured: all that is left is to ask.
    return change, [asking, *([] if job is None else [jobs.finishing(job)])]


def _row(context: Context, new: NewTransaction, change: Change, now: datetime) -> Transaction:
    return Transaction(
        id=context.new_id(PREFIX_TRANSACTION),
        merchant_id=change.order.merchant_id,
        order_id=change.order.id,
        attempt_id=change.attempt.id,
        refund_id=None,
        type=new.type,
        status=new.status,
        amount_minor=new.amount_minor,
        currency=change.order.currency,
        processor=change.attempt.processor,
        processor_transaction_id=new.processor_transaction_id,
        error_code=new.error_code,
        error_message=new.error_message,
        created_at=now,
    )


def _telling(context: Context, change: Change, payload: Mapping[str, object] | None = None) -> Writes:
    about = {"attempt": change.attempt.number, "declineCategory": change.attempt.decline_class, **(payload or {})}
    return [
        write for event in change.events for write in webhooks.recording(context, change.order, event, payload=about)
    ]


async def turning_checkout(context: Context, session: Session, order: Order) -> Writes:
    """Return the writes that complete the pages of an order that is paid now, or whose money is held, and tell of it.

    A page is completed once, at the hold or the capture, whichever comes first; a hold that is let go takes it back.
    """
    writes: Writes = []
    for page in await checkout.of_order(session, order.id):
        if order.status in checkout.PAID and page.completed_at is None:
            about = {"checkoutSessionId": page.id}
            writes.append(checkout.completing(page.id, context.now()))
            writes += webhooks.recording(context, order, EventType.CHECKOUT_COMPLETED, payload=about)
        elif order.status is OrderStatus.CANCELLED and page.completed_at is not None:
            writes.append(checkout.taking_back(page.id))
    return writes
