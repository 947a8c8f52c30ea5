"""Behind PgBouncer, which gives each transaction any of its connections: Loop works, and leaves nothing in them."""

import asyncio
import getpass
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from loop.domain.errors import LoopError
from loop.domain.orders import OrderStatus
from loop.runtime import Chance, opened
from loop.storage import merchants, orders, postgres
from loop.storage.migrate import schema_state
from loop.storage.postgres import PostgresDatabase, open_postgres
from loop.workflows.context import Context
from tests.builders import Clock, Shop, merchant, open_shop, order, settings_for, work_off

PGBOUNCER = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")
POOL_SIZE, SERVER_CONNECTIONS = 8, 2

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="needs pgbouncer (apt-get install pgbouncer)")


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(500):
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, "pgbouncer ended at once"
        time.sleep(0.01)
    raise AssertionError("pgbouncer does not listen")


@pytest.fixture
def pooled_url(postgres_database_url: str) -> Iterator[str]:
    """Yield the URL of this test's database through PgBouncer, which has fewer connections to it than it serves."""
    parts = urlsplit(postgres_database_url)
    server = parse_qs(parts.query).get("host", [parts.hostname or ""])[0]
    name, port = parts.path.removeprefix("/"), _free_port()
    folder = Path(tempfile.mkdtemp(prefix="loop-pgbouncer-"))
    folder.chmod(0o755)
    lines = [
        "[databases]",
        f"{name} = host={server} port={parts.port or 5432} user={parts.username or getpass.getuser()}",
        "[pgbouncer]",
        "pool_mode = transaction",
        "auth_type = any",
        "listen_addr = 127.0.0.1",
        f"listen_port = {port}",
        "unix_socket_dir =",
        f"default_pool_size = {SERVER_CONNECTIONS}",
        "server_round_robin = 1",  # so that the next transaction has another connection than the last
        *([f"user = {Path(server).owner()}"] if getpass.getuser() == "root" else []),  # as root it does not run
    ]
    path = folder / "pgbouncer.ini"
    path.write_text("\n".join(lines) + "\n")
    process = subprocess.Popen([str(PGBOUNCER), "-q", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        yield f"postgresql://anybody@127.0.0.1:{port}/{name}"
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


@pytest.fixture
async def pooled(pooled_url: str) -> AsyncIterator[PostgresDatabase]:
    database = await open_postgres(pooled_url, POOL_SIZE, is_pooled=True)
    yield database
    await database.close()


@pytest.fixture
async def pooled_context(pooled_url: str, tmp_path: Path, clock: Clock) -> AsyncIterator[Context]:
    settings = settings_for(pooled_url, tmp_path, is_database_pooled="true")
    async with opened(settings, Chance(now=clock.now)) as context:
        yield context


async def test_statements_of_many_callers_share_few_connections(pooled: PostgresDatabase) -> None:
    async def work(number: int) -> str:
        await pooled.write_at_once([merchants.insertion(merchant(number))])
        async with pooled.transaction() as session:
            await session.run_together([orders.insertion(order(id=f"ord_{number}", merchant_id=f"mer_{number}"))])
            assert await orders.lock(session, f"mer_{number}", f"ord_{number}") is not None
        async with pooled.reading() as reader:
            found = await orders.get(reader, f"mer_{number}", f"ord_{number}")
            assert await merchants.get(reader, f"mer_{number}") is not None
        assert found is not None
        return found.id

    assert await asyncio.gather(*(work(number) for number in range(100))) == [f"ord_{n}" for n in range(100)]


async def test_nothing_is_left_in_a_connection(
    pooled: PostgresDatabase, pooled_url: str, postgres_database_url: str
) -> None:
    assert (await schema_state(pooled_url)).is_current
    await pooled.write_at_once([merchants.insertion(merchant(1))])
    async with pooled.reading() as reader:
        assert await merchants.get(reader, "mer_1") is not None
    connection = await pooled._connections.take()
    for _ in range(2 * SERVER_CONNECTIONS):
        assert await connection.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE name <> ''") == 0
        assert await connection.fetchval("SHOW lock_timeout") == "0"
    pooled._connections.give_back(connection, is_usable=True)
    direct = await asyncpg.connect(postgres_database_url)
    states = await direct.fetch("SELECT state FROM pg_stat_activity WHERE backend_type = 'client backend'")
    assert "idle in transaction" not in {row["state"] for row in states}
    await direct.close()


async def test_the_server_s_bounds_count_here_too(
    pooled_url: str, monkeypatch: pytest.MonkeyPatch, postgres_database_url: str
) -> None:
    monkeypatch.setattr(postgres, "LOCK_TIMEOUT_S", 0.1)
    database = await open_postgres(pooled_url, POOL_SIZE, is_pooled=True)
    await database.write_at_once(
        [
            merchants.insertion(merchant(1)),
        ]
    )
    await database.write_at_once([orders.insertion(order())])
    direct = await asyncpg.connect(postgres_database_url)
    async with direct.transaction():
        await direct.execute("SELECT 1 FROM orders FOR UPDATE")
        with pytest.raises(LoopError, match="database_unavailable"):
            async with database.transaction() as session:
                await orders.lock(session, "mer_1", "ord_1")
    async with database.transaction() as session:
        assert await orders.lock(session, "mer_1", "ord_1") is not None
    await direct.close()
    await database.close()


async def test_orders_are_paid_refunded_and_expire(pooled_context: Context, clock: Clock) -> None:
    shop: Shop = await open_shop(pooled_context, clock)
    paid = await asyncio.gather(*(shop.paid() for _ in range(20)))
    assert {each.order.status for each in paid} == {OrderStatus.CAPTURED}
    refunded = await asyncio.gather(*(shop.refund(each.order.id, 400) for each in paid))
    assert [each.amount_minor for each in refunded] == [400] * 20
    await work_off(pooled_context)
    assert shop.moved("charge") == [1_000] * 20
    assert shop.moved("refund") == [400] * 20


async def test_who_does_not_say_so_is_told_what_to_set(pooled_url: str) -> None:
    with pytest.raises(LoopError, match="is_database_pooled"):
        await open_postgres(pooled_url, POOL_SIZE)
