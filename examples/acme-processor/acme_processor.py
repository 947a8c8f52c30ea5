"""Acme Pay for Loop: a processor in a package of its own, written against Loop's published interface alone."""

import asyncio
import hashlib
import hmac
import json
import os
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import datetime

import aiohttp

from loop.domain.attempts import (
    ActionRequired,
    Approved,
    Cancelled,
    Declined,
    NotSent,
    Outcome,
    Pending,
    Unknown,
    Voided,
)
from loop.domain.declines import unified
from loop.domain.failover import DeclineFinality
from loop.domain.money import Money
from loop.domain.refunds import RefundOutcome, RefundStatus
from loop.processors.base import (
    Account,
    AuthorizeRequest,
    Capabilities,
    CredentialField,
    IdempotencyKey,
    PaymentReference,
    ProcessorSetup,
    RefundReference,
    RefundRequest,
    WebhookEvent,
    WebhookSignatureError,
)

API_BASE = "https://api.acme-pay.example"
"""Where Acme Pay is, unless the variable ACME_API_BASE says otherwise."""

TOLERANCE_S = 300
"""How far a webhook's signed time may be from now, both ways, in seconds."""

REFUSALS = {400: "invalid_request", 401: "configuration", 404: "configuration", 429: "rate_limited"}
"""HTTP statuses with which Acme Pay promises that it did nothing, and Loop's codes for them."""

DECLINES = {"no_funds": "insufficient_funds", "expired": "invalid_card", "stolen": "card_blocked"}
"""Acme Pay's decline codes as Loop's own; one that is missing here is a plain `declined`."""


class AcmeProcessor:
    """One for the process: the calls of all merchants share its connections."""

    name = "acme"
    capabilities = Capabilities(decline_finality=DeclineFinality.FINAL)
    credentials_schema: tuple[CredentialField, ...] = (
        CredentialField("apiKey", "API key"),
        CredentialField("webhookSecret", "Webhook signing secret", is_required=False),
    )

    def __init__(self, setup: ProcessorSetup) -> None:
        self._api_base = setup.api_base or os.environ.get("ACME_API_BASE", API_BASE)
        self._timeout_s = setup.timeout_s
        self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())

    async def authorize(self, account: Account, request: AuthorizeRequest, *, key: IdempotencyKey) -> Outcome:
        """Charge or hold; without a token Acme Pay shows the customer a page of its own."""
        answer = await self._ask(
            account,
            "/payments",
            key,
            reference=request.attempt_id,
            amount=request.amount.amount_minor,
            currency=request.amount.currency,
            capture=not request.is_manual_capture,
            source=request.token,
            return_url=request.return_url,
        )
        return _outcome_of(answer)

    async def complete_action(
        self, account: Account, payment: PaymentReference, *, parameters: Mapping[str, str]
    ) -> Outcome:
        """Ask Acme Pay: what the customer's browser brings back proves nothing."""
        del parameters
        return await self.fetch(account, payment)

    async def capture(
        self, account: Account, payment: PaymentReference, *, amount: Money, key: IdempotencyKey
    ) -> Outcome:
        """Take held money; Acme Pay releases the rest."""
        path = f"{_path_of(payment)}/capture"
        return _outcome_of(await self._ask(account, path, key, amount=amount.amount_minor))

    async def void(self, account: Account, payment: PaymentReference, *, key: IdempotencyKey) -> Outcome:
        """Release held money, or end a payment that waits for its customer."""
        return _outcome_of(await self._ask(account, f"{_path_of(payment)}/void", key))

    async def refund(self, account: Account, request: RefundRequest, *, key: IdempotencyKey) -> RefundOutcome:
        """Give money back. Only what Acme Pay looked at and refused has failed; anything else is asked again."""
        path, amount = f"{_path_of(request.payment)}/refunds", request.amount.amount_minor
        answer = await self._ask(account, path, key, reference=request.refund_id, amount=amount)
        if isinstance(answer, NotSent) and answer.code == "invalid_request":
            return RefundOutcome(RefundStatus.FAILED, error_code="refund_refused", error_message=answer.message)
        return _refund_of(answer)

    async def fetch(self, account: Account, payment: PaymentReference) -> Outcome:
        """Ask how a payment stands; one that Acme Pay does not know may still be on its way there."""
        outcome = _outcome_of(await self._ask(account, _path_of(payment)))
        return Unknown(outcome.message, payment.reference) if isinstance(outcome, NotSent) else outcome

    async def fetch_refund(self, account: Account, refund: RefundReference) -> RefundOutcome:
        """Ask how a refund stands."""
        return _refund_of(await self._ask(account, f"/refunds/{refund.reference or refund.request.refund_id}"))

    async def check(self, account: Account) -> str | None:
        """Read the account that the API key belongs to."""
        match await self._ask(account, "/account"):
            case NotSent(message=wrong) | Unknown(reason=wrong):
                return wrong
        return None

    def parse_webhook(
        self, body: bytes, headers: Mapping[str, str], *, secrets: Sequence[str], now: datetime
    ) -> WebhookEvent:
        """Verify the header, then read the event."""
        header = headers.get("acme-signature")
        if header is None:
            raise WebhookSignatureError("missing_signature", "The header Acme-Signature is missing.")
        if not any(_is_signed(body, header, secret=each, now=now) for each in secrets):
            raise WebhookSignatureError("invalid_signature", "Acme-Signature does not fit the body, or the time.")
        return _event_of(body)

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def _ask(self, account: Account, path: str, key: str | None = None, **body: object) -> object:
        """Post under a key, get without one; return Acme Pay's JSON, else `NotSent` or `Unknown`."""
        credentials = b64encode(account.credentials.get("apiKey", "").encode() + b":").decode()
        headers = {"Authorization": f"Basic {credentials}"} | ({"Idempotency-Key": key} if key else {})
        method, url = "POST" if key else "GET", self._api_base + path
        call = self._session.request(method, url, json=body or None, headers=headers, allow_redirects=False)
        try:
            async with asyncio.timeout(self._timeout_s), call as response:
                answer = await response.json()
        except aiohttp.ClientConnectorError:
            return NotSent("processor_unreachable", "The connection to Acme Pay could not be opened.")
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:
            return Unknown(f"Acme Pay's answer is not known ({type(error).__name__}).")
        match response.status, answer:
            case ((200 | 409), _):  # a conflict tells how the payment stands
                return answer
            case status, {"error": {"code": str(code)}} if status in REFUSALS:
                return NotSent(REFUSALS[status], f"Acme Pay refused: {code}.")
        return Unknown(f"Acme Pay answered {response.status}.")


def _path_of(payment: PaymentReference) -> str:
    """Return where a payment is: Acme Pay knows it by its own id and by our reference, the attempt's id."""
    return f"/payments/{payment.reference or payment.request.attempt_id}"


def _outcome_of(answer: object) -> Outcome:
    match answer:
        case NotSent() | Unknown():
            return answer
        case {"id": str(reference), "status": ("authorized" | "captured") as status, "amount": int(amount)}:
            return Approved(reference, is_captured=status == "captured", amount_minor=amount)
        case {"id": str(reference), "status": "requires_action", "redirect_url": str(url)}:
            return ActionRequired(reference, redirect_url=url)
        case {"id": str(reference), "status": "processing"}:
            return Pending(reference)
        case {"id": str(reference), "status": "declined", "decline_code": str(raw)}:
            decline = unified(DECLINES.get(raw, "declined"))
            message = f"Acme Pay declined the payment: {raw}."
            return Declined(decline.code, decline.decline_class, message, raw_code=raw, reference=reference)
        case {"id": str(reference), "status": "cancelled"}:
            return Cancelled(reference)
        case {"id": str(reference), "status": "voided"}:
            return Voided(reference)
    return Unknown("Acme Pay's answer says nothing that this version understands.")


def _refund_of(answer: object) -> RefundOutcome:
    match answer:
        case {"id": str(reference), "status": "paid"}:
            return RefundOutcome(RefundStatus.SUCCEEDED, reference)
        case {"id": str(reference), "status": "pending"}:
            return RefundOutcome(RefundStatus.PENDING, reference)
        case {"id": str(reference), "status": "returned"}:
            return RefundOutcome(RefundStatus.FAILED, reference, "refund_returned", "The customer's bank sent it back.")
    return RefundOutcome(RefundStatus.UNKNOWN)


def _is_signed(body: bytes, header: str, *, secret: str, now: datetime) -> bool:
    """Tell whether `t=<seconds>,v1=<hex>` is fresh and is the HMAC-SHA256 of `<seconds>.<body>` under the secret."""
    given = re.fullmatch("t=([0-9]{1,12}),v1=([0-9a-f]{64})", header)
    if given is None or abs(now.timestamp() - int(given[1])) > TOLERANCE_S:
        return False
    expected = hmac.new(secret.encode(), f"{given[1]}.".encode() + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, given[2])


def _event_of(body: bytes) -> WebhookEvent:
    match json.loads(body):
        case {
            "id": str(event_id),
            "type": str(event_type),
            "payment": str(payment),
            "reference": str(attempt_id),
            "refund": (str() | None) as refund,
        }:
            return WebhookEvent(event_id, event_type, payment, attempt_id, refund)
    raise ValueError("the webhook is not an event of Acme Pay's")
