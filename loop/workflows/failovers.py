"""Failovers: end what one processor may still be paid for, then let the next one take the order."""

from dataclasses import replace

from loop.domain import polling
from loop.domain.attempts import (
    UNPAID_STATUSES,
    Approved,
    Attempt,
    AttemptStatus,
    Cancelled,
    NotSent,
    Outcome,
    Unknown,
    Voided,
)
from loop.domain.errors import conflict
from loop.domain.events import EventType
from loop.domain.failover import failed_after_all
from loop.domain.orders import Order, OrderStatus
from loop.storage import attempts, jobs, orders
from loop.storage.jobs import Job
from loop.storage.orders import OrderInHand
from loop.telemetry import get_logger
from loop.workflows import counts, routing, webhooks
from loop.workflows.attempts import Call, Writes, asked, beginning, may_still_be_paid, operation_key, prepare
from loop.workflows.context import Context
from loop.workflows.outcomes import record
from loop.workflows.runs import Recorded, finish

log = get_logger(__name__)

FENCE_TRIES = 3
"""How often a processor that does not answer is asked to cancel the declined payment before the order is failed."""

RETRY_AFTER_S = 5


async def _fence(call: Call) -> Outcome:
    """Ask a processor to cancel the payment that it declined; the same key each time, so that it is cancelled once."""
    key = operation_key(call.attempt, "fence")
    return await asked(call, "void", question=call.processor.void(call.account, call.payment, key=key))


def is_left_open(context: Context, in_hand: OrderInHand) -> bool:
    """Tell whether a failed order's last attempt can still be paid."""
    order, attempt = in_hand.order, in_hand.attempt
    return order.status is OrderStatus.FAILED and attempt is not None and may_still_be_paid(context, attempt)


async def fence_last(context: Context, in_hand: OrderInHand) -> None:
    """Make sure that what a failed order left open cannot be paid any more, before the order is tried again.

    Raises `previous_attempt_open` when its processor does not confirm that. Money that turns up is recorded.
    """
    attempt = None if in_hand.attempt is None else await _give_up(context, in_hand.attempt)
    call = None if attempt is None else await prepare(context, attempt.id)
    if attempt is None or call is None:
        return  # the order moved on: what is asked next finds it as it is
    outcome = await _fence(call)
    if isinstance(outcome, Approved):
        await record(context, attempt, outcome, job=None)  # what is asked next finds the order paid
    elif not isinstance(outcome, Cancelled | Voided):
        raise conflict(
            "previous_attempt_open",
            f"{attempt.processor} has not confirmed that the last attempt is cancelled; try again in a moment.",
            retry_after_s=RETRY_AFTER_S,
        )


async def _give_up(context: Context, attempt: Attempt) -> Attempt | None:
    """Record that a failed attempt is to be ended for the next one; None when its order does not wait for that."""
    async with context.database.transaction() as session:
        in_hand = await orders.lock(session, attempt.merchant_id, attempt.order_id)
        if in_hand is None or in_hand.attempt is None or not is_left_open(context, in_hand):
            return None
        given_up = replace(in_hand.attempt, is_given_up=True, updated_at=context.now())
        await session.run_together([attempts.updating(given_up)])
    return given_up


async def fail_over(context: Context, job: Job) -> Recorded | None:
    """Fence the attempt that failed, where its processor needs that, and begin the next at another processor."""
    call = await prepare(context, str(job.arguments["attemptId"]))
    if call is None:
        await finish(context, job)
        return None
    if call.attempt.status is AttemptStatus.FAILED and job.arguments["needsFence"]:
        context.reached("failover.intent_recorded")
        outcome = await _fence(call)
        context.reached("failover.fenced")
        if isinstance(outcome, Approved):
            return await record(context, call.attempt, outcome, job=job)
        looks = jobs.looks_of(job)
        if isinstance(outcome, Unknown | NotSent) and looks < FENCE_TRIES:
            again = jobs.looking_again(job, context.now() + polling.delay(looks), last_error="not cancelled")
            async with context.database.transaction() as session:
                jobs.require_held((await session.run_together([again]))[0])
            return None
        if not isinstance(outcome, Cancelled | Voided):
            log.error("payment.not_fenced", order_id=call.attempt.order_id, attempt_id=call.attempt.id)
            return await _go_on(context, job, call.attempt, may_go_on=False)
    return await _go_on(context, job, call.attempt, may_go_on=True)


async def _go_on(context: Context, job: Job, attempt: Attempt, *, may_go_on: bool) -> Recorded | None:
    """Begin the next attempt, or fail the order when nobody is left; do nothing for an order that moved meanwhile."""
    following: Job | None = None
    async with context.database.transaction() as session:
        in_hand = await orders.lock(session, attempt.merchant_id, attempt.order_id)
        latest = None if in_hand is None else in_hand.attempt
        writes: Writes = []
        decision = None
        if in_hand is not None and latest is not None and _is_waiting(in_hand, attempt):
            decision = await routing.choose_next(context, session, in_hand.order, after=latest) if may_go_on else None
            if decision is None:
                in_hand, writes = _failing(context, in_hand.order, latest)
            else:
                context.breakers.let_through(decision.candidate.config_id, context.now())
                reason = f"after {attempt.processor} failed: {latest.error_code}"
                decision = replace(decision, reasons=(reason, *decision.reasons))
                in_hand, following, writes = beginning(context, in_hand.order, decision, snapshot=latest.request)
        changed = await session.run_together([*writes, jobs.finishing(job)])
        jobs.require_held(changed[-1])
    context.reached("failover.recorded")
    context.runner.wake()
    if in_hand is None:
        return None
    if decision is not None:
        counts.routed(decision, in_hand.order, by="after_failure")
    log.info("payment.failed_over", order_id=attempt.order_id, attempt_id=attempt.id, status=in_hand.order.status)
    return Recorded(in_hand, None if following is None else context.runner.start(context, following))


def _is_waiting(in_hand: OrderInHand, attempt: Attempt) -> bool:
    """Tell whether the order still waits for what follows this attempt: it was not paid by a late success since."""
    is_latest = in_hand.attempt is not None and in_hand.attempt.id == attempt.id
    is_unpaid = in_hand.attempt is not None and in_hand.attempt.status in UNPAID_STATUSES
    return is_latest and is_unpaid and in_hand.order.status is OrderStatus.PROCESSING


def _failing(context: Context, order: Order, attempt: Attempt) -> tuple[OrderInHand, Writes]:
    failed = failed_after_all(order, attempt, now=context.now())
    about = {"attempt": attempt.number, "declineCategory": attempt.decline_class}
    told = webhooks.recording(context, failed, EventType.PAYMENT_FAILED, payload=about)
    return OrderInHand(failed, attempt), [orders.updating(failed), *told]
