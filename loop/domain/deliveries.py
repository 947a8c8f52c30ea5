"""Deliveries: the two signatures of an outgoing event, when it is tried again, and which addresses it may go to."""

import base64
import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Final

RETRY_STEPS_S = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Seconds from each failed try to the next, after Standard Webhooks: ten tries over 75.6 hours."""

MAX_TRIES = len(RETRY_STEPS_S) + 1
JITTER = 0.2
"""Each step is stretched or shrunk by up to this share."""

HELD_OFF_S: Final = 60.0
"""The shortest wait after an answer that speaks of too much load, or after none in time."""

OVERLOADED_STATUSES: Final = frozenset({429, 502, 504})
GONE_STATUS: Final = 410
"""The answer of an endpoint that wants no more events."""

RETRY_AFTER_STEPS: Final = 2
"""How many times the step an endpoint's `Retry-After` may ask for."""

MAX_RETRY_AFTER_DIGITS: Final = 9

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
    """One event on its way to one endpoint. `next_attempt_at` is None until its endpoint's job knows of it."""

    event_id: str
    endpoint_id: str
    merchant_id: str
    status: DeliveryStatus
    attempts: int
    last_attempt_at: datetime | None
    delivered_at: datetime | None
    last_status_code: int | None
    last_error: str | None
    next_attempt_at: datetime | None = None
    correlation_id: str | None = None
    trace_context: str | None = None
    """The span that caused it, as W3C Trace Context names it, if that was traced."""


@dataclass(frozen=True, slots=True)
class DeliveryAttempt:
    """One try of a delivery: what was answered, from where and how soon. `answer` is redacted, None without one."""

    event_id: str
    endpoint_id: str
    number: int
    merchant_id: str
    status_code: int | None
    duration_ms: int
    address: str | None
    answer: str | None = field(repr=False)
    error: str | None
    tried_at: datetime


@dataclass(frozen=True, slots=True)
class SigningSecrets:
    """What a delivery is signed with: the secret that counts and, while another one takes its place, that one too."""

    current: str = field(repr=False)
    pending: str | None = field(default=None, repr=False)


def make_secret(random: bytes) -> str:
    """Return a signing secret: `whsec_` and standard base64, which serves both signature schemes."""
    return SECRET_PREFIX + base64.b64encode(random).decode("ascii")


def signature_headers(secrets: SigningSecrets, event_id: str, *, body: bytes, now: datetime) -> dict[str, str]:
    """Return the headers of one try: Standard Webhooks' three and Loop's own three, over the same instant.

    A pending secret signs as well, first in Standard Webhooks' list; Loop's own header has room for one signature.
    """
    milliseconds = int(now.timestamp() * 1000)
    seconds = milliseconds // 1000
    content = f"{event_id}.{seconds}.".encode() + body
    signing = (secrets.current,) if secrets.pending is None else (secrets.pending, secrets.current)
    own = hmac.new(secrets.current.encode(), f"{milliseconds}.".encode() + body, hashlib.sha256).hexdigest()
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(seconds),
        "webhook-signature": " ".join(_standard_signature(secret, content) for secret in signing),
        "X-Loop-Event-Id": event_id,
        "X-Loop-Timestamp": str(milliseconds),
        "X-Loop-Signature": f"t={milliseconds},v1={own}",
    }


def _standard_signature(secret: str, content: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    return f"v1,{base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode('ascii')}"


@dataclass(frozen=True, slots=True)
class Reply:
    """How a try ended: the status and `Retry-After` of an answer, or why there is none."""

    status_code: int | None
    error: str | None = None
    is_too_late: bool = False
    retry_after_s: float | None = None

    @property
    def is_success(self) -> bool:
        """Whether the endpoint took the event: with any status of 200 to 299."""
        return self.status_code is not None and 200 <= self.status_code < 300


def retry_delay_s(tries_made: int, unit_random: float, *, reply: Reply) -> float | None:
    """Return seconds until the next try after `tries_made`, the last of which ended so; None when they are used up.

    `unit_random` is uniform in 0..1 and spreads the step by ±20 %. An endpoint may ask for twice the step at most.
    """
    if tries_made >= MAX_TRIES:
        return None
    step_s = RETRY_STEPS_S[tries_made - 1]
    delay_s = step_s * (1 - JITTER + 2 * JITTER * unit_random)
    if reply.is_too_late or reply.status_code in OVERLOADED_STATUSES:
        delay_s = max(delay_s, HELD_OFF_S)
    return max(delay_s, min(reply.retry_after_s or 0.0, step_s * RETRY_AFTER_STEPS))


def parse_retry_after(text: str | None, now: datetime) -> float | None:
    """Return the seconds that a `Retry-After` asks for, as a number or as a date; None for anything else."""
    if text is None:
        return None
    stripped = text.strip()
    if stripped.isascii() and stripped.isdigit():
        return float(stripped[:MAX_RETRY_AFTER_DIGITS])
    with suppress(ValueError, OverflowError):
        at = parsedate_to_datetime(stripped)
        return max(0.0, ((at if at.tzinfo else at.replace(tzinfo=UTC)) - now).total_seconds())
    return None


_EMBEDDING = tuple(
    ipaddress.IPv6Network(text) for text in ("::ffff:0:0/96", "::ffff:0:0:0/96", "::/96", "64:ff9b::/96")
)
"""IPv4-mapped, IPv4-translated, IPv4-compatible and NAT64 addresses: their last 32 bits are where they lead."""

_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All that IPv6 has given out for use on the Internet; Python takes more than this for global."""

_REFUSED: tuple[IpNetwork, ...] = (
    ipaddress.IPv4Network("192.88.99.0/24"),  # relays of 6to4
    ipaddress.IPv6Network("3fff::/20"),  # for documentation
)


def may_connect(address: IpAddress, allowed: Sequence[IpNetwork]) -> bool:
    """Tell whether a merchant's endpoint may lie at an address: public ones, and the operator's own networks.

    Addresses that lead to an IPv4 one (mapped, translated, compatible, 6to4, Teredo, NAT64) are judged by that, too.
    """
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        return False
    if is_allowed(address, allowed):
        return True
    inner = _led_to(address)
    if isinstance(address, ipaddress.IPv6Address) and any(address in network for network in _EMBEDDING):
        return all(map(_is_public, inner))
    return all(map(_is_public, (address, *inner)))


def is_allowed(address: IpAddress, allowed: Sequence[IpNetwork]) -> bool:
    """Tell whether an address, or the one that it leads to, is in one of the operator's own networks."""
    return any(
        candidate.version == network.version and candidate in network
        for candidate in (address, *_led_to(address))
        for network in allowed
    )


def _led_to(address: IpAddress) -> tuple[IpAddress, ...]:
    if isinstance(address, ipaddress.IPv4Address):
        return ()
    if any(address in network for network in _EMBEDDING):
        return (ipaddress.IPv4Address(int(address) & 0xFFFFFFFF),)
    if address.sixtofour is not None:
        return (address.sixtofour,)
    return address.teredo or ()


def _is_public(address: IpAddress) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address not in _UNICAST:
        return False
    is_refused = any(address.version == network.version and address in network for network in _REFUSED)
    return address.is_global and not address.is_multicast and not is_refused
