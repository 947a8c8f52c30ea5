"""HTTP to the outside: deadlines, what surely was not sent, and the guarded way to merchants' own addresses."""

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import AddrInfoType, Connection

from loop.domain.attempts import Unknown
from loop.domain.deliveries import IpAddress
from loop.domain.endpoint_urls import OWN_ADDRESS, Reach
from loop.telemetry import transaction_is_open

CONNECT_S = 5.0
"""Longest time for a connection to open, name lookup and TLS included, in seconds."""

KEEP_ALIVE_S = 30.0
CONNECTIONS_MAX = 200
"""Connections that the session of one processor holds open."""

ANSWER_BYTES_MAX = 16 * 1024
"""How much of a merchant's answer is read."""

HEADERS_MAX = 64
"""Headers of a merchant's answer; each may be 8,190 bytes long."""

HEADER_BYTES_MAX = 32 * 1024
"""Length of all headers of a merchant's answer together."""

_T = TypeVar("_T")


class AddressRefusedError(Exception):
    """A host lies at an address that Loop must not connect to; nothing was sent."""


class AnswerRefusedError(aiohttp.ClientError):
    """A merchant's server answered with more headers than anybody needs."""


class RedirectRefusedError(aiohttp.ClientError):
    """A processor answered with a redirect; it has had the request, which is not sent on to anybody else."""


def require_no_transaction() -> None:
    """Raise RuntimeError inside a database transaction: it would stay open for as long as the other side pleases."""
    if transaction_is_open.get():
        raise RuntimeError("a call to the outside was about to be made inside a database transaction")


async def within_deadline(timeout_s: float, call: Coroutine[object, object, _T]) -> _T | Unknown:
    """Await a call to a processor for at most `timeout_s` seconds; a call that takes longer ends as `Unknown`.

    Raises RuntimeError, before anything is sent, inside a database transaction.
    """
    try:
        require_no_transaction()
        async with asyncio.timeout(timeout_s):
            return await call
    except TimeoutError:
        return Unknown(f"no answer within {timeout_s:g} s")
    finally:
        call.close()


def is_surely_unsent(error: BaseException | None) -> bool:
    """Tell whether a request failed while its connection was opened: refused, unresolvable, no TLS, too slow.

    Anything else may have reached the other side.
    """
    return isinstance(
        error,
        aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | aiohttp.InvalidURL | AddressRefusedError,
    )


def processor_session() -> aiohttp.ClientSession:
    """Return a session for one processor's API: no cookies, no redirects, no proxies from the environment.

    Call inside the event loop; the caller closes it.
    """
    no_redirects = aiohttp.TraceConfig()
    no_redirects.on_request_redirect.append(_refuse_redirect)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX, keepalive_timeout=KEEP_ALIVE_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_S),
        trace_configs=[no_redirects],
    )


async def _refuse_redirect(
    _: aiohttp.ClientSession, _context: SimpleNamespace, params: aiohttp.TraceRequestRedirectParams
) -> None:
    params.response.close()
    raise RedirectRefusedError(f"a redirect ({params.response.status}) is not followed")


def public_session(reach: Reach, resolver: AbstractResolver | None = None) -> aiohttp.ClientSession:
    """Return a session that connects to no address but those within reach.

    Every address is checked when its connection is opened, whatever the host looks like: a name, an IP literal, or
    another spelling that the system's resolver takes for one. A name is refused when any of its addresses is. Whom a
    connection has really reached is checked again before each request. No cookies, no proxies from the environment, no
    decompression, and no bound on connections but the caller's own: whoever waited for one would be thought too slow.
    `resolver` takes the place of the system's. Call inside the event loop; the caller closes the session.
    """

    def checked_socket(address: AddrInfoType) -> socket.socket:
        family, kind, protocol, _, target = address
        _require_within(reach, str(target[0]), int(target[1]))
        return socket.socket(family, kind, protocol)

    return aiohttp.ClientSession(
        connector=_CheckedConnector(
            reach,
            resolver=_CheckedResolver(reach, resolver or aiohttp.ThreadedResolver()),
            socket_factory=checked_socket,
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept-Encoding": "identity"},
        timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_S),
        auto_decompress=False,
        max_headers=HEADERS_MAX,
        response_class=_PeerResponse,
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """What a merchant's server answered: the first bytes of the body and the address that was connected to."""

    status: int
    head: bytes = field(repr=False)
    address: str | None
    retry_after: str | None = None


async def post_signed(
    session: aiohttp.ClientSession,
    url: str,
    *,
    body: bytes,
    headers: Mapping[str, str],
    timeout_s: float,
    max_answer_bytes: int = ANSWER_BYTES_MAX,
) -> Answer:
    """Post exactly these bytes; a redirect is an answer like any other. `timeout_s` covers the answer's body too.

    Raises `AddressRefusedError`, `AnswerRefusedError`, TimeoutError, or `aiohttp.ClientError` for everything else that
    goes wrong.
    """
    require_no_transaction()
    async with (
        asyncio.timeout(timeout_s),
        session.post(url, data=body, headers=headers, allow_redirects=False) as response,
    ):
        if sum(len(name) + len(value) for name, value in response.raw_headers) > HEADER_BYTES_MAX:
            response.close()
            raise AnswerRefusedError(f"more than {HEADER_BYTES_MAX} bytes of headers")
        head = bytearray()
        while chunk := await response.content.read(max_answer_bytes - len(head)):
            head += chunk
        if not response.content.at_eof():
            response.close()
        address = response.peer_address if isinstance(response, _PeerResponse) else None
        return Answer(response.status, bytes(head), address, response.headers.get("Retry-After"))


class _PeerResponse(aiohttp.ClientResponse):
    """A response that knows whom it came from, even after its connection went back to the pool."""

    peer_address: str | None = None

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        protocol = connection.protocol
        if isinstance(protocol, ResponseHandler) and protocol.transport is not None:
            peer = protocol.transport.get_extra_info("peername")
            self.peer_address = None if peer is None else str(peer[0])
        return await super().start(connection)


class _CheckedConnector(aiohttp.TCPConnector):
    """A connector that looks at whom each of its connections has reached, before anything is sent."""

    def __init__(self, reach: Reach, *, resolver: AbstractResolver, socket_factory: aiohttp.SocketFactoryType) -> None:
        super().__init__(limit=0, keepalive_timeout=KEEP_ALIVE_S, resolver=resolver, socket_factory=socket_factory)
        self._reach = reach

    async def connect(self, req: aiohttp.ClientRequest, *rest: Any, **named: Any) -> Connection:  # noqa: ANN401
        connection = await super().connect(req, *rest, **named)
        peer = None if connection.transport is None else connection.transport.get_extra_info("peername")
        host, port = ("", 0) if peer is None else (str(peer[0]), int(peer[1]))
        try:
            _require_within(self._reach, host, port, is_tls=req.is_ssl())
        except AddressRefusedError:
            connection.close()
            raise
        return connection


class _CheckedResolver(AbstractResolver):
    """A resolver whose every answer is checked."""

    def __init__(self, reach: Reach, resolver: AbstractResolver) -> None:
        self._resolver = resolver
        self._reach = reach

    async def resolve(
        self, host: str, port: int = 0, *family: socket.AddressFamily, **named: socket.AddressFamily
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, *family, **named)
        for each in found:
            _require_within(self._reach, each["host"], port)
        return found

    async def close(self) -> None:
        await self._resolver.close()


def _require_within(reach: Reach, host: str, port: int, *, is_tls: bool = True) -> None:
    """Raise AddressRefusedError unless an address may be reached; what does not know of TLS yet takes it as given."""
    if refusal := _refusal(reach, host, port, is_tls=is_tls):
        raise AddressRefusedError(f"{host} {refusal}")


@lru_cache(maxsize=4096)  # asked for each request, and the answer does not change
def _refusal(reach: Reach, host: str, port: int, *, is_tls: bool) -> str:
    if not host:
        return "nobody knows whom the connection has reached"
    address = ipaddress.ip_address(host)
    refusal = reach.refusal(address, port, is_tls=is_tls)
    is_own = port == reach.own_port and reach.is_everywhere and _is_of_this_machine(address)
    return refusal or (OWN_ADDRESS if is_own else "")


def _is_of_this_machine(address: IpAddress) -> bool:
    """Tell whether an address is one of this machine's: nobody may bind to another."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
    return True
