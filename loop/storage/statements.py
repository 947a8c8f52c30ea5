"""Statements: SQL built once from the tables, compiled once per dialect, run on the driver's own connection.

The ORM costs three to five milliseconds of CPU on paths that should take half of one (docs/adr/0003), so storage
functions hold `Statement`s instead: SQLAlchemy Core writes the SQL and converts the values, the driver runs it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from sqlalchemy import Column, Dialect, Table, bindparam
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.elements import BindParameter
from sqlalchemy.sql.selectable import Select, SelectBase

T = TypeVar("T")
Parameters = Mapping[str, object]
Clause = SelectBase | UpdateBase
_Converter = Callable[[Any], Any]

SQLITE = SQLiteDialect_pysqlite()
POSTGRES = PGDialect_asyncpg()  # type: ignore[no-untyped-call]


@dataclasses.dataclass(frozen=True, slots=True)
class Compiled:
    """One statement's text for one dialect, with how to turn parameters and rows."""

    text: str
    binds: tuple[tuple[str, object, _Converter | None], ...]
    converters: tuple[_Converter | None, ...] | None

    def arguments(self, parameters: Parameters) -> list[object]:
        """Return the driver's positional arguments; a parameter that nobody gave raises KeyError."""
        values = []
        for name, fixed, convert in self.binds:
            value = parameters[name] if fixed is _REQUIRED else fixed
            values.append(value if convert is None else convert(value))
        return values

    def convert(self, row: Sequence[Any]) -> Sequence[Any]:
        """Return a row's values as the columns' Python types."""
        if self.converters is None:
            return row
        return [
            value if convert is None else convert(value) for value, convert in zip(row, self.converters, strict=True)
        ]


_REQUIRED = object()


class Statement(Generic[T]):
    """A clause and the type its rows become; compiled at first use for each dialect.

    `row` is called with one positional argument per selected column.
    """

    def __init__(self, clause: Clause, row: Callable[..., T]) -> None:
        self.clause = clause
        self.row = row
        self._sqlite: Compiled | None = None
        self._postgres: Compiled | None = None

    def for_sqlite(self) -> Compiled:
        """Return the text and conversions for sqlite3's `?` parameters."""
        if self._sqlite is None:
            self._sqlite = _compile(self.clause, SQLITE)
        return self._sqlite

    def for_postgres(self) -> Compiled:
        """Return the text and conversions for asyncpg's `$1` parameters."""
        if self._postgres is None:
            self._postgres = _compile(self.clause, POSTGRES)
        return self._postgres


class Write(Statement[None]):
    """A clause that changes rows; what counts is how many."""

    def __init__(self, clause: UpdateBase) -> None:
        super().__init__(clause, _no_row)


def _no_row(*_: object) -> None:
    return None


def _compile(clause: Clause, dialect: Dialect) -> Compiled:
    compiled = clause.compile(dialect=dialect)
    if not isinstance(compiled, SQLCompiler):
        raise TypeError("only statements of SQL compile")
    binds = tuple(_bind(compiled.binds[name], name, dialect) for name in compiled.positiontup or ())
    return Compiled(str(compiled), binds, _converters(clause, dialect))


def _bind(bind: BindParameter[Any], name: str, dialect: Dialect) -> tuple[str, object, _Converter | None]:
    fixed = _REQUIRED if bind.required or bind.value is None else bind.value
    return name, fixed, bind.type.dialect_impl(dialect).bind_processor(dialect)


def _converters(clause: Clause, dialect: Dialect) -> tuple[_Converter | None, ...] | None:
    columns = list(clause.selected_columns) if isinstance(clause, Select) else list(clause.exported_columns)
    converters = tuple(column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns)
    return converters if any(converters) else None


def columns_of(table: Table, row: type) -> list[Column[Any]]:
    """Return the table's columns in the order of a dataclass's fields, so that `row(*values)` fits."""
    return [table.c[name] for name in field_names(row)]


def field_names(row: type) -> list[str]:
    """Return the names of a dataclass's fields, in order."""
    return [field.name for field in dataclasses.fields(row)]


def values_of(row: Any) -> dict[str, object]:  # noqa: ANN401 - any dataclass instance
    """Return a dataclass's fields by name, not copied: the parameters of an insert or update of that row."""
    return {name: getattr(row, name) for name in field_names(type(row))}


def parameters_for(table: Table, names: Sequence[str]) -> dict[str, BindParameter[Any]]:
    """Return bind parameters named like the columns, with their types: the values of an insert or update."""
    return {name: bindparam(name, type_=table.c[name].type) for name in names}
