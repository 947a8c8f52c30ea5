"""Counts: what the metrics hear of payments, refunds and routing, once it is committed."""

from collections.abc import Iterable

from loop import metrics
from loop.domain.attempts import Attempt
from loop.domain.orders import Order
from loop.domain.refunds import Refund, RefundStatus
from loop.domain.routing import RoutingDecision
from loop.domain.transactions import NewTransaction, TransactionStatus, TransactionType
from loop.metrics import of

NOBODY = "none"
"""Stands for a processor where nobody could take a payment."""


def routed(decision: RoutingDecision, order: Order, *, by: str | None = None) -> None:
    """Count an attempt that begins; `by` says why it goes there, where neither a rule nor the default does."""
    cause = by or ("default" if decision.rule is None else "rule")
    of(metrics.ROUTED, decision.candidate.processor, _mode(order.is_test), cause).inc()


def refused(*, is_test: bool) -> None:
    """Count a payment that nobody could take."""
    of(metrics.ROUTED, NOBODY, _mode(is_test), "refused").inc()


def payment(order: Order, attempt: Attempt, *, before: Attempt, moved: Iterable[NewTransaction]) -> None:
    """Count what a recorded outcome has changed of an attempt, and the money that it took."""
    mode = _mode(order.is_test)
    if attempt.status is not before.status:
        of(metrics.OUTCOMES, attempt.processor, mode, attempt.status, attempt.decline_class or "").inc()
    for each in moved:
        if each.type is TransactionType.CAPTURE and each.status is TransactionStatus.SUCCESS:
            of(metrics.CAPTURED, attempt.processor, mode, order.currency).inc(each.amount_minor)


def refund(order: Order, row: Refund, *, before: Refund, processor: str) -> None:
    """Count what a recorded outcome has changed of a refund."""
    if row.status is before.status:
        return
    mode = _mode(order.is_test)
    of(metrics.REFUNDS, processor, mode, row.status).inc()
    if row.status is RefundStatus.SUCCEEDED:
        of(metrics.REFUNDED, processor, mode, row.currency).inc(row.amount_minor)


def _mode(is_test: bool) -> str:
    return "test" if is_test else "live"
