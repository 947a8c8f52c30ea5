"""Connections to Redis that are reset, on the event loop that Loop runs on: requests go on as when Redis is away."""

import asyncio
from itertools import count
from urllib.parse import urlsplit

import uvloop

from loop.domain.rate_limits import Taken
from loop.server.rate_limits import RouteClass
from loop.server.redis_limits import RETRY_AFTER_S, opened
from tests.faults.proxies import Proxy

AT_ONCE, RESETS = 32, 60
RESET_EVERY_S = 0.01


async def take_again_and_again(way: Proxy) -> int:
    """Count requests while connections are reset at any moment; return how many were counted."""
    calls, is_over = count(), asyncio.Event()
    clock = count(step=int(RETRY_AFTER_S) + 1)  # so that every request asks Redis

    async with opened(f"redis://127.0.0.1:{way.port}", {RouteClass.WRITE: 1_000_000}) as limiter:
        limiter._clock = lambda: float(next(clock))

        async def take() -> None:
            while not is_over.is_set():
                assert isinstance(await limiter.take(RouteClass.WRITE, "somebody"), Taken)
                next(calls)

        taking = [asyncio.create_task(take()) for _ in range(AT_ONCE)]
        for _ in range(RESETS):
            await asyncio.sleep(RESET_EVERY_S)
            way.reset()
        is_over.set()
        await asyncio.gather(*taking)
    return next(calls)


def test_requests_whose_connection_to_redis_is_reset_are_counted_here(redis_url: str) -> None:
    async def run() -> int:
        port = urlsplit(redis_url).port
        assert port is not None
        way = Proxy(lambda: ("127.0.0.1", port))
        await way.accept()
        try:
            return await take_again_and_again(way)
        finally:
            await way.close()
            await asyncio.sleep(RESET_EVERY_S)  # or uvloop is closed while it still closes what was reset

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(run()) > AT_ONCE
