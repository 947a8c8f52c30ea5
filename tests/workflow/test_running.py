"""A Loop that serves: it takes no work from others as it begins, and ends all of its own within one bound."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

import pytest

from loop import runtime
from loop.config import Settings
from loop.runtime import Chance, Running, opened, running, system_now
from loop.storage import jobs
from loop.storage.jobs import Job
from loop.workers import inline_runner, schedule
from loop.workers.arq_runner import ArqRunner
from loop.workflows.context import Context
from loop.workflows.jobs import JOBS, JobKind
from tests.builders import Clock, Shop, job, open_shop, running_jobs, settings_for
from tests.collectors import free_port

STOP_S = 2.0
GRACE_S = 1.0
"""How much longer a stop may take on a busy machine."""

UNFINISHED = b"POST /webhooks/stripe/pcf_1 HTTP/1.1\r\nHost: loop\r\nContent-Length: 100\r\n\r\n{"
"""A request that keeps its server waiting for the rest."""


@pytest.fixture
def settings(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_for(database_url, tmp_path_factory.mktemp("serves"), port=str(free_port()))


Started = list[str]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """Have jobs of the kind `test` never end, and return the ids of those that began."""
    begun: Started = []

    async def hang(_: Context, held: Job) -> None:
        begun.append(held.id)
        await asyncio.Event().wait()

    monkeypatch.setitem(JOBS, "test", JobKind(hang, deadline_s=60, is_handed_back=True))
    return begun


async def begin_hanging_job(serving: Running, started: Started) -> None:
    await serving.context.database.write_at_once([jobs.insertion(job(run_at=system_now()))])
    serving.context.runner.wake()
    async with asyncio.timeout(10):
        while not started:  # noqa: ASYNC110 - a list has no event
            await asyncio.sleep(0.01)


async def test_a_stop_has_one_deadline_for_requests_and_jobs(
    settings: Settings, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline_runner, "SHUTDOWN_S", STOP_S)
    async with running(settings) as serving:
        await begin_hanging_job(serving, started)
        where = urlsplit(serving.url)
        answer, request = await asyncio.open_connection(where.hostname, where.port)
        request.write(UNFINISHED)
        await request.drain()
        await asyncio.sleep(0.2)
        began = monotonic()
    assert STOP_S - GRACE_S <= monotonic() - began <= STOP_S + GRACE_S
    request.close()
    del answer
    async with opened(settings) as successor, successor.database.reading() as reader:
        (left,) = await jobs.of_subject(reader, "ord_1")
    assert (left.is_leased, left.failures) == (False, 0)


async def test_the_schedule_begins_nothing_while_a_stop_waits(
    settings: Settings, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline_runner, "SHUTDOWN_S", STOP_S)
    at: list[float] = []

    async def look(_: Context) -> int:
        at.append(monotonic())
        return 0

    monkeypatch.setattr(schedule, "SCHEDULE", (("look", 0.05, look),))
    async with running(settings) as serving:
        await begin_hanging_job(serving, started)
        await asyncio.sleep(0.5)
        began = monotonic()
    assert at[0] < began
    assert max(at) <= began + 0.05


async def test_a_part_that_fails_is_logged_and_stops_the_process(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_: Context) -> None:
        raise RuntimeError("it went wrong")

    monkeypatch.setattr(runtime, "_share_breakers", fail)
    stopping = asyncio.Event()
    with pytest.raises(RuntimeError, match="it went wrong"):
        async with running(settings, stopping=stopping), asyncio.timeout(5):
            await stopping.wait()
    assert [each.message for each in caplog.records].count("loop.part_failed") == 1


@pytest.mark.parametrize("half", ["_listen", "_send"])
async def test_a_half_of_the_wake_ups_that_fails_stops_the_process_as_well(
    half: str, postgres_database_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: ArqRunner) -> None:
        raise RuntimeError("it went wrong")

    monkeypatch.setattr(ArqRunner, half, fail)
    settings = settings_for(postgres_database_url, tmp_path, redis_url=redis_url, port=str(free_port()))
    stopping = asyncio.Event()
    with pytest.raises(RuntimeError, match="it went wrong"):
        async with running(settings, stopping=stopping), asyncio.timeout(5):
            await stopping.wait()


# On one SQLite file.


@pytest.fixture
def on_sqlite(sqlite_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_for(sqlite_database_url, tmp_path_factory.mktemp("serves"), port=str(free_port()))


@pytest.fixture
async def command(on_sqlite: Settings, clock: Clock) -> AsyncIterator[Shop]:
    """Yield a shop in a process that only runs a command."""
    async with opened(on_sqlite, Chance(now=clock.now)) as context:
        yield await open_shop(context, clock)


async def leased(context: Context, subject: str) -> bool:
    async with context.database.reading() as reader:
        (found,) = await jobs.of_subject(reader, subject)
    return found.is_leased


async def test_who_begins_to_serve_leaves_a_command_its_jobs(on_sqlite: Settings, command: Shop, clock: Clock) -> None:
    order = (await command.paid()).order
    command.wait_s = 0
    command.hang_next("refund")
    refund = await command.refund(order.id)
    await command.until_called("refund")
    async with running(on_sqlite, Chance(now=clock.now)) as serving:
        await asyncio.sleep(0.5)
        assert await leased(serving.context, refund.id)
        assert len(command.sandbox.called("refund")) == 1
    await command.lose_process()


async def test_what_a_dead_process_held_is_free_for_the_next_at_once(
    on_sqlite: Settings, clock: Clock, started: Started
) -> None:
    async with opened(on_sqlite, Chance(now=clock.now)) as dead:
        await dead.database.write_at_once([jobs.insertion(job(is_leased=True, fence=1, run_at=clock.at + jobs.LEASE))])
    async with running(on_sqlite, Chance(now=clock.now)) as serving:
        async with asyncio.timeout(5):
            while not started:  # noqa: ASYNC110 - a list has no event
                await asyncio.sleep(0.01)
        for task in running_jobs(serving.context):
            task.cancel()


def test_a_command_begins_also_while_another_looks_whether_it_is_alone(
    on_sqlite: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking = ExitStack()
    looking.enter_context(runtime._keys_held(on_sqlite, is_rotating=True))
    monkeypatch.setattr(time, "sleep", lambda _: looking.close())
    with runtime._keys_held(on_sqlite, is_rotating=False):
        assert not runtime._is_alone(on_sqlite)
    assert runtime._is_alone(on_sqlite)
