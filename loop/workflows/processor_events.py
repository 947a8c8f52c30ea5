"""Processor events: verify an inbound webhook, store it, acknowledge, then ask the processor what is true."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeAlias

from loop import metrics
from loop.domain import polling
from loop.domain.attempts import Attempt, AttemptStatus, Unknown
from loop.domain.errors import LoopError, invalid, not_found, unavailable
from loop.domain.hints import Hint, contradiction, refund_contradiction
from loop.domain.ids import PREFIX_PROCESSOR_EVENT
from loop.domain.money import Money
from loop.domain.refunds import RefundStatus
from loop.metrics import of
from loop.processors.base import TellsDisputes, WebhookEvent, WebhookSignatureError
from loop.storage import attempts, jobs, orders, processor_configs, processor_events, refunds
from loop.storage.database import Reader
from loop.storage.jobs import Job
from loop.storage.keyring import DecryptionError
from loop.storage.processor_configs import ProcessorConfig
from loop.storage.processor_events import ProcessorEvent
from loop.telemetry import correlation_id, get_logger
from loop.traces import carried
from loop.workflows import disputes as dispute_workflow
from loop.workflows import refunds as refund_workflow
from loop.workflows.attempts import Call, asked, prepare
from loop.workflows.context import Context
from loop.workflows.outcomes import record
from loop.workflows.processor_configs import webhook_secrets
from loop.workflows.runs import finish

log = get_logger(__name__)

PROCESS = "process_processor_event"
"""The kind of the jobs that work on stored inbound webhooks."""

ACCOUNTS_TRIED = 500
"""How many accounts' secrets a shared webhook address tries; an own address per account needs only one."""

SHARED_HASHED_MAX_BYTES = 32 * 1024 * 1024
"""How much is hashed for one webhook at a shared address: so many secrets are tried as bodies of its size make up.

A stranger's largest body costs tens of milliseconds, and a processor's usual one is held against all accounts.
"""

MATCH_TRIES = 6
"""How often an event is looked at again whose payment or refund is not known yet."""

UNANSWERED_TRIES = 200
"""How often an event is looked at again while its processor does not answer: for eight days, hourly in the end."""

_DECIDED = frozenset({AttemptStatus.CAPTURED, AttemptStatus.VOIDED})
"""Attempts of which an event of their payment can tell nothing new."""


async def receive(
    context: Context, processor: str, config_id: str | None, *, body: bytes, headers: Mapping[str, str]
) -> None:
    """Verify and store an inbound webhook; its work is done by a job. A repeat is acknowledged and dropped.

    Without `config_id` the accounts' secrets decide whose it is. Raises `not_found`, `missing_signature`,
    `invalid_signature`, `invalid_body`, and `webhook_secret_missing` (503) when no account could verify it.
    """
    try:
        signed = await _verified(context, processor, config_id, body, headers)
    except LoopError:
        if processor in context.processors.names():
            of(metrics.INBOUND, processor, "refused").inc()
        raise
    config, event = signed.config, signed.event
    now = context.now()
    body_hash = hashlib.sha256(body).hexdigest()
    amount = None if event.amount is None or not _is_storable(event.amount) else event.amount
    row = ProcessorEvent(
        id=context.new_id(PREFIX_PROCESSOR_EVENT),
        merchant_id=config.merchant_id,
        processor_config_id=config.id,
        processor=processor,
        event_id=_storable(event.event_id, 255) or body_hash,
        event_type=_storable(event.event_type, 120) or "unknown",
        body_hash=body_hash,
        payment_reference=_storable(event.payment_reference, 255),
        attempt_id=_storable(event.attempt_id, 40),
        refund_reference=_storable(event.refund_reference, 255),
        dispute_reference=_storable(event.dispute_reference, 255),
        amount_minor=None if amount is None else amount.amount_minor,
        currency=None if amount is None else amount.currency,
        secret_ordinal=signed.secret_ordinal,
        is_quarantined=False,
        outcome=None,
        processed_at=None,
        created_at=now,
    )
    job = Job(row.id, PROCESS, row.id, {}, f"{PROCESS}:{row.id}", config.id, now, 0, 0, False, False, None,
              correlation_id(), now, carried())  # fmt: skip
    async with context.database.transaction() as session:
        is_new = await processor_events.add(session, row)
        if is_new:
            await session.run_together([jobs.insertion(job)])
    context.runner.wake()
    of(metrics.INBOUND, processor, "new" if is_new else "repeat").inc()
    log.info(
        "processor_event.received",
        processor=processor,
        event_type=row.event_type,
        is_new=is_new,
        secret_ordinal=row.secret_ordinal,
    )


def _storable(text: str | None, max_characters: int) -> str | None:
    """Return a text of a webhook's if a column of so many characters can hold it: Loop wrote none that it could not."""
    if text is None or len(text) > max_characters or "\0" in text:
        return None
    return None if any("\ud800" <= each <= "\udfff" for each in text) else text


def _is_storable(amount: Money) -> bool:
    return 0 <= amount.amount_minor < 2**63 and _storable(amount.currency, 3) is not None


@dataclass(frozen=True, slots=True)
class _Signed:
    """A verified webhook: whose it is, and which of the account's secrets signed it, 0 being the current one."""

    config: ProcessorConfig
    event: WebhookEvent
    secret_ordinal: int


async def _verified(
    context: Context, processor: str, config_id: str | None, body: bytes, headers: Mapping[str, str]
) -> _Signed:
    if processor not in context.processors.names():
        raise not_found("processor")
    if config_id is None:
        _require_signature(_read(context, processor, body, headers, None))  # before all accounts are looked through
    candidates = await _candidates(context, processor, config_id)
    owners = _owners_of_secrets(context, candidates)
    if candidates and not owners:
        log.warning("processor_event.refused", processor=processor, reason="no webhook secret is set")
        raise unavailable(
            "webhook_secret_missing", "No webhook secret is configured for this account.", retry_after_s=60
        )
    tries = len(owners) if config_id is not None else max(1, SHARED_HASHED_MAX_BYTES // max(1, len(body)))
    for secret, several in islice(owners.items(), tries):
        event = _read(context, processor, body, headers, secret)
        if isinstance(event, WebhookEvent):
            config, ordinal = several[0] if len(several) == 1 else await _nominated(context, several, event)
            return _Signed(config, event, ordinal)
        _require_signature(event)
    raise invalid("invalid_signature", "No webhook secret that is known here has signed this.")


def _require_signature(refusal: WebhookEvent | WebhookSignatureError) -> None:
    if isinstance(refusal, WebhookSignatureError) and refusal.code == "missing_signature":
        raise invalid(refusal.code, refusal.message)


def _read(
    context: Context, processor: str, body: bytes, headers: Mapping[str, str], secret: str | None
) -> WebhookEvent | WebhookSignatureError:
    secrets = [] if secret is None else [secret]
    try:
        return context.processors.get(processor).parse_webhook(body, headers, secrets=secrets, now=context.now())
    except WebhookSignatureError as error:
        return error
    except Exception as error:
        if not isinstance(error, ValueError):  # no bytes of a stranger's may look like a fault of this server
            log.exception("processor_event.adapter_raised", processor=processor)
        raise invalid("invalid_body", "The webhook's body makes no sense.") from error


_Owner: TypeAlias = tuple[ProcessorConfig, int]
"""An account, and how many times one of its secrets was replaced since."""


def _owners_of_secrets(context: Context, configs: Sequence[ProcessorConfig]) -> Mapping[str, Sequence[_Owner]]:
    """Return each secret with the accounts that it belongs to, the current secrets of all before the earlier ones."""
    found: list[tuple[int, str, ProcessorConfig]] = []
    for config in configs:
        try:
            secrets = webhook_secrets(context, config)
        except DecryptionError:  # one account's broken row must not close the shared address to the others
            log.exception("processor_config.unreadable", config_id=config.id)
            continue
        found += [(ordinal, secret, config) for ordinal, secret in enumerate(secrets)]
    owners: dict[str, list[_Owner]] = {}
    for ordinal, secret, config in sorted(found, key=lambda each: each[0]):
        owners.setdefault(secret, []).append((config, ordinal))
    return owners


async def _nominated(context: Context, owners: Sequence[_Owner], event: WebhookEvent) -> _Owner:
    """Return which of the accounts that share a secret has the payment; the first, when none has."""
    async with context.database.reading() as reader:
        named = None if event.attempt_id is None else await attempts.get(reader, event.attempt_id)
        for config, ordinal in owners:
            is_named = named is not None and named.processor_config_id == config.id
            reference = event.payment_reference
            if is_named or (reference and await attempts.by_reference(reader, config.id, reference)):
                return config, ordinal
    return owners[0]


async def _candidates(context: Context, processor: str, config_id: str | None) -> list[ProcessorConfig]:
    async with context.database.reading() as reader:
        if config_id is None:
            return await processor_configs.of_processor(reader, processor, ACCOUNTS_TRIED)
        config = await processor_configs.get(reader, config_id)
    if config is None or config.processor != processor:
        raise not_found("processor account")
    return [config]


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What became of a stored event; `suspect` is the attempt of one that is kept for a person instead.

    It stands only once the event was looked at again so many times as `tries` says, with no better one.
    """

    outcome: str
    suspect: Attempt | None = None
    tries: int = 0


_NO_ANSWER = _Verdict("no answer", tries=UNANSWERED_TRIES)


async def process(context: Context, job: Job) -> None:
    """Ask the processor about what a stored event names, and record the answer.

    An event that contradicts what Loop knows is never followed: it is quarantined, and its order needs review. One of
    a payment or refund that is not known (yet) is looked at again, `MATCH_TRIES` times. One of a known payment, or of
    its refund or dispute, is asked about for longer: it may be all that ever tells of money that comes late, or that
    the bank sent a refund back.
    """
    async with context.database.reading() as reader:
        event = await processor_events.get(reader, job.subject)
        attempt = None if event is None else await _attempt_of(reader, event)
    if event is None:
        await finish(context, job)
        return
    if attempt is None:
        verdict = _Verdict("no payment of ours", tries=0 if event.payment_reference is None else MATCH_TRIES)
    else:
        verdict = await _follow(context, event, attempt)
    if jobs.looks_of(job) < verdict.tries:
        await _park(context, job)
        return
    await _conclude(context, job, event, verdict)


async def _attempt_of(reader: Reader, event: ProcessorEvent) -> Attempt | None:
    """Return the attempt that an event is about: the one of its payment, else the one it names, whoever made that."""
    if event.payment_reference is not None:
        found = await attempts.by_reference(reader, event.processor_config_id, event.payment_reference)
        if found is not None:
            return found
    return None if event.attempt_id is None else await attempts.get(reader, event.attempt_id)


async def _conclude(context: Context, job: Job, event: ProcessorEvent, verdict: _Verdict) -> None:
    suspect, now = verdict.suspect, context.now()
    done = processor_events.processed(event.id, verdict.outcome, is_quarantined=suspect is not None, now=now)
    async with context.database.transaction() as session:
        writes = [done, jobs.finishing(job)]
        # Nothing that one merchant's account signs touches an order of another's.
        if suspect is not None and suspect.merchant_id == event.merchant_id:
            in_hand = await orders.lock(session, suspect.merchant_id, suspect.order_id)
            if in_hand is not None and not in_hand.order.needs_review:
                writes.insert(0, orders.updating(replace(in_hand.order, needs_review=True, updated_at=now)))
        counts = await session.run_together(writes)
        jobs.require_held(counts[-1])
    of(metrics.INBOUND_S, event.processor).observe((now - event.created_at).total_seconds())
    if suspect is not None:
        of(metrics.INBOUND, event.processor, "quarantined").inc()
        log.error(
            "processor_event.quarantined",
            processor_event_id=event.id,
            order_id=suspect.order_id,
            attempt_id=suspect.id,
            reason=verdict.outcome,
        )


async def _park(context: Context, job: Job) -> None:
    again = context.now() + polling.delay(jobs.looks_of(job))
    async with context.database.transaction() as session:
        counts = await session.run_together([jobs.looking_again(job, again)])
        jobs.require_held(counts[0])


async def _follow(context: Context, event: ProcessorEvent, attempt: Attempt) -> _Verdict:
    """Ask the processor and record its answer."""
    hint = _hint_of(event)
    is_about_payment = event.refund_reference is None and event.dispute_reference is None
    problem = contradiction(hint, attempt, is_about_payment=is_about_payment)
    if problem is not None:
        return _Verdict(f"quarantined: {problem}", suspect=attempt)
    call = await prepare(context, attempt.id)
    if call is None:
        return _Verdict("gone")
    if event.refund_reference is not None:
        return await _follow_refund(context, call, hint, event.refund_reference)
    if event.dispute_reference is not None and isinstance(call.processor, TellsDisputes):
        return await _follow_dispute(context, call, event.dispute_reference)
    answer = await asked(call, "fetch", question=call.processor.fetch(call.account, call.payment))
    recorded = await record(context, attempt, answer, job=None)
    known = recorded.in_hand.attempt
    if isinstance(answer, Unknown) and known is not None and known.status not in _DECIDED:
        return _NO_ANSWER
    return _Verdict(f"order {recorded.in_hand.order.status}")


def _hint_of(event: ProcessorEvent) -> Hint:
    has_amount = event.amount_minor is not None and event.currency is not None
    amount = Money(event.amount_minor or 0, event.currency or "") if has_amount else None
    return Hint(event.processor_config_id, event.payment_reference, amount)


async def _follow_refund(context: Context, call: Call, hint: Hint, reference: str) -> _Verdict:
    async with context.database.reading() as reader:
        row = await refunds.by_reference(reader, call.attempt.id, reference)
    if row is None:
        return _Verdict("no refund of ours", tries=MATCH_TRIES)
    problem = refund_contradiction(hint, row)
    if problem is not None:
        return _Verdict(f"quarantined: {problem}", suspect=call.attempt)
    outcome = await refund_workflow.fetch(call, row)
    if outcome.status is RefundStatus.UNKNOWN:
        return _NO_ANSWER
    changed = await refund_workflow.record(context, row, outcome, job=None)
    return _Verdict(f"refund {changed.status}")


async def _follow_dispute(context: Context, call: Call, reference: str) -> _Verdict:
    paid = await dispute_workflow.paid(context, call)
    outcome = None if paid is None else await dispute_workflow.fetch(paid, reference)
    if paid is None or outcome is None:
        return _NO_ANSWER
    if outcome.payment_reference != paid.payment.reference:
        return _Verdict(f"quarantined: {reference} is a dispute of another payment", suspect=paid.attempt)
    changed = await dispute_workflow.record(context, paid.attempt, outcome, job=None)
    return _Verdict(f"dispute {changed.status}")
