"""Loop is killed at every named point of its calls: afterwards each order ends, is charged once, and is told of."""

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from loop import config
from loop.runtime import opened
from loop.testing.stub_ledger import read_ledger
from loop.workflows import merchants, processor_configs
from loop.workflows.merchants import NewApiKey, NewMerchant, ProfileChange
from loop.workflows.processor_configs import ConfigChange
from tests.e2e.audits import of_sandbox
from tests.e2e.houses import (
    GONE,
    ROOT,
    TIME_S,
    House,
    MerchantServer,
    Nursery,
    free_port,
    listening,
    until_at_rest,
)

ORDERS = 3
"""How many orders go their way at once."""

AMOUNT, CAPTURED, REFUNDED = 5_000, 4_000, 1_500


@dataclass(frozen=True)
class Way:
    """What the merchant does with each order, and what must have happened in the end."""

    is_manual: bool
    last_status: str
    events: tuple[str, ...]
    ledger: tuple[tuple[str, int], ...]


BEGINNING = ("order.created", "payment.processing")
ENDING = ("refund.created", "refund.processed")
CHARGED = Way(
    False,
    "partially_refunded",
    (*BEGINNING, "payment.captured", *ENDING),
    (("charge", AMOUNT), ("refund", REFUNDED)),
)
HELD_AND_CAPTURED = Way(
    True,
    "partially_refunded",
    (*BEGINNING, "payment.authorized", "payment.captured", *ENDING),
    (("authorization", AMOUNT), ("capture", CAPTURED), ("refund", REFUNDED)),
)
HELD_AND_CANCELLED = Way(
    True,
    "cancelled",
    (*BEGINNING, "payment.authorized", "payment.cancelled"),
    (("authorization", AMOUNT), ("void", AMOUNT)),
)

KEPT = Way(False, "captured", (*BEGINNING, "payment.captured"), (("charge", AMOUNT),))
TAKEN_ELSEWHERE = replace(KEPT, events=(*BEGINNING, "payment.processing", "payment.captured"))

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


@pytest.fixture
async def server() -> AsyncIterator[MerchantServer]:
    merchant = MerchantServer()
    app = web.Application()
    app.router.add_post("/hooks", merchant.take)
    async with listening(app) as url:
        merchant.url = f"{url}/hooks"
        yield merchant


@pytest.fixture
async def house(nursery: Nursery, stub: Stub, server: MerchantServer, sqlite_database_url: str) -> AsyncIterator[House]:
    """Yield an installation with a merchant who sells through the stand-in processor."""
    made = House.on(nursery, sqlite_database_url, stripe_api_base=stub.url)
    async with opened(config.load(made.flags, environ={})) as context:
        merchant = (await merchants.create(context, NewMerchant("Shop", "shop@example.com", "correct horse"))).merchant
        await merchants.update_profile(
            context, merchant.id, ProfileChange(has_webhook_url=True, webhook_url=server.url)
        )
        _, made.key = await merchants.create_api_key(context, merchant.id, NewApiKey("till", mode="test"))
        credentials = {"secretKey": f"sk_test_{secrets.token_hex(8)}"}  # an account, and a ledger, of this case alone
        await processor_configs.put(context, merchant.id, "stripe", credentials=credentials, change=ConfigChange())
        await processor_configs.put(context, merchant.id, "sandbox", credentials={}, change=ConfigChange())
    yield made
    await made.clear()


@dataclass(frozen=True)
class Till:
    """The merchant's own program: it does what is left to do for an order, also after a call that broke off."""

    session: aiohttp.ClientSession
    house: House
    way: Way
    tokens: Mapping[str, str]

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
                if status == self.way.last_status:
                    return
                await self._go_on(path, status)

    def _order(self, name: str) -> dict[str, object]:
        method = "manual" if self.way.is_manual else "automatic"
        return {"amount": AMOUNT, "currency": "EUR", "externalId": name, "captureMethod": method}

    async def _go_on(self, path: str, status: str) -> None:
        match status:
            case "pending":
                await self.call("POST", f"{path}/pay", {"paymentMethod": {"type": "card", "tokens": self.tokens}})
            case "authorized" if self.way.last_status == "cancelled":
                await self.call("POST", f"{path}/cancel", {})
            case "authorized":
                await self.call("POST", f"{path}/capture", {"amount": CAPTURED})
            case "captured" if not await self.call("GET", f"{path}/refunds"):
                await self.call("POST", f"{path}/refund", {"amount": REFUNDED})
            case "processing" | "captured":
                await asyncio.sleep(0.02)
            case _:
                raise AssertionError(f"the order is {status}")

    async def sell_all(self, count: int = ORDERS) -> bool:
        """See all orders through to their end; return whether Loop was there all the time."""
        selling = [self.sell(f"basket-{number}") for number in range(count)]
        outcomes = await asyncio.gather(*selling, return_exceptions=True)
        for outcome in outcomes:
            if outcome is not None and not isinstance(outcome, GONE):
                raise outcome
        return not any(outcomes)


@pytest.mark.parametrize(("way", "point", "nth", "token"), CASES)
async def test_killed_at(
    way: Way, point: str, nth: int, *, token: str, house: House, server: MerchantServer, stub: Stub
) -> None:
    async with aiohttp.ClientSession() as session:
        till = Till(session, house, way, {"stripe": f"pm_card_{token}"})
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
        till = Till(session, house, CHARGED, {"stripe": "pm_card_visa"})
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


@dataclass(frozen=True)
class Failover:
    """What the first processor makes of an order that a second one may take, and who is paid in the end."""

    token: str
    paid_by: str
    is_paid_late: bool = False
    """Whether the customer, in their browser, pays what was declined while Loop is dead."""
    is_away: bool = False
    """Whether the first processor cannot be reached."""
    timeout_s: int = 20


NOT_CHARGED = Failover("pm_card_chargeDeclined", "sandbox")
AWAY = Failover("pm_card_visa", "sandbox", is_away=True)
CHARGED_UNHEARD = Failover("pm_card_timeoutThenCharged", "stripe")
CHARGED_AFTER_THE_TIMEOUT = Failover("pm_card_slow", "stripe", timeout_s=1)
CHARGED_BEFORE_THE_FENCE = Failover("pm_card_chargeDeclined", "stripe", is_paid_late=True)
TOO_LATE_FOR_THE_FENCE = Failover("pm_card_chargeDeclined", "sandbox", is_paid_late=True)

FIRST_BEATS = ("charge.intent_recorded", "charge.called", "charge.recorded")
FAILOVERS: list[tuple[Failover, str, int]] = [
    *((NOT_CHARGED, point, 1) for point in FIRST_BEATS),
    *((NOT_CHARGED, f"failover.{beat}", 1) for beat in ("intent_recorded", "fenced", "recorded")),
    *((NOT_CHARGED, point, 2) for point in FIRST_BEATS[1:]),  # of the second attempt
    # A processor that was perhaps called is asked until it answers, so a kill before the fact is on record is no case.
    *((AWAY, point, 1) for point in ("charge.recorded", "failover.recorded")),
    *((AWAY, point, 2) for point in FIRST_BEATS[1:]),
    *((CHARGED_UNHEARD, point, 1) for point in FIRST_BEATS),
    *((CHARGED_AFTER_THE_TIMEOUT, point, 1) for point in FIRST_BEATS),
    *((CHARGED_BEFORE_THE_FENCE, point, 1) for point in ("charge.recorded", "failover.intent_recorded")),
    *((TOO_LATE_FOR_THE_FENCE, point, 1) for point in ("failover.fenced", "failover.recorded")),
]


@pytest.mark.parametrize(("case", "point", "nth"), FAILOVERS)
async def test_killed_in_a_failover_at(
    case: Failover, point: str, nth: int, *, house: House, server: MerchantServer, stub: Stub
) -> None:
    house.flags |= {"processor_timeout_s": case.timeout_s}
    if case.is_away:
        house.flags |= {"stripe_api_base": f"http://127.0.0.1:{free_port()}"}
    async with aiohttp.ClientSession() as session:
        till = Till(session, house, KEPT, {"stripe": case.token, "sandbox": "tok_approve"})
        await house.begin(session, point, nth)
        await till.sell_all(1)
        assert await house.end() == -signal.SIGKILL, "the point was not reached"
        if case.is_paid_late:
            await pay_in_browser(session, house, stub)
        await house.begin(session)
        assert await till.sell_all(1), house.log()
        await until_at_rest(house)
        assert await house.stop() == 0
    assert_paid_once(house, case, stub)
    assert_all_was_told(house, KEPT if case.paid_by == "stripe" else TAKEN_ELSEWHERE, server)


async def pay_in_browser(session: aiohttp.ClientSession, house: House, stub: Stub) -> None:
    """Pay a declined intent with its client secret, if it can still be paid."""
    (attempt,) = house.rows("SELECT processor_reference FROM payment_attempts WHERE processor = 'stripe'")
    url = f"{stub.url}/_control/intents/{attempt['processor_reference']}/pay"
    async with session.post(url, json={"payment_method": "pm_card_visa"}) as answer:
        assert answer.status in (200, 409), await answer.text()


def assert_paid_once(house: House, case: Failover, stub: Stub) -> None:
    """Compare the one order with both processors' own books."""
    (order,) = house.rows("SELECT * FROM orders")
    taken = house.rows("SELECT * FROM transactions WHERE status = 'success'")
    assert [(row["type"], row["amount_minor"], row["processor"]) for row in taken] == [
        ("capture", AMOUNT, case.paid_by)
    ]
    assert (order["amount_captured_minor"], order["processor"]) == (AMOUNT, case.paid_by)
    assert not order["needs_review"]
    at_stripe = [row for row in read_ledger(stub.ledger) if row.metadata.get("loop_order_id") == order["id"]]
    at_sandbox = {moved.attempt_id for moved in of_sandbox(house)}
    charges = [row.kind for row in at_stripe] + ["charge"] * len(at_sandbox)
    assert charges == ["charge"], (at_stripe, at_sandbox)
    assert bool(at_sandbox) is (case.paid_by == "sandbox")
    attempts = house.rows("SELECT processor, status FROM payment_attempts ORDER BY number")
    first = [] if case.paid_by == "stripe" else ["stripe"]
    assert [attempt["processor"] for attempt in attempts] == [*first, case.paid_by]
    assert [attempt["status"] for attempt in attempts].count("captured") == 1
