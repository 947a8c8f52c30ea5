"""The arq runner: wake-ups between processes by way of Redis, which carries no work and may lose everything."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import orjson
from arq.connections import ArqRedis
from arq.utils import timestamp_ms
from arq.worker import Worker, func
from redis.asyncio import BlockingConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from loop import metrics
from loop.metrics import of
from loop.telemetry import get_logger
from loop.workers.inline_runner import InlineRunner
from loop.workflows.context import Context

log = get_logger(__name__)

QUEUE: Final = "loop:wake-ups"
LOOK: Final = "look"
"""The one thing that anybody is told: look at the table of jobs."""

PACE_S: Final = 0.02
"""How long after a wake-up the next one is sent, for all that was committed meanwhile."""

HEARD_EVERY_S: Final = 0.02
"""How often a worker asks Redis for wake-ups."""

ANSWER_WITHIN_S: Final = 1.0
"""How long Redis may take for one answer, or to be sent a wake-up, before it counts as away.

No request waits for it, only the next wake-up, and by then every process has looked by itself.
"""

ENDED_WITHIN_S: Final = 3.0
"""How long a stop waits for what is just being said to Redis."""

RETRY_AFTER_S: Final = 1.0
"""How long Redis is left alone after it failed: no longer than the runner sleeps without it."""

KEPT_MS: Final = 5_000
"""How long a wake-up that nobody hears is kept: by then everybody has looked."""

MAX_CONNECTIONS: Final = 4
LOOKED_WITHIN_S: Final = 5
AWAY: Final = (RedisError, OSError, RuntimeError)
"""What comes of Redis being away; RuntimeError is uvloop's word for a connection that was reset."""

GONE: Final = (RedisConnectionError, RedisTimeoutError, OSError, RuntimeError)
"""What says that Redis is away; anything else that ends arq's worker is about something that lies in the queue."""


class ArqRunner(InlineRunner):
    """A runner that wakes other processes' runners, and is woken by them.

    What is due is read from the database alone, at every wake-up and every second: Redis only makes it sooner. Neither
    half is cancelled in the middle of a call to Redis: up to Python 3.11 such a cancellation may be lost.
    """

    def __init__(self, concurrency: int, redis_url: str) -> None:
        super().__init__(concurrency)
        self._redis_url = redis_url
        self._called = asyncio.Event()
        self._sending: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._is_claiming = False
        self._is_ending = asyncio.Event()
        self._is_deaf = asyncio.Event()
        self._is_away = False
        self.unsent = 0
        """How many times a wake-up could not be sent."""

    def wake(self) -> None:
        """See `JobRunner.wake`: who cannot claim what is due tells the others, by way of `send`."""
        super().wake()
        if not (self._is_claiming and self.has_room):
            self._called.set()

    async def run(self, context: Context) -> None:
        """Claim and run jobs until `stop`, and listen for wake-ups meanwhile."""
        self._is_claiming = True
        self._listening = asyncio.create_task(self._listen(), name="wake-ups heard")
        try:
            await super().run(context)
        finally:
            await self._end_listening()

    async def stop(self) -> None:
        """See `InlineRunner.stop`; others are told at last, for what it hands back or has no more time to do."""
        await super().stop()
        await self._end_listening()  # or this process takes what it tells the others
        self._called.set()
        self._is_ending.set()
        if self._sending is not None:
            await asyncio.wait({self._sending}, timeout=ENDED_WITHIN_S)

    async def _end_listening(self) -> None:
        self._is_deaf.set()
        if self._listening is not None:
            await asyncio.wait({self._listening}, timeout=ENDED_WITHIN_S)

    async def send(self) -> None:
        """See `InlineRunner.send`: until `stop`, one wake-up for all that became due since the last one."""
        self._sending = asyncio.create_task(self._send(), name="wake-ups sent")
        await asyncio.wait({self._sending})

    async def _send(self) -> None:
        while not self._is_ending.is_set():
            async with self._redis() as redis:  # anew after each failure, which may have left a connection in use
                try:
                    await redis.ping()  # connecting may take longer than sending
                    await self._send_until_failure(redis)
                except AWAY as error:
                    self._note_away(error)
            await _passed(RETRY_AFTER_S, unless=self._is_ending)

    async def _send_until_failure(self, redis: ArqRedis) -> None:
        while True:
            await self._called.wait()
            self._called.clear()
            try:
                async with asyncio.timeout(ANSWER_WITHIN_S):
                    await redis.enqueue_job(LOOK, _expires=KEPT_MS / 1000)
                    # What nobody took out, since nobody listens or it is no wake-up, would hide what comes after it.
                    await redis.zremrangebyscore(QUEUE, "-inf", timestamp_ms() - KEPT_MS)
            except AWAY:
                self.unsent += 1
                self._called.set()
                raise
            self._note_back()
            if self._is_ending.is_set() and not self._called.is_set():
                return
            await _passed(PACE_S, unless=self._is_ending)

    async def _listen(self) -> None:
        while not self._is_deaf.is_set():  # arq's worker ends when Redis goes away
            async with self._redis() as redis:
                try:
                    await self._hear(redis)
                except _DeafError:
                    return
                except GONE as error:
                    self._note_away(error)
                except Exception as error:  # noqa: BLE001 - arq raises whatever comes of an entry that is not its own
                    log.warning("wake_ups.emptied", error=type(error).__name__, hint="the queue held something else")
                    with suppress(*AWAY):
                        await redis.delete(QUEUE)
            super().wake()  # for whatever was not heard meanwhile
            await _passed(RETRY_AFTER_S, unless=self._is_deaf)

    async def _hear(self, redis: ArqRedis) -> None:
        async def look(ctx: dict[Any, Any], *_: object, **__: object) -> None:
            del ctx
            super(ArqRunner, self).wake()

        async def begin(_: dict[Any, Any]) -> None:
            self._note_back()
            super(ArqRunner, self).wake()

        worker = _Listener(
            self,
            self._is_deaf,
            functions=[func(look, name=LOOK)],
            queue_name=QUEUE,
            redis_pool=redis,
            on_startup=begin,
            handle_signals=False,
            job_timeout=LOOKED_WITHIN_S,
            max_tries=1,
            retry_jobs=False,
            keep_result=0,
            log_results=False,
            poll_delay=HEARD_EVERY_S,
            job_serializer=_as_json,
            job_deserializer=orjson.loads,
        )
        try:
            await worker.async_run()
        finally:
            await asyncio.gather(*worker.tasks.values(), return_exceptions=True)

    @asynccontextmanager
    async def _redis(self) -> AsyncIterator[ArqRedis]:
        pool = BlockingConnectionPool.from_url(
            self._redis_url,
            max_connections=MAX_CONNECTIONS,
            timeout=ANSWER_WITHIN_S,
            socket_timeout=ANSWER_WITHIN_S,
            socket_connect_timeout=ANSWER_WITHIN_S,
        )
        redis = ArqRedis(pool, job_serializer=_as_json, job_deserializer=orjson.loads, default_queue_name=QUEUE)
        try:
            yield redis
        finally:
            with suppress(*AWAY):
                await redis.aclose(close_connection_pool=True)

    def _note_away(self, error: Exception) -> None:
        if not self._is_away:
            log.warning("wake_ups.redis_away", error=type(error).__name__, hint="jobs wait for up to a second")
        self._is_away = True
        of(metrics.REDIS_UP, "wake_ups").set(0)

    def _note_back(self) -> None:
        if self._is_away:
            log.info("wake_ups.redis_back", unsent=self.unsent)
        self._is_away = False
        of(metrics.REDIS_UP, "wake_ups").set(1)


class _DeafError(Exception):
    """Nobody listens any more."""


class _Listener(Worker):
    """arq's worker, which takes no wake-up that there is no room for: another process may have it.

    It is ended between two looks into the queue, which arq itself only does by cancelling it.
    """

    def __init__(self, runner: InlineRunner, is_deaf: asyncio.Event, **options: Any) -> None:  # noqa: ANN401 - arq's
        super().__init__(**options)
        self._runner = runner
        self._is_deaf = is_deaf

    async def heart_beat(self) -> None:
        """See to both after every look into the queue."""
        if self._is_deaf.is_set():
            raise _DeafError
        self.allow_pick_jobs = self._runner.has_room
        await super().heart_beat()


async def _passed(seconds: float, *, unless: asyncio.Event) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await unless.wait()


def _as_json(content: object) -> bytes:
    return orjson.dumps(content, default=str)
