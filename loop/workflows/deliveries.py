"""Deliveries: carry what waits for an endpoint to it, a few at a time, and send again what a merchant asks for."""

import asyncio
import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

import aiohttp

from loop import metrics
from loop.domain.deliveries import (
    GONE_STATUS,
    Delivery,
    DeliveryAttempt,
    DeliveryStatus,
    Reply,
    SigningSecrets,
    parse_retry_after,
    retry_delay_s,
    signature_headers,
)
from loop.domain.endpoint_health import GONE, HOPELESS, IN_FLIGHT_MAX, EndpointHealth
from loop.domain.errors import LoopError, invalid, not_found
from loop.domain.events import EventType
from loop.domain.ids import PREFIX_EVENT, first_id
from loop.metrics import of
from loop.processors.http import AddressRefusedError, Answer, post_signed
from loop.storage import deliveries, jobs, webhooks
from loop.storage.database import Session
from loop.storage.deliveries import EventWithDelivery
from loop.storage.jobs import Job
from loop.storage.webhooks import Endpoint
from loop.telemetry import bind, correlation_id, get_logger, redact_text
from loop.traces import Attributes, SpanKind, carried, resumed
from loop.workflows.context import Context
from loop.workflows.webhooks import recording_without_order, signing_secrets, trial_event

log = get_logger(__name__)

USER_AGENT: Final = "Loop-Webhooks/1"

BATCH: Final = 16
"""Deliveries that are read at a time: as much as one endpoint's turn keeps in memory."""

TURN: Final = timedelta(seconds=5)
"""How long one endpoint is sent to before others have their turn; what is on its way then is waited for."""

GIVEN_UP_BATCH: Final = 500
REPLAY_BATCH: Final = 500
REPLAY_MAX: Final = 10_000
"""Failed deliveries that one request sends again; the next request takes the next ones."""


@dataclass(frozen=True, slots=True)
class _Try:
    """One delivery after one more try, and how that ended."""

    delivery: Delivery
    attempt: DeliveryAttempt
    reply: Reply
    event_at: datetime


async def deliver(context: Context, job: Job) -> None:
    """Send an endpoint what is due, and say when to look again; the job's subject is the endpoint.

    An endpoint has one job, so that a thousand deliveries that wait for one hold up nobody else's.
    """
    until, health, is_tried = context.now() + TURN, EndpointHealth(), False
    for step in itertools.count():  # ends with what is due, with the endpoint's health, or with the turn
        async with context.database.reading() as reader:
            endpoint = await webhooks.find_endpoint(reader, job.subject)
            health = endpoint.health if endpoint is not None and endpoint.is_listening else EndpointHealth()
            limit = 1 if health.is_sick else BATCH
            due = await deliveries.due(reader, job.subject, now=context.now(), limit=limit)
        if endpoint is None or (step > 0 and context.now() >= until):
            break
        if not endpoint.is_listening:
            if await _give_up(context, job, endpoint) == 0:
                break
        elif not due or (is_tried and health.is_sick):
            break
        else:
            await _Turn(context, job, endpoint).send(due)
            is_tried = True
    await _end_turn(context, job, health, is_tried=is_tried)


async def _give_up(context: Context, job: Job, endpoint: Endpoint) -> int:
    """Show a batch of what waits for an endpoint that does not listen any more as failed; return how many."""
    reason = "nobody listens any more" if endpoint.url is None else "the endpoint is disabled"
    async with context.database.transaction() as session:
        count = await deliveries.give_up(session, endpoint.id, reason=reason, limit=GIVEN_UP_BATCH)
        await jobs.renew(session, job, context.now())
    return count


async def _end_turn(context: Context, job: Job, health: EndpointHealth, *, is_tried: bool) -> None:
    """End the job if nothing waits, or have it run again when something is due, and behind those who wait now.

    Deliveries that became due meanwhile are seen here: whoever made them due waits for this, or was waited for.
    """
    now = context.now()
    is_pausing = is_tried and health.is_sick
    if is_pausing:
        health = health.paused(now)
    async with context.database.transaction() as session:
        if is_pausing:
            await session.run(*webhooks.health_updating(job.subject, health))
        await jobs.lock_held(session, job)
        next_at = await deliveries.next_due(session, job.subject)
        run_at = None if next_at is None else max(next_at, now, health.paused_until or now)
        ending = jobs.finishing(job) if run_at is None else jobs.rescheduling(job, run_at)
        jobs.require_held((await session.run_together([ending]))[0])
    if is_pausing:
        log.warning("webhook.endpoint_paused", endpoint_id=job.subject, until=health.paused_until)


class _Turn:
    """Sends one batch to one endpoint and stores how each try went."""

    def __init__(self, context: Context, job: Job, endpoint: Endpoint) -> None:
        self._context = context
        self._job = job
        self._endpoint = endpoint
        self._url = endpoint.url or ""
        self._health = self._stored_health = endpoint.health
        self._reason: str | None = None
        """Why the endpoint is to be disabled."""
        self._secrets: SigningSecrets | LoopError
        try:
            self._secrets = signing_secrets(context, endpoint)
        except LoopError as error:
            log.exception("webhook.secret_unreadable", endpoint_id=endpoint.id)
            self._secrets = error

    async def send(self, due: Sequence[EventWithDelivery]) -> None:
        """Send what is due, and none any more once the endpoint proves sick."""
        waiting = deque(due)
        is_probe = self._health.is_sick
        flying: set[asyncio.Task[_Try]] = set()
        ended: list[_Try] = []
        try:
            while True:  # each pass ends a try, and there are as many as are due
                while waiting and len(flying) < IN_FLIGHT_MAX and self._may_start(is_probe=is_probe):
                    flying.add(asyncio.create_task(self._try(waiting.popleft())))
                if ended:
                    await self._record(ended)  # while the next ones are on their way
                if not flying:
                    return
                done, flying = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
                ended = [self._heard(task.result()) for task in done]
        finally:
            for task in flying:
                task.cancel()

    def _may_start(self, *, is_probe: bool) -> bool:
        return self._reason is None and (is_probe or not self._health.is_sick)

    def _heard(self, ended: _Try) -> _Try:
        now = self._context.now()
        self._health = self._health.after_try(now, is_success=ended.reply.is_success)
        if ended.reply.status_code == GONE_STATUS:
            self._reason = GONE
        elif self._health.is_hopeless(now):
            self._reason = HOPELESS
        return ended

    async def _try(self, waiting: EventWithDelivery) -> _Try:
        context, before = self._context, waiting.delivery
        name, ids = f"deliver {waiting.event.event_type}", _ids_of(before)
        with (
            bind(correlation_id=before.correlation_id),
            resumed(before.trace_context, name, kind=SpanKind.CLIENT, attributes=ids) as span,
        ):
            began_at = context.now()
            answer, reply = await self._post(waiting)
            now = context.now()
            context.reached("delivery.sent")
            if span is not None:
                status_code = reply.status_code or 0
                span.note({"loop.order_id": waiting.event.order_id or "", "http.response.status_code": status_code})
        tried = replace(
            before,
            attempts=before.attempts + 1,
            last_attempt_at=now,
            last_status_code=reply.status_code,
            last_error=reply.error,
        )
        attempt = DeliveryAttempt(
            event_id=tried.event_id,
            endpoint_id=tried.endpoint_id,
            number=tried.attempts,
            merchant_id=tried.merchant_id,
            status_code=reply.status_code,
            duration_ms=int((now - began_at) / timedelta(milliseconds=1)),
            address=None if answer is None else answer.address,
            answer=None if answer is None else _legible(answer.head),
            error=reply.error,
            tried_at=began_at,
        )
        return _Try(_after_try(context, tried, reply, now), attempt, reply, waiting.event.created_at)

    async def _post(self, waiting: EventWithDelivery) -> tuple[Answer | None, Reply]:
        context, event = self._context, waiting.event
        if isinstance(self._secrets, LoopError):
            return None, Reply(None, self._secrets.code)
        body = event.body.encode()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": USER_AGENT,
            **({"X-Correlation-ID": waiting.delivery.correlation_id} if waiting.delivery.correlation_id else {}),
            **({"traceparent": span} if (span := carried()) else {}),
            **signature_headers(self._secrets, event.id, body=body, now=context.now()),
        }
        timeout_s = context.settings.webhook_timeout_s
        try:
            answer = await post_signed(
                context.webhook_sender, self._url, body=body, headers=headers, timeout_s=timeout_s
            )
        except AddressRefusedError as error:
            return None, Reply(None, str(error))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            return None, Reply(None, type(error).__name__, is_too_late=isinstance(error, TimeoutError))
        reply = Reply(answer.status, retry_after_s=parse_retry_after(answer.retry_after, context.now()))
        return answer, reply if reply.is_success else replace(reply, error=f"answered {answer.status}")

    async def _record(self, tries: Sequence[_Try]) -> None:
        """Store how tries went in one commit, which only the holder of the job's lease can make.

        Whoever writes to several of them locks deliveries first, then their endpoint, then its job.
        """
        context, now = self._context, self._context.now()
        writes = [
            *(deliveries.updating(each.delivery) for each in tries),
            *(deliveries.attempt_insertion(each.attempt) for each in tries),
        ]
        if self._health != self._stored_health:
            writes.append(webhooks.health_updating(self._endpoint.id, self._health))
        async with context.database.transaction() as session:
            is_disabled = False
            if self._reason is not None:
                await session.run_together(writes)
                is_disabled = await webhooks.disable(session, self._endpoint, self._reason, now=now)
                writes = []
            counts = await session.run_together([*writes, jobs.renewing(self._job, now)])
            jobs.require_held(counts[-1])
            if is_disabled:
                await self._tell_others(session)
        self._stored_health = self._health
        _count(tries, now)
        for each in tries:
            log.info(
                "webhook.delivery_tried",
                event_id=each.delivery.event_id,
                endpoint_id=each.delivery.endpoint_id,
                status=each.delivery.status,
                status_code=each.reply.status_code,
                attempt=each.delivery.attempts,
                correlation_id=each.delivery.correlation_id,
            )

    async def _tell_others(self, session: Session) -> None:
        """Tell the merchant's other endpoints that this one is disabled now; what waits for it is given up next."""
        context, endpoint = self._context, self._endpoint
        payload = {"endpointId": endpoint.id, "url": endpoint.url, "reason": self._reason}
        told = recording_without_order(context, endpoint.merchant_id, EventType.ENDPOINT_DISABLED, payload=payload)
        await session.run_together(told)
        log.warning("webhook.endpoint_disabled", endpoint_id=endpoint.id, reason=self._reason)


def _legible(head: bytes) -> str:
    """Return the beginning of an answer as text without secrets, and without NUL, which Postgres does not store."""
    return redact_text(head.decode("utf-8", "replace").replace("\0", ""))


def _ids_of(delivery: Delivery) -> Attributes:
    return {
        "loop.event_id": delivery.event_id,
        "loop.endpoint_id": delivery.endpoint_id,
        "loop.merchant_id": delivery.merchant_id,
        "loop.correlation_id": delivery.correlation_id or "",
        "loop.try": delivery.attempts + 1,
    }


def _count(tries: Sequence[_Try], now: datetime) -> None:
    for each in tries:
        if each.reply.is_success:
            of(metrics.TRIES, "delivered").inc()
            metrics.DELIVERED_TRIES.observe(each.delivery.attempts)
            metrics.DELIVERED_S.observe(max(0.0, (now - each.event_at).total_seconds()))
        else:
            of(metrics.TRIES, "given_up" if each.delivery.status is DeliveryStatus.FAILED else "retried").inc()


def _after_try(context: Context, tried: Delivery, reply: Reply, now: datetime) -> Delivery:
    if reply.is_success:
        return replace(tried, status=DeliveryStatus.DELIVERED, delivered_at=now)
    delay_s = retry_delay_s(tried.attempts, context.random_unit(), reply=reply)
    if delay_s is None:
        return replace(tried, status=DeliveryStatus.FAILED)
    return replace(tried, next_attempt_at=now + timedelta(seconds=delay_s))


async def retry(context: Context, merchant_id: str, event_id: str, *, endpoint_id: str | None = None) -> None:
    """Send an event again now, delivered before or not: to one endpoint, or to all that hear of it.

    Raises `not_found`, or `no_endpoint` when nobody listens.
    """
    async with context.database.transaction() as session:
        event = await webhooks.event(session, merchant_id, event_id, is_test=context.is_test)
        if event is None:
            raise not_found("event")
        if endpoint_id is None:
            had_it = {delivery.endpoint_id for delivery in await deliveries.of_event(session, merchant_id, event_id)}
            endpoints = [
                endpoint
                for endpoint in await webhooks.endpoints_of(session, merchant_id)
                if endpoint.is_listening and (endpoint.id in had_it or endpoint.hears_of(event.event_type))
            ]
        else:
            endpoints = [await _listening(session, merchant_id, endpoint_id)]
        if not endpoints:
            raise invalid("no_endpoint", "Nobody listens to such events; set webhookUrl, or enable an endpoint.")
        for endpoint in endpoints:
            await _send_now(context, session, endpoint, event_id)
    context.runner.wake()


async def _send_now(context: Context, session: Session, endpoint: Endpoint, event_id: str) -> None:
    now = context.now()
    fresh = Delivery(
        event_id, endpoint.id, endpoint.merchant_id, DeliveryStatus.PENDING, 0, None, None, None, None, now,
        correlation_id(), carried(),
    )  # fmt: skip
    await session.run_together([deliveries.sending(fresh)])
    await _wake(context, session, endpoint.id, now)


async def _wake(context: Context, session: Session, endpoint_id: str, now: datetime) -> None:
    await webhooks.end_pause(session, endpoint_id)
    await jobs.deliver_soon(session, endpoint_id, job_id=context.new_id("job"), now=now)


async def send_trial(context: Context, merchant_id: str, endpoint_id: str) -> str:
    """Send an endpoint, and no other, an event that says nothing; return its id. Raises `not_found`, `no_endpoint`."""
    async with context.database.transaction() as session:
        endpoint = await _listening(session, merchant_id, endpoint_id)
        event = trial_event(context, endpoint)
        await session.run_together([webhooks.event_insertion(event)])
        await _send_now(context, session, endpoint, event.id)
    context.runner.wake()
    return event.id


async def _listening(session: Session, merchant_id: str, endpoint_id: str) -> Endpoint:
    endpoint = await webhooks.endpoint(session, merchant_id, endpoint_id)
    if endpoint is None:
        raise not_found("endpoint")
    if not endpoint.is_listening:
        raise invalid("no_endpoint", "The endpoint is disabled, or has no address; change that first.")
    return endpoint


@dataclass(frozen=True, slots=True)
class Replay:
    """How many failed deliveries are sent again, and whether there are more for another request."""

    count: int
    has_more: bool


async def replay(context: Context, merchant_id: str, endpoint_id: str, *, since: datetime) -> Replay:
    """Send an endpoint again what failed of the events since a moment; raises `not_found`, `no_endpoint`."""
    from_event, count, found = first_id(PREFIX_EVENT, since), 0, REPLAY_BATCH
    while found == REPLAY_BATCH and count < REPLAY_MAX:
        now = context.now()
        async with context.database.transaction() as session:
            await _listening(session, merchant_id, endpoint_id)
            found = await deliveries.replay(session, endpoint_id, from_event=from_event, now=now, limit=REPLAY_BATCH)
            if found:
                await _wake(context, session, endpoint_id, now)
        count += found
    context.runner.wake()
    log.info("webhook.replayed", merchant_id=merchant_id, endpoint_id=endpoint_id, count=count)
    return Replay(count, has_more=found == REPLAY_BATCH)
