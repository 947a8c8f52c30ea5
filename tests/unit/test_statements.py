"""Statements: compiled once for each dialect, parameters and rows converted by the columns' own types."""

import pkgutil
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from importlib import import_module

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, bindparam, insert, select, update

import loop.storage
from loop.storage.columns import Document, UtcTime, Word
from loop.storage.postgres import _joined
from loop.storage.statements import Statement, Write, columns_of, field_names, parameters_for, values_of
from loop.storage.tables import Orders, table
from tests.builders import order


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


THINGS = Table(
    "things",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("colour", Word(Colour)),
    Column("made_at", UtcTime),
    Column("notes", Document),
)
INSERT = Write(insert(THINGS).values(parameters_for(THINGS, ["id", "colour", "made_at", "notes"])))
READ = Statement(
    select(THINGS.c.colour, THINGS.c.made_at, THINGS.c.notes).where(THINGS.c.id == bindparam("thing_id")),
    lambda *cells: cells,
)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def stored_statements() -> Iterator[tuple[str, Statement[object]]]:
    for found in pkgutil.iter_modules(loop.storage.__path__, "loop.storage."):
        for name, value in vars(import_module(found.name)).items():
            for each in value.values() if isinstance(value, dict) else [value]:
                if isinstance(each, Statement):
                    yield f"{found.name}.{name}", each


def test_every_statement_compiles_for_both_databases_and_only_once() -> None:
    found = list(stored_statements())
    assert len(found) > 50
    for _, statement in found:
        assert statement.for_sqlite() is statement.for_sqlite()
        assert statement.for_postgres() is statement.for_postgres()
        assert "?" not in statement.for_postgres().text
        assert "$" not in statement.for_sqlite().text


def test_a_row_comes_back_as_it_was_put() -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE things (id INTEGER, colour TEXT, made_at TEXT, notes TEXT)")
    notes = {"b": [1, 2.5, None, True], "a": "Zoë 🛒\u2028"}
    parameters = {"id": 1, "colour": Colour.BLUE, "made_at": NOON, "notes": notes}
    connection.execute(INSERT.for_sqlite().text, INSERT.for_sqlite().arguments(parameters))
    compiled = READ.for_sqlite()
    cells = connection.execute(compiled.text, compiled.arguments({"thing_id": 1})).fetchone()
    connection.close()
    assert READ.row(*compiled.convert(cells)) == (Colour.BLUE, NOON, notes)
    assert cells == ("blue", "2026-03-01T12:00:00.000000Z", '{"b":[1,2.5,null,true],"a":"Zoë 🛒\u2028"}')


def test_times_are_stored_in_utc_as_text_that_sorts_by_time() -> None:
    texts = [
        INSERT.for_sqlite().arguments({"id": 1, "colour": None, "made_at": moment, "notes": None})[2]
        for moment in (NOON, NOON.astimezone(timezone(timedelta(hours=5))), NOON + timedelta(microseconds=1))
    ]
    assert texts[0] == texts[1]
    assert str(texts[1]) < str(texts[2])
    assert len({len(str(text)) for text in texts}) == 1


def test_a_naive_time_is_a_mistake() -> None:
    naive = NOON.replace(tzinfo=None)
    for compiled in (INSERT.for_sqlite(), INSERT.for_postgres()):
        with pytest.raises(ValueError, match="aware"):
            compiled.arguments({"id": 1, "colour": None, "made_at": naive, "notes": None})


def test_a_word_nobody_knows_is_not_read_over() -> None:
    with pytest.raises(KeyError):
        READ.for_sqlite().convert(("green", None, None))


def test_a_parameter_that_nobody_gave_is_a_mistake() -> None:
    with pytest.raises(KeyError, match="thing_id"):
        READ.for_sqlite().arguments({})
    with pytest.raises(KeyError, match="thing_id"):
        READ.for_postgres().arguments({})


def test_a_parameter_named_twice_is_given_once_where_the_driver_can() -> None:
    twice = Statement(
        select(THINGS.c.id).where((THINGS.c.id > bindparam("least")) | (THINGS.c.id == bindparam("least"))), int
    )
    assert twice.for_sqlite().arguments({"least": 3}) == [3, 3]
    assert twice.for_postgres().arguments({"least": 3}) == [3]
    assert twice.for_postgres().text.count("$1") == 2


def test_rows_without_types_of_our_own_are_not_copied() -> None:
    plain = Statement(select(THINGS.c.id), int)
    row = (1,)
    assert plain.for_sqlite().convert(row) is row


def test_columns_come_in_the_order_of_the_row_s_fields() -> None:
    row = order()
    assert [column.name for column in columns_of(table(Orders), type(row))] == field_names(type(row))
    assert list(values_of(row)) == field_names(type(row))
    assert values_of(row)["metadata"] is row.metadata


def test_joined_writes_number_their_parameters_on() -> None:
    paint = Write(
        update(THINGS).where(THINGS.c.id == bindparam("thing_id")).values(colour=bindparam("new", type_=Word(Colour)))
    )
    text = _joined((paint.for_postgres().text, INSERT.for_postgres().text))
    assert text.startswith("WITH w0 AS (UPDATE things SET colour=$1")
    assert "w1 AS (INSERT INTO things" in text
    numbers = [int(piece.split(":")[0].rstrip(",) ")) for piece in text.split("$")[1:]]
    assert numbers == [1, 2, 3, 4, 5, 6]
    assert text.endswith("SELECT (SELECT count(*) FROM w0), (SELECT count(*) FROM w1)")
