"""A Loop in a world of its own: virtual time, processors and a merchant that outlive it, and deaths at named points."""

import asyncio
import hashlib
import hmac
import json
import logging
import math
import shutil
import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self, TypeVar, TypeVarTuple

import aiohttp
from aiohttp.client_proto import ResponseHandler

from loop.config import Settings
from loop.domain.errors import LoopError
from loop.processors.sandbox import SIGNATURE_HEADER
from loop.storage import jobs as job_rows
from loop.storage import merchants as merchant_rows
from loop.storage import webhooks as webhook_rows
from loop.storage.jobs import Job
from loop.storage.keyring import Keyring
from loop.storage.sqlite import SqliteDatabase
from loop.workers.inline_runner import InlineRunner
from loop.workers.schedule import SCHEDULE
from loop.workflows import processor_configs, webhooks
from loop.workflows.context import Context
from loop.workflows.processor_configs import ConfigChange
from tests.builders import MIDNIGHT, Clock, merchant
from tests.workflow.order_processors import FINALITIES, FINE, MERCHANT, WEBHOOK_SECRET, Bank, BankRegistry, Weather

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

ENDPOINT_URL: Final = "http://shop.test/hooks"

LOOP_POINTS: Final = (
    "charge.intent_recorded", "charge.called", "charge.recorded",
    "failover.intent_recorded", "failover.fenced", "failover.recorded",
    "capture.intent_recorded", "capture.called",
    "void.intent_recorded", "void.called",
    "refund.intent_recorded", "refund.called", "refund.recorded",
    "dispute.recorded", "delivery.sent",
)  # fmt: skip
"""The points that Loop names itself, on an order's way."""

WORLD_POINTS: Final = ("call.sent", "commit.begun", "commit.done")
"""Points of the world: a request is on its way to a processor; a commit is about to happen, or nobody was told yet."""

SUBJECT: ContextVar[str | None] = ContextVar("subject", default=None)
"""What the running command or job is about: an order, a refund, a dispute, an endpoint, an inbound webhook, a word.

Accidents happen to what is about something; a claim is not, and whoever has claimed may be killed at any time anyway.
"""

STATUS_OF: Final[Mapping[str, str]] = {
    "ord": "SELECT status FROM orders WHERE id = ?",
    "ref": "SELECT o.status FROM orders o JOIN refunds r ON r.order_id = o.id WHERE r.id = ?",
    "dsp": "SELECT o.status FROM orders o JOIN disputes d ON d.order_id = o.id WHERE d.id = ?",
    "pev": "SELECT o.status FROM orders o JOIN payment_attempts a ON a.order_id = o.id "
    "JOIN processor_events e ON e.attempt_id = a.id WHERE e.id = ?",
}
"""Kind of subject -> the query for its order's status."""


class Crash(SystemExit):
    """The process is gone: the one kind of exception that ends an event loop at once, and that no handler swallows."""


class AccidentKind(StrEnum):
    """What happens at a point."""

    CRASH = "crash"
    """The process dies."""
    CANCEL = "cancel"
    """What runs is cancelled, as a shutdown does with what will not end."""


@dataclass(slots=True)
class Accident:
    """Happens when a point is reached for the n-th time from now on."""

    point: str
    nth: int
    kind: AccidentKind
    frees_leases: bool
    """Whether the next process frees the leases, as on SQLite, or waits until they end, as elsewhere."""


class Standing(StrEnum):
    """How the merchant's own server is."""

    UP = "up"
    FAILING = "failing"
    REFUSING = "refusing"
    HANGING = "hanging"


class Shop:
    """The merchant's server, which remembers what it has taken, at the other end of a wire of this process."""

    def __init__(self) -> None:
        self.standing = Standing.UP
        self.received: dict[str, list[bytes]] = {}

    def take(self, request: bytes) -> bytes | None:
        """Return the answer to an HTTP request, None for none at all."""
        head, _, body = request.partition(b"\r\n\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:])
        assert len(body) == int(headers["content-length"])
        if self.standing is Standing.HANGING:
            return None
        if self.standing is Standing.FAILING:
            return b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\n\r\noops"
        self.received.setdefault(headers["webhook-id"], []).append(body)
        return b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class _Wire(asyncio.Transport):
    """A connection to the shop."""

    def __init__(self, shop: Shop, protocol: ResponseHandler, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._shop, self._protocol, self._loop = shop, protocol, loop
        self._request = b""
        self._is_closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._request += bytes(data)
        head, separator, body = self._request.partition(b"\r\n\r\n")
        length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b":0")
        if separator and len(body) >= int(length.partition(b":")[2]):
            answer, self._request = self._shop.take(self._request), b""
            if answer is not None:
                self._loop.call_soon(self._answer, answer)

    def _answer(self, answer: bytes) -> None:
        if not self._is_closing:
            self._protocol.data_received(answer)

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._loop.call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        self.close()

    def pause_reading(self) -> None:
        """Go on: an answer is small."""

    def resume_reading(self) -> None:
        """Go on."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("203.0.113.1", 80) if name == "peername" else default


class ShopConnector(aiohttp.BaseConnector):
    """Connects a client session to the shop, whatever the address."""

    def __init__(self, shop: Shop) -> None:
        super().__init__(force_close=True)
        self._shop = shop

    async def _create_connection(self, req: aiohttp.ClientRequest, *_: object) -> ResponseHandler:
        if self._shop.standing is Standing.REFUSING:
            raise aiohttp.ClientConnectorError(req.connection_key, ConnectionRefusedError(111, "refused"))
        loop = asyncio.get_running_loop()
        protocol = ResponseHandler(loop)
        protocol.connection_made(_Wire(self._shop, protocol, loop))
        return protocol


class _Leap:
    """Stands where a selector does: nothing comes from outside, so a wait is over at once, and the clock is later."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def select(self, timeout: float | None) -> list[object]:
        if timeout is None:
            raise AssertionError("nothing is left that could happen")
        if timeout > 0:
            self._clock.at += timedelta(microseconds=math.ceil(timeout * 1e6))
        return []


class NumberedTask(asyncio.Task[Any]):
    """A task that sets keep in the same place each time: whoever goes through a set of them takes the same way."""

    def __init__(self, number: int, coroutine: Coroutine[Any, Any, Any], **named: Any) -> None:
        self.number = number  # before asyncio puts it into a set of its own
        super().__init__(coroutine, **named)

    def __hash__(self) -> int:
        return self.number


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop without threads, sockets and waiting: the same calls lead to the same course of events."""

    def __init__(self, world: "World") -> None:
        super().__init__()
        self._world = world
        self._selector = _Leap(world.clock)
        self.tasks: list[NumberedTask] = []
        """All that were made, in that order."""
        self.set_task_factory(self._make_task)
        self.set_exception_handler(lambda _, context: world.troubles.append(repr(context)))

    def _make_task(self, _: asyncio.AbstractEventLoop, coroutine: Any, **named: Any) -> NumberedTask:
        task = NumberedTask(len(self.tasks), coroutine, loop=self, **named)
        self.tasks.append(task)
        return task

    def time(self) -> float:
        return (self._world.clock.at - MIDNIGHT).total_seconds()

    def run_in_executor(self, executor: Any, func: Callable[[*Ts], T], *args: *Ts) -> "asyncio.Future[T]":
        """Commit: what Loop does in threads is nothing else."""
        del executor
        self._world.reached("commit.begun")
        done: asyncio.Future[T] = self.create_future()
        done.set_result(func(*args))
        self._world.reached("commit.done")
        return done

    def _process_events(self, event_list: list[object]) -> None:
        """Do nothing: there are none."""

    def _write_to_self(self) -> None:
        """Do nothing: nobody sleeps."""


class _Runner(InlineRunner):
    """The runner, which notes what each of its jobs is about."""

    def start(self, context: Context, job: Job) -> asyncio.Task[object]:
        before = SUBJECT.set(job.subject)
        try:
            return super().start(context, job)
        finally:
            SUBJECT.reset(before)


@dataclass(frozen=True, slots=True)
class Template:
    """A migrated database with a merchant, an endpoint and an account at each processor, to be copied."""

    path: Path
    settings: Settings
    accounts: Mapping[str, str] = field(default_factory=dict)
    """Processor -> id of the account there."""

    @classmethod
    def make(cls, migrated: Path, settings: Settings) -> Self:
        """Fill a migrated database."""
        world = World(cls(migrated, settings), migrated, Counter())
        try:
            accounts = world.life.run(_settle_in(world.life.context))
        finally:
            world.close()
        return cls(migrated, settings, accounts)


async def _settle_in(context: Context) -> dict[str, str]:
    endpoint = webhooks.new_endpoint(context, MERCHANT, ENDPOINT_URL)
    async with context.database.transaction() as session:
        await session.run_together([merchant_rows.insertion(merchant())])
        await session.run_together([webhook_rows.endpoint_insertion(endpoint)])
    accounts = {}
    for priority, name in enumerate(FINALITIES, start=1):
        config = await processor_configs.put(
            context,
            MERCHANT,
            name,
            credentials={"webhookSecret": WEBHOOK_SECRET},
            change=ConfigChange(priority=priority),
        )
        accounts[name] = config.id
    return accounts


class Life:
    """One process of Loop, from its start to its end."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.loop = world.new_loop()
        self.runner = _Runner(concurrency=8)
        self.database = SqliteDatabase(world.path)
        self.context = self.run(self._open())

    async def _open(self) -> Context:
        world = self._world
        return Context(
            settings=world.template.settings,
            database=self.database,
            keyring=world.keyring,
            processors=BankRegistry(world.banks),
            webhook_sender=aiohttp.ClientSession(
                connector=ShopConnector(world.shop), cookie_jar=aiohttp.DummyCookieJar()
            ),
            runner=self.runner,
            now=world.clock.now,
            random_bytes=world.random_bytes,
            reached=world.reached,
        )

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        """Run a call to its end, and whatever else happens meanwhile."""
        task = self.loop.create_task(call)
        return self.loop.run_until_complete(task)

    @property
    def is_busy(self) -> bool:
        """Whether jobs are running."""
        return bool(self.runner._running)

    async def cancel_jobs(self) -> None:
        """Cancel whatever job is running."""
        running = [task for task in self.loop.tasks if task in self.runner._running]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def serve(self, for_s: float) -> None:
        """Claim and run jobs as a server does, and end."""
        serving = asyncio.create_task(self.runner.run(self.context))
        await asyncio.sleep(for_s)
        await self.end()
        await serving

    async def end(self) -> None:
        """End in good order: running jobs have their time, and are cancelled after it."""
        await self.runner.stop()
        await self.context.webhook_sender.close()
        await self.database.close()

    def die(self) -> None:
        """End at once: nothing that runs gets another turn, and what is not committed is gone."""
        with suppress(sqlite3.ProgrammingError):  # it was about to end, and has closed it
            self.database._writer.rollback()
        self.database._writer.close()
        if self.database._short_reads is not None:
            self.database._short_reads.close()
        self.database._thread.shutdown()
        self.context.webhook_sender.detach()
        for task in self.loop.tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined] # of asyncio's own
                with suppress(BaseException):  # it finds everything closed
                    task.get_coro().close()
            elif not task.cancelled():
                task.exception()
        self.loop.close()


class _Ears(logging.Handler):
    """Hears what Loop logs as an error."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record)


class World:
    """Everything around Loop, and the process of it that is alive now."""

    def __init__(self, template: Template, path: Path, crashes: Counter[tuple[str, str]]) -> None:
        self.template, self.path, self.crashes = template, path, crashes
        if path != template.path:
            shutil.copyfile(template.path, path)
        self.clock = Clock(MIDNIGHT + timedelta(hours=1))
        keys = (template.settings.encryption_key, *template.settings.encryption_keys_previous)
        self.keyring = Keyring([key.reveal() for key in keys])
        self.banks = {name: Bank(name, self) for name in FINALITIES}
        self.shop = Shop()
        self.weather: dict[str, deque[Weather]] = {}
        self.accident: Accident | None = None
        self.troubles: list[str] = []
        self.has_frozen = False
        self.disturbances = 0
        """How often something kept Loop from hearing of a processor."""
        self._frees_leases = True
        self._command: asyncio.Task[Any] | None = None
        self._parcels: dict[int, tuple[float, Callable[[], None]]] = {}
        self._posted = 0
        self._drawn = 0
        self.ears = _Ears()
        logging.getLogger("loop").addHandler(self.ears)
        self.rows = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
        self.rows.row_factory = sqlite3.Row
        self.life = self.new_life()

    def new_loop(self) -> VirtualLoop:
        """Return an event loop for a process that begins."""
        return VirtualLoop(self)

    def new_life(self) -> Life:
        """Begin a process."""
        return Life(self)

    def random_bytes(self, size: int) -> bytes:
        """Return bytes that look like chance, the same ones in each example."""
        self._drawn += 1
        return hashlib.sha256(self._drawn.to_bytes(8, "big")).digest()[:size]

    def weather_of(self, operation: str) -> Weather:
        """Return how the next call of an operation goes."""
        coming = self.weather.get(operation)
        return coming.popleft() if coming else FINE

    def post(self, in_s: float, arrive: Callable[[], None]) -> None:
        """Send something on its way, which it goes to the end of."""
        self._posted += 1
        self._parcels[self._posted] = (self.life.loop.time() + in_s, arrive)
        self.life.loop.call_later(in_s, self._land, self._posted)

    def _land(self, number: int) -> None:
        parcel = self._parcels.pop(number, None)
        if parcel is not None:
            parcel[1]()

    def reached(self, point: str) -> None:
        """Have the accident happen that waits at a point."""
        accident, subject = self.accident, SUBJECT.get()
        if accident is None or accident.point != point or subject is None:
            return
        accident.nth -= 1
        if accident.nth > 0:
            return
        self.accident = None
        self.disturbances += 1
        if accident.kind is AccidentKind.CANCEL:
            task = self._command if point.startswith("commit") else asyncio.current_task(self.life.loop)
            if task is not None:
                task.cancel()
            return
        self._frees_leases = accident.frees_leases
        self.crashes[point, self._status_of(subject)] += 1
        raise Crash(point)

    def _status_of(self, subject: str) -> str:
        """Return the committed status of the order that something is about, `-` for none."""
        query = STATUS_OF.get(subject[:3])
        row = None if query is None else self.rows.execute(query, [subject]).fetchone()
        return "-" if row is None else str(row[0])

    def do(self, call: Coroutine[Any, Any, T], about: str | None = None) -> T | LoopError | None:
        """Run one thing to its end; return what it says, its refusal, or None when an accident ended it."""
        before = SUBJECT.set(about)
        self._command = self.life.loop.create_task(call)
        try:
            result: T = self.life.loop.run_until_complete(self._command)
        except LoopError as refusal:
            return refusal
        except asyncio.CancelledError:
            return None
        except Crash:
            self.kill(frees_leases=self._frees_leases)
            return None
        else:
            return result
        finally:
            SUBJECT.reset(before)

    def kill(self, *, frees_leases: bool) -> None:
        """Have the process die, and another take its place."""
        self.disturbances += 1
        self.life.die()
        self._begin(frees_leases=frees_leases)

    def restart(self, *, serves_for_s: float | None, is_patient: bool) -> None:
        """Shut the process down, waiting for running jobs or cancelling them at once, and start another."""
        life = self.life
        if not is_patient:
            self.do(life.cancel_jobs())
        if self.life is life:
            self.do(life.end() if serves_for_s is None else life.serve(serves_for_s))
        if self.life is not life:  # it died meanwhile
            return
        if self._command is not None and self._command.cancelled():
            life.die()
        else:
            life.loop.close()
        self._begin(frees_leases=True)

    def _begin(self, *, frees_leases: bool) -> None:
        self.life = self.new_life()
        for number, (at_s, _) in self._parcels.items():
            self.life.loop.call_at(at_s, self._land, number)
        if frees_leases:
            self.do(_free_leases(self.life.context))

    def freeze(self, for_s: float) -> None:
        """Let time pass in which the process gets no turn, while everybody else does."""
        self.has_frozen = True
        self.disturbances += 1
        for number in list(self._parcels):
            self._land(number)
        self.clock.forward(seconds=for_s)

    def close(self) -> None:
        """End the process, and leave nothing behind."""
        self.accident = None
        self.rows.close()  # before the writer, which then leaves nothing beside the file
        logging.getLogger("loop").removeHandler(self.ears)
        try:
            self.life.run(self.life.end())
            self.life.loop.close()
        except BaseException:
            self.life.die()
            raise

    def excuses(self, record: logging.LogRecord) -> bool:
        """Tell whether what happened here explains an error that Loop has logged: a process that thaws is late."""
        return self.has_frozen and record.exc_info is not None and isinstance(record.exc_info[1], TimeoutError)

    def set_weather(self, operation: str, coming: Sequence[Weather]) -> None:
        """Say how the next calls of an operation go."""
        self.weather[operation] = deque(coming)
        self.disturbances += 1

    @staticmethod
    def signed_webhook(reference: str, *, number: int, about: Mapping[str, str]) -> tuple[bytes, dict[str, str]]:
        """Return a processor's webhook about a payment, or a part of it; the same number makes the same webhook."""
        event_id = f"evt_{reference}_{'_'.join(about.values())}_{number}"
        body = json.dumps({"id": event_id, "type": "payment.changed", "payment": reference, **about}).encode()
        signature = hmac.new(WEBHOOK_SECRET.encode(), body, hashlib.sha256).hexdigest()
        return body, {SIGNATURE_HEADER: signature}


async def _free_leases(context: Context) -> None:
    async with context.database.transaction() as session:
        await job_rows.free_leases(session, context.now(), taken_until=context.now())


ROUNDS_MAX: Final = 2_000
"""More rounds of due jobs than any example needs."""


async def work(context: Context, limit: int, rounds: int = ROUNDS_MAX) -> int:
    """Claim due jobs and run them, up to `limit` at a time; return how many were run."""
    done = 0
    for _ in range(rounds):
        async with context.database.reading() as reader:
            due_at = await job_rows.next_due(reader)
        if due_at is None or due_at > context.now():
            return done
        async with context.database.transaction() as session:
            claimed = await job_rows.claim(session, context.now(), limit)
        if claimed:
            await asyncio.wait([context.runner.start(context, job) for job in claimed])
        done += len(claimed)
    assert rounds < ROUNDS_MAX, "jobs come back without end"
    return done


async def scheduled(context: Context, name: str) -> int:
    """Run an entry of the schedule."""
    return await {entry: run for entry, _, run in SCHEDULE}[name](context)


SCHEDULE_EVERY_S: Final = 7_200.0
"""Less often than the real one, whose runs mostly find nothing."""


async def live(context: Context, for_s: float, *, schedule_every_s: float = SCHEDULE_EVERY_S) -> None:
    """Let time pass in which jobs run as soon as they are due, and the schedule at its pace."""
    clock = asyncio.get_running_loop().time
    until, scheduled = clock() + for_s, -math.inf
    while True:  # until then
        if clock() - scheduled >= schedule_every_s:
            for _, _, run in SCHEDULE:
                await run(context)
            scheduled = clock()
        await work(context, 100)
        async with context.database.reading() as reader:
            due_at = await job_rows.next_due(reader)
        next_s = until if due_at is None else min(until, (due_at - MIDNIGHT).total_seconds())
        if clock() >= until:
            return
        await asyncio.sleep(max(0.0, next_s - clock()))
