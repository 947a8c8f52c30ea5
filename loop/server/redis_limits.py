"""Rate limits counted in Redis, for all processes together; while it is away, each process counts for itself."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError

from loop import metrics
from loop.domain.rate_limits import BURST_S, SLACK, Taken, taken
from loop.metrics import of
from loop.processors.http import require_no_transaction
from loop.server.rate_limits import LocalLimiter, Rates, RouteClass
from loop.telemetry import get_logger

log = get_logger(__name__)

ANSWER_WITHIN_S: Final = 0.25
"""How long a request waits for Redis before it is counted here."""

AWAY: Final = (RedisError, OSError, RuntimeError)
"""What says that Redis is away; RuntimeError is uvloop's word for a connection that was reset."""

RETRY_AFTER_S: Final = 5.0
"""How long Redis is left alone after it did not answer."""

MAX_CONNECTIONS: Final = 32

PROBE: Final = "loop:limit:probe"
PROBES_PER_S: Final = 1_000_000
"""As what Redis is asked whether it counts: nobody's, at a rate that nobody reaches."""

# As `loop.domain.rate_limits.Buckets.take`, by the one clock that all processes share.
_TAKE: Final = f"""
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local per_s = tonumber(ARGV[1])
local paid_at_us = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now_us) + 1000000 / per_s
local ahead_us = paid_at_us - now_us
if ({BURST_S} - ahead_us / 1000000) * per_s + {SLACK} >= 0 then
  redis.call('SET', KEYS[1], string.format('%.1f', paid_at_us), 'PX', math.ceil(ahead_us / 1000))
end
return tostring(ahead_us)
"""


class RedisLimiter:
    """Counts the requests of all processes that use one Redis."""

    def __init__(self, redis: Redis, rates: Rates, clock: Callable[[], float] = time.monotonic) -> None:
        self._rates = rates
        self._clock = clock
        self._redis = redis
        self._take = redis.register_script(_TAKE)
        self._local = LocalLimiter(rates, clock)
        self._is_away = False
        self._ask_again_at = 0.0

    async def take(self, route_class: RouteClass, who: str) -> Taken | None:
        """See `loop.server.rate_limits.Limiter`."""
        require_no_transaction()
        per_s = self._rates.get(route_class)
        if per_s is None:
            return None
        if self._is_away:
            now = self._clock()
            if now < self._ask_again_at:
                return await self._local.take(route_class, who)
            self._ask_again_at = now + RETRY_AFTER_S  # one request finds out, the others do not wait for it
        ahead_us = await self._ask(f"loop:limit:{route_class}:{who}", per_s)
        return await self._local.take(route_class, who) if ahead_us is None else taken(per_s, ahead_us / 1_000_000)

    async def redis_answers(self) -> bool | None:
        """See `loop.server.rate_limits.Limiter`; a ping would not tell of a Redis that is full or a replica."""
        return await self._ask(PROBE, PROBES_PER_S) is not None

    async def _ask(self, key: str, per_s: int) -> float | None:
        """Take one request's room under a key; return for how many microseconds it is taken, or None without Redis."""
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                ahead_us = float(await self._take(keys=[key], args=[per_s]))
        except AWAY as error:
            self._note_away(error)
            return None
        of(metrics.REDIS_UP, "limits").set(1)
        if self._is_away:
            self._is_away = False
            log.info("limits.redis_back")
        return ahead_us

    def _note_away(self, error: Exception) -> None:
        of(metrics.REDIS_UP, "limits").set(0)
        if not self._is_away:
            log.warning("limits.redis_away", error=type(error).__name__, hint="each process counts requests for itself")
        self._is_away = True
        self._ask_again_at = self._clock() + RETRY_AFTER_S


@asynccontextmanager
async def opened(redis_url: str, rates: Rates) -> AsyncIterator[RedisLimiter]:
    """Open a limiter that counts in this Redis, whether or not it is there yet."""
    pool = BlockingConnectionPool.from_url(redis_url, max_connections=MAX_CONNECTIONS, timeout=ANSWER_WITHIN_S)
    redis = Redis.from_pool(pool)
    try:
        yield RedisLimiter(redis, rates)
    finally:
        await redis.aclose()
