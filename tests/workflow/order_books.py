"""What must hold of Loop's books and the processors' own, after every step and once all has come to rest."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from loop.domain import polling
from loop.domain.attempts import Approved, Declined
from loop.domain.deliveries import MAX_TRIES
from loop.domain.disputes import AT_STAKE, DECIDED
from loop.domain.failover import DeclineFinality
from loop.domain.orders import PAYMENT_EVENTS, TABLE, Command, Next, OrderStatus
from tests.workflow.order_processors import Bank, captured, hold_or_charge
from tests.workflow.order_world import World

Row = Mapping[str, Any]

FOLLOWING: Final[Mapping[str, frozenset[str]]] = {
    str(status): frozenset(str(cell.status) for cell in cells.values() if isinstance(cell, Next))
    for status, cells in TABLE.items()
}
"""status -> the statuses that one step of the domain's table leads to."""

STATUS_TOLD: Final[Mapping[str, str]] = {str(event): str(status) for status, event in PAYMENT_EVENTS.items()}

REFUSALS: Final = {
    Command.PAY: {"invalid_status", "order_expired", "attempts_exhausted", "no_eligible_processor"},
    Command.RETRY: {
        "invalid_status",
        "order_expired",
        "attempts_exhausted",
        "no_eligible_processor",
        "previous_attempt_open",
    },
    Command.CAPTURE: {"invalid_status", "capture_exceeds_authorized", "operation_in_progress", "capture_failed"},
    Command.CANCEL: {"invalid_status", "operation_in_progress", "cancel_failed"},
    Command.REFUND: {"invalid_status", "refund_exceeds_captured"},
}
"""With what a command may be refused."""

LIVE: Final = ("submitting", "unknown", "requires_action", "pending")
OPEN: Final = ("submitting", "unknown", "pending")
"""Attempts and refunds of which the processor's answer is awaited."""

FOR_REVIEW: Final = ("payment.unclear", "refund.unclear", "payment.capture_refused")
"""What Loop logs of an order that it marks for review."""

KNOWN_TROUBLES: Final = frozenset(
    {
        "processor.raised", "processor.circuit_opened", *FOR_REVIEW, "payment.late_success", "payment.not_fenced",
        "job.lease_lost", "job.not_renewed", "jobs.cut_short", "webhook.endpoint_paused",
        "webhook.endpoint_disabled",
    }
)  # fmt: skip
"""What Loop may log as a warning or an error here; anything else is a mistake of its own."""

MOVES: Final[Mapping[str, str]] = {"authorization": "payment", "charge": "payment", "capture": "end", "void": "end"}
"""Kind of a processor's ledger entry -> of what an attempt has one: it is paid once, and a hold ends once."""


def _by(rows: Sequence[Row], name: str) -> dict[str, list[Row]]:
    grouped: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row[name]].append(row)
    return grouped


@dataclass
class Books:
    """Loop's rows as they are committed, beside the world's."""

    world: World
    orders: dict[str, Row] = field(default_factory=dict)
    attempts: dict[str, list[Row]] = field(default_factory=dict)
    refunds: dict[str, list[Row]] = field(default_factory=dict)
    disputes: dict[str, list[Row]] = field(default_factory=dict)
    transactions: dict[str, list[Row]] = field(default_factory=dict)
    events: list[Row] = field(default_factory=list)
    deliveries: dict[str, Row] = field(default_factory=dict)
    jobs: list[Row] = field(default_factory=list)
    _bodies: dict[str, dict[str, Any]] = field(default_factory=dict)

    def read(self) -> None:
        """Read what is committed; rows come in the order in which they were inserted."""
        self.orders = {row["id"]: row for row in self._all("orders")}
        self.attempts = _by(self._all("payment_attempts"), "order_id")
        self.refunds = _by(self._all("refunds"), "order_id")
        self.disputes = _by(self._all("disputes"), "order_id")
        self.transactions = _by(self._all("transactions"), "attempt_id")
        self.events = self._all("webhook_events")
        self.deliveries = {row["event_id"]: row for row in self._all("webhook_deliveries")}
        self.jobs = self._all("jobs")
        for row in self.events:
            if row["id"] not in self._bodies:
                self._bodies[row["id"]] = json.loads(row["body"])

    def _all(self, table: str) -> list[Row]:
        rows: list[Row] = self.world.rows.execute(f"SELECT * FROM {table} ORDER BY rowid").fetchall()  # noqa: S608 - ours
        return rows

    def told(self, order_id: str) -> list[dict[str, Any]]:
        """Return the bodies of an order's events, oldest first."""
        return [self._bodies[row["id"]] for row in self.events if row["order_id"] == order_id]

    def latest(self, order_id: str) -> Row | None:
        """Return an order's latest attempt."""
        tried = self.attempts.get(order_id)
        return tried[-1] if tried else None

    def bank_of(self, attempt: Row) -> Bank:
        """Return the processor of an attempt."""
        return self.world.banks[attempt["processor"]]

    # After every step.

    def check(self) -> None:
        """Check what holds at any moment."""
        assert not self.world.troubles, self.world.troubles
        for record in self.world.ears.heard:
            is_known = record.getMessage() in KNOWN_TROUBLES or self.world.excuses(record)
            assert is_known, (record.getMessage(), record.__dict__)
        subjects = {job["subject"] for job in self.jobs}
        assert not [dict(job) for job in self.jobs if job["is_dead"]]
        for order in self.orders.values():
            self._check_attempts(order)
            self._check_refunds(order, subjects)
            self._check_events(order)
            self._check_processors(order)
            if order["status"] == "processing":
                assert order["id"] in subjects, f"{order['id']} is processing, and no job is about it"
        self._check_deliveries(subjects)
        for bank in self.world.banks.values():
            moves = Counter((entry.attempt_id, MOVES[entry.kind]) for entry in bank.ledger() if entry.kind in MOVES)
            assert all(count == 1 for count in moves.values()), f"{bank.name} did twice what is done once: {moves}"

    def _check_attempts(self, order: Row) -> None:
        tried = self.attempts.get(order["id"], [])
        assert [each["number"] for each in tried] == list(range(1, order["attempt_count"] + 1))
        assert sum(each["status"] in LIVE for each in tried) <= 1
        assert order["amount_captured_minor"] <= order["amount_minor"]
        assert order["amount_authorized_minor"] <= order["amount_minor"]

    def _check_refunds(self, order: Row, subjects: set[str]) -> None:
        rows = [each for each in self.refunds.get(order["id"], []) if not each["is_reversal"]]
        reserved = sum(each["amount_minor"] for each in rows if each["status"] != "failed")
        refunded = sum(each["amount_minor"] for each in rows if each["status"] == "succeeded")
        assert order["amount_refund_reserved_minor"] == reserved <= order["amount_captured_minor"]
        assert order["amount_refunded_minor"] == refunded
        for each in self.refunds.get(order["id"], []):
            if each["status"] in OPEN:
                assert each["id"] in subjects, f"{each['id']} is {each['status']}, and no job is about it"

    def _check_events(self, order: Row) -> None:
        """Follow what the merchant was told: one step of the table at a time, each told once, up to where it stands."""
        told = self.told(order["id"])
        assert [each["eventType"] for each in told].count("order.created") == 1
        assert told[0]["eventType"] == "order.created"
        numbers = [each["seq"] for each in told]
        assert numbers == sorted(numbers)
        assert numbers[0] == 1 <= numbers[-1] <= order["revision"]
        status, number = str(OrderStatus.PENDING), 0
        for body in told[1:]:
            kind, following = body["eventType"], body["status"]
            tried = body["payload"].get("attempt", number)
            if kind in STATUS_TOLD:
                assert following == STATUS_TOLD[kind], f"{kind} says {following}"
                is_next_try = kind == "payment.processing" and tried > number
                assert following != status or is_next_try, f"{kind} was told twice"
            elif kind == "payment.late_success":
                assert following == status
            assert following == status or following in FOLLOWING[status], f"{status} became {following}"
            status, number = following, max(tried, number)
        # An order that goes on elsewhere is told of when it does, not when it has to.
        is_going_on = order["status"] == "processing" and self._is_failing_over(order)
        assert status == order["status"] or is_going_on, f"the order is {order['status']}, they were told {status}"
        counts = Counter((body["payload"].get("refundId"), body["eventType"]) for body in told)
        for row in self.refunds.get(order["id"], []):
            created, processed, failed = (
                counts[row["id"], f"refund.{kind}"] for kind in ("created", "processed", "failed")
            )
            assert created == 1
            assert processed == (row["status"] == "succeeded"), f"{row['id']} is {row['status']}"
            assert failed == (row["status"] == "failed"), f"{row['id']} is {row['status']}"

    def _is_failing_over(self, order: Row) -> bool:
        return any(job["kind"] == "fail_over_payment" and job["subject"] == order["id"] for job in self.jobs)

    def _being_cancelled(self) -> set[str]:
        return {json.loads(job["arguments"])["attemptId"] for job in self.jobs if job["kind"] == "void_payment"}

    def _check_processors(self, order: Row) -> None:
        """Compare with the processors: one of them at most keeps money, and Loop never claims more than moved."""
        kept = []
        tried = self.attempts.get(order["id"], [])
        for attempt in tried:
            bank = self.bank_of(attempt)
            known = bank.payment_of(attempt["id"])
            taken, given_back = self.moved(attempt)
            assert taken <= captured(known), f"{attempt['id']}: Loop says that {taken} was taken"
            assert known is None or known.refunded_minor <= captured(known)
            assert given_back <= (known.refunded_minor if known else 0)
            if known is None:
                continue
            if hold_or_charge(known) > 0 and attempt["id"] not in bank.late:
                kept.append(attempt["id"])
                assert attempt["status"] not in ("failed", "cancelled"), f"{attempt['id']} is paid, not failed"
            is_open = isinstance(known.outcome, Declined) and known.outcome.reference is not None
            may_be_paid = is_open and bank.capabilities.decline_finality is DeclineFinality.UNTIL_CANCELLED
            assert attempt is tried[-1] or not may_be_paid, f"{attempt['id']} may be paid, and another has begun"
            is_let_be = order["status"] == "cancelled" and attempt["id"] not in self._being_cancelled()
            assert not is_let_be or not may_be_paid, f"{attempt['id']} may be paid, and is cancelled"
        assert len(kept) <= 1, f"the customer of {order['id']} pays twice: {kept}"

    def moved(self, attempt: Row) -> tuple[int, int]:
        """Return how much of an attempt Loop's own rows say was taken, and given back, in minor units."""
        sums = Counter[str]()
        for row in self.transactions.get(attempt["id"], []):
            if row["status"] == "success":
                sums[row["type"]] += row["amount_minor"]
        return sums["capture"], sums["refund"]

    def _check_deliveries(self, subjects: set[str]) -> None:
        for event in self.events:
            delivery = self.deliveries.get(event["id"])
            if delivery is None:
                assert self._is_unheard(event), f"nobody was to be told of {event['event_type']}"
                continue
            if delivery["status"] == "pending" and delivery["next_attempt_at"] is not None:
                assert delivery["endpoint_id"] in subjects, "an event waits, and its endpoint has no job"
            if delivery["status"] == "delivered":
                assert set(self.world.shop.received[event["id"]]) == {event["body"].encode()}

    def _is_unheard(self, event: Row) -> bool:
        """Tell whether the merchant's one endpoint was disabled when the event happened, by which it may be itself."""
        (endpoint,) = self._all("webhook_endpoints")
        return not endpoint["is_enabled"] and event["created_at"] >= endpoint["updated_at"]

    # At rest.

    def check_rest(self) -> None:
        """Check what holds once all jobs have run, the schedule too, and the processors have told all they know."""
        self.check()
        assert not self.unfinished()
        hopeless = self._all_hopeless()
        for order in self.orders.values():
            if order["id"] in hopeless:
                assert order["needs_review"]
            else:
                assert all(each["status"] not in LIVE for each in self.attempts.get(order["id"], []))
                assert not order["needs_review"] or self._reasons(order), f"why does {order['id']} need a review?"
            self._check_money(order, hopeless)
        for event in self.events:
            if self._is_unheard(event):
                continue
            delivery = self.deliveries[event["id"]]
            is_given_up = delivery["last_error"] == "the endpoint is disabled"
            is_exhausted = delivery["status"] == "failed" and (delivery["attempts"] == MAX_TRIES or is_given_up)
            assert delivery["status"] == "delivered" or is_exhausted, dict(delivery)
        assert self._loops_sums() == self._processors_sums()
        for bank in self.world.banks.values():
            entered = sum(each.amount.amount_minor for each in bank.ledger() if each.kind in ("charge", "capture"))
            assert entered == sum(captured(known) for _, known in bank.payments())

    def unfinished(self) -> list[str]:
        """Return what still goes on: jobs, and orders that wait for somebody, but for what may go on for months."""
        lasting = self._all_hopeless()
        lasting |= {each["id"] for rows in self.disputes.values() for each in rows if each["status"] not in DECIDED}
        jobs = [f"{job['kind']}: {job['last_error']}" for job in self.jobs if job["subject"] not in lasting]
        waiting = [order for order in self.orders.values() if order["status"] in ("processing", "requires_action")]
        return jobs + [f"{order['id']} is {order['status']}" for order in waiting if order["id"] not in lasting]

    def _all_hopeless(self) -> set[str]:
        return {each for order in self.orders.values() for each in self._hopeless(order)}

    def _hopeless(self, order: Row) -> Iterator[str]:
        """Return what Loop cannot learn: the processor has nothing, and nobody asked again while the key was alive.

        It stays unclear, for a person to look at: the sandbox, like others, does not say what it never had.
        """
        for attempt in self.attempts.get(order["id"], []):
            is_unheard = self.bank_of(attempt).payment_of(attempt["id"]) is None
            if attempt["status"] in OPEN and is_unheard and self._age(attempt) >= polling.KEY_HORIZON:
                yield order["id"]
        for row in self.refunds.get(order["id"], []):
            attempt = next(each for each in self.attempts[order["id"]] if each["id"] == row["attempt_id"])
            known = self.bank_of(attempt).payment_of(attempt["id"])
            is_unheard = known is not None and row["id"] not in known.refunds
            if row["status"] in OPEN and is_unheard and self._age(row) >= polling.KEY_HORIZON:
                yield row["id"]
                yield order["id"]

    def _age(self, row: Row) -> timedelta:
        return self.world.clock.at - datetime.fromisoformat(row["created_at"])

    def _reasons(self, order: Row) -> list[str]:
        """Return why an order may need a review: late money, a dispute of what was refunded, a processor not heard."""
        reasons = ["late" for body in self.told(order["id"]) if body["eventType"] == "payment.late_success"]
        if self.disputes.get(order["id"]) and self.refunds.get(order["id"]):
            reasons.append("disputed as well")
        if self.world.disturbances:
            unheard = (record for record in self.world.ears.heard if record.getMessage() in FOR_REVIEW)
            reasons += [
                record.getMessage() for record in unheard if record.__dict__["fields"]["order_id"] == order["id"]
            ]
        return reasons

    def _check_money(self, order: Row, hopeless: set[str]) -> None:
        """Compare an order with what the processors have of it."""
        held = charged = given_back = 0
        paying = 0
        for attempt in self.attempts.get(order["id"], []):
            known = self.bank_of(attempt).payment_of(attempt["id"])
            if known is None:
                continue
            paying += hold_or_charge(known) > 0
            if not attempt["is_duplicate"]:
                charged += captured(known)
                given_back += known.refunded_minor
                is_held = isinstance(known.outcome, Approved) and not known.outcome.is_captured
                held += hold_or_charge(known) if is_held else 0
        assert paying <= 1 or order["needs_review"], f"the customer of {order['id']} has paid twice"
        assert order["amount_captured_minor"] == charged
        assert order["id"] in hopeless or order["amount_refunded_minor"] == given_back
        assert (order["status"] == "authorized") == (held > 0)
        disputed = self.disputes.get(order["id"], [])
        known_disputes = (self.bank_of(each).payment_of(each["id"]) for each in self.attempts.get(order["id"], []))
        assert [each["status"] for each in disputed] == [
            str(known.dispute) for known in known_disputes if known is not None and known.dispute is not None
        ]
        at_stake = sum(each["counted_minor"] for each in disputed if each["status"] in AT_STAKE)
        assert order["amount_disputed_minor"] == at_stake

    def _loops_sums(self) -> Counter[tuple[str, str]]:
        sums = Counter[tuple[str, str]]()
        for tried in self.attempts.values():
            for attempt in tried:
                taken, given_back = self.moved(attempt)
                sums[attempt["processor_config_id"], attempt["currency"]] += taken - given_back
        return +sums

    def _processors_sums(self) -> Counter[tuple[str, str]]:
        sums = Counter[tuple[str, str]]()
        for name, bank in self.world.banks.items():
            account = self.world.template.accounts[name]
            for _, known in bank.payments():
                sums[account, known.request.amount.currency] += captured(known) - known.refunded_minor
        return +sums
