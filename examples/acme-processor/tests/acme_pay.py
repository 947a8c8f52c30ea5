"""A stand-in for Acme Pay: its whole API over HTTP, with a ledger, idempotency keys, webhooks and faults on demand."""

import asyncio
import hashlib
import hmac
import json
import secrets
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Self, TypeAlias

from aiohttp import web

HOST = "127.0.0.1"
API_KEY = "acme_test_key"
"""The only API key that it knows."""

SLOW_S = 2.0
"""How long a `slow` request takes, in seconds."""

WORK_S = 0.01
"""How long any other change takes, so that requests sent at once meet, in seconds."""

SHUTDOWN_S = 0.1
"""How long running requests may take to end when the stand-in stops, in seconds."""

Fault: TypeAlias = Literal["slow", "drop_before", "drop_after"] | int
"""What happens to one request: it takes long, its connection breaks, or a proxy answers a page with this status."""

CARDS: Mapping[str, str] = {
    "card_ok": "captured",
    "card_slow": "captured",
    "card_lost_before": "captured",
    "card_lost_after": "captured",
    "card_no_funds": "declined",
    "card_3ds": "requires_action",
    "card_later": "processing",
}
"""Source -> what becomes of its payment."""

CARD_FAULTS: Mapping[str, Fault] = {
    "card_slow": "slow",
    "card_lost_before": "drop_before",
    "card_lost_after": "drop_after",
}
"""Source -> what goes wrong with the first request that names it under a key."""

JsonObject: TypeAlias = dict[str, Any]
Action: TypeAlias = Callable[[web.Request], Awaitable[JsonObject]]
Kind: TypeAlias = Literal["hold", "charge", "capture", "release", "refund"]


@dataclass(frozen=True, slots=True)
class Movement:
    """One row of the ledger: money held (`hold`), taken (`charge`, `capture`), released or given back."""

    kind: Kind
    reference: str
    amount: int
    currency: str


class RefusedError(Exception):
    """A request that changed nothing. A conflict tells the payment as it stands."""

    def __init__(self, status: int, code: str, standing: JsonObject | None = None) -> None:
        super().__init__(code)
        self.status = status
        self.body: JsonObject = {**(standing or {}), "error": {"code": code}}


class AcmePay:
    """The server: `async with AcmePay() as acme: acme.url`. `faults` are for the next requests, one each."""

    def __init__(self) -> None:
        self.url = ""
        self.ledger: list[Movement] = []
        self.faults: list[Fault] = []
        self._payments: dict[str, JsonObject] = {}
        self._refunds: dict[str, JsonObject] = {}
        self._answers: dict[str, tuple[bytes, JsonObject]] = {}
        self._heard: set[str] = set()
        self._running: set[str] = set()

    async def __aenter__(self) -> Self:
        """Listen on a free port."""
        app = web.Application()
        app.router.add_get("/account", self._serving(self._account))
        app.router.add_post("/payments", self._serving(self._create))
        app.router.add_get("/payments/{id}", self._serving(self._show_payment))
        app.router.add_post("/payments/{id}/capture", self._serving(self._capture))
        app.router.add_post("/payments/{id}/void", self._serving(self._void))
        app.router.add_post("/payments/{id}/refunds", self._serving(self._refund))
        app.router.add_get("/refunds/{id}", self._serving(self._show_refund))
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, 0).start()
        self.url = f"http://{HOST}:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    def moved(self, reference: str, *kinds: str) -> int:
        """Count the movements of these kinds for one reference of the merchant's."""
        return sum(row.reference == reference and row.kind in kinds for row in self.ledger)

    def customer_pays(self, payment_id: str) -> None:
        """Do what the customer does on Acme Pay's page."""
        payment = self._payments[payment_id]
        if payment["status"] == "requires_action":
            self._approve(payment)

    def finish_refund(self, refund_id: str, status: Literal["paid", "returned"]) -> None:
        """Do what the customer's bank does days later."""
        self._refunds[refund_id]["status"] = status

    def event(self, payment_id: str, event_type: str = "payment.changed") -> bytes:
        """Return the body of a webhook about a payment."""
        payment = self._payments[payment_id]
        about = {"payment": payment_id, "reference": payment["reference"], "refund": None}
        return json.dumps({"id": f"evt_{secrets.token_hex(8)}", "type": event_type, **about}).encode()

    def _serving(self, act: Action) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def serve(request: web.Request) -> web.Response:
            fault = await self._fault_for(request)
            if isinstance(fault, int):
                again = {"Location": request.path}  # whoever follows a redirect asks twice
                return web.Response(status=fault, text=f"<h1>{fault}</h1>", content_type="text/html", headers=again)
            if fault == "drop_before":
                return _drop(request)
            try:
                answer, status = await self._answer(request, act, seconds=SLOW_S if fault == "slow" else WORK_S), 200
            except RefusedError as refusal:
                answer, status = refusal.body, refusal.status
            return _drop(request) if fault == "drop_after" else web.json_response(answer, status=status)

        return serve

    async def _fault_for(self, request: web.Request) -> Fault | None:
        if self.faults:
            return self.faults.pop(0)
        key, raw = request.headers.get("Idempotency-Key", ""), await request.read()
        is_first = key not in self._heard
        self._heard.add(key)
        return CARD_FAULTS.get(json.loads(raw).get("source") or "") if raw and is_first else None

    async def _answer(self, request: web.Request, act: Action, *, seconds: float) -> JsonObject:
        """Act once under a key, and repeat the answer to it for ever; a refusal is kept under no key."""
        known = f"Basic {b64encode(f'{API_KEY}:'.encode()).decode()}"
        if not hmac.compare_digest(request.headers.get("Authorization", ""), known):
            raise RefusedError(401, "unknown_key")
        if request.method == "GET":
            return await act(request)
        key, asked = request.headers.get("Idempotency-Key"), request.path.encode() + await request.read()
        if not key:
            raise RefusedError(400, "key_missing")
        if key in self._running:
            raise RefusedError(409, "key_in_use")
        if key not in self._answers:
            self._running.add(key)
            try:
                await asyncio.sleep(seconds)
                self._answers[key] = asked, dict(await act(request))
            finally:
                self._running.discard(key)
        asked_first, answer = self._answers[key]
        if asked != asked_first:
            raise RefusedError(409, "key_used_otherwise")
        return answer

    async def _account(self, _: web.Request) -> JsonObject:
        return {"id": "acc_1"}

    async def _create(self, request: web.Request) -> JsonObject:
        asked = await _fields(request, "reference", "amount", "currency", "capture", "source", "return_url")
        source = asked["source"]
        if asked["amount"] < 1 or (source is not None and source not in CARDS):
            raise RefusedError(400, "bad_request")
        payment: JsonObject = {
            "id": f"pay_{secrets.token_hex(8)}",
            "status": "requires_action" if source is None else CARDS[source],
            **{name: asked[name] for name in ("reference", "amount", "currency", "capture")},
            "refunded": 0,
        }
        self._payments[payment["id"]] = payment
        if payment["status"] == "captured":
            self._approve(payment)
        if payment["status"] == "requires_action":
            payment["redirect_url"] = f"{self.url}/pay/{payment['id']}"
        if payment["status"] == "declined":
            payment["decline_code"] = "no_funds"
        return payment

    def _approve(self, payment: JsonObject) -> None:
        payment["status"] = "captured" if payment["capture"] else "authorized"
        self._move("charge" if payment["capture"] else "hold", payment, payment["amount"])

    async def _show_payment(self, request: web.Request) -> JsonObject:
        return self._find(self._payments, request)

    async def _capture(self, request: web.Request) -> JsonObject:
        payment, amount = self._find(self._payments, request), (await _fields(request, "amount"))["amount"]
        if payment["status"] != "authorized":
            raise RefusedError(409, "wrong_state", payment)
        if not 0 < amount <= payment["amount"]:
            raise RefusedError(400, "bad_amount")
        payment.update(status="captured", amount=amount)
        self._move("capture", payment, amount)
        return payment

    async def _void(self, request: web.Request) -> JsonObject:
        payment = self._find(self._payments, request)
        if payment["status"] == "authorized":
            payment["status"] = "voided"
            self._move("release", payment, payment["amount"])
        elif payment["status"] == "requires_action":
            payment["status"] = "cancelled"
        else:
            raise RefusedError(409, "wrong_state", payment)
        return payment

    async def _refund(self, request: web.Request) -> JsonObject:
        payment, asked = self._find(self._payments, request), await _fields(request, "reference", "amount")
        left = payment["amount"] - payment["refunded"] if payment["status"] == "captured" else 0
        if not 0 < asked["amount"] <= left:
            raise RefusedError(400, "bad_amount")
        payment["refunded"] += asked["amount"]
        refund = {"id": f"ref_{secrets.token_hex(8)}", "status": "pending", **asked}
        self._refunds[refund["id"]] = refund
        self._move("refund", payment, asked["amount"])
        return refund

    async def _show_refund(self, request: web.Request) -> JsonObject:
        return self._find(self._refunds, request)

    def _find(self, known: Mapping[str, JsonObject], request: web.Request) -> JsonObject:
        """Return what a path names by Acme Pay's id or by the merchant's reference."""
        wanted = request.match_info["id"]
        for each in known.values():
            if wanted in (each["id"], each["reference"]):
                return each
        raise RefusedError(404, "not_found")

    def _move(self, kind: Kind, payment: JsonObject, amount: int) -> None:
        self.ledger.append(Movement(kind, payment["reference"], amount, payment["currency"]))


async def _fields(request: web.Request, *names: str) -> JsonObject:
    """Return the body's fields; one more or one fewer is refused."""
    asked: JsonObject = await request.json()
    if set(asked) != set(names):
        raise RefusedError(400, "bad_request")
    return asked


def _drop(request: web.Request) -> web.Response:
    """Break the connection; the response returned is never sent."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def sign(body: bytes, secret: str, at: datetime) -> dict[str, str]:
    """Return the header with which Acme Pay signs a webhook."""
    seconds = int(at.timestamp())
    digest = hmac.new(secret.encode(), f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
    return {"acme-signature": f"t={seconds},v1={digest}"}
