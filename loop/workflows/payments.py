"""Payments: record the intent, call the processor with no transaction open, record the fact."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

from loop.domain import polling
from loop.domain.attempts import LIVE_STATUSES, UNPAID_STATUSES, Attempt, AttemptStatus, NotSent, Outcome, Unknown
from loop.domain.errors import invalid, not_found
from loop.domain.failover import RESENT_CODES
from loop.domain.orders import Command, OrderStatus, require, require_in_time
from loop.domain.routing import RoutingDecision
from loop.storage import jobs, orders
from loop.storage.database import Reader
from loop.storage.jobs import Job
from loop.storage.orders import OrderInHand
from loop.storage.statements import Parameters, Write
from loop.telemetry import get_logger
from loop.workflows import counts, failovers, routing
from loop.workflows.attempts import (
    ADVANCE_KEY_PREFIX,
    Call,
    PayRequest,
    Snapshot,
    advance_job,
    asked,
    beginning,
    fail_over_job,
    operation_key,
    prepare,
    snapshot_of,
    traits_of,
)
from loop.workflows.context import Context
from loop.workflows.outcomes import record
from loop.workflows.runs import Recorded, finish, is_first_call, result_of, run_now, waiting

log = get_logger(__name__)

_SETTLED = frozenset(AttemptStatus) - LIVE_STATUSES - {AttemptStatus.AUTHORIZED}
"""Attempts of which the processor need not be asked any more."""

RESEND_AFTER_S = 0.5
"""How long a request that was surely not executed waits before it is sent once more, under the same key."""

FOLLOW_S = 10.0
"""How long a customer who comes back waits for what follows from what the processor said, in seconds."""

RESCUE_AFTER = timedelta(minutes=2)
RESCUE_BATCH = 100


async def pay(context: Context, merchant_id: str, order_id: str, *, request: PayRequest, wait_s: float) -> OrderInHand:
    """Start a payment and run its first step at once; answer what is true after `wait_s` seconds at most.

    Raises `not_found`, `invalid_status`, `order_expired`, `no_processor`, `no_eligible_processor`,
    `attempts_exhausted`, `previous_attempt_open`.
    """
    if request.is_retry:
        await _clear_the_way(context, merchant_id, order_id, request)
    started, job = await _start(context, merchant_id, order_id, request)
    result = await run_now(context, job, wait_s)
    if isinstance(result, OrderInHand):
        return result
    async with context.database.reading() as reader:
        return await orders.get_in_hand(reader, merchant_id, order_id) or started


async def _clear_the_way(context: Context, merchant_id: str, order_id: str, request: PayRequest) -> None:
    """End what a failed order's last attempt has left open, but only once another attempt may follow it."""
    async with context.database.reading() as reader:
        in_hand = await orders.get_in_hand(reader, merchant_id, order_id, is_test=context.is_test)
        if in_hand is None or not failovers.is_left_open(context, in_hand):
            return
        await _next_attempt(context, reader, in_hand, request)
    await failovers.fence_last(context, in_hand)


async def _next_attempt(
    context: Context, reader: Reader, in_hand: OrderInHand, request: PayRequest
) -> tuple[OrderStatus, RoutingDecision, Snapshot]:
    """Return the status that an order takes when it is paid, who is asked and for what; raises what `pay` raises."""
    order = in_hand.order
    is_retry = request.is_retry and order.status is OrderStatus.FAILED
    status = require(order.status, Command.RETRY if is_retry else Command.PAY)
    require_in_time(order, context.now())
    limit = context.settings.max_attempts_per_order
    if order.attempt_count >= limit:
        raise invalid("attempts_exhausted", f"The order was tried {limit} times; create a new one.")
    snapshot = snapshot_of(order, request)
    if is_retry and in_hand.attempt is not None:
        decision = await routing.choose_again(context, reader, order, failed=in_hand.attempt, snapshot=snapshot)
    else:
        decision = await routing.choose(
            context, reader, order.merchant_id, traits_of(order, snapshot), forced_processor=request.processor
        )
    return status, decision, snapshot


async def _start(context: Context, merchant_id: str, order_id: str, request: PayRequest) -> tuple[OrderInHand, Job]:
    async with context.database.transaction() as session:
        in_hand = await orders.lock(session, merchant_id, order_id, is_test=context.is_test)
        if in_hand is None:
            raise not_found("order")
        order = in_hand.order
        status, decision, snapshot = await _next_attempt(context, session, in_hand, request)
        context.breakers.let_through(decision.candidate.config_id, context.now())
        begun, job, writes = beginning(context, replace(order, status=status), decision, snapshot=snapshot)
        await session.run_together(writes)
    context.reached("charge.intent_recorded")
    counts.routed(decision, begun.order, by=None if request.processor is None else "forced")
    log.info(
        "payment.started", order_id=order.id, attempt_id=job.arguments["attemptId"], processor=begun.order.processor
    )
    return begun, job


def _question(context: Context, attempt: Attempt) -> tuple[Write, Parameters]:
    """Return the write that has an attempt worked on, unless it has its job; whoever claims it is not the first."""
    if attempt.status in UNPAID_STATUSES:
        job = fail_over_job(context, attempt, needs_fence=True)
    else:
        job = advance_job(context, attempt)
    return jobs.insertion(waiting(job, context.now()))


async def advance(context: Context, job: Job) -> Recorded | None:
    """Charge an attempt, or ask again what became of it, and record the answer."""
    call = await prepare(context, str(job.arguments["attemptId"]))
    if call is None or call.attempt.status in _SETTLED:
        await finish(context, job)
        return None
    if await _may_be_sent(context, call, job):
        outcome = await _authorize(context, call, is_first=is_first_call(job))
    else:
        outcome = await asked(call, "fetch", question=call.processor.fetch(call.account, call.payment))
    context.reached("charge.called")
    return await record(context, call.attempt, outcome, job=job)


async def _may_be_sent(context: Context, call: Call, job: Job) -> bool:
    """Tell whether an attempt may be sent (again): its key is alive, and no other one has paid its order since.

    The key is alive at the account that heard it: another one would take the money a second time.
    """
    attempt = call.attempt
    is_sent_or_lost = attempt.status in (AttemptStatus.SUBMITTING, AttemptStatus.UNKNOWN)
    if not is_sent_or_lost or context.now() - attempt.created_at >= polling.KEY_HORIZON:
        return False
    if is_first_call(job):
        return True
    if not call.is_same_account:
        return False
    async with context.database.reading() as reader:
        order = await orders.get(reader, attempt.merchant_id, attempt.order_id)
    return order is not None and order.status is OrderStatus.PROCESSING


async def _authorize(context: Context, call: Call, *, is_first: bool) -> Outcome:
    key = operation_key(call.attempt, "authorize")
    request = call.payment.request
    outcome = await asked(call, "authorize", question=call.processor.authorize(call.account, request, key=key))
    if isinstance(outcome, NotSent) and is_first and outcome.code in RESENT_CODES:
        await asyncio.sleep(RESEND_AFTER_S)
        outcome = await asked(call, "authorize", question=call.processor.authorize(call.account, request, key=key))
    context.breakers.hear(call.attempt.processor_config_id, outcome, now=context.now())
    return await _after_refusal(call, outcome) if isinstance(outcome, NotSent) and not is_first else outcome


async def _after_refusal(call: Call, refusal: NotSent) -> Outcome:
    """Return what it means that a request was refused when it was sent again.

    That alone says nothing of the call before, whose answer was lost. But a processor that had executed that one would
    have answered its result, under the same key, and would list the payment. So the refusal is the end if the account
    is the one that was asked at first, and a search of all that it has finds nothing.
    """
    if refusal.code in RESENT_CODES or not call.is_same_account:
        return Unknown(refusal.message)
    found = await asked(call, "fetch", question=call.processor.fetch(call.account, call.payment))
    if isinstance(found, Unknown):
        return refusal if found.is_absent else Unknown(refusal.message)
    return found


async def complete_action(context: Context, attempt_id: str, parameters: Mapping[str, str]) -> OrderInHand:
    """Take a customer back from their bank: ask the processor what became of the payment, and record it."""
    call = await prepare(context, attempt_id)
    if call is None:
        raise not_found("payment")
    question = call.processor.complete_action(call.account, call.payment, parameters=parameters)
    outcome = await asked(call, "complete_action", question=question)
    recorded = await record(context, call.attempt, outcome, job=None)
    if recorded.following is None:
        return recorded.in_hand
    result = await result_of(recorded.following, FOLLOW_S)
    return result if isinstance(result, OrderInHand) else recorded.in_hand


async def rescue_stale(context: Context) -> int:
    """Give every order that is stuck in `processing` a job again, should it ever have lost its own; return how many.

    The dedupe key keeps an order that still has its job as it is.
    """
    before = context.now() - RESCUE_AFTER
    async with context.database.reading() as reader:
        stuck = await orders.stale(reader, before, job_key_prefix=ADVANCE_KEY_PREFIX, limit=RESCUE_BATCH)
    rescued = sum([await _rescue(context, found) for found in stuck])
    if rescued:
        log.error("payment.rescued", count=rescued)
        context.runner.wake()
    return rescued


async def _rescue(context: Context, found: OrderInHand) -> int:
    """Give an order's attempt a job unless it has one, or went on since it was found: another may have it by now."""
    async with context.database.transaction() as session:
        in_hand = await orders.lock(session, found.order.merchant_id, found.order.id)
        if in_hand is None or in_hand.attempt is None or in_hand.order.revision != found.order.revision:
            return 0
        return sum(await session.run_together([_question(context, in_hand.attempt)]))
