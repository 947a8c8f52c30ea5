"""Builders: domain objects, a clock that tests turn, and a Loop without its server, each with defaults to change."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TypeVar, cast

from loop import config
from loop.config import Settings
from loop.domain.attempts import Attempt, AttemptStatus, Outcome, Unknown
from loop.domain.disputes import Dispute, DisputeOutcome, DisputeStatus
from loop.domain.events import Event
from loop.domain.money import Money
from loop.domain.orders import Order, OrderStatus
from loop.domain.refunds import Refund, RefundOutcome, RefundStatus
from loop.domain.transactions import Transaction
from loop.processors.base import (
    Account,
    AuthorizeRequest,
    DisputeReference,
    IdempotencyKey,
    PaymentReference,
    ProcessorSetup,
    RefundReference,
    RefundRequest,
)
from loop.processors.registry import GROUP
from loop.processors.sandbox import SandboxProcessor
from loop.storage import attempts as attempt_rows
from loop.storage import disputes as dispute_rows
from loop.storage import jobs as job_rows
from loop.storage import merchants as merchant_rows
from loop.storage import refunds as refund_rows
from loop.storage import transactions as transaction_rows
from loop.storage import webhooks as webhook_rows
from loop.storage.jobs import Job
from loop.storage.merchants import Merchant
from loop.storage.orders import OrderInHand
from loop.workers.execute import execute
from loop.workers.inline_runner import InlineRunner
from loop.workflows import captures, orders, payments, processor_configs, refunds, webhooks
from loop.workflows.attempts import PayRequest
from loop.workflows.context import Context
from loop.workflows.orders import NewOrder
from loop.workflows.processor_configs import ConfigChange

MIDNIGHT = datetime(2026, 3, 1, tzinfo=UTC)


@dataclass(slots=True)
class Clock:
    """Stands still but for a microsecond at each look, so that what is made later is later; tests turn it on."""

    at: datetime = MIDNIGHT

    def now(self) -> datetime:
        self.at += timedelta(microseconds=1)
        return self.at

    def forward(self, **amount: float) -> None:
        """Turn the clock on by days, hours, minutes or seconds."""
        self.at += timedelta(**amount)


def order(**changes: object) -> Order:
    """Return a pending order over 10.00 EUR without an attempt."""
    usual = Order(
        id="ord_1",
        merchant_id="mer_1",
        external_id="basket-1",
        amount_minor=1_000,
        currency="EUR",
        status=OrderStatus.PENDING,
        processor=None,
        processor_order_id=None,
        is_manual_capture=False,
        country=None,
        customer_id=None,
        customer_email=None,
        description=None,
        metadata={},
        return_url=None,
        cancel_url=None,
        amount_authorized_minor=0,
        amount_captured_minor=0,
        amount_refunded_minor=0,
        amount_refund_reserved_minor=0,
        attempt_count=0,
        last_error_code=None,
        last_error_message=None,
        needs_review=False,
        expires_at=None,
        created_at=MIDNIGHT,
        updated_at=MIDNIGHT,
    )
    return replace(usual, **changes)  # type: ignore[arg-type] # any field


def attempt(**changes: object) -> Attempt:
    """Return the first attempt at that order, recorded and not sent yet."""
    usual = Attempt(
        id="att_1",
        order_id="ord_1",
        merchant_id="mer_1",
        processor_config_id="pcf_1",
        processor="sandbox",
        number=1,
        status=AttemptStatus.SUBMITTING,
        amount_minor=1_000,
        currency="EUR",
        is_manual_capture=False,
        request={},
        processor_reference=None,
        action=None,
        error_code=None,
        error_message=None,
        decline_class=None,
        raw_error_code=None,
        asked_count=0,
        unclear_since=None,
        created_at=MIDNIGHT,
        updated_at=MIDNIGHT,
    )
    return replace(usual, **changes)  # type: ignore[arg-type] # any field


def refund(**changes: object) -> Refund:
    """Return a refund of 4.00 EUR of that attempt, recorded and not sent yet."""
    usual = Refund(
        id="ref_1",
        merchant_id="mer_1",
        order_id="ord_1",
        attempt_id="att_1",
        amount_minor=400,
        currency="EUR",
        status=RefundStatus.SUBMITTING,
        reason=None,
        processor_reference=None,
        error_code=None,
        error_message=None,
        asked_count=0,
        created_at=MIDNIGHT,
        updated_at=MIDNIGHT,
    )
    return replace(usual, **changes)  # type: ignore[arg-type] # any field


def dispute(**changes: object) -> Dispute:
    """Return an open dispute over all 10.00 EUR of that attempt."""
    usual = Dispute(
        id="dsp_1",
        merchant_id="mer_1",
        order_id="ord_1",
        attempt_id="att_1",
        processor_config_id="pcf_1",
        processor="sandbox",
        processor_reference="sbxd_1",
        status=DisputeStatus.OPENED,
        amount_minor=1_000,
        currency="EUR",
        counted_minor=1_000,
        reason="fraudulent",
        due_by=None,
        created_at=MIDNIGHT,
        updated_at=MIDNIGHT,
    )
    return replace(usual, **changes)  # type: ignore[arg-type] # any field


def merchant(number: int = 1) -> Merchant:
    """Return a merchant that nobody can sign in as."""
    return Merchant(f"mer_{number}", f"Shop {number}", f"shop{number}@example.com", "-", MIDNIGHT, MIDNIGHT)


def job(key: str = "job_1", **changes: object) -> Job:
    """Return a job that is due at midnight, of a kind that nobody handles."""
    usual = Job(
        id=key,
        kind="test",
        subject="ord_1",
        arguments={},
        dedupe_key=key,
        lane="test",
        run_at=MIDNIGHT,
        fence=0,
        failures=0,
        is_leased=False,
        is_dead=False,
        last_error=None,
        correlation_id=None,
        created_at=MIDNIGHT,
    )
    return replace(usual, **changes)  # type: ignore[arg-type] # any field


def settings_for(database_url: str, folder: Path, **flags: object) -> Settings:
    """Return settings that leave the machine's environment alone and let merchants listen on loopback."""
    usual: dict[str, object] = {
        "database_url": database_url,
        "database_pool_size": 8,
        "data_dir": str(folder),
        "jwt_secret": "canary that signs 0123456789abcdef0123456789abcdef",
        "encryption_key": "canary that seals 0123456789abcdef0123456789abcdef",
        "webhook_allow_networks": "127.0.0.0/8",
    }
    return config.load({**usual, **flags}, environ={})


ROUNDS_MAX = 50
"""More rounds of due jobs than any test needs: beyond them a job keeps coming back without end."""


async def work_off(context: Context) -> int:
    """Run every job that is due, and those that they make due or begin at once; return how many were claimed."""
    done, held = 0, {*running_jobs(context)}
    for _ in range(ROUNDS_MAX):
        async with context.database.transaction() as session:
            claimed = await job_rows.claim(session, context.now(), 100)
        following = [task for task in running_jobs(context) if task not in held]
        if not claimed and not following:
            return done
        await asyncio.gather(*(execute(context, each) for each in claimed), *following)
        done += len(claimed)
    raise AssertionError(f"jobs are still due after {ROUNDS_MAX} rounds")


@dataclass(slots=True)
class Mood:
    """What the next call of one method answers (or raises), and whether the sandbox does what it is asked to."""

    method: str
    answer: Outcome | RefundOutcome | DisputeOutcome | Exception
    is_done: bool = False
    thawed: asyncio.Event | None = None
    """The answer comes when this is set."""


_T = TypeVar("_T")


class MoodySandbox(SandboxProcessor):
    """The sandbox, with calls that go as a test wants them to, and a list of all that were made."""

    def __init__(self, setup: ProcessorSetup) -> None:
        super().__init__(setup)
        self.moods: list[Mood] = []
        self.calls: list[tuple[str, object, str | None]] = []
        """(method, request or payment, idempotency key)"""

    def called(self, method: str) -> list[tuple[object, str | None]]:
        """Return the calls of one method: what was asked for, and under which key."""
        return [(subject, key) for name, subject, key in self.calls if name == method]

    async def _moodily(self, method: str, call: Coroutine[object, object, _T], subject: object, key: str | None) -> _T:
        self.calls.append((method, subject, key))
        mood = next((mood for mood in self.moods if mood.method == method), None)
        if mood is None:
            return await call
        self.moods.remove(mood)
        try:
            if mood.thawed is not None:
                await mood.thawed.wait()
            if mood.is_done:
                await call
        finally:
            call.close()  # of no effect on one that was awaited
        if isinstance(mood.answer, Exception):
            raise mood.answer
        return cast("_T", mood.answer)

    async def authorize(self, account: Account, request: AuthorizeRequest, *, key: IdempotencyKey) -> Outcome:
        return await self._moodily("authorize", super().authorize(account, request, key=key), request, key)

    async def capture(
        self, account: Account, payment: PaymentReference, *, amount: Money, key: IdempotencyKey
    ) -> Outcome:
        return await self._moodily("capture", super().capture(account, payment, amount=amount, key=key), amount, key)

    async def void(self, account: Account, payment: PaymentReference, *, key: IdempotencyKey) -> Outcome:
        return await self._moodily("void", super().void(account, payment, key=key), payment, key)

    async def refund(self, account: Account, request: RefundRequest, *, key: IdempotencyKey) -> RefundOutcome:
        return await self._moodily("refund", super().refund(account, request, key=key), request, key)

    async def fetch(self, account: Account, payment: PaymentReference) -> Outcome:
        return await self._moodily("fetch", super().fetch(account, payment), payment, None)

    async def fetch_refund(self, account: Account, refund: RefundReference) -> RefundOutcome:
        return await self._moodily("fetch_refund", super().fetch_refund(account, refund), refund, None)

    async def fetch_dispute(self, account: Account, dispute: DisputeReference) -> DisputeOutcome | Unknown:
        return await self._moodily("fetch_dispute", super().fetch_dispute(account, dispute), dispute, None)


class SecondSandbox(MoodySandbox):
    """Another processor, with books of its own."""

    name = "second"


@dataclass(slots=True)
class Shop:
    """A merchant with a sandbox account, and what it does all day."""

    context: Context
    clock: Clock
    merchant_id: str = "mer_1"
    wait_s: float = 10.0
    webhook_secret: str = field(default="whsec_sandbox", repr=False)

    async def order(self, amount_minor: int = 1_000, **changes: object) -> Order:
        """Create an order."""
        new = replace(NewOrder(Money(amount_minor, "EUR")), **changes)  # type: ignore[arg-type] # any field
        return await orders.create(self.context, self.merchant_id, new)

    async def pay(self, order_id: str, token: str | None = "tok_approve", **changes: object) -> OrderInHand:
        """Pay an order and wait for the answer."""
        request = replace(PayRequest(token=token), **changes)  # type: ignore[arg-type] # any field
        return await payments.pay(self.context, self.merchant_id, order_id, request=request, wait_s=self.wait_s)

    async def until_called(self, operation: str) -> None:
        """Wait until the sandbox has been called with an operation."""
        async with asyncio.timeout(5):
            while not self.sandbox.called(operation):  # noqa: ASYNC110 - the call is the event
                await asyncio.sleep(0.001)

    async def paid(self, token: str = "tok_approve", amount_minor: int = 1_000, **changes: object) -> OrderInHand:
        """Create an order and pay it."""
        return await self.pay((await self.order(amount_minor, **changes)).id, token)

    async def capture(self, order_id: str, amount_minor: int | None = None) -> Order:
        """Capture an order and wait for the answer."""
        return await captures.capture(
            self.context, self.merchant_id, order_id, amount_minor=amount_minor, wait_s=self.wait_s
        )

    async def cancel(self, order_id: str, reason: str | None = None) -> Order:
        """Cancel an order and wait for the answer."""
        return await captures.cancel(self.context, self.merchant_id, order_id, reason=reason, wait_s=self.wait_s)

    async def refund(self, order_id: str, amount_minor: int | None = None, reason: str | None = None) -> Refund:
        """Refund an order and wait for the answer."""
        return await refunds.refund(
            self.context, self.merchant_id, order_id, amount_minor=amount_minor, reason=reason, wait_s=self.wait_s
        )

    async def now(self, order_id: str) -> OrderInHand:
        """Read an order with its latest attempt."""
        return await orders.get_in_hand(self.context, self.merchant_id, order_id)

    async def attempts(self, order_id: str) -> list[Attempt]:
        """Read an order's attempts, oldest first."""
        async with self.context.database.reading() as reader:
            return [tried for tried, _ in await attempt_rows.of_order(reader, self.merchant_id, order_id)]

    async def events(self, order_id: str) -> list[Event]:
        """Read what the merchant was told of an order, oldest first."""
        async with self.context.database.reading() as reader:
            return await webhook_rows.events_of_order(reader, self.merchant_id, order_id)

    async def event_types(self, order_id: str) -> list[str]:
        """Read the names of what the merchant was told of an order, oldest first."""
        return [str(event.event_type) for event in await self.events(order_id)]

    async def transactions(self, order_id: str) -> list[Transaction]:
        """Read an order's movements of money, oldest first."""
        async with self.context.database.reading() as reader:
            return (await transaction_rows.of_order(reader, self.merchant_id, order_id))[::-1]

    async def refunds(self, order_id: str) -> list[Refund]:
        """Read an order's refunds, oldest first."""
        async with self.context.database.reading() as reader:
            return (await refund_rows.of_order(reader, self.merchant_id, order_id))[::-1]

    async def disputes(self, order_id: str) -> list[Dispute]:
        """Read an order's disputes, oldest first."""
        async with self.context.database.reading() as reader:
            return (await dispute_rows.of_order(reader, self.merchant_id, order_id))[::-1]

    async def jobs(self, subject: str) -> list[Job]:
        """Read the jobs about an order, a refund or (event:endpoint) a delivery."""
        async with self.context.database.reading() as reader:
            return await job_rows.of_subject(reader, subject)

    @property
    def sandbox(self) -> MoodySandbox:
        """The shop's processor."""
        sandbox = self.context.processors.get("sandbox")
        assert isinstance(sandbox, MoodySandbox)
        return sandbox

    async def open_second(self) -> MoodySandbox:
        """Give the merchant an account at a second processor, which comes after the sandbox."""
        found = EntryPoint("second", f"{__name__}:SecondSandbox", GROUP)
        self.context.processors._found["second"] = found
        change = ConfigChange(priority=2)
        await processor_configs.put(self.context, self.merchant_id, "second", credentials={}, change=change)
        second = self.context.processors.get("second")
        assert isinstance(second, MoodySandbox)
        return second

    def next_answers(
        self, method: str, *answers: Outcome | RefundOutcome | DisputeOutcome | Exception, is_done: bool = False
    ) -> None:
        """Have the processor's next calls of a method end so, with or without an effect."""
        self.sandbox.moods += [Mood(method, answer, is_done) for answer in answers]

    def moved(self, *kinds: str) -> list[int]:
        """Return the amounts of some kinds that moved in the sandbox's own ledger, oldest first."""
        return [entry.amount.amount_minor for entry in self.sandbox.ledger() if entry.kind in kinds]

    def hang_next(self, method: str) -> None:
        """Have the processor's next call of a method come to nothing and never end."""
        self.sandbox.moods.append(Mood(method, RuntimeError("never said"), thawed=asyncio.Event()))

    async def lose_process(self) -> None:
        """End whatever runs as if the process had been killed; its leases end by themselves."""
        running = running_jobs(self.context)
        assert running
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def wait_for_jobs(self) -> None:
        """Wait for the jobs that were started without anybody waiting for them."""
        async with asyncio.timeout(10):
            await asyncio.gather(*running_jobs(self.context))


def running_jobs(context: Context) -> Sequence[asyncio.Task[object]]:
    """Return the jobs that this process is running."""
    assert isinstance(context.runner, InlineRunner)
    return tuple(context.runner._running)


async def open_shop(context: Context, clock: Clock, *, number: int = 1, webhook_url: str | None = None) -> Shop:
    """Make a merchant with an endpoint and a sandbox account, and the sandbox a moody one."""
    before = context.processors.get("sandbox")
    if not isinstance(before, MoodySandbox):
        assert isinstance(before, SandboxProcessor)
        context.processors._made["sandbox"] = MoodySandbox(before._setup)
    shop = Shop(context, clock, f"mer_{number}")
    endpoint = webhooks.new_endpoint(context, shop.merchant_id, webhook_url)
    async with context.database.transaction() as session:
        await session.run_together([merchant_rows.insertion(merchant(number))])
        await session.run_together([webhook_rows.endpoint_insertion(endpoint)])
    await processor_configs.put(
        context,
        shop.merchant_id,
        "sandbox",
        credentials={"webhookSecret": shop.webhook_secret},
        change=ConfigChange(),
    )
    return shop
