"""Fixtures for every test: databases of their own on SQLite and PostgreSQL, and no network beyond this machine."""

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from loop.storage.migrate import migrate
from tests.canaries import aviary, listening
from tests.network import blocked_hosts, sent_in_transactions, stay_on_this_machine, watch_transactions
from tests.servers import forget_on_crash, rows_of, run_sql, run_to_end, running_postgres, running_redis, with_database

POSTGRES_URL_VARIABLE = "LOOP_TEST_POSTGRES_URL"
"""Names a server to use instead of our own: a superuser's URL, such as Debian's PostgreSQL 15 in CI."""

stay_on_this_machine()
watch_transactions()

# How long an example takes says how busy the machine is; what must be fast is measured by the bench.
settings.register_profile("loop", deadline=None)
settings.load_profile("loop")


REPORT = "report"
"""The property by which a test says what it has done, for whoever reads the run's last lines."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the reports of the tests that made one: where several processes test, what they print is seen by nobody."""
    for outcome in ("passed", "failed"):
        for test in terminalreporter.stats.get(outcome, []):
            for name, text in test.user_properties:
                if name == REPORT and test.when == "call":
                    terminalreporter.section(test.nodeid)
                    terminalreporter.line(text)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Have the slow tests begin first, on all processes: each takes an equal part of them all, in this order."""
    processes = int(getattr(config, "workerinput", {}).get("workercount", 1))
    slow = [item for item in items if item.get_closest_marker("slow")]
    others = [item for item in items if not item.get_closest_marker("slow")]
    part = -(-len(items) // processes)
    items.clear()
    for number in range(processes):
        mine = slow[number::processes]
        count = max(0, part - len(mine))
        items += mine + others[:count]
        del others[:count]
    items += others


@pytest.fixture(autouse=True)
def _stayed_on_this_machine() -> Iterator[None]:
    """Fail the test that tried to leave, even where the code under test swallowed the refusal."""
    blocked_hosts.clear()
    yield
    assert not blocked_hosts, "the test tried to leave this machine"


@pytest.fixture(autouse=True)
def _called_nobody_in_a_transaction() -> Iterator[None]:
    """Fail the test in which a transaction stayed open for as long as some other system pleased."""
    sent_in_transactions.clear()
    yield
    assert not sent_in_transactions, "somebody was called inside a database transaction"


@pytest.fixture(autouse=True)
def _kept_secrets_out_of_the_log() -> Iterator[None]:
    """Fail the test that wrote a secret into Loop's log."""
    aviary.forget()
    with listening() as lines:
        yield
    aviary.require_none_in("\n".join(lines), where="the log")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Yield the URL of a PostgreSQL server, in a database that holds nothing."""
    if given := os.environ.get(POSTGRES_URL_VARIABLE):
        yield given
        return
    with running_postgres() as url:
        forget_on_crash(url)
        yield url


@pytest.fixture(scope="session")
def postgres_template(postgres_url: str) -> Iterator[str]:
    """Yield the name of a migrated database from which each test's own is copied."""
    name = f"loop_template_{secrets.token_hex(4)}"
    run_sql(postgres_url, f"CREATE DATABASE {name}")
    run_to_end(migrate(with_database(postgres_url, name)))
    yield name
    run_sql(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def postgres_database_url(postgres_url: str, postgres_template: str) -> Iterator[str]:
    """Yield the URL of this test's own migrated PostgreSQL database, which holds no secret in the end."""
    name = f"loop_test_{secrets.token_hex(8)}"
    run_sql(postgres_url, f"CREATE DATABASE {name} TEMPLATE {postgres_template}")
    url = with_database(postgres_url, name)
    yield url
    rows = rows_of(url)
    run_sql(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")
    aviary.require_none_in_rows(rows)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a migrated SQLite file from which each test's own is copied."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    run_to_end(migrate(f"sqlite:///{path}"))
    return path


@pytest.fixture
def sqlite_database_url(sqlite_template: Path, tmp_path: Path) -> Iterator[str]:
    """Yield the URL of this test's own migrated SQLite file, which holds no secret in the end."""
    path = Path(shutil.copy(sqlite_template, tmp_path / "loop.db"))
    yield f"sqlite:///{path}"
    aviary.require_none_in_file(path)


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """Yield the URL of a Redis that tests of this worker share."""
    with running_redis() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Return this test's own migrated database, once of each kind; a server starts only when one is needed."""
    url: str = request.getfixturevalue(f"{request.param}_database_url")
    return url
