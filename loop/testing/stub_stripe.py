"""The stand-in processor's Stripe face: routes, keys, idempotency and faults around the operations."""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from aiohttp import web

from loop.testing import stub_stripe_intents as intents
from loop.testing import stub_stripe_refunds as refunds
from loop.testing.stub_faults import Fault, FaultPlan, drop, hold, html_refusal, send
from loop.testing.stub_ledger import JsonObject, Store, Work
from loop.testing.stub_stripe_cards import SLOW_S, card_of
from loop.testing.stub_stripe_errors import (
    StripeError,
    key_in_use,
    key_reused,
    missing_object,
    refusal_of,
    unauthorized,
)
from loop.testing.stub_stripe_forms import Param, check, parse_form
from loop.testing.stub_stripe_objects import API_VERSION, expand, list_page, public
from loop.testing.stub_webhooks import Webhooks

KEY_LIFE_S = 24 * 3600
"""How long an idempotency key answers with its first result, in seconds."""

KEY_CHARS_MAX = 255

_API_KEY = re.compile(r"sk_[A-Za-z0-9_]{1,250}")


Run: TypeAlias = Callable[[Work, JsonObject], JsonObject]


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of the API: `run(work, checked params)` returns the answer's object."""

    method: str
    path: str
    run: Run
    params: Mapping[str, Param] = field(default_factory=lambda: {"expand": Param("strings")})
    may_charge: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer before it is sent; `headers` are those that are stored with it."""

    status: int
    body: str
    headers: Mapping[str, str]

    @classmethod
    def of_json(cls, body: JsonObject) -> "Reply":
        """Return a success."""
        return cls(200, _json(body), {"Content-Type": "application/json"})

    @classmethod
    def of_error(cls, error: StripeError) -> "Reply":
        """Return an error in Stripe's shape."""
        return cls(error.status, _json(error.body), {"Content-Type": "application/json", **error.headers})

    @classmethod
    def of_fault(cls, fault: Fault) -> "Reply":
        """Return what a `status` fault answers; a stored one tells the client that repeating is no use."""
        if fault.html:
            return cls(fault.status, html_refusal(fault.status), {"Content-Type": "text/html"})
        error = refusal_of(fault.status)
        if fault.stored:
            error.headers["Stripe-Should-Retry"] = "false"
        return cls.of_error(error)


@dataclass(frozen=True, slots=True)
class Call:
    """One authenticated request."""

    operation: Operation
    account: str
    is_live: bool
    origin: str
    path: str
    target: str
    text: str
    request_id: str
    key: str | None

    def work(self, store: Store) -> Work:
        """Return an empty work for this call's account."""
        return Work(
            store,
            self.account,
            self.origin,
            target=self.target,
            request_id=self.request_id,
            idempotency_key=self.key,
            livemode=self.is_live,
        )

    def fingerprint(self) -> str:
        """Return a hash of the parameters that does not depend on their order."""
        return hashlib.sha256(_json(parse_form(self.text)).encode()).hexdigest()


def account_id(api_key: str) -> str:
    """Return the account an API key belongs to: each key has its own, with its own ledger."""
    return f"acct_{hashlib.sha256(api_key.encode()).hexdigest()[:16]}"


class StripeFace:
    """Serves Stripe's API over a store; everything it does to money is in the store before it answers."""

    def __init__(self, store: Store, faults: FaultPlan, *, webhooks: Webhooks) -> None:
        self._store = store
        self._faults = faults
        self._webhooks = webhooks
        self._in_flight: set[tuple[str, str]] = set()

    def add_to(self, app: web.Application) -> None:
        """Register the API's routes, and a Stripe-shaped 404 for the rest of `/v1/`."""
        for operation in _OPERATIONS:
            app.router.add_route(operation.method, operation.path, self._handler(operation))
        app.router.add_route("*", "/v1/{rest:.*}", self._handler(None))

    def _handler(self, operation: Operation | None) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            return await self._serve(request, operation)

        return handle

    async def _serve(self, request: web.Request, operation: Operation | None) -> web.StreamResponse:
        raw = await request.read()
        fault = self._faults.take(request.method, request.path)
        if fault is not None and fault.kind == "drop_before":
            return drop(request)
        request_id = self._store.new_id("req")
        key = request.headers.get("Idempotency-Key") if request.method == "POST" else None
        reply: Reply | None
        try:
            api_key = _api_key(request.headers.get("Authorization", ""))
            call = Call(
                operation=operation or _unrecognized(request),
                account=account_id(api_key),
                is_live=api_key.startswith("sk_live_"),
                origin=str(request.url.origin()),
                path=request.path,
                target=request.match_info.get("id", ""),
                text=_text(request, raw),
                request_id=request_id,
                key=key,
            )
            reply, fault = await self._once(call, fault)
        except StripeError as refusal:
            reply = Reply.of_error(refusal)
        await self._store.sync()
        if reply is None:
            return drop(request)
        headers = {
            "Request-Id": request_id,
            "Stripe-Version": request.headers.get("Stripe-Version", API_VERSION),
            **({"Idempotency-Key": key} if key else {}),
            **reply.headers,
        }
        return await send(request, status=reply.status, body=reply.body, headers=headers, fault=fault)

    async def _once(self, call: Call, fault: Fault | None) -> tuple[Reply | None, Fault | None]:
        if call.key is None:
            await hold(fault)
            return await self._execute(call, fault)
        if not 1 <= len(call.key) <= KEY_CHARS_MAX:
            raise StripeError(400, f"Idempotency keys may have 1 to {KEY_CHARS_MAX} characters.")
        slot = (call.account, call.key)
        if slot in self._in_flight:
            raise key_in_use(call.key)
        self._in_flight.add(slot)
        try:
            await hold(fault)
            stored = self._store.get(call.account, "idempotency", object_id=call.key)
            if stored is None or stored["at_s"] + KEY_LIFE_S <= self._store.now_ms() // 1000:
                return await self._execute(call, fault)
            return _replay(call, stored), fault
        finally:
            self._in_flight.discard(slot)

    async def _execute(self, call: Call, fault: Fault | None) -> tuple[Reply | None, Fault | None]:
        if fault is not None and fault.kind == "status" and not fault.stored:
            return Reply.of_fault(fault), fault
        params = check(parse_form(call.text), call.operation.params)
        if fault is None and call.operation.may_charge:
            fault = self._quirk(call, params)
            await hold(fault)
        if fault is not None and fault.kind == "drop_before":
            return None, None
        work, reply, is_result = self._run(call, params, fault=fault)
        if call.key is not None and is_result:
            work.put("idempotency", _record(call, reply, at_s=work.now_s))
        self._store.commit(work)
        self._webhooks.publish(work.account, work.events)
        return reply, fault

    def _run(self, call: Call, params: JsonObject, *, fault: Fault | None) -> tuple[Work, Reply, bool]:
        work = call.work(self._store)
        refused = Reply.of_fault(fault) if fault is not None and fault.kind == "status" else None
        if fault is not None and refused is not None and not fault.executes:
            return work, refused, True
        try:
            answer = call.operation.run(work, params)
            reply = Reply.of_json(expand(work, answer, paths=params.get("expand", [])))
        except StripeError as refusal:
            if refusal.status != 402:
                work = call.work(self._store)
            return work, refused or Reply.of_error(refusal), refusal.executed
        return work, refused or reply, True

    def _quirk(self, call: Call, params: JsonObject) -> Fault | None:
        """Return the fault that the stand-in's own test tokens ask for."""
        work = call.work(self._store)
        token = intents.token_to_confirm(work, params)
        card = card_of(token) if token else None
        if card is None or card.quirk is None:
            return None
        if card.quirk == "timeout_then_charged":
            return Fault(kind="drop_after")
        if card.quirk == "server_error":
            return Fault(kind="status", status=500, stored=True)
        if card.quirk == "slow":
            return Fault(kind="slow", delay_s=SLOW_S)
        first = call.key or f"{call.path} {call.fingerprint()}"
        if work.get("dropped_once", first) is not None:
            return None
        work.put("dropped_once", {"id": first})
        self._store.commit(work)
        return Fault(kind="drop_before")


def _record(call: Call, reply: Reply, *, at_s: int) -> JsonObject:
    return {
        "id": call.key,
        "at_s": at_s,
        "path": call.path,
        "fingerprint": call.fingerprint(),
        "request_id": call.request_id,
        "status": reply.status,
        "body": reply.body,
        "headers": dict(reply.headers),
    }


def _replay(call: Call, stored: JsonObject) -> Reply:
    key = str(call.key)
    if stored["path"] != call.path:
        raise key_reused(key, other_path=(call.path, stored["path"]))
    if stored["fingerprint"] != call.fingerprint():
        raise key_reused(key)
    told = {"Idempotent-Replayed": "true", "Original-Request": stored["request_id"]}
    return Reply(stored["status"], stored["body"], {**stored["headers"], **told})


def _unrecognized(request: web.Request) -> Operation:
    raise StripeError(404, f"Unrecognized request URL ({request.method}: {request.path}).")


def _api_key(header: str) -> str:
    scheme, _, value = header.partition(" ")
    value = value.strip()
    if scheme.lower() == "basic":
        try:
            value = base64.b64decode(value, validate=True).decode("ascii").partition(":")[0]
        except (binascii.Error, UnicodeDecodeError):
            value = ""
    elif scheme.lower() != "bearer":
        value = ""
    if not value:
        raise unauthorized(
            "You did not provide an API key. You need to provide your API key in the Authorization header, using "
            "Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY')."
        )
    if not _API_KEY.fullmatch(value) or "_invalid" in value:
        raise unauthorized(f"Invalid API Key provided: {'*' * 12}{value[-4:] if len(value) > 12 else ''}")
    return value


def _text(request: web.Request, raw: bytes) -> str:
    if request.method != "POST":
        return request.query_string
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise StripeError(400, "Invalid UTF-8 in the request body.") from error


def _json(body: JsonObject) -> str:
    return json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False)


def _fetch(kind: str, noun: str) -> Run:
    def fetch(work: Work, _: JsonObject) -> JsonObject:
        item = work.get(kind, work.target)
        if item is None:
            raise missing_object(noun, work.target)
        return public(item)

    return fetch


def _list(kind: str, path: str) -> Run:
    def fetch(work: Work, params: JsonObject) -> JsonObject:
        return list_page(work, kind, params=params, path=path)

    return fetch


def _account(work: Work, _: JsonObject) -> JsonObject:
    return {
        "id": work.account,
        "object": "account",
        "charges_enabled": True,
        "country": "US",
        "default_currency": "usd",
        "details_submitted": True,
        "email": None,
        "payouts_enabled": True,
        "type": "standard",
    }


_WHEN = Param("object", fields={name: Param("integer") for name in ("gt", "gte", "lt", "lte")})
_PAGE: Mapping[str, Param] = {
    "created": _WHEN,
    "limit": Param("integer"),
    "starting_after": Param(),
    "expand": Param("strings"),
}


def _resource(kind: str, noun: str, **filters: Param) -> list[Operation]:
    path = f"/v1/{kind}"
    return [
        Operation("GET", path, _list(kind, path), params={**_PAGE, **filters}),
        Operation("GET", f"{path}/{{id}}", _fetch(kind, noun)),
    ]


_OPERATIONS: tuple[Operation, ...] = (
    Operation("POST", "/v1/payment_intents", intents.create, intents.CREATE, may_charge=True),
    Operation("POST", "/v1/payment_intents/{id}/confirm", intents.confirm, intents.CONFIRM, may_charge=True),
    Operation("POST", "/v1/payment_intents/{id}/capture", intents.capture, intents.CAPTURE),
    Operation("POST", "/v1/payment_intents/{id}/cancel", intents.cancel, intents.CANCEL),
    Operation("POST", "/v1/refunds", refunds.create, refunds.CREATE),
    Operation("GET", "/v1/account", _account),
    *_resource("payment_intents", "payment_intent"),
    *_resource("refunds", "refund", payment_intent=Param(), charge=Param()),
    *_resource("charges", "charge", payment_intent=Param()),
    *_resource("disputes", "dispute", payment_intent=Param(), charge=Param()),
    *_resource("balance_transactions", "balance_transaction", source=Param(), type=Param(), currency=Param()),
    *_resource("events", "event", type=Param(), types=Param("strings")),
)
