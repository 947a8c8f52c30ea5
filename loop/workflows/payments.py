"""Payments: record the intent, call the processor with no transaction open, record the fact."""

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from loop.domain import polling
from loop.domain.attempts import LIVE_STATUSES, Attempt, AttemptStatus, NotSent, Outcome, Unknown
from loop.domain.errors import invalid, not_found
from loop.domain.events import EventType
from loop.domain.idempotency import processor_key
from loop.domain.ids import PREFIX_ATTEMPT, PREFIX_TRANSACTION
from loop.domain.money import Money
from loop.domain.orders import Change, Command, Order, OrderStatus, apply_outcome, require
from loop.domain.routing import RoutingDecision
from loop.domain.routing_rules import PaymentTraits, tied_to
from loop.domain.transactions import NewTransaction, Transaction
from loop.processors.base import Account, AuthorizeRequest, IdempotencyKey, PaymentReference, Processor
from loop.storage import attempts, checkout, jobs, orders, processor_configs, transactions
from loop.storage.database import Session
from loop.storage.jobs import LEASE, Job
from loop.storage.orders import OrderInHand
from loop.storage.statements import Parameters, Write
from loop.telemetry import correlation_id, get_logger
from loop.workflows import routing, webhooks
from loop.workflows.context import Context
from loop.workflows.processor_configs import account_of

log = get_logger(__name__)

ADVANCE = "advance_payment"
"""The kind of the jobs that charge an attempt, and ask until its outcome is known."""

FIRST_FENCE = 1
"""The fence of a job that is inserted with its lease; whoever takes it over has a higher one."""

_SETTLED = frozenset(AttemptStatus) - LIVE_STATUSES - {AttemptStatus.AUTHORIZED}
"""Attempts of which the processor need not be asked any more."""

RESCUE_AFTER = timedelta(minutes=2)
RESCUE_BATCH = 100

Writes = list[tuple[Write, Parameters]]


@dataclass(frozen=True, slots=True)
class PayRequest:
    """How an order is to be paid. `token` is the processor's own; None lets the customer's browser pay.

    `tokens` holds one for each of several processors and goes before `token`, so that any of them can take the order.
    `brand` (lower case) and `country` (upper case) are the card's, as far as they are known.
    """

    payment_method: str = "card"
    token: str | None = field(default=None, repr=False)
    tokens: Mapping[str, str] = field(default_factory=dict, repr=False)
    brand: str | None = None
    country: str | None = None
    processor: str | None = None
    is_retry: bool = False
    return_url: str | None = None


async def pay(context: Context, merchant_id: str, order_id: str, *, request: PayRequest, wait_s: float) -> OrderInHand:
    """Start a payment and run its first step at once; answer what is true after `wait_s` seconds at most.

    Raises `not_found`, `invalid_status`, `no_processor`, `no_eligible_processor`, `attempts_exhausted`.
    """
    started, job = await _start(context, merchant_id, order_id, request)
    result = await run_now(context, job, wait_s)
    if isinstance(result, OrderInHand):
        return result
    async with context.database.reading() as reader:
        return await orders.get_in_hand(reader, merchant_id, order_id) or started


async def run_now(context: Context, job: Job, wait_s: float) -> object:
    """Run a job that was inserted with its lease, and wait for it; None if it has not ended well by then."""
    context.runner.wake()
    task = context.runner.start(context, job)
    if wait_s <= 0:
        return None
    await asyncio.wait({task}, timeout=wait_s)
    return task.result() if task.done() and not task.cancelled() else None


def leased_job(context: Context, kind: str, subject: str, *, key: str, arguments: Mapping[str, object]) -> Job:
    """Return a job that is inserted already claimed: the process that makes it runs it, another takes it over."""
    now = context.now()
    return Job(
        id=context.new_id("job"),
        kind=kind,
        subject=subject,
        arguments=arguments,
        dedupe_key=key,
        lane=kind,
        run_at=now + LEASE,
        fence=FIRST_FENCE,
        failures=0,
        is_leased=True,
        is_dead=False,
        last_error=None,
        correlation_id=correlation_id(),
        created_at=now,
    )


async def _start(context: Context, merchant_id: str, order_id: str, request: PayRequest) -> tuple[OrderInHand, Job]:
    async with context.database.transaction() as session:
        in_hand = await orders.lock(session, merchant_id, order_id)
        if in_hand is None:
            raise not_found("order")
        order = in_hand.order
        is_retry = request.is_retry and order.status is OrderStatus.FAILED
        status = require(order.status, Command.RETRY if is_retry else Command.PAY)
        limit = context.settings.max_attempts_per_order
        if order.attempt_count >= limit:
            raise invalid("attempts_exhausted", f"The order was tried {limit} times; create a new one.")
        traits = _traits(order, request)
        decision = await routing.choose(context, session, merchant_id, traits, forced_processor=request.processor)
        now = context.now()
        order = replace(
            order,
            status=status,
            processor=decision.candidate.processor,
            processor_order_id=None,
            attempt_count=order.attempt_count + 1,
            last_error_code=None,
            last_error_message=None,
            updated_at=now,
        )
        attempt = _new_attempt(context, order, decision, request, now)
        job = _advance_job(context, attempt)
        await session.run_together(
            [
                orders.updating(order),
                attempts.insertion(attempt, decision.reasons),
                jobs.insertion(job),
                *_telling(context, Change(order, attempt, events=(EventType.PAYMENT_PROCESSING,))),
            ]
        )
    context.reached("charge.intent_recorded")
    log.info("payment.started", order_id=order.id, attempt_id=attempt.id, processor=attempt.processor)
    return OrderInHand(order, attempt), job


_KEY_PREFIX = f"{ADVANCE}:"


def _advance_job(context: Context, attempt: Attempt) -> Job:
    key = f"{_KEY_PREFIX}{attempt.id}"
    return leased_job(context, ADVANCE, attempt.order_id, key=key, arguments={"attemptId": attempt.id})


def _question(context: Context, attempt: Attempt, run_at: datetime) -> tuple[Write, Parameters]:
    """Return the write that has an attempt asked about, unless it has its job; whoever claims it is not the first."""
    return jobs.insertion(replace(_advance_job(context, attempt), run_at=run_at, is_leased=False))


def is_first_call(job: Job) -> bool:
    """Tell whether nobody can have made a job's call before: its own process runs it as soon as it is inserted."""
    return job.fence == FIRST_FENCE


def _traits(order: Order, request: PayRequest) -> PaymentTraits:
    return PaymentTraits(
        order_id=order.id,
        amount=order.amount,
        payment_method=request.payment_method,
        is_manual_capture=order.is_manual_capture,
        brand=request.brand,
        country=request.country or order.country,
        metadata=order.metadata,
        tokens_for=tied_to(request.token, request.tokens),
    )


def _new_attempt(
    context: Context, order: Order, decision: RoutingDecision, request: PayRequest, now: datetime
) -> Attempt:
    return Attempt(
        id=context.new_id(PREFIX_ATTEMPT),
        order_id=order.id,
        merchant_id=order.merchant_id,
        processor_config_id=decision.candidate.config_id,
        processor=decision.candidate.processor,
        number=order.attempt_count,
        status=AttemptStatus.SUBMITTING,
        amount_minor=order.amount_minor,
        currency=order.currency,
        is_manual_capture=order.is_manual_capture,
        request={
            "paymentMethod": request.payment_method,
            "token": request.token,
            "tokens": dict(request.tokens),
            "brand": request.brand,
            "country": request.country,
            "customerEmail": order.customer_email,
            "description": order.description,
            "merchantReturnUrl": request.return_url,
        },
        processor_reference=None,
        action=None,
        error_code=None,
        error_message=None,
        decline_class=None,
        raw_error_code=None,
        asked_count=0,
        unclear_since=None,
        created_at=now,
        updated_at=now,
    )


def authorize_request(context: Context, attempt: Attempt) -> AuthorizeRequest:
    """Return the request of an attempt exactly as it was first made."""
    snapshot = attempt.request
    tokens = snapshot.get("tokens")
    own_token = tokens.get(attempt.processor) if isinstance(tokens, Mapping) else None
    return AuthorizeRequest(
        order_id=attempt.order_id,
        attempt_id=attempt.id,
        amount=Money(attempt.amount_minor, attempt.currency),
        is_manual_capture=attempt.is_manual_capture,
        payment_method=str(snapshot["paymentMethod"]),
        token=_optional_text(own_token or snapshot["token"]),
        customer_email=_optional_text(snapshot["customerEmail"]),
        description=_optional_text(snapshot["description"]),
        return_url=f"{context.settings.checkout_base_url}/return/{attempt.id}",
        created_at=attempt.created_at,
    )


def _optional_text(value: object) -> str | None:
    return None if value is None else str(value)


@dataclass(frozen=True, slots=True)
class Call:
    """An attempt with all that a call about it needs."""

    attempt: Attempt
    processor: Processor
    account: Account
    payment: PaymentReference


async def prepare(context: Context, attempt_id: str) -> Call | None:
    """Return an attempt with what a call about it needs, or None; raises `processor_removed`."""
    async with context.database.reading() as reader:
        attempt = await attempts.get(reader, attempt_id)
        if attempt is None:
            return None
        config = await processor_configs.get(reader, attempt.processor_config_id)
    if config is None:
        raise invalid(
            "processor_removed",
            f"The {attempt.processor} account that took this payment was removed; settle it there.",
        )
    payment = PaymentReference(attempt.processor_reference, authorize_request(context, attempt))
    return Call(attempt, context.processors.get(attempt.processor), account_of(context, config), payment)


async def advance(context: Context, job: Job) -> OrderInHand | None:
    """Charge an attempt, or ask again what became of it, and record the answer."""
    call = await prepare(context, str(job.arguments["attemptId"]))
    if call is None or call.attempt.status in _SETTLED:
        await finish(context, job)
        return None
    attempt = call.attempt
    is_key_alive = context.now() - attempt.created_at < polling.KEY_HORIZON
    if attempt.status in (AttemptStatus.SUBMITTING, AttemptStatus.UNKNOWN) and is_key_alive:
        key = operation_key(attempt, "authorize")
        outcome = await asked(call.processor.authorize(call.account, call.payment.request, key=key))
        context.breakers.hear(attempt.processor_config_id, outcome, now=context.now())
        if isinstance(outcome, NotSent) and not is_first_call(job):
            # That this request was not sent says nothing of the earlier one, whose answer was lost.
            outcome = Unknown(outcome.message)
    else:
        outcome = await asked(call.processor.fetch(call.account, call.payment))
    context.reached("charge.called")
    return await record(context, attempt, outcome, job=job)


def operation_key(attempt: Attempt, operation: str) -> IdempotencyKey:
    """Return the key of one operation on an attempt."""
    return IdempotencyKey(processor_key(attempt.processor_config_id, attempt.id, operation=operation))


async def asked(call: Coroutine[object, object, Outcome]) -> Outcome:
    """Return a processor's answer; whatever it raises may have happened after the money moved, so it is unknown."""
    try:
        return await call
    except Exception as error:
        log.exception("processor.raised")
        return Unknown(f"the processor's adapter raised {type(error).__name__}")


async def complete_action(context: Context, attempt_id: str, parameters: Mapping[str, str]) -> OrderInHand:
    """Take a customer back from their bank: ask the processor what became of the payment, and record it."""
    call = await prepare(context, attempt_id)
    if call is None:
        raise not_found("payment")
    outcome = await asked(call.processor.complete_action(call.account, call.payment, parameters=parameters))
    return await record(context, call.attempt, outcome, job=None)


async def rescue_stale(context: Context) -> int:
    """Give every order that is stuck in `processing` a job again, should it ever have lost its own; return how many.

    The dedupe key keeps an order that still has its job as it is.
    """
    now = context.now()
    async with context.database.reading() as reader:
        stuck = await orders.stale(reader, now - RESCUE_AFTER, job_key_prefix=_KEY_PREFIX, limit=RESCUE_BATCH)
    writes = [_question(context, found.attempt, now) for found in stuck if found.attempt is not None]
    rescued = sum(await context.database.write_at_once(writes)) if writes else 0
    if rescued:
        log.error("payment.rescued", count=rescued)
        context.runner.wake()
    return rescued


async def finish(context: Context, job: Job) -> None:
    """End a job that has nothing (more) to do."""
    async with context.database.transaction() as session:
        jobs.require_held((await session.run_together([jobs.finishing(job)]))[0])


async def record(
    context: Context,
    attempt: Attempt,
    outcome: Outcome,
    *,
    job: Job | None,
    payload: Mapping[str, object] | None = None,
) -> OrderInHand:
    """Apply what a processor says of an attempt: the one function for every door that a fact comes in by.

    With a job, its end (or its next run, while the outcome stays unclear) is part of the same commit.
    """
    async with context.database.transaction() as session:
        in_hand = await orders.lock(session, attempt.merchant_id, attempt.order_id)
        if in_hand is None:
            raise not_found("order")
        current = in_hand.attempt
        if current is None or current.id != attempt.id:
            current = await attempts.get(session, attempt.id) or attempt
        now = context.now()
        change = apply_outcome(in_hand.order, current, outcome=outcome, now=now)
        change = _expiring(context, change, now)
        change, ending = _with_next_question(context, change, outcome, job, now)
        writes = [
            *([orders.updating(change.order)] if change.order != in_hand.order else []),
            *([attempts.updating(change.attempt)] if change.attempt != current else []),
            *(transactions.insertion(_row(context, t, change, now)) for t in change.transactions),
            *_telling(context, change, payload),
            *(await _completing_checkout(context, session, change) if OrderStatus.CAPTURED in _news(change) else []),
            *ending,
        ]
        if writes:
            counts = await session.run_together(writes)
            if job is not None:
                jobs.require_held(counts[-1])
    context.reached("charge.recorded")
    context.runner.wake()
    log.info(
        "payment.recorded",
        order_id=change.order.id,
        attempt_id=attempt.id,
        outcome=type(outcome).__name__,
        status=change.order.status,
        ignored=change.ignored,
    )
    return OrderInHand(change.order, change.attempt)


def _news(change: Change) -> set[OrderStatus]:
    return {change.order.status} if change.events else set()


def _expiring(context: Context, change: Change, now: datetime) -> Change:
    if change.order.status is OrderStatus.REQUIRES_ACTION and change.order.expires_at is None:
        return replace(
            change, order=replace(change.order, expires_at=now + timedelta(seconds=context.settings.order_ttl_s))
        )
    return change


def _with_next_question(
    context: Context, change: Change, outcome: Outcome, job: Job | None, now: datetime
) -> tuple[Change, Writes]:
    """Return the change with when the processor is asked next, should its answer have left the attempt open."""
    attempt, order = change.attempt, change.order
    is_open = attempt.status in (AttemptStatus.UNKNOWN, AttemptStatus.PENDING)
    is_unanswered = isinstance(outcome, Unknown) and attempt.status not in _SETTLED
    if not is_open and not is_unanswered:
        answered = replace(change, attempt=replace(attempt, asked_count=0, unclear_since=None))
        return answered, [jobs.finishing(job)] if job is not None else []
    since = attempt.unclear_since or now
    if now - since >= polling.ALERT_AFTER and not order.needs_review:
        log.error("payment.unclear", order_id=order.id, attempt_id=attempt.id, since=since)
        order = replace(order, needs_review=True)
    again = now + polling.delay(attempt.asked_count)
    change = replace(
        change,
        order=order,
        attempt=replace(attempt, asked_count=attempt.asked_count + 1, unclear_since=since),
    )
    if job is None:
        return change, [_question(context, attempt, again)]
    reason = outcome.reason if isinstance(outcome, Unknown) else None
    return change, [jobs.rescheduling(job, again, last_error=reason)]


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


async def _completing_checkout(context: Context, session: Session, change: Change) -> Writes:
    writes: Writes = []
    for checkout_session in await checkout.of_order(session, change.order.id):
        if checkout_session.completed_at is None:
            writes.append(checkout.completing(checkout_session.id, context.now()))
            writes += webhooks.recording(
                context, change.order, EventType.CHECKOUT_COMPLETED, payload={"checkoutSessionId": checkout_session.id}
            )
    return writes
