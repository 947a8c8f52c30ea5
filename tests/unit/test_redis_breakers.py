"""Circuit breakers through Redis: processes that share one follow each other, and go on alone while it is away."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from loop.domain.attempts import Approved, Unknown
from loop.domain.breakers import FIRST_PAUSE, MIN_CALLS, PROBE_WITHIN, BreakerState
from loop.telemetry import open_transaction
from loop.workers import redis_breakers
from loop.workers.redis_breakers import ANSWER_WITHIN_S, SharedBreakers, share_breakers
from loop.workflows.breakers import Breakers
from tests.servers import running_redis

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
AFTER_PAUSE = NOW + FIRST_PAUSE
GOOD, BAD = Approved("pi_1", is_captured=True, amount_minor=1_000), Unknown("no answer")
ACCOUNT = "pcf_1"


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with running_redis() as url:
        yield url


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """Yield a client of a Redis that holds nothing."""
    async with client_of(redis_url) as client:
        await client.flushall()
        yield client


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(url, decode_responses=True)
    yield client
    await client.aclose()


class Process:
    """A process with breakers of its own, which tells and follows when the test wants it to."""

    def __init__(self, redis: Redis) -> None:
        self.breakers = Breakers()
        self._shared = SharedBreakers(redis, self.breakers)

    async def share(self) -> bool:
        return await self._shared.share()

    def trip(self, at: datetime = NOW) -> None:
        """Have the account's breaker open."""
        for _ in range(MIN_CALLS):
            self.breakers.hear(ACCOUNT, BAD, now=at)

    def state(self) -> BreakerState:
        return self.breakers.of_account(ACCOUNT).state


async def all_share(*processes: Process) -> None:
    """Have each tell, and then each follow."""
    for _ in range(2):
        for each in processes:
            assert await each.share()


async def test_what_one_gives_up_gets_nothing_from_the_others_and_one_probe_goes_for_all(redis: Redis) -> None:
    one, other = Process(redis), Process(redis)
    one.trip()
    await all_share(one, other)
    assert other.breakers.is_shut(ACCOUNT, NOW)
    assert not other.breakers.is_shut(ACCOUNT, AFTER_PAUSE)
    other.breakers.let_through(ACCOUNT, AFTER_PAUSE)
    await all_share(one, other)
    assert one.state() is BreakerState.HALF_OPEN
    assert one.breakers.is_shut(ACCOUNT, AFTER_PAUSE)
    assert not one.breakers.is_shut(ACCOUNT, AFTER_PAUSE + PROBE_WITHIN)
    other.breakers.hear(ACCOUNT, BAD, now=AFTER_PAUSE + timedelta(seconds=1))
    await all_share(one, other)
    for each in (one, other):
        assert each.breakers.of_account(ACCOUNT).pause == 2 * FIRST_PAUSE
        assert each.breakers.is_shut(ACCOUNT, AFTER_PAUSE + 2 * FIRST_PAUSE)
    again = AFTER_PAUSE + timedelta(seconds=1) + 2 * FIRST_PAUSE
    one.breakers.let_through(ACCOUNT, again)
    one.breakers.hear(ACCOUNT, GOOD, now=again + timedelta(seconds=1))
    await all_share(one, other)
    assert [one.state(), other.state()] == [BreakerState.CLOSED] * 2


async def test_a_process_that_starts_later_follows_at_once(redis: Redis) -> None:
    one = Process(redis)
    one.trip()
    await one.share()
    late = Process(redis)
    await late.share()
    assert late.breakers.is_shut(ACCOUNT, NOW)


async def test_the_latest_turn_counts_whoever_tells_it_last(redis: Redis) -> None:
    one, other = Process(redis), Process(redis)
    one.trip()
    await all_share(one, other)
    other.breakers.let_through(ACCOUNT, AFTER_PAUSE)
    other.breakers.hear(ACCOUNT, GOOD, now=AFTER_PAUSE + timedelta(seconds=2))
    one.breakers.let_through(ACCOUNT, AFTER_PAUSE)
    one.breakers.hear(ACCOUNT, BAD, now=AFTER_PAUSE + timedelta(seconds=1))
    await all_share(other, one)
    assert [one.state(), other.state()] == [BreakerState.CLOSED] * 2


async def test_calls_are_counted_by_each_for_itself_and_go_on_counting(redis: Redis) -> None:
    one, other = Process(redis), Process(redis)
    for _ in range(MIN_CALLS - 1):
        other.breakers.hear(ACCOUNT, BAD, now=NOW)
    one.trip(NOW - timedelta(minutes=5))
    one.breakers.let_through(ACCOUNT, NOW - timedelta(minutes=4))
    one.breakers.hear(ACCOUNT, GOOD, now=NOW - timedelta(minutes=3))
    await all_share(one, other)
    assert other.state() is BreakerState.CLOSED
    other.breakers.hear(ACCOUNT, BAD, now=NOW)
    assert other.breakers.is_shut(ACCOUNT, NOW)


async def test_a_redis_that_was_emptied_is_told_again(redis: Redis) -> None:
    one, other = Process(redis), Process(redis)
    one.trip()
    await all_share(one, other)
    await redis.flushall()
    await all_share(one, other)
    assert one.breakers.is_shut(ACCOUNT, NOW)
    late = Process(redis)
    await late.share()
    assert late.breakers.is_shut(ACCOUNT, NOW)


async def test_what_is_kept_ends_and_what_nobody_can_read_is_passed_over(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = Process(redis), Process(redis)
    one.trip()
    await one.share()
    assert 0 < await redis.ttl("loop:breakers") <= redis_breakers.KEPT_S
    assert 0 < await redis.ttl("loop:breakers:version") <= redis_breakers.KEPT_S
    for name, text in (("a", ""), ("b", "1 ajar 1 30"), ("c", "x open 1 30"), ("d", f"{10**30} open 1 30")):
        await redis.hset("loop:breakers", name, text)  # type: ignore[misc] # typed for both kinds of clients
    assert await other.share()
    assert other.breakers.is_shut(ACCOUNT, NOW)
    assert sum("breakers.unreadable" in record.getMessage() for record in caplog.records) == 4


async def test_redis_comes_and_goes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "loop")
    with running_redis() as url:
        port = urlsplit(url).port
        async with client_of(url) as client:
            one, other = Process(client), Process(client)
            await all_share(one, other)
            with suppress(ConnectionError):
                await client.shutdown(nosave=True)
            one.trip()
            assert not await one.share()
            assert not await one.share()
            assert one.breakers.is_shut(ACCOUNT, NOW)  # counted here
            assert not other.breakers.is_shut(ACCOUNT, NOW)
            with running_redis(port):
                await all_share(one, other)
                assert other.breakers.is_shut(ACCOUNT, NOW)
    told = [record.getMessage() for record in caplog.records if "breakers.redis" in record.getMessage()]
    assert told == ["breakers.redis_away", "breakers.redis_back"]


async def test_a_redis_that_does_not_answer_is_waited_for_by_no_payment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_breakers, "SHARE_EVERY_S", 0.01)
    monkeypatch.setattr(redis_breakers, "RETRY_AFTER_S", 0.01)

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    breakers = Breakers()
    url = f"redis://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    sharing = asyncio.create_task(share_breakers(url, breakers))
    slowest_s = 0.0
    until = time.monotonic() + 2.5 * ANSWER_WITHIN_S
    while time.monotonic() < until:
        await asyncio.sleep(0.01)
        began = time.monotonic()
        breakers.hear(ACCOUNT, BAD, now=NOW)
        breakers.is_shut(ACCOUNT, NOW)
        breakers.let_through(ACCOUNT, AFTER_PAUSE)
        slowest_s = max(slowest_s, time.monotonic() - began)
    assert slowest_s < 0.05
    sharing.cancel()
    with suppress(asyncio.CancelledError):
        await sharing
    silent.close()
    await silent.wait_closed()


@pytest.mark.usefixtures("redis")
async def test_processes_that_run_follow_each_other_within_a_second(redis_url: str) -> None:
    one, other = Breakers(), Breakers()
    sharing = [asyncio.create_task(share_breakers(redis_url, each)) for each in (one, other)]
    for _ in range(MIN_CALLS):
        one.hear(ACCOUNT, BAD, now=NOW)
    began = time.monotonic()
    async with asyncio.timeout(5):
        while not other.is_shut(ACCOUNT, NOW):  # noqa: ASYNC110 - being told is the event
            await asyncio.sleep(0.01)
    assert time.monotonic() - began < 2
    for task in sharing:
        task.cancel()
    await asyncio.gather(*sharing, return_exceptions=True)


async def test_nothing_is_shared_inside_a_transaction(redis: Redis) -> None:
    one = Process(redis)
    with open_transaction(), pytest.raises(RuntimeError, match="transaction"):
        await one.share()
