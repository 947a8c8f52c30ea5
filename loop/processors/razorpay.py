"""Razorpay, through its official SDK: what Loop asks, on orders that customers pay in Razorpay's own Checkout."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from loop.domain.attempts import ActionRequired, Approved, Cancelled, Declined, NotSent, Outcome, Pending, Unknown
from loop.domain.declines import DeclineClass
from loop.domain.disputes import DisputeOutcome
from loop.domain.money import Money
from loop.domain.refunds import RefundOutcome, RefundStatus
from loop.processors.base import (
    Account,
    AuthorizeRequest,
    Capabilities,
    CredentialField,
    DisputeReference,
    IdempotencyKey,
    MovementPage,
    MovementQuery,
    PaymentReference,
    ProcessorSetup,
    RefundReference,
    RefundRequest,
    WebhookEvent,
    WebhookSignatureError,
)
from loop.processors.http import within_deadline
from loop.processors.razorpay_answers import (
    MINIMUMS,
    TROUBLE,
    action_of,
    is_definite,
    items_of,
    notes_of,
    oldest_captured,
    outcome_of,
    reason_of,
    refund_outcome_of,
    refusal_of,
    refusal_of_amount,
    refused_refund,
    standing_of,
    text_of,
)
from loop.processors.razorpay_declines import known_decline
from loop.processors.razorpay_disputes import dispute_outcome_of
from loop.processors.razorpay_movements import listed_within, movement_page
from loop.processors.razorpay_session import JsonObject, RazorpayCalls, RefusedError
from loop.processors.razorpay_webhooks import SIGNATURE_HEADER, event_of, signed_payment, verify_signature
from loop.telemetry import get_logger

log = get_logger(__name__)

AUTOMATIC_WINDOW_MIN: Final = 12
"""Until when Razorpay captures a payment by itself, in minutes; it takes no less.

The window for capturing it by hand ends at the same moment: what a bank confirms later, when the order may have been
paid elsewhere, goes back to the customer.
"""

MANUAL_WINDOW_MIN: Final = 3 * 24 * 60
"""How long Razorpay holds a payment that the merchant captures, in minutes: its pages promise three days."""

PAGE_SIZE: Final = 100
PAGES_MAX: Final = 10
"""How far a payment's refunds are searched for one whose id Loop never heard."""

_NOTE_CHARS_MAX = 256
_OnOrder: TypeAlias = Callable[[Account, AuthorizeRequest, str, list[JsonObject]], Awaitable[Outcome]]


class RazorpayProcessor:
    """One for the process. The reference of an attempt is the id of its Razorpay order (`order_…`).

    Which payment (`pay_…`) paid an order is looked up where it is needed; with money it is the transaction reference.
    """

    name = "razorpay"
    capabilities = Capabilities(
        can_capture_partially=False,
        can_void=False,
        payment_methods=frozenset({"card", "upi", "netbanking", "wallet"}),
        minimums=MINIMUMS,
    )
    credentials_schema: tuple[CredentialField, ...] = (
        CredentialField("keyId", "Key id", is_secret=False),
        CredentialField("keySecret", "Key secret"),
        CredentialField("webhookSecret", "Webhook secret", is_required=False),
    )

    def __init__(self, setup: ProcessorSetup) -> None:
        self._timeout_s = setup.timeout_s
        self._calls = RazorpayCalls(setup.api_base, setup.timeout_s)

    async def authorize(self, account: Account, request: AuthorizeRequest, *, key: IdempotencyKey) -> Outcome:
        """Make the order that the customer's browser pays.

        Razorpay has no keys for this: the order's unique receipt, which is the attempt's id, does their work. A token
        is refused: a payment that a server makes for its customer is not part of this integration.
        """
        del key
        if request.token is not None:
            message = "Through Razorpay customers pay in its own Checkout: send no token, or force another processor."
            return Declined("not_supported", DeclineClass.CONFIG, message)
        refusal = refusal_of_amount(request.amount)
        if refusal is not None:
            return refusal
        return await within_deadline(self._timeout_s, self._authorize(account, request))

    async def _authorize(self, account: Account, request: AuthorizeRequest) -> Outcome:
        try:
            order = await self._calls.run(account, lambda client: client.order.create(_order_fields(request)))
            order_id = text_of(order, "id")
        except TROUBLE as error:
            if isinstance(error, RefusedError) and _is_about_receipt(error):
                return await self._look(account, PaymentReference(None, request))
            return _refused(error)
        if order.get("status") == "created":
            return action_of(order_id, account, request=request, api_base=self._calls.api_base)
        return await self._look(account, PaymentReference(order_id, request))

    async def complete_action(
        self, account: Account, payment: PaymentReference, *, parameters: Mapping[str, str]
    ) -> Outcome:
        """Ask Razorpay for the payment that it signed for, else for all that was tried on the order."""
        key_secret = account.credentials.get("keySecret", "")
        payment_id = signed_payment(parameters, payment.reference, key_secret=key_secret)
        if payment_id is None and "razorpay_signature" in parameters:
            log.warning("razorpay.return_not_signed", attempt_id=payment.request.attempt_id)
        return await within_deadline(self._timeout_s, self._complete(account, payment, payment_id))

    async def _complete(self, account: Account, payment: PaymentReference, payment_id: str | None) -> Outcome:
        if payment_id is not None and payment.reference is not None:
            try:
                tried = await self._calls.run(account, lambda client: client.payment.fetch(payment_id))
                outcome = self._outcome([tried], payment.reference, account, payment.request)
            except TROUBLE as error:
                return Unknown(reason_of(error), payment.reference)
            if isinstance(outcome, Approved | Pending):
                return outcome
        return await self._look(account, payment)

    async def capture(
        self, account: Account, payment: PaymentReference, *, amount: Money, key: IdempotencyKey
    ) -> Outcome:
        """Take all of the held money. Razorpay has no key for it: the order is asked before, and in doubt again."""
        del key
        if amount != payment.request.amount:
            return NotSent("unsupported_by_processor", "Razorpay captures the whole amount or nothing.")
        return await within_deadline(self._timeout_s, self._on_order(account, payment, self._capture))

    async def _capture(
        self, account: Account, request: AuthorizeRequest, order_id: str, payments: list[JsonObject]
    ) -> Outcome:
        before = self._outcome(payments, order_id, account, request)
        held = [each for each in payments if standing_of(each) == "authorized"]
        if not held or (isinstance(before, Approved) and before.is_captured):
            return before
        payment_id, amount = text_of(held[0], "id"), request.amount
        try:
            # The SDK writes the amount into the dict, so each call has one of its own.
            taken = await self._calls.run(
                account,
                lambda client: client.payment.capture(payment_id, amount.amount_minor, {"currency": amount.currency}),
            )
            return self._outcome([taken], order_id, account, request)
        except TROUBLE as error:
            after = await self._look(account, PaymentReference(order_id, request))
            return _refused(error, order_id) if isinstance(after, Unknown) or after == before else after

    async def void(self, account: Account, payment: PaymentReference, *, key: IdempotencyKey) -> Outcome:
        """Say whether anything is paid on the order: Razorpay cancels no order and releases no payment on request.

        An order that nobody is paying is given up (`Cancelled`); should its customer pay all the same, that comes as
        a late success. Money that is held or taken is reported as it is, also where Loop had not heard of it yet.
        """
        del key
        return await within_deadline(self._timeout_s, self._on_order(account, payment, self._give_up))

    async def _give_up(
        self, account: Account, request: AuthorizeRequest, order_id: str, payments: list[JsonObject]
    ) -> Outcome:
        outcome = self._outcome(payments, order_id, account, request)
        if not isinstance(outcome, ActionRequired | Declined):
            return outcome
        if any(standing_of(each) == "created" for each in payments):
            return NotSent("payment_in_progress", "The customer is paying at this moment; ask again in ten minutes.")
        return Cancelled(order_id)

    async def refund(self, account: Account, request: RefundRequest, *, key: IdempotencyKey) -> RefundOutcome:
        """Refund the payment that paid the order; a repeat under the same key settles a doubt."""
        return _known(await within_deadline(self._timeout_s, self._refund(account, request, key)))

    async def _refund(self, account: Account, request: RefundRequest, key: IdempotencyKey) -> RefundOutcome:
        try:
            paid = await self._captured(account, request.payment)
            if paid is None:
                return refused_refund("Razorpay knows of no captured payment on the order.")
            payment_id = text_of(paid, "id")
            # Not all accounts are promised that the key is heeded, so what may be a repeat looks first.
            made = await self._find_refund(account, request, paid) if paid.get("amount_refunded") else None
            if made is not None:
                return refund_outcome_of(made)
            refund = await self._calls.run(
                account,
                lambda client: client.payment.refund(
                    payment_id, _refund_fields(request), headers={"X-Refund-Idempotency": key}
                ),
            )
            return refund_outcome_of(refund)
        except TROUBLE as error:
            if isinstance(refusal_of(error), NotSent) and not is_definite(error):
                return RefundOutcome(RefundStatus.UNKNOWN, error_message=reason_of(error))
            return await self._refund_in_doubt(account, request, error)

    async def _refund_in_doubt(self, account: Account, request: RefundRequest, error: Exception) -> RefundOutcome:
        """Return what a failed call means, once it is sure that neither it nor an earlier one has made the refund.

        The same key may bring the same error for ever, so the refund itself is looked for.
        """
        try:
            made = await self._find_refund(account, request, await self._captured(account, request.payment))
            if made is not None:
                return refund_outcome_of(made)
        except TROUBLE as trouble:
            return RefundOutcome(RefundStatus.UNKNOWN, error_message=reason_of(trouble))
        if not isinstance(error, RefusedError) or not is_definite(error):
            return RefundOutcome(RefundStatus.UNKNOWN, error_message=reason_of(error))
        if "idempotency" in error.refusal.description.lower():
            log.error("razorpay.refund_key_used_otherwise", refund_id=request.refund_id)
            return RefundOutcome(RefundStatus.UNKNOWN, error_message=reason_of(error))
        _note_new_reason(error)
        return refused_refund(reason_of(error))

    async def fetch(self, account: Account, payment: PaymentReference) -> Outcome:
        """Ask what was tried on the order, which is searched by its receipt when Loop has not heard its id."""
        return await within_deadline(self._timeout_s, self._look(account, payment))

    async def _look(self, account: Account, payment: PaymentReference) -> Outcome:
        outcome = await self._on_order(account, payment, self._outcome_now)
        return Unknown(outcome.message, payment.reference) if isinstance(outcome, NotSent) else outcome

    async def fetch_refund(self, account: Account, refund: RefundReference) -> RefundOutcome:
        """Fetch the refund, or search the payment's refunds for it."""
        return _known(await within_deadline(self._timeout_s, self._look_for_refund(account, refund)))

    async def _look_for_refund(self, account: Account, refund: RefundReference) -> RefundOutcome:
        refund_id = refund.reference
        try:
            if refund_id is None:
                paid = await self._captured(account, refund.request.payment)
                found = await self._find_refund(account, refund.request, paid)
            else:
                found = await self._calls.run(account, lambda client: client.refund.fetch(refund_id))
            if found is not None:
                return refund_outcome_of(found)
            return RefundOutcome(RefundStatus.UNKNOWN, error_message="Razorpay lists no such refund.")
        except TROUBLE as error:
            return RefundOutcome(RefundStatus.UNKNOWN, refund_id, error_message=reason_of(error))

    async def fetch_dispute(self, account: Account, dispute: DisputeReference) -> DisputeOutcome | Unknown:
        """Fetch the dispute, and the payment that it names for the order that this paid."""
        return await within_deadline(self._timeout_s, self._look_for_dispute(account, dispute.reference))

    async def _look_for_dispute(self, account: Account, dispute_id: str) -> DisputeOutcome | Unknown:
        try:
            found = await self._calls.run(account, lambda client: client.dispute.fetch(dispute_id, {}))
            payment_id = text_of(found, "payment_id")
            paid = await self._calls.run(account, lambda client: client.payment.fetch(payment_id))
            return dispute_outcome_of(found, order_id=text_of(paid, "order_id"))
        except TROUBLE as error:
            return Unknown(reason_of(error), dispute_id)

    def listed_within(self, account: Account) -> timedelta | None:
        """Return how late a settlement may be; None for a test key, whose payments are never settled."""
        return listed_within(account)

    async def movements(self, account: Account, query: MovementQuery) -> MovementPage | Unknown:
        """Read a page of the settlement report."""
        return await within_deadline(self._timeout_s, self._movements(account, query))

    async def _movements(self, account: Account, query: MovementQuery) -> MovementPage | Unknown:
        try:
            return await movement_page(self._calls, account, query=query)
        except TROUBLE as error:
            return Unknown(reason_of(error))

    async def check(self, account: Account) -> str | None:
        """Ask for one order of the account."""
        wrong = await within_deadline(self._timeout_s, self._check(account))
        return wrong.reason if isinstance(wrong, Unknown) else wrong

    async def _check(self, account: Account) -> str | None:
        try:
            await self._calls.run(account, lambda client: client.order.all({"count": 1}))
        except TROUBLE as error:
            return reason_of(error)
        return None

    def parse_webhook(
        self, body: bytes, headers: Mapping[str, str], *, secrets: Sequence[str], now: datetime
    ) -> WebhookEvent:
        """Verify `X-Razorpay-Signature`, which has no time in it, and read the event."""
        del now
        header = headers.get(SIGNATURE_HEADER)
        if header is None:
            raise WebhookSignatureError("missing_signature", "The header X-Razorpay-Signature is missing.")
        verify_signature(body, header, secrets=secrets)
        return event_of(body, headers)

    async def close(self) -> None:
        """Close the connections; the processor cannot be used any more."""
        self._calls.close()

    async def _on_order(self, account: Account, payment: PaymentReference, then: _OnOrder) -> Outcome:
        try:
            order_id = payment.reference or await self._find_order(account, payment.request)
            if order_id is None:
                return Unknown("Razorpay lists no order of this attempt.", is_absent=True)
            return await then(account, payment.request, order_id, await self._payments(account, order_id))
        except TROUBLE as error:
            return refusal_of(error, payment.reference)

    async def _payments(self, account: Account, order_id: str) -> list[JsonObject]:
        return items_of(await self._calls.run(account, lambda client: client.order.payments(order_id)))

    async def _find_order(self, account: Account, request: AuthorizeRequest) -> str | None:
        wanted = {"receipt": request.attempt_id, "count": PAGE_SIZE}
        for order in items_of(await self._calls.run(account, lambda client: client.order.all(wanted))):
            if notes_of(order).get("loop_attempt_id") == request.attempt_id:
                return text_of(order, "id")
        return None

    async def _captured(self, account: Account, payment: PaymentReference) -> JsonObject | None:
        order_id = payment.reference
        return None if order_id is None else oldest_captured(await self._payments(account, order_id))

    async def _find_refund(
        self, account: Account, request: RefundRequest, paid: JsonObject | None
    ) -> JsonObject | None:
        if paid is None:
            return None
        payment_id = text_of(paid, "id")
        for page in range(PAGES_MAX):
            wanted = {"count": PAGE_SIZE, "skip": page * PAGE_SIZE}
            refunds = items_of(await self._refunds(account, payment_id, wanted))
            for refund in refunds:
                if notes_of(refund).get("loop_refund_id") == request.refund_id:
                    return refund
            if len(refunds) < PAGE_SIZE:
                break
        return None

    async def _refunds(self, account: Account, payment_id: str, wanted: Mapping[str, int]) -> JsonObject:
        return await self._calls.run(
            account, lambda client: client.payment.fetch_multiple_refund(payment_id, dict(wanted))
        )

    async def _outcome_now(
        self, account: Account, request: AuthorizeRequest, order_id: str, payments: list[JsonObject]
    ) -> Outcome:
        return self._outcome(payments, order_id, account, request)

    def _outcome(
        self, payments: list[JsonObject], order_id: str, account: Account, request: AuthorizeRequest
    ) -> Outcome:
        action = action_of(order_id, account, request=request, api_base=self._calls.api_base)
        return outcome_of(payments, action, request=request)


def _order_fields(request: AuthorizeRequest) -> dict[str, object]:
    if request.is_manual_capture:
        capture: dict[str, object] = {"manual_expiry_period": MANUAL_WINDOW_MIN, "refund_speed": "normal"}
    else:
        capture = {
            "automatic_expiry_period": AUTOMATIC_WINDOW_MIN,
            "manual_expiry_period": AUTOMATIC_WINDOW_MIN,
            "refund_speed": "normal",
        }
    return {
        "amount": request.amount.amount_minor,
        "currency": request.amount.currency,
        "receipt": request.attempt_id,
        "unique_receipt": True,
        "payment": {"capture": "manual" if request.is_manual_capture else "automatic", "capture_options": capture},
        "notes": {"loop_order_id": request.order_id, "loop_attempt_id": request.attempt_id},
    }


def _refund_fields(request: RefundRequest) -> dict[str, object]:
    notes = {"loop_refund_id": request.refund_id, "loop_attempt_id": request.payment.request.attempt_id}
    if request.reason:
        notes["loop_reason"] = request.reason[:_NOTE_CHARS_MAX]
    return {"amount": request.amount.amount_minor, "speed": "normal", "receipt": request.refund_id, "notes": notes}


def _is_about_receipt(error: RefusedError) -> bool:
    known = known_decline(error.refusal.reason)
    return error.refusal.parameter == "receipt" or (known is not None and known.code == "already_done")


def _refused(error: Exception, order_id: str | None = None) -> Outcome:
    if isinstance(error, RefusedError):
        _note_new_reason(error)
    return refusal_of(error, order_id)


def _note_new_reason(error: RefusedError) -> None:
    reason = error.refusal.reason
    if reason is not None and known_decline(reason) is None:
        log.warning("razorpay.reason_unknown", reason=reason, status=error.status)


def _known(outcome: RefundOutcome | Unknown) -> RefundOutcome:
    if isinstance(outcome, Unknown):
        return RefundOutcome(RefundStatus.UNKNOWN, error_message=outcome.reason)
    return outcome
