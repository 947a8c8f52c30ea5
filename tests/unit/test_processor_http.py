"""Calls to the outside over real sockets: deadlines, and merchants' addresses that must not be connected to."""

import asyncio
import gzip
import ipaddress
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from loop.domain.attempts import Unknown
from loop.domain.endpoint_urls import Reach
from loop.processors.http import (
    ANSWER_BYTES_MAX,
    AddressRefusedError,
    Answer,
    RedirectRefusedError,
    is_surely_unsent,
    post_signed,
    processor_session,
    public_session,
    within_deadline,
)
from loop.telemetry import open_transaction

LOOPBACK = Reach((ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")))
NOWHERE = Reach()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Merchant:
    """A merchant's server that remembers the requests it got and the connections they came over."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.requests: list[tuple[web.Request, bytes]] = []
        self.connections: set[object] = set()
        self.port = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request, await request.read()))
        self.connections.add(request.transport)
        return await self.handler(request)


async def thanks(_: web.Request) -> web.StreamResponse:
    return web.Response(text="thanks", headers={"Set-Cookie": "session=1"})


@asynccontextmanager
async def merchant(handler: Handler = thanks) -> AsyncIterator[Merchant]:
    server = Merchant(handler)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, max_headers=1_000)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.port = runner.addresses[0][1]
    try:
        yield server
    finally:
        await runner.cleanup()


async def post(session: aiohttp.ClientSession, url: str, timeout_s: float = 5.0) -> Answer:
    return await post_signed(session, url, body=b'{"id":"evt_1"}', headers={"webhook-id": "evt_1"}, timeout_s=timeout_s)


async def test_posts_the_bytes_and_tells_whom_it_reached() -> None:
    async with merchant() as server, public_session(LOOPBACK) as session:
        assert await post(session, f"http://127.0.0.1:{server.port}/hook") == Answer(200, b"thanks", "127.0.0.1")
        request, body = server.requests[0]
        assert body == b'{"id":"evt_1"}'
        assert (request.method, request.headers["webhook-id"]) == ("POST", "evt_1")


async def test_connection_is_kept_and_cookies_are_not() -> None:
    async with merchant() as server, public_session(LOOPBACK) as session:
        for _ in range(3):
            await post(session, f"http://localhost:{server.port}/hook")  # an IP literal would get no cookies anyway
        assert len(server.requests) == 3
        assert len(server.connections) == 1
        assert not any("Cookie" in request.headers for request, _ in server.requests)


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with merchant() as server, public_session(LOOPBACK) as session:
        assert (await post(session, f"http://127.0.0.1:{server.port}/hook")).status == 200


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "127.0.0.2", "0.0.0.1", "[::]", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254",
     "[64:ff9b::a9fe:a9fe]", "[2002:7f00:1::]", "10.0.0.1", "224.0.0.1", "[fe80::1]"],
)  # fmt: skip
async def test_private_address_is_never_connected_to(host: str) -> None:
    async with merchant() as server, public_session(NOWHERE) as session:
        with pytest.raises(AddressRefusedError) as caught:
            await post(session, f"http://{host}:{server.port}/hook")
        assert is_surely_unsent(caught.value)
        assert server.connections == set()


@pytest.mark.parametrize("host", ["2130706433", "127.1", "0177.0.0.1"])
async def test_odd_spelling_of_an_address_is_refused(host: str) -> None:
    async with merchant() as server, public_session(NOWHERE) as session:
        with pytest.raises((AddressRefusedError, aiohttp.InvalidURL)) as caught:
            await post(session, f"http://{host}:{server.port}/hook")
        assert is_surely_unsent(caught.value)
        assert server.connections == set()


POST_EACH = """
import asyncio, sys
from loop.domain.endpoint_urls import Reach
from loop.processors.http import post_signed, public_session

async def main():
    async with public_session(Reach()) as session:
        for host in sys.argv[2:]:
            try:
                await post_signed(session, f"http://{host}:{sys.argv[1]}/", body=b"", headers={}, timeout_s=5)
            except Exception as error:
                print(host, type(error).__name__)

asyncio.run(main())
"""


async def test_spelling_that_only_the_resolver_knows_is_refused() -> None:
    hosts = ["0x7f000001", "0x7f.0.0.1", "localhost."]
    async with merchant() as server:
        # A process of its own: this one looks no name up, and to it these are names.
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", POST_EACH, str(server.port), *hosts, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await child.communicate()
        refused = dict(line.split() for line in output.decode().splitlines())
        assert set(refused) == set(hosts)
        assert set(refused.values()) <= {"AddressRefusedError", "ClientConnectorDNSError"}
        assert refused["0x7f000001"] == refused["0x7f.0.0.1"] == "AddressRefusedError"
        assert server.connections == set()


async def test_name_is_refused_for_one_private_address(monkeypatch: pytest.MonkeyPatch) -> None:
    async def both(_: str, port: int, **_named: object) -> list[tuple[object, ...]]:
        addresses = ("93.184.215.14", "127.0.0.1")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    async with public_session(NOWHERE) as session:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", both)
        with pytest.raises(AddressRefusedError, match=r"127\.0\.0\.1"):
            await post(session, "http://shop.example/hook")


async def test_only_the_allowed_network_is_allowed() -> None:
    async with merchant() as server, public_session(Reach((ipaddress.ip_network("127.0.0.1/32"),))) as session:
        assert (await post(session, f"http://127.0.0.1:{server.port}/")).address == "127.0.0.1"
        with pytest.raises(AddressRefusedError):
            await post(session, f"http://127.0.0.3:{server.port}/")


async def test_redirect_is_an_answer() -> None:
    async def elsewhere(_: web.Request) -> web.StreamResponse:
        raise web.HTTPTemporaryRedirect("/elsewhere")

    async with merchant(elsewhere) as server, public_session(LOOPBACK) as session:
        assert (await post(session, f"http://127.0.0.1:{server.port}/hook")).status == 307
        assert [request.path for request, _ in server.requests] == ["/hook"]


async def test_compressed_answer_is_left_alone() -> None:
    packed = gzip.compress(b"0" * 1_000_000)

    async def bomb(_: web.Request) -> web.StreamResponse:
        return web.Response(body=packed, headers={"Content-Encoding": "gzip"})

    async with merchant(bomb) as server, public_session(LOOPBACK) as session:
        assert (await post(session, f"http://127.0.0.1:{server.port}/")).head == packed
        assert server.requests[0][0].headers["Accept-Encoding"] == "identity"


async def test_slow_body_ends_at_the_deadline() -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b".")
            await asyncio.sleep(0.05)

    async with merchant(drip) as server, public_session(LOOPBACK) as session:
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            await post(session, f"http://127.0.0.1:{server.port}/", timeout_s=0.3)
        assert 0.25 < time.monotonic() - started < 1.3


async def test_endless_body_is_cut() -> None:
    ended = asyncio.Event()

    async def flood(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 10_000)
        finally:
            ended.set()

    async with merchant(flood) as server, public_session(LOOPBACK) as session:
        answer = await post(session, f"http://127.0.0.1:{server.port}/")
        assert answer.head == b"x" * ANSWER_BYTES_MAX
        async with asyncio.timeout(2):
            await ended.wait()
        server.handler = thanks
        assert (await post(session, f"http://127.0.0.1:{server.port}/")).head == b"thanks"


@pytest.mark.parametrize("headers", [{"X-Long": "x" * 20_000}, {f"X-{n}": "x" for n in range(200)}])
async def test_huge_headers_are_refused(headers: dict[str, str]) -> None:
    async def boast(_: web.Request) -> web.StreamResponse:
        return web.Response(headers=headers)

    async with merchant(boast) as server, public_session(LOOPBACK) as session:
        with pytest.raises(aiohttp.ClientError):
            await post(session, f"http://127.0.0.1:{server.port}/")


async def test_nothing_is_posted_inside_a_transaction() -> None:
    async with merchant() as server, public_session(LOOPBACK) as session:
        with open_transaction(), pytest.raises(RuntimeError, match="transaction"):
            await post(session, f"http://127.0.0.1:{server.port}/")
        assert server.requests == []


async def test_processor_is_not_followed_to_another_address() -> None:
    async def elsewhere(_: web.Request) -> web.StreamResponse:
        raise web.HTTPTemporaryRedirect("/elsewhere")

    async with merchant(elsewhere) as server, processor_session() as session:
        with pytest.raises(RedirectRefusedError) as caught:
            await session.post(f"http://127.0.0.1:{server.port}/charge")
        assert not is_surely_unsent(caught.value)
        assert [request.path for request, _ in server.requests] == ["/charge"]


async def answer_after(delay_s: float) -> str:
    await asyncio.sleep(delay_s)
    return "answer"


async def test_call_within_its_deadline_returns() -> None:
    assert await within_deadline(5, answer_after(0)) == "answer"


async def test_call_beyond_its_deadline_is_unknown() -> None:
    outcome = await within_deadline(0.05, answer_after(5))
    assert isinstance(outcome, Unknown)
    assert "0.05 s" in outcome.reason


async def test_call_inside_a_transaction_is_never_started() -> None:
    with open_transaction(), pytest.raises(RuntimeError, match="transaction"):
        await within_deadline(5, answer_after(0))
