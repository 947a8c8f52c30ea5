"""The processor seam: what a payment provider must offer, as a third party implements it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NewType, Protocol, runtime_checkable

from loop.domain.attempts import Outcome, Unknown
from loop.domain.disputes import DisputeOutcome
from loop.domain.failover import DeclineFinality
from loop.domain.money import Money
from loop.domain.movements import Movement
from loop.domain.refunds import RefundOutcome

IdempotencyKey = NewType("IdempotencyKey", str)
"""Derived from the attempt and the operation, never random at call time: a repeat after a crash sends the same one."""


@dataclass(frozen=True, slots=True)
class CredentialField:
    """One field of a processor's credentials, as the dashboard's form and the API check it."""

    name: str
    label: str
    is_required: bool = True
    is_secret: bool = True
    lack: str = ""
    """What does not work without it, as a sentence for the merchant; empty where nothing is missed."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a processor can do; what it cannot is refused before it is called."""

    can_capture_manually: bool = True
    can_capture_partially: bool = True
    can_void: bool = True
    can_refund_partially: bool = True
    payment_methods: frozenset[str] = frozenset({"card"})
    currencies: frozenset[str] | None = None
    """ISO 4217 codes; None leaves it to the processor to say."""
    minimums: Mapping[str, int] = field(default_factory=dict)
    """The smallest charge by currency, in ISO 4217's minor units; a currency that is not named has none."""
    is_test_only: bool = False
    """Whether an account must be in test mode."""
    decline_finality: DeclineFinality = DeclineFinality.OPEN
    """What a decline means for its payment; only one that is sure to stay unpaid lets another processor try."""


@dataclass(frozen=True, slots=True)
class Account:
    """A merchant's account at a processor. Credentials are decrypted just before the call."""

    config_id: str
    merchant_id: str
    is_test_mode: bool
    credentials: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class AuthorizeRequest:
    """Charge (or hold) money for one attempt. `token` is the processor's own token for the customer's card.

    Without a token the payment is prepared for the customer's browser and the outcome is `ActionRequired`.
    `created_at` is when the attempt was recorded: what a lookup of a lost request searches from.
    """

    order_id: str
    attempt_id: str
    amount: Money
    is_manual_capture: bool
    payment_method: str
    token: str | None = field(repr=False)
    customer_email: str | None = field(repr=False)
    description: str | None
    return_url: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class PaymentReference:
    """An attempt as the processor knows it, with the request that made it.

    `reference` is None while an unclear first call has not told it: then the processor is searched for the attempt.
    """

    reference: str | None
    request: AuthorizeRequest


@dataclass(frozen=True, slots=True)
class RefundRequest:
    """Give back money of a captured attempt."""

    refund_id: str
    payment: PaymentReference
    amount: Money
    reason: str | None


@dataclass(frozen=True, slots=True)
class RefundReference:
    """A refund as the processor knows it; `reference` is None while an unclear call has not told it."""

    reference: str | None
    request: RefundRequest


@dataclass(frozen=True, slots=True)
class DisputeReference:
    """A dispute as the processor knows it, and the payment that its webhook said is disputed."""

    reference: str
    payment: PaymentReference


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """What a verified inbound webhook is about; a hint to ask the processor, never a fact by itself.

    `event_id` is the processor's own id of the event; `payment_reference` the payment it concerns (None: not ours);
    `refund_reference` is set when it concerns a refund of that payment, `dispute_reference` when a dispute of it.
    `amount` is what the payment, or that refund of it, is over as the webhook says; an event whose amount is not what
    Loop knows is kept for a person. None says nothing.
    """

    event_id: str
    event_type: str
    payment_reference: str | None
    attempt_id: str | None = None
    refund_reference: str | None = None
    dispute_reference: str | None = None
    amount: Money | None = None


class WebhookSignatureError(Exception):
    """The webhook is not from the processor. `code` is `missing_signature` or `invalid_signature`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@runtime_checkable
class Processor(Protocol):
    """A payment provider.

    No method raises for what a provider can answer: declines, refusals, timeouts and lost connections are outcomes.
    Whatever a method does raise counts as `Unknown`. Every call ends within the deadline that the processor was made
    with. Repeating a call with the same idempotency key has one effect.
    """

    name: str
    capabilities: Capabilities
    credentials_schema: tuple[CredentialField, ...]

    async def authorize(self, account: Account, request: AuthorizeRequest, *, key: IdempotencyKey) -> Outcome:
        """Charge or hold the money; a repeat under the same key settles a doubt.

        `NotSent` speaks of this call alone: said of a repeat, it leaves open what became of the call before.
        """
        ...

    async def complete_action(
        self, account: Account, payment: PaymentReference, *, parameters: Mapping[str, str]
    ) -> Outcome:
        """Say what became of the payment, now that the customer came back with these query parameters."""
        ...

    async def capture(
        self, account: Account, payment: PaymentReference, *, amount: Money, key: IdempotencyKey
    ) -> Outcome:
        """Take held money, all or a part."""
        ...

    async def void(self, account: Account, payment: PaymentReference, *, key: IdempotencyKey) -> Outcome:
        """Release held money (`Voided`) or cancel an unfinished payment (`Cancelled`); else say how it stands.

        `NotSent` means that the payment is as it was.
        """
        ...

    async def refund(self, account: Account, request: RefundRequest, *, key: IdempotencyKey) -> RefundOutcome:
        """Give money back.

        `FAILED` is final, and frees the amount: say it of a refund only when neither this call nor one before it made
        it. An account that does not know the payment cannot tell, so it is `UNKNOWN` then.
        """
        ...

    async def fetch(self, account: Account, payment: PaymentReference) -> Outcome:
        """Ask what became of a payment. `NotSent` only if the processor surely never executed it.

        One that is searched for and not found is `Unknown`, with `is_absent` if the search was of all there can be.
        """
        ...

    async def fetch_refund(self, account: Account, refund: RefundReference) -> RefundOutcome:
        """Ask what became of a refund."""
        ...

    async def check(self, account: Account) -> str | None:
        """Try the credentials without moving money; return None when they work, else what is wrong."""
        ...

    def parse_webhook(
        self, body: bytes, headers: Mapping[str, str], *, secrets: Sequence[str], now: datetime
    ) -> WebhookEvent:
        """Verify raw bytes in constant time against any of the secrets; raise `WebhookSignatureError`. Pure.

        `headers` has lower-case names. A verified body that makes no sense raises ValueError.
        """
        ...

    async def close(self) -> None:
        """Release what the processor holds open."""
        ...


@runtime_checkable
class TellsDisputes(Protocol):
    """What a processor offers besides, if it tells of disputes; one that does not leaves it out."""

    async def fetch_dispute(self, account: Account, dispute: DisputeReference) -> DisputeOutcome | Unknown:
        """Ask how a dispute stands, and which payment it is of.

        The bank's mere questions are `INQUIRY`: they take no money. `Unknown` for a dispute that is not found.
        """
        ...


@dataclass(frozen=True, slots=True)
class MovementQuery:
    """Which movements of an account are asked for; a page after the first carries the cursor of the one before."""

    since: datetime
    until: datetime
    """Exclusive."""
    now: datetime
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class MovementPage:
    """Some of the movements asked for, and where to go on; None says that there are no more."""

    movements: tuple[Movement, ...]
    next_cursor: str | None


@runtime_checkable
class ListsMovements(Protocol):
    """What a processor offers besides, if it lists what moved: Loop's books are then compared with its list.

    One that does not list leaves both methods out.
    """

    def listed_within(self, account: Account) -> timedelta | None:
        """Return how long after it moved money may be missing from the list; None when this account has no list."""
        ...

    async def movements(self, account: Account, query: MovementQuery) -> MovementPage | Unknown:
        """List a page of what moved in a time: charges, refunds, and those that failed after all; holds are left out.

        Each call ends within the deadline, so a page is of a size that the provider answers well within it.
        """
        ...


@dataclass(frozen=True, slots=True)
class ProcessorSetup:
    """What a processor is made with, inside the running event loop."""

    api_base: str | None
    """Where its API is, when not at its own default address."""
    timeout_s: float
    """The total deadline of one call."""
    public_url: str
    """Loop's own address, for pages that the sandbox serves itself."""
    challenge_secret: bytes = field(repr=False)
    """Signs what the sandbox's own pages hand back."""


class ProcessorFactory(Protocol):
    """What the entry-point group `loop.processors` names: a class made with a `ProcessorSetup`."""

    def __call__(self, setup: ProcessorSetup) -> Processor:
        """Make the processor; no I/O yet."""
        ...
