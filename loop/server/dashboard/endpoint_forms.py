"""Endpoint forms: a webhook endpoint as the fields of its form, what was typed as an endpoint, and how one fares."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from loop.domain.events import EventType
from loop.server.api.webhook_endpoints import NewEndpointBody
from loop.server.request import parse, validation_failed
from loop.storage.webhooks import ALL_EVENTS, Endpoint
from loop.workflows.webhook_endpoints import EndpointChange, NewEndpoint

CHOSEN_TYPES: Final[tuple[EventType, ...]] = tuple(each for each in EventType if each is not EventType.ENDPOINT_TESTED)
"""What an endpoint may choose to hear of; a test is sent to whichever endpoint is tested."""

EVERYTHING: Final = "all"
CHOSEN: Final = "some"
BLANK: Final[Mapping[str, str]] = {"hears": EVERYTHING}


def field_of(event_type: str) -> str:
    """Return the name of an event type's checkbox."""
    return f"event.{event_type}"


def fields_of(endpoint: Endpoint) -> dict[str, str]:
    """Return an endpoint as its form holds it."""
    return {
        "url": endpoint.url or "",
        "description": endpoint.description or "",
        "hears": EVERYTHING if ALL_EVENTS in endpoint.event_types else CHOSEN,
        **{field_of(each): "1" for each in endpoint.event_types if each != ALL_EVENTS},
    }


def _typed(fields: Mapping[str, str]) -> NewEndpointBody:
    events = [ALL_EVENTS]
    if fields.get("hears") != EVERYTHING:
        events = [each.value for each in CHOSEN_TYPES if fields.get(field_of(each))]
    if not events:
        raise validation_failed(("events", "choose at least one, or all of them"))
    url, description = (fields.get(name, "").strip() for name in ("url", "description"))
    return parse(NewEndpointBody, {"url": url, "description": description, "events": events})


def new_endpoint_of(fields: Mapping[str, str]) -> NewEndpoint:
    """Return the endpoint that was typed; raises `validation_failed`."""
    typed = _typed(fields)
    return NewEndpoint(typed.url, typed.description, tuple(typed.events))


def change_of(fields: Mapping[str, str]) -> EndpointChange:
    """Return what was typed of an endpoint that is there; raises `validation_failed`."""
    typed = _typed(fields)
    return EndpointChange(typed.url, typed.description, tuple(typed.events))


def state_of(endpoint: Endpoint, now: datetime) -> str:
    """Return how an endpoint fares: a key of `words.ENDPOINTS`."""
    if not endpoint.is_enabled:
        return "off" if endpoint.disabled_reason is None else "given_up"
    if endpoint.paused_until is not None and endpoint.paused_until > now:
        return "paused"
    return "listening" if endpoint.failing_since is None else "failing"
