"""Circuit breakers through Redis: each process tells the others when one of its own turns, and follows theirs."""

import asyncio
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from loop import metrics
from loop.domain.breakers import Breaker, BreakerState
from loop.metrics import of
from loop.processors.http import require_no_transaction
from loop.telemetry import get_logger
from loop.workflows.breakers import MAX_ACCOUNTS, Breakers, Turn

log = get_logger(__name__)

SHARE_EVERY_S: Final = 0.25
"""How long another process may go on sending payments to an account after this one has given it up."""

ANSWER_WITHIN_S: Final = 0.5

AWAY: Final = (RedisError, OSError, RuntimeError)
"""What says that Redis is away; RuntimeError is uvloop's word for a connection that was reset."""

RETRY_AFTER_S: Final = 5.0
"""How long Redis is left alone after it did not answer."""

KEPT_S: Final = 3_600
"""How long after the latest turn all of them are kept: longer than any pause."""

_TURNS, _VERSION = "loop:breakers", "loop:breakers:version"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

# The latest turn counts, whoever tells it last. A version that was never there before says that there is news.
_TELL: Final = f"""
local is_news = false
for i = 1, #ARGV, 3 do
  local known = redis.call('HGET', KEYS[1], ARGV[i])
  if not known or tonumber(string.match(known, '^%d+')) < tonumber(ARGV[i + 1]) then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1] .. ' ' .. ARGV[i + 2])
    is_news = true
  end
end
if redis.call('HLEN', KEYS[1]) > {MAX_ACCOUNTS} then
  redis.call('DEL', KEYS[1])
end
if is_news or redis.call('EXISTS', KEYS[2]) == 0 then
  local time = redis.call('TIME')
  redis.call('SET', KEYS[2], time[1] .. '.' .. time[2], 'EX', {KEPT_S})
  redis.call('EXPIRE', KEYS[1], {KEPT_S})
end
"""


class SharedBreakers:
    """Carries turns between this process's breakers and Redis; payments never wait for it."""

    def __init__(self, redis: Redis, breakers: Breakers) -> None:
        self._redis = redis
        self._breakers = breakers
        self._tell = redis.register_script(_TELL)
        self._version: str | None = None
        self._is_away = False

    async def share(self) -> bool:
        """Tell what is new here and follow what is new there; tell whether Redis answered."""
        require_no_transaction()
        turns = self._breakers.untold()
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                await self._exchange(turns)
        except AWAY as error:
            self._breakers.tell_again([turn.config_id for turn in turns])
            if not self._is_away:
                hint = "each process keeps its own circuit breakers"
                log.warning("breakers.redis_away", error=type(error).__name__, hint=hint)
            self._is_away = True
            of(metrics.REDIS_UP, "breakers").set(0)
            return False
        of(metrics.REDIS_UP, "breakers").set(1)
        if self._is_away:
            self._is_away = False
            log.info("breakers.redis_back")
        return True

    async def _exchange(self, turns: Sequence[Turn]) -> None:
        if turns:
            await self._tell(keys=[_TURNS, _VERSION], args=[part for turn in turns for part in _written(turn)])
        version = await self._redis.get(_VERSION)
        if version is None:
            self._breakers.tell_again()  # Redis is new, or was emptied
        elif version != self._version:
            written = await cast("Awaitable[dict[str, str]]", self._redis.hgetall(_TURNS))
            for config_id, text in written.items():
                turn = _read(config_id, text)
                if turn is not None:
                    self._breakers.hear_of(turn)
        self._version = version


def _written(turn: Turn) -> tuple[str, int, str]:
    breaker = turn.breaker
    since_us = 0 if breaker.since is None else _microseconds(breaker.since)
    return turn.config_id, _microseconds(turn.at), f"{breaker.state} {since_us} {breaker.pause.total_seconds():.0f}"


def _read(config_id: str, text: str) -> Turn | None:
    try:
        at_us, state, since_us, pause_s = text.split(" ")
        since = None if since_us == "0" else _moment(since_us)
        breaker = Breaker(BreakerState(state), since=since, pause=timedelta(seconds=int(pause_s)))
        return Turn(config_id, breaker, _moment(at_us))
    except (ValueError, OverflowError):
        log.warning("breakers.unreadable", config_id=config_id, hint="a newer version of Loop may have written it")
        return None


def _microseconds(at: datetime) -> int:
    return (at - _EPOCH) // _MICROSECOND


def _moment(text: str) -> datetime:
    return _EPOCH + int(text) * _MICROSECOND


async def share_breakers(redis_url: str, breakers: Breakers) -> None:
    """Share a process's breakers with all that use this Redis, whether or not it is there, until cancelled."""
    redis = Redis.from_url(redis_url, decode_responses=True, max_connections=2)
    shared = SharedBreakers(redis, breakers)
    try:
        while True:  # ends with the process
            has_answered = await shared.share()
            await asyncio.sleep(SHARE_EVERY_S if has_answered else RETRY_AFTER_S)
    finally:
        await redis.aclose()
