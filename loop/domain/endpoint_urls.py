"""Endpoint addresses: which URLs a merchant may have its webhooks sent to."""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from loop.domain.deliveries import IpAddress, IpNetwork, is_allowed, may_connect
from loop.domain.errors import invalid

MAX_CHARACTERS: Final = 2048

_HOST_NAME: Final = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")
_NUMBER: Final = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
OWN_ADDRESS: Final = "is where Loop itself listens"
_LOOPBACK: Final = ipaddress.IPv4Address("127.0.0.1")
_PORTS: Final = {"http": 80, "https": 443}
_FIRST_FREE_PORT: Final = 1024
"""Ports below are of other services, but for those of the web."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Where merchants' webhooks may go besides public addresses, and where Loop itself listens, which is nowhere."""

    allowed: Sequence[IpNetwork] = ()
    own_host: str = ""
    own_port: int = 0

    def refusal(self, address: IpAddress, port: int, *, is_tls: bool) -> str:
        """Return why an address must not be connected to; nothing if it may be.

        The operator's own networks may be reached without TLS and at any port, and the public in neither way: what is
        sent names customers, and a port of another service could be made to take it for its own.
        """
        if not may_connect(address, self.allowed):
            return "is not a public address; the operator can allow its network"
        if not is_allowed(address, self.allowed):
            if not is_tls:
                return "is a public address, which is sent webhooks by https:// only"
            if port < _FIRST_FREE_PORT and port not in _PORTS.values():
                return f"has the port of another service; take {_PORTS['https']} or one from {_FIRST_FREE_PORT} on"
        return OWN_ADDRESS if self._is_own(address, port) else ""

    @property
    def is_everywhere(self) -> bool:
        """Whether Loop listens on every address of its machine."""
        try:
            return ipaddress.ip_address(self.own_host).is_unspecified
        except ValueError:
            return False

    def _is_own(self, address: IpAddress, port: int) -> bool:
        """Tell whether Loop answers there, as far as that shows from its settings: on every loopback address or one."""
        if port != self.own_port:
            return False
        try:
            own = ipaddress.ip_address(self.own_host)
        except ValueError:  # a name, which is one of this machine
            return address.is_loopback
        return address == own or (self.is_everywhere and address.is_loopback)


def require_endpoint_url(url: str, reach: Reach, *, field: str = "webhookUrl") -> str:
    """Return the URL as it is, or raise `invalid_webhook_url` saying what is wrong with it.

    A literal address must be public or in the operator's networks, and not Loop's own. A name other than localhost is
    judged only when it is connected to, since what it resolves to may change.
    """
    problem = _problem(url, reach)
    if problem:
        raise invalid("invalid_webhook_url", f"{field}: {problem}.", details=((field, problem),))
    return url


def _problem(url: str, reach: Reach) -> str:
    if not 0 < len(url) <= MAX_CHARACTERS:
        return f"must have 1 to {MAX_CHARACTERS} characters"
    # Beyond these characters, two parsers may disagree about where the host ends.
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        return "must be plain ASCII; encode other characters, and write an international host name as xn--"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "is not a URL"
    if parts.scheme not in ("https", "http"):
        return "must begin with https:// or http://"
    if "@" in parts.netloc:
        return "must not contain a user or password"
    if "#" in url:
        return "must not contain a fragment"
    if not host or port == 0:
        return "must name a host"
    return _problem_of_host(host, port or _PORTS[parts.scheme], reach, is_tls=parts.scheme == "https")


def _problem_of_host(host: str, port: int, reach: Reach, *, is_tls: bool) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        # Resolvers read 127.1 and 0x7f000001 as addresses: a name never ends in a number.
        is_name = _HOST_NAME.fullmatch(host) and not _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2])
        if not is_name:
            return "must name a host"
        if host.rstrip(".").rpartition(".")[2] != "localhost":
            return ""
        address = _LOOPBACK
    return reach.refusal(address, port, is_tls=is_tls)
