"""Expansions: what a migration does to a database that the code before it would notice."""

import importlib
import pkgutil
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Inspector, event, inspect, text
from sqlalchemy.sql.dml import Delete

import loop.storage
from loop.storage.statements import Write

_CHANGES_ROWS = re.compile(r"\s*(?:UPDATE|DELETE\s+FROM|TRUNCATE(?:\s+TABLE)?)\s+\"?(\w+)", re.IGNORECASE)
_TRIGGERS = {
    "sqlite": "SELECT tbl_name, name FROM sqlite_master WHERE type = 'trigger'",
    "postgresql": "SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE NOT tgisinternal",
}
_FILES = "SELECT relname, relfilenode FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"


Columns: TypeAlias = Mapping[str, tuple[str, bool, str | None]]
"""The type of each, whether it may be NULL, and its default."""


@dataclass(frozen=True)
class Shape:
    """One table: its columns, and the rest as words and names of columns."""

    columns: Columns
    checks: frozenset[str]
    keys: frozenset[tuple[str, ...]]
    """The primary key, and what else has to be unique."""
    indexes: frozenset[tuple[str, ...]]
    references: frozenset[tuple[str, ...]]
    """Foreign keys: the table, ON DELETE, the table's own columns."""
    triggers: frozenset[str]
    file: int | None
    """PostgreSQL's, which is another one when the table was written anew."""


def _shape(inspector: Inspector, name: str, *, triggers: Iterable[str], file: int | None) -> Shape:
    return Shape(
        {each["name"]: (str(each["type"]), each["nullable"], each["default"]) for each in inspector.get_columns(name)},
        frozenset(each["sqltext"] for each in inspector.get_check_constraints(name)),
        frozenset(_keys(inspector, name)),
        frozenset(
            (
                str(each["name"]),
                *(str(column) for column in each["column_names"]),
                *(f"{option} {value}" for option, value in sorted(each.get("dialect_options", {}).items())),
            )
            for each in inspector.get_indexes(name)
        ),
        frozenset(
            (each["referred_table"], str(each["options"].get("ondelete", "")).upper(), *each["constrained_columns"])
            for each in inspector.get_foreign_keys(name)
        ),
        frozenset(triggers),
        file,
    )


def _keys(inspector: Inspector, name: str) -> Iterator[tuple[str, ...]]:
    yield tuple(inspector.get_pk_constraint(name)["constrained_columns"])
    yield from (tuple(each["column_names"]) for each in inspector.get_unique_constraints(name))
    yield from (tuple(map(str, each["column_names"])) for each in inspector.get_indexes(name) if each["unique"])


def shapes(connection: Connection) -> dict[str, Shape]:
    """Return every table as it is."""
    dialect = connection.dialect.name
    triggers = [tuple(row) for row in connection.execute(text(_TRIGGERS[dialect]))]
    files: dict[str, Any] = {}
    if dialect == "postgresql":
        files = {row[0]: row[1] for row in connection.execute(text(_FILES))}
    inspector = inspect(connection)
    return {
        name: _shape(inspector, name, triggers={each for on, each in triggers if on == name}, file=files.get(name))
        for name in inspector.get_table_names()
        if name != "alembic_version"
    }


def contractions(connection: Connection, config: Config, revision: str) -> list[str]:
    """Apply the migration that comes next, and return what of it the code before it would notice; nothing, it should.

    New indexes count: they are built in the migration's transaction, and nobody writes to the table meanwhile.
    """
    before = shapes(connection)
    statements: list[str] = []

    def listen(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(connection, "before_cursor_execute", listen)
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
    event.remove(connection, "before_cursor_execute", listen)
    after = shapes(connection)
    changed = {found[1] for each in statements if (found := _CHANGES_ROWS.match(each))} & before.keys()
    return [
        *(f"{name} is gone" for name in before.keys() - after.keys()),
        *(f"rows of {name} are changed" for name in changed),
        *(words for name in before.keys() & after.keys() for words in _changes(name, before[name], now=after[name])),
        *(words for name in after for words in _held(name, after[name], before=before)),
    ]


def _changes(name: str, was: Shape, *, now: Shape) -> Iterator[str]:
    yield from _column_changes(name, was.columns, now=now.columns)
    for check in now.checks - was.checks:
        if any(re.search(rf"\b{column}\b", check) for column in was.columns):
            yield f"{name} has to fulfil {check}"
    yield from (f"{name} has another key: {key}" for key in now.keys ^ was.keys)
    yield from (f"{name} has another index: {each}" for each in now.indexes ^ was.indexes)
    yield from (f"{name} has another trigger: {each}" for each in now.triggers ^ was.triggers)
    for _, _, *columns in now.references ^ was.references:
        if was.columns.keys() & set(columns):
            yield f"{name} has another foreign key on {columns}"
    if now.file != was.file:
        yield f"{name} is written anew"


def _column_changes(name: str, was: Columns, *, now: Columns) -> Iterator[str]:
    for column, about in was.items():
        if column not in now:
            yield f"{name}.{column} is gone"
        elif now[column] != about:
            yield f"{name}.{column} was {about} and is {now[column]}"
    for column in now.keys() - was.keys():
        _, is_nullable, default = now[column]
        if not is_nullable and default is None:
            yield f"{name}.{column} must be given"


def _held(name: str, now: Shape, *, before: Mapping[str, Shape]) -> Iterator[str]:
    """Yield whose rows can be deleted no more, since rows of a table hold them that the code before does not know."""
    known = before[name].references if name in before else frozenset()
    for other, on_delete, *columns in now.references - known:
        if other in before and other in emptied() and on_delete not in ("CASCADE", "SET NULL"):
            yield f"{name} keeps rows of {other} by {columns}"


def emptied() -> set[str]:
    """Return the tables that rows are deleted from."""
    found = set()
    for module in pkgutil.iter_modules(loop.storage.__path__):
        if module.name in ("migrate", "migrations"):
            continue
        for value in vars(importlib.import_module(f"loop.storage.{module.name}")).values():
            for each in value if isinstance(value, tuple | list) else [value]:
                if isinstance(each, Write) and isinstance(each.clause, Delete):
                    found.add(str(each.clause.table))
    return found
