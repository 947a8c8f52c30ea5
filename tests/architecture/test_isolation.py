"""The test bed keeps its promises: no way off this machine, and a migrated database of its own for each test."""

import asyncio
import socket
import sqlite3
import urllib.request
from collections.abc import Callable
from contextlib import closing

import pytest

from loop.telemetry import open_transaction
from tests.network import NetworkBlockedError, blocked_hosts, sent_in_transactions
from tests.servers import run_sql

OUTSIDE = "192.0.2.1"
"""An address of the block that is reserved for documentation (RFC 5737)."""


def leave_by_connect() -> None:
    with socket.socket() as outgoing:
        outgoing.connect((OUTSIDE, 443))


def leave_by_datagram() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as outgoing:
        outgoing.sendto(b"?", (OUTSIDE, 53))


def leave_by_name() -> None:
    urllib.request.urlopen("https://api.example.com/")


def leave_by_asyncio() -> None:
    asyncio.run(asyncio.wait_for(asyncio.open_connection(OUTSIDE, 443), timeout=1))


@pytest.mark.parametrize("leave", [leave_by_connect, leave_by_datagram, leave_by_name, leave_by_asyncio])
def test_no_way_off_this_machine(leave: Callable[[], None]) -> None:
    with pytest.raises(NetworkBlockedError):
        leave()
    assert len(blocked_hosts) == 1
    blocked_hosts.clear()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_loopback_stays_open(host: str) -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        reader, writer = await asyncio.open_connection(host, port)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


async def test_what_is_sent_inside_a_transaction_is_seen_on_new_and_on_open_connections() -> None:
    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server:
        _, before = await asyncio.open_connection(host, port)
        before.write(b"outside")
        assert sent_in_transactions == []
        with open_transaction():
            before.write(b"inside")
            assert len(sent_in_transactions) == 1
            _, inside = await asyncio.open_connection(host, port)
            inside.write(b"inside")
            assert len(sent_in_transactions) == 2
        for writer in (before, inside):
            writer.close()
            await writer.wait_closed()
    sent_in_transactions.clear()


@pytest.mark.parametrize("round_number", [1, 2])
def test_each_test_has_a_migrated_database_of_its_own(database_url: str, round_number: int) -> None:
    """The second round could not make its table if the first one's were in the same database."""
    assert round_number
    execute(database_url, "SELECT id FROM orders", "CREATE TABLE left_behind (id integer)")


def execute(database_url: str, *statements: str) -> None:
    """Run statements by the bare driver, whatever Loop's own storage does."""
    if database_url.startswith("postgresql:"):
        run_sql(database_url, *statements)
        return
    with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"))) as connection:
        for statement in statements:
            connection.execute(statement)
