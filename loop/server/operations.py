"""Operations: what the API's document says of a handler beyond its request model, declared beside the handler."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from loop.domain.money import CURRENCY_EXPONENTS, MAX_AMOUNT_MINOR
from loop.domain.orders import OrderStatus
from loop.server.request import DEFAULT_LIMIT, MAX_LIMIT, MAX_PAGE, Body

Handler = Callable[[Request], Awaitable[Response]]
H = TypeVar("H", bound=Handler)
JsonSchema = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Link:
    """What can be called next with a part of an answer: `parameters` are JSON pointers into the answer's body."""

    operation_id: str
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Operation:
    """One handler's part of the document.

    `answer` is the type of the JSON of its successful answer, None where there is no body. `errors` are the codes that
    it may answer besides those that follow from its kind (see `loop.server.openapi`). `example` is a request's body.
    """

    operation_id: str
    answer: Any = None
    status: int = 200
    body: type[Body] | None = None
    query: Mapping[str, JsonSchema] = field(default_factory=dict)
    errors: Sequence[str] = ()
    example: object = None
    is_keyed: bool = False
    """Whether it takes an Idempotency-Key."""
    links: Sequence[Link] = ()


OPERATIONS: Final[dict[Handler, Operation]] = {}
"""What is declared, by handler."""


def describes(operation: Operation) -> Callable[[H], H]:
    """Declare what the document says of the handler that follows, which stays as it is."""

    def declare(handler: H) -> H:
        OPERATIONS[handler] = operation
        return handler

    return declare


# Query parameters that several lists take.

_LIMIT: Final[JsonSchema] = {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT}

CURSOR: Final[Mapping[str, JsonSchema]] = {
    "cursor": {"type": "string", "pattern": "^[A-Za-z0-9_]{1,60}$", "description": "A nextCursor of the same list."},
    "limit": _LIMIT,
}
PAGE: Final[Mapping[str, JsonSchema]] = {
    "page": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": 1},
    "limit": _LIMIT,
}
MOMENT: Final[JsonSchema] = {
    "type": "string",
    "format": "date-time",
    "description": "An ISO 8601 time with an offset; a date means its first moment in UTC.",
}
CURRENCY: Final[JsonSchema] = {"type": "string", "enum": sorted(CURRENCY_EXPONENTS)}
_AMOUNT: Final[JsonSchema] = {"type": "integer", "minimum": 0, "maximum": MAX_AMOUNT_MINOR}
_TEXT: Final[JsonSchema] = {"type": "string", "minLength": 1, "maxLength": 255}

ORDER_FILTER: Final[Mapping[str, JsonSchema]] = {
    "status": {"type": "string", "enum": list(OrderStatus)},
    "processor": _TEXT,
    "currency": _TEXT,
    "externalId": _TEXT,
    "createdFrom": MOMENT,
    "createdTo": MOMENT,
    "amountMin": _AMOUNT,
    "amountMax": _AMOUNT,
}
