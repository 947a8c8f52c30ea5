"""Webhooks of the stand-in processor: signed as each processor signs, delivered twice, late or out of order if told."""

import asyncio
import hashlib
import hmac
import json
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import aiohttp

from loop.testing.stub_ledger import JsonObject, Store

TIMEOUT_S = 5.0
"""Longest one delivery may take, in seconds."""

RETRY_DELAYS_S = (0.2, 1.0, 5.0)
"""Waits between the tries of one delivery; after the last it is given up."""

IN_FLIGHT_MAX = 16
"""Most deliveries on the wire at once."""

WAITING_MAX = 20_000
"""Most deliveries that may wait; more are not sent, and stay in the events list."""

COPIES_MAX = 100
"""Most copies of one event a fault may send."""

DELAY_MAX_S = 600.0
"""Longest a fault may hold a delivery back, in seconds."""

LOG_KEPT = 2_000


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where events go: of one account, or of all when `account` is None; of all kinds when `kinds` is None."""

    url: str
    secret: str
    account: str | None = None
    kinds: Collection[str] | None = None

    def __post_init__(self) -> None:
        """Refuse an endpoint nothing could be sent to; ValueError says why."""
        if not self.url.startswith(("http://", "https://")):
            raise ValueError("url must begin with http:// or https://")
        if not self.secret:
            raise ValueError("secret must not be empty")

    def __repr__(self) -> str:
        """Return a text without the secret."""
        return f"Endpoint({self.url!r}, account={self.account!r})"


@dataclass(slots=True, kw_only=True)
class WebhookFaults:
    """How deliveries misbehave from now on: `copies` of each, after `delay_s`, signed `age_s` ago, or held back."""

    copies: int = 1
    delay_s: float = 0.0
    age_s: int = 0
    is_held: bool = False

    def __post_init__(self) -> None:
        """Refuse values out of bounds; ValueError says which."""
        if not 1 <= self.copies <= COPIES_MAX:
            raise ValueError(f"copies must be between 1 and {COPIES_MAX}")
        if not 0 <= self.delay_s <= DELAY_MAX_S:
            raise ValueError(f"delay_s must be between 0 and {DELAY_MAX_S:g}")


def stripe_signature(payload: str, secret: str, *, at_s: int) -> str:
    """Return the `Stripe-Signature` header for a payload signed at a time in seconds."""
    digest = hmac.new(secret.encode(), f"{at_s}.{payload}".encode(), hashlib.sha256).hexdigest()
    return f"t={at_s},v1={digest}"


class Pack(Protocol):
    """How a processor writes its webhooks down and signs them."""

    def __call__(self, event: JsonObject, secret: str, *, at_s: int) -> tuple[bytes, dict[str, str]]:
        """Return the body and the headers of an event; the log reads the event's `id` and `type`."""
        ...


def pack_for_stripe(event: JsonObject, secret: str, *, at_s: int) -> tuple[bytes, dict[str, str]]:
    """Return an event as Stripe posts it."""
    payload = json.dumps(event, indent=2)
    return payload.encode(), {
        "Content-Type": "application/json; charset=utf-8",
        "Stripe-Signature": stripe_signature(payload, secret, at_s=at_s),
        "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
    }


@dataclass(frozen=True, slots=True)
class _Delivery:
    endpoint: Endpoint
    event: JsonObject
    pack: Pack


class Webhooks:
    """Sends events to endpoints in the background; started and closed with the stub."""

    def __init__(self, store: Store, endpoints: Sequence[Endpoint] = ()) -> None:
        self.endpoints = list(endpoints)
        self.faults = WebhookFaults()
        self.log: deque[JsonObject] = deque(maxlen=LOG_KEPT)
        self._store = store
        self._session: aiohttp.ClientSession | None = None
        self._slots = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: list[_Delivery] = []

    async def start(self) -> None:
        """Open the client session deliveries share."""
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))

    async def close(self) -> None:
        """Give up what is not delivered yet and close the session."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def settled(self, timeout_s: float = 10.0) -> None:
        """Wait until no delivery is under way; TimeoutError when that takes longer."""
        async with asyncio.timeout(timeout_s):
            while self._tasks:
                await asyncio.wait(set(self._tasks))

    def publish(self, account: str, events: Sequence[JsonObject], *, pack: Pack = pack_for_stripe) -> None:
        """Send an account's new events to the endpoints that want them, as the faults now say."""
        for event in events:
            for endpoint in self.endpoints:
                if endpoint.account not in (None, account):
                    continue
                if endpoint.kinds is not None and event["type"] not in endpoint.kinds:
                    continue
                delivery = _Delivery(endpoint, event, pack)
                if self.faults.is_held and len(self._held) < WAITING_MAX:
                    self._held.append(delivery)
                else:
                    self._start(delivery)

    def release(self, seed: int) -> int:
        """Send everything held back, in an order that the seed alone decides; return how many."""
        order = sorted(range(len(self._held)), key=lambda index: hashlib.sha256(f"{seed}:{index}".encode()).digest())
        held, self._held = self._held, []
        task = asyncio.get_running_loop().create_task(self._deliver_in_turn([held[index] for index in order]))
        self._track(task)
        return len(held)

    def _start(self, delivery: _Delivery) -> None:
        for _ in range(self.faults.copies):
            if len(self._tasks) >= WAITING_MAX:
                return
            self._track(asyncio.get_running_loop().create_task(self._deliver(delivery, delay_s=self.faults.delay_s)))

    def _track(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver_in_turn(self, deliveries: list[_Delivery]) -> None:
        for delivery in deliveries:
            for _ in range(self.faults.copies):
                await self._deliver(delivery)

    async def _deliver(self, delivery: _Delivery, *, delay_s: float = 0.0) -> None:
        endpoint, event = delivery.endpoint, delivery.event
        for wait_s in (delay_s, *RETRY_DELAYS_S):
            await asyncio.sleep(wait_s)
            async with self._slots:
                status = await self._post(delivery)
            self.log.append({"event": event["id"], "type": event["type"], "url": endpoint.url, "status": status})
            if status is not None and 200 <= status < 300:
                return

    async def _post(self, delivery: _Delivery) -> int | None:
        if self._session is None:
            raise RuntimeError("the stub's webhooks are not started")
        endpoint, at_s = delivery.endpoint, self._store.now_ms() // 1000 - self.faults.age_s
        body, headers = delivery.pack(delivery.event, endpoint.secret, at_s=at_s)
        try:
            async with self._session.post(endpoint.url, data=body, headers=headers, allow_redirects=False) as answer:
                return answer.status
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
