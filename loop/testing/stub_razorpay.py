"""The stand-in processor's Razorpay face: its paths, keys, refund idempotency and faults around the operations."""

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from aiohttp import web

from loop.testing import stub_razorpay_disputes as disputes
from loop.testing import stub_razorpay_payments as payments
from loop.testing import stub_razorpay_settlements as settlements
from loop.testing.stub_control import Handler
from loop.testing.stub_faults import Fault, FaultPlan, drop, hold, html_refusal, send
from loop.testing.stub_ledger import JsonObject, Store, Work
from loop.testing.stub_razorpay_forms import CAPTURE, CREATE_ORDER, PAGE, REFUND, Param, check, parse_body, parse_query
from loop.testing.stub_razorpay_objects import (
    KEYS,
    RazorpayError,
    pack_webhook,
    refusal_of,
)
from loop.testing.stub_webhooks import Webhooks

KEY_HEADER = "X-Refund-Idempotency"

_KEY_ID = re.compile(r"rzp_(?:test|live)_[A-Za-z0-9_]{1,200}")
_REFUND_KEY = re.compile(r"[A-Za-z0-9_-]{10,255}")
_OWN_PATHS = frozenset(("orders", "payments", "settlements"))
_SHARED_PATHS = frozenset(("refunds", "disputes"))

Run: TypeAlias = Callable[[Work, JsonObject], JsonObject]


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of the API; `{id}` in its path is any id."""

    method: str
    path: str
    run: Run
    params: Mapping[str, Param] = field(default_factory=dict)
    takes_key: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer before it is sent."""

    status: int
    body: str
    content_type: str = "application/json"

    @classmethod
    def of_error(cls, error: RazorpayError) -> "Reply":
        """Return an error in Razorpay's shape."""
        return cls(error.status, json.dumps(error.body))

    @classmethod
    def of_fault(cls, fault: Fault) -> "Reply":
        """Return what a `status` fault answers."""
        if fault.html:
            return cls(fault.status, html_refusal(fault.status), "text/html")
        return cls.of_error(refusal_of(fault.status))


@dataclass(frozen=True, slots=True)
class Call:
    """One authenticated request; `key` is the refund's idempotency key."""

    operation: Operation
    account: str
    target: str
    path: str
    params: JsonObject
    origin: str
    key: str | None

    def work(self, store: Store) -> Work:
        """Return an empty work for this call's account."""
        return Work(store, self.account, self.origin, target=self.target, idempotency_key=self.key)

    def fingerprint(self) -> str:
        """Return a hash of what is asked for."""
        return hashlib.sha256(json.dumps([self.path, self.params], sort_keys=True).encode()).hexdigest()


def account_id(key_id: str) -> str:
    """Return the account a key id belongs to: each key id has its own, with its own ledger."""
    return f"acc_{hashlib.sha256(key_id.encode()).hexdigest()[:14]}"


class RazorpayFace:
    """Serves Razorpay's API over a store; everything it does to money is in the store before it answers."""

    def __init__(self, store: Store, faults: FaultPlan, *, webhooks: Webhooks) -> None:
        self._store = store
        self._faults = faults
        self._webhooks = webhooks
        self._in_flight: set[tuple[str, str]] = set()

    @web.middleware
    async def divert(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer a request that is meant for Razorpay, by its path or by whose key it carries; leave the others."""
        version, _, path = request.path.removeprefix("/").partition("/")
        noun = path.split("/")[0]
        is_shared = noun in _SHARED_PATHS and (_basic_auth(request) or ("", ""))[0].startswith("rzp_")
        is_ours = version == "v1" and (noun in _OWN_PATHS or is_shared)
        return await (self._serve(request) if is_ours else handler(request))

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        fault = self._faults.take(request.method, request.path)
        if fault is not None and fault.kind == "drop_before":
            return drop(request)
        try:
            reply = await self._once(self._call(request, raw), fault)
        except RazorpayError as refusal:
            reply = Reply.of_error(refusal)
        await self._store.sync()
        headers = {"Content-Type": reply.content_type}
        return await send(request, status=reply.status, body=reply.body, headers=headers, fault=fault)

    def _call(self, request: web.Request, raw: bytes) -> Call:
        account = self._authenticated(request)
        operation, target = _operation(request.method, request.path)
        if request.method == "GET":
            given = parse_query(request.query, operation.params)
        else:
            given = parse_body(raw.decode("utf-8", "replace"))
        key = request.headers.get(KEY_HEADER) if operation.takes_key else None
        if key is not None and not _REFUND_KEY.fullmatch(key):
            raise RazorpayError(400, f"{KEY_HEADER} must have 10 or more of A-Z, a-z, 0-9, - and _.")
        return Call(operation, account, target, request.path, given, str(request.url.origin()), key)

    def _authenticated(self, request: web.Request) -> str:
        """Return the account of the request's key; the first secret that comes with a key id is that key's own."""
        key_id, secret = _basic_auth(request) or ("", "")
        account = account_id(key_id)
        known = self._store.get(account, KEYS, object_id=key_id)
        is_right = known is None or hmac.compare_digest(known["secret"].encode(), secret.encode())
        if not _KEY_ID.fullmatch(key_id) or "_invalid" in key_id or not secret or not is_right:
            raise RazorpayError(401, "Authentication failed", reason="NA")
        if known is None:
            work = Work(self._store, account, "")
            work.put(KEYS, {"id": key_id, "secret": secret})
            self._store.commit(work)
        return account

    async def _once(self, call: Call, fault: Fault | None) -> Reply:
        if call.key is None:
            await hold(fault)
            return self._execute(call, fault)
        slot = (call.account, call.key)
        if slot in self._in_flight:
            raise refusal_of(409)
        self._in_flight.add(slot)
        try:
            await hold(fault)
            stored = self._store.get(call.account, "rzp_idempotency", object_id=call.key)
            if stored is None:
                return self._execute(call, fault)
            if stored["fingerprint"] != call.fingerprint():
                raise RazorpayError(400, "Different request body sent for the same Refund Idempotency key.")
            return Reply(stored["status"], stored["body"])
        finally:
            self._in_flight.discard(slot)

    def _execute(self, call: Call, fault: Fault | None) -> Reply:
        if fault is None or fault.kind != "status":
            work, reply = self._run(call)
            self._keep(call, work, reply)
            return reply
        refused = Reply.of_fault(fault)
        work = self._run(call)[0] if fault.executes else call.work(self._store)
        self._keep(call, work, refused if fault.stored else None)
        return refused

    def _run(self, call: Call) -> tuple[Work, Reply]:
        work = call.work(self._store)
        answer = call.operation.run(work, check(call.params, call.operation.params))
        return work, Reply(200, json.dumps(answer))

    def _keep(self, call: Call, work: Work, reply: Reply | None) -> None:
        if call.key is not None and reply is not None:
            told = {"fingerprint": call.fingerprint(), "status": reply.status, "body": reply.body}
            work.put("rzp_idempotency", {"id": call.key, **told})
        self._store.commit(work)
        self._webhooks.publish(work.account, work.events, pack=pack_webhook)


def _basic_auth(request: web.Request) -> tuple[str, str] | None:
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        key_id, _, secret = base64.b64decode(value, validate=True).decode("ascii").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return key_id, secret


def _operation(method: str, path: str) -> tuple[Operation, str]:
    for operation in OPERATIONS:
        matched = re.fullmatch(operation.path.replace("{id}", "([^/]+)"), path)
        if matched and operation.method == method:
            return operation, matched[1] if matched.groups() else ""
    raise RazorpayError(404, "The requested URL was not found on the server.", reason="NA")


OPERATIONS: tuple[Operation, ...] = (
    Operation("POST", "/v1/orders", payments.create_order, CREATE_ORDER),
    Operation("GET", "/v1/orders", payments.list_orders, {**PAGE, "receipt": Param()}),
    Operation("GET", "/v1/orders/{id}", payments.fetch_order),
    Operation("GET", "/v1/orders/{id}/payments", payments.list_order_payments, PAGE),
    Operation("GET", "/v1/payments/{id}", payments.fetch_payment, {"expand[]": Param()}),
    Operation("POST", "/v1/payments/{id}/capture", payments.capture, CAPTURE),
    Operation("POST", "/v1/payments/{id}/refund", payments.refund, REFUND, takes_key=True),
    Operation("GET", "/v1/payments/{id}/refunds", payments.list_payment_refunds, PAGE),
    Operation("GET", "/v1/refunds", payments.list_refunds, PAGE),
    Operation("GET", "/v1/refunds/{id}", payments.fetch_refund),
    Operation("GET", "/v1/disputes", disputes.list_disputes, PAGE),
    Operation("GET", "/v1/disputes/{id}", disputes.fetch_dispute),
    Operation("GET", "/v1/settlements/recon/combined", settlements.combined, settlements.REPORT),
)
