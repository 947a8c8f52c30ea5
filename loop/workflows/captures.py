"""Captures and cancellations: take held money, release it, or end a payment that nobody finished."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from loop.domain.attempts import (
    Attempt,
    AttemptStatus,
    Declined,
    NotSent,
    Outcome,
    Unknown,
    Unmoved,
    advance,
    status_of,
)
from loop.domain.audit import AuditAction
from loop.domain.errors import LoopError, conflict, invalid, not_found
from loop.domain.events import EventType
from loop.domain.failover import RESENT_CODES
from loop.domain.money import Money
from loop.domain.orders import EXPIRED, Command, Order, OrderStatus, require
from loop.storage import attempts, jobs, orders
from loop.storage.database import Session
from loop.storage.jobs import Job
from loop.storage.orders import OrderInHand
from loop.telemetry import get_logger
from loop.workflows import audit, webhooks
from loop.workflows.attempts import SETTLE_KEY_PREFIX, VOID, Call, asked, operation_key, paying, prepare, settle_key
from loop.workflows.context import Context
from loop.workflows.failovers import is_left_open
from loop.workflows.outcomes import record
from loop.workflows.runs import finish, is_first_call, leased_job, run_now, waiting

log = get_logger(__name__)

CAPTURE = "capture_payment"
"""The kind of the jobs that take held money."""

_CANCELLED_FROM = frozenset({AttemptStatus.REQUIRES_ACTION, AttemptStatus.FAILED, AttemptStatus.AUTHORIZED})
"""Attempts that a processor can end: of those that failed, one that could still be paid."""

EXPIRE_BATCH = 100


async def capture(
    context: Context, merchant_id: str, order_id: str, *, amount_minor: int | None, wait_s: float
) -> Order:
    """Take an authorized order's money, all of it or a part; the processor releases the rest.

    Raises `not_found`, `invalid_status`, `capture_exceeds_authorized`, `unsupported_by_processor`,
    `operation_in_progress`, `capture_failed`.
    """
    async with context.database.transaction() as session:
        in_hand = await orders.lock(session, merchant_id, order_id, is_test=context.is_test)
        order, attempt = await _held(session, in_hand)
        amount = order.amount_authorized_minor if amount_minor is None else amount_minor
        if not 0 < amount <= order.amount_authorized_minor:
            raise invalid(
                "capture_exceeds_authorized",
                f"Only {order.amount_authorized_minor} (in minor units of {order.currency}) is authorized.",
            )
        can_capture_partially = context.processors.get(attempt.processor).capabilities.can_capture_partially
        if amount < order.amount_authorized_minor and not can_capture_partially:
            raise invalid("unsupported_by_processor", f"{attempt.processor} captures the whole amount or nothing.")
        job = _settling(context, attempt, CAPTURE, {"amount": amount})
        job = await _insert_alone(session, job)
        facts = {"amount_minor": amount, "currency": order.currency}
        await audit.record_request(
            context, session, AuditAction.CAPTURE_REQUESTED, order_id, merchant_id=merchant_id, after=facts
        )
    return await _run(context, job, order, wait_s)


def _settling(context: Context, attempt: Attempt, kind: str, arguments: Mapping[str, object]) -> Job:
    """Return the job, leased by this process, that captures or cancels an attempt."""
    return leased_job(
        context,
        kind,
        attempt.order_id,
        key=settle_key(attempt),
        lane=attempt.processor_config_id,
        arguments={"attemptId": attempt.id, **arguments},
    )


async def _held(session: Session, in_hand: OrderInHand | None) -> tuple[Order, Attempt]:
    if in_hand is None:
        raise not_found("order")
    require(in_hand.order.status, Command.CAPTURE)
    return in_hand.order, await paying(session, in_hand.order, in_hand.attempt, status=AttemptStatus.AUTHORIZED)


async def _insert_alone(session: Session, job: Job) -> Job:
    """Insert a job and return it, or refuse: an attempt is captured or cancelled by one job at a time.

    A dead one gives way, though its call may have been heard. The same request goes on under its id, and so under its
    key at the processor; another one asks first what became of it.
    """
    if (await session.run_together([jobs.insertion(job)]))[0] == 1:
        return job
    dead = await jobs.dead(session, job.dedupe_key)
    if dead is not None:
        follower = _follower(dead, job)
        if (await session.run_together([jobs.replacing(dead, follower)]))[0] == 1:
            return follower
    raise conflict("operation_in_progress", "The order is being captured or cancelled; ask again.", retry_after_s=2)


def _follower(dead: Job, job: Job) -> Job:
    is_same = dead.kind == job.kind and dead.arguments.get("amount") == job.arguments.get("amount")
    asks_first = not is_same or bool(dead.arguments.get("asksFirst"))
    follower = replace(job, arguments={**job.arguments, "asksFirst": asks_first})
    return replace(follower, id=dead.id, fence=dead.fence + 1) if is_same else follower


async def _settled_before(call: Call, job: Job) -> Outcome | None:
    """Return how a payment stands that a dead job's other request has changed; None where nothing says so."""
    if not job.arguments.get("asksFirst"):
        return None
    outcome = await asked(call, "fetch", question=call.processor.fetch(call.account, call.payment))
    return None if status_of(outcome) is call.attempt.status else outcome


async def _run(context: Context, job: Job, order: Order, wait_s: float) -> Order:
    result = await run_now(context, job, wait_s)
    if isinstance(result, LoopError):
        raise result
    async with context.database.reading() as reader:
        return await orders.get(reader, order.merchant_id, order.id) or order


async def run_capture(context: Context, job: Job) -> LoopError | None:
    """Ask the processor to take the money, and record what it says."""
    call = await prepare(context, str(job.arguments["attemptId"]))
    if call is None or call.attempt.status is not AttemptStatus.AUTHORIZED:
        await finish(context, job)
        return None
    context.reached("capture.intent_recorded")
    amount = Money(int(str(job.arguments["amount"])), call.attempt.currency)
    # The job's id makes it the key of this request alone: a later one may ask for another amount.
    key = operation_key(call.attempt, f"capture:{job.id}")
    outcome = await _settled_before(call, job)
    if outcome is None:
        question = call.processor.capture(call.account, call.payment, amount=amount, key=key)
        outcome = await asked(call, "capture", question=question)
    context.reached("capture.called")
    if isinstance(outcome, NotSent | Declined) and outcome.code not in RESENT_CODES and not is_first_call(job):
        # The refusal says nothing of the call before: only a payment that is still held was surely not captured.
        standing = await asked(call, "fetch", question=call.processor.fetch(call.account, call.payment))
        refusal = invalid("capture_failed", outcome.message)
        if status_of(standing) is call.attempt.status:
            await _tell_refusal(context, call, refusal)
            await record(context, call.attempt, standing, job=job)
            return refusal
        outcome = standing
    return await _settle(context, call.attempt, outcome, job, code="capture_failed")


async def _tell_refusal(context: Context, call: Call, refusal: LoopError) -> None:
    """Have an order tell why its money is still held: whoever asked for the capture may have had no answer."""
    now = context.now()
    async with context.database.transaction() as session:
        in_hand = await orders.lock(session, call.attempt.merchant_id, call.attempt.order_id)
        if in_hand is not None and in_hand.order.status is OrderStatus.AUTHORIZED:
            order = replace(in_hand.order, needs_review=True, updated_at=now)
            order = replace(order, last_error_code=refusal.code, last_error_message=refusal.message)
            await session.run_together([orders.updating(order)])
    log.error("payment.capture_refused", order_id=call.attempt.order_id, attempt_id=call.attempt.id)


async def _settle(
    context: Context,
    attempt: Attempt,
    outcome: Outcome,
    job: Job,
    *,
    code: str,
    payload: Mapping[str, object] | None = None,
) -> LoopError | None:
    """Record what a processor says to a capture or a cancellation; return the refusal, if it is one."""
    if isinstance(outcome, NotSent):
        if is_first_call(job):
            await finish(context, job)  # the payment is as it was
            return invalid(code, outcome.message)
        outcome = Unknown(outcome.message)  # an earlier call may have been heard, or nobody waits for the answer
    await record(context, attempt, outcome, job=job, payload=payload)
    return invalid(code, outcome.message) if isinstance(outcome, Declined) else None


async def cancel(
    context: Context,
    merchant_id: str,
    order_id: str,
    *,
    reason: str | None,
    wait_s: float,
    command: Command = Command.CANCEL,
) -> Order:
    """Cancel an order: at the processor first, where it is known there. Whoever is free asks that of one that expires.

    Raises `not_found`, `invalid_status`, `unsupported_by_processor`, `operation_in_progress`, `cancel_failed`.
    """
    now = context.now()
    async with context.database.transaction() as session:
        in_hand = await orders.lock(session, merchant_id, order_id, is_test=context.is_test)
        if in_hand is None:
            raise not_found("order")
        order, attempt = in_hand.order, in_hand.attempt
        status = require(order.status, command)
        if attempt is None or (order.status is OrderStatus.FAILED and not is_left_open(context, in_hand)):
            ended = _ended(order, status, command, now)
            await session.run_together(
                [
                    orders.updating(ended),
                    *webhooks.recording(context, ended, EventType.PAYMENT_CANCELLED, payload={"reason": reason}),
                ]
            )
            job = None
        else:
            ended = order
            if order.status is OrderStatus.AUTHORIZED:
                attempt = await paying(session, order, attempt, status=AttemptStatus.AUTHORIZED)
            _require_voidable(context, attempt)
            if attempt.is_given_up:  # that was for another attempt to follow, which is not wanted any more
                await session.run_together([attempts.updating(replace(attempt, is_given_up=False, updated_at=now))])
            job = _settling(context, attempt, VOID, {"reason": reason})
            if command is Command.EXPIRE:
                job = waiting(job, now)
            job = await _insert_alone(session, job)
        await audit.record_request(
            context,
            session,
            AuditAction.CANCELLATION_REQUESTED,
            order_id,
            merchant_id=merchant_id,
            after={"status": order.status, "reason": reason},
        )
    if job is None or not job.is_leased:
        context.runner.wake()
        return ended
    return await _run(context, job, order, wait_s)


def _require_voidable(context: Context, attempt: Attempt) -> None:
    if attempt.status is not AttemptStatus.AUTHORIZED:
        return
    if not context.processors.get(attempt.processor).capabilities.can_void:
        raise invalid(
            "unsupported_by_processor",
            f"{attempt.processor} cannot release a hold; let it lapse, or capture and refund it.",
        )


def _ended(order: Order, status: OrderStatus, command: Command, now: datetime) -> Order:
    ended = replace(order, status=status, updated_at=now)
    if command is not Command.EXPIRE or order.last_error_code is not None:
        return ended  # why it had failed stays known
    return replace(ended, last_error_code=EXPIRED, last_error_message="The order was not paid in time.")


async def run_void(context: Context, job: Job) -> LoopError | None:
    """Ask the processor to let go of a payment, and record what it says."""
    call = await prepare(context, str(job.arguments["attemptId"]))
    if call is None or call.attempt.status not in _CANCELLED_FROM:
        await finish(context, job)
        return None
    context.reached("void.intent_recorded")
    key = operation_key(call.attempt, f"void:{job.id}")
    outcome = await _settled_before(call, job)
    if outcome is None:
        outcome = await asked(call, "void", question=call.processor.void(call.account, call.payment, key=key))
    context.reached("void.called")
    is_unpaid = call.attempt.status is not AttemptStatus.AUTHORIZED  # a hold may stay: it is captured, or lapses
    if is_unpaid and not is_first_call(job) and isinstance(advance(call.attempt.status, status_of(outcome)), Unmoved):
        outcome = Unknown("it is not cancelled")  # nobody waits for the answer: it is asked again, ever less often
    payload = {"reason": job.arguments.get("reason")}
    return await _settle(context, call.attempt, outcome, job, code="cancel_failed", payload=payload)


async def expire_due(context: Context) -> int:
    """End orders whose time to be paid is up, a batch at a time; return how many were looked at."""
    async with context.database.reading() as reader:
        due = await orders.expired(reader, context.now(), job_key_prefix=SETTLE_KEY_PREFIX, limit=EXPIRE_BATCH)
    for order in (found.order for found in due):
        try:
            await cancel(context, order.merchant_id, order.id, reason="expired", wait_s=0, command=Command.EXPIRE)
        except LoopError as error:  # paid or cancelled in the meantime, or being cancelled now
            log.info("order.not_expired", order_id=order.id, code=error.code)
    return len(due)
