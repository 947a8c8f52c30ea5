"""Endpoint addresses: which URLs a merchant may have its webhooks sent to."""

import ipaddress
import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from loop.domain.deliveries import IpNetwork, may_connect
from loop.domain.errors import invalid

MAX_CHARACTERS: Final = 2048

_HOST_NAME: Final = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")
_NUMBER: Final = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")


def require_endpoint_url(url: str, allowed: Sequence[IpNetwork]) -> str:
    """Return the URL as it is, or raise `invalid_webhook_url` saying what is wrong with it.

    A literal address must be public or in the operator's `allowed` networks. A name is judged only when it is
    connected to, since what it resolves to may change.
    """
    problem = _problem(url, allowed)
    if problem:
        raise invalid("invalid_webhook_url", f"webhookUrl: {problem}.", details=(("webhookUrl", problem),))
    return url


def _problem(url: str, allowed: Sequence[IpNetwork]) -> str:
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
    return _problem_of_host(host, allowed)


def _problem_of_host(host: str, allowed: Sequence[IpNetwork]) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        # Resolvers read 127.1 and 0x7f000001 as addresses: a name never ends in a number.
        is_name = _HOST_NAME.fullmatch(host) and not _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2])
        return "" if is_name else "must name a host"
    return "" if may_connect(address, allowed) else "must be a public address"
