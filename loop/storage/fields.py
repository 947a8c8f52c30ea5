"""Fields: the columns that the tables are declared with again and again."""

from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Text, false
from sqlalchemy import text as sql
from sqlmodel import Field

from loop.storage.columns import Sealed, UtcTime

# SQLModel's Field is Any, so that a class may declare the attribute's own type.


def big(*, default: int | None = None, is_nullable: bool = False) -> Any:  # noqa: ANN401 - see above
    """Return a 64-bit integer, for money and whatever may outgrow 32 bits."""
    server_default = None if default is None else sql(str(default))
    return Field(sa_column=Column(BigInteger, nullable=is_nullable, server_default=server_default))


def time(*, is_nullable: bool = False) -> Any:  # noqa: ANN401 - as above
    """Return a moment in UTC."""
    return Field(sa_column=Column(UtcTime, nullable=is_nullable))


def flag() -> Any:  # noqa: ANN401 - as above
    """Return a boolean that is false where nobody says otherwise."""
    return Field(sa_column=Column(Boolean, nullable=False, server_default=false()))


def sealed(*, is_nullable: bool = False) -> Any:  # noqa: ANN401 - as above
    """Return a text that is encrypted at rest."""
    return Field(sa_column=Column(Sealed, nullable=is_nullable), repr=False)


def text(*, is_nullable: bool = True) -> Any:  # noqa: ANN401 - as above
    """Return a text of any length."""
    return Field(sa_column=Column(Text, nullable=is_nullable))
