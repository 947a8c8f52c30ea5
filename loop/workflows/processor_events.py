"""Processor events: verify an inbound webhook, store it, acknowledge, then ask the processor what is true."""

import hashlib
from collections.abc import Mapping

from loop.domain import polling
from loop.domain.attempts import Attempt
from loop.domain.errors import LoopError, invalid, not_found, unavailable
from loop.domain.ids import PREFIX_PROCESSOR_EVENT
from loop.domain.refunds import RefundStatus
from loop.processors.base import WebhookEvent, WebhookSignatureError
from loop.storage import attempts, jobs, processor_configs, processor_events, refunds
from loop.storage.database import Reader
from loop.storage.jobs import Job
from loop.storage.keyring import DecryptionError
from loop.storage.processor_configs import ProcessorConfig
from loop.storage.processor_events import ProcessorEvent
from loop.telemetry import correlation_id, get_logger
from loop.workflows import refunds as refund_workflow
from loop.workflows.context import Context
from loop.workflows.payments import asked, prepare, record
from loop.workflows.processor_configs import account_of

log = get_logger(__name__)

PROCESS = "process_processor_event"
"""The kind of the jobs that work on stored inbound webhooks."""

ACCOUNTS_TRIED = 500
"""How many accounts' secrets a shared webhook address tries; an own address per account needs only one."""

MATCH_TRIES = 6
"""How often an event is looked at again whose payment is not known yet, or whose refund is not answered about."""


async def receive(
    context: Context, processor: str, config_id: str | None, *, body: bytes, headers: Mapping[str, str]
) -> None:
    """Verify and store an inbound webhook; its work is done by a job. A repeat is acknowledged and dropped.

    Without `config_id` the accounts' secrets decide whose it is. Raises `not_found`, `missing_signature`,
    `invalid_signature`, `invalid_body`, and `webhook_secret_missing` (503) when no account could verify it.
    """
    config, event = await _verified(context, processor, config_id, body, headers)
    now = context.now()
    row = ProcessorEvent(
        id=context.new_id(PREFIX_PROCESSOR_EVENT),
        merchant_id=config.merchant_id,
        processor_config_id=config.id,
        processor=processor,
        event_id=event.event_id[:255],
        event_type=event.event_type[:120],
        body_hash=hashlib.sha256(body).hexdigest(),
        payment_reference=event.payment_reference,
        attempt_id=event.attempt_id,
        refund_reference=event.refund_reference,
        outcome=None,
        processed_at=None,
        created_at=now,
    )
    job = Job(row.id, PROCESS, row.id, {}, f"{PROCESS}:{row.id}", config.id, now, 0, 0, False, False, None,
              correlation_id(), now)  # fmt: skip
    async with context.database.transaction() as session:
        is_new = await processor_events.add(session, row)
        if is_new:
            await session.run_together([jobs.insertion(job)])
    context.runner.wake()
    log.info("processor_event.received", processor=processor, event_type=event.event_type, is_new=is_new)


async def _verified(
    context: Context, processor: str, config_id: str | None, body: bytes, headers: Mapping[str, str]
) -> tuple[ProcessorConfig, WebhookEvent]:
    candidates = await _candidates(context, processor, config_id)
    refusal: LoopError | None = None
    has_secret = False
    for config in candidates:
        secret = _webhook_secret(context, config)
        if secret is None:
            continue
        has_secret = True
        try:
            event = context.processors.get(processor).parse_webhook(body, headers, secrets=[secret], now=context.now())
        except WebhookSignatureError as error:
            refusal = invalid(error.code, error.message)
        except ValueError as error:
            raise invalid("invalid_body", "The webhook's body makes no sense.") from error
        else:
            return config, event
    if refusal is not None:
        raise refusal
    if candidates and not has_secret:
        log.warning("processor_event.refused", processor=processor, reason="no webhook secret is configured")
        raise unavailable(
            "webhook_secret_missing", "No webhook secret is configured for this account.", retry_after_s=60
        )
    # Nobody's account: still tell an unsigned request from a wrongly signed one.
    try:
        context.processors.get(processor).parse_webhook(body, headers, secrets=[], now=context.now())
    except WebhookSignatureError as error:
        raise invalid(error.code, error.message) from error
    except ValueError as error:
        raise invalid("invalid_body", "The webhook's body makes no sense.") from error
    raise invalid("invalid_signature", "No account's secret signed this.")


def _webhook_secret(context: Context, config: ProcessorConfig) -> str | None:
    try:
        return account_of(context, config).credentials.get("webhookSecret") or None
    except DecryptionError:  # one account's broken row must not close the shared address to the others
        log.exception("processor_config.unreadable", config_id=config.id)
        return None


async def _candidates(context: Context, processor: str, config_id: str | None) -> list[ProcessorConfig]:
    if processor not in context.processors.names():
        raise not_found("processor")
    async with context.database.reading() as reader:
        if config_id is None:
            return await processor_configs.of_processor(reader, processor, ACCOUNTS_TRIED)
        config = await processor_configs.get(reader, config_id)
    if config is None or config.processor != processor:
        raise not_found("processor account")
    return [config]


async def process(context: Context, job: Job) -> None:
    """Ask the processor about what a stored event names, and record the answer."""
    async with context.database.reading() as reader:
        event = await processor_events.get(reader, job.subject)
        attempt = None if event is None else await _attempt_of(reader, event)
    if event is None:
        outcome = "gone"
    elif attempt is None:
        if event.payment_reference is not None and job.failures < MATCH_TRIES:
            await _park(context, job)
            return
        outcome = "no payment of ours"
    else:
        answer = await _ask(context, attempt, event.refund_reference)
        if answer is None and job.failures < MATCH_TRIES:
            await _park(context, job)
            return
        outcome = answer or "not answered"
    async with context.database.transaction() as session:
        counts = await session.run_together(
            [processor_events.processed(job.subject, outcome, now=context.now()), jobs.finishing(job)]
        )
        jobs.require_held(counts[-1])


async def _attempt_of(reader: Reader, event: ProcessorEvent) -> Attempt | None:
    if event.payment_reference is not None:
        found = await attempts.by_reference(reader, event.processor_config_id, event.payment_reference)
        if found is not None:
            return found
    if event.attempt_id is not None:
        named = await attempts.get(reader, event.attempt_id)
        if named is not None and named.processor_config_id == event.processor_config_id:
            return named
    return None


async def _park(context: Context, job: Job) -> None:
    again = context.now() + polling.delay(job.failures)
    async with context.database.transaction() as session:
        counts = await session.run_together([jobs.rescheduling(job, again, failures=job.failures + 1)])
        jobs.require_held(counts[0])


async def _ask(context: Context, attempt: Attempt, refund_reference: str | None) -> str | None:
    """Ask the processor and record its answer; None when it gave none and no other job asks on."""
    call = await prepare(context, attempt.id)
    if call is None:
        return "gone"
    if refund_reference is not None:
        async with context.database.reading() as reader:
            row = await refunds.by_reference(reader, attempt.id, refund_reference)
        if row is None:
            return "no refund of ours"
        outcome = await refund_workflow.fetch(call, row)
        if outcome.status is RefundStatus.UNKNOWN:
            return None
        changed = await refund_workflow.record(context, row, outcome, job=None)
        return f"refund {changed.status}"
    in_hand = await record(context, attempt, await asked(call.processor.fetch(call.account, call.payment)), job=None)
    return f"order {in_hand.order.status}"
