"""The stand-in processor's control plane under `/_control/`: what it recorded, and how it shall misbehave."""

import json
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict

from aiohttp import web

from loop.testing.stub_faults import Fault, FaultPlan
from loop.testing.stub_ledger import JsonObject, Store
from loop.testing.stub_webhooks import Endpoint, WebhookFaults, Webhooks

CONTROL = "/_control"
REQUESTS_KEPT = 10_000
"""Requests remembered, the newest."""

KEY_HEADERS = ("Idempotency-Key", "X-Refund-Idempotency")
"""Headers in which processors take idempotency keys."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RequestLog:
    """What came in through the processor's own paths: method, path and idempotency key, never a secret."""

    def __init__(self) -> None:
        self.seen: deque[JsonObject] = deque(maxlen=REQUESTS_KEPT)

    def note(self, request: web.Request, at_ms: int) -> None:
        """Remember a request unless it is one to the control plane."""
        if request.path.startswith(f"{CONTROL}/"):
            return
        key = next((request.headers[name] for name in KEY_HEADERS if name in request.headers), None)
        self.seen.append({"at_ms": at_ms, "method": request.method, "path": request.path, "idempotency_key": key})


async def json_body(request: web.Request) -> JsonObject:
    """Return a control call's JSON object, `{}` for an empty body; ValueError or TypeError for anything else."""
    text = await request.text()
    body = json.loads(text) if text else {}
    if not isinstance(body, dict):
        raise TypeError("the body must be a JSON object")
    return body


def control(handle: Handler) -> Handler:
    """Answer a control call's ValueError, TypeError and KeyError with 400, and LookupError with 404."""

    async def handled(request: web.Request) -> web.StreamResponse:
        try:
            return await handle(request)
        except (ValueError, TypeError, KeyError) as error:
            return web.json_response({"error": str(error)}, status=400)
        except LookupError as error:
            return web.json_response({"error": str(error)}, status=404)

    return handled


class ControlPlane:
    """The calls every face shares."""

    def __init__(self, store: Store, faults: FaultPlan, *, webhooks: Webhooks, requests: RequestLog) -> None:
        self._store = store
        self._faults = faults
        self._webhooks = webhooks
        self._requests = requests

    def add_to(self, app: web.Application) -> None:
        """Register the routes."""
        for method, path, handle in (
            ("GET", "/ledger", self._ledger),
            ("GET", "/requests", self._seen),
            ("POST", "/faults", self._arm),
            ("DELETE", "/faults", self._disarm),
            ("POST", "/webhook_endpoints", self._add_endpoint),
            ("GET", "/webhooks", self._deliveries),
            ("POST", "/webhooks/faults", self._set_webhook_faults),
            ("POST", "/webhooks/release", self._release),
        ):
            app.router.add_route(method, f"{CONTROL}{path}", control(handle))

    async def _ledger(self, _: web.Request) -> web.StreamResponse:
        return web.json_response({"entries": [asdict(entry) for entry in self._store.entries]})

    async def _seen(self, _: web.Request) -> web.StreamResponse:
        return web.json_response({"requests": list(self._requests.seen)})

    async def _arm(self, request: web.Request) -> web.StreamResponse:
        body = await json_body(request)
        match = body.pop("match", {})
        fault = Fault(**body, **match)
        self._faults.arm(fault)
        return web.json_response({"armed": len(self._faults.armed)}, status=201)

    async def _disarm(self, _: web.Request) -> web.StreamResponse:
        self._faults.armed.clear()
        self._webhooks.faults = WebhookFaults()
        return web.json_response({"armed": 0})

    async def _add_endpoint(self, request: web.Request) -> web.StreamResponse:
        endpoint = Endpoint(**await json_body(request))
        self._webhooks.endpoints.append(endpoint)
        return web.json_response({"url": endpoint.url, "account": endpoint.account}, status=201)

    async def _deliveries(self, _: web.Request) -> web.StreamResponse:
        return web.json_response({"deliveries": list(self._webhooks.log)})

    async def _set_webhook_faults(self, request: web.Request) -> web.StreamResponse:
        self._webhooks.faults = WebhookFaults(**await json_body(request))
        return web.json_response(asdict(self._webhooks.faults))

    async def _release(self, request: web.Request) -> web.StreamResponse:
        body = await json_body(request)
        return web.json_response({"released": self._webhooks.release(int(body.get("seed", 0)))})
