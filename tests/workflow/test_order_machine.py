"""Merchants, customers, processors, time and accidents in any order: whatever they do, each order's money adds up."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Final

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, event, note, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture.providers import AVAILABLE_PROVIDERS, HypothesisProvider
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from loop.domain.attempts import Declined
from loop.domain.declines import DECLINES
from loop.domain.errors import LoopError
from loop.domain.money import Money
from loop.domain.orders import Command, Order, OrderStatus, Refused, decide
from loop.workers.schedule import SCHEDULE
from loop.workflows import captures, orders, payments, processor_events, refunds
from loop.workflows.attempts import PayRequest
from loop.workflows.context import Context
from loop.workflows.orders import NewOrder
from tests.builders import settings_for
from tests.workflow.order_books import LIVE, Books, Row
from tests.workflow.order_world import (
    FINALITIES,
    LOOP_POINTS,
    MERCHANT,
    WORLD_POINTS,
    Accident,
    AccidentKind,
    Fate,
    Service,
    Template,
    Weather,
    World,
    live,
    work,
)

EXAMPLES_VARIABLE: Final = "LOOP_MACHINE_EXAMPLES"
"""How many examples are run, where not the usual number."""

EXAMPLES: Final = 500
STEPS: Final = 40
SEED: Final = 20_261_126
"""Where the search begins; `--hypothesis-seed` takes its place."""

ORDERS_MAX: Final = 4
WAIT_S: Final = 10.0
DAY_S: Final = 86_400.0

TOKENS: Final = (
    *["tok_approve"] * 16, *["tok_3ds"] * 4, *["tok_pending"] * 2, *["tok_timeout_then_charged"] * 2,
    *["tok_timeout_then_nothing"] * 2, "tok_refund_pending", "tok_refund_fails_later", "tok_webhook_duplicate",
    "tok_webhook_out_of_order", "tok_of_nobody",
    *{each.decline_class: f"tok_decline_{code}" for code, each in reversed(DECLINES.items())}.values(),
)  # fmt: skip
"""What a payment's token may be: the sandbox's outcomes, one for each class of declines; `tok_slow` is the weather's."""

ELSEWHERE: Final = ("tok_decline_declined", "tok_decline_processor_error", "tok_decline_configuration")
"""Tokens of which one processor says no, and the next one may say yes."""

REFUSALS: Final = {
    **dict.fromkeys(
        (Command.PAY, Command.RETRY),
        {"invalid_status", "attempts_exhausted", "no_eligible_processor", "previous_attempt_open"},
    ),
    Command.CAPTURE: {"invalid_status", "capture_exceeds_authorized", "operation_in_progress", "capture_failed"},
    Command.CANCEL: {"invalid_status", "operation_in_progress", "cancel_failed"},
    Command.REFUND: {"invalid_status", "refund_exceeds_captured"},
}
"""With what a command may be refused."""

OPERATIONS: Final = ("authorize", "capture", "void", "refund", "fetch", "fetch_refund")

FRESH: Final = "fresh"
"""A way of choosing examples: each anew, where Hypothesis's own makes five of six by copying within an earlier one.

A step depends on those before it, so that a copied one is mostly refused.
"""
AVAILABLE_PROVIDERS[FRESH] = HypothesisProvider

indexes = st.integers(0, 9)
shares = st.sampled_from([None, None, 2, 3, 0])
"""What an amount is divided by; 0 is for more than there is."""

onwards = st.sampled_from([True, True, True, False])
"""Whether an order is taken towards its money, and not away from it."""

weathers = st.builds(
    Weather, st.sampled_from(Fate), st.sampled_from([0.0, 0.0, 3.0, 15.0, 25.0]), st.sampled_from([0.0, 0.0, 3.0, 15.0])
)


@st.composite
def pay_requests(draw: st.DrawFn) -> PayRequest:
    """Draw how an order is paid: on a page, with a token for any processor or a certain one, or one for each."""
    kind = draw(st.sampled_from(["any", "any", "each", "in turn", "certain", "page"]))
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


mishaps = st.none() | st.builds(
    Mishap,
    place=st.sampled_from(range(3 * len(LOOP_POINTS) + len(WORLD_POINTS))),
    nth=st.sampled_from([1, 1, 1, 1, 2, 3]),
    kind=st.sampled_from([*[AccidentKind.CRASH] * 3, AccidentKind.CANCEL]),
    frees_leases=st.booleans(),
)


def _has(*statuses: str) -> Any:
    """Return the precondition that an order is in one of these."""
    return precondition(lambda self: any(each["status"] in statuses for each in self.books.orders.values()))


@dataclass(frozen=True, slots=True)
class Step:
    """What is done to an order next, whatever that is."""

    is_onward: bool
    request: PayRequest
    share: int | None
    wait_s: float


class OrderMachine(RuleBasedStateMachine):
    """One world, and what may happen in it."""

    template: ClassVar[Template]
    folder: ClassVar[Path]
    crashes: ClassVar[Counter[tuple[str, str]]] = Counter()
    seen: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.template, self.folder / "loop.db", self.crashes)
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
            named = [point for point in LOOP_POINTS if point.startswith(operations)]
            points = [*named, *named, *named, *WORLD_POINTS]
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
    )
    def another_order(self, currency: str, is_manual: bool, request: PayRequest | None, mishap: Mishap | None) -> None:
        self.sell(currency, is_manual, request, mishap)

    def sell(self, currency: str, is_manual: bool, request: PayRequest | None, mishap: Mishap | None) -> None:
        """Create an order, and pay it with a request if there is one."""
        expires_at = self.world.clock.at + timedelta(hours=20) if is_manual else None
        new = NewOrder(Money(1_000, currency), is_manual_capture=is_manual, expires_at=expires_at)
        created = self.world.do(orders.create(self.context, MERCHANT, new))
        self.books.read()
        self.expect(mishap, "charge", "failover")
        if request is not None and isinstance(created, Order):
            self.pay(self.books.orders[created.id], request, WAIT_S)

    @_has(*OrderStatus)
    @rule(index=indexes, is_onward=onwards, request=pay_requests(), share=shares, mishap=mishaps)
    def go_on(self, index: int, is_onward: bool, request: PayRequest, share: int | None, mishap: Mishap | None) -> None:
        self.take_further(self.order(index), Step(is_onward, request, share, WAIT_S), mishap)

    @_has(*OrderStatus)
    @rule(index=indexes, is_onward=onwards, request=pay_requests(), share=shares, mishap=mishaps)
    def go_on_unheard(
        self, index: int, is_onward: bool, request: PayRequest, share: int | None, mishap: Mishap | None
    ) -> None:
        self.take_further(self.order(index), Step(is_onward, request, share, 0.0), mishap)

    def take_further(self, order: Row, step: Step, mishap: Mishap | None) -> None:
        """Do to an order what comes next to it, or the opposite."""
        match order["status"], step.is_onward:
            case ("pending" | "failed"), True:
                self.expect(mishap, "charge", "failover")
                self.pay(order, step.request, step.wait_s)
            case "requires_action", True:
                self.expect(mishap, "charge.recorded", "failover")
                self.come_back(order, ["approved", "approved", "declined", "failed", "nothing"][(step.share or 0) % 5])
            case "authorized", True:
                self.expect(mishap, "capture", "charge.recorded")
                self.capture(order, step.share, step.wait_s)
            case ("captured" | "partially_refunded"), True:
                self.expect(mishap, "refund")
                self.refund(order, step.share, step.wait_s)
            case ("pending" | "failed" | "requires_action" | "authorized"), False:
                self.expect(mishap, "void", "charge.recorded")
                self.cancel(order, step.wait_s)
            case _:
                self.expect(mishap)
                self.world.do(work(self.context, 1, 1))

    @_has(*OrderStatus)
    @rule(
        index=indexes,
        command=st.sampled_from([Command.PAY, Command.RETRY, Command.CAPTURE, Command.CANCEL, Command.REFUND]),
        share=shares,
    )
    def out_of_order(self, index: int, command: Command, share: int | None) -> None:
        order = self.order(index)
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

    @rule(operation=st.sampled_from(OPERATIONS), coming=st.lists(weathers, min_size=1, max_size=3))
    def weather(self, operation: str, coming: list[Weather]) -> None:
        self.world.set_weather(operation, coming)

    @rule(index=indexes, number=st.integers(0, 2), is_about_refund=st.booleans())
    def webhook(self, index: int, number: int, is_about_refund: bool) -> None:
        self.hear(index, number, is_about_refund=is_about_refund)

    def hear(self, index: int, number: int, *, is_about_refund: bool) -> None:
        """Hear from a processor about one of its payments."""
        known = [(name, each) for name, bank in self.world.banks.items() for each, _ in bank.payments()]
        if not known:
            return
        name, reference = known[index % len(known)]
        payment = dict(self.world.banks[name].payments())[reference]
        references = [each.reference for each in payment.refunds.values() if each.reference]
        refund = references[index % len(references)] if references and is_about_refund else None
        body, headers = self.world.notify(reference, number=number, refund=refund)
        account = self.template.accounts[name]
        self.world.do(processor_events.receive(self.context, name, account, body=body, headers=headers))
        self.count(f"webhook about a {'refund' if refund else 'payment'}")

    @_has("failed", "captured", "authorized", "processing", "requires_action")
    @rule(index=indexes)
    def late_success(self, index: int) -> None:
        declined = [
            (bank, reference)
            for bank in list(self.world.banks.values())[1:]
            for reference, known in bank.payments()
            if isinstance(known.outcome, Declined) and known.outcome.reference is not None
        ]
        if declined:
            bank, reference = declined[index % len(declined)]
            bank.pay_late(reference)
            self.count("paid late")

    # Time and accidents.

    @rule(for_s=st.sampled_from([None, None, 0.0, 0.0, 1.0, 5.0, 40.0, 600.0, 7_200.0, DAY_S]), mishap=mishaps)
    def loop_works(self, for_s: float | None, mishap: Mishap | None) -> None:
        self.expect(mishap, *LOOP_POINTS)
        self.world.do(work(self.context, 1, 1) if for_s is None else live(self.context, for_s))

    @rule(for_s=st.sampled_from([5.0, 40.0, 1_000.0, DAY_S]))
    def loop_stands_still(self, for_s: float) -> None:
        self.world.freeze(for_s)

    @rule(entry=st.sampled_from(range(len(SCHEDULE))), mishap=mishaps)
    def schedule(self, entry: int, mishap: Mishap | None) -> None:
        self.expect(mishap, "void")
        self.world.do(SCHEDULE[entry][2](self.context))

    @rule(end=st.sampled_from(["killed", "killed for good", "stopped", "stopped at once"]))
    def process_ends(self, end: str) -> None:
        if end.startswith("killed"):
            self.world.kill(frees_leases=end == "killed")
        else:
            self.world.restart(is_patient=end == "stopped")

    @rule(service=st.sampled_from(Service))
    def shop(self, service: Service) -> None:
        self.world.shop.service = service

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

    def come_to_rest(self) -> None:
        """Let everybody do what they have left to do, and check that nothing is left over."""
        self.world.accident = None
        self.world.weather.clear()
        if self.world.shop.service is not Service.REFUSING:  # one that refuses is gone for good
            self.world.shop.service = Service.UP
        self.let_live(2)
        self.books.read()
        self.books.check()
        count = sum(len(bank.payments()) for bank in self.world.banks.values())
        for index in range(count):
            self.hear(index, 3, is_about_refund=False)
            self.hear(index, 3, is_about_refund=True)
        self.let_live(5)
        self.books.read()
        self.books.check_rest()
        for order in self.books.orders.values():
            self.count(f"order ended {order['status']}{' for review' if order['needs_review'] else ''}")

    def let_live(self, days: int) -> None:
        """Let some days pass."""
        for _ in range(days):
            self.world.do(live(self.context, DAY_S))


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


@pytest.mark.slow
def test_whatever_happens_the_books_agree(machine: type[OrderMachine], request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--hypothesis-seed") is None:
        hypothesis.seed(SEED)(machine)
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
    for what, count in sorted(machine.seen.items()):
        sys.stdout.write(f"{count:6} {what}\n")


def _table(crashes: Counter[tuple[str, str]]) -> str:
    statuses = ["-", *OrderStatus]
    lines = [f"{'crashed at':24}" + "".join(f"{status[:12]:>13}" for status in statuses)]
    for point in (*LOOP_POINTS, *WORLD_POINTS):
        lines.append(f"{point:24}" + "".join(f"{crashes[point, str(status)]:13}" for status in statuses))
    return "\n".join(lines) + "\n"
