"""Deliveries: the two signatures of an outgoing event, when it is tried again, and which addresses it may go to."""

import base64
import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

RETRY_STEPS_S = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Seconds from each failed try to the next, after Standard Webhooks: ten tries over 75.6 hours."""

MAX_TRIES = len(RETRY_STEPS_S) + 1
JITTER = 0.2
"""Each step is stretched or shrunk by up to this share."""

SECRET_PREFIX = "whsec_"  # noqa: S105 - the public prefix, not a secret
SECRET_BYTES = 32

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


class DeliveryStatus(StrEnum):
    """Where the delivery of one event to one endpoint stands."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event on its way to one endpoint."""

    event_id: str
    endpoint_id: str
    merchant_id: str
    status: DeliveryStatus
    attempts: int
    last_attempt_at: datetime | None
    delivered_at: datetime | None
    last_status_code: int | None
    last_error: str | None


def make_secret(random: bytes) -> str:
    """Return a signing secret: `whsec_` and standard base64, which serves both signature schemes."""
    return SECRET_PREFIX + base64.b64encode(random).decode("ascii")


def signature_headers(secret: str, event_id: str, *, body: bytes, now: datetime) -> dict[str, str]:
    """Return the headers of one try: Standard Webhooks' three and Loop's own three, over the same instant."""
    milliseconds = int(now.timestamp() * 1000)
    seconds = milliseconds // 1000
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    standard = hmac.new(key, f"{event_id}.{seconds}.".encode() + body, hashlib.sha256).digest()
    own = hmac.new(secret.encode(), f"{milliseconds}.".encode() + body, hashlib.sha256).hexdigest()
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(seconds),
        "webhook-signature": f"v1,{base64.b64encode(standard).decode('ascii')}",
        "X-Loop-Event-Id": event_id,
        "X-Loop-Timestamp": str(milliseconds),
        "X-Loop-Signature": f"t={milliseconds},v1={own}",
    }


def retry_delay_s(tries_made: int, unit_random: float) -> float | None:
    """Return seconds until the next try after `tries_made` failed ones, or None when they are used up.

    `unit_random` is uniform in 0..1 and spreads the step by ±20 %.
    """
    if tries_made >= MAX_TRIES:
        return None
    return RETRY_STEPS_S[tries_made - 1] * (1 - JITTER + 2 * JITTER * unit_random)


_WRAPPING = tuple(ipaddress.IPv6Network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96"))
"""NAT64, NAT64 of a network's own, and the IPv4-compatible form: the IPv4 address is the last 32 bits."""


def _unwrapped(address: IpAddress) -> IpAddress:
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if any(address in network for network in _WRAPPING):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def may_connect(address: IpAddress, allowed: Sequence[IpNetwork]) -> bool:
    """Tell whether a merchant's endpoint may lie at an address: public ones, and the operator's own networks.

    Addresses that wrap an IPv4 one (mapped, compatible, 6to4, Teredo, NAT64) are judged by what they wrap, too.
    """
    inner = _unwrapped(address)
    for candidate in {address, inner}:
        if any(candidate.version == network.version and candidate in network for network in allowed):
            return True
    return all(a.is_global and not a.is_multicast for a in {address, inner})
