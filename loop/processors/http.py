"""HTTP to the outside: deadlines, what surely was not sent, and the guarded way to merchants' own addresses."""

import asyncio
import ipaddress
import socket
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import AddrInfoType, Connection

from loop.domain.attempts import Unknown
from loop.domain.deliveries import IpNetwork, may_connect
from loop.telemetry import transaction_is_open

CONNECT_S = 5.0
"""Longest time for a connection to open, name lookup and TLS included, in seconds."""

KEEP_ALIVE_S = 30.0
CONNECTIONS_MAX = 200
"""Connections that one session holds open, to all hosts together."""

CONNECTIONS_PER_HOST_MAX = 16
"""Connections of a merchants' session to one host and port."""

ANSWER_BYTES_MAX = 16 * 1024
"""How much of a merchant's answer is read."""

_T = TypeVar("_T")


class AddressRefusedError(Exception):
    """A host lies at an address that Loop must not connect to; nothing was sent."""


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


def public_session(allowed_networks: Sequence[IpNetwork]) -> aiohttp.ClientSession:
    """Return a session that only ever connects to public addresses, and to those in the allowed networks.

    Every address is checked when its connection is opened, whatever the host looks like: a name, an IP literal, or
    another spelling that the system's resolver takes for one. A name is refused when any of its addresses is.
    No cookies, no proxies from the environment, no decompression. Call inside the event loop; the caller closes it.
    """

    def checked_socket(address: AddrInfoType) -> socket.socket:
        family, kind, protocol, _, target = address
        _require_allowed(str(target[0]), allowed_networks)
        return socket.socket(family, kind, protocol)

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=CONNECTIONS_MAX,
            limit_per_host=CONNECTIONS_PER_HOST_MAX,
            keepalive_timeout=KEEP_ALIVE_S,
            resolver=_CheckedResolver(allowed_networks),
            socket_factory=checked_socket,
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept-Encoding": "identity"},
        timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_S),
        auto_decompress=False,
        response_class=_PeerResponse,
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """What a merchant's server answered: the first bytes of the body and the address that was connected to."""

    status: int
    head: bytes = field(repr=False)
    address: str | None


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

    Raises `AddressRefusedError`, TimeoutError, or `aiohttp.ClientError` for everything else that goes wrong.
    """
    require_no_transaction()
    async with (
        asyncio.timeout(timeout_s),
        session.post(url, data=body, headers=headers, allow_redirects=False) as response,
    ):
        head = bytearray()
        while chunk := await response.content.read(max_answer_bytes - len(head)):
            head += chunk
        if not response.content.at_eof():
            response.close()
        address = response.peer_address if isinstance(response, _PeerResponse) else None
        return Answer(response.status, bytes(head), address)


class _PeerResponse(aiohttp.ClientResponse):
    """A response that knows whom it came from, even after its connection went back to the pool."""

    peer_address: str | None = None

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        protocol = connection.protocol
        if isinstance(protocol, ResponseHandler) and protocol.transport is not None:
            peer = protocol.transport.get_extra_info("peername")
            self.peer_address = None if peer is None else str(peer[0])
        return await super().start(connection)


class _CheckedResolver(AbstractResolver):
    """The system's resolver, whose every answer is checked."""

    def __init__(self, allowed_networks: Sequence[IpNetwork]) -> None:
        self._resolver = aiohttp.ThreadedResolver()
        self._allowed = allowed_networks

    async def resolve(
        self, host: str, port: int = 0, *family: socket.AddressFamily, **named: socket.AddressFamily
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, *family, **named)
        for each in found:
            _require_allowed(each["host"], self._allowed)
        return found

    async def close(self) -> None:
        await self._resolver.close()


def _require_allowed(host: str, allowed: Sequence[IpNetwork]) -> None:
    if not may_connect(ipaddress.ip_address(host), allowed):
        raise AddressRefusedError(f"{host} is not a public address; the operator can allow its network")
