"""Processors that outlive Loop: the sandbox three times, at the other end of a network with weather of its own."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, Protocol, TypeVar

from loop.domain.attempts import Approved, Declined, NotSent, Outcome, Pending, Unknown
from loop.domain.declines import DECLINES, DeclineClass
from loop.domain.disputes import DisputeOutcome
from loop.domain.failover import DeclineFinality
from loop.domain.money import Money
from loop.domain.refunds import RefundOutcome, RefundStatus
from loop.processors.base import (
    Account,
    AuthorizeRequest,
    DisputeReference,
    IdempotencyKey,
    PaymentReference,
    Processor,
    ProcessorSetup,
    RefundReference,
    RefundRequest,
    WebhookEvent,
)
from loop.processors.http import require_no_transaction, within_deadline
from loop.processors.registry import Registry
from loop.processors.sandbox import LedgerEntry, SandboxProcessor, _Payment
from loop.processors.sandbox_disputes import TOKENS as DISPUTES

T = TypeVar("T")

MERCHANT: Final = "mer_1"
WEBHOOK_SECRET: Final = "whsec_of_the_processor"
FINALITIES: Final[Mapping[str, DeclineFinality]] = {
    "sandbox": DeclineFinality.FINAL,
    "second": DeclineFinality.UNTIL_CANCELLED,
    "third": DeclineFinality.OPEN,
}
"""The merchant's processors, the first one first, and how much a decline of each of them is worth."""

TOKENS: Final = (
    *["tok_approve"] * 16, *["tok_3ds"] * 4, *["tok_pending"] * 2, *["tok_timeout_then_charged"] * 2,
    *["tok_timeout_then_nothing"] * 2, *["tok_refund_pending", "tok_refund_fails_later"] * 2, "tok_webhook_duplicate",
    "tok_webhook_out_of_order", *DISPUTES, *DISPUTES, "tok_of_nobody",
    *{each.decline_class: f"tok_decline_{code}" for code, each in reversed(DECLINES.items())}.values(),
)  # fmt: skip
"""What a payment's token may be: all that the sandbox does, with one decline of each class; the weather is slow."""

ELSEWHERE: Final = ("tok_decline_declined", "tok_decline_processor_error", "tok_decline_configuration")
"""Tokens of which one processor says no, and the next one may say yes."""


class Fate(StrEnum):
    """What becomes of a call to a processor."""

    ANSWERED = "answered"
    UNREACHABLE = "unreachable"
    """The connection never opened."""
    REFUSED = "refused"
    """The processor says no to the request, and does nothing."""
    LOST = "lost"
    """The request never arrives, and nobody can know."""
    ANSWER_LOST = "answer lost"
    RAISED = "raised"
    """It is done, and the adapter stumbles over the answer."""


@dataclass(frozen=True, slots=True)
class Weather:
    """How one call goes; seconds from Loop to the processor, and back."""

    fate: Fate = Fate.ANSWERED
    there_s: float = 0.0
    back_s: float = 0.0


FINE: Final = Weather()


class Network(Protocol):
    """What lies between Loop and the processors."""

    def weather_of(self, operation: str) -> Weather:
        """Return how the next call of an operation goes."""
        ...

    def post(self, in_s: float, arrive: Callable[[], None]) -> None:
        """Send something on its way, which it goes to the end of."""
        ...

    def reached(self, point: str) -> None:
        """Take notice of a point."""
        ...


def _at_once(call: Coroutine[Any, Any, T]) -> T:
    """Return what the sandbox answers: it never waits but for `tok_slow`, whose place the weather takes."""
    try:
        call.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    call.close()
    raise AssertionError("the sandbox waited")


class Bank(SandboxProcessor):
    """The sandbox as a processor far away: its books outlive Loop, and calls take time, or go wrong.

    What was sent arrives even if who sent it has died since, or has given up.
    """

    def __init__(self, name: str, network: "Network") -> None:
        super().__init__(ProcessorSetup(None, 20, "http://loop.test", b"signs what customers chose"))
        self.name = name
        self.capabilities = replace(type(self).capabilities, decline_finality=FINALITIES[name])
        self._network = network
        self.late: set[str] = set()
        """Attempts that were declined and then paid after all."""

    async def close(self) -> None:
        """Stay: only Loop ends."""

    def payments(self) -> list[tuple[str, _Payment]]:
        """Return all payments with their references, oldest first."""
        return [each for books in self._books.values() for each in books.payments.items()]

    def payment_of(self, attempt_id: str) -> _Payment | None:
        """Return what an attempt has become here, None when it was never heard of."""
        return next((known for _, known in self.payments() if known.request.attempt_id == attempt_id), None)

    def pay_late(self, reference: str) -> None:
        """Pay a declined payment after all, as a customer can who still has its page open."""
        known = dict(self.payments())[reference]
        request = known.request
        known.outcome = Approved(reference, not request.is_manual_capture, request.amount.amount_minor)
        kind = "authorization" if request.is_manual_capture else "charge"
        books = next(books for books in self._books.values() if reference in books.payments)
        books.enter(LedgerEntry(kind, f"{reference}.late", request.attempt_id, request.amount))  # type: ignore[arg-type]
        self.late.add(request.attempt_id)

    def decide(self, reference: str, result: str) -> None:
        """Have a customer choose on the page, without coming back to Loop."""
        known = dict(self.payments())[reference]
        account = next(config_id for config_id, books in self._books.items() if reference in books.payments)
        _at_once(
            super().complete_action(
                Account(account, MERCHANT, is_test_mode=True, credentials={}),
                PaymentReference(reference, known.request),
                parameters=self.signed(reference, result),
            )
        )

    def signed(self, reference: str, result: str) -> dict[str, str]:
        """Return the parameters that a customer brings back from the page."""
        if result not in ("approved", "declined", "failed"):
            return {}
        return {
            "sandbox_result": result,
            "sandbox_signature": self.sign_result(reference, result),  # type: ignore[arg-type] # one of the three
        }

    def parse_webhook(
        self, body: bytes, headers: Mapping[str, str], *, secrets: Sequence[str], now: Any
    ) -> WebhookEvent:
        event = super().parse_webhook(body, headers, secrets=secrets, now=now)
        return replace(event, refund_reference=json.loads(body).get("refund"))

    async def authorize(self, account: Account, request: AuthorizeRequest, *, key: IdempotencyKey) -> Outcome:
        no = NotSent("configuration", "The account is not set up for it.")
        return await self._payment_call("authorize", lambda: self._authorize(account, request, key=key), no)

    async def complete_action(
        self, account: Account, payment: PaymentReference, *, parameters: Mapping[str, str]
    ) -> Outcome:
        call = super().complete_action
        unclear = Unknown("not now")
        return await self._payment_call("fetch", lambda: call(account, payment, parameters=parameters), unclear)

    async def capture(
        self, account: Account, payment: PaymentReference, *, amount: Money, key: IdempotencyKey
    ) -> Outcome:
        call = super().capture
        return await self._payment_call(
            "capture", lambda: call(account, payment, amount=amount, key=key), _CAPTURE_FAILED
        )

    async def void(self, account: Account, payment: PaymentReference, *, key: IdempotencyKey) -> Outcome:
        call = super().void
        no = NotSent("invalid_request", "It cannot be cancelled now.")
        return await self._payment_call("void", lambda: call(account, payment, key=key), no)

    async def fetch(self, account: Account, payment: PaymentReference) -> Outcome:
        call = super().fetch
        return await self._payment_call("fetch", lambda: call(account, payment), Unknown("not now"))

    async def refund(self, account: Account, request: RefundRequest, *, key: IdempotencyKey) -> RefundOutcome:
        call = super().refund
        weather = self._network.weather_of("refund")
        if weather.fate is Fate.REFUSED:
            return await self._refund_call(
                replace(weather, fate=Fate.ANSWERED), lambda: self._refuse(account, request, key)
            )
        return await self._refund_call(weather, lambda: call(account, request, key=key))

    async def fetch_refund(self, account: Account, refund: RefundReference) -> RefundOutcome:
        call = super().fetch_refund
        return await self._refund_call(self._network.weather_of("fetch_refund"), lambda: call(account, refund))

    async def fetch_dispute(self, account: Account, dispute: DisputeReference) -> DisputeOutcome | Unknown:
        call = super().fetch_dispute
        weather = self._network.weather_of("fetch")
        if weather.fate in (Fate.UNREACHABLE, Fate.REFUSED):
            return Unknown("not now")
        return await within_deadline(self._setup.timeout_s, self._sent(weather, lambda: call(account, dispute)))

    async def _refuse(self, account: Account, request: RefundRequest, key: IdempotencyKey) -> RefundOutcome:
        books = self._books_of(account)
        if (answer := books.refund_answers.get(key)) is not None:
            return answer
        no = RefundOutcome(RefundStatus.FAILED, None, "refund_refused", "The account has no money.")
        books.refund_answers[key] = books.payments[str(request.payment.reference)].refunds[request.refund_id] = no
        return no

    async def _payment_call(
        self, operation: str, effect: Callable[[], Coroutine[Any, Any, Outcome]], refusal: Outcome
    ) -> Outcome:
        weather = self._network.weather_of(operation)
        if weather.fate is Fate.UNREACHABLE:  # a question that nobody hears says nothing of the payment
            return Unknown("nobody was there") if operation == "fetch" else _UNREACHABLE
        if weather.fate is Fate.REFUSED:
            return refusal
        return await within_deadline(self._setup.timeout_s, self._sent(weather, effect))

    async def _refund_call(
        self, weather: Weather, effect: Callable[[], Coroutine[Any, Any, RefundOutcome]]
    ) -> RefundOutcome:
        if weather.fate is Fate.UNREACHABLE:  # the protocol has no word for it
            return RefundOutcome(RefundStatus.UNKNOWN)
        outcome = await within_deadline(self._setup.timeout_s, self._sent(weather, effect))
        return RefundOutcome(RefundStatus.UNKNOWN) if isinstance(outcome, Unknown) else outcome

    async def _sent(self, weather: Weather, effect: Callable[[], Coroutine[Any, Any, T]]) -> T | Unknown:
        require_no_transaction()
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        if weather.fate is not Fate.LOST:
            self._network.post(weather.there_s, lambda: self._arrive(weather, effect, answer))
        self._network.reached("call.sent")
        result = await answer
        if weather.fate is Fate.ANSWER_LOST:
            return Unknown("the connection broke")
        if weather.fate is Fate.RAISED:
            raise RuntimeError("an answer that nobody understands")
        return result

    def _arrive(
        self, weather: Weather, effect: Callable[[], Coroutine[Any, Any, T]], answer: "asyncio.Future[T]"
    ) -> None:
        result = _at_once(effect())
        loop = answer.get_loop()
        if not loop.is_closed():  # else the process that asked is dead
            loop.call_later(weather.back_s, _hand_over, answer, result)


def _hand_over(answer: "asyncio.Future[T]", result: T) -> None:
    if not answer.done():  # else nobody waits any more
        answer.set_result(result)


_UNREACHABLE: Final = NotSent("processor_unreachable", "Nobody was there.")
_CAPTURE_FAILED: Final = Declined("capture_failed", DeclineClass.TECH, "The money could not be taken.")


def hold_or_charge(known: _Payment) -> int:
    """Return how much of a payment is the merchant's, or held for them, in minor units; what is pending counts."""
    if isinstance(known.outcome, Pending):
        return known.request.amount.amount_minor
    return known.outcome.amount_minor - known.refunded_minor if isinstance(known.outcome, Approved) else 0


def captured(known: _Payment | None) -> int:
    """Return how much of a payment was taken, in minor units."""
    is_taken = known is not None and isinstance(known.outcome, Approved) and known.outcome.is_captured
    return known.outcome.amount_minor if is_taken else 0  # type: ignore[union-attr]


class BankRegistry(Registry):
    """The world's processors, in the place of those that are installed."""

    def __init__(self, banks: Mapping[str, Bank]) -> None:
        super().__init__(lambda _: banks["sandbox"]._setup)
        self._banks = banks

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._banks))

    def get(self, name: str) -> Processor:
        return self._banks[name]

    async def close(self) -> None:
        """Leave them open."""
