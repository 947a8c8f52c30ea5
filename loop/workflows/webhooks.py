"""Webhooks out: record what happened beside the change itself, for everybody who is to hear of it."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from loop.domain.deliveries import SECRET_BYTES, SigningSecrets, make_secret
from loop.domain.events import NO_ORDER, Event, EventSubject, EventType, body_of
from loop.domain.ids import PREFIX_ENDPOINT, PREFIX_EVENT
from loop.domain.orders import Order
from loop.storage import webhooks
from loop.storage.columns import json_text
from loop.storage.keyring import Place
from loop.storage.statements import Parameters, Write
from loop.storage.webhooks import Endpoint
from loop.telemetry import correlation_id
from loop.traces import carried
from loop.workflows.context import Context

SECRET_OVERLAP: Final = timedelta(hours=24)
"""How long a pending secret signs beside the one before, unless its merchant promotes it sooner."""


def recording(
    context: Context, order: Order, event_type: EventType, *, payload: Mapping[str, object]
) -> list[tuple[Write, Parameters]]:
    """Return the writes that tell an order's merchant of something, for the transaction of the change itself.

    `order` is as `orders.updating` is given it: the event carries the number of the revision that this makes.
    """
    is_new = event_type is EventType.ORDER_CREATED
    seq, at = (order.revision, order.created_at) if is_new else (order.revision + 1, context.now())
    subject = EventSubject(
        order.id,
        order.external_id,
        order.amount_minor,
        order.currency,
        order.status,
        order.processor,
        seq,
        order.is_test,
    )
    event = _event(
        context, order.merchant_id, event_type, subject=subject, payload={**_order_payload(order), **payload}, at=at
    )
    return webhooks.event_insertions(event, trace_context=carried())


def recording_without_order(
    context: Context,
    merchant_id: str,
    event_type: EventType,
    *,
    payload: Mapping[str, object],
    is_test: bool | None = None,
) -> list[tuple[Write, Parameters]]:
    """Return the writes that tell a merchant of something that is about no order, but perhaps about one mode."""
    subject = replace(NO_ORDER, is_test=is_test)
    event = _event(context, merchant_id, event_type, subject=subject, payload=payload, at=context.now())
    return webhooks.event_insertions(event, trace_context=carried())


def trial_event(context: Context, endpoint: Endpoint) -> Event:
    """Return an event for one endpoint alone, to see whether it listens."""
    payload = {"endpointId": endpoint.id, "url": endpoint.url}
    at = context.now()
    return _event(context, endpoint.merchant_id, EventType.ENDPOINT_TESTED, subject=NO_ORDER, payload=payload, at=at)


def _event(
    context: Context,
    merchant_id: str,
    event_type: EventType,
    *,
    subject: EventSubject,
    payload: Mapping[str, object],
    at: datetime,
) -> Event:
    event_id = context.new_id(PREFIX_EVENT)
    body = body_of(event_id, event_type, subject=subject, created_at=at, payload=payload)
    return Event(
        event_id, merchant_id, subject.order_id, event_type, json_text(body), at, subject.is_test, correlation_id()
    )


def _order_payload(order: Order) -> dict[str, object]:
    return {
        "customerId": order.customer_id,
        "metadata": order.metadata,
        "processorOrderId": order.processor_order_id,
        "amountAuthorized": order.amount_authorized_minor,
        "amountCaptured": order.amount_captured_minor,
        "amountRefunded": order.amount_refunded_minor,
        "amountDisputed": order.amount_disputed_minor,
        "errorCode": order.last_error_code,
        "errorMessage": order.last_error_message,
    }


def new_endpoint(context: Context, merchant_id: str, url: str | None) -> Endpoint:
    """Return a merchant's new endpoint with a fresh secret, encrypted for its row."""
    now = context.now()
    endpoint_id = context.new_id(PREFIX_ENDPOINT)
    sealed = context.keyring.encrypt(new_secret(context), bound_to=place_of_secret(endpoint_id, merchant_id))
    return Endpoint(endpoint_id, merchant_id, url, sealed, True, now, now)


def new_secret(context: Context) -> str:
    """Return a fresh signing secret."""
    return make_secret(context.random_bytes(SECRET_BYTES))


def signing_secrets(context: Context, endpoint: Endpoint) -> SigningSecrets:
    """Return what an endpoint's deliveries are signed with now; raises `DecryptionError`.

    A pending secret that its merchant has not promoted in time is the only one from then on.
    """
    is_over = endpoint.pending_since is not None and context.now() - endpoint.pending_since >= SECRET_OVERLAP
    pending = None
    if endpoint.pending_secret is not None:
        place = place_of_secret(endpoint.id, endpoint.merchant_id, column="pending_secret")
        pending = context.keyring.decrypt(endpoint.pending_secret, bound_to=place)
    if pending is not None and is_over:
        return SigningSecrets(pending)
    place = place_of_secret(endpoint.id, endpoint.merchant_id)
    return SigningSecrets(context.keyring.decrypt(endpoint.secret, bound_to=place), pending)


def reveal_secret(context: Context, endpoint: Endpoint) -> str:
    """Return the signing secret of an endpoint that counts now, for its merchant's own eyes."""
    return signing_secrets(context, endpoint).current


def place_of_secret(endpoint_id: str, merchant_id: str, *, column: str = "secret") -> Place:
    """Return where a secret of an endpoint is stored, which its ciphertext is bound to."""
    return Place("webhook_endpoints", column, endpoint_id, merchant_id)
