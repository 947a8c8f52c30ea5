"""Rate limits in Redis: processes that share one count together, and count alone for as long as it is away."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from loop.domain.rate_limits import BURST_S
from loop.server.rate_limits import LocalLimiter, RouteClass
from loop.server.redis_limits import ANSWER_WITHIN_S, RETRY_AFTER_S, opened
from loop.telemetry import open_transaction
from tests.servers import running_redis

READ, WRITE = RouteClass.READ, RouteClass.WRITE
RATES = {READ: 1, WRITE: 5}


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with running_redis() as url:
        yield url


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """Yield a client of a Redis that holds nothing."""
    client = Redis.from_url(redis_url)
    await client.flushall()
    yield client
    await client.aclose()


class Clock:
    """A clock that stands until it is moved on."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.usefixtures("redis")
async def test_two_processes_share_one_limit(redis_url: str) -> None:
    async with opened(redis_url, RATES) as one, opened(redis_url, RATES) as other:
        rooms = [await each.take(READ, "key_a") for _ in range(BURST_S) for each in (one, other)]
        let_through = [room for room in rooms if room is not None and not room.retry_after_s]
        assert BURST_S <= len(let_through) <= BURST_S + 2  # a slow machine takes a second or two
        assert (let_through[0].limit, let_through[0].remaining, let_through[0].reset_s) == (BURST_S, BURST_S - 1, 1)
        refused = await other.take(READ, "key_a")
        assert refused is not None
        assert refused.retry_after_s == 1
        for elsewhere in (await one.take(READ, "key_b"), await one.take(WRITE, "key_a")):
            assert elsewhere is not None
            assert elsewhere.retry_after_s == 0
        assert await one.take(RouteClass.PAY, "key_a") is None


async def test_it_counts_as_a_process_alone_does(redis_url: str, redis: Redis) -> None:
    local = LocalLimiter(RATES, Clock())
    async with opened(redis_url, RATES) as shared:
        for _ in range(20):
            assert await shared.take(WRITE, "key_a") is not None
        assert await shared.take(WRITE, "key_b") == await local.take(WRITE, "key_b") == (50, 49, 1, 0)
    # What is kept is forgotten once it is paid for.
    assert 0 < await redis.pttl("loop:limit:write:key_b") <= 200
    assert 0 < await redis.pttl("loop:limit:write:key_a") <= 4_000


async def test_redis_comes_and_goes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "loop")
    clock = Clock()
    with running_redis() as url:
        port = urlsplit(url).port
        async with opened(url, RATES) as limiter:
            limiter._clock = clock
            limiter._local = LocalLimiter(RATES, clock)
            assert await limiter.take(READ, "key_a") == (BURST_S, BURST_S - 1, 1, 0)
            await _stop(url)
            rooms = [await limiter.take(READ, "key_a") for _ in range(BURST_S + 1)]
            assert [room is not None and room.retry_after_s for room in rooms] == [0] * BURST_S + [1]
            with running_redis(port):
                assert (await limiter.take(READ, "key_a")) == rooms[-1]  # left alone for a while
                clock.now_s += RETRY_AFTER_S
                assert await limiter.take(READ, "key_a") == (BURST_S, BURST_S - 1, 1, 0)
    told = [record.getMessage() for record in caplog.records if "limits." in record.getMessage()]
    assert ["redis_away" in told[0], "redis_back" in told[1], len(told)] == [True, True, 2]


async def test_a_redis_that_is_full_does_not_count_as_answering(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "loop")
    with running_redis() as url:
        client = Redis.from_url(url)
        async with opened(url, RATES) as limiter:
            assert await limiter.redis_answers()
            await client.config_set("maxmemory", 1)
            for _ in range(3):
                assert not await limiter.redis_answers()
            assert await limiter.take(READ, "key_a") == (BURST_S, BURST_S - 1, 1, 0)
            await client.config_set("maxmemory", 0)
            assert await limiter.redis_answers()
        await client.aclose()
    told = [record.getMessage() for record in caplog.records if "limits." in record.getMessage()]
    assert told == ["limits.redis_away", "limits.redis_back"]


async def _stop(url: str) -> None:
    client = Redis.from_url(url)
    await client.shutdown(nosave=True)
    await client.aclose()


async def test_a_redis_that_does_not_answer_holds_up_one_request_only(caplog: pytest.LogCaptureFixture) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    url = f"redis://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    clock = Clock()
    async with opened(url, RATES) as limiter:
        limiter._clock = clock
        began = time.monotonic()
        assert (await limiter.take(READ, "key_a")) is not None
        assert time.monotonic() - began >= ANSWER_WITHIN_S
        clock.now_s += RETRY_AFTER_S
        began = time.monotonic()
        rooms = await asyncio.gather(*(limiter.take(READ, "key_a") for _ in range(100)))
        assert time.monotonic() - began < 2 * ANSWER_WITHIN_S + 1
        assert sum(room is not None and not room.retry_after_s for room in rooms) == BURST_S - 1
    silent.close()
    await silent.wait_closed()
    assert sum("limits.redis_away" in record.getMessage() for record in caplog.records) == 1


async def test_a_redis_that_was_never_there_stops_nothing() -> None:
    async with opened("redis://:hunter2@127.0.0.1:1/0", RATES) as limiter:
        assert "hunter2" not in repr(limiter)
        assert await limiter.take(READ, "key_a") == (BURST_S, BURST_S - 1, 1, 0)


async def test_no_request_is_counted_inside_a_transaction() -> None:
    async with opened("redis://127.0.0.1:1/0", RATES) as limiter:
        with open_transaction(), pytest.raises(RuntimeError, match="transaction"):
            await limiter.take(READ, "key_a")
