"""Webhooks out: record what happened beside the change itself, and carry it to the merchant until it arrives."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import aiohttp

from loop.domain.deliveries import (
    SECRET_BYTES,
    Delivery,
    DeliveryStatus,
    make_secret,
    retry_delay_s,
    signature_headers,
)
from loop.domain.errors import invalid, not_found
from loop.domain.events import Event, EventSubject, EventType, body_text
from loop.domain.ids import PREFIX_ENDPOINT, PREFIX_EVENT
from loop.domain.orders import Order
from loop.processors.http import AddressRefusedError, post_signed
from loop.storage import jobs, webhooks
from loop.storage.jobs import Job
from loop.storage.statements import Parameters, Write
from loop.storage.webhooks import Dispatch, Endpoint
from loop.telemetry import correlation_id, get_logger
from loop.workflows.context import Context

log = get_logger(__name__)

USER_AGENT = "Loop-Webhooks/1"


def recording(
    context: Context, order: Order, event_type: EventType, *, payload: Mapping[str, object]
) -> list[tuple[Write, Parameters]]:
    """Return the writes that tell an order's merchant of something, for the transaction of the change itself."""
    now = context.now()
    event_id = context.new_id(PREFIX_EVENT)
    subject = EventSubject(
        order.id, order.external_id, order.amount_minor, order.currency, order.status, order.processor
    )
    body = body_text(
        event_id, event_type, subject=subject, created_at=now, payload={**_order_payload(order), **payload}
    )
    event = Event(event_id, order.merchant_id, order.id, event_type, body, now)
    return webhooks.event_insertions(event, correlation_id())


def _order_payload(order: Order) -> dict[str, object]:
    return {
        "customerId": order.customer_id,
        "metadata": order.metadata,
        "processorOrderId": order.processor_order_id,
        "amountAuthorized": order.amount_authorized_minor,
        "amountCaptured": order.amount_captured_minor,
        "amountRefunded": order.amount_refunded_minor,
        "errorCode": order.last_error_code,
        "errorMessage": order.last_error_message,
    }


def new_endpoint(context: Context, merchant_id: str, url: str | None) -> Endpoint:
    """Return a merchant's new endpoint with a fresh secret, encrypted for its row."""
    now = context.now()
    endpoint_id = context.new_id(PREFIX_ENDPOINT)
    secret = make_secret(context.random_bytes(SECRET_BYTES))
    sealed = context.keyring.encrypt(secret, bound_to=_bound_to(endpoint_id, merchant_id))
    return Endpoint(endpoint_id, merchant_id, url, sealed, True, now, now)


def reveal_secret(context: Context, endpoint: Endpoint) -> str:
    """Return an endpoint's signing secret, for its merchant's own eyes and for signing."""
    return context.keyring.decrypt(endpoint.secret, bound_to=_bound_to(endpoint.id, endpoint.merchant_id))


def _bound_to(endpoint_id: str, merchant_id: str) -> tuple[str, ...]:
    return "webhook_endpoints", "secret", endpoint_id, merchant_id


async def attempt_delivery(context: Context, job: Job) -> None:
    """Try once to deliver an event to an endpoint, and say when to try again."""
    event_id, _, endpoint_id = job.subject.partition(":")
    async with context.database.reading() as reader:
        dispatch = await webhooks.dispatch(reader, event_id, endpoint_id)
    if dispatch is None or dispatch.delivery.status is not DeliveryStatus.PENDING:
        await _end(context, [jobs.finishing(job)])
        return
    if dispatch.endpoint.url is None or not dispatch.endpoint.is_enabled:
        given_up = replace(dispatch.delivery, status=DeliveryStatus.FAILED, last_error="nobody listens any more")
        await _end(context, [webhooks.delivery_updating(given_up), jobs.finishing(job)])
        return
    status_code, error = await _post(context, dispatch, dispatch.endpoint.url, job)
    context.reached("delivery.sent")
    delivery, run_at = _after_try(context, dispatch.delivery, status_code, error, context.now())
    ending = jobs.finishing(job) if run_at is None else jobs.rescheduling(job, run_at)
    await _end(context, [webhooks.delivery_updating(delivery), ending])
    log.info(
        "webhook.delivery_tried",
        event_id=event_id,
        endpoint_id=endpoint_id,
        status=delivery.status,
        status_code=status_code,
        attempt=delivery.attempts,
    )


async def _end(context: Context, writes: Sequence[tuple[Write, Parameters]]) -> None:
    async with context.database.transaction() as session:
        jobs.require_held((await session.run_together(writes))[-1])


async def _post(context: Context, dispatch: Dispatch, url: str, job: Job) -> tuple[int | None, str | None]:
    body = dispatch.event.body.encode()
    headers = {
        "Content-Type": "application/json",
        "User-Agent": USER_AGENT,
        **({"X-Correlation-ID": job.correlation_id} if job.correlation_id else {}),
        **signature_headers(reveal_secret(context, dispatch.endpoint), dispatch.event.id, body=body, now=context.now()),
    }
    try:
        answer = await post_signed(
            context.webhook_sender, url, body=body, headers=headers, timeout_s=context.settings.webhook_timeout_s
        )
    except AddressRefusedError as error:
        return None, str(error)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        return None, type(error).__name__
    return answer.status, None if _is_success(answer.status) else f"answered {answer.status}"


def _is_success(status_code: int | None) -> bool:
    return status_code is not None and 200 <= status_code < 300


def _after_try(
    context: Context, delivery: Delivery, status_code: int | None, error: str | None, now: datetime
) -> tuple[Delivery, datetime | None]:
    tried = replace(
        delivery,
        attempts=delivery.attempts + 1,
        last_attempt_at=now,
        last_status_code=status_code,
        last_error=error,
    )
    if _is_success(status_code):
        return replace(tried, status=DeliveryStatus.DELIVERED, delivered_at=now), None
    delay_s = retry_delay_s(tried.attempts, context.random_unit())
    if delay_s is None:
        return replace(tried, status=DeliveryStatus.FAILED), None
    return tried, now + timedelta(seconds=delay_s)


async def retry(context: Context, merchant_id: str, event_id: str) -> None:
    """Send an event again now, delivered before or not; raises `not_found`, or `no_endpoint` when nobody listens."""
    now = context.now()
    async with context.database.transaction() as session:
        event = await webhooks.event(session, merchant_id, event_id)
        if event is None:
            raise not_found("event")
        endpoint = await webhooks.first_endpoint(session, merchant_id)
        if endpoint is None or endpoint.url is None or not endpoint.is_enabled:
            raise invalid("no_endpoint", "There is no webhook address to send to; set webhookUrl first.")
        fresh = Delivery(event_id, endpoint.id, merchant_id, DeliveryStatus.PENDING, 0, None, None, None, None)
        known = await webhooks.dispatch(session, event_id, endpoint.id)
        job = webhooks.delivery_job(
            event_id, endpoint.id, job_id=context.new_id("job"), now=now, correlation_id=correlation_id()
        )
        if known is None:
            await session.run_together([webhooks.delivery_insertion(fresh), jobs.insertion(job)])
        else:
            again = replace(known.delivery, status=DeliveryStatus.PENDING)
            await session.run_together([webhooks.delivery_updating(again), jobs.insertion(job)])
        await jobs.run_soon(session, job.dedupe_key, now)
    context.runner.wake()
