"""Standings: where an order or an attempt stands at this moment, read from the file that Loop commits to."""

import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from loop.domain.attempts import AttemptStatus
from loop.domain.orders import OrderStatus

NEW = "new"
"""An order that nobody has tried to pay."""

STATES = (
    NEW,
    AttemptStatus.SUBMITTING,
    AttemptStatus.UNKNOWN,
    AttemptStatus.REQUIRES_ACTION,
    AttemptStatus.PENDING,
    AttemptStatus.FAILED,
    AttemptStatus.CANCELLED,
    AttemptStatus.AUTHORIZED,
    AttemptStatus.VOIDED,
    OrderStatus.CAPTURED,
    OrderStatus.PARTIALLY_REFUNDED,
    OrderStatus.REFUNDED,
)
"""Where an attempt can stand, and for captured ones, where their orders can."""

_QUERY = (
    "SELECT orders.id, orders.status, payment_attempts.id, payment_attempts.status FROM orders"
    " LEFT JOIN payment_attempts ON payment_attempts.order_id = orders.id"
)
_OF_ATTEMPT = f"{_QUERY} WHERE payment_attempts.id = ?"
_OF_ORDER = f"{_QUERY} WHERE orders.id = ? ORDER BY payment_attempts.number DESC"
_UNHEARD_OF = (
    f"{_QUERY} WHERE payment_attempts.processor = 'stripe' AND payment_attempts.processor_reference IS NULL"
    " AND payment_attempts.status IN ('submitting', 'unknown') AND substr(payment_attempts.created_at, 1, 19) = ?"
)
_UNDER_WAY = "SELECT kind, subject, arguments FROM jobs WHERE is_leased AND NOT is_dead"
_OF_EVENT = "SELECT payment_reference, attempt_id FROM processor_events WHERE id = ?"
_OF_DISPUTE = "SELECT attempt_id FROM disputes WHERE id = ?"
_OF_REFERENCE = f"{_QUERY} WHERE payment_attempts.processor_reference = ?"


@dataclass(frozen=True)
class Standing:
    """Where an order stands, through one of its attempts."""

    order_id: str
    state: str
    attempt_id: str | None


class Standings:
    """Looks into the file of a Loop that runs, or has just been killed."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)

    def close(self) -> None:
        self._connection.close()

    def of_attempt(self, attempt_id: str) -> Standing | None:
        return self._find(_OF_ATTEMPT, attempt_id)

    def of_order(self, order_id: str) -> Standing | None:
        return self._find(_OF_ORDER, order_id)

    def unheard_of(self, created_at_s: int) -> list[Standing]:
        """Return the attempts at Stripe, made in this second, whose id there Loop has not heard."""
        second = datetime.fromtimestamp(created_at_s, UTC).isoformat()[:19]
        return [_standing(row) for row in self._connection.execute(_UNHEARD_OF, [second]).fetchall()]

    def under_way(self) -> list[tuple[str, Standing]]:
        """Return the kinds of the jobs that a process is, or was, at work on, and where what they are about stands."""
        found = []
        for kind, subject, arguments in self._connection.execute(_UNDER_WAY).fetchall():
            standing = self._of_job(kind, subject, arguments)
            if standing is not None:
                found.append((str(kind), standing))
        return found

    def _of_job(self, kind: str, subject: str, arguments: str) -> Standing | None:
        attempt_id = arguments.partition('"attemptId":"')[2].partition('"')[0]
        if attempt_id:
            return self.of_attempt(attempt_id)
        if kind == "process_processor_event":
            reference, named = self._connection.execute(_OF_EVENT, [subject]).fetchone()
            return self._find(_OF_REFERENCE, reference) or (None if named is None else self.of_attempt(named))
        disputed = self._connection.execute(_OF_DISPUTE, [subject]).fetchone()
        return None if disputed is None else self.of_attempt(disputed[0])

    def _find(self, query: str, key: str) -> Standing | None:
        row = self._connection.execute(query, [key]).fetchone()
        return None if row is None else _standing(row)


def _standing(row: tuple[str, str, str | None, str | None]) -> Standing:
    order_id, order_status, attempt_id, attempt_status = row
    state = attempt_status or NEW
    if attempt_status == AttemptStatus.CAPTURED:
        is_refunded = order_status in (OrderStatus.PARTIALLY_REFUNDED, OrderStatus.REFUNDED)
        state = order_status if is_refunded else OrderStatus.CAPTURED
    return Standing(order_id, str(state), attempt_id)
