"""The forms that a setting's value may have: how each is checked, read from text, said in words and shown."""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

MIN_SECRET_CHARACTERS: Final = 32
MIN_DIFFERENT_CHARACTERS: Final = 8
PLACEHOLDERS: Final = (
    *("changeme", "changethis", "changein", "changebefore", "replaceme", "replacethis", "placeholder"),
    *("yoursecret", "yourjwt", "yourencryption", "yoursuper", "supersecret", "mysecret", "defaultsecret"),
)
"""What secrets copied from somebody's example contain, in lower case and without punctuation."""

MASK: Final = "********"


class Secret:
    """A value that no log, error or repr shows; `reveal()` hands it to the code that needs it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the secret itself."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({MASK})"

    def __str__(self) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other.reveal() == self._value

    def __hash__(self) -> int:
        return hash(self._value)


class _FormError(ValueError):
    """The value is not of its setting's form."""


@dataclass(frozen=True, slots=True)
class Form:
    """What a value may be: in words, how any value is checked, and how text (environment, flags) is read."""

    words: str
    check: Callable[[object], object]
    """Returns the value as Settings holds it, or raises ValueError."""
    read: Callable[[str], object] = str
    is_sensitive: bool = False
    """Whether the value is, or may contain, a secret."""


def _text(raw: object) -> str:
    if not isinstance(raw, str) or not raw or raw != raw.strip() or not raw.isprintable():
        raise _FormError
    return raw


def whole(low: int, high: int, *, why: str = "") -> Form:
    """Return the form of a whole number within bounds, which `why` explains."""

    def check(raw: object) -> int:
        if isinstance(raw, bool) or not isinstance(raw, int) or not low <= raw <= high:
            raise _FormError
        return raw

    return Form(f"a whole number from {low} to {high}{why}", check, int)


def one_of(*options: str) -> Form:
    """Return the form of a word out of `options`, in capitals or not."""

    def check(raw: object) -> str:
        if not isinstance(raw, str) or raw.lower() not in options:
            raise _FormError
        return raw.lower()

    return Form(f"one of {', '.join(options)}", check)


def _bool(raw: object) -> bool:
    if not isinstance(raw, bool):
        raise _FormError
    return raw


def _read_bool(text: str) -> object:
    return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(text.lower())


def _path(raw: object) -> Path:
    return Path(raw if isinstance(raw, Path) else _text(raw)).expanduser().absolute()


def _secret(raw: object) -> Secret:
    if not isinstance(raw, str | Secret):
        raise _FormError
    return raw if isinstance(raw, Secret) else Secret(raw)


def _former_secret(raw: object) -> Secret:
    secret = _secret(raw)
    if len(secret.reveal()) < MIN_SECRET_CHARACTERS:
        raise _FormError
    return secret


def _headers(raw: object) -> Secret:
    secret = _secret(raw)
    pairs = [each.partition("=") for each in secret.reveal().split(",")]
    if not all(name.strip() and value.strip() and _text(name.strip() + value.strip()) for name, _, value in pairs):
        raise _FormError
    return secret


def _split_url(raw: object, *schemes: str) -> SplitResult:
    text = _text(raw)
    parts = urlsplit(text)
    if parts.scheme not in schemes or " " in text or parts.port == 0:  # reading a malformed port raises ValueError
        raise _FormError
    return parts


def _http_url(raw: object) -> str:
    parts = _split_url(raw, "http", "https")
    if not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment:
        raise _FormError
    return _text(raw).rstrip("/")


def _redis_url(raw: object) -> str:
    parts = _split_url(raw, "redis", "rediss", "unix")
    if not (parts.path if parts.scheme == "unix" else parts.hostname):
        raise _FormError
    return _text(raw)


def _database_url(raw: object) -> str:
    text = _text(raw)
    if text.startswith("sqlite:"):
        path = text.removeprefix("sqlite:///")
        if path in {text, "", ":memory:"} or "?" in path:
            raise _FormError
        return f"sqlite:///{_path(path)}"
    parts = _split_url(text, "postgresql", "postgres")
    if not parts.hostname and "host=" not in parts.query:
        raise _FormError
    return f"postgresql{text[len(parts.scheme) :]}"


def _origin(raw: object) -> str:
    parts = _split_url(raw, "http", "https")
    origin = f"{parts.scheme}://{parts.netloc}".lower()
    if not parts.hostname or "@" in origin or origin != _text(raw).lower():
        raise _FormError
    return origin


def _origins(raw: object) -> object:
    return ("*",) if raw in ("*", ["*"]) else _ORIGIN_LIST.check(raw)


def _network(raw: object) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(_text(raw))


def _list_of(words: str, check_one: Callable[[object], object], *, is_sensitive: bool = False) -> Form:
    def read(text: str) -> list[str]:
        return [part.strip() for part in text.split(",") if part.strip()]

    def check(raw: object) -> tuple[object, ...]:
        items = read(raw) if isinstance(raw, str) else raw
        if not isinstance(items, list | tuple):
            raise _FormError
        return tuple(check_one(item) for item in items)

    return Form(f"{words}, as a list or separated by commas", check, read, is_sensitive)


TEXT: Final = Form("a text without line breaks", _text)
BOOL: Final = Form("true or false", _bool, _read_bool)
PATH: Final = Form("a path", _path)
SECRET: Final = Form("a text of at least 32 characters", _secret, is_sensitive=True)
SECRETS: Final = _list_of("texts of at least 32 characters", _former_secret, is_sensitive=True)
TOKEN: Final = Form("a text of at least 32 characters", _former_secret, is_sensitive=True)
HEADERS: Final = Form(
    "headers such as name=value, separated by commas, values percent-encoded", _headers, is_sensitive=True
)
HTTP_URL: Final = Form("an http:// or https:// address without user, query and fragment", _http_url)
REDIS_URL: Final = Form("an address such as redis://localhost:6379/0", _redis_url, is_sensitive=True)
DATABASE_URL: Final = Form(
    "sqlite:///path/to/file or postgresql://user:password@host:port/name", _database_url, is_sensitive=True
)
_ORIGIN_LIST: Final = _list_of("web origins such as https://shop.example.com, no path", _origin)
ORIGINS: Final = Form(f"{_ORIGIN_LIST.words}, or * alone for any", _origins)
NETWORKS: Final = _list_of("networks such as 10.0.0.0/8 with no bit set after the prefix", _network)


def find_weakness(secret: str) -> str:
    """Return why a secret is too weak to protect anything; empty when it is not."""
    if len(secret) < MIN_SECRET_CHARACTERS:
        return f"has fewer than {MIN_SECRET_CHARACTERS} characters"
    if len(set(secret)) < MIN_DIFFERENT_CHARACTERS:
        return f"has fewer than {MIN_DIFFERENT_CHARACTERS} different characters"
    folded = "".join(filter(str.isalnum, secret.lower()))
    return "is a well-known placeholder" if any(each in folded for each in PLACEHOLDERS) else ""


def show(value: object, form: Form) -> str:
    """Return a checked value as people read it, without the secrets in it."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    if not form.is_sensitive:
        return str(value)
    without_user = re.sub(r"(://[^:/?#]*:)[^/?#]*@", rf"\1{MASK}@", str(value))
    return re.sub(r"(?i)(password=)[^&]*", rf"\1{MASK}", without_user)
