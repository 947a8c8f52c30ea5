"""Errors as HTTP: one table from an error's kind to a status, and the one shape of every error's body."""

import json
from collections.abc import Mapping
from typing import Final

from starlette.exceptions import HTTPException
from starlette.responses import Response

from loop.domain.errors import ErrorKind, LoopError

STATUS_OF: Final[Mapping[ErrorKind, int]] = {
    ErrorKind.INVALID: 400,
    ErrorKind.UNAUTHENTICATED: 401,
    ErrorKind.FORBIDDEN: 403,
    ErrorKind.NOT_FOUND: 404,
    ErrorKind.CONFLICT: 409,
    ErrorKind.TOO_LARGE: 413,
    ErrorKind.RATE_LIMITED: 429,
    ErrorKind.UNAVAILABLE: 503,
    ErrorKind.CONFIGURATION: 500,
}

_STILL_SENDING: Final = frozenset({"body_too_large", "body_too_slow"})
"""Codes of refusals that leave a part of the request unread: no other request can follow on its connection."""

_BY_STATUS: Final[Mapping[int, tuple[str, str]]] = {
    404: ("not_found", "There is nothing at this address."),
    405: ("method_not_allowed", "This address does not take that method; the Allow header names those it takes."),
}


def error_response(error: LoopError, request_id: str | None) -> Response:
    """Return the answer for an expected error; `request_id` is the correlation id."""
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    if error.kind is ErrorKind.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    if error.code in _STILL_SENDING:
        headers["Connection"] = "close"
    details = [{"field": field, "message": message} for field, message in error.details]
    return _answer(
        STATUS_OF[error.kind],
        {"code": error.code, "message": error.message, **({"details": details} if details else {})},
        request_id=request_id,
        headers=headers,
    )


def internal_error_response(request_id: str | None) -> Response:
    """Return the answer for what should not have happened; the log says what it was, the answer does not."""
    body: dict[str, object] = {
        "code": "internal_error",
        "message": "Something went wrong on our side; give the requestId to whoever runs this server.",
    }
    return _answer(500, body, request_id=request_id, headers={})


def _answer(status: int, body: dict[str, object], *, request_id: str | None, headers: Mapping[str, str]) -> Response:
    if request_id is not None:
        body["requestId"] = request_id
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return Response(text, status, headers=headers, media_type="application/json")


def refusal_response(error: HTTPException, request_id: str | None) -> Response:
    """Return the answer for what the router refuses: an unknown address or a method that it does not take."""
    code, message = _BY_STATUS.get(error.status_code, ("refused", "The request was refused."))
    return _answer(
        error.status_code,
        {"code": code, "message": message},
        request_id=request_id,
        headers=dict(error.headers or {}),
    )
