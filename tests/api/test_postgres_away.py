"""A PostgreSQL that is away, silent, used up or locked: each request ends in time, with the truth or with a 503."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import pytest

from loop.runtime import Running
from loop.storage import postgres
from loop.workflows import idempotency
from tests.api.client import Answer, Shop
from tests.locks import find_out_last, outside, until_somebody_waits

ENDS_WITHIN_S = 5.0
"""However long the database says nothing, with bounds of half a second."""


class Gate:
    """Stands before the server and passes everything on, or nothing, or nobody."""

    def __init__(self, server_path: str) -> None:
        self._server_path = server_path
        self._open = asyncio.Event()
        self._open.set()
        self._lets_in = True
        self._passing: set[asyncio.Task[None]] = set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection's bytes both ways until either side ends or the gate is shut."""
        if not self._lets_in:
            writer.close()
            return
        inner_reader, inner_writer = await asyncio.open_unix_connection(self._server_path)
        both = [
            asyncio.create_task(self._carry(reader, inner_writer)),
            asyncio.create_task(self._carry(inner_reader, writer)),
        ]
        self._passing.update(both)
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in both:
            task.cancel()
        self._passing.difference_update(both)
        for each in (writer, inner_writer):
            each.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while chunk := await reader.read(65_536):
                await self._open.wait()
                writer.write(chunk)
                await writer.drain()

    def fall_silent(self) -> None:
        """Take everything and pass on nothing."""
        self._open.clear()

    def shut(self) -> None:
        """Cut every connection and let in no other."""
        self._lets_in = False
        for task in self._passing:
            task.cancel()

    def reopen(self) -> None:
        """Be as at the beginning."""
        self._lets_in = True
        self._open.set()


@pytest.fixture
def bound_s() -> float:
    """Return how long anything of the database is waited for."""
    return 0.5


@pytest.fixture
async def gate(
    postgres_database_url: str, bound_s: float, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Gate, str]]:
    """Yield the gate and the URL that leads through it."""
    for name in ("CONNECT_TIMEOUT_S", "ACQUIRE_TIMEOUT_S", "COMMAND_TIMEOUT_S", "CLOSE_TIMEOUT_S"):
        monkeypatch.setattr(postgres, name, bound_s)
    parts = urlsplit(postgres_database_url)
    folder = parse_qs(parts.query).get("host", [""])[0]
    if not folder:
        pytest.skip("the server has no Unix socket")
    gate = Gate(f"{folder}/.s.PGSQL.{parts.port or 5432}")
    server = await asyncio.start_server(gate.handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    yield gate, f"postgresql://{parts.username or 'postgres'}@127.0.0.1:{port}{parts.path}"
    gate.reopen()
    gate.shut()
    server.close()
    await server.wait_closed()


@pytest.fixture
def database_url(gate: tuple[Gate, str]) -> str:
    return gate[1]


def assert_unavailable(answer: Answer) -> None:
    assert (answer.status, answer.code) == (503, "database_unavailable")
    assert int(answer.headers["Retry-After"]) >= 1


async def create(shop: Shop, key: str) -> Answer:
    return await shop.post("/v1/orders", {"amount": 5}, headers={"Idempotency-Key": key})


async def test_a_database_that_is_cut_off_is_told_at_once_and_what_was_asked_for_is_done_once(
    shop: Shop, gate: tuple[Gate, str]
) -> None:
    before = await shop.order()
    gate[0].shut()
    for answer in await asyncio.gather(*(create(shop, f"k{number}") for number in range(20))):
        assert_unavailable(answer)
    assert_unavailable(await shop.get(f"/v1/orders/{before['id']}"))
    gate[0].reopen()
    answers = [await create(shop, f"k{number % 10}") for number in range(20)]
    assert {answer.status for answer in answers} == {201}
    listed = (await shop.get("/v1/orders?limit=100")).body["data"]
    assert len(listed) == 1 + 10


async def test_a_database_that_says_nothing_holds_up_nobody_for_long(shop: Shop, gate: tuple[Gate, str]) -> None:
    await shop.order()
    gate[0].fall_silent()
    began = time.monotonic()
    for answer in await asyncio.gather(*(create(shop, f"k{number}") for number in range(50))):
        assert_unavailable(answer)
    assert time.monotonic() - began < ENDS_WITHIN_S
    gate[0].reopen()
    assert (await create(shop, "k0")).status == 201


async def test_while_every_connection_is_taken_requests_wait_for_a_bounded_time(shop: Shop, served: Running) -> None:
    release, size = asyncio.Event(), served.context.settings.database_pool_size
    all_taken = asyncio.Barrier(size + 1)

    async def hold() -> None:
        async with served.context.database.transaction():
            await all_taken.wait()
            await release.wait()

    holders = [asyncio.create_task(hold()) for _ in range(size)]
    await all_taken.wait()
    began = time.monotonic()
    for answer in await asyncio.gather(*(create(shop, f"k{number}") for number in range(20))):
        assert_unavailable(answer)
    assert time.monotonic() - began < ENDS_WITHIN_S
    release.set()
    await asyncio.gather(*holders)
    assert (await create(shop, "k0")).status == 201


@pytest.mark.parametrize("bound_s", [10.0])
async def test_a_deadlock_is_a_503_that_changed_nothing_and_the_same_request_again_has_one_effect(
    shop: Shop, postgres_database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The outsider holds what the capture wants last, and then wants what the capture holds."""
    monkeypatch.setattr(idempotency, "LOCKED", timedelta(seconds=3))
    order = await shop.paid_order(captureMethod="manual")
    capture, key = f"/v1/orders/{order['id']}/capture", {"Idempotency-Key": "take it"}
    async with outside(postgres_database_url) as outsider, outsider.transaction():
        await find_out_last(outsider)
        await outsider.execute("UPDATE audit_heads SET seq = seq")
        capturing = asyncio.create_task(shop.post(capture, {}, headers=key))
        await until_somebody_waits(outsider)
        await outsider.execute("UPDATE orders SET updated_at = updated_at")
    assert_unavailable(await capturing)
    told = [record.__dict__ for record in caplog.records if record.getMessage() == "database.undone"]
    assert ["DeadlockDetectedError" in str(each) for each in told] == [True]
    assert (await shop.get(f"/v1/orders/{order['id']}")).body["status"] == "authorized"
    async with asyncio.timeout(10):
        while (again := await shop.post(capture, {}, headers=key)).status == 409:
            assert again.code == "idempotency_in_progress"
            await asyncio.sleep(0.2)
    assert (again.status, again.body["status"]) == (200, "captured")
    moved = (await shop.get(f"/v1/orders/{order['id']}/transactions")).body
    assert [each["type"] for each in moved].count("capture") == 1
