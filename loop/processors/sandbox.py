"""The sandbox: a processor inside Loop that moves no money; the token chooses what happens."""

import asyncio
import hashlib
import hmac
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Generic, Literal, TypeVar

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
from loop.domain.declines import DECLINES, unified
from loop.domain.disputes import AT_STAKE, DisputeOutcome, DisputeStatus
from loop.domain.failover import DeclineFinality
from loop.domain.ids import PREFIX_ATTEMPT, PREFIX_REFUND
from loop.domain.money import Money
from loop.domain.refunds import RefundOutcome, RefundStatus
from loop.processors.base import (
    Account,
    AuthorizeRequest,
    Capabilities,
    CredentialField,
    DisputeReference,
    IdempotencyKey,
    PaymentReference,
    ProcessorSetup,
    RefundReference,
    RefundRequest,
    WebhookEvent,
    WebhookSignatureError,
)
from loop.processors.http import require_no_transaction, within_deadline
from loop.processors.sandbox_disputes import TOKENS as DISPUTE_TOKENS
from loop.processors.sandbox_disputes import (
    dispute_outcome_of,
    dispute_reference_of,
    dispute_status_after,
    is_disputed,
)

SLOW_S = 2.0
"""How long `tok_slow` takes, in seconds."""

REMEMBERED_MAX = 10_000
"""Payments, answers and ledger rows kept in memory, each; older ones are forgotten, as after a restart."""

SIGNATURE_HEADER = "x-sandbox-signature"
RESULT_PARAMETER = "sandbox_result"
SIGNATURE_PARAMETER = "sandbox_signature"

TOKENS: Mapping[str, str] = {
    "tok_approve": "Approved at once.",
    **{f"tok_decline_{code}": f"Declined with `{code}` ({each.decline_class})." for code, each in DECLINES.items()},
    "tok_3ds": "The customer is sent to a page and approves or fails there.",
    "tok_pending": "Pending; approved when it is next asked about.",
    "tok_slow": f"Approved after {SLOW_S:g} seconds.",
    "tok_timeout_then_charged": "Charged, but the answer is lost; the same key again tells it.",
    "tok_timeout_then_nothing": "Lost before it was charged; the same key again charges.",
    "tok_refund_pending": "Approved; its refunds are pending, and succeed when next asked about.",
    "tok_refund_fails_later": "Approved; its refunds are pending, and fail when next asked about.",
    **DISPUTE_TOKENS,
    "tok_webhook_duplicate": "Approved; every webhook about it comes twice.",
    "tok_webhook_out_of_order": "Approved; its webhooks come last first.",
}
"""Token -> what happens; docs/guides/sandbox.md is this table. Without a token the customer picks on a page."""

_PAGE = "page"
"""Stands where the token's word stands in the reference of a payment without a token."""

Result = Literal["approved", "declined", "insufficient_funds", "failed"]
RESULTS: tuple[Result, ...] = ("approved", "declined", "insufficient_funds", "failed")
"""What a customer may choose on a page; `failed` is a failed authentication."""

LedgerKind = Literal["authorization", "charge", "capture", "void", "refund"]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One movement of the sandbox's make-believe money, under the idempotency key that caused it."""

    kind: LedgerKind
    key: str
    attempt_id: str
    amount: Money


@dataclass(slots=True)
class _Payment:
    """A payment as it stands; `refunded_minor` counts refunds under way too."""

    request: AuthorizeRequest
    outcome: Outcome
    refunded_minor: int = 0
    refunds: dict[str, RefundOutcome] = field(default_factory=dict)
    dispute: DisputeStatus | None = None
    """As it was last told."""


class _Bounded(OrderedDict[str, _T], Generic[_T]):
    """A dict that forgets what was put in first."""

    def __setitem__(self, name: str, value: _T) -> None:
        super().__setitem__(name, value)
        if len(self) > REMEMBERED_MAX:
            self.popitem(last=False)


@dataclass(slots=True)
class _Books:
    """What the sandbox remembers of one account."""

    payments: _Bounded[_Payment] = field(default_factory=_Bounded)
    answers: _Bounded[Outcome] = field(default_factory=_Bounded)
    refund_answers: _Bounded[RefundOutcome] = field(default_factory=_Bounded)
    lost: _Bounded[None] = field(default_factory=_Bounded)
    entries: list[LedgerEntry] = field(default_factory=list)

    def enter(self, entry: LedgerEntry) -> None:
        self.entries.append(entry)
        del self.entries[:-REMEMBERED_MAX]


def _word_of(token: str | None) -> str:
    return _PAGE if token is None else token.removeprefix("tok_")


def _reference_of(request: AuthorizeRequest) -> str:
    return f"sbx_{request.attempt_id.removeprefix(f'{PREFIX_ATTEMPT}_')}_{_word_of(request.token)}"


def _attempt_id_of(reference: str) -> str:
    return f"{PREFIX_ATTEMPT}_{reference.split('_')[1]}"


def _declined(code: str, reference: str | None = None, message: str | None = None) -> Declined:
    decline = unified(code)
    said = message or f"The sandbox declined the payment with {decline.code}."
    return Declined(decline.code, decline.decline_class, said, raw_code=code, reference=reference)


class SandboxProcessor:
    """Deterministic and in-process.

    A reference says which token made it, so a process that remembers nothing of a payment answers from that.
    """

    name = "sandbox"
    capabilities = Capabilities(
        payment_methods=frozenset({"card", "upi", "netbanking", "wallet"}),
        is_test_only=True,
        decline_finality=DeclineFinality.FINAL,
    )
    credentials_schema: tuple[CredentialField, ...] = (
        CredentialField("webhookSecret", "Webhook signing secret", is_required=False),
    )

    def __init__(self, setup: ProcessorSetup) -> None:
        self._setup = setup
        self._books: dict[str, _Books] = {}

    def ledger(self) -> tuple[LedgerEntry, ...]:
        """Return what moved in this process, account by account, oldest first."""
        return tuple(entry for books in self._books.values() for entry in books.entries)

    def challenge_url(self, reference: str) -> str:
        """Return the page where the customer of a `tok_3ds` payment proves who they are."""
        return f"{self._setup.public_url}/sandbox/challenge/{reference}"

    def payment_url(self, reference: str) -> str:
        """Return the page where the customer of a payment without a token picks its outcome."""
        return f"{self._setup.public_url}/sandbox/payments/{reference}"

    def sign_result(self, reference: str, result: Result) -> str:
        """Sign what a customer chose on one of the pages; it goes back as `sandbox_signature`."""
        message = f"{reference}.{result}".encode()
        return hmac.new(self._setup.challenge_secret, message, hashlib.sha256).hexdigest()

    def _verified_result(self, reference: str, parameters: Mapping[str, str]) -> Result | None:
        signature = parameters.get(SIGNATURE_PARAMETER, "").encode("utf-8", "replace")
        for result in RESULTS:
            expected = self.sign_result(reference, result).encode()
            if parameters.get(RESULT_PARAMETER) == result and hmac.compare_digest(expected, signature):
                return result
        return None

    async def authorize(self, account: Account, request: AuthorizeRequest, *, key: IdempotencyKey) -> Outcome:
        """Do what the token says; without one, send the customer to the page that asks for the outcome."""
        return await within_deadline(self._setup.timeout_s, self._authorize(account, request, key=key))

    async def _authorize(self, account: Account, request: AuthorizeRequest, *, key: IdempotencyKey) -> Outcome:
        books = self._books_of(account)
        word = _word_of(request.token)
        if word == "slow":
            await asyncio.sleep(SLOW_S)
        if (answer := books.answers.get(key)) is not None:
            return answer
        if word == "timeout_then_nothing" and key not in books.lost:
            books.lost[key] = None
            return Unknown("the sandbox did not answer")
        outcome = self._first_outcome(account, request)
        books.answers[key] = outcome
        books.payments[_reference_of(request)] = _Payment(request, outcome)
        if isinstance(outcome, Approved | Pending):
            books.enter(_paid_entry(request, key))
        if word == "timeout_then_charged":
            return Unknown("the sandbox did not answer")
        return outcome

    async def complete_action(
        self, account: Account, payment: PaymentReference, *, parameters: Mapping[str, str]
    ) -> Outcome:
        """Apply what the customer chose on a page, if its signature is right; else say how the payment stands."""
        known = self._find(account, payment)
        if not isinstance(known, _Payment):
            return known
        reference = _reference_of(known.request)
        result = self._verified_result(reference, parameters)
        if result is None or not isinstance(known.outcome, ActionRequired):
            return known.outcome
        if result == "approved":
            known.outcome = _approved(known.request)
            self._books_of(account).enter(_paid_entry(known.request, f"{reference}.{result}"))
        else:
            known.outcome = _declined("authentication_failed" if result == "failed" else result, reference)
        return known.outcome

    async def capture(
        self, account: Account, payment: PaymentReference, *, amount: Money, key: IdempotencyKey
    ) -> Outcome:
        """Take held money; what is not taken is released."""
        books = self._books_of(account)
        if (answer := books.answers.get(key)) is not None:
            return answer
        known = self._find(account, payment)
        if not isinstance(known, _Payment):
            return known
        held = _caught_up(known, is_captured=False)
        if not isinstance(held, Approved) or held.is_captured:
            return held
        if not 0 < amount.amount_minor <= held.amount_minor or amount.currency != known.request.amount.currency:
            return NotSent("invalid_request", "Only what is held can be captured.")
        known.outcome = books.answers[key] = replace(held, is_captured=True, amount_minor=amount.amount_minor)
        books.enter(LedgerEntry("capture", key, known.request.attempt_id, amount))
        return known.outcome

    async def void(self, account: Account, payment: PaymentReference, *, key: IdempotencyKey) -> Outcome:
        """Release held money, or cancel a payment that waits for its customer; anything else stays as it is."""
        books = self._books_of(account)
        if (answer := books.answers.get(key)) is not None:
            return answer
        known = self._find(account, payment)
        if not isinstance(known, _Payment):
            return known
        reference = _reference_of(known.request)
        if isinstance(known.outcome, Pending):  # as when it is asked about
            known.outcome = _approved(known.request)
        if isinstance(known.outcome, Approved) and not known.outcome.is_captured:
            known.outcome = Voided(reference)
            books.answers[key] = known.outcome
            books.enter(LedgerEntry("void", key, known.request.attempt_id, known.request.amount))
        elif isinstance(known.outcome, ActionRequired | Declined):
            known.outcome = books.answers[key] = Cancelled(reference)
        return known.outcome

    async def refund(self, account: Account, request: RefundRequest, *, key: IdempotencyKey) -> RefundOutcome:
        """Give captured money back; more than is left of it is refused."""
        books = self._books_of(account)
        if (answer := books.refund_answers.get(key)) is not None:
            return answer
        known = self._find(account, request.payment)
        if not isinstance(known, _Payment):
            return RefundOutcome(RefundStatus.UNKNOWN)
        paid = _caught_up(known, is_captured=True)
        left = paid.amount_minor - known.refunded_minor if isinstance(paid, Approved) and paid.is_captured else 0
        left = 0 if known.dispute in AT_STAKE else left
        reference = _refund_reference_of(request)
        if not 0 < request.amount.amount_minor <= left or request.amount.currency != known.request.amount.currency:
            outcome = _refused_refund(reference, "Only what is captured and not yet refunded can be refunded.")
        else:
            waits = _word_of(known.request.token) in ("refund_pending", "refund_fails_later")
            outcome = RefundOutcome(RefundStatus.PENDING if waits else RefundStatus.SUCCEEDED, reference)
            known.refunded_minor += request.amount.amount_minor
            books.enter(LedgerEntry("refund", key, known.request.attempt_id, request.amount))
        known.refunds[request.refund_id] = books.refund_answers[key] = outcome
        return outcome

    async def fetch(self, account: Account, payment: PaymentReference) -> Outcome:
        """Say how a payment stands; a pending one is approved by being asked about."""
        known = self._find(account, payment)
        if not isinstance(known, _Payment):
            return known
        if isinstance(known.outcome, Pending):
            known.outcome = _approved(known.request)
        return known.outcome

    async def fetch_refund(self, account: Account, refund: RefundReference) -> RefundOutcome:
        """Say how a refund stands; a pending one is settled by being asked about."""
        request = refund.request
        known = self._find(account, request.payment)
        if not isinstance(known, _Payment):
            return RefundOutcome(RefundStatus.UNKNOWN, refund.reference)
        outcome = known.refunds.get(request.refund_id)
        if outcome is None and refund.reference is None:
            return RefundOutcome(RefundStatus.UNKNOWN)
        if outcome is None or outcome.status is RefundStatus.PENDING:
            reference = _refund_reference_of(request)
            if _word_of(known.request.token) == "refund_fails_later":
                known.refunded_minor = max(0, known.refunded_minor - request.amount.amount_minor)
                outcome = _refused_refund(reference, "The customer's bank sent the money back.")
            else:
                outcome = RefundOutcome(RefundStatus.SUCCEEDED, reference)
            known.refunds[request.refund_id] = outcome
        return outcome

    async def fetch_dispute(self, account: Account, dispute: DisputeReference) -> DisputeOutcome | Unknown:
        """Say how a dispute stands: it is opened by being asked about, and decided by being asked about again."""
        known = self._find(account, dispute.payment)
        is_known = isinstance(known, _Payment) and dispute.reference == dispute_reference_of(known.request.attempt_id)
        if not isinstance(known, _Payment) or not is_known or not is_disputed(known.request):
            return Unknown("the sandbox has no such dispute", dispute.reference)
        paid = _caught_up(known, is_captured=True)
        if not isinstance(paid, Approved):
            return Unknown("the payment is not captured", dispute.reference)
        known.dispute = dispute_status_after(known.dispute, known.request)
        return dispute_outcome_of(
            known.dispute, known.request, payment_reference=paid.reference, amount_minor=paid.amount_minor
        )

    async def check(self, account: Account) -> str | None:
        """Accept any account that is in test mode."""
        return None if account.is_test_mode else "The sandbox moves no money: it works in test mode only."

    def parse_webhook(
        self, body: bytes, headers: Mapping[str, str], *, secrets: Sequence[str], now: datetime
    ) -> WebhookEvent:
        """Verify the hex HMAC-SHA256 of the body in `x-sandbox-signature`."""
        del now  # the sandbox signs no time
        given = headers.get(SIGNATURE_HEADER)
        if given is None:
            raise WebhookSignatureError("missing_signature", f"The header {SIGNATURE_HEADER} is missing.")
        candidates = [_webhook_signature(body, secret) for secret in secrets]
        signature = given.encode("utf-8", "replace")
        if not any(hmac.compare_digest(each.encode(), signature) for each in candidates):
            raise WebhookSignatureError("invalid_signature", f"The header {SIGNATURE_HEADER} does not fit the body.")
        event = json.loads(body)
        try:
            return WebhookEvent(
                event_id=str(event["id"]),
                event_type=str(event["type"]),
                payment_reference=str(event["payment"]),
                attempt_id=_attempt_id_of(str(event["payment"])),
                dispute_reference=str(event["dispute"]) if event.get("dispute") else None,
            )
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError("the sandbox's webhook names no payment") from error

    def webhooks_for(self, reference: str, *, secret: str) -> list[tuple[bytes, dict[str, str]]]:
        """Return the signed webhooks about a payment, as (body, headers), in the order they would arrive."""
        types = ["payment.captured"]
        if reference.endswith("_webhook_duplicate"):
            types = ["payment.captured", "payment.captured"]
        if reference.endswith("_webhook_out_of_order"):
            types = ["payment.captured", "payment.processing", "payment.created"]
        if "_dispute" in reference:
            types = ["payment.captured", "dispute.opened", "dispute.closed"]
        return [_webhook(reference, event_type, secret) for event_type in types]

    async def close(self) -> None:
        """Forget everything, like a restart."""
        self._books.clear()

    def _books_of(self, account: Account) -> _Books:
        require_no_transaction()  # nothing leaves the process, but a real processor would be called here
        return self._books.setdefault(account.config_id, _Books())

    def _first_outcome(self, account: Account, request: AuthorizeRequest) -> Outcome:
        """Return what a payment is before anything else happens to it."""
        reference = _reference_of(request)
        if not account.is_test_mode:
            return _declined("test_card_in_live", message="The sandbox works in test mode only.")
        if request.token is None:
            return ActionRequired(reference, redirect_url=self.payment_url(reference))
        if request.token not in TOKENS:
            return _declined("invalid_request", message="The sandbox does not know this token.")
        word = _word_of(request.token)
        if word.startswith("decline_"):
            return _declined(word.removeprefix("decline_"), reference)
        if word == "3ds":
            return ActionRequired(reference, redirect_url=self.challenge_url(reference))
        return Pending(reference) if word == "pending" else _approved(request)

    def _find(self, account: Account, payment: PaymentReference) -> _Payment | NotSent | Unknown:
        """Return the payment as remembered, else as its reference tells, else why nothing can be said."""
        books = self._books_of(account)
        reference = _reference_of(payment.request)
        if payment.reference not in (None, reference):
            return NotSent("invalid_request", "The sandbox has no such payment.")
        known = books.payments.get(reference)
        if known is None and payment.reference is None:
            return Unknown("the sandbox remembers no such payment; the same key again settles it")
        if known is None:
            known = books.payments[reference] = _Payment(payment.request, self._first_outcome(account, payment.request))
        return known


def _approved(request: AuthorizeRequest) -> Approved:
    return Approved(
        _reference_of(request), is_captured=not request.is_manual_capture, amount_minor=request.amount.amount_minor
    )


def _caught_up(known: _Payment, *, is_captured: bool) -> Outcome:
    """Return a payment's outcome, at least as far on as Loop must know it to be before it captures or refunds.

    Another process may have completed or captured the payment: this one's memory is then behind.
    """
    if isinstance(known.outcome, ActionRequired | Pending):
        known.outcome = replace(_approved(known.request), is_captured=is_captured)
    elif is_captured and isinstance(known.outcome, Approved):
        known.outcome = replace(known.outcome, is_captured=True)
    return known.outcome


def _paid_entry(request: AuthorizeRequest, key: str) -> LedgerEntry:
    kind: LedgerKind = "authorization" if request.is_manual_capture else "charge"
    return LedgerEntry(kind, key, request.attempt_id, request.amount)


def _refund_reference_of(request: RefundRequest) -> str:
    return f"sbxr_{request.refund_id.removeprefix(f'{PREFIX_REFUND}_')}"


def _refused_refund(reference: str, message: str) -> RefundOutcome:
    return RefundOutcome(RefundStatus.FAILED, reference, error_code="refund_refused", error_message=message)


def _webhook_signature(body: bytes, secret: str) -> str:
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def _webhook(reference: str, event_type: str, secret: str) -> tuple[bytes, dict[str, str]]:
    event_id = f"evt_{hashlib.sha256(f'{reference}.{event_type}'.encode()).hexdigest()[:26]}"
    dispute = {"dispute": dispute_reference_of(_attempt_id_of(reference))} if event_type.startswith("dispute") else {}
    body = json.dumps({"id": event_id, "type": event_type, "payment": reference, **dispute}).encode()
    return body, {SIGNATURE_HEADER: _webhook_signature(body, secret)}
