"""Every fault hits in every state in which it can, and every job is killed in every state in which it runs."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeAlias

import pytest

from loop.testing.stub_ledger import new_object_id
from tests.e2e.audits import assert_all_was_told, assert_at_rest, assert_books_agree
from tests.e2e.drills import DISPUTED, DISPUTED_IN_PART, FAILING_OVER, OPEN_REFUND, PARKING, Drill, Parked
from tests.e2e.fault_tables import (
    ANY_CALL,
    ARRIVALS,
    HELD,
    KILL,
    NEVER_CLEAR,
    REACHABLE,
    REFUSALS,
    UNDONE,
    FaultTable,
)
from tests.e2e.houses import Nursery
from tests.e2e.mischief import chance_of
from tests.e2e.towns import DAY_S, KEY_LOCK_S, STEP_S, Town, town

AT_ONCE = 24
"""How many orders are drilled at once."""

DRILL_S = 240.0
"""How long a drill may take, in seconds; on an idle machine it takes a tenth of that."""

LEAP_S = 20.0
"""How far the clock is set forward at a time while orders wait in their states: less than a lease lasts."""

DAY_LATER_S = 23.5 * 3_600
FEW = 4
"""How many questions after one another go unanswered before the next takes minutes."""

RACES_MAX = 10
"""How often something is tried that has to happen within the two seconds in which Loop waits for an answer."""

PATIENT_S = 25
"""How long Loop waits for answers in a drill that kills it meanwhile."""

QUESTIONS = (*(fault for fault in ANY_CALL if fault != "slow"), "slow")
"""The faults of a question; the one that lets it be answered comes last."""

Work: TypeAlias = Callable[[], Awaitable[None]]


@pytest.fixture
async def table() -> FaultTable:
    return FaultTable()


@asynccontextmanager
async def drilled(nursery: Nursery, url: str, table: FaultTable, **flags: object) -> AsyncIterator[Drill]:
    """Yield a drill in a town whose Loop lives."""
    async with town(nursery, url, chance=chance_of("drills"), table=table) as here, asyncio.timeout(DRILL_S):
        here.house.flags |= flags
        await here.house.begin(here.session)
        yield Drill(here)


@asynccontextmanager
async def hurrying(here: Town) -> AsyncIterator[None]:
    """Set the clock forward, a little at a time, whenever Loop has nothing to do."""

    async def hurry() -> None:
        while True:
            here.hurry(LEAP_S)
            await asyncio.sleep(STEP_S)

    hurried = asyncio.create_task(hurry())
    try:
        yield
    finally:
        hurried.cancel()
        await asyncio.gather(hurried, return_exceptions=True)


async def all_of(works: Iterable[Work]) -> None:
    """Do everything, so much at once."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(work: Work) -> None:
        async with room:
            await work()

    async with asyncio.TaskGroup() as group:
        for work in works:
            group.create_task(one(work))


def in_fours(faults: Iterable[str]) -> list[list[str]]:
    listed = list(faults)
    return [listed[at : at + FEW] for at in range(0, len(listed), FEW)]


# --- calls that move money -------------------------------------------------------------------------------------------

STEPS = {
    "payment_intents/*/capture": "capture",
    "payment_intents/*/cancel": "cancel",
    "refunds": "refund",
    "payments/*/capture": "capture",
    "payments/*/refund": "refund",
}


async def command(drill: Drill, where: str, fault: str, unclear: set[str]) -> None:
    """Have a fault hit a call that moves money."""
    operation, state = where.split(" @ ")
    processor, _, path = operation.split(" ")
    aims = []
    if path in STEPS:
        parked, step = await drill.park(processor, state), STEPS[path]
    else:
        parked, step = await drill.new(PARKING[processor, "captured"][0]), "pay"
        if state == "unknown":
            aims.append(drill.town.mischief.aim(parked.order_id, f"{operation} @ submitting", "lost before"))
    if fault == UNDONE and operation in NEVER_CLEAR:
        unclear.add(parked.order_id)
    aims.append(drill.town.mischief.aim(parked.order_id, where, fault))
    await drill.step(parked, step)
    await drill.until_spent(*aims)


async def fence(drill: Drill, where: str, fault: str) -> None:
    """Have a fault hit the call that ends a declined payment before the next processor is asked."""
    for _ in range(RACES_MAX):
        parked = await drill.new(FAILING_OVER)
        aim = drill.town.mischief.aim(parked.order_id, where, fault)
        await drill.step(parked, "pay")
        await drill.until(lambda: not aim.faults or drill.standing(parked).state == "captured")  # noqa: B023 - at once
        if not aim.faults:
            return
        await asyncio.sleep(1)  # the first processor seemed to be away, and was not asked at all
    raise AssertionError(f"{fault} {where} was missed {RACES_MAX} times")


def commands(drill: Drill, cells: Iterable[tuple[str, str]], unclear: set[str]) -> list[Work]:
    """Return the drills of all calls that move money."""
    return [
        partial(fence, drill, where, fault)
        if where.endswith("@ failed")
        else partial(command, drill, where, fault, unclear)
        for fault, where in cells
        if " POST " in where
    ]


# --- questions -------------------------------------------------------------------------------------------------------


_HAVING = {
    "refunds/*": (OPEN_REFUND, "partially_refunded", "refunded"),
    "disputes/*": (DISPUTED, DISPUTED_IN_PART),
}
"""What a question is about -> the orders that have one."""


async def question(drill: Drill, processor: str, state: str) -> None:
    """Have every fault hit every question about an order in a state, and every kind of webhook come in."""
    parked = await drill.park(processor, state)
    real_state, mischief = drill.standing(parked).state, drill.town.mischief
    triggers = {
        "stripe GET payment_intents": drill.poke,
        "stripe GET payment_intents/*": drill.poke,
        "stripe GET refunds/*": drill.poke_about_refund,
        "razorpay GET orders/*/payments": drill.poke,
        "razorpay GET payments/*": drill.reload,
        "razorpay GET refunds/*": drill.poke_about_refund,
        "stripe GET disputes/*": drill.poke_about_dispute,
        "razorpay GET disputes/*": drill.poke_about_dispute,
    }
    if state == real_state:
        await webhooks(drill, parked, real_state)
        await deliveries(drill, parked, real_state)
    for operation, trigger in triggers.items():
        where = f"{operation} @ {real_state}"
        is_for_other = state not in _HAVING.get(operation.rpartition(" ")[2], (real_state,))
        if operation.startswith(processor) and (QUESTIONS[0], where) in REACHABLE and not is_for_other:
            await drill.spend(mischief.aim(parked.order_id, where, *QUESTIONS), trigger, parked)
    mischief.aims.pop(parked.order_id, None)


async def webhooks(drill: Drill, parked: Parked, state: str) -> None:
    """Have webhooks about an order come twice, late and out of order."""
    if ("twice", f"webhook @ {state}") not in REACHABLE:
        return
    prefix = "evt" if drill.attempt(parked)["processor"] == "stripe" else "event"
    event_id = new_object_id(prefix)
    for age_s in (0, 0, 300, 3):  # the second is the first again
        await drill.poke(parked, age_s=age_s, event_id=event_id if age_s == 0 else None)
        await asyncio.sleep(0.2)
    hits = drill.town.table.hits
    await drill.until(lambda: all((fault, f"webhook @ {state}") in hits for fault in ARRIVALS), f"webhooks @ {state}")


async def deliveries(drill: Drill, parked: Parked, state: str) -> None:
    """Have the merchant's server refuse webhooks about an order."""
    await drill.spend(drill.town.mischief.aim(parked.order_id, f"delivery @ {state}", *REFUSALS), drill.resend, parked)


async def unlisted_refund(drill: Drill, processor: str, state: str, faults: list[str]) -> None:
    """Have faults hit the search for a refund of which Loop has not heard."""
    parked = await drill.park(processor, state)
    aim = drill.town.mischief.aim
    if processor == "stripe":
        aims = [aim(parked.order_id, f"stripe POST refunds @ {state}", "kept 500, done")]
        aims.append(aim(parked.order_id, f"stripe GET refunds @ {state}", *faults))
    else:
        aims = [aim(parked.order_id, f"razorpay POST payments/*/refund @ {state}", *["500"] * len(faults))]
        aims.append(aim(parked.order_id, f"razorpay GET payments/*/refunds @ {state}", *faults))
    await drill.step(parked, "refund")
    await drill.until_spent(aims[1])
    drill.town.mischief.aims.pop(parked.order_id, None)


async def while_submitting(drill: Drill, cell: tuple[str, str]) -> None:
    """Have something hit within the moment in which the first call is on its way."""
    fault, where = cell
    mischief = drill.town.mischief
    for _ in range(RACES_MAX):
        before = drill.town.table.hits[cell]
        parked = await drill.new(PARKING["stripe", "captured"][0])
        mischief.aim(parked.order_id, "stripe POST payment_intents @ submitting", "too slow")
        if not where.startswith("webhook"):
            mischief.aim(parked.order_id, where, fault)
        await drill.step(parked, "pay")
        if where.startswith("webhook"):
            mischief.aim(parked.order_id, "stripe GET payment_intents @ submitting", *["too slow"] * 4)
            event_id = new_object_id("evt")
            for age_s in (0, 0, 300, 3):
                await drill.poke(parked, age_s=age_s, event_id=event_id if age_s == 0 else None)
                await asyncio.sleep(0.05)
        elif where.startswith("stripe GET"):
            await drill.poke(parked)
        await drill.until(lambda: drill.standing(parked).state != "submitting")  # noqa: B023 - awaited at once
        mischief.aims.pop(parked.order_id)
        if drill.town.table.hits[cell] > before:
            return
    raise AssertionError(f"{cell} was missed {RACES_MAX} times")


async def a_day_later(drill: Drill) -> None:
    """Have faults hit the search for an order at Razorpay, of which Loop has heard nothing for a day."""
    parked = await drill.new(PARKING["razorpay", "captured"][0])
    aim = drill.town.mischief.aim
    aim(parked.order_id, "razorpay POST orders @ submitting", "lost after")
    aim(parked.order_id, "razorpay POST orders @ unknown", "lost before", is_endless=True)
    await drill.step(parked, "pay")
    await drill.until_in(parked, "unknown")
    drill.town.clock.forward(DAY_LATER_S)
    aims = [
        aim(parked.order_id, f"razorpay GET {path} @ unknown", *QUESTIONS) for path in ("orders", "orders/*/payments")
    ]
    await drill.town.drive(lambda: not any(each.faults for each in aims))
    await drill.until_in(parked, "requires_action")


def cells_of(processor: str) -> set[tuple[str, str]]:
    """Return the cells that are hit through a processor's orders."""
    states = {state for parked_at, state in PARKING if parked_at == processor}
    states |= {"submitting"} if processor == "stripe" else set()
    told = {f"{what} @ {state}" for what in ("webhook", "delivery") for state in states}
    return {(fault, where) for fault, where in REACHABLE if where.startswith(processor) or where in told}


def test_no_cell_is_left_out() -> None:
    hit = cells_of("stripe") | cells_of("razorpay")
    assert hit == {cell for cell in REACHABLE if cell[0] != KILL}


@pytest.mark.slow
@pytest.mark.parametrize("processor", ["stripe", "razorpay"])
async def test_every_fault_hits_in_every_state(
    processor: str, nursery: Nursery, sqlite_database_url: str, table: FaultTable
) -> None:
    unclear: set[str] = set()
    wanted = cells_of(processor)
    async with drilled(nursery, sqlite_database_url, table) as drill:
        here = drill.town
        submitting = sorted(cell for cell in wanted if cell[1].endswith("@ submitting") and " POST " not in cell[1])
        works: list[Work] = [
            *(partial(question, drill, *parking) for parking in PARKING if parking[0] == processor),
            *(partial(while_submitting, drill, cell) for cell in submitting if cell[0] not in REFUSALS),
            *(
                partial(unlisted_refund, drill, processor, state, faults)
                for state in ("captured", "partially_refunded")
                for faults in in_fours(QUESTIONS)
            ),
            *commands(drill, sorted(wanted), unclear),
        ]
        here.mischief.chance.shuffle(works)  # so that the processor never seems to be away
        async with hurrying(here):
            # While the merchant's server still seems to be well: later it is left alone for minutes.
            await all_of(partial(while_submitting, drill, cell) for cell in submitting if cell[0] in REFUSALS)
            await all_of(works)
        here.mischief.clear()
        await here.drive(lambda: here.is_at_rest(unclear))
        if processor == "razorpay":
            await a_day_later(drill)
            here.mischief.clear()
        here.clock.forward(DAY_S)
        await here.drive(lambda: here.is_over(unclear))
        assert await here.house.stop() == 0
        sys.stdout.write(f"{table.text(wanted)}\n")
        assert wanted <= table.hits.keys(), sorted(wanted - table.hits.keys())
        assert_at_rest(here.house, unclear)
        assert_books_agree(here.house, here.stub.ledger_path)
        assert_all_was_told(here.house, here.server)


# --- kills -----------------------------------------------------------------------------------------------------------

HELD_CALLS = {
    "capture_payment": "stripe POST payment_intents/*/capture",
    "void_payment": "stripe POST payment_intents/*/cancel",
    "send_refund": "stripe POST refunds",
}
HELD_STEPS = {"capture_payment": "capture", "void_payment": "cancel", "send_refund": "refund"}


class Shift:
    """Has jobs at work, each held where it is, until Loop is killed."""

    def __init__(self, drill: Drill, calls: asyncio.TaskGroup) -> None:
        self._drill = drill
        self._calls = calls

    async def put_to_work(self, where: str) -> None:
        """Have the job that is named at work on a new order in the state that is named."""
        kind, state = where.split(" @ ")
        match kind:
            case "advance_payment":
                parked = await self._advance(state)
            case "process_processor_event":
                parked = await self._process(state)
            case "ask_dispute":
                parked = await self._drill.park("stripe", DISPUTED)
                await self._drill.until(partial(self._drill.town.house.rows, "SELECT id FROM disputes"), where)
                self._hold(parked, f"stripe GET disputes/* @ {state}")
                self._drill.town.clock.forward(DAY_S)
                self._drill.town.house.hurry()
            case "fail_over_payment":
                parked = await self._drill.new(FAILING_OVER)
                self._hold(parked, "stripe POST payment_intents/*/cancel @ failed")
                await self._drill.step(parked, "pay")
            case "deliver_webhooks":
                parked = await self._park(state)
                self._drill.town.mischief.aim(parked.order_id, f"delivery @ {state}", "hung")
                await self._drill.resend(parked)
            case _:
                parked = await self._drill.park("stripe", state)
                self._hold(parked, f"{HELD_CALLS[kind]} @ {state}")
                self._calls.create_task(self._drill.step(parked, HELD_STEPS[kind]))
        await self._drill.until(lambda: self._is_at_work(kind, parked), where)

    def _hold(self, parked: Parked, where: str) -> None:
        self._drill.town.mischief.aim(parked.order_id, where, HELD, is_endless=True)

    def _is_at_work(self, kind: str, parked: Parked) -> bool:
        here = self._drill.town
        if kind == "deliver_webhooks":
            return parked.order_id in here.server.hung
        at_work = {(kind, standing.order_id) for kind, standing in here.standings.under_way()}
        return (kind, parked.order_id) in at_work

    async def _park(self, state: str) -> Parked:
        if state == "submitting":
            return await self._submit()
        return await self._drill.park("razorpay" if state == "pending" else "stripe", state)

    async def _submit(self) -> Parked:
        parked = await self._drill.new(PARKING["stripe", "captured"][0])
        self._hold(parked, "stripe POST payment_intents @ submitting")
        await self._drill.step(parked, "pay")
        return parked

    async def _advance(self, state: str) -> Parked:
        if state == "submitting":
            return await self._submit()
        if state == "pending":
            parked = await self._drill.park("razorpay", state)
            self._hold(parked, "razorpay GET orders/*/payments @ pending")
            return parked
        parked = await self._drill.new(PARKING["stripe", "captured"][0])
        self._drill.town.mischief.aim(parked.order_id, "stripe POST payment_intents @ submitting", "lost before")
        self._hold(parked, "stripe POST payment_intents @ unknown")
        await self._drill.step(parked, "pay")
        return parked

    async def _process(self, state: str) -> Parked:
        parked = await self._park(state)
        for operation in (
            "stripe GET payment_intents",
            "stripe GET payment_intents/*",
            "razorpay GET orders/*/payments",
        ):
            self._hold(parked, f"{operation} @ {state}")
        await self._drill.poke(parked)
        return parked

    async def end(self) -> None:
        """Kill Loop, begin it anew, and hold nothing back any more."""
        here = self._drill.town
        await here.kill()
        here.mischief.clear()
        here.clock.forward(KEY_LOCK_S)
        await here.house.begin(here.session)


@pytest.mark.slow
async def test_every_job_is_killed_in_every_state(
    nursery: Nursery, sqlite_database_url: str, table: FaultTable
) -> None:
    patience = {"processor_timeout_s": PATIENT_S, "webhook_timeout_s": PATIENT_S}
    async with drilled(nursery, sqlite_database_url, table, **patience) as drill:
        here = drill.town
        here.server.hung_s = PATIENT_S
        wheres = [where for fault, where in REACHABLE if fault == KILL]
        told = [where for where in wheres if where.startswith("deliver_webhooks")]
        # A webhook that hangs keeps all others from its merchant, and a dispute is asked about a day later.
        alone = [*told, "ask_dispute @ captured"]
        for some in ([where for where in wheres if where not in alone], *([where] for where in alone)):
            async with asyncio.TaskGroup() as calls:
                shift = Shift(drill, calls)
                await all_of(partial(shift.put_to_work, where) for where in some)
                await shift.end()
        await here.drive(here.is_at_rest)
        here.clock.forward(DAY_S)
        await here.drive(here.is_over)
        assert await here.house.stop() == 0
        wanted = {cell for cell in REACHABLE if cell[0] == KILL}
        sys.stdout.write(f"{table.text(wanted)}\n")
        assert wanted <= set(table.hits), sorted(wanted - set(table.hits))
        assert_at_rest(here.house)
        assert_books_agree(here.house, here.stub.ledger_path)
        assert_all_was_told(here.house, here.server)
