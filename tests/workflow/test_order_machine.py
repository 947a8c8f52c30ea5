"""Merchants, customers, processors, time and accidents in any order: whatever they do, each order's money adds up."""

import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Final, Literal, TypeVar

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, event, note, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture.providers import AVAILABLE_PROVIDERS, HypothesisProvider
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import loop
from loop.domain.attempts import Declined
from loop.domain.errors import LoopError
from loop.domain.money import Money
from loop.domain.orders import Command, Order, OrderStatus, Refused, decide
from loop.processors.sandbox_disputes import dispute_reference_of, is_disputed
from loop.workers.schedule import SCHEDULE
from loop.workflows import captures, orders, payments, processor_events, refunds
from loop.workflows.attempts import PayRequest
from loop.workflows.context import Context
from loop.workflows.orders import NewOrder
from tests.builders import settings_for
from tests.workflow.order_books import REFUSALS, Books, Row
from tests.workflow.order_processors import ELSEWHERE, FINALITIES, MERCHANT, TOKENS, Fate, Weather, captured
from tests.workflow.order_world import (
    LOOP_POINTS,
    WORLD_POINTS,
    Accident,
    AccidentKind,
    Standing,
    Template,
    World,
    live,
    scheduled,
    work,
)

Rule = TypeVar("Rule", bound=Callable[..., None])

EXAMPLES_VARIABLE: Final = "LOOP_MACHINE_EXAMPLES"
"""How many examples are run, where not the usual number."""

EXAMPLES: Final = 500
STEPS: Final = 30
SEED: Final = 20_261_126
"""Where the search begins; `--hypothesis-seed` takes its place."""

ORDERS_MAX: Final = 4
NAMED_SHARE: Final = 4
"""How much more often an accident waits at a point that Loop names than at one of the world's."""

WAIT_S: Final = 10.0
DAY_S: Final = 86_400.0
REST_DAYS_MAX: Final = 7
"""Longer than anything takes but what is hopeless; an endpoint that refuses everything is disabled after five days."""

OPERATIONS: Final = ("authorize", "capture", "void", "refund", "fetch", "fetch_refund")

FRESH: Final = "fresh"
"""A way of choosing examples: each anew, where Hypothesis's own makes five of six by copying within an earlier one.

A step depends on those before it, so that a copied one is mostly refused.
"""
AVAILABLE_PROVIDERS[FRESH] = HypothesisProvider

POINTS_OF_JOBS: Final[Mapping[str, tuple[str, ...]]] = {
    "advance_payment": ("charge",),
    "fail_over_payment": ("failover",),
    "capture_payment": ("capture", "charge.recorded"),
    "void_payment": ("void", "charge.recorded"),
    "send_refund": ("refund",),
    "process_processor_event": ("charge.recorded", "refund.recorded", "dispute.recorded"),
    "ask_dispute": ("dispute.recorded",),
}
"""Kind of job -> the points, or beginnings of them, that it may reach."""

MERCHANTS_COMMANDS: Final = (Command.PAY, Command.RETRY, Command.CAPTURE, Command.CANCEL, Command.REFUND)

indexes = st.integers(0, 9)
shares = st.sampled_from([None, None, 2, 3, 0])
"""What an amount is divided by; 0 is for more than there is."""

weathers = st.builds(
    Weather, st.sampled_from(Fate), st.sampled_from([0.0, 0.0, 3.0, 15.0, 25.0]), st.sampled_from([0.0, 0.0, 3.0, 15.0])
)


@st.composite
def pay_requests(draw: st.DrawFn) -> PayRequest:
    """Draw how an order is paid: on a page, with a token for any processor or a certain one, or one for each."""
    kind = draw(st.sampled_from(["any", "any", "each", "in turn", "in turn", "certain", "page"]))
    if kind == "page":
        return PayRequest()
    if kind == "each":
        named = st.dictionaries(st.sampled_from(list(FINALITIES)), st.sampled_from(TOKENS), min_size=1)
        return PayRequest(tokens=draw(named))
    if kind == "in turn":
        first, *others = draw(st.sampled_from([("sandbox", "second", "third"), ("second", "third")]))
        tokens = {first: draw(st.sampled_from(ELSEWHERE)), **{name: draw(st.sampled_from(TOKENS)) for name in others}}
        return PayRequest(tokens=tokens)
    processor = draw(st.sampled_from(list(FINALITIES))) if kind == "certain" else None
    return PayRequest(token=draw(st.sampled_from(TOKENS)), processor=processor)


@dataclass(frozen=True, slots=True)
class Mishap:
    """An accident at one of the points that what is done now may reach; `place` says at which."""

    place: int
    nth: int
    kind: AccidentKind
    frees_leases: bool


accidents = st.builds(
    Mishap,
    place=st.sampled_from(range(NAMED_SHARE * len(LOOP_POINTS) + len(WORLD_POINTS))),
    nth=st.sampled_from([1, 1, 1, 1, 2, 3]),
    kind=st.sampled_from([*[AccidentKind.CRASH] * 3, AccidentKind.CANCEL]),
    frees_leases=st.booleans(),
)
mishaps = st.none() | accidents | accidents


@dataclass(frozen=True, slots=True)
class Step:
    """What is done to an order next, whatever that is: towards its money, away from it, or what it is not ready for."""

    way: Literal["on", "back"] | Command
    request: PayRequest
    share: int | None
    wait_s: float
    mishap: Mishap | None


class End(StrEnum):
    """How a process of Loop ends; another begins."""

    KILLED = "killed"
    KILLED_FOR_GOOD = "killed for good"
    """The next one is another machine, which waits for the leases to end."""
    STOPPED = "stopped"
    STOPPED_AT_ONCE = "stopped at once"
    STOPPED_WHILE_IT_SERVES = "stopped while it serves"


steps = st.builds(
    Step,
    way=st.sampled_from([*["on"] * 20, *["back"] * 6, *MERCHANTS_COMMANDS]),
    request=pay_requests(),
    share=shares,
    wait_s=st.sampled_from([WAIT_S, WAIT_S, WAIT_S, 0.0]),
    mishap=mishaps,
)


def _has(*statuses: str) -> Callable[[Rule], Rule]:
    """Return the precondition that an order is in one of these."""
    return precondition(lambda self: any(each["status"] in statuses for each in self.books.orders.values()))


class OrderMachine(RuleBasedStateMachine):
    """One world, and what may happen in it."""

    template: ClassVar[Template]
    folder: ClassVar[Path]
    crashes: ClassVar[Counter[tuple[str, str]]] = Counter()
    seen: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.files = TemporaryDirectory(dir=self.folder)
        self.world = World(self.template, Path(self.files.name) / "loop.db", self.crashes)
        self.books = Books(self.world)

    @property
    def context(self) -> Context:
        """The context of the process that is alive."""
        return self.world.life.context

    def order(self, index: int) -> Row:
        """Return one of the orders."""
        rows = list(self.books.orders.values())
        return rows[index % len(rows)]

    def expect(self, mishap: Mishap | None, *operations: str) -> None:
        """Have an accident wait at one of the points of some operations, or of the world."""
        if mishap is not None:
            named = [point for point in LOOP_POINTS if operations and point.startswith(operations)]
            points = [*named * NAMED_SHARE, *WORLD_POINTS]
            point = points[mishap.place % len(points)]
            note(f"{mishap.kind} at {point}, number {mishap.nth}")
            self.world.accident = Accident(point, mishap.nth, mishap.kind, mishap.frees_leases)

    def command(self, command: Command, order: Row, call: Coroutine[Any, Any, Any]) -> None:
        """Run a command, and check that it is refused just when the table refuses it."""
        is_quiet = not self.world.life.is_busy and self.world.accident is None
        result = self.world.do(call, order["id"])
        refusal = result.code if isinstance(result, LoopError) else None
        status = getattr(getattr(result, "order", result), "status", None)
        note(f"{command} order {self.number(order)} ({order['status']}): {refusal or status}")
        self.count(f"{command}: {refusal or 'accepted'}")
        assert refusal is None or refusal in REFUSALS[command], result
        if is_quiet:
            self.books.read()
            now = self.books.orders[order["id"]]["status"]  # it may have moved before the command was looked at
            possible = {isinstance(decide(OrderStatus(each), command), Refused) for each in (order["status"], now)}
            assert (refusal == "invalid_status") in possible, result

    def number(self, order: Row) -> int:
        """Return an order's place among all."""
        return list(self.books.orders).index(order["id"])

    def count(self, what: str) -> None:
        """Count something that was reached."""
        self.seen[what] += 1
        event(what)

    # The merchant and the customer.

    @initialize(request=pay_requests(), is_manual=st.booleans(), mishap=mishaps)
    def first_order(self, request: PayRequest, is_manual: bool, mishap: Mishap | None) -> None:
        self.books.read()
        self.sell("EUR", is_manual, request, mishap)

    @precondition(lambda self: len(self.books.orders) < ORDERS_MAX)
    @rule(
        currency=st.sampled_from(["EUR", "EUR", "USD", "INR", "JPY"]),
        is_manual=st.booleans(),
        request=st.none() | pay_requests(),
        mishap=mishaps,
        steps=st.lists(steps, max_size=2),
    )
    def another_order(
        self, currency: str, is_manual: bool, request: PayRequest | None, mishap: Mishap | None, steps: list[Step]
    ) -> None:
        self.sell(currency, is_manual, request, mishap)
        self.take_on(len(self.books.orders) - 1, steps)

    def sell(self, currency: str, is_manual: bool, request: PayRequest | None, mishap: Mishap | None) -> None:
        """Create an order, and pay it with a request if there is one."""
        expires_at = self.world.clock.at + timedelta(hours=20) if is_manual else None
        new = NewOrder(Money(1_000, currency), is_manual_capture=is_manual, expires_at=expires_at)
        created = self.world.do(orders.create(self.context, MERCHANT, new), "a new order")
        self.books.read()
        self.expect(mishap, "charge", "failover")
        if request is not None and isinstance(created, Order):
            self.pay(self.books.orders[created.id], request, WAIT_S)

    @_has(*OrderStatus)
    @rule(index=indexes, step=steps)
    def go_on(self, index: int, step: Step) -> None:
        self.take_on(index, [step])

    @_has(*OrderStatus)
    @rule(index=indexes, steps=st.lists(steps, min_size=2, max_size=3))
    def go_on_and_on(self, index: int, steps: list[Step]) -> None:
        self.take_on(index, steps)

    @_has("authorized", "requires_action")
    @rule(index=indexes, step=steps)
    def turn_back(self, index: int, step: Step) -> None:
        waiting = [
            place
            for place, each in enumerate(self.books.orders.values())
            if each["status"] in ("authorized", "requires_action")
        ]
        self.take_on(waiting[index % len(waiting)], [replace(step, way="back")])

    def take_on(self, index: int, steps: Sequence[Step]) -> None:
        """Take one order some steps further."""
        for step in steps:
            self.books_are_in_order()
            if self.books.orders:  # the process may have died before the first
                self.take_further(self.order(index), step)

    def take_further(self, order: Row, step: Step) -> None:
        """Do to an order what comes next to it, or the opposite."""
        mishap = step.mishap
        match order["status"], step.way:
            case _, Command() as command:
                self.go_astray(order, command, step.share)
            case (("pending" | "failed"), "on"):
                self.expect(mishap, "charge", "failover")
                self.pay(order, step.request, step.wait_s)
            case "requires_action", "on":
                self.expect(mishap, "charge.recorded", "failover")
                self.come_back(order, ["approved", "approved", "declined", "failed", "nothing"][(step.share or 0) % 5])
            case "authorized", "on":
                self.expect(mishap, "capture", "charge.recorded")
                self.capture(order, step.share, step.wait_s)
            case (("captured" | "partially_refunded"), "on"):
                self.expect(mishap, "refund")
                self.refund(order, step.share, step.wait_s)
            case (("pending" | "failed" | "requires_action" | "authorized"), "back"):
                self.expect(mishap, "void", "charge.recorded")
                self.cancel(order, step.wait_s)
            case _:
                self.expect(mishap)
                self.world.do(work(self.context, 1, 1))

    def go_astray(self, order: Row, command: Command, share: int | None) -> None:
        """Give an order a command without a look at it."""
        match command:
            case Command.PAY | Command.RETRY:
                self.pay(order, PayRequest(token="tok_approve"), WAIT_S, is_retry=command is Command.RETRY)
            case Command.CAPTURE:
                self.capture(order, share, WAIT_S)
            case Command.CANCEL:
                self.cancel(order, WAIT_S)
            case _:
                self.refund(order, share, WAIT_S)

    def pay(self, order: Row, request: PayRequest, wait_s: float, *, is_retry: bool | None = None) -> None:
        """Pay an order, again if it has failed."""
        is_again = order["status"] == "failed" if is_retry is None else is_retry
        asked = replace(request, is_retry=is_again)
        note(f"with {dict(request.tokens) or request.token} at {request.processor or 'any processor'}")
        call = payments.pay(self.context, MERCHANT, order["id"], request=asked, wait_s=wait_s)
        is_meant = is_again and order["status"] == "failed"
        self.command(Command.RETRY if is_meant else Command.PAY, order, call)

    def capture(self, order: Row, share: int | None, wait_s: float) -> None:
        """Capture an order, all of it or a share."""
        amount = _part(order["amount_authorized_minor"], share)
        call = captures.capture(self.context, MERCHANT, order["id"], amount_minor=amount, wait_s=wait_s)
        self.command(Command.CAPTURE, order, call)

    def cancel(self, order: Row, wait_s: float) -> None:
        """Cancel an order."""
        call = captures.cancel(self.context, MERCHANT, order["id"], reason="changed their mind", wait_s=wait_s)
        self.command(Command.CANCEL, order, call)

    def refund(self, order: Row, share: int | None, wait_s: float) -> None:
        """Refund an order, all of it or a share."""
        amount = _part(order["amount_captured_minor"], share)
        call = refunds.refund(self.context, MERCHANT, order["id"], amount_minor=amount, reason=None, wait_s=wait_s)
        self.command(Command.REFUND, order, call)

    def come_back(self, order: Row, result: str) -> None:
        """Have a customer come back from the page, where they chose something or nothing."""
        attempt = self.books.latest(order["id"])
        if attempt is not None and attempt["processor_reference"] is not None:
            parameters = self.books.bank_of(attempt).signed(attempt["processor_reference"], result)
            self.world.do(payments.complete_action(self.context, attempt["id"], parameters), order["id"])
            note(f"the customer of order {self.number(order)} comes back: {result}")
            self.count(f"customer comes back: {result}")

    @_has("requires_action")
    @rule(index=indexes, result=st.sampled_from(["approved", "declined"]))
    def customer_stays_away(self, index: int, result: str) -> None:
        waiting = [each for each in self.books.orders.values() if each["status"] == "requires_action"]
        attempt = self.books.latest(waiting[index % len(waiting)]["id"])
        if attempt is not None and attempt["processor_reference"] is not None:
            self.books.bank_of(attempt).decide(attempt["processor_reference"], result)
            self.count(f"customer stays away: {result}")

    # The processors.

    @rule(operation=st.sampled_from(OPERATIONS), coming=st.lists(weathers, min_size=2, max_size=3))
    def weather(self, operation: str, coming: list[Weather]) -> None:
        self.world.set_weather(operation, coming)

    @rule(
        index=indexes,
        number=st.integers(0, 2),
        kind=st.sampled_from(["payment", "refund", "dispute", "dispute"]),
        is_worked_on=st.sampled_from([True, True, False]),
        mishap=mishaps,
    )
    def webhook(self, index: int, number: int, kind: str, is_worked_on: bool, mishap: Mishap | None) -> None:
        self.hear(index, number, kind)
        if is_worked_on:
            self.expect(mishap, "charge.recorded" if kind == "payment" else kind)
            self.world.do(work(self.context, 100, 1))

    def hear(self, index: int, number: int, kind: str) -> None:
        """Hear from a processor about one of its payments, about a refund of it, or about its dispute."""
        known = [(name, each) for name, bank in self.world.banks.items() for each in bank.payments()]
        disputed = [each for each in known if is_disputed(each[1][1].request) and captured(each[1][1]) > 0]
        if not known:
            return
        fitting = disputed if disputed and kind == "dispute" else known
        name, (reference, payment) = fitting[index % len(fitting)]
        about = {"dispute": dispute_reference_of(payment.request.attempt_id)} if fitting is disputed else {}
        references = [each.reference for each in payment.refunds.values() if each.reference]
        if kind == "refund" and references:
            about = {"refund": references[index % len(references)]}
        body, headers = self.world.signed_webhook(reference, number=number, about=about)
        account = self.template.accounts[name]
        call = processor_events.receive(self.context, name, account, body=body, headers=headers)
        self.world.do(call, payment.request.order_id)
        self.count(f"webhook about a {next(iter(about), 'payment')}")

    @_has("failed", "captured", "authorized", "processing", "requires_action")
    @rule(index=indexes)
    def late_success(self, index: int) -> None:
        declined = [
            (bank, reference, self.books.orders[known.request.order_id]["status"])
            for bank in list(self.world.banks.values())[1:]
            for reference, known in bank.payments()
            if isinstance(known.outcome, Declined) and known.outcome.reference is not None
        ]
        second = [each for each in declined if each[2] not in ("failed", "processing", "requires_action")]
        if declined:
            bank, reference, _ = (second or declined)[index % len(second or declined)]
            bank.pay_late(reference)
            self.count("paid late")

    # Time and accidents.

    @rule(for_s=st.sampled_from([None, None, 0.0, 0.0, 1.0, 5.0, 40.0, 600.0, 7_200.0, DAY_S]), mishap=mishaps)
    def loop_works(self, for_s: float | None, mishap: Mishap | None) -> None:
        points = {point for job in self.books.jobs for point in POINTS_OF_JOBS.get(job["kind"], ())}
        self.expect(mishap, "delivery", *points)
        self.world.do(work(self.context, 1, 1) if for_s is None else live(self.context, for_s))

    @rule(for_s=st.sampled_from([5.0, 40.0, 1_000.0, DAY_S]))
    def loop_stands_still(self, for_s: float) -> None:
        self.world.freeze(for_s)

    @rule(entry=st.sampled_from([name for name, _, _ in SCHEDULE]), mishap=mishaps)
    def schedule(self, entry: str, mishap: Mishap | None) -> None:
        self.expect(mishap, "void")
        self.world.do(scheduled(self.context, entry), entry)

    @rule(end=st.sampled_from(End))
    def process_ends(self, end: End) -> None:
        if end in (End.KILLED, End.KILLED_FOR_GOOD):
            self.world.kill(frees_leases=end is End.KILLED)
        else:
            serves_for_s = 5.0 if end is End.STOPPED_WHILE_IT_SERVES else None
            self.world.restart(serves_for_s=serves_for_s, is_patient=end is not End.STOPPED_AT_ONCE)

    @rule(standing=st.sampled_from(Standing))
    def shop(self, standing: Standing) -> None:
        self.world.shop.standing = standing

    # What must hold.

    @invariant()
    def books_are_in_order(self) -> None:
        self.books.read()
        self.books.check()

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self.come_to_rest()
        finally:
            self.world.close()
            self.files.cleanup()

    def come_to_rest(self) -> None:
        """Let everybody do what they have left to do, and check that nothing is left over."""
        self.world.accident = None
        self.world.weather.clear()
        if self.world.shop.standing is not Standing.REFUSING:  # one that refuses is gone for good
            self.world.shop.standing = Standing.UP
        self.let_live()
        count = sum(len(bank.payments()) for bank in self.world.banks.values())
        for index in range(count):
            for kind in ("payment", "refund", "dispute"):
                self.hear(index, 3, kind)
        self.let_live()
        self.books.check_rest()
        self.count_ends()

    def let_live(self) -> None:
        """Let days pass until nothing goes on any more."""
        for _ in range(REST_DAYS_MAX):
            self.world.do(live(self.context, DAY_S))
            self.books.read()
            self.books.check()
            if not self.books.unfinished():
                return
        raise AssertionError(f"without end: {self.books.unfinished()}")

    def count_ends(self) -> None:
        """Count how orders and attempts have ended."""
        for tried in self.books.attempts.values():
            for attempt in tried:
                if json.loads(attempt["routing_reasons"])[0].startswith("after "):
                    self.count("failed over")
                if attempt["is_duplicate"]:
                    self.count("given back")
        for order in self.books.orders.values():
            self.count(f"order ended {order['status']}{' for review' if order['needs_review'] else ''}")


def _part(amount: int, share: int | None) -> int | None:
    return share if share is None else amount + 1 if share == 0 else max(1, amount // share)


@pytest.fixture(scope="module")
def machine(sqlite_template: Path) -> Iterator[type[OrderMachine]]:
    """Yield the machine with a database to copy, in memory where this machine has files there."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of our own in it
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        OrderMachine.folder = Path(folder)
        copy = Path(shutil.copy(sqlite_template, OrderMachine.folder / "template.db"))
        OrderMachine.template = Template.make(copy, settings_for(f"sqlite:///{copy}", OrderMachine.folder))
        yield OrderMachine


REACHED: Final[Mapping[str, str]] = {
    # Once the intent is committed the order is being paid, and so it is until the answer is recorded.
    "charge.intent_recorded": "processing",
    "charge.called": "processing",
    # Whatever an answer makes of an order: `processing` while it is pending or unclear, or when it goes on elsewhere.
    "charge.recorded": "processing requires_action authorized captured failed cancelled",
    # An order is being paid until the next processor has it.
    "failover.intent_recorded": "processing",
    "failover.fenced": "processing",
    "failover.recorded": "processing",
    "capture.intent_recorded": "authorized",
    "capture.called": "authorized",
    # A hold is released, or a page is closed. What that led to is recorded at `charge.recorded`.
    "void.intent_recorded": "requires_action authorized",
    "void.called": "requires_action authorized",
    "refund.intent_recorded": "captured",
    "refund.called": "captured partially_refunded",
    # `captured`: the refund is pending, or has failed.
    "refund.recorded": "captured partially_refunded refunded",
    # A bank may dispute what was refunded; that of a held payment nobody disputes.
    "dispute.recorded": "captured|partially_refunded|refunded",
    # Its job is about an endpoint, not about an order.
    "delivery.sent": "-",
    # A request is on its way: to pay, to settle, to refund, or to ask after a webhook, which may come in any status.
    "call.sent": "processing requires_action authorized captured cancelled|failed partially_refunded|refunded",
    # Anything is committed, among it what is about no order yet, and webhooks in any status. An order that is created
    # and no more is not committed about again, so `pending` is only where the first payment began.
    "commit.begun": "- pending processing requires_action authorized captured cancelled|failed refunded",
    "commit.done": "- processing requires_action authorized captured cancelled|failed partially_refunded refunded",
}
"""Point -> in which statuses of an order a process must have died there in a run; of those with `|` one is enough.

Other statuses are reached as well, but not in every run: when a call's answer comes after a webhook, for example.
"""

SEEN: Final = (
    *(f"{command}: accepted" for command in MERCHANTS_COMMANDS),
    *(f"{command}: invalid_status" for command in MERCHANTS_COMMANDS if command is not Command.RETRY),
    "retry: attempts_exhausted", "capture: capture_exceeds_authorized", "capture: operation_in_progress",
    "cancel: operation_in_progress", "refund: refund_exceeds_captured",
    *(f"customer comes back: {result}" for result in ("approved", "declined", "failed")),
    *(f"customer stays away: {result}" for result in ("approved", "declined")),
    *(f"webhook about a {kind}" for kind in ("payment", "refund", "dispute")),
    "paid late", "failed over", "given back", "order ended processing for review",
    *(f"order ended {status}" for status in OrderStatus if status not in ("processing", "requires_action")),
)  # fmt: skip
"""What must have happened in a run, for it to have tried what it is for."""


@pytest.mark.slow
def test_whatever_happens_the_books_agree(machine: type[OrderMachine], request: pytest.FixtureRequest) -> None:
    seed = request.config.getoption("--hypothesis-seed")
    if seed is None:
        seed = SEED
        hypothesis.seed(SEED)(machine)
    sys.stdout.write(f"seed {seed}\n")
    chosen = settings(
        max_examples=int(os.environ.get(EXAMPLES_VARIABLE, EXAMPLES)),
        stateful_step_count=STEPS,
        backend=FRESH,
        deadline=None,  # a step may be a day of jobs
        phases=[Phase.reuse, Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow],  # an example is many steps, each with commits of its own
    )
    run_state_machine_as_test(machine, settings=chosen)
    sys.stdout.write(_table(machine.crashes))
    sys.stdout.writelines(f"{count:6} {what}\n" for what, count in sorted(machine.seen.items()))
    if chosen.max_examples >= EXAMPLES:
        assert [place for place in _places() if not any(machine.crashes[cell] for cell in place)] == []
        assert [what for what in SEEN if machine.seen[what] == 0] == []


def _places() -> list[list[tuple[str, str]]]:
    """Return what `REACHED` asks for: of each list one (point, status) is enough."""
    return [
        [(point, status) for status in place.split("|")]
        for point, places in REACHED.items()
        for place in places.split()
    ]


def test_the_machine_knows_every_point_of_an_orders_way() -> None:
    source = "".join(path.read_text("utf-8") for path in (Path(loop.__file__).parent / "workflows").glob("*.py"))
    named = set(re.findall(r'reached\("([a-z_.]+)"\)', source))
    assert named - {"keys.batch_rewrapped"} == set(LOOP_POINTS)
    assert {*LOOP_POINTS, *WORLD_POINTS} == REACHED.keys()


def _table(crashes: Counter[tuple[str, str]]) -> str:
    statuses = ["-", *OrderStatus]
    rows = [(point, *(str(crashes[point, str(status)]) for status in statuses)) for point in REACHED]
    return "".join(
        f"{name:24}{''.join(f'{cell[:12]:>13}' for cell in cells)}\n"
        for name, *cells in [("crashed at", *statuses), *rows]
    )
