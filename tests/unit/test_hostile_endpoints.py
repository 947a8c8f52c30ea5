"""Endpoints that mean harm: whatever they answer, or do not, one post ends in time, and reaches nobody but them."""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from loop.domain.deliveries import IpAddress
from loop.domain.endpoint_urls import Reach
from loop.processors.http import (
    ANSWER_BYTES_MAX,
    HEADER_BYTES_MAX,
    AddressRefusedError,
    Answer,
    AnswerRefusedError,
    _CheckedConnector,
    _is_of_this_machine,
    post_signed,
    public_session,
)

NETWORKS = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
LOOPBACK = Reach(NETWORKS)
DEADLINE_S = 0.4
SLACK_S = 1.5
"""What a machine under load may take beyond the deadline."""

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Speaks TCP as a test tells it to, and counts who came."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.connections = 0
        self.sent = 0
        self.port = 0
        self.serving: set[asyncio.Task[None]] = set()

    def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.serving.add(asyncio.create_task(self._behave(reader, writer)))

    async def _behave(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await self.behaviour(reader, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()

    async def send(self, writer: asyncio.StreamWriter, part: bytes) -> None:
        writer.write(part)
        await writer.drain()
        self.sent += len(part)


@asynccontextmanager
async def listening(
    behaviour: Behaviour, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    server = Server(behaviour)
    listener = await asyncio.start_server(server.serve, host, 0, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for task in server.serving:
            task.cancel()
        await asyncio.gather(*server.serving, return_exceptions=True)


async def post(session: aiohttp.ClientSession, url: str, timeout_s: float = DEADLINE_S) -> Answer:
    return await post_signed(session, url, body=b'{"id":"evt_1"}', headers={}, timeout_s=timeout_s)


async def thank(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")


async def hang(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


def dripping(head: bytes, each: bytes, pause_s: float) -> Behaviour:
    """Send a beginning, and then the same again and again without end."""

    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while not writer.is_closing():
            writer.write(each)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return drip


@pytest.mark.parametrize(
    "behaviour",
    [
        hang,
        dripping(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x", 0.02),
        dripping(b"HTTP/1.1 200 OK\r\n", b"X-More: y\r\n", 0.03),
        dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b".", 0.1),
        dripping(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n.\r\n", 0.02),
        dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.02),
    ],
    ids=["hang", "slow header", "many slow headers", "slow body", "slow chunks", "endless continue"],
)
async def test_who_takes_for_ever_is_left_at_the_deadline(behaviour: Behaviour) -> None:
    async with listening(behaviour) as server, public_session(LOOPBACK) as session:
        started = time.monotonic()
        with pytest.raises((TimeoutError, aiohttp.ClientError)):
            await post(session, f"http://127.0.0.1:{server.port}/")
        assert time.monotonic() - started < DEADLINE_S + SLACK_S


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\ntoo short",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"220 mail.example ESMTP\r\n",
        b"\x00" * 5_000,
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
    ],
)
async def test_what_is_no_answer_is_an_error_at_once(answer: bytes) -> None:
    async def say(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    async with listening(say) as server, public_session(LOOPBACK) as session:
        with pytest.raises(aiohttp.ClientError):
            await post(session, f"http://127.0.0.1:{server.port}/", timeout_s=5)


async def test_a_reset_is_an_error() -> None:
    async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with listening(reset) as server, public_session(LOOPBACK) as session:
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            await post(session, f"http://127.0.0.1:{server.port}/")


@pytest.mark.parametrize("each", [b"x" * 10_000, b"x: " + b"y" * 8_000 + b"\r\n"], ids=["one line", "many lines"])
async def test_ten_megabytes_of_headers_are_not_read(each: bytes) -> None:
    async def boast(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.send(writer, b"HTTP/1.1 200 OK\r\nX-Long: ")
        for _part in range(10_000_000 // len(each)):
            await server.send(writer, each)

    async with listening(boast) as server, public_session(LOOPBACK) as session:
        with pytest.raises(aiohttp.ClientError):
            await post(session, f"http://127.0.0.1:{server.port}/", timeout_s=5)
        # Beyond what it has read, the system's buffers of both sides have taken in some more.
        assert server.sent < 8_000_000


async def test_headers_that_are_long_together_are_refused() -> None:
    lines = b"".join(b"X-%d: %s\r\n" % (number, b"y" * 1_500) for number in range(HEADER_BYTES_MAX // 1_500 + 1))

    async def boast(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n" + lines + b"Content-Length: 0\r\n\r\n")

    async with listening(boast) as server, public_session(LOOPBACK) as session:
        with pytest.raises(AnswerRefusedError):
            await post(session, f"http://127.0.0.1:{server.port}/", timeout_s=5)


async def test_a_body_without_end_is_left_after_its_beginning() -> None:
    flood = dripping(b"HTTP/1.1 200 OK\r\n\r\n", b"z" * 5_000, 0)
    async with listening(flood) as server, public_session(LOOPBACK) as session:
        answer = await post(session, f"http://127.0.0.1:{server.port}/", timeout_s=5)
        assert answer.head == b"z" * ANSWER_BYTES_MAX


def self_signed(folder: Path) -> ssl.SSLContext:
    """Return what a server needs that shows a certificate which nobody vouches for."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "shop")])
    now = datetime(2020, 1, 1, tzinfo=UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now.replace(year=2099))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "shop.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


async def test_a_certificate_that_nobody_vouches_for_gets_no_event(tmp_path: Path) -> None:
    async with listening(thank, tls=self_signed(tmp_path)) as server, public_session(LOOPBACK) as session:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await post(session, f"https://127.0.0.1:{server.port}/", timeout_s=5)
        assert server.connections == 0  # nothing came through


async def test_who_speaks_no_tls_gets_no_event() -> None:
    async with listening(thank) as server, public_session(LOOPBACK) as session:
        with pytest.raises((aiohttp.ClientConnectorError, TimeoutError)):
            await post(session, f"https://127.0.0.1:{server.port}/")


# Addresses. That nobody outside this machine was reached, every test asserts by itself.


async def test_a_redirect_to_the_cloud_s_own_address_is_an_answer_and_not_followed() -> None:
    async def redirect(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 307 Go\r\nLocation: http://169.254.169.254/latest/meta-data\r\nContent-Length: 0\r\n\r\n"
        )

    async with listening(redirect) as server, public_session(LOOPBACK) as session:
        assert (await post(session, f"http://127.0.0.1:{server.port}/")).status == 307
        assert server.connections == 1


class Names(AbstractResolver):
    """Answers each question with the next of its answers, as somebody does who owns the name."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        address = self.answers.pop(0)
        found = socket.AF_INET6 if ":" in address else family
        return [ResolveResult(hostname=host, host=address, port=port, family=found, proto=0, flags=0)]

    async def close(self) -> None:
        return None


ONE_ADDRESS = Reach((ipaddress.ip_network("127.0.0.1/32"),))
"""Takes the place of the public addresses, of which a test can reach none."""


async def test_a_name_that_moves_inwards_later_is_not_followed_there() -> None:
    names = Names("127.0.0.1", "127.0.0.2")
    async with listening(thank, host="0.0.0.0") as server, public_session(ONE_ADDRESS, names) as session:  # noqa: S104
        url = f"http://shop.example:{server.port}/"
        assert (await post(session, url)).address == "127.0.0.1"
        assert isinstance(session.connector, aiohttp.TCPConnector)
        session.connector.clear_dns_cache()  # as time does
        with pytest.raises(AddressRefusedError, match=r"127\.0\.0\.2"):
            await post(session, url)
        assert server.connections == 1


async def test_a_name_is_connected_to_at_the_address_that_was_checked() -> None:
    names = Names("127.0.0.1")  # a second question would find no answer
    async with listening(thank) as server, public_session(ONE_ADDRESS, names) as session:
        assert (await post(session, f"http://shop.example:{server.port}/")).status == 200
        assert names.answers == []


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "10.0.0.1", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::", "::ffff:169.254.169.254", "fd00::1"],
)
async def test_a_name_may_not_lead_inwards(address: str) -> None:
    async with public_session(LOOPBACK, Names(address)) as session:
        with pytest.raises(AddressRefusedError):
            await post(session, "http://shop.example/")


async def test_a_public_name_is_not_sent_to_the_port_of_another_service() -> None:
    async with public_session(LOOPBACK, Names("1.1.1.1")) as session:
        with pytest.raises(AddressRefusedError, match="port of another service"):
            await post(session, "https://shop.example:25/")


class TlsOnly(Reach):
    """Takes every address for a public one."""

    def refusal(self, address: IpAddress, port: int, *, is_tls: bool) -> str:
        del address, port
        return "" if is_tls else "wants TLS"


async def test_what_is_not_encrypted_is_refused_before_anything_is_sent() -> None:
    received = bytearray()

    async def listen(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        received.extend(await reader.read())

    async with listening(listen) as server, public_session(TlsOnly()) as session:
        with pytest.raises(AddressRefusedError, match="wants TLS"):
            await post(session, f"http://127.0.0.1:{server.port}/")
        await asyncio.gather(*server.serving)
        assert (server.connections, bytes(received)) == (1, b"")


@pytest.mark.parametrize("host", ["[fe80::1%25lo]", "[::1%25lo]", "[2606:4700::1%25lo]"])
async def test_an_address_of_one_interface_is_refused(host: str) -> None:
    async with public_session(LOOPBACK) as session:
        with pytest.raises((AddressRefusedError, aiohttp.InvalidURL)):
            await post(session, f"http://{host}/")


async def test_a_kept_connection_is_looked_at_again_before_it_is_used() -> None:
    async def thank_and_stay(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await asyncio.sleep(5)

    async with listening(thank_and_stay) as server, public_session(LOOPBACK) as session:
        url = f"http://127.0.0.1:{server.port}/"
        await post(session, url)
        assert isinstance(session.connector, _CheckedConnector)
        session.connector._reach = Reach()
        with pytest.raises(AddressRefusedError):
            await post(session, url)
        assert server.connections == 1


@pytest.mark.parametrize("own_host", ["0.0.0.0", "127.0.0.1", "localhost"])  # noqa: S104 - as in a container
async def test_loop_does_not_call_itself(own_host: str) -> None:
    async with listening(thank) as server:
        async with public_session(Reach(NETWORKS, own_host, server.port)) as session:
            with pytest.raises(AddressRefusedError, match="Loop itself"):
                await post(session, f"http://127.0.0.1:{server.port}/")
            with pytest.raises(AddressRefusedError, match="Loop itself"):
                await post(session, f"http://localhost:{server.port}/")
        async with public_session(Reach(NETWORKS, own_host, server.port + 1)) as session:
            assert (await post(session, f"http://127.0.0.1:{server.port}/")).status == 200
        assert server.connections == 1


def test_a_machine_knows_its_own_addresses() -> None:
    assert _is_of_this_machine(ipaddress.ip_address("127.0.0.1"))
    assert not _is_of_this_machine(ipaddress.ip_address("192.0.2.1"))
