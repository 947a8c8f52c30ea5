"""Audits: the processors' own ledgers, Loop's books and what the merchant was told, held against each other."""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from loop.testing.stub_ledger import read_ledger
from tests.e2e.crash_child import SANDBOX_LEDGER
from tests.e2e.houses import AttentiveMerchant, House, Premises

_Key = TypeVar("_Key", tuple[str, str], tuple[str, str, str])

DISPUTES = {"dispute": 1, "dispute_reversal": -1}
"""What a bank takes from the merchant, and gives back: Loop counts it by orders, and not as transactions."""

TAKEN, GIVEN_BACK, UNDONE = ("charge", "capture"), "refund", "refund_reversal"


@dataclass(frozen=True)
class Moved:
    """One movement of money, as a processor wrote it down."""

    processor: str
    order_id: str
    attempt_id: str
    kind: str
    amount: int
    currency: str


def movements(house: House, ledger: Path) -> list[Moved]:
    """Return what all processors wrote down."""
    return [*of_stubs(ledger), *of_sandbox(house)]


def of_stubs(ledger: Path) -> Iterable[Moved]:
    """Return what the stand-in processors wrote down."""
    for row in read_ledger(ledger):
        processor = "stripe" if row.account.startswith("acct_") else "razorpay"
        order_id, attempt_id = row.metadata.get("loop_order_id", ""), row.metadata["loop_attempt_id"]
        yield Moved(processor, order_id, attempt_id, row.kind, row.amount_minor, row.currency.upper())


def of_sandbox(house: House) -> Iterable[Moved]:
    """Return the sandbox's rows, once each: what a life did again under the same key is the same movement."""
    orders = {row["id"]: row["order_id"] for row in house.rows("SELECT id, order_id FROM payment_attempts")}
    path = house.path.parent / SANDBOX_LEDGER
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    rows = {line["key"]: line for line in map(json.loads, lines)}
    assert {json.dumps(row, sort_keys=True) for row in rows.values()} == {
        json.dumps(json.loads(line), sort_keys=True) for line in lines
    }, "the sandbox did two things under one key"
    for row in rows.values():
        amount, attempt_id = row["amount"], row["attempt_id"]
        yield Moved("sandbox", orders[attempt_id], attempt_id, row["kind"], amount["amount_minor"], amount["currency"])


def assert_books_agree(house: House, ledger: Path) -> None:
    """Compare the ledgers with Loop's transactions, by account, by attempt and with the orders' sums."""
    assert_all_moved(house, movements(house, ledger))


def assert_all_moved(house: Premises, moved: list[Moved]) -> None:
    """Compare what moved with Loop's transactions, by account, by attempt and with the orders' sums."""
    rows = house.rows(
        "SELECT transactions.*, payment_attempts.is_manual_capture FROM transactions"
        " JOIN payment_attempts ON payment_attempts.id = transactions.attempt_id WHERE transactions.status = 'success'"
    )
    by_account, of_account = Counter[tuple[str, str, str]](), Counter[tuple[str, str, str]]()
    by_attempt, of_attempt = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    manual = {row["id"] for row in house.rows("SELECT id FROM payment_attempts WHERE is_manual_capture")}
    unheard = {row["attempt_id"] for row in rows if row["type"] == "void"}
    unheard -= {row["attempt_id"] for row in rows if row["type"] == "authorization"}
    for each in moved:
        # Of a hold that was released before Loop had heard of it, Loop has the release alone.
        if each.kind in DISPUTES or (each.kind == "authorization" and each.attempt_id in unheard):
            continue
        kind, amount = _side(each, is_manual=each.attempt_id in manual)
        by_account[each.processor, each.currency, kind] += amount
        by_attempt[each.attempt_id, kind] += amount
    for row in rows:
        of_account[row["processor"], row["currency"], row["type"]] += row["amount_minor"]
        of_attempt[row["attempt_id"], row["type"]] += row["amount_minor"]
    _take_back_reversed(house, of_account, of_attempt)
    assert _moved(by_attempt) == _moved(of_attempt), (by_attempt - of_attempt, of_attempt - by_attempt)
    assert _moved(by_account) == _moved(of_account)
    _assert_sums(house, of_attempt)
    _assert_charged_once(house, moved)
    _assert_disputed(house, moved)
    # The clock has come past Loop's own comparison of its days with the processors' lists.
    assert house.rows("SELECT * FROM reconciliation_findings") == []


def _moved(sums: Counter[_Key]) -> dict[_Key, int]:
    return {key: amount for key, amount in sums.items() if amount}


def _side(moved: Moved, *, is_manual: bool) -> tuple[str, int]:
    """Return the kind of transaction that a movement is to Loop, and its amount there."""
    if moved.kind in TAKEN:
        return "capture", moved.amount
    if moved.kind == UNDONE:
        return GIVEN_BACK, -moved.amount
    # With automatic capture Loop does not speak of the moment in which the money is held.
    return moved.kind, 0 if moved.kind in ("authorization", "void") and not is_manual else moved.amount


def _take_back_reversed(
    house: Premises, of_account: Counter[tuple[str, str, str]], of_attempt: Counter[tuple[str, str]]
) -> None:
    """Leave out refunds that succeeded and then failed: Loop keeps both rows."""
    for row in house.rows(
        "SELECT refunds.*, payment_attempts.processor FROM refunds"
        " JOIN payment_attempts ON payment_attempts.id = refunds.attempt_id WHERE refunds.status = 'failed'"
        " AND EXISTS (SELECT 1 FROM transactions WHERE refund_id = refunds.id AND transactions.status = 'success')"
    ):
        of_account[row["processor"], row["currency"], GIVEN_BACK] -= row["amount_minor"]
        of_attempt[row["attempt_id"], GIVEN_BACK] -= row["amount_minor"]


def _assert_sums(house: Premises, of_attempt: Counter[tuple[str, str]]) -> None:
    attempts: defaultdict[str, list[str]] = defaultdict(list)
    for row in house.rows("SELECT id, order_id FROM payment_attempts WHERE NOT is_duplicate"):
        attempts[row["order_id"]].append(row["id"])
    on_its_way = Counter[str]()
    for row in house.rows("SELECT * FROM refunds WHERE status NOT IN ('succeeded', 'failed') AND NOT is_reversal"):
        on_its_way[row["order_id"]] += row["amount_minor"]
    for order in house.rows("SELECT * FROM orders"):
        taken, given_back = (
            sum(of_attempt[attempt, kind] for attempt in attempts[order["id"]]) for kind in ("capture", GIVEN_BACK)
        )
        assert (order["amount_captured_minor"], order["amount_refunded_minor"]) == (taken, given_back), order
        assert order["amount_refund_reserved_minor"] == given_back + on_its_way[order["id"]], order


def _assert_charged_once(house: Premises, moved: list[Moved]) -> None:
    """Hold that an order is charged once at most, but for what was given back whole."""
    kept: defaultdict[str, Counter[str]] = defaultdict(Counter)
    charges: Counter[str] = Counter()
    for each in moved:
        kind, amount = _side(each, is_manual=True)
        if kind == "capture":
            charges[each.attempt_id] += 1
        if kind in ("capture", GIVEN_BACK):
            kept[each.order_id][each.attempt_id] += amount if kind == "capture" else -amount
    assert all(count == 1 for count in charges.values()), charges.most_common(3)
    orders = {row["id"]: row for row in house.rows("SELECT * FROM orders")}
    for order_id, by_attempt in kept.items():
        assert sum(amount > 0 for amount in by_attempt.values()) <= 1, (order_id, by_attempt)
        assert sum(by_attempt.values()) <= orders[order_id]["amount_minor"]


def _assert_disputed(house: Premises, moved: list[Moved]) -> None:
    at_stake = Counter[str]()
    for each in moved:
        at_stake[each.order_id] += DISPUTES.get(each.kind, 0) * each.amount
    for order in house.rows("SELECT id, amount_disputed_minor FROM orders"):
        assert order["amount_disputed_minor"] == at_stake[order["id"]], order


def assert_all_was_told(house: Premises, server: AttentiveMerchant) -> None:
    """Compare the committed events with what the merchant took, and every try of one with its text."""
    events = house.rows("SELECT * FROM webhook_events")
    assert server.received.keys() <= {event["id"] for event in events}
    assert {event["id"] for event in events} == server.taken
    for event in events:
        assert set(server.received[event["id"]]) == {event["body"].encode()}, event["id"]
    left = house.rows("SELECT * FROM webhook_deliveries WHERE status != 'delivered'")
    assert not left, left[:3]
    once = house.rows(
        "SELECT order_id, event_type, count(*) AS times FROM webhook_events"
        " WHERE event_type IN ('order.created', 'payment.authorized', 'payment.captured', 'payment.cancelled')"
        " GROUP BY order_id, event_type HAVING count(*) > 1"
    )
    assert not once, once[:3]


def assert_at_rest(house: House, unclear: Collection[str] = ()) -> None:
    """Hold that all is done (see `assert_all_done`), and the file is sound."""
    assert_all_done(house, unclear)
    assert house.rows("PRAGMA integrity_check") == [{"integrity_check": "ok"}]
    assert house.rows("PRAGMA foreign_key_check") == []


def assert_all_done(house: Premises, unclear: Collection[str] = ()) -> None:
    """Hold that nothing is left to be done, and nothing is dead.

    `unclear` are the orders of which it will never be known what became of a call: a person must look at them.
    """
    # The clock makes these every minute, in the moment before Loop is stopped too: it may be claimed by nobody yet.
    jobs = house.rows(
        "SELECT jobs.*, refunds.order_id FROM jobs LEFT JOIN refunds ON refunds.id = jobs.subject"
        " WHERE NOT (jobs.kind = 'reconcile' AND jobs.fence = 0)"
    )
    assert {job["order_id"] or job["subject"] for job in jobs} == set(unclear), jobs[:3]
    assert not any(job["is_dead"] for job in jobs)
    open_orders = house.rows("SELECT * FROM orders WHERE status IN ('processing', 'requires_action') OR needs_review")
    stuck = [order for order in open_orders if order["id"] not in unclear and order["status"] in _WAITING]
    assert not stuck, stuck[:3]
    assert {order["id"] for order in open_orders} >= set(unclear)
    live = house.rows(
        "SELECT * FROM payment_attempts WHERE status IN ('submitting', 'unknown', 'pending', 'requires_action')"
    )
    assert {attempt["order_id"] for attempt in live} <= set(unclear), live[:3]
    open_refunds = house.rows("SELECT * FROM refunds WHERE status NOT IN ('succeeded', 'failed')")
    assert {refund["order_id"] for refund in open_refunds} <= set(unclear), open_refunds[:3]


_WAITING = ("processing", "requires_action")
