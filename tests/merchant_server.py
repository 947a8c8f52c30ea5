"""A merchant's server that takes webhooks, and three ways to verify them of which none is Loop's own."""

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from aiohttp import web
from multidict import CIMultiDictProxy
from standardwebhooks import Webhook
from svix.webhooks import Webhook as SvixWebhook


@dataclass(slots=True)
class Received:
    """One request as the merchant's server saw it."""

    body: bytes
    headers: CIMultiDictProxy[str]
    path: str

    @property
    def event_id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event_type(self) -> str:
        return str(json.loads(self.body)["eventType"])


@dataclass(slots=True)
class MerchantServer:
    """Takes webhooks, and answers what it was told to answer next, or else `status`."""

    url: str = ""
    received: list[Received] = field(default_factory=list)
    next_statuses: list[int] = field(default_factory=list)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    answer: bytes = b""
    hang: asyncio.Event | None = None
    at_once: int = 0
    most_at_once: int = 0

    async def take(self, request: web.Request) -> web.Response:
        self.received.append(Received(await request.read(), request.headers, request.path))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.hang is not None:
                await self.hang.wait()
        finally:
            self.at_once -= 1
        status = self.next_statuses.pop(0) if self.next_statuses else self.status
        location = {"Location": f"{self.url}/elsewhere"} if status in (301, 302, 307) else {}
        return web.Response(status=status, headers={**location, **self.headers}, body=self.answer)

    def of(self, event_id: str) -> list[Received]:
        return [each for each in self.received if each.event_id == event_id]

    def at(self, path: str) -> list[str]:
        """Return the types of the events that came to a path."""
        return [each.event_type for each in self.received if each.path == path]


@asynccontextmanager
async def merchant_server() -> AsyncIterator[MerchantServer]:
    """Listen on a free port of this machine."""
    merchant = MerchantServer()
    app = web.Application()
    app.router.add_post("/{path:.*}", merchant.take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    merchant.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield merchant
    await runner.cleanup()


def verified_by_own_rules(received: Received, secret: str, *, now: datetime) -> object:
    """Verify `X-Loop-Signature` as merchants' clients do: the last of each name counts, 300 s are tolerated."""
    parts = dict(part.split("=", 1) for part in received.headers["X-Loop-Signature"].split(","))
    milliseconds = int(parts["t"])
    assert abs(now.timestamp() * 1000 - milliseconds) <= 300_000
    expected = hmac.new(secret.encode(), f"{milliseconds}.".encode() + received.body, hashlib.sha256).hexdigest()
    assert hmac.compare_digest(expected, parts["v1"])
    return json.loads(received.body)


def verified_by_libraries(received: Received, secret: str) -> object:
    """Verify `webhook-signature` by both libraries; they compare with the machine's clock."""
    headers = dict(received.headers)
    SvixWebhook(secret).verify(received.body, headers)
    return Webhook(secret).verify(received.body, headers)


def has_signed(secret: str, received: Received) -> bool:
    """Tell whether a secret made one of the signatures in `webhook-signature`, whatever the time."""
    at = datetime.fromtimestamp(int(received.headers["webhook-timestamp"]), UTC)
    made = Webhook(secret).sign(received.event_id, at, received.body.decode())
    content = f"{received.event_id}.{received.headers['webhook-timestamp']}.".encode() + received.body
    key = base64.b64decode(secret.removeprefix("whsec_"))
    assert made == f"v1,{base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()}"
    return made in received.headers["webhook-signature"].split(" ")
