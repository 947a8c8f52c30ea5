"""Processors' webhooks: take the raw bytes in, and say at once whether they are kept."""

from typing import Final, Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from loop.server.operations import Operation, describes
from loop.server.request import context_of, json_response, path_id, read_bytes
from loop.workflows import processor_events

MAX_BYTES: Final = 1024 * 1024


class ReceivedJson(TypedDict):
    """The webhook is kept."""

    received: Literal[True]


_ERRORS: Final = (
    "missing_signature",
    "invalid_signature",
    "invalid_body",
    "invalid_json",
    "body_too_large",
    "body_too_slow",
    "webhook_secret_missing",
)


@describes(Operation("receiveWebhook", answer=ReceivedJson, errors=_ERRORS))
async def receive(request: Request) -> Response:
    """Take a webhook in for one account, or for whichever account's secret fits at the shared address."""
    processor = path_id(request, "processor", noun="processor")
    config_id = None
    if "account_id" in request.path_params:
        config_id = path_id(request, "account_id", noun="processor account")
    raw = await read_bytes(request, max_bytes=MAX_BYTES)
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers.raw}
    await processor_events.receive(context_of(request), processor, config_id, body=raw, headers=headers)
    return json_response({"received": True})


routes = [
    Route("/webhooks/{processor}/{account_id}", receive, methods=["POST"]),
    Route("/webhooks/{processor}", receive, methods=["POST"]),
]
