"""What Loop tells its operator: structured logs, the one list of what is redacted, and what a task carries with it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import sys
import time
from collections.abc import Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from logging.handlers import WatchedFileHandler
from math import isfinite
from typing import TYPE_CHECKING, Final, Protocol, Self

import orjson

from loop.domain.cards import contains_card_number, mask_card_numbers
from loop.domain.errors import configuration

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REDACTED: Final = "[redacted]"
"""What stands where a secret was."""

MAX_DEPTH: Final = 8
"""How deep `redact` follows containers in one another; what lies deeper is left out."""

SENSITIVE_NAMES: Final = (
    *("secret", "token", "authorization", "signature", "password", "passwd", "passphrase", "credential", "cookie"),
    *("api_key", "apikey", "private_key", "encryption_key", "access_key", "cvv", "cvc", "card_number", "jwt"),
)
"""Parts of a name, in lower case with underscores, that make a secret of what it names."""

HARMLESS_ENDS: Final = ("_key_id", "_prefix", "_count", "_at", "_s")
"""Ends of names that only speak about a secret, such as `api_key_id` and `access_token_ttl_s`."""

MAX_NAME_END: Final = 64
"""How far a name in a text is followed to its end, in characters."""

_SMALLEST_CARD_NUMBER: Final = 10**12

_NAMES_IN_TEXT: Final = "|".join(name.replace("_", "[_ -]?") for name in SENSITIVE_NAMES)

_NAMED_SECRET: Final = re.compile(
    # Bounded, so that a text of nothing but names takes linear time.
    rf"((?:{_NAMES_IN_TEXT})[\w-]{{0,{MAX_NAME_END}}}+"
    # The name ends with a colon or an equals sign, or as the first of a quoted pair.
    r"""(?:\\?["']?\s*[:=]\s*|["']\s*,\s*(?=b?["'])))(?:"""
    # The value: a container or a call's arguments, to the end of the text if they are too deep or cut off;
    r"""\{(?:[^{}]++|\{[^{}]*+\})*+\}|\w*[\[(](?:[^\[\]()]++|[\[(][^\[\]()]*+[\])])*+[\])]|\w*[\[({][\s\S]*+"""
    # something quoted, also inside a text that is quoted itself;
    r"""|b?"(?:[^"\\]++|\\[\s\S]?)*+(?:"|\Z)|b?'(?:[^'\\]++|\\[\s\S]?)*+(?:'|\Z)|\\"[^"]*+(?:"|\Z)"""
    # or a bare word.
    r"""|(?:bearer|basic)\s+\S+|[^\s,;&}\])"'][^\s,;&}\])]*+)""",
    re.IGNORECASE,
)
"""A sensitive name with its value, as `name=value`, in JSON, in Python's repr and in lists of headers."""

_SECRET_HEADER: Final = re.compile(
    rf"^([\w-]{{0,{MAX_NAME_END}}}?(?:{_NAMES_IN_TEXT})[\w-]{{0,{MAX_NAME_END}}}+:[ \t]*+)"
    r"(?![\[({\s]|\w*[\[(])[^\r\n]+",
    re.IGNORECASE | re.MULTILINE,
)
"""A line that begins with a sensitive name and a colon, as headers do: their values hold commas and semicolons."""

_BARE_SECRET: Final = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"[sr]k_(?:live|test)_\w+"  # API keys, ours and Stripe's
    r"|whsec_[\w+/=-]+"
    r"|rzp_\w+"
    r"|eyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]*"  # JWTs
    r"|[Bb]earer\s+[^\s,;\"'}\])]+"
    r")"
    r"|(?<=_secret_)\w{8,}"  # the end of the client secret of a payment
    r"|(?<=://)[^\s/:@]*:[^\s/@]+(?=@)"  # user and password of an address
)
"""What is a secret whatever it is called."""

_CLUES: Final = (
    *(name.replace("_", "") for name in SENSITIVE_NAMES),
    *("klive", "ktest", "whsec", "rzp", "eyj", "bearer", "://"),
)
"""What text must have one of, in lower case and without separators, to match one of the two."""


def redact(value: object, depth: int = 0) -> object:
    """Return `value` as plain JSON values, with every secret and every card number in it replaced.

    Secrets are found by the name of what holds them, and inside any text by their look. Anything that is neither
    a container nor a JSON value is taken as its text. `depth` is how deep in containers `value` lies already.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return REDACTED if abs(value) >= _SMALLEST_CARD_NUMBER and contains_card_number(str(value)) else value
    if isinstance(value, float) and isfinite(value):
        return value
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return _redact_container(value, depth + 1) if depth < MAX_DEPTH else "[too deep]"
    return redact_text(_text_of(value))


def _redact_container(
    value: Mapping[object, object] | list[object] | tuple[object, ...] | set[object] | frozenset[object], depth: int
) -> object:
    if isinstance(value, Mapping):
        return {redact_text(_text_of(key)): redact_named(key, each, depth=depth) for key, each in value.items()}
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str | bytes):
        return [redact(value[0]), redact_named(value[0], value[1], depth=depth)]  # a header, or an item of a mapping
    return [redact(each, depth) for each in value]


def redact_text(text: str) -> str:
    """Return `text` with every secret and every card number in it replaced."""
    if _has_clue(text):
        text = _SECRET_HEADER.sub(rf"\1{REDACTED}", _BARE_SECRET.sub(REDACTED, text))
        text = _NAMED_SECRET.sub(rf"\1{REDACTED}", text)
    return mask_card_numbers(text, REDACTED)


def redact_named(name: object, value: object, *, depth: int = 0) -> object:
    """Return `value` redacted, wholly if what is called `name` is a secret; None and booleans never are one."""
    if value is None or isinstance(value, bool) or not is_sensitive_name(_text_of(name)):
        return redact(value, depth)
    return REDACTED


@lru_cache(maxsize=1024)
def is_sensitive_name(name: str) -> bool:
    """Return whether what is called `name` (in any case, with dashes or underscores) is a secret."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().replace("-", "_")
    return any(each in snake for each in SENSITIVE_NAMES) and not snake.endswith(HARMLESS_ENDS)


def _has_clue(text: str) -> bool:
    folded = text.lower().replace("_", "").replace("-", "").replace(" ", "")
    return any(map(folded.__contains__, _CLUES))


def _text_of(value: object) -> str:
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", "replace")
    return f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else str(value)


def _is_clean(event: str, fields: Mapping[str, object]) -> bool:
    """Return whether an event is sure to be the same after redaction, which most are, by one look at all of it."""
    parts = [event, *fields]
    for value in fields.values():
        if isinstance(value, str):
            if not _OWN_CORRELATION_ID.fullmatch(value):
                parts.append(value)
        elif not (
            value is None
            or (isinstance(value, int) and -_SMALLEST_CARD_NUMBER < value < _SMALLEST_CARD_NUMBER)
            or (isinstance(value, float) and isfinite(value))
        ):
            return False
    text = "\n".join(parts)
    return _is_clean_short_text(text) if len(text) <= _MAX_SHORT_CHARACTERS else _is_clean_text(text)


_OWN_CORRELATION_ID: Final = re.compile(r"[0-9a-f]{24}(?:[0-9a-f]{8})?")
"""No secret and no card number looks like that, or like a trace id, and without it most lines are as an earlier one."""

_MAX_SHORT_CHARACTERS: Final = 256


def _is_clean_text(text: str) -> bool:
    return not _has_clue(text) and not contains_card_number(text)


_is_clean_short_text: Final = lru_cache(maxsize=1024)(_is_clean_text)


# What a task and those it starts carry with them.

_NO_FIELDS: Final[Mapping[str, object]] = {}
_bound: ContextVar[Mapping[str, object]] = ContextVar("loop_log_fields", default=_NO_FIELDS)

transaction_is_open: ContextVar[bool] = ContextVar("loop_transaction_is_open", default=False)
"""Whether the running task holds a database transaction.

Storage sets it through `open_transaction`; whatever calls another system refuses to while it is True, because a
transaction must not wait for the network. A task started inside a transaction inherits the value.
"""


@contextmanager
def open_transaction() -> Iterator[None]:
    """Mark the block as lying inside a database transaction; see `transaction_is_open`."""
    token = transaction_is_open.set(True)
    try:
        yield
    finally:
        transaction_is_open.reset(token)


class Binding:
    """Fields that every log line of a task carries; leaving it as a context manager takes them off again."""

    __slots__ = ("_token",)

    def __init__(self, fields: Mapping[str, object]) -> None:
        self._token = _bound.set({**_bound.get(), **fields})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _bound.reset(self._token)


def bind(**fields: object) -> Binding:
    """Add `fields` to every log line of this task and of those it starts from now on, until the result is left."""
    return Binding(fields)


def correlation_id() -> str | None:
    """Return the correlation id that is bound to this task, if one is."""
    bound = _bound.get().get("correlation_id")
    return bound if isinstance(bound, str) else None


# Logs.

MAX_WAITING_LINES: Final = 1_000
"""How many lines one turn of the event loop may hold back."""


class _Event(logging.LogRecord):
    """A log record whose message is the event's name, with its fields beside it."""

    def __init__(self, name: str, level: int, *, event: str, fields: Mapping[str, object]) -> None:
        super().__init__(name, level, "", 0, event, None, None)
        self.fields = fields


class Write(Protocol):
    """Logs an event, a name such as `order.created`, with its fields."""

    def __call__(self, event: str, /, **fields: object) -> None:
        """Log the event; while its level is off this costs one look-up."""


class Logger:
    """Logs events, each method at the level that it is called."""

    __slots__ = ("_logger", "debug", "error", "exception", "info", "warning")

    debug: Write
    """For who searches for a fault."""
    info: Write
    """For what happens when all is well."""
    warning: Write
    """For what an operator should look at in time."""
    error: Write
    """For what an operator should look at now."""
    exception: Write
    """An error, together with the traceback of the exception that is being handled."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)
        self.debug = self._at(logging.DEBUG)
        self.info = self._at(logging.INFO)
        self.warning = self._at(logging.WARNING)
        self.error = self._at(logging.ERROR)
        self.exception = self._at(logging.ERROR, has_traceback=True)

    def _at(self, level: int, *, has_traceback: bool = False) -> Write:
        logger = self._logger

        def write(event: str, /, **fields: object) -> None:
            if logger.isEnabledFor(level):
                record = _Event(logger.name, level, event=event, fields=fields)
                if has_traceback:
                    record.exc_info = sys.exc_info()
                logger.handle(record)

        return write


def get_logger(name: str) -> Logger:
    """Return the logger called `name`, the module's `__name__`."""
    return Logger(name)


class _Formatter(logging.Formatter):
    """Redacts; the events of Loop and the messages of libraries alike."""

    def gather(self, record: logging.LogRecord) -> tuple[str, dict[str, object], str]:
        """Return the event, its fields and the traceback or nothing, all of it redacted."""
        if isinstance(record, _Event):
            event, fields = str(record.msg), {**_bound.get(), **record.fields}
        else:
            event, fields = _message_of(record), {**_bound.get()}
        traceback = self.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else ""
        if not traceback and _is_clean(event, fields):
            return event, fields, ""
        shown = {name: redact_named(name, value) for name, value in fields.items()}
        return redact_text(event), shown, redact_text(traceback)


def _message_of(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):
        return f"{record.msg} [with arguments that do not fit]"


class _JsonFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return one line of JSON; a field never takes the place of what every line has."""
        event, fields, traceback = self.gather(record)
        line: dict[str, object] = {
            "time": f"{_second_in_words(int(record.created))}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "event": event,
            "logger": record.name,
        }
        for name, value in fields.items():
            line[f"{name}_" if name in line else name] = value
        if traceback:
            line["traceback"] = traceback
        return _json_text(line)


class _ConsoleFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return one line for people, and the traceback, if there is one, below it."""
        event, fields, traceback = self.gather(record)
        pairs = "".join(f" {name}={_quoted(value)}" for name, value in fields.items())
        clock = f"{_second_in_words(int(record.created))[11:]}.{int(record.msecs):03}"
        line = f"{clock} {record.levelname.lower():7} {_printable(event)}{pairs}"
        return "\n  ".join((line, *map(_printable, traceback.splitlines())))


_ENCODE: Final = json.JSONEncoder(separators=(",", ":")).encode


def _json_text(line: Mapping[str, object]) -> str:
    """Return one line of ASCII, which any terminal and any pipe takes; most lines are so without escapes."""
    try:
        text = orjson.dumps(line).decode()
    except TypeError:  # half a character, or a number of more than 64 bits
        return _ENCODE(line)
    return text if text.isascii() else _ENCODE(line)


@lru_cache(maxsize=2)
def _second_in_words(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _printable(text: str) -> str:
    """Return `text` without what could end the line or steer the terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _quoted(value: object) -> str:
    if isinstance(value, str) and value.isprintable() and value and not any(each in value for each in ' "='):
        return value
    return _printable(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


class _LogFile(WatchedFileHandler):
    """Writes the lines of one turn of the event loop together: to look for the file and to write to it is half a line.

    What is worse than info, or was logged outside a loop, is written at once, with all that waits.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        self._waiting: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line, and see to it that it is written."""
        try:
            self._waiting.append(self.format(record))
            is_urgent = record.levelno > logging.INFO or len(self._waiting) >= MAX_WAITING_LINES
            if is_urgent or not self._writes_soon():
                self._write()
        except Exception:  # noqa: BLE001 - as every handler: a log that cannot be written stops nobody
            self.handleError(record)

    def flush(self) -> None:
        """Write what waits."""
        self.acquire()
        try:
            self._loop = None
            if self._waiting:
                self._write()
        except OSError:  # as above
            pass
        finally:
            self.release()

    def _writes_soon(self) -> bool:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        if loop is not self._loop:  # also if that one has ended with a line unwritten
            loop.call_soon(self.flush)
            self._loop = loop
        return True

    def _write(self) -> None:
        """Hand whole lines to the system, past the buffers of a text file."""
        lines, self._waiting = self._waiting, []
        self.reopenIfNeeded()
        stream = self.stream or self._open()
        self.stream = stream
        os.write(stream.fileno(), "\n".join((*lines, "")).encode("utf-8", "backslashreplace"))


QUIET: Final = ("aiohttp", "alembic", "arq", "asyncio", "stripe", "urllib3", "uvicorn.access")
"""Libraries that are only heard from WARNING on; no library is heard below INFO."""


def configure(*, level: str = "info", log_format: str = "auto", log_file: Path | None = None) -> None:
    """Send every logger of this process through one handler: to `log_file`, or else to standard error.

    `log_format` is json, console (for people), or auto: console if that is a terminal, else json. Each line is
    written at once, or to a file by the end of the event loop's turn, so that a killed process loses no more than that
    turn's; a file that was moved away is opened anew. May be called again. Raises a LoopError of kind configuration
    when the file cannot be written.
    """
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if log_file is not None:
        try:
            handler = _LogFile(log_file)
        except OSError as error:
            raise configuration("unwritable_log_file", f"{log_file} cannot be written: {error.strerror}.") from error
    is_console = log_format == "console" or (log_format == "auto" and log_file is None and sys.stderr.isatty())
    handler.setFormatter(_ConsoleFormatter() if is_console else _JsonFormatter())
    root = logging.getLogger()
    for each in root.handlers[:]:
        if isinstance(each.formatter, _Formatter):
            root.removeHandler(each)
            each.close()
    root.addHandler(handler)
    least = logging.getLevelNamesMapping()[level.upper()]
    root.setLevel(max(least, logging.INFO))
    logging.getLogger("loop").setLevel(least)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(least, logging.WARNING))
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    # Nothing here prints these, and looking them up is a third of what a record costs.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # A handler that fails would print the record, arguments and all, past the redaction.
    logging.raiseExceptions = False
