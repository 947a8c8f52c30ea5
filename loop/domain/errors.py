"""The errors that Loop raises on purpose: each has a stable code, a kind and a message that says what to do."""

from enum import StrEnum


class ErrorKind(StrEnum):
    """What sort of trouble it is; HTTP status, CLI exit code and retry are each one table over these."""

    INVALID = "invalid"
    """The request is malformed or not allowed in the present state; the caller must change it."""
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    TOO_LARGE = "too_large"
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"
    """A dependency is away; the same request may succeed later."""
    CONFIGURATION = "configuration"
    """The operator's settings contradict each other or are too weak to start with."""


class LoopError(Exception):
    """An expected error. `details` names fields; `retry_after_s` is whole seconds for a `Retry-After`."""

    def __init__(
        self,
        kind: ErrorKind,
        code: str,
        message: str,
        *,
        details: tuple[tuple[str, str], ...] = (),
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.kind = kind
        self.code = code
        self.message = message
        self.details = details
        self.retry_after_s = retry_after_s


def invalid(code: str, message: str, *, details: tuple[tuple[str, str], ...] = ()) -> LoopError:
    """Return the error for a request that must be changed before it can succeed (HTTP 400)."""
    return LoopError(ErrorKind.INVALID, code, message, details=details)


def not_found(noun: str) -> LoopError:
    """Return the one answer for an id that is absent, malformed or somebody else's (HTTP 404)."""
    return LoopError(ErrorKind.NOT_FOUND, "not_found", f"There is no such {noun}.")


def unauthenticated(code: str, message: str) -> LoopError:
    """Return the error for missing or wrong credentials (HTTP 401)."""
    return LoopError(ErrorKind.UNAUTHENTICATED, code, message)


def conflict(code: str, message: str, *, retry_after_s: int | None = None) -> LoopError:
    """Return the error for a request that collides with another one (HTTP 409)."""
    return LoopError(ErrorKind.CONFLICT, code, message, retry_after_s=retry_after_s)


def unavailable(code: str, message: str, *, retry_after_s: int = 1) -> LoopError:
    """Return the error for a dependency that is away (HTTP 503)."""
    return LoopError(ErrorKind.UNAVAILABLE, code, message, retry_after_s=retry_after_s)


def configuration(code: str, message: str) -> LoopError:
    """Return the error that stops a start: settings that contradict each other or are too weak."""
    return LoopError(ErrorKind.CONFIGURATION, code, message)
