"""Merchants who do everything at once: one of them wins, and Loop's books are the processor's."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from loop.domain.errors import LoopError
from loop.domain.orders import Order, OrderStatus
from loop.domain.refunds import Refund
from loop.domain.transactions import TransactionStatus, TransactionType
from loop.runtime import Chance, opened
from loop.storage import jobs as job_rows
from loop.testing.stub_faults import Fault, FaultKind
from loop.testing.stub_psp import StubProcessor
from loop.workflows import processor_configs
from loop.workflows.context import Context
from loop.workflows.processor_configs import ConfigChange
from tests.builders import Clock, Shop, open_shop, running_jobs, settings_for, work_off

T = TypeVar("T")

ROUNDS = 40
"""How many orders go through the mangle on each database."""

CALLERS = 5
ROUNDS_TO_QUIET = 60
REFUSALS = {
    "invalid_status", "operation_in_progress", "refund_exceeds_captured", "capture_exceeds_authorized", "not_found",
}  # fmt: skip
FAULTS: Sequence[FaultKind | None] = (None, None, "drop_after", "drop_before", "cut_body")


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[StubProcessor]:
    async with StubProcessor(ledger_path=tmp_path / "ledger") as running:
        yield running


@pytest.fixture
async def context(database_url: str, tmp_path: Path, clock: Clock, stub: StubProcessor) -> AsyncIterator[Context]:
    settings = settings_for(database_url, tmp_path, stripe_api_base=stub.url)
    async with opened(settings, Chance(now=clock.now)) as made:
        yield made


@pytest.fixture
async def shop(context: Context, clock: Clock) -> Shop:
    """Return a merchant who sells through the stand-in Stripe."""
    made = await open_shop(context, clock)
    await processor_configs.remove(context, made.merchant_id, "sandbox")
    credentials = {"secretKey": "sk_test_concurrency"}
    await processor_configs.put(context, made.merchant_id, "stripe", credentials=credentials, change=ConfigChange())
    return made


@dataclass(frozen=True)
class Books:
    """What the processor's own ledger says of one order, in minor units."""

    captured: int
    refunded: int
    voided: int


def books_of(stub: StubProcessor, order: Order) -> Books:
    sums = {"charge": 0, "capture": 0, "refund": 0, "void": 0}
    for entry in stub.ledger():
        if entry.metadata.get("loop_order_id") == order.id or entry.intent == order.processor_order_id:
            sums[entry.kind] = sums.get(entry.kind, 0) + entry.amount_minor
    return Books(sums["charge"] + sums["capture"], sums["refund"], sums["void"])


async def until_quiet(shop: Shop) -> None:
    """Turn the clock on from one due job to the next until there is none."""
    for _ in range(ROUNDS_TO_QUIET):
        await asyncio.gather(*running_jobs(shop.context))
        await work_off(shop.context)
        async with shop.context.database.reading() as reader:
            live, dead = await job_rows.count(reader)
            due_at = await job_rows.next_due(reader)
        assert dead == 0
        if live == 0:
            return
        assert due_at is not None
        shop.clock.at = max(shop.clock.at, due_at)
    raise AssertionError("jobs keep coming back")


async def together(calls: Sequence[Awaitable[T]]) -> tuple[list[T], list[str]]:
    """Run calls at once; return what they answer, and the codes that the others are refused with."""
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    answers: list[T] = []
    codes: list[str] = []
    for outcome in outcomes:
        if isinstance(outcome, LoopError):
            codes.append(outcome.code)
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            answers.append(outcome)
    return answers, codes


@pytest.mark.parametrize("fault", [None, "drop_after"])
async def test_of_a_hundred_refunds_of_everything_one_succeeds(
    shop: Shop, stub: StubProcessor, fault: FaultKind | None
) -> None:
    order = (await shop.paid("pm_card_visa")).order
    if fault is not None:
        stub.faults.arm(Fault(kind=fault, method="POST", path="/v1/refunds"))
    made, codes = await together([shop.refund(order.id, 1_000) for _ in range(100)])
    assert (len(made), len(codes)) == (1, 99)
    assert set(codes) <= {"refund_exceeds_captured", "invalid_status"}
    await until_quiet(shop)
    now = (await shop.now(order.id)).order
    assert now.status is OrderStatus.REFUNDED
    assert (now.amount_captured_minor, now.amount_refunded_minor, now.amount_refund_reserved_minor) == (1_000,) * 3
    assert [row.amount_minor for row in await shop.refunds(order.id)] == [1_000]
    assert books_of(stub, now) == Books(captured=1_000, refunded=1_000, voided=0)
    assert [entry.kind for entry in stub.ledger()] == ["charge", "refund"]
    told = await shop.event_types(order.id)
    assert (told.count("refund.created"), told.count("refund.processed")) == (1, 1)


async def test_of_many_partial_refunds_as_many_succeed_as_there_is_money(shop: Shop, stub: StubProcessor) -> None:
    order = (await shop.paid("pm_card_visa")).order
    made, codes = await together([shop.refund(order.id, 300) for _ in range(40)])
    assert (len(made), set(codes)) == (3, {"refund_exceeds_captured"})
    await until_quiet(shop)
    now = (await shop.now(order.id)).order
    assert (now.status, now.amount_refunded_minor) == (OrderStatus.PARTIALLY_REFUNDED, 900)
    assert now.amount_refund_reserved_minor == 900
    assert books_of(stub, now) == Books(captured=1_000, refunded=900, voided=0)


def drawn(seed: int, what: str, options: Sequence[T]) -> T:
    """Return one of the options, the same for the same seed."""
    digest = hashlib.sha256(f"{seed}:{what}".encode()).digest()
    return options[int.from_bytes(digest[:8], "big") % len(options)]


def actions_of(shop: Shop, order_id: str) -> Sequence[Callable[[], Awaitable[Order | Refund]]]:
    return (
        lambda: shop.capture(order_id),
        lambda: shop.capture(order_id, 600),
        lambda: shop.cancel(order_id),
        lambda: shop.refund(order_id),
        lambda: shop.refund(order_id, 250),
    )


async def act(shop: Shop, order_id: str, seed: int, number: int) -> Order | Refund:
    await asyncio.sleep(drawn(seed, f"pause {number}", (0, 0, 0.001, 0.005, 0.02)))
    return await drawn(seed, f"action {number}", actions_of(shop, order_id))()


async def test_captures_cancellations_and_refunds_at_once_end_in_a_legal_state_with_equal_books(
    shop: Shop, stub: StubProcessor
) -> None:
    ends = set()
    for seed in range(ROUNDS):
        held = (await shop.paid("pm_card_visa", is_manual_capture=True)).order
        assert held.status is OrderStatus.AUTHORIZED
        for operation in ("capture", "cancel"):
            kind = drawn(seed, f"fault of {operation}", FAULTS)
            if kind is not None:
                path = f"/v1/payment_intents/{held.processor_order_id}/{operation}"
                stub.faults.arm(Fault(kind=kind, method="POST", path=path))
        for _ in range(3):  # what is refused while another is under way has its chance in the next wave
            _, codes = await together([act(shop, held.id, seed, number) for number in range(CALLERS)])
            assert set(codes) <= REFUSALS, seed
            await until_quiet(shop)
            await together([shop.refund(held.id, 100)])
            await until_quiet(shop)
        stub.faults.armed.clear()
        ends.add(await assert_sound(shop, stub, held.id, seed))
    assert {OrderStatus.CANCELLED} < ends


async def assert_sound(shop: Shop, stub: StubProcessor, order_id: str, seed: int) -> OrderStatus:
    """Check an order against the processor's books, and its rows against each other; return how it ended."""
    now = (await shop.now(order_id)).order
    books = books_of(stub, now)
    assert (now.amount_captured_minor, now.amount_refunded_minor) == (books.captured, books.refunded), seed
    assert now.amount_refund_reserved_minor == now.amount_refunded_minor <= now.amount_captured_minor, seed
    assert not now.needs_review, seed
    expected = {
        OrderStatus.AUTHORIZED: books == Books(0, 0, 0),
        OrderStatus.CANCELLED: books.captured == 0 and books.voided > 0,
        OrderStatus.CAPTURED: books.captured > 0 and books.refunded == 0,
        OrderStatus.PARTIALLY_REFUNDED: 0 < books.refunded < books.captured,
        OrderStatus.REFUNDED: 0 < books.refunded == books.captured,
    }
    assert expected.get(now.status), (seed, now.status, books)
    sums = dict.fromkeys(TransactionType, 0)
    for row in await shop.transactions(order_id):
        if row.status is TransactionStatus.SUCCESS:
            sums[row.type] += row.amount_minor
    assert (sums[TransactionType.CAPTURE], sums[TransactionType.REFUND]) == (books.captured, books.refunded), seed
    told = await shop.event_types(order_id)
    assert told.count("payment.captured") == (1 if books.captured else 0), seed
    assert told.count("payment.cancelled") == (1 if now.status is OrderStatus.CANCELLED else 0), seed
    return now.status
