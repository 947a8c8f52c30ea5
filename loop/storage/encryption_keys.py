"""Encryption keys in use: which master key wraps what is stored, and wrapping it anew."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Column, bindparam, func, select, update

from loop.storage.columns import CIPHERTEXT_VERSION
from loop.storage.database import Reader, Session
from loop.storage.keyring import KEY_ID_CHARACTERS, Place
from loop.storage.statements import Parameters, Statement, Write, parameters_for
from loop.storage.tables import SEALED_COLUMNS, metadata

MAX_KEYS: Final = 1_000
"""How many different keys are told apart; more than anybody ever had."""


@dataclass(frozen=True, slots=True)
class KeyUse:
    """How many rows of one column are under one master key."""

    key_id: str
    count: int


@dataclass(frozen=True, slots=True)
class SealedRow:
    """A ciphertext and where it is stored."""

    row_id: str
    merchant_id: str
    ciphertext: str = field(repr=False)


def _key_id(column: Column[Any]) -> Any:  # noqa: ANN401 - an expression
    return func.substr(column, len(CIPHERTEXT_VERSION) + 2, KEY_ID_CHARACTERS)


class _SealedColumn:
    """The statements over one encrypted column."""

    def __init__(self, table_name: str, column_name: str) -> None:
        table = metadata.tables[table_name]
        column = table.c[column_name]
        key_id = _key_id(column).label("key_id")
        self.uses = Statement(
            select(key_id, func.count()).where(column.is_not(None)).group_by("key_id").limit(MAX_KEYS), KeyUse
        )
        self.under_other_keys = Statement(
            select(table.c.id, table.c.merchant_id, column)
            .where(
                table.c.id > bindparam("after_id"),
                column.is_not(None),
                _key_id(column) != bindparam("current_id"),
            )
            .order_by(table.c.id)
            .limit(bindparam("limit")),
            SealedRow,
        )
        self.replacing = Write(
            update(table)
            .where(table.c.id == bindparam("row_id"), column == bindparam("before"))
            .values({column: parameters_for(table, [column_name])[column_name]})
        )


_COLUMNS: Final[Mapping[tuple[str, str], _SealedColumn]] = {
    names: _SealedColumn(*names) for names in sorted(SEALED_COLUMNS)
}


async def uses(reader: Reader) -> dict[tuple[str, str], list[KeyUse]]:
    """Return, for each encrypted (table, column), how many rows are under which master key."""
    return {names: await reader.all(column.uses, {}) for names, column in _COLUMNS.items()}


async def under_other_keys(
    reader: Reader, names: tuple[str, str], *, current_id: str, after_id: str, limit: int
) -> list[tuple[Place, str]]:
    """Return the next ciphertexts of one column that are not under the current key, by the id of their row."""
    parameters: Parameters = {"current_id": current_id, "after_id": after_id, "limit": limit}
    rows = await reader.all(_COLUMNS[names].under_other_keys, parameters)
    return [(Place(*names, row.row_id, row.merchant_id), row.ciphertext) for row in rows]


async def replace(session: Session, place: Place, *, before: str, after: str) -> bool:
    """Store a ciphertext in the place of another one; False when that is not there any more."""
    write = _COLUMNS[place.table, place.column].replacing
    return await session.run(write, {"row_id": place.row_id, "before": before, place.column: after}) == 1
