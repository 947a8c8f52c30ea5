"""Stripe, through its official SDK: what Loop asks, and what Stripe's statuses and errors mean for Loop."""

import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from typing import TypeAlias, cast

import stripe
from stripe.params import (
    PaymentIntentCreateParams,
    PaymentIntentCreateParamsPaymentMethodData,
    PaymentIntentListParams,
    RefundCreateParams,
    RefundListParams,
)

from loop.domain.attempts import Outcome, Unknown
from loop.domain.disputes import DisputeOutcome
from loop.domain.failover import DeclineFinality
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
from loop.processors.http import processor_session, within_deadline
from loop.processors.stripe_answers import (
    MINIMUMS,
    STATE_CONFLICTS,
    TROUBLE,
    UnusableKeyError,
    code_of,
    is_for_ever,
    is_refused_refund,
    no_such_amount,
    outcome_of,
    reason_of,
    refund_outcome_of,
    refusal_of,
    refused_refund,
    stripe_amount,
)
from loop.processors.stripe_disputes import dispute_outcome_of
from loop.processors.stripe_movements import LISTED_WITHIN, movement_page
from loop.processors.stripe_webhooks import event_of, verify_signature

API_VERSION = "2026-10-28.endive"
"""Stripe's API version that this file was written for; the SDK's types are of the same one."""

CLIENTS_MAX = 500
"""SDK clients kept, one for each secret key; they share their connections."""

PAGE_SIZE = 100
PAGES_MAX = 10
"""How far a list is searched for a payment or refund whose id Loop never heard."""

CLOCK_MARGIN_S = 300
"""How much earlier than Loop's clock said a payment may have been created by Stripe's clock, in seconds."""

REFUND_REASONS = ("duplicate", "fraudulent", "requested_by_customer")
"""The only reasons Stripe takes; other words of the merchant go into the refund's metadata."""

_REASON_CHARS_MAX = 500
_SECRET_KEY = re.compile(r"[A-Za-z0-9_]{1,255}")
IntentCall: TypeAlias = Callable[[stripe.StripeClient, str], Coroutine[object, object, stripe.PaymentIntent]]

# The header would carry one merchant's request id in another merchant's request.
stripe.enable_telemetry = False
# At its lower levels the SDK writes down what it posts: tokens and addresses.
logging.getLogger("stripe").setLevel(logging.WARNING)


class StripeProcessor:
    """One for the process; the accounts' clients share one session, bound to the running event loop."""

    name = "stripe"
    capabilities = Capabilities(minimums=MINIMUMS, decline_finality=DeclineFinality.UNTIL_CANCELLED)
    credentials_schema: tuple[CredentialField, ...] = (
        CredentialField("secretKey", "Secret key"),
        CredentialField(
            "publishableKey",
            "Publishable key",
            is_required=False,
            is_secret=False,
            lack="customers cannot pay with it on Loop's checkout page.",
        ),
        CredentialField("webhookSecret", "Webhook signing secret", is_required=False),
    )

    def __init__(self, setup: ProcessorSetup) -> None:
        self._setup = setup
        self._clients: OrderedDict[str, stripe.StripeClient] = OrderedDict()
        self._stack = AsyncExitStack()
        self._http: stripe.AIOHTTPClient | None = None

    async def authorize(self, account: Account, request: AuthorizeRequest, *, key: IdempotencyKey) -> Outcome:
        """Create and confirm an intent in one call; without a token leave it for the browser to confirm."""
        return await within_deadline(self._setup.timeout_s, self._authorize(account, request, key=key))

    async def _authorize(self, account: Account, request: AuthorizeRequest, *, key: IdempotencyKey) -> Outcome:
        amount = stripe_amount(request.amount)
        if amount is None:
            return no_such_amount(request.amount)
        try:
            intents = self._client_of(account).v1.payment_intents
            params = _create_params(request, amount)
            return outcome_of(await intents.create_async(params, {"idempotency_key": key}), account, request=request)
        except TROUBLE as error:
            if is_for_ever(error):
                return await self._look(account, PaymentReference(None, request))
            return refusal_of(error)

    async def complete_action(
        self, account: Account, payment: PaymentReference, *, parameters: Mapping[str, str]
    ) -> Outcome:
        """Ask Stripe: what the customer's browser brings back proves nothing."""
        del parameters
        return await self.fetch(account, payment)

    async def capture(
        self, account: Account, payment: PaymentReference, *, amount: Money, key: IdempotencyKey
    ) -> Outcome:
        """Take held money; Stripe releases what is not taken."""
        wanted = stripe_amount(amount)
        if wanted is None:
            return no_such_amount(amount)

        def call(client: stripe.StripeClient, intent_id: str) -> Coroutine[object, object, stripe.PaymentIntent]:
            return client.v1.payment_intents.capture_async(
                intent_id, {"amount_to_capture": wanted}, {"idempotency_key": key}
            )

        return await within_deadline(self._setup.timeout_s, self._change(account, payment, call=call))

    async def void(self, account: Account, payment: PaymentReference, *, key: IdempotencyKey) -> Outcome:
        """Cancel the intent; one that has succeeded meanwhile is reported as it is."""

        def call(client: stripe.StripeClient, intent_id: str) -> Coroutine[object, object, stripe.PaymentIntent]:
            return client.v1.payment_intents.cancel_async(intent_id, {}, {"idempotency_key": key})

        return await within_deadline(self._setup.timeout_s, self._change(account, payment, call=call))

    async def _change(self, account: Account, payment: PaymentReference, *, call: IntentCall) -> Outcome:
        intent_id = payment.reference
        try:
            client = self._client_of(account)
            if intent_id is None:
                intent = await _find_intent(client, payment.request)
                if isinstance(intent, Unknown):
                    return intent
                intent_id = intent.id
            return outcome_of(await call(client, intent_id), account, request=payment.request)
        except TROUBLE as error:
            if is_for_ever(error) or code_of(error) in STATE_CONFLICTS:
                return await self._look(account, PaymentReference(intent_id, payment.request))
            return refusal_of(error, intent_id)

    async def refund(self, account: Account, request: RefundRequest, *, key: IdempotencyKey) -> RefundOutcome:
        """Refund the intent; a repeat under the same key settles a doubt."""
        return _known(await within_deadline(self._setup.timeout_s, self._refund(account, request, key=key)))

    async def _refund(self, account: Account, request: RefundRequest, *, key: IdempotencyKey) -> RefundOutcome:
        amount, intent_id = stripe_amount(request.amount), request.payment.reference
        if amount is None or intent_id is None:
            return refused_refund("the payment or the amount is not one Stripe knows")
        try:
            refunds = self._client_of(account).v1.refunds
            params = _refund_params(request, amount=amount, intent_id=intent_id)
            return refund_outcome_of(await refunds.create_async(params, {"idempotency_key": key}))
        except TROUBLE as error:
            if is_for_ever(error):
                return await self._look_for_refund(account, RefundReference(None, request))
            if is_refused_refund(error):
                return await self._refused_unless_made(account, request, code_of(error) or "it gives no code")
            return RefundOutcome(RefundStatus.UNKNOWN, error_message=reason_of(error))

    async def _refused_unless_made(self, account: Account, request: RefundRequest, code: str) -> RefundOutcome:
        """Return that a refund is refused, once it is sure that no earlier call has made it.

        Only the account that was paid can say so. Should its key have been replaced by another account's, which knows
        nothing of the payment, then an earlier call may have been heard all the same.
        """
        try:
            client = self._client_of(account)
            made = await _find_refund(client, request)
            if made is not None:
                return refund_outcome_of(made)
            await client.v1.payment_intents.retrieve_async(str(request.payment.reference))
        except TROUBLE as error:
            return RefundOutcome(RefundStatus.UNKNOWN, error_message=reason_of(error))
        return refused_refund(code)

    async def fetch(self, account: Account, payment: PaymentReference) -> Outcome:
        """Retrieve the intent, or search the newest ones for the attempt's id. Never `NotSent`."""
        return await within_deadline(self._setup.timeout_s, self._look(account, payment))

    async def _look(self, account: Account, payment: PaymentReference) -> Outcome:
        try:
            client = self._client_of(account)
            if payment.reference is None:
                intent = await _find_intent(client, payment.request)
            else:
                intent = await client.v1.payment_intents.retrieve_async(payment.reference)
            if isinstance(intent, Unknown):
                return intent
            return outcome_of(intent, account, request=payment.request)
        except TROUBLE as error:
            return Unknown(reason_of(error), payment.reference)

    async def fetch_refund(self, account: Account, refund: RefundReference) -> RefundOutcome:
        """Retrieve the refund, or search its payment's refunds for the refund's id."""
        return _known(await within_deadline(self._setup.timeout_s, self._look_for_refund(account, refund)))

    async def _look_for_refund(self, account: Account, refund: RefundReference) -> RefundOutcome:
        try:
            client = self._client_of(account)
            if refund.reference is None:
                found = await _find_refund(client, refund.request)
            else:
                found = await client.v1.refunds.retrieve_async(refund.reference)
            if found is not None:
                return refund_outcome_of(found)
            return RefundOutcome(RefundStatus.UNKNOWN, error_message="Stripe lists no such refund")
        except TROUBLE as error:
            return RefundOutcome(RefundStatus.UNKNOWN, refund.reference, error_message=reason_of(error))

    async def fetch_dispute(self, account: Account, dispute: DisputeReference) -> DisputeOutcome | Unknown:
        """Retrieve the dispute; it names the intent that it is of."""
        return await within_deadline(self._setup.timeout_s, self._look_for_dispute(account, dispute.reference))

    async def _look_for_dispute(self, account: Account, dispute_id: str) -> DisputeOutcome | Unknown:
        try:
            return dispute_outcome_of(await self._client_of(account).v1.disputes.retrieve_async(dispute_id))
        except TROUBLE as error:
            return Unknown(reason_of(error), dispute_id)

    def listed_within(self, account: Account) -> timedelta | None:
        """Return how far Stripe's clock may be behind: it lists money as soon as it moves, of test keys too."""
        del account
        return LISTED_WITHIN

    async def movements(self, account: Account, query: MovementQuery) -> MovementPage | Unknown:
        """List a page of balance transactions."""
        return await within_deadline(self._setup.timeout_s, self._movements(account, query))

    async def _movements(self, account: Account, query: MovementQuery) -> MovementPage | Unknown:
        try:
            return await movement_page(self._client_of(account), query)
        except TROUBLE as error:
            return Unknown(reason_of(error))

    async def check(self, account: Account) -> str | None:
        """Read the account that the secret key belongs to."""
        wrong = await within_deadline(self._setup.timeout_s, self._check(account))
        return wrong.reason if isinstance(wrong, Unknown) else wrong

    async def _check(self, account: Account) -> str | None:
        try:
            await self._client_of(account).v1.accounts.retrieve_current_async()
        except TROUBLE as error:
            return reason_of(error)
        return None

    def parse_webhook(
        self, body: bytes, headers: Mapping[str, str], *, secrets: Sequence[str], now: datetime
    ) -> WebhookEvent:
        """Verify `Stripe-Signature`, with a tolerance of `TOLERANCE_S` both ways, and read the event."""
        header = headers.get("stripe-signature")
        if header is None:
            raise WebhookSignatureError("missing_signature", "The header Stripe-Signature is missing.")
        verify_signature(body, header, secrets=secrets, now=now)
        return event_of(body)

    async def close(self) -> None:
        """Close the connections; the processor cannot be used any more."""
        self._clients.clear()
        await self._stack.aclose()

    def _client_of(self, account: Account) -> stripe.StripeClient:
        key = account.credentials.get("secretKey", "")
        if not _SECRET_KEY.fullmatch(key):
            raise UnusableKeyError
        client = self._clients.get(key)
        if client is None:
            client = self._clients[key] = self._new_client(key)
            if len(self._clients) > CLIENTS_MAX:
                self._clients.popitem(last=False)
        self._clients.move_to_end(key)
        return client

    def _new_client(self, key: str) -> stripe.StripeClient:
        if self._http is None:
            session = processor_session()
            self._stack.push_async_callback(session.close)
            self._http = stripe.AIOHTTPClient(timeout=None, session=session)
        api_base = self._setup.api_base or stripe.DEFAULT_API_BASE
        return stripe.StripeClient(
            key,
            base_addresses={"api": api_base.rstrip("/")},
            http_client=self._http,
            max_network_retries=0,
            stripe_version=API_VERSION,
        )


def _create_params(request: AuthorizeRequest, amount: int) -> PaymentIntentCreateParams:
    params: PaymentIntentCreateParams = {
        "amount": amount,
        "currency": request.amount.currency.lower(),
        "capture_method": "manual" if request.is_manual_capture else "automatic",
        "automatic_payment_methods": {"enabled": True},
        "metadata": {"loop_order_id": request.order_id, "loop_attempt_id": request.attempt_id},
    }
    if request.description is not None:
        params["description"] = request.description
    if request.customer_email is not None:
        params["receipt_email"] = request.customer_email
    if request.token is None:
        return params
    params["confirm"] = True
    params["return_url"] = request.return_url
    if request.token.startswith("tok_"):
        # The API takes a card's token here; the SDK's type leaves the field out.
        card = {"type": "card", "card": {"token": request.token}}
        params["payment_method_data"] = cast("PaymentIntentCreateParamsPaymentMethodData", card)
    else:
        params["payment_method"] = request.token
    return params


def _refund_params(request: RefundRequest, *, amount: int, intent_id: str) -> RefundCreateParams:
    metadata = {"loop_refund_id": request.refund_id, "loop_attempt_id": request.payment.request.attempt_id}
    params: RefundCreateParams = {"payment_intent": intent_id, "amount": amount, "metadata": metadata}
    if request.reason in REFUND_REASONS:
        params["reason"] = request.reason
    elif request.reason:
        metadata["loop_reason"] = request.reason[:_REASON_CHARS_MAX]
    return params


async def _find_intent(client: stripe.StripeClient, request: AuthorizeRequest) -> stripe.PaymentIntent | Unknown:
    """Search the intents made since the attempt was, newest first: the list is consistent, Stripe's search is not."""
    params: PaymentIntentListParams = {
        "created": {"gte": int(request.created_at.timestamp()) - CLOCK_MARGIN_S},
        "limit": PAGE_SIZE,
    }
    for _ in range(PAGES_MAX):
        page = await client.v1.payment_intents.list_async(params)
        for intent in page.data:
            if _metadata_of(intent).get("loop_attempt_id") == request.attempt_id:
                return intent
        if not page.has_more:
            return Unknown("Stripe lists no payment of this attempt", is_absent=True)
        params["starting_after"] = page.data[-1].id
    return Unknown("Stripe lists so many payments that this attempt's was not found")


async def _find_refund(client: stripe.StripeClient, request: RefundRequest) -> stripe.Refund | None:
    if request.payment.reference is None:
        return None
    params: RefundListParams = {"payment_intent": request.payment.reference, "limit": PAGE_SIZE}
    for _ in range(PAGES_MAX):
        page = await client.v1.refunds.list_async(params)
        for refund in page.data:
            if _metadata_of(refund).get("loop_refund_id") == request.refund_id:
                return refund
        if not page.has_more:
            break
        params["starting_after"] = page.data[-1].id
    return None


def _metadata_of(item: stripe.PaymentIntent | stripe.Refund) -> Mapping[str, object]:
    return item.metadata.to_dict() if item.metadata is not None else {}


def _known(outcome: RefundOutcome | Unknown) -> RefundOutcome:
    if isinstance(outcome, Unknown):
        return RefundOutcome(RefundStatus.UNKNOWN, error_message=outcome.reason)
    return outcome
