"""The edge: correlation ids, headers, CORS, unknown addresses, unforeseen errors, health, and the log line."""

import asyncio
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message

from loop import telemetry
from loop.runtime import Running
from loop.server import app as application
from tests.api.client import Shop

ORIGIN = "https://dashboard.example"


@pytest.fixture
def flags() -> dict[str, object]:
    return {"cors_origins": f"{ORIGIN},http://localhost:3000"}


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """Yield the log of the test as it is written."""
    kept: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(self.format(record))

    ours, root = logging.getLogger("loop"), logging.getLogger()
    level = ours.level
    handler = Kept()
    handler.setFormatter(telemetry._JsonFormatter())
    root.addHandler(handler)
    ours.setLevel(logging.INFO)
    yield kept
    root.removeHandler(handler)
    ours.setLevel(level)


async def test_health_is_as_the_contract_says(shop: Shop) -> None:
    health = await shop.get("/health", auth={})
    assert health.status == 200
    assert set(health.body) == {"status", "timestamp", "correlationId"}
    assert (health.body["status"], health.body["correlationId"]) == ("ok", health.headers["X-Correlation-ID"])
    assert health.body["timestamp"].endswith("Z")
    ready = await shop.get("/health/ready", auth={})
    assert (ready.status, ready.body["checks"]) == (200, {"database": "ok"})


async def test_not_ready_without_a_database(served: Running, shop: Shop) -> None:
    if served.context.settings.is_sqlite:
        pytest.skip("a SQLite file does not go away")
    await served.context.database.close()
    ready = await shop.get("/health/ready", auth={})
    assert (ready.status, ready.code) == (503, "not_ready")
    assert int(ready.headers["Retry-After"]) >= 1
    assert (await shop.get("/health", auth={})).status == 200
    away = await shop.post("/v1/orders", {"amount": 1}, auth={"Authorization": f"Bearer {shop.token}"})
    assert away.status == 503


@pytest.mark.parametrize("header", ["X-Correlation-ID", "X-Request-ID"])
async def test_a_sane_correlation_id_is_kept(shop: Shop, header: str) -> None:
    for mine in ("abc-123.DEF:x_y", "a" * 128):
        assert (await shop.get("/health", headers={header: mine})).headers["X-Correlation-ID"] == mine
    for bad in ("a b", "a" * 129, "", "é", '"<script>"', "4242424242424242", "card:4242-4242-4242-4242"):
        given = (await shop.get("/health", headers={header: bad})).headers["X-Correlation-ID"]
        assert given != bad
        assert re.fullmatch("[0-9a-f]{24}", given)
    both = await shop.get("/health", headers={"X-Correlation-ID": "first", "X-Request-ID": "second"})
    assert both.headers["X-Correlation-ID"] == "first"
    assert (await shop.get("/nowhere", headers={header: "mine"})).body["requestId"] == "mine"


async def test_the_correlation_id_reaches_the_job_of_a_payment(shop: Shop, lines: list[str]) -> None:
    order = await shop.order()
    await shop.post(f"/v1/orders/{order['id']}/pay", {"paymentMethod": {"type": "card", "token": "tok_approve"}},
                    headers={"X-Correlation-ID": "follow-me"})  # fmt: skip
    seen = {line["event"] for line in map(json.loads, lines) if line.get("correlation_id") == "follow-me"}
    assert {"payment.started", "payment.recorded", "http.request"} <= seen


async def test_each_request_is_logged_once_without_its_query(shop: Shop, lines: list[str]) -> None:
    await shop.get("/v1/orders/ord_secret?token=hunter2")
    await shop.get("/nowhere?token=hunter2")
    told = [line for line in map(json.loads, lines) if line["event"] == "http.request"]
    assert [(line["method"], line["path"], line["status"]) for line in told] == [
        ("GET", "/v1/orders/{order_id}", 404),
        ("GET", "/nowhere", 404),
    ]
    assert all(line["ms"] >= 0 for line in told)
    assert "hunter2" not in "".join(lines)
    assert shop.key not in "".join(lines)


async def test_unknown_addresses_and_methods_answer_in_the_one_shape(shop: Shop) -> None:
    for path in ("/nowhere", "/", "/v1/orders/", "/v1//orders"):
        unknown = await shop.get(path)
        assert (unknown.status, unknown.code) == (404, "not_found"), path
    wrong = await shop.call("DELETE", "/v1/orders")
    assert (wrong.status, wrong.code) == (405, "method_not_allowed")
    assert "POST" in (await shop.call("PUT", "/v1/orders")).headers["Allow"]


async def test_every_answer_carries_the_safe_headers(shop: Shop) -> None:
    for answer in (await shop.get("/health"), await shop.get("/nowhere"), await shop.post("/v1/orders", {})):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert "Server" not in answer.headers
        assert "Strict-Transport-Security" not in answer.headers


async def test_only_named_origins_may_call_from_a_browser(shop: Shop) -> None:
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    allowed = await shop.call("OPTIONS", "/v1/orders", auth={}, headers={"Origin": ORIGIN, **ask})
    assert allowed.status == 204
    assert allowed.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "POST" in allowed.headers["Access-Control-Allow-Methods"]
    assert "X-API-Key" in allowed.headers["Access-Control-Allow-Headers"]
    assert allowed.headers["Vary"] == "Origin"
    assert int(allowed.headers["Access-Control-Max-Age"]) == 600
    assert "Access-Control-Allow-Credentials" not in allowed.headers
    for origin in ("https://evil.example", f"{ORIGIN}.evil.example", "null", f"{ORIGIN}:444", "http://localhost"):
        denied = await shop.call("OPTIONS", "/v1/orders", auth={}, headers={"Origin": origin, **ask})
        assert "Access-Control-Allow-Origin" not in denied.headers
        assert "Access-Control-Allow-Methods" not in denied.headers
    answer = await shop.post("/v1/orders", {"amount": 1}, headers={"Origin": ORIGIN})
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "X-Correlation-ID" in answer.headers["Access-Control-Expose-Headers"]
    refused = await shop.get("/health", auth={}, headers={"Origin": "http://localhost:3000"})
    assert refused.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/health", 200), ("/health/ready", 200), ("/nowhere", 404), ("/v1/orders", 200), ("/api/me", 200),
        ("/webhooks/stripe", 405), ("/checkout/cs_1", 404), ("/return/att_1", 404), ("/sandbox/payments/x", 404),
        ("/dashboard/sign-in", 200), ("/dashboard", 303), ("/assets/pages.css", 200), ("/assets/none.css", 404),
    ],
)  # fmt: skip
async def test_pages_files_and_errors_carry_the_safe_headers_too(shop: Shop, path: str, status: int) -> None:
    answer = await shop.get(path)
    assert answer.status == status
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] in ("no-referrer", "same-origin")
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert ("no-store" in answer.headers["Cache-Control"]) != path.startswith("/assets/pages.css")
    assert "Server" not in answer.headers
    assert "Access-Control-Allow-Origin" not in answer.headers


async def ask(app: ASGIApp, path: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> list[Message]:
    """Ask an application that listens nowhere; return the messages of its answer."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    scope = {"type": "http", "method": "GET", "path": path, "headers": [*headers], "query_string": b""}
    await app(scope, receive, send)
    return sent


async def test_any_origin_may_call_but_with_nothing_that_the_browser_keeps(served: Running) -> None:
    anybody = replace(served.context.settings, cors_origins=("*",))
    app = application.create_app(replace(served.context, settings=anybody))
    headers = dict((await ask(app, "/health", [(b"origin", b"https://evil.example")]))[0]["headers"])
    assert headers[b"access-control-allow-origin"] == b"*"
    assert b"RateLimit-Remaining" in headers[b"access-control-expose-headers"]
    assert b"access-control-allow-credentials" not in headers
    assert b"vary" not in headers
    assert b"access-control-allow-origin" not in dict((await ask(app, "/health"))[0]["headers"])


async def test_behind_https_browsers_are_told_to_stay_there(served: Running) -> None:
    secure = replace(served.context.settings, checkout_base_url="https://pay.example")
    sent = await ask(application.create_app(replace(served.context, settings=secure)), "/health")
    assert dict(sent[0]["headers"])[b"strict-transport-security"].startswith(b"max-age=")


async def test_what_nobody_foresaw_is_told_to_the_log_only(
    served: Running, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_request: Request) -> Response:
        raise RuntimeError("the password is hunter2, said /srv/loop/server/secret.py")

    monkeypatch.setattr(application, "API_ROUTES", [Route("/health", fail, methods=["GET"])])
    sent = await ask(application.create_app(served.context), "/health")
    body = json.loads(sent[1]["body"])
    assert sent[0]["status"] == 500
    assert body["code"] == "internal_error"
    assert "hunter2" not in json.dumps(body)
    assert "secret.py" not in json.dumps(body)
    failed = next(line for line in map(json.loads, lines) if line["event"] == "http.failed")
    assert failed["correlation_id"] == body["requestId"]
    assert "RuntimeError" in failed["traceback"]


@pytest.mark.slow
async def test_an_idle_connection_is_kept_for_whoever_sends_into_it(served: Running) -> None:
    """Uvicorn's own five seconds had clients and proxies, which keep theirs longer, send into a closed one."""
    address = urlsplit(served.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    for pause_s in (6, 0):
        writer.write(b"GET /health HTTP/1.1\r\nHost: loop.example\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
        await asyncio.sleep(pause_s)
    writer.close()
