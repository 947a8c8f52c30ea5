"""Keeps the test process on this machine: loopback and Unix sockets work, everything else fails the test."""

import ipaddress
import sys

blocked_hosts: list[str] = []
"""What this process tried to reach beyond this machine since the present test began."""


class NetworkBlockedError(RuntimeError):
    """A test tried to leave this machine; no `OSError`, so that code under test cannot take it for a failing peer."""


def stay_on_this_machine() -> None:
    """Refuse, for the rest of this process, each connection, datagram and name look-up that would leave it."""
    sys.addaudithook(_refuse_to_leave)


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
