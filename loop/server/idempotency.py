"""Idempotency over HTTP: the Idempotency-Key header of a POST, and its stored answer sent again."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from json import JSONEncoder
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from loop.domain.cards import contains_card_number
from loop.domain.errors import ErrorKind, LoopError, invalid
from loop.server.auth import Caller
from loop.server.request import card_number_refusal, context_of, header, json_response, json_text
from loop.storage.statements import Parameters, Write
from loop.workflows import idempotency
from loop.workflows.context import Context
from loop.workflows.idempotency import Claim, KeyedRequest, StoredAnswer

MAX_KEY_CHARACTERS: Final = 255

_CANONICAL: Final = JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode

_EFFECTLESS: Final = frozenset(
    {ErrorKind.INVALID, ErrorKind.FORBIDDEN, ErrorKind.NOT_FOUND, ErrorKind.CONFLICT, ErrorKind.RATE_LIMITED}
)
"""Refusals that had no effect: their key is free again, so that the request can be made once its cause is gone."""

Operation = Callable[[Claim | None], Awaitable[Response]]
"""Does the work, under the claim of its key if it has one: a claim tells of an earlier run whose process died."""

Created = tuple[Sequence[tuple[Write, Parameters]], object]
"""The writes that create something, and the content of the answer that tells of it."""

Creation = Callable[[], Awaitable[Created]]
"""Prepares what is created; raises `LoopError` where it may not be."""


def keyed_request(request: Request, caller: Caller, *, content: Mapping[str, object]) -> KeyedRequest | None:
    """Return a POST with its Idempotency-Key, None without one; raises `invalid_idempotency_key`."""
    key = header(request, b"idempotency-key")
    if key is None:
        return None
    if not 0 < len(key) <= MAX_KEY_CHARACTERS or not key.isprintable():
        raise invalid("invalid_idempotency_key", f"Idempotency-Key must have 1 to {MAX_KEY_CHARACTERS} characters.")
    if contains_card_number(key):
        raise card_number_refusal()
    fingerprint = idempotency.fingerprint(request.method, request.url.path, body=_CANONICAL(content))
    return KeyedRequest(caller.merchant_id, key, fingerprint, caller.is_test)


async def once(
    request: Request,
    caller: Caller,
    *,
    content: Mapping[str, object],
    operation: Operation,
    subject_id: str | None = None,
) -> Response:
    """Run an operation, or send again what was answered to the same request under the same Idempotency-Key.

    `subject_id` is the id for what it makes, which the claim then carries from a run that died to the next.
    """
    keyed = keyed_request(request, caller, content=content)
    if keyed is None:
        return await operation(None)
    return await once_under(context_of(request), keyed, operation=operation, subject_id=subject_id)


async def once_under(
    context: Context, keyed: KeyedRequest, *, operation: Operation, subject_id: str | None = None
) -> Response:
    """Run an operation under a key, or send again what was answered to the same request under it."""
    claimed = await idempotency.claim(context, keyed, subject_id)
    if isinstance(claimed, StoredAnswer):
        return _replayed(claimed)
    try:
        response = await operation(claimed)
    except LoopError as error:
        # Anything else may have had its effect: the key stays taken until its lock ends.
        if error.kind in _EFFECTLESS:
            await idempotency.release(context, claimed)
        raise
    await idempotency.finish(context, claimed, StoredAnswer(response.status_code, bytes(response.body).decode()))
    return response


async def create_once(
    request: Request, caller: Caller, *, content: Mapping[str, object], creation: Creation
) -> Response:
    """Create something and answer 201 with it, or send again what was answered under the same Idempotency-Key."""
    context, keyed = context_of(request), keyed_request(request, caller, content=content)
    try:
        writes, answer = await creation()
    except LoopError:
        # What refuses it now may have come after the first request, or follow from it.
        stored = None if keyed is None else await idempotency.answered(context, keyed)
        if stored is None:
            raise
        return _replayed(stored)
    if keyed is None:
        await context.database.write_at_once(writes)
    else:
        stored = await idempotency.write_once(context, keyed, writes, answer=StoredAnswer(201, json_text(answer)))
        if stored is not None:
            return _replayed(stored)
    context.runner.wake()
    return json_response(answer, 201)


def _replayed(stored: StoredAnswer) -> Response:
    return Response(
        stored.text, stored.status_code, headers={"Idempotent-Replayed": "true"}, media_type="application/json"
    )
