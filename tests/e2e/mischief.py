"""Mischief: what goes wrong between Loop, the stand-in processors and the merchant, by chance or where it is aimed."""

import asyncio
import json
import random  # noqa: TID251 - seeded by the tests
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import parse_qs

import aiohttp
from aiohttp import web

from loop.processors.stripe import CLOCK_MARGIN_S
from loop.testing.stub_control import Handler
from loop.testing.stub_faults import Fault, FaultPlan, drop
from loop.testing.stub_ledger import Store
from loop.testing.stub_psp import StubProcessor
from loop.testing.stub_webhooks import stripe_signature
from tests.e2e.clocks import SharedClock
from tests.e2e.fault_tables import ANY_CALL, FAULTS, HELD, NEVER_CLEAR, REFUSALS, UNDONE, FaultTable
from tests.e2e.houses import GONE, AttentiveMerchant, MerchantServer
from tests.e2e.standings import Standing, Standings

Chance: TypeAlias = random.Random

LATE_S = 60
"""From which age on a webhook counts as late, in seconds."""

RAZORPAY_KEY_SECRET = "a-key-secret"
STRIPE_SECRET, RAZORPAY_SECRET, SANDBOX_SECRET = "whsec_stripe", "a-webhook-secret", "whsec_sandbox"

OUTAGE = ("refused", "dropped")
"""What becomes of webhooks while a merchant's server is out."""

HUNG_S = 1.5
"""How long a merchant's server hangs, in seconds: longer than Loop waits for it here."""


def chance_of(seed: str) -> Chance:
    """Return chance that is the same again for the same seed."""
    return random.Random(seed)  # noqa: S311 - it guards nothing


_request: ContextVar[tuple[web.Request, bytes]] = ContextVar("request")


@dataclass
class Aim:
    """Faults for one order's next requests at one place, one each; `is_endless` repeats the last for ever."""

    where: str
    faults: deque[str]
    is_endless: bool = False


@dataclass
class Mischief:
    """Decides what goes wrong, and notes what did. `rate` is the share of requests that chance spoils."""

    standings: Standings
    table: FaultTable
    chance: Chance
    rate: float = 0.0
    aims: dict[str, list[Aim]] = field(default_factory=dict)
    beats: int = 0
    """How much has happened: calls to processors and deliveries to the merchant."""

    def aim(self, order_id: str, where: str, *faults: str, is_endless: bool = False) -> Aim:
        """Spoil an order's next requests at a place; return what is still to come."""
        aim = Aim(where, deque(faults), is_endless)
        self.aims.setdefault(order_id, []).append(aim)
        return aim

    def clear(self) -> None:
        """Let everything go well from now on."""
        self.rate = 0.0
        self.aims.clear()

    def pick(self, operation: str, standing: Standing | None, kinds: tuple[str, ...], *, rate: float) -> str | None:
        """Return the fault for a request, which is noted, or None; `rate` is the share that chance spoils."""
        if standing is None:
            return None
        where = f"{operation} @ {standing.state}"
        fault = self._aimed(standing.order_id, where)
        if fault is None and self.chance.random() < rate:
            fault = self.chance.choice(kinds)
        if fault is not None:
            self.table.note(fault, where)
        return fault

    def is_held(self, operation: str, standing: Standing) -> bool:
        """Tell whether a request is to be kept from its processor."""
        where = f"{operation} @ {standing.state}"
        return any(aim.where == where and HELD in aim.faults for aim in self.aims.get(standing.order_id, ()))

    def _aimed(self, order_id: str, where: str) -> str | None:
        for aim in self.aims.get(order_id, ()):
            if aim.where == where and aim.faults:
                return aim.faults[0] if aim.is_endless else aim.faults.popleft()
        return None


class SpoiltCalls(FaultPlan):
    """The faults of the stand-in processors."""

    def __init__(self, mischief: Mischief, store: Callable[[], Store]) -> None:
        super().__init__()
        self._mischief = mischief
        self._store = store

    def take(self, method: str, path: str) -> Fault | None:
        """Return the fault for the request that is being served."""
        self._mischief.beats += 1
        if not self._mischief.rate and not self._mischief.aims:
            return None
        operation = operation_of(method, path)
        kinds = _may_be_spoilt_by(operation)
        for standing in self._about(operation, path):
            name = self._mischief.pick(operation, standing, kinds, rate=self._mischief.rate)
            if name is not None:
                return replace(FAULTS[name])
        return None

    def is_held(self, method: str, path: str) -> bool:
        """Tell whether the request that has come in is to be kept from its processor."""
        if not self._mischief.aims:
            return False
        operation = operation_of(method, path)
        return any(self._mischief.is_held(operation, standing) for standing in self._about(operation, path))

    def _about(self, operation: str, path: str) -> list[Standing]:
        request, body = _request.get()
        if operation == "stripe GET payment_intents" and "created[gte]" in request.query:  # for whom is not said
            return self._mischief.standings.unheard_of(int(request.query["created[gte]"]) + CLOCK_MARGIN_S)
        attempt_id = attempt_of_call(self._store(), operation, path, query=request.query, body=body)
        standing = None if attempt_id is None else self._mischief.standings.of_attempt(attempt_id)
        return [] if standing is None else [standing]


class WatchedStub(StubProcessor):
    """The stand-in processors, whose faults look at the request that they are about to hit."""

    def __init__(self, mischief: Mischief, ledger_path: Path, clock: SharedClock) -> None:
        super().__init__(ledger_path=ledger_path, clock_ns=clock.time_ns)
        self.faults = self._calls = SpoiltCalls(mischief, lambda: self.store)
        self._dead = asyncio.Event()

    def lose_held(self) -> None:
        """Lose the requests that are held, now that nobody waits for their answers."""
        self._dead.set()
        self._dead = asyncio.Event()

    @web.middleware
    async def _note_request(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        _request.set((request, await request.read()))
        if self._calls.is_held(request.method, request.path):
            await self._dead.wait()
            return drop(request)
        return await handler(request)


def operation_of(method: str, path: str) -> str:
    """Return a request without its ids, such as `stripe POST payment_intents/*/capture`."""
    _, _, noun, *rest = path.split("/")
    is_razorpay = noun in ("orders", "payments") or (bool(rest) and rest[0].startswith(RAZORPAY_IDS))
    return f"{'razorpay' if is_razorpay else 'stripe'} {method} {'/'.join([noun, *('*', *rest[1:])[: len(rest)]])}"


def _may_be_spoilt_by(operation: str) -> tuple[str, ...]:
    """Return the faults that chance may choose from for a request."""
    has_key = operation.startswith("stripe POST") or operation.endswith("/refund")
    if not has_key:
        return ANY_CALL
    return tuple(name for name in FAULTS if name != UNDONE or operation not in NEVER_CLEAR)


def attempt_of_call(store: Store, operation: str, path: str, *, query: Mapping[str, str], body: bytes) -> str | None:
    """Return the attempt that a request to a processor is about."""
    _, _, _, *rest = path.split("/")
    match operation:
        case "stripe POST payment_intents":
            return parse_qs(body.decode()).get("metadata[loop_attempt_id]", [None])[0]
        case "razorpay POST orders":
            return str(json.loads(body)["receipt"])
        case "razorpay GET orders":
            return query.get("receipt")
        case "stripe POST refunds":
            return attempt_of(store, "payment_intents", parse_qs(body.decode())["payment_intent"][0])
        case "stripe GET refunds" if "payment_intent" in query:
            return attempt_of(store, "payment_intents", query["payment_intent"])
    kind = _KINDS.get(operation.split(" ", 2)[2].partition("/")[0])
    if kind is None or not rest:  # a list for the books
        return None
    return attempt_of(store, f"rzp_{kind}" if rest[0].startswith(RAZORPAY_IDS) else kind, rest[0])


_OWNERS = {"order_id": "rzp_orders", "payment_id": "rzp_payments", "payment_intent": "payment_intents"}
"""Field of an object at the stand-ins -> the kind of object that it names, which knows more."""

RAZORPAY_IDS = ("rfnd_", "disp_")
"""How ids begin that Razorpay has in paths which Stripe has too."""

_KINDS = {
    "payment_intents": "payment_intents",
    "refunds": "refunds",
    "disputes": "disputes",
    "orders": "rzp_orders",
    "payments": "rzp_payments",
}


def attempt_of(store: Store, kind: str, object_id: str) -> str | None:
    """Return the attempt that an object of the stand-in processors belongs to."""
    owner = store.owner_of(kind, object_id)
    item = None if owner is None else store.get(owner, kind, object_id=object_id)
    if item is None:
        return None
    told = item.get("metadata") or item.get("notes") or {}
    if "loop_attempt_id" in told:
        return str(told["loop_attempt_id"])
    for name, owner_kind in _OWNERS.items():
        if name in item:
            return attempt_of(store, owner_kind, item[name])
    return None


class FickleMerchant(AttentiveMerchant):
    """A merchant's server that does not always take what it is sent."""

    def __init__(self, mischief: Mischief) -> None:
        super().__init__()
        self.hung: list[str] = []
        """Orders that a webhook is about which has not been answered."""
        self.hung_s = HUNG_S
        self.is_out = False
        """Whether it takes nothing at all."""
        self._mischief = mischief
        self._refusals_left: Counter[str] = Counter()

    async def take(self, request: web.Request) -> web.StreamResponse:
        taken = await MerchantServer.take(self, request)
        self._mischief.beats += 1
        event = json.loads(await request.read())
        order_id = event["orderId"]
        standing = self._mischief.standings.of_order(order_id) if order_id else None
        match self._refusal(standing, request.headers["webhook-id"]):
            case "refused":
                return web.Response(status=500)
            case "dropped":
                assert request.transport is not None
                request.transport.abort()
            case "hung":
                await self._hang(order_id)
                return web.Response(status=503)
        self.heed(request.headers["webhook-id"], event)
        return taken

    def _refusal(self, standing: Standing | None, event_id: str) -> str | None:
        """Return how an event is refused, or None; one that chance has refused may be refused once or twice more."""
        is_stubborn = self._refusals_left[event_id] > 0
        kinds, rate = (OUTAGE, 1.0) if self.is_out or is_stubborn else (REFUSALS, self._mischief.rate)
        refusal = self._mischief.pick("delivery", standing, kinds, rate=rate)
        if is_stubborn:
            self._refusals_left[event_id] -= 1
        elif refusal is not None and self._mischief.rate:
            self._refusals_left[event_id] = self._mischief.chance.choice((0, 0, 1, 2))
        return refusal

    async def _hang(self, order_id: str) -> None:
        self.hung.append(order_id)
        try:
            await asyncio.sleep(self.hung_s)
        finally:
            with suppress(ValueError):  # Loop has died meanwhile
                self.hung.remove(order_id)


@dataclass
class Relay:
    """Carries the processors' webhooks to Loop, and notes the ones that come twice, late or out of order.

    What Loop does not take is kept, and sent again when told: processors go on for days, the stand-ins for seconds.
    """

    session: aiohttp.ClientSession
    loop_url: str
    store: Callable[[], Store]
    mischief: Mischief
    clock: SharedClock
    _seen: set[str] = field(default_factory=set)
    _newest: dict[str, int] = field(default_factory=dict)
    _untaken: dict[tuple[str, bytes], dict[str, str]] = field(default_factory=dict)

    async def carry(self, request: web.Request) -> web.StreamResponse:
        """Pass a webhook on; the processor hears what Loop answers, and sends it again if that is no success."""
        body = await request.read()
        headers = {name: value for name, value in request.headers.items() if name not in ("Host", "Content-Length")}
        return web.Response(status=await self._pass_on(request.path, body, headers))

    async def send_again(self) -> bool:
        """Pass on what Loop has not taken, signed anew where that has a time in it; return whether all is taken."""
        at_s = self.clock.time_ns() // 1_000_000_000
        for (path, body), headers in list(self._untaken.items()):
            fresh = dict(headers)
            if "Stripe-Signature" in headers:
                fresh["Stripe-Signature"] = stripe_signature(body.decode(), STRIPE_SECRET, at_s=at_s)
            await self._pass_on(path, body, fresh)
        return not self._untaken

    async def _pass_on(self, path: str, body: bytes, headers: dict[str, str]) -> int:
        arrived = self._arrived(json.loads(body), headers.get("X-Razorpay-Event-Id"))
        try:
            async with self.session.post(f"{self.loop_url}{path}", data=body, headers=headers) as answer:
                status = answer.status
        except GONE:
            status = 502
        if status != 200:
            self._untaken[path, body] = headers
            return status
        self._untaken.pop((path, body), None)
        for fault, where in arrived:
            self.mischief.table.note(fault, where)
        return status

    def _arrived(self, event: dict[str, Any], razorpay_id: str | None) -> list[tuple[str, str]]:
        attempt_id, event_id = self._attempt(event), razorpay_id or event["id"]
        standing = None if attempt_id is None else self.mischief.standings.of_attempt(attempt_id)
        if attempt_id is None or standing is None:
            return []
        created = int(event.get("created") or event["created_at"])
        is_repeat, newest = event_id in self._seen, self._newest.get(attempt_id, 0)
        self._seen.add(event_id)
        self._newest[attempt_id] = max(newest, created)
        is_late = created < self.clock.time_ns() // 1_000_000_000 - LATE_S
        found = {"twice": is_repeat, "late": is_late, "out of order": created < newest and not is_repeat}
        return [(fault, f"webhook @ {standing.state}") for fault, is_so in found.items() if is_so]

    def _attempt(self, event: dict[str, Any]) -> str | None:
        if "payload" not in event:
            told = event["data"]["object"].get("metadata") or {}
            return told.get("loop_attempt_id")
        payload = event["payload"]
        if "payment" in payload:
            return attempt_of(self.store(), "rzp_payments", payload["payment"]["entity"]["id"])
        return attempt_of(self.store(), "rzp_orders", payload["order"]["entity"]["id"])
