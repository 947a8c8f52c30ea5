"""Statements: SQL built once from the tables, compiled once per dialect, run on the driver's own connection.

The ORM costs three to five milliseconds of CPU on paths that should take half of one (docs/adr/0003), so storage
functions hold `Statement`s instead: SQLAlchemy Core writes the SQL and converts the values, the driver runs it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

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


class _Bind(NamedTuple):
    """One placeholder: a parameter that is given by name, or a value that stands in the clause."""

    name: str
    is_required: bool
    value: object
    convert: _Converter | None


SQLITE = SQLiteDialect_pysqlite()
POSTGRES = PGDialect_asyncpg()  # type: ignore[no-untyped-call]


class Compiled:
    """One statement's text for one dialect, with how to turn parameters and rows."""

    def __init__(self, text: str, binds: Sequence[_Bind], converters: Sequence[_Converter | None]) -> None:
        self.text = text
        self._given = [bind.name for bind in binds if bind.is_required]
        self._fixed = [
            (place, bind.value if bind.convert is None else bind.convert(bind.value))
            for place, bind in enumerate(binds)
            if not bind.is_required
        ]
        self._outward = [
            (place, bind.convert) for place, bind in enumerate(binds) if bind.is_required and bind.convert is not None
        ]
        self._inward = [(place, convert) for place, convert in enumerate(converters) if convert is not None]

    def arguments(self, parameters: Parameters) -> list[Any]:
        """Return the driver's positional arguments; a parameter that nobody gave raises KeyError."""
        values = [parameters[name] for name in self._given]
        for place, value in self._fixed:
            values.insert(place, value)
        for place, convert in self._outward:
            values[place] = convert(values[place])
        return values

    def convert(self, row: Sequence[Any]) -> Sequence[Any]:
        """Return a row's values as the columns' Python types."""
        if not self._inward:
            return row
        values = list(row)
        for place, convert in self._inward:
            values[place] = convert(values[place])
        return values


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


def _bind(bind: BindParameter[Any], name: str, dialect: Dialect) -> _Bind:
    is_required = bind.required or bind.value is None
    return _Bind(name, is_required, bind.value, bind.type.dialect_impl(dialect).bind_processor(dialect))


def _converters(clause: Clause, dialect: Dialect) -> list[_Converter | None]:
    columns = list(clause.selected_columns) if isinstance(clause, Select) else list(clause.exported_columns)
    return [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns]


def columns_of(table: Table, row: type) -> list[Column[Any]]:
    """Return the table's columns in the order of a dataclass's fields, so that `row(*values)` fits."""
    return [table.c[name] for name in field_names(row)]


def field_names(row: type) -> list[str]:
    """Return the names of a dataclass's fields, in order."""
    return [field.name for field in dataclasses.fields(row)]


def values_of(row: Any) -> dict[str, object]:  # noqa: ANN401 - any dataclass instance
    """Return a dataclass's fields by name, not copied: the parameters of an insert or update of that row."""
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


def parameters_for(table: Table, names: Sequence[str]) -> dict[str, BindParameter[Any]]:
    """Return bind parameters named like the columns, with their types: the values of an insert or update."""
    return {name: bindparam(name, type_=table.c[name].type) for name in names}
