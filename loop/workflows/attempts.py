"""Payment attempts: make one as routing decided, and prepare, key and ask what a call about it needs."""

import time
from collections.abc import Coroutine, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Final, Self

from loop import metrics
from loop.domain.attempts import (
    ActionRequired,
    Approved,
    Attempt,
    AttemptStatus,
    Cancelled,
    Declined,
    NotSent,
    Outcome,
    Pending,
    Unknown,
    Voided,
)
from loop.domain.errors import LoopError, invalid, not_found
from loop.domain.events import EventType
from loop.domain.failover import DeclineFinality
from loop.domain.idempotency import processor_key
from loop.domain.ids import PREFIX_ATTEMPT
from loop.domain.money import Money
from loop.domain.orders import Order
from loop.domain.routing import Candidate, RoutingDecision
from loop.domain.routing_rules import PaymentTraits, tied_to
from loop.metrics import of
from loop.processors.base import Account, AuthorizeRequest, IdempotencyKey, PaymentReference, Processor
from loop.storage import attempts, jobs, orders, processor_configs
from loop.storage.database import Reader
from loop.storage.jobs import Job
from loop.storage.orders import OrderInHand
from loop.storage.statements import Parameters, Write
from loop.telemetry import get_logger
from loop.traces import Attributes, SpanKind, note, span
from loop.workflows import webhooks
from loop.workflows.context import Context
from loop.workflows.leases import Lease
from loop.workflows.processor_configs import account_of
from loop.workflows.runs import leased_job

log = get_logger(__name__)

ADVANCE = "advance_payment"
"""The kind of the jobs that charge an attempt, and ask until its outcome is known."""

ADVANCE_KEY_PREFIX = f"{ADVANCE}:"

Writes = list[tuple[Write, Parameters]]


@dataclass(frozen=True, slots=True)
class PayRequest:
    """How an order is to be paid. `token` is the processor's own; None lets the customer's browser pay.

    `tokens` holds one for each of several processors and goes before `token`, so that any of them can take the order.
    `brand` (lower case) and `country` (upper case) are the card's, as far as they are known.
    """

    payment_method: str = "card"
    token: str | None = field(default=None, repr=False)
    tokens: Mapping[str, str] = field(default_factory=dict, repr=False)
    brand: str | None = None
    country: str | None = None
    processor: str | None = None
    is_retry: bool = False
    return_url: str | None = None


Snapshot = Mapping[str, object]
"""What an attempt's processor is asked for, as it is kept with the attempt."""


def snapshot_of(order: Order, request: PayRequest) -> Snapshot:
    """Return what is kept of a request to pay, so that a repeat is identical and the next processor is asked alike."""
    return {
        "paymentMethod": request.payment_method,
        "token": request.token,
        "tokens": dict(request.tokens),
        "brand": request.brand,
        "country": request.country,
        "customerEmail": order.customer_email,
        "description": order.description,
        "merchantReturnUrl": request.return_url,
        "forcedProcessor": request.processor,
    }


def tokens_of(snapshot: Snapshot) -> Mapping[str, str]:
    """Return the tokens that were given for one processor each."""
    tokens = snapshot.get("tokens")
    return {str(name): str(token) for name, token in tokens.items()} if isinstance(tokens, Mapping) else {}


def has_token(snapshot: Snapshot) -> bool:
    """Tell whether Loop pays for the customer; without any token the customer pays in the browser."""
    return snapshot.get("token") is not None or bool(tokens_of(snapshot))


def traits_of(order: Order, snapshot: Snapshot) -> PaymentTraits:
    """Return what routing looks at of an order that is to be paid as the snapshot says."""
    return PaymentTraits(
        order_id=order.id,
        amount=order.amount,
        payment_method=str(snapshot["paymentMethod"]),
        is_manual_capture=order.is_manual_capture,
        brand=_optional_text(snapshot["brand"]),
        country=_optional_text(snapshot["country"]) or order.country,
        metadata=order.metadata,
        tokens_for=tied_to(_optional_text(snapshot["token"]), tokens_of(snapshot)),
        is_test=order.is_test,
    )


def new_attempt(context: Context, order: Order, candidate: Candidate, *, snapshot: Snapshot) -> Attempt:
    """Return the next attempt of an order, which counts it already."""
    return Attempt(
        id=context.new_id(PREFIX_ATTEMPT),
        order_id=order.id,
        merchant_id=order.merchant_id,
        processor_config_id=candidate.config_id,
        processor=candidate.processor,
        number=order.attempt_count,
        status=AttemptStatus.SUBMITTING,
        amount_minor=order.amount_minor,
        currency=order.currency,
        is_manual_capture=order.is_manual_capture,
        request=snapshot,
        processor_reference=None,
        action=None,
        error_code=None,
        error_message=None,
        decline_class=None,
        raw_error_code=None,
        asked_count=0,
        unclear_since=None,
        created_at=order.updated_at,
        updated_at=order.updated_at,
    )


def beginning(
    context: Context, order: Order, decision: RoutingDecision, *, snapshot: Snapshot
) -> tuple[OrderInHand, Job, Writes]:
    """Return an order with its next attempt, the leased job that charges it, and the writes that record both."""
    begun = replace(
        order,
        processor=decision.candidate.processor,
        processor_order_id=None,
        attempt_count=order.attempt_count + 1,
        last_error_code=None,
        last_error_message=None,
        updated_at=context.now(),
    )
    attempt = new_attempt(context, begun, decision.candidate, snapshot=snapshot)
    job = advance_job(context, attempt)
    about = {"attempt": attempt.number, "declineCategory": None}
    writes = [
        orders.updating(begun),
        attempts.insertion(attempt, decision.reasons),
        jobs.insertion(job),
        *webhooks.recording(context, begun, EventType.PAYMENT_PROCESSING, payload=about),
    ]
    return OrderInHand(begun, attempt), job, writes


def advance_job(context: Context, attempt: Attempt) -> Job:
    """Return the job, leased by this process, that charges an attempt."""
    key = f"{ADVANCE_KEY_PREFIX}{attempt.id}"
    arguments = {"attemptId": attempt.id}
    return leased_job(
        context, ADVANCE, attempt.order_id, key=key, lane=attempt.processor_config_id, arguments=arguments
    )


FAIL_OVER = "fail_over_payment"
"""The kind of the jobs that bring an order to its next processor."""


def fail_over_job(context: Context, attempt: Attempt, *, needs_fence: bool) -> Job:
    """Return the job, leased by this process, that goes on after an attempt that surely took no money."""
    arguments = {"attemptId": attempt.id, "needsFence": needs_fence}
    key = f"{FAIL_OVER}:{attempt.id}"
    return leased_job(
        context, FAIL_OVER, attempt.order_id, key=key, lane=attempt.processor_config_id, arguments=arguments
    )


def authorize_request(context: Context, attempt: Attempt) -> AuthorizeRequest:
    """Return the request of an attempt exactly as it was first made."""
    snapshot = attempt.request
    own_token = tokens_of(snapshot).get(attempt.processor)
    return AuthorizeRequest(
        order_id=attempt.order_id,
        attempt_id=attempt.id,
        amount=Money(attempt.amount_minor, attempt.currency),
        is_manual_capture=attempt.is_manual_capture,
        payment_method=str(snapshot["paymentMethod"]),
        token=_optional_text(own_token or snapshot["token"]),
        customer_email=_optional_text(snapshot["customerEmail"]),
        description=_optional_text(snapshot["description"]),
        return_url=f"{context.settings.checkout_base_url}/return/{attempt.id}",
        created_at=attempt.created_at,
    )


def _optional_text(value: object) -> str | None:
    return None if value is None else str(value)


VOID = "void_payment"
"""The kind of the jobs that release held money, or cancel what nobody has paid yet."""

SETTLE_KEY_PREFIX = "settle_payment:"


def may_still_be_paid(context: Context, attempt: Attempt) -> bool:
    """Tell whether an attempt that failed can be paid all the same, until its processor confirms that it cannot.

    Nobody can say so of a processor that is not installed any more: then it is asked for in vain.
    """
    if attempt.status is not AttemptStatus.FAILED or attempt.processor_reference is None:
        return False
    try:
        finality = context.processors.get(attempt.processor).capabilities.decline_finality
    except LoopError:
        return True
    return finality is DeclineFinality.UNTIL_CANCELLED


def settle_key(attempt: Attempt) -> str:
    """Return the dedupe key of the jobs that capture or void an attempt: there is one at a time."""
    return f"{SETTLE_KEY_PREFIX}{attempt.id}"


async def paying(reader: Reader, order: Order, latest: Attempt | None, *, status: AttemptStatus) -> Attempt:
    """Return the attempt in this status whose money is the order's; raises `not_found`.

    It is not always the latest: an earlier one may have succeeded late.
    """
    if latest is not None and latest.status is status and not latest.is_duplicate:
        return latest
    for attempt, _ in await attempts.of_order(reader, order.merchant_id, order.id):
        if attempt.status is status and not attempt.is_duplicate:
            return attempt
    raise not_found("payment")


@dataclass(frozen=True, slots=True)
class Call:
    """An attempt with all that a call about it needs."""

    attempt: Attempt
    processor: Processor
    account: Account
    payment: PaymentReference
    is_same_account: bool
    """Whether its credentials are the attempt's: others may be another account's, with its own keys and books."""
    lease: Lease | None
    """The hold on the job that makes the call, which has to outlast it."""


async def prepare(context: Context, attempt_id: str) -> Call | None:
    """Return an attempt with what a call about it needs, or None; raises `processor_removed`."""
    async with context.database.reading() as reader:
        attempt = await attempts.get(reader, attempt_id)
        if attempt is None:
            return None
        config = await processor_configs.get(reader, attempt.processor_config_id)
    if config is None:
        raise invalid(
            "processor_removed",
            f"The {attempt.processor} account that took this payment was removed; settle it there.",
        )
    return Call(
        attempt=attempt,
        processor=context.processors.get(attempt.processor),
        account=account_of(context, config),
        payment=PaymentReference(attempt.processor_reference, authorize_request(context, attempt)),
        is_same_account=(config.credentials_changed_at or config.created_at) <= attempt.created_at,
        lease=context.lease,
    )


_WORDS: Final[Mapping[type[object], str]] = {
    Approved: "approved",
    ActionRequired: "action_required",
    Pending: "pending",
    Declined: "declined",
    Cancelled: "cancelled",
    Voided: "voided",
    NotSent: "not_sent",
    Unknown: "unknown",
}
"""What metrics and spans call an outcome."""


def _ids_of(attempt: Attempt) -> Attributes:
    return {"loop.order_id": attempt.order_id, "loop.attempt_id": attempt.id, "loop.merchant_id": attempt.merchant_id}


class Question:
    """One call to a processor, as metrics and traces see it; a call without an answer counts as `unknown`.

    Raises `LeaseLostError`, and is not begun, when the job that makes it is another worker's by now.
    """

    __slots__ = ("_began", "_lease", "_operation", "_outcome", "_processor", "_span")

    def __init__(self, call: Call, operation: str) -> None:
        attempt = call.attempt
        self._lease = call.lease
        self._processor, self._operation, self._outcome = attempt.processor, operation, "unknown"
        self._span = span(f"{attempt.processor} {operation}", SpanKind.CLIENT, attributes=_ids_of(attempt))
        self._began = 0.0

    def answered(self, outcome: str) -> None:
        """Note the answer."""
        self._outcome = outcome
        note({"loop.outcome": outcome})

    async def __aenter__(self) -> Self:
        if self._lease is not None:
            await self._lease.cover_call()
        self._span.__enter__()
        self._began = time.perf_counter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._span.__exit__(kind, error, traceback)
        took_s = time.perf_counter() - self._began
        of(metrics.CALLS, self._processor, self._operation, self._outcome).observe(took_s)


def operation_key(attempt: Attempt, operation: str) -> IdempotencyKey:
    """Return the key of one operation on an attempt."""
    return IdempotencyKey(processor_key(attempt.processor_config_id, attempt.id, operation=operation))


async def asked(call: Call, operation: str, *, question: Coroutine[object, object, Outcome]) -> Outcome:
    """Return a processor's answer; whatever it raises may have happened after the money moved, so it is unknown."""
    with closing(question):  # it may not have been asked
        async with Question(call, operation) as asking:
            try:
                outcome = await question
            except Exception as error:
                log.exception("processor.raised")
                outcome = Unknown(f"the processor's adapter raised {type(error).__name__}")
            asking.answered(_WORDS.get(type(outcome), "unknown"))
            return outcome
