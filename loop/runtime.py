"""The runtime: turns settings into resources and a context, and runs the chosen roles until told to stop."""

import asyncio
import fcntl
import gc
import os
import secrets
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from loop.config import Settings
from loop.config_files import unwritable
from loop.domain.errors import LoopError, configuration, unavailable
from loop.domain.roles import ALL, Role
from loop.processors.base import ProcessorSetup
from loop.processors.http import public_session
from loop.processors.registry import Registry
from loop.server.app import create_app
from loop.server.auth import flush_last_used
from loop.server.connections import KEEP_ALIVE_S, HttpProtocol
from loop.server.dashboard.listeners import listeners_of
from loop.server.rate_limits import Limiter, LocalLimiter, rates_of
from loop.storage import jobs, processor_configs
from loop.storage.database import Database
from loop.storage.database_clock import running_clock
from loop.storage.keyring import Keyring
from loop.storage.migrate import migrate, require_fit, schema_state
from loop.storage.postgres import open_postgres
from loop.storage.sqlite import SqliteDatabase, telling_of
from loop.telemetry import get_logger
from loop.workers import inline_runner
from loop.workers.exports import exporting
from loop.workers.inline_runner import InlineRunner
from loop.workers.schedule import run_schedule
from loop.workflows.context import Context
from loop.workflows.encryption_keys import require_loaded

log = get_logger(__name__)

STARTED_WITHIN_S = 10.0
FLUSH_EVERY_S = 30.0
SHARED_TRIES = 10
SHARED_EVERY_S = 0.01
ABANDONED_S = 1.0
"""How long before the end of a stop the requests that are not answered by then are given up."""

BACKLOG = 2048
COLLECT_AFTER = 20_000
"""How many more objects are made than freed between two rounds of the garbage collector."""


def system_now() -> datetime:
    """Return the machine's time: the one place where Loop reads it."""
    return datetime.now(UTC)  # noqa: TID251 - the clock that the context hands to everybody else


@dataclass(frozen=True, slots=True)
class Chance:
    """What a context takes from outside itself; tests and crash drills hand in their own."""

    now: Callable[[], datetime] | None = None
    """None for the database's clock on PostgreSQL, which all processes share, and else this machine's."""
    random_bytes: Callable[[int], bytes] = secrets.token_bytes
    reached: Callable[[str], None] = lambda _point: None


@dataclass(frozen=True, slots=True)
class Running:
    """A Loop that serves: its context and its address."""

    context: Context
    url: str


@asynccontextmanager
async def opened(
    settings: Settings,
    chance: Chance | None = None,
    *,
    runner: InlineRunner | None = None,
    is_rotating: bool = False,
    may_lack_keys: bool = False,
) -> AsyncIterator[Context]:
    """Open what workflows need, for a command that runs one and ends; jobs that it starts run here too.

    Whoever rotates the encryption keys has a SQLite file's to itself. Raises `unavailable` when the database is away,
    `schema_outdated` when Postgres waits for `loop migrate`, `schema_newer` when this version may not run on what a
    newer one has made, and, unless keys may be lacking, `encryption_key_needed` when a stored secret is under one that
    is not loaded.
    """
    outside = chance or Chance()
    async with AsyncExitStack() as stack:
        if settings.sqlite_path is not None:
            stack.enter_context(telling_of(settings.sqlite_path))
        stack.enter_context(_keys_held(settings, is_rotating=is_rotating))
        database = await _open_database(settings)
        stack.push_async_callback(database.close)
        now = outside.now
        if now is None:
            now = await stack.enter_async_context(_clock(settings, database))
        keyring = Keyring([key.reveal() for key in (settings.encryption_key, *settings.encryption_keys_previous)])
        if not may_lack_keys:
            async with database.reading() as reader:
                await require_loaded(reader, keyring)
        sender = await stack.enter_async_context(public_session(settings.webhook_reach))
        processors = Registry(lambda name: _setup(settings, name))
        stack.push_async_callback(processors.close)
        runner = runner or InlineRunner(settings.job_concurrency)
        stack.push_async_callback(runner.stop)
        yield Context(
            settings=settings,
            database=database,
            keyring=keyring,
            processors=processors,
            webhook_sender=sender,
            runner=runner,
            now=now,
            random_bytes=outside.random_bytes,
            reached=outside.reached,
        )


async def _open_database(settings: Settings) -> Database:
    if settings.sqlite_path is not None:
        await migrate(settings.database_url)
        return SqliteDatabase(settings.sqlite_path)
    require_fit(await schema_state(settings.database_url))
    return await open_postgres(
        settings.database_url, settings.database_pool_size, is_pooled=settings.is_database_pooled
    )


@asynccontextmanager
async def _clock(settings: Settings, database: Database) -> AsyncIterator[Callable[[], datetime]]:
    if settings.is_sqlite:
        yield system_now
        return
    async with running_clock(database, system_now) as now:
        yield now


def _setup(settings: Settings, name: str) -> ProcessorSetup:
    bases: Mapping[str, str] = {"stripe": settings.stripe_api_base, "razorpay": settings.razorpay_api_base}
    return ProcessorSetup(
        api_base=bases.get(name),
        timeout_s=settings.processor_timeout_s,
        public_url=settings.checkout_base_url,
        challenge_secret=sha256(b"sandbox pages" + settings.jwt_secret.reveal().encode()).digest(),
    )


def spare_collector() -> None:
    """Take what a server keeps until it ends out of the garbage collector's rounds, and have fewer of them.

    For a process that does nothing but serve. Nearly everything of a request is freed by its reference count; going
    through the tables, statements and routes that stay, again and again, is what the slowest requests waited for.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])


def only_process(settings: Settings) -> AbstractContextManager[None]:
    """Hold a SQLite file for this process alone; a second one is refused, a killed one's hold is gone at once."""
    refusal = configuration(
        "already_running",
        f"Another `loop serve` works on {settings.sqlite_path}: stop it, or use Postgres to run several.",
    )
    return _locked(settings, "lock", fcntl.LOCK_EX, refusal)


def _is_alone(settings: Settings) -> bool:
    """Tell whether no other process, not even a command, has a SQLite file open: all hold the keys who do."""
    try:
        with _keys_held(settings, is_rotating=True):
            return True
    except LoopError:
        return False


def _keys_held(settings: Settings, *, is_rotating: bool) -> AbstractContextManager[None]:
    """Hold a SQLite file's encryption keys: with all who use them, or alone to replace them.

    Whoever wrote under a key that a rotation drops would have written what nobody can read.
    """
    path = settings.sqlite_path
    if is_rotating:
        message = f"A Loop works on {path}: stop it, rotate the keys, and start it again."
        return _locked(settings, "keys.lock", fcntl.LOCK_EX, configuration("already_running", message))
    message = f"The encryption keys of {path} are being rotated; try again when that is done."
    return _locked(settings, "keys.lock", fcntl.LOCK_SH, configuration("keys_rotating", message))


@contextmanager
def _locked(settings: Settings, suffix: str, operation: int, refusal: LoopError) -> Iterator[None]:
    """Hold a lock of the system's beside a SQLite file, or raise the refusal; no lock with Postgres.

    A lock that is shared is tried for a moment: a process that starts has it alone for as long as that takes to see.
    """
    if settings.sqlite_path is None:
        yield
        return
    lock_path = settings.sqlite_path.with_name(f"{settings.sqlite_path.name}.{suffix}")
    try:
        lock = Path.open(lock_path, "a")
    except OSError as error:
        raise unwritable(lock_path, error) from error
    with lock:
        for tries_left in reversed(range(SHARED_TRIES if operation == fcntl.LOCK_SH else 1)):
            try:
                fcntl.flock(lock, operation | fcntl.LOCK_NB)
                break
            except OSError as error:
                if not tries_left:
                    raise refusal from error
                time.sleep(SHARED_EVERY_S)
        yield


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers: the runtime decides when to stop."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


@asynccontextmanager
async def running(
    settings: Settings,
    chance: Chance | None = None,
    *,
    roles: Collection[Role] = ALL,
    stopping: asyncio.Event | None = None,
) -> AsyncIterator[Running]:
    """Serve some roles in this process until the block ends; a worker answers only whether it is well.

    Shutdown order: no more jobs are claimed or scheduled and no requests taken, those that run end (within
    `SHUTDOWN_S` of the beginning, all of them), then everything is let go of. A part that fails is told by `stopping`,
    and raised in the end. Raises `roles_need_postgres` for less than all roles on SQLite.
    """
    if settings.is_sqlite and set(roles) != ALL:
        raise configuration(
            "roles_need_postgres",
            f"One process does everything on {settings.sqlite_path}, a SQLite file: leave out --only, or use "
            "PostgreSQL to divide the work among processes.",
        )
    runner = _runner(settings)
    with only_process(settings):
        began = ((chance or Chance()).now or system_now)()
        is_alone = settings.is_sqlite and _is_alone(settings)
        async with opened(settings, chance, runner=runner) as context, exporting(context):
            if is_alone:  # who held a lease then is dead; a command that has begun since has its own
                async with context.database.transaction() as session:
                    await jobs.free_leases(session, context.now(), taken_until=began)
            await _warm_up(context)
            background = _Background(stopping or asyncio.Event())
            background.start("flush", _flush_last_used(context))
            background.start("wake-ups sent", runner.send())
            background.start("breakers", _share_breakers(context))
            if Role.WORKER in roles:
                background.start("jobs", runner.run(context))
                background.start("schedule", run_schedule(context))
            try:
                async with (
                    _limiter(context) as limiter,
                    _listening(settings, create_app(context, limiter, roles=roles)) as url,
                ):
                    log.info("loop.started", url=url, roles=sorted(roles))
                    try:
                        yield Running(context, url)
                    finally:
                        runner.stop_claiming()
                        background.cancel("schedule")
                        listeners_of(context).close()
            finally:
                await runner.stop()
                await background.end()
                await flush_last_used(context)
                log.info("loop.stopped")
            background.require_well()


class _Background:
    """What a serving process does besides answering: tasks none of which may fail without anybody noticing."""

    def __init__(self, stopping: asyncio.Event) -> None:
        self._stopping = stopping
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str, work: Coroutine[None, None, None]) -> None:
        """Begin something; should it fail, the process is to stop, and its supervisor starts a well one."""
        self._tasks[name] = task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._note_end)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        try:
            task.result()
        except Exception:
            log.exception("loop.part_failed", part=task.get_name())
            self._stopping.set()

    def cancel(self, name: str) -> None:
        """End one of them, if it was begun."""
        if name in self._tasks:
            self._tasks[name].cancel()

    async def end(self) -> None:
        """End all of them."""
        for name in self._tasks:
            self.cancel(name)
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def require_well(self) -> None:
        """Raise what one of them has failed with."""
        for task in self._tasks.values():
            if not task.cancelled():
                task.result()


def _runner(settings: Settings) -> InlineRunner:
    if settings.redis_url is None:
        return InlineRunner(settings.job_concurrency)
    from loop.workers.arq_runner import ArqRunner  # noqa: PLC0415 - a process without Redis starts faster

    return ArqRunner(settings.job_concurrency, settings.redis_url)


async def _share_breakers(context: Context) -> None:
    if context.settings.redis_url is not None:
        from loop.workers.redis_breakers import share_breakers  # noqa: PLC0415 - as above

        await share_breakers(context.settings.redis_url, context.breakers)


async def _warm_up(context: Context) -> None:
    """Import the adapters in use before the first request, which need not wait half a second for a vendor's SDK."""
    async with context.database.reading() as reader:
        in_use = await processor_configs.processors_in_use(reader)
    for name in in_use:
        if name in context.processors.names():
            context.processors.get(name)


@asynccontextmanager
async def _listening(settings: Settings, app: ASGIApp) -> AsyncIterator[str]:
    tls = _tls(settings)
    listener = _bind(settings)
    config = uvicorn.Config(
        app,
        http=HttpProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=trusted_hosts(settings.trusted_proxies),
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(inline_runner.SHUTDOWN_S - ABANDONED_S),
        backlog=BACKLOG,
    )
    config.load()
    config.ssl = tls
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    try:
        async with asyncio.timeout(STARTED_WITHIN_S):
            while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn offers a flag, not an event
                await asyncio.sleep(0.005)
        if serving.done():
            serving.result()
            raise unavailable("not_started", "The HTTP server ended at once; see the log.")
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        yield f"{'https' if tls else 'http'}://{host}:{settings.port}"
    finally:
        server.should_exit = True
        with suppress(asyncio.CancelledError):
            await serving
        listener.close()


@asynccontextmanager
async def _limiter(context: Context) -> AsyncIterator[Limiter]:
    rates, redis_url = rates_of(context.settings), context.settings.redis_url
    if redis_url is None:
        yield LocalLimiter(rates)
        return
    from loop.server.redis_limits import opened as redis_opened  # noqa: PLC0415 - a process without Redis starts faster

    async with redis_opened(redis_url, rates) as limiter:
        with context.vitals.looking_also(limiter.redis_answers):
            yield limiter


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password="")  # or OpenSSL asks on the terminal
    except OSError as error:  # ssl.SSLError is one
        raise configuration(
            "unusable_certificate",
            f"{settings.tls_cert} and {settings.tls_key} are no certificate and its key without a passphrase, in PEM, "
            f"that this process may read ({error.strerror or type(error).__name__}).",
        ) from error
    return context


def trusted_hosts(proxies: Sequence[IPv4Network | IPv6Network]) -> list[str]:
    """Return networks as uvicorn takes them: an IPv6 socket shows callers by IPv4 under ::ffff:0:0/96."""
    mapped = [f"::ffff:{each.network_address}/{96 + each.prefixlen}" for each in proxies if each.version == 4]
    return [*map(str, proxies), *mapped]


def _bind(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # Named as TCP, so that asyncio sends small answers at once (TCP_NODELAY) instead of waiting for an acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise configuration(
            "port_in_use", f"Cannot listen on {settings.host}:{settings.port} ({os.strerror(error.errno or 0)})."
        ) from error
    return listener


async def _flush_last_used(context: Context) -> None:
    while True:
        await asyncio.sleep(FLUSH_EVERY_S)
        try:
            await flush_last_used(context)
        except Exception:
            log.exception("api_keys.not_flushed")
