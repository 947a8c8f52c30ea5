"""Traces: the spans of what one request causes, carried through jobs and deliveries; next to nothing while off."""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, Token
from enum import StrEnum
from types import TracebackType
from typing import Final, Protocol

from loop.telemetry import Binding, bind

Attributes = Mapping[str, str | int | bool]
"""What a span says of itself: ids, words and numbers of Loop's own, never anything that a secret may be in."""

_NOTHING: Final[Attributes] = {}

_TRACEPARENT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class SpanKind(StrEnum):
    """On which side of a call a span stands."""

    SERVER = "server"
    CLIENT = "client"
    CONSUMER = "consumer"


class Span(Protocol):
    """A span that is recorded."""

    trace_id: str
    traceparent: str
    """The span as W3C Trace Context names it: what is carried to whoever goes on with its trace."""

    def rename(self, name: str) -> None:
        """Give it the name that is known only at its end."""

    def note(self, attributes: Attributes) -> None:
        """Add attributes."""

    def end(self, error: str | None) -> None:
        """End it; `error` is the name of what went wrong."""


class Recorder(Protocol):
    """Records spans, and decides which traces are kept."""

    def begin(
        self, name: str, kind: SpanKind, *, parent: str | None, link: str | None, attributes: Attributes
    ) -> Span | None:
        """Begin a span below a traceparent or, without one, a trace; None when its trace is not kept."""


_current: ContextVar[Span | None] = ContextVar("loop_span", default=None)


class _Recording:
    """Whoever records in this process: nobody, unless somebody was asked to."""

    recorder: Recorder | None = None


_NO_SPAN: Final = nullcontext()
"""What is entered instead of a span while nothing is recorded."""


class _Entered(AbstractContextManager[Span | None]):
    """A span, or None to shield what is inside from the one around, while it is the current one."""

    __slots__ = ("_binding", "_span", "_token")

    def __init__(self, span: Span | None) -> None:
        self._span = span
        self._binding: Binding | None = None
        self._token: Token[Span | None] | None = None

    def __enter__(self) -> Span | None:
        self._token = _current.set(self._span)
        if self._span is not None:
            self._binding = bind(trace_id=self._span.trace_id)
        return self._span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._binding is not None:
            self._binding.__exit__()
        if self._token is not None:
            _current.reset(self._token)
        if self._span is not None:
            self._span.end(None if kind is None else kind.__name__)


def record_with(recorder: Recorder | None) -> None:
    """Have this process's spans recorded from now on; None ends that."""
    _Recording.recorder = recorder


def is_recording() -> bool:
    """Tell whether spans are recorded at all."""
    return _Recording.recorder is not None


def request(name: str, caller: str | None, *, is_trusted: bool) -> AbstractContextManager[Span | None]:
    """Begin what a request from outside causes.

    `caller` is the traceparent that it came with. The trace of a caller who is trusted goes on, kept or not as it says;
    anybody else's request begins a trace of its own, which links to the caller's.
    """
    recorder = _Recording.recorder
    if recorder is None:
        return _NO_SPAN
    known = caller if caller is not None and _TRACEPARENT.fullmatch(caller) else None
    parent, link = (known, None) if is_trusted else (None, known)
    begun = recorder.begin(name, SpanKind.SERVER, parent=parent, link=link, attributes=_NOTHING)
    return _NO_SPAN if begun is None else _Entered(begun)


def span(name: str, kind: SpanKind, *, attributes: Attributes) -> AbstractContextManager[Span | None]:
    """Begin a span below the current one; nothing where there is none."""
    current = _current.get() if _Recording.recorder is not None else None
    return _NO_SPAN if current is None else resumed(current.traceparent, name, kind=kind, attributes=attributes)


def resumed(
    carried_over: str | None, name: str, *, kind: SpanKind, attributes: Attributes
) -> AbstractContextManager[Span | None]:
    """Go on with the trace that was carried here; what was not traced so far does not begin to be."""
    recorder = _Recording.recorder
    if recorder is None:
        return _NO_SPAN
    if carried_over is None:
        return _Entered(None)
    return _Entered(recorder.begin(name, kind, parent=carried_over, link=None, attributes=attributes))


def carried() -> str | None:
    """Return the current span for whoever goes on with its trace, or None."""
    current = _current.get() if _Recording.recorder is not None else None
    return None if current is None else current.traceparent


def note(attributes: Attributes) -> None:
    """Add attributes to the current span, if there is one."""
    current = _current.get() if _Recording.recorder is not None else None
    if current is not None:
        current.note(attributes)
