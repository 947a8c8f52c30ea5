"""Disputes: ask the processor how one stands, record what it says, and ask again until the bank has decided."""

from datetime import datetime, timedelta

from loop.domain.attempts import Attempt, AttemptStatus, Unknown
from loop.domain.disputes import DECIDED, Dispute, DisputeChange, DisputeOutcome, apply_dispute, claimed_by
from loop.domain.errors import not_found
from loop.domain.events import timestamp
from loop.domain.ids import PREFIX_DISPUTE
from loop.domain.money import MAX_AMOUNT_MINOR
from loop.processors.base import DisputeReference, TellsDisputes
from loop.storage import attempts, disputes, jobs, orders
from loop.storage.jobs import Job
from loop.telemetry import get_logger
from loop.workflows import webhooks
from loop.workflows.attempts import Call, Question, Writes, asked, prepare
from loop.workflows.context import Context
from loop.workflows.outcomes import record as record_payment
from loop.workflows.runs import finish, leased_job, waiting

log = get_logger(__name__)

ASK = "ask_dispute"
"""The kind of the jobs that ask about a dispute which is not decided: its webhooks may have been lost."""

ASK_AGAIN_AFTER = timedelta(days=1)
ASKED_FOR = timedelta(days=400)
"""How long a dispute is asked about; networks decide theirs within months."""


async def paid(context: Context, call: Call) -> Call | None:
    """Return the call about a payment that a webhook says is disputed, once Loop knows that it is paid.

    Money that Loop has not heard of cannot be disputed: the payment is asked about first, should that be so. None
    when there is no answer.
    """
    if call.attempt.status is AttemptStatus.CAPTURED:
        return call
    answer = await asked(call, "fetch", question=call.processor.fetch(call.account, call.payment))
    await record_payment(context, call.attempt, answer, job=None)
    return None if isinstance(answer, Unknown) else await prepare(context, call.attempt.id)


async def ask(context: Context, job: Job) -> Dispute | None:
    """Ask how a dispute that was not decided stands now, and record the answer."""
    async with context.database.reading() as reader:
        row = await disputes.get(reader, job.subject)
    if row is None or row.status in DECIDED:
        await finish(context, job)
        return None
    if context.now() - row.created_at > ASKED_FOR:
        log.error("dispute.undecided", order_id=row.order_id, dispute_id=row.id, since=row.created_at)
        await finish(context, job)
        return row
    call = await prepare(context, row.attempt_id)
    outcome = None if call is None else await fetch(call, row.processor_reference)
    if call is not None and outcome is not None and outcome.payment_reference == call.payment.reference:
        return await record(context, call.attempt, outcome, job=job)
    async with context.database.transaction() as session:
        again = jobs.rescheduling(job, context.now() + ASK_AGAIN_AFTER)
        jobs.require_held((await session.run_together([again]))[0])
    return row


async def fetch(call: Call, reference: str) -> DisputeOutcome | None:
    """Return what the processor says of a dispute; None when it says nothing, or what makes no sense."""
    if not isinstance(call.processor, TellsDisputes):
        return None
    async with Question(call, "fetch_dispute") as asking:
        try:
            outcome = await call.processor.fetch_dispute(call.account, DisputeReference(reference, call.payment))
        except Exception:
            log.exception("processor.raised")
            return None
        asking.answered("unknown" if isinstance(outcome, Unknown) else "told")
    if isinstance(outcome, Unknown):
        return None
    if not 0 <= outcome.amount.amount_minor <= MAX_AMOUNT_MINOR or len(outcome.amount.currency) != len("EUR"):
        log.error("dispute.makes_no_sense", attempt_id=call.attempt.id, dispute=reference)
        return None
    return outcome


async def record(context: Context, attempt: Attempt, outcome: DisputeOutcome, *, job: Job | None) -> Dispute:
    """Apply what a processor says of a dispute: the one function for every door that it comes in by.

    With a job, its end (or its next run, while the dispute is undecided) is part of the same commit.
    """
    now = context.now()
    async with context.database.transaction() as session:
        in_hand = await orders.lock(session, attempt.merchant_id, attempt.order_id)
        current = await attempts.get(session, attempt.id)
        if in_hand is None or current is None:
            raise not_found("payment")
        known = await disputes.of_order(session, attempt.merchant_id, attempt.order_id)
        dispute_id = context.new_id(PREFIX_DISPUTE)
        claimed = claimed_by(in_hand.order, current, outcome=outcome, dispute_id=dispute_id, now=now)
        change = apply_dispute(in_hand.order, known, claimed=claimed)
        writes = [
            *([orders.updating(change.order)] if change.order != in_hand.order else []),
            *_writes(change, known, dispute_id),
            *_telling(context, change),
            *_next_question(context, change, job, now),
        ]
        if writes:
            counts = await session.run_together(writes)
            if job is not None:
                jobs.require_held(counts[-1])
    context.reached("dispute.recorded")
    context.runner.wake()
    log.info(
        "dispute.recorded",
        order_id=attempt.order_id,
        dispute_id=change.dispute.id,
        status=change.dispute.status,
        ignored=change.ignored,
    )
    return change.dispute


def _writes(change: DisputeChange, known: list[Dispute], new_id: str) -> Writes:
    if change.dispute.id == new_id:
        return [disputes.insertion(change.dispute)]
    return [] if change.dispute in known else [disputes.updating(change.dispute)]


def _next_question(context: Context, change: DisputeChange, job: Job | None, now: datetime) -> Writes:
    row, again = change.dispute, now + ASK_AGAIN_AFTER
    if job is not None:
        return [jobs.finishing(job) if row.status in DECIDED else jobs.rescheduling(job, again)]
    if row.status in DECIDED or not change.events:
        return []
    question = leased_job(context, ASK, row.id, key=f"{ASK}:{row.id}", lane=row.processor_config_id, arguments={})
    return [jobs.insertion(waiting(question, again))]


def _telling(context: Context, change: DisputeChange) -> Writes:
    row = change.dispute
    about = {
        "disputeId": row.id,
        "disputeStatus": row.status,
        "amount": row.amount_minor,
        "currency": row.currency,
        "reason": row.reason,
        "dueBy": None if row.due_by is None else timestamp(row.due_by),
        "processorDisputeId": row.processor_reference,
    }
    return [
        write for event in change.events for write in webhooks.recording(context, change.order, event, payload=about)
    ]
