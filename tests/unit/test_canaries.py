"""The search for canaries finds what was leaked, in the log, in a database and in an answer."""

import json
import logging
import sqlite3
from pathlib import Path

import pytest

from loop.domain.api_keys import make_api_key
from loop.telemetry import REDACTED, get_logger
from tests.canaries import PASSWORD, Aviary, aviary, listening
from tests.servers import rows_of, run_sql

CARD = "4242 4242 4242 4242"
LEAKS = [
    "the canary itself",
    f"password {PASSWORD}",
    "whsec_0123456789abcdef",
    "eyJhbGciOiJI.eyJzdWIiOiJtZXI.c2ln",
    CARD,
]


@pytest.mark.parametrize("leak", LEAKS)
def test_what_leaks_into_an_answer_is_found(leak: str) -> None:
    for answer in (json.dumps({"data": [{"note": leak}]}), f"<p>{leak}</p>", json.dumps({leak: 1})):
        with pytest.raises(AssertionError, match="the answer holds") as caught:
            Aviary().require_none_in_answer(answer, where="the answer")
        assert leak not in str(caught.value)


def test_an_api_key_is_found_however_it_was_made() -> None:
    assert Aviary().found_in(f"key={make_api_key('live', lambda count: bytes(range(count)))}")


def test_a_secret_may_be_shown_where_the_contract_says_and_nowhere_else_then() -> None:
    birds, secret = Aviary(), "kept-by-nobody-else-0123"
    birds.require_none_in_answer(json.dumps({"refreshToken": secret, "token": CARD}), where="the answer")
    with pytest.raises(AssertionError, match="the next answer holds"):
        birds.require_none_in_answer(json.dumps({"echo": f"it was {secret}"}), where="the next answer")
    birds.forget()
    assert birds.found_in(secret) == []


@pytest.mark.parametrize("leak", LEAKS)
def test_what_leaks_into_a_table_is_found_before_and_after_it_is_in_the_file(tmp_path: Path, leak: str) -> None:
    path = tmp_path / "loop.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute("CREATE TABLE notes (text TEXT)")
    aviary.require_none_in_file(path)
    connection.execute("INSERT INTO notes VALUES (?)", (leak,))
    connection.commit()
    with pytest.raises(AssertionError, match="the database holds"):
        aviary.require_none_in_file(path)
    connection.close()
    with pytest.raises(AssertionError, match="the database holds"):
        aviary.require_none_in_file(path)


def test_what_leaks_into_a_table_of_postgres_is_found_in_text_json_and_bytes(postgres_database_url: str) -> None:
    run_sql(postgres_database_url, "CREATE TABLE notes (text TEXT, json JSONB, bytes BYTEA)")
    for column in ("text", "json", "bytes"):
        for leak in LEAKS:
            value = json.dumps({"note": leak}) if column == "json" else leak
            run_sql(postgres_database_url, f"INSERT INTO notes ({column}) VALUES ('{value}')")  # noqa: S608 - ours
            with pytest.raises(AssertionError, match="the database holds"):
                aviary.require_none_in_rows(rows_of(postgres_database_url))
            run_sql(postgres_database_url, "DELETE FROM notes")


def test_the_log_is_heard_as_it_is_written() -> None:
    with listening("birds") as lines:
        get_logger("birds.x").info("leaked", note="a canary in a field that nobody knows for a secret")
        logging.getLogger("birds.y").warning("password=canary")
    assert [bool(aviary.found_in(line)) for line in lines] == [True, False]
    assert REDACTED in lines[1]
