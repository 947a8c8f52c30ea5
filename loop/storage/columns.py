"""Column types that mean the same on SQLite and on Postgres: UTC time, words of an enumeration, JSON, ciphertexts."""

import json
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any

import orjson
from sqlalchemy import DateTime, Dialect, String, Text
from sqlalchemy.types import TypeDecorator, TypeEngine


@lru_cache(maxsize=64)
def _text(moment: datetime) -> str:
    # Kept, since the rows of one transaction carry one moment many times.
    return f"{moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


class UtcTime(TypeDecorator[datetime]):
    """An aware UTC datetime: `timestamptz` on Postgres, fixed-width ISO text (which sorts by time) on SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the database's own type."""
        return dialect.type_descriptor(String(27) if dialect.name == "sqlite" else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:  # noqa: ANN401 - SQLAlchemy's signature
        """Write; a naive datetime is a mistake."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a stored time must be aware")
        if dialect.name == "sqlite":
            return _text(value)
        return value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ANN401 - as above
        """Read, as UTC."""
        if value is None:
            return None
        if dialect.name == "sqlite":
            return datetime.fromisoformat(str(value))
        moment: datetime = value
        return moment if moment.tzinfo is UTC else moment.astimezone(UTC)


class Word(TypeDecorator[StrEnum]):
    """A member of a StrEnum, stored as its text."""

    impl = String(40)
    cache_ok = True

    def __init__(self, words: type[StrEnum]) -> None:
        super().__init__()
        self.words = words
        self._members = {member.value: member for member in words}

    def process_bind_param(self, value: StrEnum | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Write the text."""
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> StrEnum | None:  # noqa: ARG002 - as above
        """Read the member; a word nobody knows is corruption and raises KeyError."""
        return None if value is None else self._members[value]


_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def json_text(value: object) -> str:
    """Return compact JSON."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # half a character, a number of more than 64 bits, a key that is no text
        return _ENCODE(value)


class Document(TypeDecorator[Any]):
    """A JSON value as text. Text, not jsonb: key order, numbers and every character come back as they were sent."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ANN401, ARG002 - SQLAlchemy's signature
        """Write compact JSON."""
        return None if value is None else json_text(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ANN401, ARG002 - as above
        """Read JSON."""
        return None if value is None else json.loads(value)


CIPHERTEXT_VERSION = "v2"
"""What every ciphertext of the keyring begins with, before its first dot."""


class Sealed(TypeDecorator[str]):
    """A ciphertext of the keyring; anything else is a secret about to be stored in the clear, and is not written."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Write; raises ValueError for what is no ciphertext."""
        if value is not None and not value.startswith(f"{CIPHERTEXT_VERSION}."):
            raise ValueError("only a ciphertext of the keyring may be stored here")
        return value
