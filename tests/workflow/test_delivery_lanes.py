"""One endpoint's trouble is its own: neither other endpoints nor other jobs wait for a dead, slow or busy one."""

import asyncio
import socket
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

import pytest

from loop.domain.deliveries import DeliveryStatus
from loop.domain.events import Event, EventType
from loop.runtime import opened, system_now
from loop.storage import deliveries as delivery_rows
from loop.storage import jobs as job_rows
from loop.storage import merchants as merchant_rows
from loop.storage import webhooks as webhook_rows
from loop.storage.jobs import Job
from loop.workers import inline_runner
from loop.workers.inline_runner import InlineRunner
from loop.workflows import webhooks
from loop.workflows.context import Context
from loop.workflows.jobs import JOBS, JobKind
from tests.builders import Clock, Shop, job, merchant, settings_for
from tests.merchant_server import MerchantServer, merchant_server

BACKLOG = 10_000
HEALTHY = 150
"""Events of the healthy endpoint: enough for a percentile, and few enough for a second or two."""

P99_S = 2.0
MEMORY_MIB = 8
"""How much may be allocated at once beyond what was before: 10,000 waiting events are more than twice that."""


@pytest.fixture
async def context(database_url: str, tmp_path: Path) -> AsyncIterator[Context]:
    """Yield a Loop whose clock is the machine's: the runner sleeps by it."""
    async with opened(settings_for(database_url, tmp_path, webhook_timeout_s=2)) as context:
        yield context


@pytest.fixture
async def server() -> AsyncIterator[MerchantServer]:
    async with merchant_server() as server:
        yield server


@asynccontextmanager
async def working(context: Context) -> AsyncIterator[InlineRunner]:
    runner = context.runner
    assert isinstance(runner, InlineRunner)
    running = asyncio.create_task(runner.run(context))
    try:
        yield runner
    finally:
        await runner.stop()
        await running


async def shop_at(context: Context, number: int, url: str) -> Shop:
    """Make a merchant who listens at an address, without anything else."""
    shop = Shop(context, Clock(), f"mer_{number}")
    endpoint = webhooks.new_endpoint(context, shop.merchant_id, url)
    async with context.database.transaction() as session:
        await session.run_together([merchant_rows.insertion(merchant(number))])
        await session.run_together([webhook_rows.endpoint_insertion(endpoint)])
    return shop


async def let_events_happen(shop: Shop, count: int) -> None:
    """Record events without orders, many in each commit, all of which then wait in their endpoint's line."""
    for start in range(0, count, 500):
        writes = []
        for number in range(start, min(start + 500, count)):
            event_id = f"evt_{shop.merchant_id}_{number:06}"
            body = f'{{"id":"{event_id}","eventType":"order.created","filling":"{"x" * 2_000}"}}'
            event = Event(event_id, shop.merchant_id, None, EventType.ORDER_CREATED, body, system_now())
            writes += webhook_rows.event_insertions(event)
        async with shop.context.database.transaction() as session:
            for write, parameters in writes:
                await session.run(write, parameters)
            for claimed in await job_rows.claim(session, system_now(), 0, deliveries=1):
                await session.run_together([job_rows.rescheduling(claimed, system_now())])


@contextmanager
def black_hole() -> Iterator[str]:
    """Listen, and leave whoever comes to the system, which takes connections and requests and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=1_000) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"


def refusing_url() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/"


async def arrivals_s(shop: Shop, server: MerchantServer) -> list[float]:
    """Have events happen one after the other; return how long each took from its commit to its arrival."""
    waits = []
    for number in range(HEALTHY):
        before = len(server.received)
        await shop.order()
        committed_at = monotonic()
        async with asyncio.timeout(10):
            while len(server.received) == before:  # noqa: ASYNC110 - the request is the event
                await asyncio.sleep(0.001)
        waits.append(monotonic() - committed_at)
        if number % 10 == 0:
            await asyncio.sleep(0.01)
    return sorted(waits)


@pytest.fixture(params=["refusing", "silent"])
def dead_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Yield the address of an endpoint that is not there, and of one that never answers."""
    with black_hole() as silent_url:
        yield refusing_url() if request.param == "refusing" else silent_url


async def test_a_dead_endpoint_with_ten_thousand_events_waiting_holds_up_nobody(
    sqlite_database_url: str, tmp_path: Path, server: MerchantServer, dead_url: str
) -> None:
    async with opened(settings_for(sqlite_database_url, tmp_path, webhook_timeout_s=2)) as context:
        dead = await shop_at(context, 1, dead_url)
        healthy = await shop_at(context, 2, f"{server.url}/healthy")
        await let_events_happen(dead, BACKLOG)
        tracemalloc.start()
        try:
            async with working(context):
                waits = await arrivals_s(healthy, server)
                _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert waits[int(len(waits) * 0.99)] < P99_S
        assert most < MEMORY_MIB * 2**20
        async with context.database.reading() as reader:
            _, waiting = await delivery_rows.list_page(
                reader, dead.merchant_id, DeliveryStatus.PENDING, offset=0, limit=1
            )
            assert (await job_rows.count(reader))[0] <= 2
        assert waiting == BACKLOG


async def test_other_jobs_do_not_wait_for_endpoints(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inline_runner, "ENDPOINTS_AT_ONCE", 2)
    done = asyncio.Event()

    async def finish(context: Context, held: Job) -> None:
        async with context.database.transaction() as session:
            job_rows.require_held((await session.run_together([job_rows.finishing(held)]))[0])
        done.set()

    monkeypatch.setitem(JOBS, "test", JobKind(finish, deadline_s=10))
    with black_hole() as url:
        for number in range(1, 5):
            await (await shop_at(context, number, url)).order()
        async with working(context) as runner:
            async with asyncio.timeout(5):
                while runner._delivering < 2:  # noqa: ASYNC110 - the claim is the event
                    await asyncio.sleep(0.001)
            await context.database.write_at_once([job_rows.insertion(job(run_at=datetime(2020, 1, 1, tzinfo=UTC)))])
            runner.wake()
            async with asyncio.timeout(2):
                await done.wait()
            assert runner._delivering == 2


async def test_no_event_is_overlooked_however_its_commit_meets_the_end_of_a_turn(
    context: Context, database_url: str, tmp_path: Path, server: MerchantServer
) -> None:
    """Two processes record and deliver; an event that nobody noticed would wait for the schedule, beyond the test."""
    shop = await shop_at(context, 1, f"{server.url}/hooks")
    async with opened(settings_for(database_url, tmp_path)) as other, working(context), working(other):
        elsewhere = Shop(other, Clock(), shop.merchant_id)

        async def trade(side: Shop, pause_s: float) -> list[str]:
            made = []
            for number in range(60):
                made.append((await side.order()).id)
                await asyncio.sleep(pause_s * (number % 7))
            return made

        made = await asyncio.gather(trade(shop, 0.001), trade(elsewhere, 0.0013), trade(shop, 0))
        expected = {order_id for part in made for order_id in part}
        async with asyncio.timeout(10):
            while len(server.received) < len(expected):  # noqa: ASYNC110 - the request is the event
                await asyncio.sleep(0.01)
        async with asyncio.timeout(10):
            while await is_anything_left(context):  # noqa: ASYNC110 - a row has no event
                await asyncio.sleep(0.01)
    assert len({each.event_id for each in server.received}) == len(server.received) == len(expected)


async def is_anything_left(context: Context) -> bool:
    async with context.database.reading() as reader:
        return await job_rows.next_due(reader) is not None
