"""Late successes: money that arrives after Loop had given up on it is accepted or sent back, as its merchant wants."""

from dataclasses import replace

from loop.domain.attempts import Attempt, AttemptStatus
from loop.domain.failover import LateSuccess, left_to_the_next
from loop.domain.orders import PAID_OR_HELD, Change, OrderStatus
from loop.domain.refunds import reserve
from loop.storage import jobs, merchants
from loop.storage.database import Session
from loop.storage.orders import OrderInHand
from loop.storage.statements import Parameters, Write
from loop.telemetry import get_logger
from loop.workflows import refunds
from loop.workflows.attempts import VOID, Writes, may_still_be_paid, settle_key
from loop.workflows.context import Context
from loop.workflows.runs import leased_job, waiting

log = get_logger(__name__)

SECOND_PAYMENT = "another attempt paid the order"
_PAYABLE = (OrderStatus.PROCESSING, OrderStatus.REQUIRES_ACTION)
"""Orders for which a customer may still follow an attempt."""

TOO_LATE = "the payment succeeded after the order had been given up"


async def judging(session: Session, change: Change, before: OrderInHand) -> Change:
    """Return a change as its merchant wants it: late money does not pay an order that a newer attempt is paying.

    That goes for merchants who want none of it, and leaves them the newer attempt's, which is in time.
    """
    is_being_paid = before.order.status in _PAYABLE
    if not change.is_late or change.is_second_payment or not is_being_paid:
        return change
    return left_to_the_next(before.order, change) if await _is_unwanted(session, change) else change


async def _is_unwanted(session: Session, change: Change) -> bool:
    merchant = await merchants.get(session, change.order.merchant_id)
    return merchant is not None and merchant.late_success is LateSuccess.REFUND


async def settling(
    context: Context, session: Session, change: Change, *, latest: Attempt | None
) -> tuple[Change, Writes]:
    """Return a change with what a late success calls for, for its own transaction.

    A second payment always goes back. Money for an order that nothing else paid goes back if its merchant wants that.
    An order that it pays while a newer attempt waits for the customer, or has failed and could still be paid, has that
    attempt cancelled, also if the newer one turns out only later to be so.
    """
    attempt = change.attempt
    if not change.is_late:
        waits_in_vain = attempt.status is AttemptStatus.REQUIRES_ACTION and change.order.status not in _PAYABLE
        is_left_open = change.order.status in PAID_OR_HELD and may_still_be_paid(context, attempt)
        return change, [_voiding(context, attempt, SECOND_PAYMENT)] if waits_in_vain or is_left_open else []
    log.error(
        "payment.late_success",
        order_id=change.order.id,
        attempt_id=attempt.id,
        is_second_payment=change.is_second_payment,
    )
    if change.is_second_payment:
        return _giving_back(context, change)
    change, writes = _giving_back(context, change) if await _is_unwanted(session, change) else (change, [])
    if latest is not None and latest.id != attempt.id and _is_open(context, latest):
        writes = [*writes, _voiding(context, latest, SECOND_PAYMENT)]
    return change, writes


def _is_open(context: Context, attempt: Attempt) -> bool:
    return attempt.status is AttemptStatus.REQUIRES_ACTION or may_still_be_paid(context, attempt)


def _giving_back(context: Context, change: Change) -> tuple[Change, Writes]:
    attempt, order = change.attempt, change.order
    reason = SECOND_PAYMENT if change.is_second_payment and order.status in PAID_OR_HELD else TOO_LATE
    if attempt.status is AttemptStatus.AUTHORIZED:
        if context.processors.get(attempt.processor).capabilities.can_void:
            return change, [_voiding(context, attempt, reason)]
        # The hold lapses by itself; only an order that counts on it needs somebody to know.
        needs_review = order.needs_review or not change.is_second_payment
        return replace(change, order=replace(order, needs_review=needs_review)), []
    amount = sum(each.amount_minor for each in change.transactions)
    if not change.is_second_payment:
        order, amount = reserve(order, None, now=order.updated_at)
    row, job, writes = refunds.beginning(
        context, order, attempt, amount_minor=amount, reason=reason, is_reversal=change.is_second_payment
    )
    return replace(change, order=order), [*writes, jobs.insertion(waiting(job, row.created_at))]


def _voiding(context: Context, attempt: Attempt, reason: str) -> tuple[Write, Parameters]:
    arguments = {"attemptId": attempt.id, "reason": reason}
    job = leased_job(
        context,
        VOID,
        attempt.order_id,
        key=settle_key(attempt),
        lane=attempt.processor_config_id,
        arguments=arguments,
    )
    return jobs.insertion(waiting(job, context.now()))
