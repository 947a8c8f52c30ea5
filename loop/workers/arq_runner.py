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
from redis.exceptions import AuthenticationError, NoPermissionError, OutOfMemoryError, ReadOnlyError, RedisError

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

SENT_EVERY_S: Final = 10.0
"""How long a process says nothing before it sends a wake-up all the same, to know whether Redis still takes them."""

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
SAID_MAX: Final = 200
"""How many characters of what Redis has said are logged."""

AWAY: Final = (RedisError, OSError, RuntimeError)
"""What comes of Redis being away or refusing; RuntimeError is uvloop's word for a connection that was reset."""

POISON: Final = "WRONGTYPE"
"""What Redis says of a queue that is something else. Anything else that it refuses is no matter of what lies there."""

ADVICE: Final[tuple[tuple[type[Exception], str], ...]] = (
    (OutOfMemoryError, "Redis is full: give it more memory, or let it evict (maxmemory-policy allkeys-lru)"),
    (ReadOnlyError, "this is a replica: name the one that takes writes in redis_url"),
    (NoPermissionError, "its ACL refuses what Loop needs, which the production guide lists"),
    (AuthenticationError, "mend the user and the password in redis_url"),
)
"""What to do about a Redis that is there and refuses."""

SENDING, HEARING = "sending", "hearing"
"""The two halves: each writes to Redis when it begins, and is back when that went through."""


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
        self._away: set[str] = set()
        self.unsent = 0
        """How many times a wake-up could not be sent."""

    def wake(self) -> None:
        """See `JobRunner.wake`: who cannot claim what is due, whatever it is, tells the others, by way of `send`."""
        super().wake()
        if not (self._is_claiming and self.has_room) or self._lanes.full:
            self._called.set()

    async def run(self, context: Context) -> None:
        """Claim and run jobs until `stop`, and listen for wake-ups meanwhile."""
        self._is_claiming = True
        self._listening = asyncio.create_task(self._listen(), name="wake-ups heard")
        self._listening.add_done_callback(lambda _: self.stop_claiming())  # it ends with that, or has failed
        try:
            await super().run(context)
        finally:
            await self._end_listening()
        if self._listening.done():
            self._listening.result()  # should it have failed, whoever runs this is to know

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
        self._sending.result()  # as in `run`

    async def _send(self) -> None:
        while not self._is_ending.is_set():
            async with self._redis() as redis:  # anew after each failure, which may have left a connection in use
                try:
                    await redis.ping()  # connecting may take longer than sending
                    await self._send_until_failure(redis)
                except AWAY as error:
                    self._note_away(SENDING, error)
            await _passed(RETRY_AFTER_S, unless=self._is_ending)

    async def _send_until_failure(self, redis: ArqRedis) -> None:
        while True:  # and at first at once: who was not heard is then, and Redis is known to take it
            self._called.clear()
            try:
                async with asyncio.timeout(ANSWER_WITHIN_S):
                    await redis.enqueue_job(LOOK, _expires=KEPT_MS / 1000)
                    # What nobody took out, since nobody listens or it is no wake-up, would hide what comes after it.
                    await redis.zremrangebyscore(QUEUE, "-inf", timestamp_ms() - KEPT_MS)
            except AWAY:
                self.unsent += 1
                raise
            self._note_back(SENDING)
            if self._is_ending.is_set() and not self._called.is_set():
                return
            await _passed(PACE_S, unless=self._is_ending)
            await _passed(SENT_EVERY_S, unless=self._called)

    async def _listen(self) -> None:
        while not self._is_deaf.is_set():  # arq's worker ends when Redis goes away
            async with self._redis() as redis:
                try:
                    await self._hear(redis)
                except Exception as error:  # noqa: BLE001 - arq raises whatever comes of an entry that is not its own
                    if isinstance(error, AWAY) and POISON not in str(error):
                        self._note_away(HEARING, error)
                    else:
                        await self._empty(redis, error)
            super().wake()  # for whatever was not heard meanwhile
            await _passed(RETRY_AFTER_S, unless=self._is_deaf)

    async def _empty(self, redis: ArqRedis, error: Exception) -> None:
        try:
            await redis.delete(QUEUE)
        except AWAY as refusal:
            self._note_away(HEARING, refusal)
        else:
            log.warning("wake_ups.emptied", error=type(error).__name__, hint="the queue held something else")

    async def _hear(self, redis: ArqRedis) -> None:
        async def look(ctx: dict[Any, Any], *_: object, **__: object) -> None:
            del ctx
            super(ArqRunner, self).wake()

        worker = _Listener(
            functions=[func(look, name=LOOK)],
            queue_name=QUEUE,
            redis_pool=redis,
            handle_signals=False,
            job_timeout=LOOKED_WITHIN_S,
            max_tries=1,
            retry_jobs=False,
            keep_result=0,
            log_results=False,
            job_serializer=_as_json,
            job_deserializer=orjson.loads,
        )
        try:
            await worker.look(has_room=self.has_room)
            self._note_back(HEARING)
            super().wake()
            while not self._is_deaf.is_set():
                await _passed(HEARD_EVERY_S, unless=self._is_deaf)
                await worker.look(has_room=self.has_room)
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

    def _note_away(self, half: str, error: Exception) -> None:
        if not self._away:
            advice = next((each for kind, each in ADVICE if isinstance(error, kind)), "is it running and reachable?")
            said = str(error)[:SAID_MAX]
            hint = f"jobs wait for up to a second; {advice}"
            log.warning("wake_ups.redis_away", error=type(error).__name__, said=said, hint=hint)
        self._away.add(half)
        of(metrics.REDIS_UP, "wake_ups").set(0)

    def _note_back(self, half: str) -> None:
        if half in self._away:
            self._away.remove(half)
            if not self._away:
                log.info("wake_ups.redis_back", unsent=self.unsent)
        of(metrics.REDIS_UP, "wake_ups").set(not self._away)


class _Listener(Worker):
    """arq's worker, asked for one look at a time.

    Its own `main` asks for INFO first, which an ACL may refuse, and ends only when it is cancelled.
    """

    async def look(self, *, has_room: bool) -> None:
        """Hear what lies in the queue, if there is room for it: else another process may. The first look writes."""
        self.allow_pick_jobs = has_room
        await self._poll_iteration()


async def _passed(seconds: float, *, unless: asyncio.Event) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await unless.wait()


def _as_json(content: object) -> bytes:
    return orjson.dumps(content, default=str)
