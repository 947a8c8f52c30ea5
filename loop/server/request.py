"""Requests: strict JSON bodies, their models, path ids, query parameters, and the JSON of answers."""

import asyncio
import json
import math
import re
import types
from collections.abc import Coroutine, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Final, TypeVar, overload
from urllib.parse import parse_qsl, urlsplit

import orjson
import pydantic
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive

from loop.domain.cards import contains_card_number
from loop.domain.errors import ErrorKind, LoopError, invalid, not_found
from loop.domain.events import timestamp
from loop.domain.money import CURRENCY_EXPONENTS, MAX_AMOUNT_MINOR, require_currency
from loop.workflows.context import Context

BODY_MAX_BYTES: Final = 65_536
FORM_MAX_BYTES: Final = 16_384
"""A processor's credentials, percent-encoded, may be a key in PEM."""

BODY_DEADLINE_S: Final = 10.0
"""How long a body may take to arrive, in seconds."""

DISCARDED_MAX_BYTES: Final = 16 * 1024 * 1024
"""How much of a body that is too large is read and thrown away before the connection is closed."""

MAX_DEPTH: Final = 32
MAX_KEYS: Final = 1_000
MAX_PAGE: Final = 1_000_000
MAX_LIMIT: Final = 100
DEFAULT_LIMIT: Final = 20
MAX_QUERY_FIELDS: Final = 50
MAX_DETAILS: Final = 20
"""How many problems of one body are named."""

_INT64: Final = 2**63
_MAX_INT_CHARACTERS: Final = 20
_MAX_ID_CHARACTERS: Final = 60
_MAX_FIELD_CHARACTERS: Final = 120
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_SUBJECT: Final = re.compile(r"^(?:Value error, )?(?:[A-Z][a-z]+ should)?")

M = TypeVar("M", bound=pydantic.BaseModel)

# What bodies are made of.

Amount = Annotated[int, Field(ge=1, le=MAX_AMOUNT_MINOR)]
"""Minor units: an integer, never a float, a boolean or text."""

Currency = Annotated[
    str,
    AfterValidator(require_currency),
    WithJsonSchema({"type": "string", "enum": sorted(CURRENCY_EXPONENTS)}),
]
"""An ISO 4217 code, in upper case once checked; raises `invalid_currency`."""


def parse_time(value: object) -> datetime:
    """Return ISO 8601 text with an offset, or a date (its first moment in UTC), as a time in UTC; else ValueError."""
    with suppress(ValueError, OverflowError):
        read = datetime.fromisoformat(value if isinstance(value, str) else "")
        if _DATE.fullmatch(str(value)):
            read = read.replace(tzinfo=UTC)
        if read.tzinfo is not None:
            return read.astimezone(UTC)
    raise ValueError("must be an ISO 8601 time with an offset, such as 2030-01-31T00:00:00Z")


Time = Annotated[datetime, BeforeValidator(parse_time)]
"""ISO 8601 text with an offset; a number or a time without an offset is refused."""

MAX_URL_CHARACTERS: Final = 2_048


def require_web_url(url: str) -> str:
    """Return an address that a browser may be sent to, or raise ValueError saying what is wrong with it."""
    if len(url) > MAX_URL_CHARACTERS:
        raise ValueError(f"must have at most {MAX_URL_CHARACTERS} characters")
    if not url.isprintable() or " " in url or "\\" in url:
        raise ValueError("must be a URL without spaces, backslashes or control characters")
    is_web = False
    with suppress(ValueError):
        parts = urlsplit(url)
        is_web = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        is_web = is_web and "@" not in parts.netloc
    if not is_web:
        raise ValueError("must begin with https:// or http://, name a host and hold no user or password")
    return url


WebUrl = Annotated[
    str,
    AfterValidator(require_web_url),
    WithJsonSchema({"type": "string", "pattern": r"^https?://[^\s\\]+$", "maxLength": MAX_URL_CHARACTERS}),
]
"""Where a customer's browser may be sent."""

Text255 = Annotated[str, Field(min_length=1, max_length=255)]
Email = Annotated[str, Field(max_length=320, pattern=r"^[^@\s]+@[^@\s]+$")]


class Body(pydantic.BaseModel):
    """The base of every request's body: camelCase names, exact types, and no field that is not declared."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=False
    )


def _invalid_json(message: str) -> LoopError:
    return invalid("invalid_json", message)


class _RepeatedKeyError(ValueError):
    """An object names a key twice, which two readers would understand differently."""


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _RepeatedKeyError
    return made


def _integer(digits: str) -> int:
    number = int(digits) if len(digits) <= _MAX_INT_CHARACTERS else _INT64
    if not -_INT64 <= number < _INT64:
        raise _invalid_json("A number is too large: whole numbers must fit 64 bits.")
    return number


def _fraction(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise _invalid_json("A number is too large.")
    return number


def _refuse_constant(_name: str) -> object:
    raise _invalid_json("NaN and Infinity are no JSON.")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_fraction, parse_constant=_refuse_constant
)
_ENCODE: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def header(request: Request, name: bytes) -> str | None:
    """Return a header, None without it; its name in lower case. A third of what Starlette's look-up costs."""
    for each, value in request.scope["headers"]:
        if each == name:
            text: str = value.decode("latin-1")
            return text
    return None


class _Arriving:
    """A body on its way."""

    def __init__(self, receive: Receive, max_bytes: int, *, is_too_large: bool) -> None:
        self.chunks: list[bytes] = []
        self.is_too_large = is_too_large
        self._receive = receive
        self._max_bytes = max_bytes

    async def read(self) -> None:
        """Take it in; what is too large is read on for a while and thrown away."""
        size = 0
        while size <= DISCARDED_MAX_BYTES:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk: bytes = message.get("body", b"")
            size += len(chunk)
            if size > self._max_bytes or self.is_too_large:
                self.is_too_large = True
                self.chunks.clear()
            else:
                self.chunks.append(chunk)
            if not message.get("more_body", False):
                return


async def read_bytes(request: Request, *, max_bytes: int) -> bytes:
    """Return a request's raw body; raises `body_too_large` (413) and `body_too_slow`.

    What is too large is read on for a while and thrown away: a client that still sends would not hear the answer.
    """
    declared = header(request, b"content-length")
    if declared is None:
        declared = "0"
    if not declared.isascii() or not declared.isdigit() or len(declared) > _MAX_INT_CHARACTERS:
        raise _invalid_json("The Content-Length header is no number.")
    is_too_large = int(declared) > max_bytes
    if is_too_large and header(request, b"expect"):  # the client waits for our word before it sends
        raise _too_large(max_bytes)
    body = _Arriving(request.receive, max_bytes, is_too_large=is_too_large)
    try:
        await _within(BODY_DEADLINE_S, body.read())
    except TimeoutError as error:
        if not body.is_too_large:
            raise invalid("body_too_slow", f"The body did not come within {BODY_DEADLINE_S:g} seconds.") from error
    if body.is_too_large:
        raise _too_large(max_bytes)
    return b"".join(body.chunks)


async def _within(deadline_s: float, coroutine: Coroutine[object, object, None]) -> None:
    """Await a coroutine, for so long at most. Without a timer if it need not wait: most bodies come with their head."""
    try:
        awaited = coroutine.send(None)
    except StopIteration:
        return
    async with asyncio.timeout(deadline_s):
        await _go_on(coroutine, awaited)


@types.coroutine
def _go_on(coroutine: Coroutine[object, object, None], awaited: object) -> Generator[object, object, None]:
    """Go on with a coroutine that has begun and awaits something, as `await` does."""
    with suppress(StopIteration):
        while True:  # until it ends
            try:
                sent = yield awaited
            except BaseException as error:  # noqa: BLE001 - the coroutine's to handle, such as a cancellation
                awaited = coroutine.throw(error)
            else:
                awaited = coroutine.send(sent)


def _too_large(max_bytes: int) -> LoopError:
    return LoopError(ErrorKind.TOO_LARGE, "body_too_large", f"The body is larger than {max_bytes} bytes.")


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of an HTML form, the last of each name; raises `body_too_large`, `body_too_slow`."""
    raw = await read_bytes(request, max_bytes=FORM_MAX_BYTES)
    return dict(parse_qsl(raw.decode("utf-8", "replace"), keep_blank_values=True))


async def read_json(request: Request, *, max_bytes: int = BODY_MAX_BYTES) -> dict[str, object]:
    """Return a request's body, which must be one JSON object; an absent or empty one is `{}`.

    Raises `invalid_json`, `raw_card_data`, `body_too_large`, `body_too_slow`.
    """
    return parse_json(await read_bytes(request, max_bytes=max_bytes))


def parse_json(raw: bytes) -> dict[str, object]:
    """Return strict JSON as an object; see `read_json`."""
    if not raw:
        return {}
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _invalid_json("The body is not UTF-8.") from error
    if not text.strip():
        return {}
    try:
        body = _DECODER.decode(text)
    except _RepeatedKeyError as error:
        raise _invalid_json("An object names the same key twice.") from error
    except ValueError as error:
        raise _invalid_json("The body is not JSON.") from error
    except RecursionError as error:
        raise _too_deep() from error
    if not isinstance(body, dict):
        raise _invalid_json("The body must be a JSON object.")
    _refuse_unsound(text, body)
    return body


def _too_deep() -> LoopError:
    return _invalid_json(f"The body is nested deeper than {MAX_DEPTH} levels.")


def _refuse_unsound(text: str, body: dict[str, object]) -> None:
    """Refuse what no field may hold. Most bodies are cleared by counting characters, without visiting each value."""
    has_escapes = "\\" in text
    if has_escapes or text.count(":") > MAX_KEYS or text.count("{") + text.count("[") > MAX_DEPTH:
        _visit(body)
    # Without escapes the text itself holds every key and value as it is.
    if contains_card_number(_ENCODE(body) if has_escapes else text):
        raise card_number_refusal()


def card_number_refusal() -> LoopError:
    """Return the error for a request that holds a card number, which it does not repeat."""
    return invalid("raw_card_data", "The request holds a card number; send the processor's token for it instead.")


def _visit(body: dict[str, object]) -> None:
    keys = 0
    waiting: list[tuple[object, int]] = [(body, 1)]
    while waiting:  # ends: the body is finite and holds no cycle
        value, depth = waiting.pop()
        if isinstance(value, dict | list) and depth > MAX_DEPTH:
            raise _too_deep()
        if isinstance(value, dict):
            keys += len(value)
            if keys > MAX_KEYS:
                raise _invalid_json(f"The body has more than {MAX_KEYS} keys.")
            for key, each in value.items():
                refuse_unstorable(key)
                waiting.append((each, depth + 1))
        elif isinstance(value, list):
            waiting += [(each, depth + 1) for each in value]
        elif isinstance(value, str):
            refuse_unstorable(value)


def refuse_unstorable(text: str) -> None:
    """Raise `invalid_json` for text that no database stores: a NUL, or half of a surrogate pair."""
    if "\0" in text or any("\ud800" <= each <= "\udfff" for each in text):
        raise _invalid_json("Text must not hold NUL characters or lone surrogates.")


def parse(model: type[M], content: Mapping[str, object]) -> M:
    """Return a body as its model, or raise `validation_failed` with the field and the problem of each mistake."""
    try:
        return model.model_validate(content)
    except pydantic.ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)[:MAX_DETAILS]
    problems = tuple((_field_of(each["loc"]), _problem_of(each["type"], each["msg"])) for each in found)
    raise validation_failed(*problems)


def validation_failed(*problems: tuple[str, str]) -> LoopError:
    """Return the error for fields, in camelCase, that are not as they must be; each with its problem."""
    field, problem = problems[0]
    return invalid("validation_failed", f"{field}: {problem}." if field else f"{problem}.", details=problems)


def _field_of(location: tuple[int | str, ...]) -> str:
    return ".".join(map(str, location))[:_MAX_FIELD_CHARACTERS]


def _problem_of(kind: str, message: str) -> str:
    if kind == "missing":
        return "is required"
    if kind == "extra_forbidden":
        return "is no field of this request"
    return _SUBJECT.sub("must" if " should " in message else "", message, count=1).rstrip(".")


async def body(request: Request, model: type[M]) -> M:
    """Read a request's body as a model; raises what `read_json` and `parse` raise."""
    return parse(model, await read_json(request))


def client_address(request: Request) -> str:
    """Return the network address of who calls; behind a trusted proxy the one that the proxy names."""
    # An IPv6 socket shows callers by IPv4 with this prefix.
    return "unknown" if request.client is None else request.client.host.removeprefix("::ffff:")


def context_of(request: Request) -> Context:
    """Return the context that the application was made with."""
    context: Context = request.scope["app"].context
    return context


def json_text(content: object) -> str:
    """Return compact JSON."""
    return orjson.dumps(content).decode()


def json_response(content: object, status: int = 200, *, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer of compact JSON."""
    return Response(orjson.dumps(content), status, headers=headers, media_type="application/json")


@overload
def time_text(moment: datetime) -> str: ...
@overload
def time_text(moment: datetime | None) -> str | None: ...
def time_text(moment: datetime | None) -> str | None:
    """Return a time as Loop's JSON has it: ISO 8601 in UTC with milliseconds and `Z`."""
    return None if moment is None else timestamp(moment)


def path_id(request: Request, name: str, *, noun: str) -> str:
    """Return an id (or a processor's name) from the path; a malformed one is the same `not_found` as an absent one."""
    value: str = request.path_params[name]
    if len(value) > _MAX_ID_CHARACTERS or not value.isascii() or not value.replace("_", "").isalnum():
        raise not_found(noun)
    return value


# Query parameters.


def query_of(request: Request) -> dict[str, str]:
    """Return the query's parameters, empty ones left out; one given twice, or holding a card number, is refused."""
    raw = request.url.query
    if not raw:
        return {}
    try:
        pairs = parse_qsl(raw, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS, errors="strict")
    except ValueError as error:  # UnicodeDecodeError among them
        raise invalid("validation_failed", "The query cannot be read.") from error
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found:
            raise validation_failed((name[:_MAX_FIELD_CHARACTERS], "is given twice"))
        if "\0" in name or "\0" in value:
            raise validation_failed(("query", "must not hold NUL characters"))
        if contains_card_number(name) or contains_card_number(value):
            raise card_number_refusal()
        if value:
            found[name] = value
    return found


def whole_number(query: Mapping[str, str], name: str, *, low: int, high: int) -> int | None:
    """Return a query parameter that must be a whole number within bounds; None when it is absent."""
    value = query.get(name)
    if value is None:
        return None
    if not value.isascii() or not value.isdigit() or len(value) > _MAX_INT_CHARACTERS:
        raise validation_failed((name, f"must be a whole number from {low} to {high}"))
    number = int(value)
    if not low <= number <= high:
        raise validation_failed((name, f"must be a whole number from {low} to {high}"))
    return number


def moment(query: Mapping[str, str], name: str) -> datetime | None:
    """Return a query parameter that must be an ISO 8601 time with an offset, or a date (its first moment in UTC)."""
    value = query.get(name)
    if value is None:
        return None
    try:
        return parse_time(value)
    except ValueError as error:
        raise validation_failed((name, str(error))) from error


@dataclass(frozen=True, slots=True)
class Page:
    """A numbered page: `page` counts from 1."""

    page: int
    limit: int
    offset: int


def page_of(request: Request) -> Page:
    """Return the page that `page` and `limit` (at most 100) ask for."""
    query = query_of(request)
    page = whole_number(query, "page", low=1, high=MAX_PAGE) or 1
    limit = whole_number(query, "limit", low=1, high=MAX_LIMIT) or DEFAULT_LIMIT
    return Page(page, limit, (page - 1) * limit)


@dataclass(frozen=True, slots=True)
class Cursor:
    """A page that begins after the item `before_id` (newest first), or at the start."""

    before_id: str | None
    limit: int


def cursor_of(request: Request) -> Cursor:
    """Return the page that `cursor` and `limit` (at most 100) ask for."""
    query = query_of(request)
    before_id = query.get("cursor")
    if before_id is not None and (len(before_id) > _MAX_ID_CHARACTERS or not before_id.replace("_", "").isalnum()):
        raise validation_failed(("cursor", "must be a nextCursor that a list has answered"))
    return Cursor(before_id, whole_number(query, "limit", low=1, high=MAX_LIMIT) or DEFAULT_LIMIT)
