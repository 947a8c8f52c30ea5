"""Cities: an installation of several processes, with a fault on each of its ways, its processors and its merchant."""

import asyncio
import itertools
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from loop import config
from loop.runtime import opened
from loop.testing.stub_psp import StubProcessor
from tests.e2e.houses import GONE, AttentiveMerchant, free_port, listening
from tests.e2e.mischief import Chance
from tests.e2e.roles import Estate, Part, estate
from tests.e2e.towns import furnish
from tests.faults.databases import MortalPostgres, MortalRedis, Rows, mortal_redis
from tests.faults.proxies import Proxy
from tests.faults.recoveries import Recoveries
from tests.faults.sales import ImpatientShop

CALL_S = 4
"""How long Loop waits for a processor here, in seconds."""

CLIENT_S = 12.0
"""How long the merchant's program waits for an answer until it asks the other API, in seconds."""

BRINGS_MAX, BRING_AGAIN_S = 600, 0.3
"""How often a processor brings a webhook that is not taken, and after how long again, in seconds."""

HESITATES_MAX_S = 120.0
"""How long there may be nothing to deliver: two leases, while other faults go on."""

STEADY, VICTIM = 0, 1
"""Of two processes of a role, the one that lives as long as the city and the one that is killed."""


@dataclass
class Carrier:
    """Takes the processors' webhooks, and brings each to an API until one takes it, as processors do for days."""

    session: aiohttp.ClientSession
    front: Proxy
    is_holding: bool = False
    """Whether they stay where they are for now."""
    refused: list[str] = field(default_factory=list)
    _ways: set["asyncio.Task[None]"] = field(default_factory=set)
    _held: list[tuple[str, bytes, dict[str, str]]] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name not in ("Host", "Content-Length")}
        webhook = request.path, await request.read(), headers
        if self.is_holding:
            self._held.append(webhook)
        else:
            self._bring(webhook)
        return web.Response()

    def release(self, chance: Chance) -> int:
        """Bring what was held, in any order; return how much that was."""
        self.is_holding = False
        held, self._held = self._held, []
        chance.shuffle(held)
        for webhook in held:
            self._bring(webhook)
        return len(held)

    async def settled(self) -> None:
        """Wait until everything has been brought."""
        while self._ways:
            await asyncio.wait(set(self._ways))

    async def close(self) -> None:
        """Stop bringing."""
        for task in self._ways:
            task.cancel()
        await asyncio.gather(*self._ways, return_exceptions=True)

    def _bring(self, webhook: tuple[str, bytes, dict[str, str]]) -> None:
        task = asyncio.create_task(self._carry(*webhook))
        self._ways.add(task)
        task.add_done_callback(self._ways.discard)

    async def _carry(self, path: str, body: bytes, headers: dict[str, str]) -> None:
        url = f"http://127.0.0.1:{self.front.port}{path}"
        for _ in range(BRINGS_MAX):
            with suppress(*GONE, TimeoutError):
                async with self.session.post(url, data=body, headers=headers) as answer:
                    if answer.status == 200:
                        return
                    if answer.status != 503:
                        self.refused.append(f"{answer.status} {await answer.text()}")
                        return
            await asyncio.sleep(BRING_AGAIN_S)
        self.refused.append("never taken")


@dataclass
class HesitantMerchant(AttentiveMerchant):
    """A merchant's server that can keep whoever delivers waiting for a while."""

    _answering: asyncio.Event = field(default_factory=asyncio.Event)
    _asked: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._answering.set()

    async def take(self, request: web.Request) -> web.StreamResponse:
        if not self._answering.is_set():
            self._asked.set()
            await self._answering.wait()
        return await super().take(request)

    @asynccontextmanager
    async def hesitating(self) -> AsyncIterator[None]:
        """Run the block while somebody waits for an answer, who then gets it."""
        self._answering.clear()
        self._asked.clear()
        try:
            async with asyncio.timeout(HESITATES_MAX_S):
                await self._asked.wait()
            yield
        finally:
            self._answering.set()


@dataclass
class Ways:
    """The proxies on the connections to the databases, to the processors, and from browsers and processors to Loop."""

    database: Proxy
    redis: Proxy
    processors: Proxy
    front: Proxy


@dataclass(frozen=True)
class Use:
    """Memory, in MiB, and open files of a steady API and a steady worker."""

    api_mib: int
    api_files: int
    worker_mib: int
    worker_files: int


def _need_of(pid: int) -> tuple[int, int]:
    process = Path(f"/proc/{pid}")
    (line,) = (line for line in (process / "status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) // 1024, len(list((process / "fd").iterdir()))


@dataclass
class City:
    """Everything of one test."""

    estate: Estate
    ways: Ways
    postgres: MortalPostgres
    redis: MortalRedis
    stub: StubProcessor
    carrier: Carrier
    merchant: HesitantMerchant
    table: Rows
    recoveries: Recoveries
    chance: Chance
    key: str = ""
    apis: list[Part] = field(default_factory=list)
    workers: list[Part] = field(default_factory=list)
    _interruption: asyncio.Lock = field(default_factory=asyncio.Lock)
    """A process that begins wants its database."""
    _next: Iterator[int] = field(default_factory=itertools.count)

    @property
    def url(self) -> str:
        """An API's address, each time the next one's."""
        return self.apis[next(self._next) % len(self.apis)].url

    def rows(self, query: str, *arguments: object) -> list[dict[str, Any]]:
        """Read what is committed."""
        return self.table.rows(query, *arguments)

    def address(self) -> tuple[str, int]:
        """Return where an API listens."""
        return "127.0.0.1", int(self.url.rpartition(":")[2])

    @asynccontextmanager
    async def interrupting(self) -> AsyncIterator[None]:
        """Run a block in which the database is away or a process is replaced: one at a time."""
        async with self._interruption, self.recoveries.hindered():
            yield

    def of(self, role: str) -> list[Part]:
        """Return the processes of a role."""
        return self.apis if role == "api" else self.workers

    async def kill(self, role: str) -> None:
        """Kill a process in the middle of whatever it does; another one begins in its place."""
        async with self.interrupting():
            victim = self.of(role)[VICTIM]
            assert await victim.end(signal.SIGKILL) == -signal.SIGKILL, victim.said()[-5_000:]
            self.recoveries.ended(f"kill -9 of {_a(role)}", surely=await self.recoveries.held())
            self.of(role)[VICTIM] = await self.estate.begin("--only", role)

    async def replace(self, role: str) -> None:
        """Start another process and end one as a rolling deployment does."""
        async with self.interrupting():
            old, new = self.of(role)[VICTIM], await self.estate.begin("--only", role)
            self.of(role)[VICTIM] = new
            code = await old.end(within_s=config.JOB_LEASE_S)
            assert code == 0, (code, old.said()[-5_000:])
        self.recoveries.ended(f"SIGTERM of {_a(role)} that another one follows")

    def use(self) -> "Use":
        """Return what the processes need that live as long as the city."""
        (api_mib, api_files), (worker_mib, worker_files) = (
            _need_of(self.of(role)[STEADY].process.pid) for role in ("api", "worker")
        )
        return Use(api_mib, api_files, worker_mib, worker_files)

    def said(self) -> str:
        """Return what all processes have written."""
        return "".join(part.said() for part in self.estate.parts)


def _a(role: str) -> str:
    return f"an {role}" if role == "api" else f"a {role}"


@asynccontextmanager
async def city(folder: Path, postgres: MortalPostgres, chance: Chance) -> AsyncIterator[tuple[City, ImpatientShop]]:
    """Yield a city with two processes of each role, and its merchant's program."""
    async with AsyncExitStack() as stack:
        stub = await stack.enter_async_context(StubProcessor(ledger_path=folder / "ledger"))
        redis = stack.enter_context(mortal_redis(free_port()))
        stub_port = int(stub.url.rpartition(":")[2])
        ways = Ways(
            Proxy(lambda: postgres.socket),
            Proxy(lambda: ("127.0.0.1", redis.port)),
            Proxy(lambda: ("127.0.0.1", stub_port)),
            Proxy(lambda: here.address()),  # noqa: PLW0108 - there is none yet
        )
        for way in (ways.database, ways.redis, ways.processors, ways.front):
            await way.accept()
            stack.push_async_callback(way.close)
        table = Rows(postgres.url)
        stack.push_async_callback(table.close)
        timeout = aiohttp.ClientTimeout(sock_connect=CLIENT_S, sock_read=CLIENT_S)
        connector = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector, timeout=timeout))
        merchant, carrier = HesitantMerchant(), Carrier(session, ways.front)
        stack.push_async_callback(carrier.close)
        app = web.Application()
        app.router.add_post("/hooks", merchant.take)
        app.router.add_post("/webhooks/{processor}/{config_id}", carrier.take)
        url = await stack.enter_async_context(listening(app))
        merchant.url = f"{url}/hooks"
        made = await stack.enter_async_context(
            estate(folder, postgres.url_at(ways.database.port), f"redis://127.0.0.1:{ways.redis.port}")
        )
        stub_through = f"http://127.0.0.1:{ways.processors.port}"
        made.environment = {
            **made.environment,
            "CHECKOUT_BASE_URL": f"http://127.0.0.1:{ways.front.port}",
            "STRIPE_API_BASE": stub_through,
            "RAZORPAY_API_BASE": stub_through,
            "LOOP_PROCESSOR_TIMEOUT_S": str(CALL_S),
        }
        here = City(made, ways, postgres, redis, stub, carrier, merchant, table, Recoveries(table), chance)
        async with opened(config.load(environ=made.environment)) as context:
            here.key = await furnish(context, stub, merchant.url, relay_url=url)
        here.apis = list(await asyncio.gather(*(made.begin("--only", "api") for _ in range(2))))
        here.workers = list(await asyncio.gather(*(made.begin("--only", "worker") for _ in range(2))))
        yield here, ImpatientShop(session, here, merchant, stub.url, table=table, stub_through=stub_through)
