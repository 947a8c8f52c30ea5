"""A merchant's side of the contract: a server that verifies webhooks, a client of the API, a customer's browser."""

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import aiohttp
from aiohttp import web

JsonObject: TypeAlias = dict[str, Any]

HOST = "127.0.0.1"
TOLERANCE_MS = 300_000
"""How far a webhook's signed time may be from now, both ways, in milliseconds."""

BODY_BYTES_MAX = 1 << 18
CALL_S = 40.0
"""Longest wait for one answer, in seconds: a payment may hold its own back for 30."""

SHUTDOWN_S = 1.0
"""How long running requests may take to end when the shop closes, in seconds."""


class DemoError(Exception):
    """Something did not go as the contract says; the message says what."""


@dataclass(frozen=True, slots=True)
class Received:
    """A webhook as it came in; `problem` says what is wrong with it and is None when both signatures are right."""

    headers: Mapping[str, str]
    body: bytes
    event: JsonObject
    problem: str | None


class Shop:
    """A merchant's server: `async with Shop() as shop: shop.webhook_url`; it believes what `secret` has signed."""

    def __init__(self, *, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self.secret = ""
        self.received: list[Received] = []
        self.url = ""
        self._clock_ns = clock_ns
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Listen on a free port."""
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_post("/webhooks", self._take)
        app.router.add_get("/thanks", self._thank)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, 0).start()
        self.url = f"http://{HOST}:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    @property
    def webhook_url(self) -> str:
        """Where the shop wants its webhooks."""
        return f"{self.url}/webhooks"

    @property
    def thanks_url(self) -> str:
        """Where customers shall come back to."""
        return f"{self.url}/thanks"

    def now_ms(self) -> int:
        """Return the shop's clock in milliseconds since the epoch."""
        return self._clock_ns() // 1_000_000

    def events(self) -> dict[str, JsonObject]:
        """Return every verified event by its id: Loop may send one twice, and in any order."""
        return {one.event["id"]: one.event for one in self.received if one.problem is None}

    async def until(self, is_enough: Callable[[], bool], timeout_s: float) -> None:
        """Wait for webhooks until `is_enough()`; TimeoutError when that takes longer."""
        async with asyncio.timeout(timeout_s):
            while not is_enough():
                self._news.clear()
                await self._news.wait()

    async def _take(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        problem = problem_of(self.secret, request.headers, body=body, now_ms=self.now_ms())
        event: JsonObject = json.loads(body) if problem is None else {}
        self.received.append(Received(request.headers, body, event, problem))
        self._news.set()
        return web.Response(status=204) if problem is None else web.Response(status=400, text=problem)

    async def _thank(self, _: web.Request) -> web.StreamResponse:
        return web.Response(text="Thank you for your order.")


def problem_of(secret: str, headers: Mapping[str, str], *, body: bytes, now_ms: int) -> str | None:
    """Return what is wrong with a webhook's signatures, or None when both are right and fresh.

    `headers` finds a name however it is written. Either scheme alone would do for a real shop.
    """
    return _problem_of_loop(secret, headers, body, now_ms) or _problem_of_standard(secret, headers, body, now_ms)


def _problem_of_loop(secret: str, headers: Mapping[str, str], body: bytes, now_ms: int) -> str | None:
    """Check `X-Loop-Signature: t=<ms>,v1=<hex>`: HMAC-SHA256 under the secret's text, over `<ms>.<body>`."""
    items = [item.partition("=") for item in headers.get("X-Loop-Signature", "").split(",")]
    times = [value for name, _, value in items if name == "t"]
    if len(times) != 1 or not _is_fresh(times[0], now_ms, unit_ms=1):
        return "X-Loop-Signature is missing or too old"
    expected = hmac.new(secret.encode(), f"{times[0]}.".encode() + body, hashlib.sha256).hexdigest()
    given = [value.encode() for name, _, value in items if name == "v1"]
    if not any(hmac.compare_digest(expected.encode(), each) for each in given):
        return "X-Loop-Signature does not fit"
    is_consistent = headers.get("X-Loop-Timestamp") == times[0] and "X-Loop-Event-Id" in headers
    return None if is_consistent else "X-Loop-Timestamp or X-Loop-Event-Id is missing or different"


def _problem_of_standard(secret: str, headers: Mapping[str, str], body: bytes, now_ms: int) -> str | None:
    """Check Standard Webhooks: HMAC-SHA256 under the decoded secret, over `<id>.<timestamp>.<body>`."""
    at, event_id = headers.get("webhook-timestamp", ""), headers.get("webhook-id", "")
    if not event_id or not _is_fresh(at, now_ms, unit_ms=1000):
        return "webhook-id or webhook-timestamp is missing or too old"
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        return "the shop's own secret is not base64"
    digest = hmac.new(key, f"{event_id}.{at}.".encode() + body, hashlib.sha256).digest()
    expected = b"v1," + base64.b64encode(digest)
    given = headers.get("webhook-signature", "").encode().split()
    return None if any(hmac.compare_digest(expected, each) for each in given) else "webhook-signature does not fit"


def _is_fresh(at: str, now_ms: int, *, unit_ms: int) -> bool:
    return at.isascii() and at.isdigit() and len(at) <= 15 and abs(int(at) * unit_ms - now_ms) <= TOLERANCE_MS


class LoopClient:
    """A shop's calls to Loop, over the public HTTP API only: `async with LoopClient(url) as loop`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._credentials: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        """Open the connections."""
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=CALL_S))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self._session.close()

    def sign_in(self, token: str) -> None:
        """Call as the person who holds this access token from now on."""
        self._credentials = {"Authorization": f"Bearer {token}"}

    def use_key(self, api_key: str) -> None:
        """Call with this API key from now on."""
        self._credentials = {"X-API-Key": api_key}

    async def get(self, path: str) -> JsonObject:
        """Return the object at a path; DemoError for any other answer."""
        return _object(await self._call("GET", path, None), path)

    async def get_list(self, path: str) -> list[JsonObject]:
        """Return the array at a path; DemoError for any other answer."""
        answer = await self._call("GET", path, None)
        if not isinstance(answer, list):
            raise DemoError(f"GET {path} did not answer with an array.")
        return [_object(each, path) for each in answer]

    async def post(self, path: str, body: JsonObject | None = None) -> JsonObject:
        """Post to a path and return the object it answers; DemoError for a refusal."""
        return _object(await self._call("POST", path, body or {}), path)

    async def put(self, path: str, body: JsonObject) -> JsonObject:
        """Put to a path and return the object it answers; DemoError for a refusal."""
        return _object(await self._call("PUT", path, body), path)

    async def _call(self, method: str, path: str, body: JsonObject | None) -> object:
        try:
            async with self._session.request(method, self.url + path, json=body, headers=self._credentials) as answer:
                text, status = await answer.text(), answer.status
        except (aiohttp.ClientError, TimeoutError) as error:
            raise DemoError(f"{method} {path} got no answer ({type(error).__name__}).") from error
        try:
            content: object = json.loads(text)
        except ValueError:
            raise DemoError(f"{method} {path} answered {status} without JSON.") from None
        if not 200 <= status < 300:
            told = content if isinstance(content, dict) else {}
            raise DemoError(f"{method} {path} answered {status} {told.get('code')}: {told.get('message')}")
        return content


def _object(content: object, path: str) -> JsonObject:
    if not isinstance(content, dict):
        raise DemoError(f"{path} did not answer with an object.")
    return content


async def confirm_at_the_bank(url: str) -> str:
    """Play the customer: open the bank's page, confirm, follow the way back; return the address it ends at."""
    timeout = aiohttp.ClientTimeout(total=CALL_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout, raise_for_status=True) as browser:
            async with browser.get(url) as page:
                await page.read()
            async with browser.post(url, data={"outcome": "authenticate"}) as last:
                await last.read()
                return str(last.url)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise DemoError(f"The customer got stuck between bank and shop: {error}") from error
