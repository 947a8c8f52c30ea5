"""Wake-ups by way of Redis: nothing is lost and little is late, whatever Redis forgets, holds, or does not answer."""

import asyncio
import json
import logging
import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
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

from loop.runtime import opened, system_now
from loop.storage import jobs
from loop.storage.jobs import Job
from loop.workers import inline_runner
from loop.workers.arq_runner import ANSWER_WITHIN_S, KEPT_MS, LOOK, QUEUE, RETRY_AFTER_S, ArqRunner
from loop.workflows.context import Context
from loop.workflows.jobs import JOBS, JobKind
from tests.builders import Clock, job, open_shop, settings_for
from tests.servers import running_redis

ORDERS = 200
ORDERS_AT_ONCE = 4
WORST_S = 2.0
"""The longest that a job may wait for its start while Redis does what it likes: two of the worker's own looks."""

TROUBLE_EVERY_S = 0.02
AWAY_S = 1.5

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
        await context.database.write_at_once([jobs.insertion(job(key, run_at=system_now()))])
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


@pytest.mark.parametrize("trouble", [forget_all, go_and_come, be_poisoned])
async def test_orders_go_through_whatever_redis_does(
    postgres_database_url: str, tmp_path: Path, starts: Starts, trouble: Trouble
) -> None:
    async with AsyncExitStack() as stack:
        redis_url = stack.enter_context(running_redis())
        here = Installation(postgres_database_url, redis_url, tmp_path, stack)
        api, worker = await here.api(), await here.worker()
        shop = await open_shop(api, Clock())
        del worker
        troubling = asyncio.create_task(trouble(redis_url, stack))
        many = asyncio.Semaphore(ORDERS_AT_ONCE)

        async def sell(number: int) -> str:
            async with many:
                paid = await shop.paid(external_id=f"order {number}")
                await starts.insert(api, paid.order.id)
                return str(paid.order.status)

        statuses = await asyncio.gather(*(sell(number) for number in range(ORDERS)))
        await starts.all_started()
        assert not troubling.done()
        troubling.cancel()
        await asyncio.gather(troubling, return_exceptions=True)
    assert set(statuses) == {"captured"}
    assert starts.waits()[-1] <= WORST_S, starts.waits()[-5:]


async def test_the_queue_holds_nothing_of_an_order_and_keeps_nothing(here: Installation, starts: Starts) -> None:
    api = await here.api()
    await starts.insert(api, "secret")
    async with client(here.redis_url) as redis:

        async def entries() -> list[bytes]:
            return [bytes(each) for each in await redis.zrange(QUEUE, 0, -1)]

        async def is_called() -> bool:
            return len(await entries()) == 1

        await until(is_called)
        (entry,) = await entries()
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
            return not (arq_runner(api)._is_away or arq_runner(worker)._is_away)

        await until(are_back, within_s=10)
        await starts.insert(api, "after")
        await starts.all_started()
        told = [line for record in caplog.records if "wake_ups." in (line := record.getMessage())]
        assert sum("redis_away" in line for line in told) == 2  # a process each
        assert sum("redis_back" in line for line in told) == 2
        await here.stack.aclose()


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
