"""Loop is killed at every named point of its calls: afterwards each order ends, is charged once, and is told of."""

import asyncio
import json
import os
import secrets
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import pytest
from aiohttp import web

from loop import config
from loop.runtime import opened
from loop.testing.stub_ledger import read_ledger
from loop.workflows import merchants, processor_configs
from loop.workflows.merchants import NewApiKey, NewMerchant, ProfileChange
from loop.workflows.processor_configs import ConfigChange

ROOT = Path(__file__).parents[2]
ORDERS = 3
"""How many orders go their way at once."""

AMOUNT, CAPTURED, REFUNDED = 5_000, 4_000, 1_500
TIME_S = 20.0
"""How long anything may take; on an idle machine a case takes about two seconds."""

Gone: TypeAlias = aiohttp.ClientConnectionError | aiohttp.ClientPayloadError | ConnectionError


@dataclass(frozen=True)
class Way:
    """What the merchant does with each order, and what must have happened in the end."""

    is_manual: bool
    is_cancelled: bool
    events: tuple[str, ...]
    ledger: tuple[tuple[str, int], ...]


BEGINNING = ("order.created", "payment.processing")
ENDING = ("refund.created", "refund.processed")
CHARGED = Way(False, False, (*BEGINNING, "payment.captured", *ENDING), (("charge", AMOUNT), ("refund", REFUNDED)))
HELD_AND_CAPTURED = Way(
    True,
    False,
    (*BEGINNING, "payment.authorized", "payment.captured", *ENDING),
    (("authorization", AMOUNT), ("capture", CAPTURED), ("refund", REFUNDED)),
)
HELD_AND_CANCELLED = Way(
    True,
    True,
    (*BEGINNING, "payment.authorized", "payment.cancelled"),
    (("authorization", AMOUNT), ("void", AMOUNT)),
)

CASES: list[tuple[Way, str, int, str]] = [
    *((CHARGED, f"charge.{beat}", nth, "visa") for beat in ("intent_recorded", "called", "recorded") for nth in (1, 3)),
    *(
        (CHARGED, f"charge.{beat}", 2, token)
        for token in ("timeoutThenCharged", "timeoutThenNothing")
        for beat in ("intent_recorded", "called", "recorded")
    ),
    *((HELD_AND_CAPTURED, point, 2, "visa") for point in ("capture.intent_recorded", "capture.called")),
    (HELD_AND_CAPTURED, "charge.recorded", ORDERS + 2, "visa"),  # of a capture
    *((HELD_AND_CANCELLED, point, 2, "visa") for point in ("void.intent_recorded", "void.called")),
    (HELD_AND_CANCELLED, "charge.recorded", ORDERS + 2, "visa"),  # of a cancellation
    *((CHARGED, f"refund.{beat}", 2, "visa") for beat in ("intent_recorded", "called", "recorded")),
    *((CHARGED, "delivery.sent", nth, "visa") for nth in (1, 8)),
]


@pytest.fixture(scope="module")
def nursery() -> Iterator[subprocess.Popen[str]]:
    """Yield the process that Loops are forked off."""
    with subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "e2e" / "crash_child.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


@dataclass(frozen=True)
class Stub:
    """The stand-in processor, a process of its own."""

    url: str
    ledger: Path


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stub]:
    ledger = tmp_path_factory.mktemp("stub") / "ledger"
    with subprocess.Popen(
        [sys.executable, "-m", "loop.testing.stub_psp", "--ledger", str(ledger)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield Stub(json.loads(process.stdout.readline())["url"], ledger)
        process.terminate()


@dataclass
class MerchantServer:
    """Takes webhooks and remembers their bodies by event id."""

    url: str = ""
    received: dict[str, list[bytes]] = field(default_factory=dict)

    async def take(self, request: web.Request) -> web.Response:
        self.received.setdefault(request.headers["webhook-id"], []).append(await request.read())
        return web.Response()


@pytest.fixture
async def server() -> AsyncIterator[MerchantServer]:
    merchant = MerchantServer()
    app = web.Application()
    app.router.add_post("/hooks", merchant.take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    merchant.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hooks"
    yield merchant
    await runner.cleanup()


def free_port() -> int:
    """Return a port that no outgoing connection is given between the lives of a Loop: the system's begin at 32768."""
    for _ in range(100):
        port = 20_000 + secrets.randbelow(10_000)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


@dataclass
class House:
    """One installation of Loop: its files outlive its processes."""

    nursery: subprocess.Popen[str]
    flags: dict[str, object]
    path: Path
    url: str
    key: str = ""
    pid: int = 0

    async def _line(self) -> int:
        assert self.nursery.stdout is not None
        return int(await asyncio.wait_for(asyncio.to_thread(self.nursery.stdout.readline), TIME_S))

    async def end(self) -> int:
        """Wait for the process to end and return its exit code."""
        code = await self._line()
        self.pid = 0
        return code

    async def begin(self, session: aiohttp.ClientSession, point: str | None = None, nth: int = 1) -> None:
        """Start a process and wait until it answers (or is gone already)."""
        assert self.nursery.stdin is not None
        self.nursery.stdin.write(json.dumps([self.flags, point, nth]) + "\n")
        self.nursery.stdin.flush()
        self.pid = await self._line()
        async with asyncio.timeout(TIME_S):
            while True:
                try:
                    async with session.get(f"{self.url}/health") as answer:
                        assert answer.status == 200
                        return
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.01)

    async def stop(self) -> int:
        """Ask the process to stop and return its exit code."""
        os.kill(self.pid, signal.SIGTERM)
        return await self.end()

    def rows(self, query: str) -> list[dict[str, Any]]:
        """Read what is committed."""
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(query)]

    def log(self) -> str:
        return (self.path.parent / "loop.log").read_text("utf-8")[-5_000:]


@pytest.fixture
async def house(
    nursery: subprocess.Popen[str], stub: Stub, server: MerchantServer, sqlite_database_url: str, tmp_path: Path
) -> AsyncIterator[House]:
    """Yield an installation with a merchant who sells through the stand-in processor."""
    port = free_port()
    flags: dict[str, object] = {
        "database_url": sqlite_database_url,
        "data_dir": str(tmp_path),
        "port": port,
        "jwt_secret": "signs 0123456789abcdef0123456789abcdef",
        "encryption_key": "seals 0123456789abcdef0123456789abcdef",
        "stripe_api_base": stub.url,
        "webhook_allow_networks": "127.0.0.0/8",
    }
    path = Path(sqlite_database_url.removeprefix("sqlite:///"))
    made = House(nursery, flags, path, f"http://127.0.0.1:{port}")
    async with opened(config.load(flags, environ={})) as context:
        merchant = (await merchants.create(context, NewMerchant("Shop", "shop@example.com", "correct horse"))).merchant
        await merchants.update_profile(
            context, merchant.id, ProfileChange(has_webhook_url=True, webhook_url=server.url)
        )
        _, made.key = await merchants.create_api_key(context, merchant.id, NewApiKey("till", mode="test"))
        credentials = {"secretKey": f"sk_test_{secrets.token_hex(8)}"}  # an account, and a ledger, of this case alone
        await processor_configs.put(context, merchant.id, "stripe", credentials=credentials, change=ConfigChange())
    yield made
    if made.pid:  # the test has failed
        os.kill(made.pid, signal.SIGKILL)
        await made.end()


@dataclass(frozen=True)
class Till:
    """The merchant's own program: it does what is left to do for an order, also after a call that broke off."""

    session: aiohttp.ClientSession
    house: House
    way: Way
    token: str

    async def call(self, method: str, path: str, content: object = None) -> Any:
        async with self.session.request(
            method, f"{self.house.url}{path}", json=content, headers={"X-API-Key": self.house.key}
        ) as answer:
            body = await answer.json()
            # A job of the life before is doing it, or has just done it.
            is_overtaken = answer.status >= 400 and body["code"] in ("operation_in_progress", "invalid_status")
            assert answer.status < 300 or is_overtaken, body
            return body

    async def sell(self, name: str) -> None:
        """See one order through to its end."""
        found = (await self.call("GET", f"/v1/orders?externalId={name}"))["data"]
        order = found[0] if found else await self.call("POST", "/v1/orders", self._order(name))
        path = f"/v1/orders/{order['id']}"
        async with asyncio.timeout(TIME_S):
            while True:
                status = (await self.call("GET", path))["status"]
                if status in ("partially_refunded", "cancelled"):
                    return
                await self._go_on(path, status)

    def _order(self, name: str) -> dict[str, object]:
        method = "manual" if self.way.is_manual else "automatic"
        return {"amount": AMOUNT, "currency": "EUR", "externalId": name, "captureMethod": method}

    async def _go_on(self, path: str, status: str) -> None:
        match status:
            case "pending":
                await self.call("POST", f"{path}/pay", {"paymentMethod": {"type": "card", "token": self.token}})
            case "authorized" if self.way.is_cancelled:
                await self.call("POST", f"{path}/cancel", {})
            case "authorized":
                await self.call("POST", f"{path}/capture", {"amount": CAPTURED})
            case "captured" if not await self.call("GET", f"{path}/refunds"):
                await self.call("POST", f"{path}/refund", {"amount": REFUNDED})
            case "processing" | "captured":
                await asyncio.sleep(0.02)
            case _:
                raise AssertionError(f"the order is {status}")

    async def sell_all(self) -> bool:
        """See all orders through to their end; return whether Loop was there all the time."""
        selling = [self.sell(f"basket-{number}") for number in range(ORDERS)]
        outcomes = await asyncio.gather(*selling, return_exceptions=True)
        for outcome in outcomes:
            if outcome is not None and not isinstance(outcome, Gone):
                raise outcome
        return not any(outcomes)


async def until_at_rest(house: House) -> None:
    """Wait until nothing is left to be done."""
    try:
        async with asyncio.timeout(TIME_S):
            while house.rows("SELECT id FROM jobs"):  # noqa: ASYNC110 - the rows of another process
                await asyncio.sleep(0.02)
    except TimeoutError:
        left = house.rows("SELECT * FROM jobs")
        raise AssertionError(f"{left}\n{house.log()}") from None


@pytest.mark.parametrize(("way", "point", "nth", "token"), CASES)
async def test_killed_at(
    way: Way, point: str, nth: int, *, token: str, house: House, server: MerchantServer, stub: Stub
) -> None:
    async with aiohttp.ClientSession() as session:
        till = Till(session, house, way, f"pm_card_{token}")
        await house.begin(session, point, nth)
        await till.sell_all()
        assert await house.end() == -signal.SIGKILL, "the point was not reached"
        await house.begin(session)
        assert await till.sell_all(), house.log()
        await until_at_rest(house)
        assert await house.stop() == 0
    assert_books_agree(house, way, stub)
    assert_all_was_told(house, way, server)


def assert_books_agree(house: House, way: Way, stub: Stub) -> None:
    orders = house.rows("SELECT * FROM orders")
    assert len(orders) == ORDERS
    for order in orders:
        rows = [entry for entry in read_ledger(stub.ledger) if entry.metadata.get("loop_order_id") == order["id"]]
        assert tuple((entry.kind, entry.amount_minor) for entry in rows) == way.ledger
        assert {entry.intent for entry in rows} == {order["processor_order_id"]}
        taken = sum(entry.amount_minor for entry in rows if entry.kind in ("charge", "capture"))
        given_back = sum(entry.amount_minor for entry in rows if entry.kind == "refund")
        assert (order["amount_captured_minor"], order["amount_refunded_minor"]) == (taken, given_back)
        assert order["amount_refund_reserved_minor"] == given_back
        assert not order["needs_review"]
        moved = house.rows(
            f"SELECT type, amount_minor FROM transactions WHERE order_id = '{order['id']}' AND status = 'success'"  # noqa: S608 - an id of our own
        )
        kinds = {"charge": "capture"}
        assert sorted((row["type"], row["amount_minor"]) for row in moved) == sorted(
            (kinds.get(kind, kind), amount) for kind, amount in way.ledger
        )


def assert_all_was_told(house: House, way: Way, server: MerchantServer) -> None:
    events = house.rows("SELECT * FROM webhook_events ORDER BY created_at")
    for order in house.rows("SELECT id FROM orders"):
        assert tuple(event["event_type"] for event in events if event["order_id"] == order["id"]) == way.events
    assert {row["status"] for row in house.rows("SELECT status FROM webhook_deliveries")} == {"delivered"}
    assert server.received.keys() == {event["id"] for event in events}
    for event in events:
        assert set(server.received[event["id"]]) == {event["body"].encode()}


async def test_a_kill_at_no_point_at_all_is_survived(house: House, server: MerchantServer, stub: Stub) -> None:
    async with aiohttp.ClientSession() as session:
        till = Till(session, house, CHARGED, "pm_card_visa")
        is_done = False
        lives = 0
        while not is_done:
            lives += 1
            assert lives < 30
            await house.begin(session)
            selling = asyncio.create_task(till.sell_all())
            await asyncio.wait({selling}, timeout=0.02 * lives)
            os.kill(house.pid, signal.SIGKILL)
            is_done = await selling
            assert await house.end() == -signal.SIGKILL
        await house.begin(session)
        await until_at_rest(house)
        assert await house.stop() == 0
    assert_books_agree(house, CHARGED, stub)
    assert_all_was_told(house, CHARGED, server)
    assert house.rows("PRAGMA integrity_check") == [{"integrity_check": "ok"}]
