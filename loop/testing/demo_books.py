"""The demo's books: what Loop, the processor and the shop have each written down, side by side."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from loop.domain.money import Money
from loop.testing.demo_orders import SETTLED_WITHIN_S, Stage, Tale
from loop.testing.demo_shop import DemoError, JsonObject, LoopClient
from loop.testing.stub_psp import LedgerEntry, read_ledger

PAGE_SIZE = 100
PAGES_MAX = 20


@dataclass(frozen=True, slots=True)
class Movement:
    """Money that moved for an order: `kind` is authorization, capture, refund or void."""

    order_id: str
    kind: str
    amount: Money


@dataclass(frozen=True, slots=True)
class Comparison:
    """One line of the ledger table: how often, and how much, by Loop's books and by the processor's."""

    kind: str
    loop_count: int
    loop_sum: Money
    processor_count: int
    processor_sum: Money
    is_equal: bool
    """Whether each order has the same movements in both; equal sums alone could be two mistakes."""


def compare_ledgers(by_loop: Sequence[Movement], by_processor: Sequence[Movement]) -> list[Comparison]:
    """Compare two ledgers, movement by movement, and return one line for each kind and currency."""
    lines = []
    for kind, currency in sorted({(one.kind, one.amount.currency) for one in (*by_loop, *by_processor)}):
        ours, theirs = (
            [one for one in ledger if (one.kind, one.amount.currency) == (kind, currency)]
            for ledger in (by_loop, by_processor)
        )
        our_sum, their_sum = (Money(sum(one.amount.amount_minor for one in side), currency) for side in (ours, theirs))
        is_equal = Counter(ours) == Counter(theirs)
        lines.append(Comparison(kind, len(ours), our_sum, len(theirs), their_sum, is_equal))
    return lines


@dataclass(frozen=True, slots=True)
class Telling:
    """One line of the webhook table: how many events of a type Loop recorded, and how many the shop has verified."""

    event_type: str
    recorded: int
    verified: int
    is_equal: bool


def compare_events(recorded: Sequence[JsonObject], received: Sequence[JsonObject]) -> list[Telling]:
    """Compare Loop's list of events (`id`, `eventType`) with what the shop received, by id."""
    lines = []
    for event_type in sorted({event["eventType"] for event in (*recorded, *received)}):
        ours, theirs = (
            {event["id"] for event in side if event["eventType"] == event_type} for side in (recorded, received)
        )
        lines.append(Telling(event_type, len(ours), len(theirs), ours == theirs))
    return lines


@dataclass(frozen=True, slots=True)
class Books:
    """Both sides of everything that can be counted; `problems` says in words what does not fit."""

    ledger: list[Comparison]
    events: list[Telling]
    inbound_count: int
    problems: list[str]


async def close_books(stage: Stage, tales: Sequence[Tale]) -> Books:
    """Wait until all webhooks have arrived, in both directions, and compare what each side has written down."""
    webhooks = stage.stub.webhooks
    with suppress(TimeoutError):
        await webhooks.settled(SETTLED_WITHIN_S)
    recorded = await _recorded_events(stage.loop)
    with suppress(TimeoutError):
        await stage.shop.until(lambda: {one["id"] for one in recorded} <= set(stage.shop.events()), SETTLED_WITHIN_S)
    by_loop = [movement for tale in tales for movement in await _moved_by_loop(stage.loop, tale)]
    ledger = compare_ledgers(by_loop, [_moved_by_processor(entry) for entry in read_ledger(stage.stub.ledger_path)])
    events = compare_events(recorded, list(stage.shop.events().values()))
    sent = {(one["event"], one["url"]) for one in webhooks.log}
    taken = {(one["event"], one["url"]) for one in webhooks.log if one["status"] is not None and one["status"] < 300}
    refused = [one.problem for one in stage.shop.received if one.problem is not None]
    problems = [
        *(f"The ledgers differ in {line.kind} {line.loop_sum.currency}." for line in ledger if not line.is_equal),
        *(f"Not every {line.event_type} is at both sides." for line in events if not line.is_equal),
        *([f"The shop could not verify {len(refused)} webhooks: {refused[0]}."] if refused else []),
        *([f"Loop did not take {len(sent - taken)} of the processor's webhooks."] if sent - taken else []),
        *([] if ledger and events and sent else ["A ledger or a list of webhooks is empty."]),
    ]
    return Books(ledger, events, len(taken), problems)


async def _recorded_events(loop: LoopClient) -> list[JsonObject]:
    found: list[JsonObject] = []
    for page in range(1, PAGES_MAX + 1):
        answer = await loop.get(f"/api/webhooks?page={page}&limit={PAGE_SIZE}")
        found += answer["data"]
        if page >= answer["pagination"]["totalPages"]:
            return found
    raise DemoError(f"Loop lists more than {PAGES_MAX * PAGE_SIZE} webhooks.")


async def _moved_by_loop(loop: LoopClient, tale: Tale) -> list[Movement]:
    rows = await loop.get_list(f"{tale.path}/transactions")
    return [
        Movement(row["orderId"], row["type"], Money(row["amount"], tale.currency))
        for row in rows
        if row["status"] == "success"
    ]


def _moved_by_processor(entry: LedgerEntry) -> Movement:
    # A charge is an authorization and a capture in one step, for which Loop writes down the capture.
    kind = "capture" if entry.kind == "charge" else entry.kind
    order_id = entry.metadata.get("loop_order_id", "")
    return Movement(order_id, kind, Money(entry.amount_minor, entry.currency.upper()))
