"""The timeline: everything that is known of one order, in the order in which it happened."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from loop.domain.attempts import Attempt
from loop.domain.deliveries import Delivery
from loop.domain.disputes import Dispute
from loop.domain.errors import not_found
from loop.domain.events import timestamp
from loop.domain.orders import Order
from loop.domain.refunds import Refund
from loop.domain.transactions import Transaction
from loop.storage import attempts, deliveries, disputes, orders, refunds, transactions, webhooks
from loop.workflows.context import Context


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened: `kind` is attempt, transaction, refund, dispute, event or delivery."""

    at: datetime
    kind: str
    title: str
    details: Mapping[str, object]


async def find(context: Context, order_id: str) -> tuple[Order, list[Entry]]:
    """Return any merchant's order with its timeline, for the operator; raises `not_found`."""
    async with context.database.reading() as reader:
        order = await orders.find(reader, order_id)
    if order is None:
        raise not_found("order")
    return await of_order(context, order.merchant_id, order_id)


async def of_order(context: Context, merchant_id: str, order_id: str) -> tuple[Order, list[Entry]]:
    """Return a merchant's order with its timeline; raises `not_found`."""
    async with context.database.reading() as reader:
        order = await orders.get(reader, merchant_id, order_id, is_test=context.is_test)
        if order is None:
            raise not_found("order")
        entries = [
            *(_of_attempt(*found) for found in await attempts.of_order(reader, merchant_id, order_id)),
            *(_of_transaction(row) for row in await transactions.of_order(reader, merchant_id, order_id)),
            *(_of_refund(row) for row in await refunds.of_order(reader, merchant_id, order_id)),
            *(_of_dispute(row) for row in await disputes.of_order(reader, merchant_id, order_id)),
            *(
                Entry(event.created_at, "event", event.event_type, {"eventId": event.id})
                for event in await webhooks.events_of_order(reader, merchant_id, order_id)
            ),
            *(
                _of_delivery(delivery, delivery.last_attempt_at)
                for delivery in await deliveries.of_order(reader, merchant_id, order_id)
                if delivery.last_attempt_at is not None
            ),
        ]
    return order, sorted(entries, key=lambda entry: entry.at)


def _of_attempt(attempt: Attempt, reasons: Sequence[str]) -> Entry:
    details = {
        "attemptId": attempt.id,
        "number": attempt.number,
        "processor": attempt.processor,
        "status": attempt.status,
        "processorReference": attempt.processor_reference,
        "routing": list(reasons),
        "errorCode": attempt.error_code,
        "errorMessage": attempt.error_message,
        "declineCategory": attempt.decline_class,
    }
    title = f"attempt {attempt.number} at {attempt.processor}: {attempt.status}"
    return Entry(attempt.created_at, "attempt", title, details)


def _of_transaction(row: Transaction) -> Entry:
    details = {
        "transactionId": row.id,
        "type": row.type,
        "status": row.status,
        "amount": row.amount_minor,
        "processorTransactionId": row.processor_transaction_id,
        "errorCode": row.error_code,
    }
    return Entry(row.created_at, "transaction", f"{row.type} {row.status}", details)


def _of_refund(row: Refund) -> Entry:
    details = {"refundId": row.id, "amount": row.amount_minor, "status": row.status, "reason": row.reason}
    return Entry(row.created_at, "refund", f"refund {row.status}", details)


def _of_dispute(row: Dispute) -> Entry:
    details = {
        "disputeId": row.id,
        "amount": row.amount_minor,
        "currency": row.currency,
        "status": row.status,
        "reason": row.reason,
        "dueBy": None if row.due_by is None else timestamp(row.due_by),
        "processorDisputeId": row.processor_reference,
    }
    return Entry(row.created_at, "dispute", f"dispute {row.status}", details)


def _of_delivery(delivery: Delivery, tried_at: datetime) -> Entry:
    details = {
        "eventId": delivery.event_id,
        "endpointId": delivery.endpoint_id,
        "status": delivery.status,
        "attempts": delivery.attempts,
        "statusCode": delivery.last_status_code,
        "error": delivery.last_error,
    }
    return Entry(tried_at, "delivery", f"{delivery.status} after {delivery.attempts} tries", details)
