"""Keyed forms: what a form asks for is done once, however often its button is pressed."""

from collections.abc import Awaitable, Callable
from typing import Final

import orjson
from starlette.requests import Request
from starlette.responses import Response

from loop.domain.errors import LoopError, conflict
from loop.server.dashboard.viewers import Sent, acting_as, form_key
from loop.server.idempotency import once_under
from loop.workflows import idempotency
from loop.workflows.context import Context
from loop.workflows.idempotency import KeyedRequest

IN_PROGRESS: Final = "idempotency_in_progress"
_NOT_PART_OF_IT: Final = frozenset({"csrf", "key"})


def keyed(request: Request, sent: Sent) -> KeyedRequest:
    """Return a form that was sent, under its own key; raises `validation_failed` for one without a key."""
    content = {name: value for name, value in sent.fields.items() if name not in _NOT_PART_OF_IT}
    body = orjson.dumps(content, option=orjson.OPT_SORT_KEYS).decode()
    fingerprint = idempotency.fingerprint(request.method, request.url.path, body=body)
    return KeyedRequest(sent.viewer.merchant_id, form_key(sent.fields), fingerprint, sent.viewer.is_test)


async def done_once(request: Request, sent: Sent, *, doing: Callable[[Context], Awaitable[str]]) -> str:
    """Do what a form asks for, and return what that returned, also to whoever sends the same form again.

    Raises what the doing raises, and `idempotency_in_progress` while it is at work.
    """
    context = acting_as(request, sent.viewer)

    async def run(_: object) -> Response:
        return Response(await doing(context))

    try:
        done = await once_under(context, keyed(request, sent), operation=run)
    except LoopError as error:
        if error.code == IN_PROGRESS:  # the second of two clicks
            raise conflict(IN_PROGRESS, "This is being worked on already. Load the page again in a moment.") from error
        raise
    return bytes(done.body).decode()
