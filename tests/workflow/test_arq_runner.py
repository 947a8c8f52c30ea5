"""Wake-ups by way of Redis: nothing is lost and little is late, whatever Redis forgets, holds, or does not answer."""

import asyncio
import hashlib
import hmac
import json
import logging
import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TypeAlias
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis.asyncio import Redis
from sqlalchemy import bindparam, select

from loop.domain.attempts import Unknown
from loop.domain.breakers import MIN_CALLS
from loop.domain.orders import OrderStatus
from loop.metrics import REGISTRY
from loop.processors.sandbox import SIGNATURE_HEADER
from loop.runtime import opened, system_now
from loop.server import redis_limits
from loop.server.rate_limits import RouteClass
from loop.storage import jobs
from loop.storage.jobs import Job
from loop.storage.statements import Statement
from loop.storage.tables import ProcessorEvents, table
from loop.workers import arq_runner as arq_module
from loop.workers import inline_runner
from loop.workers.arq_runner import (
    ANSWER_WITHIN_S,
    HEARING,
    KEPT_MS,
    LOOK,
    QUEUE,
    RETRY_AFTER_S,
    SENDING,
    ArqRunner,
)
from loop.workers.redis_breakers import SharedBreakers
from loop.workflows.breakers import Breakers
from loop.workflows.context import Context
from loop.workflows.jobs import JOBS, JobKind
from loop.workflows.processor_events import receive
from tests.builders import Clock, Shop, job, open_shop, settings_for
from tests.servers import running_redis

ORDERS = 200
"""So many are paid at the same time."""
ENDED_WITHIN_S = 60.0
WORST_S = 2.0
"""The longest that a job may wait for its start while Redis does what it likes: two of the worker's own looks."""

TROUBLE_EVERY_S = 0.02
AWAY_S = 1.5

_events = table(ProcessorEvents)
WAITS = Statement(
    select(_events.c.created_at, _events.c.processed_at)
    .where(_events.c.event_id.like(bindparam("names")), _events.c.processed_at.is_not(None))
    .limit(ORDERS),
    lambda arrived_at, ended_at: float((ended_at - arrived_at).total_seconds()),
)
"""How long each processor's webhook waited until it was acted on, by the names of the orders."""

Trouble: TypeAlias = Callable[[str, AsyncExitStack], Coroutine[None, None, None]]


@asynccontextmanager
async def client(redis_url: str) -> AsyncIterator[Redis]:
    redis = Redis.from_url(redis_url)
    try:
        yield redis
    finally:
        await redis.aclose()


async def until(is_so: Callable[[], Awaitable[bool]], within_s: float = 5) -> None:
    async with asyncio.timeout(within_s):
        while not await is_so():  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.002)


async def stop(redis_url: str) -> None:
    async with client(redis_url) as redis:
        await redis.shutdown(nosave=True)


@dataclass
class Installation:
    """Processes that serve and processes that work, over one database and one Redis."""

    database_url: str
    redis_url: str
    folder: Path
    stack: AsyncExitStack

    async def open(self, concurrency: int = 8) -> Context:
        settings = settings_for(self.database_url, self.folder)
        return await self.stack.enter_async_context(opened(settings, runner=ArqRunner(concurrency, self.redis_url)))

    async def api(self) -> Context:
        """Open a process that takes requests and runs no jobs but those that it starts."""
        context = await self.open()
        self._in_background(arq_runner(context).send(), arq_runner(context))
        return context

    async def worker(self, concurrency: int = 8) -> Context:
        """Open a process that claims jobs."""
        context = await self.open(concurrency)
        runner = arq_runner(context)
        self._in_background(runner.run(context), runner)
        self._in_background(runner.send(), runner)
        return context

    def _in_background(self, work: Coroutine[None, None, None], runner: ArqRunner) -> None:
        task = asyncio.create_task(work)

        async def end() -> None:
            await runner.stop()
            async with asyncio.timeout(5):
                await task  # it ends by itself

        self.stack.push_async_callback(end)


def arq_runner(context: Context) -> ArqRunner:
    assert isinstance(context.runner, ArqRunner)
    return context.runner


@pytest.fixture
async def here(postgres_database_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Installation]:
    async with client(redis_url) as redis, AsyncExitStack() as stack:
        await redis.flushall()
        yield Installation(postgres_database_url, redis_url, tmp_path, stack)


@dataclass
class Starts:
    """When jobs of the kind `test` were inserted and when they were started."""

    inserted: dict[str, float] = field(default_factory=dict)
    started: dict[str, float] = field(default_factory=dict)
    hold: asyncio.Event | None = None

    async def handle(self, context: Context, held: Job) -> None:
        self.started[held.id] = monotonic()
        if self.hold is not None:
            await self.hold.wait()
        await context.database.write_at_once([jobs.finishing(held)])

    async def insert(self, context: Context, key: str) -> None:
        await context.database.write_at_once([jobs.insertion(job(key, lane=key, run_at=system_now()))])
        self.inserted[key] = monotonic()
        context.runner.wake()

    async def all_started(self, within_s: float = 20) -> None:
        async with asyncio.timeout(within_s):
            while len(self.started) < len(self.inserted):  # noqa: ASYNC110 - of another task
                await asyncio.sleep(0.002)

    def waits(self) -> list[float]:
        return sorted(self.started[key] - at for key, at in self.inserted.items())


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Starts:
    made = Starts()
    monkeypatch.setitem(JOBS, "test", JobKind(made.handle, deadline_s=10))
    return made


# Whatever becomes of Redis.


async def forget_all(redis_url: str, _: AsyncExitStack) -> None:
    async with client(redis_url) as redis:
        while True:
            await redis.flushall()
            await asyncio.sleep(TROUBLE_EVERY_S)


async def go_and_come(redis_url: str, stack: AsyncExitStack) -> None:
    await asyncio.sleep(0.3)
    await stop(redis_url)
    await asyncio.sleep(AWAY_S)
    stack.enter_context(running_redis(urlsplit(redis_url).port))
    await asyncio.Event().wait()


def garbage() -> list[tuple[bytes, bytes, float]]:
    """Return entries of the queue that nobody has sent: (id, what lies under it, score)."""
    whole: dict[str, object] = {"t": None, "f": LOOK, "a": [], "k": {}, "et": 1}
    changed: list[dict[str, object]] = [{"f": ["a list"]}, {"f": "unknown"}, {"t": "text"}, {"et": "x"}, {"a": 7}]
    changed += [{"a": [1, "x"]}, {"k": {"x": 1}}]
    bodies = [json.dumps({**whole, **change}).encode() for change in changed]
    bodies += [b"\x80\x04\x95 a pickle", b"{}", b"null", b"", b"\xff" * 64]
    found = [(secrets.token_hex(8).encode(), body, 1.0) for body in bodies]
    return [(b"\xff\xfe", b"{}", 1.0), *found, *((b"nothing%d" % number, b"", 0.0) for number in range(150))]


async def be_poisoned(redis_url: str, _: AsyncExitStack) -> None:
    async with client(redis_url) as redis:
        while True:
            for entry_id, body, score in garbage():
                await redis.set(b"arq:job:" + entry_id, body, px=KEPT_MS)
                await redis.zadd(QUEUE, {entry_id: score})
            await asyncio.sleep(0.5)
            await redis.set(QUEUE, "no queue at all")
            await asyncio.sleep(0.5)


async def sell(shop: Shop, name: str) -> float:
    """Have orders in flight at once, each of which only its processor's webhook ends; return the longest wait for that.

    The process that takes the webhook commits a job of the order's, and another one does it: how long that took is
    what the webhook's own row says.
    """

    async def one(number: int) -> str:
        order_id = (await shop.order(external_id=f"{name} {number}")).id
        paid = await shop.pay(order_id, "tok_pending")
        assert paid.attempt is not None
        event = {"id": f"{name} {number}", "type": "payment.changed", "payment": paid.attempt.processor_reference}
        body = json.dumps(event).encode()
        signature = hmac.new(shop.webhook_secret.encode(), body, hashlib.sha256).hexdigest()
        await receive(shop.context, "sandbox", None, body=body, headers={SIGNATURE_HEADER: signature})
        return order_id

    order_ids = await asyncio.gather(*(one(number) for number in range(ORDERS)))

    async def waits() -> list[float]:
        async with shop.context.database.reading() as reader:
            return await reader.all(WAITS, {"names": f"{name} %"})

    async def have_ended() -> bool:
        return len(await waits()) == ORDERS

    await until(have_ended, within_s=ENDED_WITHIN_S)
    assert {(await shop.now(each)).order.status for each in order_ids} == {OrderStatus.CAPTURED}
    return max(await waits())


@pytest.mark.parametrize("trouble", [forget_all, go_and_come, be_poisoned])
async def test_orders_in_flight_go_through_whatever_redis_does(
    postgres_database_url: str, tmp_path: Path, trouble: Trouble
) -> None:
    async with AsyncExitStack() as stack:
        redis_url = stack.enter_context(running_redis())
        here = Installation(postgres_database_url, redis_url, tmp_path, stack)
        api, _ = await here.api(), await here.worker()
        shop = await open_shop(api, Clock())
        calm_s = await sell(shop, "calm")
        troubling = asyncio.create_task(trouble(redis_url, stack))
        troubled_s = await sell(shop, "troubled")
        assert not troubling.done()
        troubling.cancel()
        await asyncio.gather(troubling, return_exceptions=True)
    assert troubled_s - calm_s <= WORST_S, (troubled_s, calm_s)


async def test_the_queue_holds_nothing_of_an_order_and_keeps_nothing(here: Installation, starts: Starts) -> None:
    api = await here.api()
    await starts.insert(api, "secret")
    async with client(here.redis_url) as redis:

        async def entries() -> list[bytes]:
            return [bytes(each) for each in await redis.zrange(QUEUE, 0, -1)]

        async def is_called() -> bool:
            return len(await entries()) >= 1

        await until(is_called)
        entry, *_ = await entries()  # the first one of a process is sent when it begins
        body = json.loads(await redis.get(b"arq:job:" + entry))
        assert (body["f"], body["a"], body["k"]) == (LOOK, [], {})
        assert 0 < await redis.pttl(b"arq:job:" + entry) <= KEPT_MS
        # Nobody listens: what is older than that is taken out by whoever sends the next one.
        await redis.zadd(QUEUE, {entry: 1.0})
        api.runner.wake()

        async def is_taken_out() -> bool:
            return entry not in await entries()

        await until(is_taken_out)
        await here.worker()
        await starts.all_started()

        async def is_empty() -> bool:
            return [key async for key in redis.scan_iter()] == [f"{QUEUE}:health-check".encode()]

        await until(is_empty, within_s=KEPT_MS / 1000 + 5)


async def test_commits_of_one_moment_are_one_wake_up(here: Installation) -> None:
    api = await here.api()
    async with client(here.redis_url) as redis:
        for _ in range(1_000):
            api.runner.wake()
        await asyncio.sleep(0.2)
        assert 1 <= await redis.zcard(QUEUE) <= 2


async def test_a_wake_up_goes_to_a_worker_that_has_room(
    here: Installation, starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline_runner, "ENDPOINTS_AT_ONCE", 0)
    starts.hold = asyncio.Event()
    api, full = await here.api(), await here.worker(concurrency=1)
    await starts.insert(api, "fills it")
    await starts.all_started()
    assert not arq_runner(full).has_room
    monkeypatch.setattr(inline_runner, "NAP_S", 60)
    idle = await here.worker(concurrency=4)
    await asyncio.sleep(0.2)  # both have looked for the last time
    for number in range(4):
        await starts.insert(api, f"j{number}")
        await starts.all_started(within_s=5)
    starts.hold.set()
    del idle


async def test_a_worker_without_room_calls_for_another(
    here: Installation, starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline_runner, "ENDPOINTS_AT_ONCE", 0)
    monkeypatch.setattr(inline_runner, "NAP_S", 60)
    starts.hold = asyncio.Event()
    full = await here.worker(concurrency=1)
    await starts.insert(full, "fills it")
    await starts.all_started()
    await here.worker()
    await asyncio.sleep(0.2)
    await starts.insert(full, "another's")
    await starts.all_started(within_s=5)
    starts.hold.set()


async def test_nobody_waits_for_a_redis_that_is_away_and_the_log_says_so_once(
    here: Installation, starts: Starts, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "loop")
    async with AsyncExitStack() as stack:
        with running_redis() as url:
            here.redis_url = url
            api, worker = await here.api(), await here.worker()
            await starts.insert(api, "before")
            await starts.all_started()
            await stop(url)
        before = monotonic()
        for _ in range(1_000):
            api.runner.wake()
        assert monotonic() - before < ANSWER_WITHIN_S
        await starts.insert(api, "meanwhile")
        await starts.all_started()
        await asyncio.sleep(2 * RETRY_AFTER_S)
        assert 1 <= arq_runner(api).unsent <= 5
        stack.enter_context(running_redis(urlsplit(url).port))

        async def are_back() -> bool:
            return not (arq_runner(api)._away or arq_runner(worker)._away)

        await until(are_back, within_s=10)
        await starts.insert(api, "after")
        await starts.all_started()
        told = told_of_wake_ups(caplog)
        assert sum("redis_away" in line for line in told) == 2  # a process each
        assert sum("redis_back" in line for line in told) == 2
        await here.stack.aclose()


async def order(redis: Redis, command: str) -> None:
    await redis.execute_command(*command.split(" "))  # type: ignore[no-untyped-call]


def is_up() -> float | None:
    return REGISTRY.get_sample_value("loop_redis_up", {"used_for": "wake_ups"})


def told_of_wake_ups(caplog: pytest.LogCaptureFixture) -> list[str]:
    told = [record for record in caplog.records if "wake_ups." in record.getMessage()]
    return [f"{record.getMessage()} {record.__dict__['fields']}" for record in told]


REFUSALS = {
    "full": ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", "OutOfMemoryError", "allkeys-lru"),
    "replica": ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "ReadOnlyError", "redis_url"),
    "no rights": ("ACL SETUSER loop -@write", "ACL SETUSER loop +@write", "NoPermissionError", "ACL"),
}


@pytest.mark.parametrize("how", REFUSALS)
async def test_a_redis_that_takes_no_writes_is_away_until_one_goes_through(
    postgres_database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, starts: Starts, how: str
) -> None:
    caplog.set_level(logging.INFO, "loop")
    refuse, take_again, error, advice = REFUSALS[how]
    async with AsyncExitStack() as stack:
        url = stack.enter_context(running_redis())
        redis = await stack.enter_async_context(client(url))
        await order(redis, "ACL SETUSER loop on >word ~* +@all")
        here = Installation(postgres_database_url, url.replace("://", "://loop:word@"), tmp_path, stack)
        worker = await here.worker()

        async def is_known(wanted: float) -> bool:
            arq_runner(worker)._called.set()
            return is_up() == wanted

        await until(partial(is_known, 1))
        await order(redis, refuse)
        await until(partial(is_known, 0))
        watched_until = monotonic() + 3 * RETRY_AFTER_S
        while monotonic() < watched_until:
            assert await is_known(0)
            await asyncio.sleep(0.005)
        await starts.insert(worker, "meanwhile")
        await starts.all_started(within_s=WORST_S)
        await order(redis, take_again)
        await until(partial(is_known, 1), within_s=10)
        away, back = told_of_wake_ups(caplog)
    assert ["redis_away" in away, error in away, advice in away, "redis_back" in back] == [True] * 4


async def test_a_worker_that_begins_before_a_full_redis_tells_of_it_once(
    postgres_database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncExitStack() as stack:
        url = stack.enter_context(running_redis())
        redis = await stack.enter_async_context(client(url))
        await redis.config_set("maxmemory", 1)
        worker = await Installation(postgres_database_url, url, tmp_path, stack).worker()
        await asyncio.sleep(2 * RETRY_AFTER_S)
        assert len(told_of_wake_ups(caplog)) == 1
        assert arq_runner(worker)._away == {SENDING, HEARING}
        await redis.config_set("maxmemory", 0)
        await until(lambda: _is(not arq_runner(worker)._away))


async def _is(condition: bool) -> bool:
    return condition


async def test_an_acl_without_dangerous_commands_is_enough(
    postgres_database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, starts: Starts
) -> None:
    async with AsyncExitStack() as stack:
        url = stack.enter_context(running_redis())
        redis = await stack.enter_async_context(client(url))
        await order(redis, "ACL SETUSER loop on >word ~loop:* ~arq:* +@all -@dangerous")
        here = Installation(postgres_database_url, url.replace("://", "://loop:word@"), tmp_path, stack)
        api, worker = await here.api(), await here.worker()
        await starts.insert(api, "a")
        await starts.all_started()
        await until(lambda: _is(is_up() == 1))
        await asyncio.sleep(2 * RETRY_AFTER_S)
        assert (arq_runner(api).unsent, arq_runner(worker).unsent) == (0, 0)
        limiter = await stack.enter_async_context(redis_limits.opened(here.redis_url, {RouteClass.READ: 1}))
        assert await limiter.redis_answers()
        assert await limiter.take(RouteClass.READ, "key_a")
        breakers = Breakers()
        for _ in range(MIN_CALLS):
            breakers.hear("pcf_1", Unknown("no answer"), now=system_now())
        own = Redis.from_url(here.redis_url, decode_responses=True)
        stack.push_async_callback(own.aclose)
        assert await SharedBreakers(own, breakers).share()
        assert await redis.exists("loop:breakers")
    assert told_of_wake_ups(caplog) == []


async def test_what_redis_refuses_empties_nobodys_queue(
    postgres_database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncExitStack() as stack:
        url = stack.enter_context(running_redis())
        redis = await stack.enter_async_context(client(url))
        await order(redis, "ACL SETUSER loop on >word ~loop:* ~arq:* +@all -zrangebyscore")
        await redis.zadd(QUEUE, {"another's": 1e15})
        here = Installation(postgres_database_url, url.replace("://", "://loop:word@"), tmp_path, stack)
        await here.worker()
        await asyncio.sleep(2 * RETRY_AFTER_S)
        assert await redis.zscore(QUEUE, "another's") == 1e15
        assert is_up() == 0
        (told,) = told_of_wake_ups(caplog)
    assert "NoPermissionError" in told


async def test_a_process_that_has_nothing_to_say_knows_whether_redis_is_there(
    postgres_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arq_module, "SENT_EVERY_S", 0.1)
    async with AsyncExitStack() as stack:
        with running_redis() as url:
            pass
        await Installation(postgres_database_url, url, tmp_path, stack).api()
        await until(lambda: _is(is_up() == 0))
        with running_redis(urlsplit(url).port):
            await until(lambda: _is(is_up() == 1))
        await until(lambda: _is(is_up() == 0))


async def test_a_redis_that_says_nothing_is_given_up_in_time(
    here: Installation, starts: Starts, caplog: pytest.LogCaptureFixture
) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    here.redis_url = f"redis://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    api, _ = await here.api(), await here.worker()
    await starts.insert(api, "a")
    await starts.all_started(within_s=WORST_S)

    async def have_both_said_so() -> bool:
        return sum("wake_ups.redis_away" in record.getMessage() for record in caplog.records) == 2

    await until(have_both_said_so)
    began = monotonic()
    await here.stack.aclose()
    assert monotonic() - began < WORST_S
    silent.close()
    await silent.wait_closed()


async def test_a_stop_is_heard_at_any_moment_and_the_last_word_is_sent(here: Installation) -> None:
    async with client(here.redis_url) as redis:
        for number in range(40):
            await redis.flushall()
            async with AsyncExitStack() as stack:
                one = Installation(here.database_url, here.redis_url, here.folder, stack)
                worker = await one.worker()
                arq_runner(worker)._called.set()
                await asyncio.sleep((1 + number) / 1_000)
                began = monotonic()
            assert monotonic() - began < RETRY_AFTER_S
            assert await redis.zcard(QUEUE) >= 1


async def test_redis_is_reached_by_tls_and_with_a_password(here: Installation, starts: Starts, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    cert = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(system_now() - timedelta(days=1))
        .not_valid_after(system_now() + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    plain_key = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pem = tmp_path / "redis.pem"
    pem.write_bytes(plain_key + cert.public_bytes(encoding))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pem)
    async with AsyncExitStack() as stack:
        url = urlsplit(stack.enter_context(running_redis()))
        async with client(url.geturl()) as redis:
            await redis.config_set("requirepass", "p@ss/word")

        async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            onward, back = await asyncio.open_connection("127.0.0.1", url.port)

            async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
                with suppress(OSError):
                    while content := await source.read(65_536):
                        target.write(content)
                target.close()

            await asyncio.gather(copy(reader, back), copy(onward, writer))

        ended = await asyncio.start_server(pass_on, "127.0.0.1", 0, ssl=tls)
        port = ended.sockets[0].getsockname()[1]
        here.redis_url = f"rediss://:p%40ss%2Fword@localhost:{port}/0?ssl_ca_certs={pem}&ssl_check_hostname=true"
        api, worker = await here.api(), await here.worker()
        await starts.insert(api, "a")
        await starts.all_started()

        async def has_called() -> bool:
            async with client(url._replace(netloc=f":p%40ss%2Fword@{url.netloc}").geturl()) as redis:
                return f"{QUEUE}:health-check".encode() in [each async for each in redis.scan_iter()]

        await until(has_called)
        await here.stack.aclose()
        ended.close()
        await ended.wait_closed()
        assert (arq_runner(api).unsent, arq_runner(worker).unsent) == (0, 0)
