"""Refunds: reserve the amount, ask the processor, record what it says, and ask again until it is known."""

from collections.abc import Coroutine
from contextlib import closing
from dataclasses import replace
from datetime import datetime

from loop import metrics
from loop.domain import polling
from loop.domain.attempts import Attempt, AttemptStatus
from loop.domain.audit import AuditAction
from loop.domain.errors import not_found
from loop.domain.events import EventType
from loop.domain.idempotency import processor_key
from loop.domain.ids import PREFIX_REFUND, PREFIX_TRANSACTION
from loop.domain.money import Money
from loop.domain.orders import Order
from loop.domain.refunds import Refund, RefundChange, RefundOutcome, RefundStatus, apply_refund_outcome, reserve
from loop.domain.transactions import Transaction
from loop.metrics import of
from loop.processors.base import IdempotencyKey, RefundReference, RefundRequest
from loop.storage import attempts, jobs, orders, refunds, transactions
from loop.storage.jobs import Job
from loop.storage.statements import Parameters, Write
from loop.telemetry import get_logger
from loop.workflows import audit, counts, webhooks
from loop.workflows.attempts import Call, Question, paying, prepare
from loop.workflows.context import Context
from loop.workflows.runs import finish, leased_job, run_now

log = get_logger(__name__)

SEND = "send_refund"
"""The kind of the jobs that send a refund, and ask until it is known."""


async def refund(
    context: Context,
    merchant_id: str,
    order_id: str,
    *,
    amount_minor: int | None,
    reason: str | None,
    wait_s: float,
    refund_id: str | None = None,
) -> Refund:
    """Give back captured money, all that is left or a part; the amount is reserved before the processor is asked.

    `refund_id` is its id where the caller has promised one. Raises `not_found`, `invalid_status`,
    `refund_exceeds_captured`.
    """
    now = context.now()
    async with context.database.transaction() as session:
        in_hand = await orders.lock(session, merchant_id, order_id, is_test=context.is_test)
        if in_hand is None:
            raise not_found("order")
        order, wanted = reserve(in_hand.order, amount_minor, now=now)
        attempt = await paying(session, order, in_hand.attempt, status=AttemptStatus.CAPTURED)
        row, job, writes = beginning(context, order, attempt, amount_minor=wanted, reason=reason, refund_id=refund_id)
        await session.run_together([orders.updating(order), *writes, jobs.insertion(job)])
        facts = {"refund_id": row.id, "amount_minor": wanted, "currency": order.currency, "reason": reason}
        await audit.record_request(
            context, session, AuditAction.REFUND_REQUESTED, order_id, merchant_id=merchant_id, after=facts
        )
    context.reached("refund.intent_recorded")
    result = await run_now(context, job, wait_s)
    if isinstance(result, Refund):
        return result
    async with context.database.reading() as reader:
        return await refunds.get(reader, row.id) or row


def beginning(
    context: Context,
    order: Order,
    attempt: Attempt,
    *,
    amount_minor: int,
    reason: str | None,
    refund_id: str | None = None,
    is_reversal: bool = False,
) -> tuple[Refund, Job, list[tuple[Write, Parameters]]]:
    """Return a new refund, the leased job that sends it, and the writes that record it; the order has reserved it."""
    now = context.now()
    row = Refund(
        id=refund_id or context.new_id(PREFIX_REFUND),
        merchant_id=order.merchant_id,
        order_id=order.id,
        attempt_id=attempt.id,
        amount_minor=amount_minor,
        currency=order.currency,
        status=RefundStatus.SUBMITTING,
        reason=reason,
        processor_reference=None,
        error_code=None,
        error_message=None,
        asked_count=0,
        created_at=now,
        updated_at=now,
        is_reversal=is_reversal,
    )
    arguments = {"attemptId": attempt.id}
    job = leased_job(
        context, SEND, row.id, key=f"{SEND}:{row.id}", lane=attempt.processor_config_id, arguments=arguments
    )
    return row, job, [refunds.insertion(row), *_telling(context, order, row, (EventType.REFUND_CREATED,))]


async def send(context: Context, job: Job) -> Refund | None:
    """Send a refund, or ask again what became of it, and record the answer."""
    async with context.database.reading() as reader:
        row = await refunds.get(reader, job.subject)
    call = await prepare(context, str(job.arguments["attemptId"]))
    if row is None or call is None or row.status in (RefundStatus.SUCCEEDED, RefundStatus.FAILED):
        await finish(context, job)
        return None
    request = RefundRequest(row.id, call.payment, Money(row.amount_minor, row.currency), row.reason)
    is_key_alive = context.now() - row.created_at < polling.KEY_HORIZON
    if row.status is not RefundStatus.PENDING and is_key_alive:
        key = IdempotencyKey(processor_key(call.account.config_id, row.id, operation="refund"))
        outcome = await asked(call, "refund", question=call.processor.refund(call.account, request, key=key))
    else:
        outcome = await fetch(call, row)
    context.reached("refund.called")
    return await record(context, row, outcome, job=job)


async def fetch(call: Call, row: Refund) -> RefundOutcome:
    """Ask the processor what became of a refund."""
    request = RefundRequest(row.id, call.payment, Money(row.amount_minor, row.currency), row.reason)
    reference = RefundReference(row.processor_reference, request)
    return await asked(call, "fetch_refund", question=call.processor.fetch_refund(call.account, reference))


async def asked(call: Call, operation: str, *, question: Coroutine[object, object, RefundOutcome]) -> RefundOutcome:
    """Return a processor's answer; whatever it raises may have happened after the money moved, so it is unknown."""
    with closing(question):  # it may not have been asked
        async with Question(call, operation) as asking:
            try:
                outcome = await question
            except Exception:
                log.exception("processor.raised")
                outcome = RefundOutcome(RefundStatus.UNKNOWN)
            asking.answered(outcome.status)
            return outcome


async def record(context: Context, row: Refund, outcome: RefundOutcome, *, job: Job | None) -> Refund:
    """Apply what a processor says of a refund, with the end or the next run of its job, in one commit."""
    now = context.now()
    async with context.database.transaction() as session:
        in_hand = await orders.lock(session, row.merchant_id, row.order_id)
        current = await refunds.get(session, row.id)
        attempt = await attempts.get(session, row.attempt_id)
        if in_hand is None or current is None or attempt is None:
            raise not_found("refund")
        change = apply_refund_outcome(in_hand.order, current, outcome=outcome, now=now)
        ending: list[tuple[Write, Parameters]] = []
        if job is not None:
            change, end = _with_next_question(change, job, now)
            ending.append(end)
        writes = [*_writes(context, in_hand.order, change, attempt.processor), *ending]
        if writes:
            changed = await session.run_together(writes)
            if job is not None:
                jobs.require_held(changed[-1])
    context.reached("refund.recorded")
    context.runner.wake()
    counts.refund(change.order, change.refund, before=current, processor=attempt.processor)
    log.info("refund.recorded", order_id=row.order_id, refund_id=row.id, status=change.refund.status)
    return change.refund


def _with_next_question(change: RefundChange, job: Job, now: datetime) -> tuple[RefundChange, tuple[Write, Parameters]]:
    """Return the change with when the processor is asked next, should its answer have left the refund open."""
    row, order = change.refund, change.order
    if row.status in (RefundStatus.SUCCEEDED, RefundStatus.FAILED):
        return change, jobs.finishing(job)
    is_unclear = row.status is not RefundStatus.PENDING and now - row.created_at >= polling.ALERT_AFTER
    if is_unclear and not order.needs_review:
        of(metrics.UNCLEAR, "refund").inc()
        log.error("refund.unclear", order_id=order.id, refund_id=row.id, since=row.created_at)
        order = replace(order, needs_review=True)
    again = now + polling.delay(row.asked_count)
    change = replace(change, order=order, refund=replace(row, asked_count=row.asked_count + 1))
    return change, jobs.rescheduling(job, again, last_error=row.error_message)


def _writes(context: Context, before: Order, change: RefundChange, processor: str) -> list[tuple[Write, Parameters]]:
    writes = [refunds.updating(change.refund)]
    if change.order != before:
        writes.append(orders.updating(change.order))
    writes += [
        transactions.insertion(
            Transaction(
                id=context.new_id(PREFIX_TRANSACTION),
                merchant_id=change.order.merchant_id,
                order_id=change.order.id,
                attempt_id=change.refund.attempt_id,
                refund_id=change.refund.id,
                type=new.type,
                status=new.status,
                amount_minor=new.amount_minor,
                currency=change.order.currency,
                processor=processor,
                processor_transaction_id=new.processor_transaction_id,
                error_code=new.error_code,
                error_message=new.error_message,
                created_at=context.now(),
            )
        )
        for new in change.transactions
    ]
    return writes + _telling(context, change.order, change.refund, change.events)


def _telling(
    context: Context, order: Order, row: Refund, events: tuple[EventType, ...]
) -> list[tuple[Write, Parameters]]:
    about = {
        "refundId": row.id,
        "refundAmount": row.amount_minor,
        "reason": row.reason,
        "isSecondPayment": row.is_reversal,
    }
    failure = {"errorCode": row.error_code, "errorMessage": row.error_message} if row.error_code else {}
    return [
        write for event in events for write in webhooks.recording(context, order, event, payload={**about, **failure})
    ]
