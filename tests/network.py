"""Keeps the test process on this machine, and off the network while a transaction is open: else the test fails."""

import asyncio.selector_events
import ipaddress
import sys
from collections.abc import Callable
from typing import Any

from loop.telemetry import transaction_is_open

blocked_hosts: list[str] = []
"""What this process tried to reach beyond this machine since the present test began."""

sent_in_transactions: list[str] = []
"""Whom this process called, other than the database, while a transaction was open since the present test began."""


class NetworkBlockedError(RuntimeError):
    """A test tried to leave this machine; no `OSError`, so that code under test cannot take it for a failing peer."""


def stay_on_this_machine() -> None:
    """Refuse, for the rest of this process, each connection, datagram and name look-up that would leave it."""
    sys.addaudithook(_refuse_to_leave)


def watch_transactions() -> None:
    """Note, for the rest of this process, who is sent anything inside a transaction, other than the database.

    What a guard of the code under test should have refused is seen here, whichever of asyncio's clients sends it.
    """
    transport: Any = asyncio.selector_events._SelectorSocketTransport  # type: ignore[attr-defined]
    transport.write = _watched(transport.write)


def _watched(write: Callable[[Any, bytes], None]) -> Callable[[Any, bytes], None]:
    def watching(self: Any, content: bytes) -> None:
        if transaction_is_open.get() and not type(self.get_protocol()).__module__.startswith("asyncpg."):
            sent_in_transactions.append(f"{self.get_extra_info('peername')}")
        write(self, content)

    return watching


def _refuse_to_leave(event: str, arguments: tuple[object, ...]) -> None:
    host = outside_host(event, arguments)
    if host is not None:
        blocked_hosts.append(host)
        raise NetworkBlockedError(f"a test tried to reach {host!r}, which is not on this machine")


def outside_host(event: str, arguments: tuple[object, ...]) -> str | None:
    """Return where beyond this machine an audit event is about to lead, or None."""
    if event in {"socket.connect", "socket.sendto"}:
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None  # a Unix socket's address is a path
    elif event in {"socket.getaddrinfo", "socket.gethostbyname"}:
        host = arguments[0]
    else:
        return None
    return None if _is_local(host) else str(host)


def _is_local(host: object) -> bool:
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    if name is None or name in {"", "localhost"}:
        return True
    try:
        return ipaddress.ip_address(str(name)).is_loopback
    except ValueError:
        return False
