"""Stories: one order's timeline as steps that a person reads, each with what it means and what can be done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal, cast

from loop.domain.attempts import AttemptStatus
from loop.domain.declines import DeclineClass, unified
from loop.domain.orders import Order
from loop.server.dashboard import words
from loop.server.dashboard.amounts import digits
from loop.server.dashboard.words import NO_WORD, Word
from loop.workflows.timeline import Entry

Kind = Literal["attempt", "transaction", "refund", "dispute", "event"]

_FAILED: Final = (AttemptStatus.FAILED, AttemptStatus.CANCELLED)


@dataclass(frozen=True, slots=True)
class Sent:
    """Where the delivery of a step's event to one endpoint stands."""

    endpoint_id: str
    address: str
    word: Word
    outcome: str


@dataclass(frozen=True, slots=True)
class Step:
    """One step: what happened, in which state it is, and why.

    `reasons` is how routing chose, `decline` why the bank refused and what follows from that, `facts` are labelled
    ids and texts, `event_id` names what was told to the merchant's endpoints and `sent` how that went.
    """

    at: datetime
    kind: Kind
    title: str
    word: Word
    amount: tuple[int, str] | None = None
    lead: str | None = None
    reasons: tuple[str, ...] = ()
    decline: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    due_by: str | None = None
    event_type: str | None = None
    event_id: str | None = None
    sent: tuple[Sent, ...] = ()


def story_of(order: Order, entries: Sequence[Entry], *, addresses: Mapping[str, str]) -> list[Step]:
    """Return an order's timeline as steps, oldest first; `addresses` are the endpoints' by id.

    What was sent to an endpoint stands with the event that it told of.
    """
    sent: dict[str, list[Sent]] = {}
    for entry in entries:
        if entry.kind == "delivery":
            sent.setdefault(_text(entry, "eventId"), []).append(_sent(entry, addresses))
    steps: list[Step] = []
    failed: Entry | None = None
    for entry in entries:
        if entry.kind == "delivery" or (failed is not None and _is_failed_charge(entry)):
            continue  # a decline is told by its attempt
        step = _step(order, entry)
        if entry.kind == "attempt":
            step = replace(step, lead=_lead(entry, failed))
            failed = entry if entry.details["status"] in _FAILED else None
        if step.event_id is not None:
            step = replace(step, sent=tuple(sent.get(step.event_id, ())))
        steps.append(step)
    return steps


def _is_failed_charge(entry: Entry) -> bool:
    return entry.kind == "transaction" and entry.details["status"] == "failed" and entry.details["type"] != "refund"


def _step(order: Order, entry: Entry) -> Step:
    match entry.kind:
        case "attempt":
            return _attempt(order, entry)
        case "transaction":
            return _transaction(order, entry)
        case "refund":
            return _refund(order, entry)
        case "dispute":
            return _dispute(entry)
        case _:
            return _event(entry)


def _attempt(order: Order, entry: Entry) -> Step:
    return Step(
        at=entry.at,
        kind="attempt",
        title=f"Attempt {_text(entry, 'number')} at {_text(entry, 'processor')}",
        word=words.ATTEMPTS.get(_text(entry, "status"), NO_WORD),
        amount=(order.amount_minor, order.currency),
        reasons=tuple(str(each) for each in cast("Sequence[object]", entry.details["routing"])),
        decline=_decline(entry),
        facts=_facts(entry, {"Processor's id": "processorReference", "Attempt": "attemptId"}),
    )


def _decline(entry: Entry) -> tuple[str, ...]:
    """Return a decline in words: what it is, what the processor said, and what can be made of it."""
    code = entry.details.get("errorCode")
    if code is None:
        return ()
    said = entry.details.get("errorMessage")
    category = entry.details.get("declineCategory") or unified(str(code)).decline_class
    advice = words.ADVICE.get(DeclineClass(str(category)), "")
    return tuple(each for each in (words.in_words(str(code)), None if said is None else str(said), advice) if each)


def _lead(entry: Entry, failed: Entry | None) -> str | None:
    if failed is None:
        return None
    before, after = _text(failed, "processor"), _text(entry, "processor")
    if before == after:
        return f"Tried again at {after}."
    return f"Failover: {before} took no money, so {after} was asked next."


def _transaction(order: Order, entry: Entry) -> Step:
    kind, status = _text(entry, "type"), _text(entry, "status")
    word = words.TRANSACTIONS.get((kind, status), NO_WORD)
    return Step(
        at=entry.at,
        kind="transaction",
        title=word.label,
        word=word,
        amount=(int(_text(entry, "amount")), order.currency),
        facts=_facts(entry, {"Processor's id": "processorTransactionId", "Transaction": "transactionId"}),
    )


def _refund(order: Order, entry: Entry) -> Step:
    return Step(
        at=entry.at,
        kind="refund",
        title="Refund",
        word=words.REFUNDS.get(_text(entry, "status"), NO_WORD),
        amount=(int(_text(entry, "amount")), order.currency),
        facts=_facts(entry, {"Reason": "reason", "Refund": "refundId"}),
    )


def _dispute(entry: Entry) -> Step:
    amount, currency = int(_text(entry, "amount")), _text(entry, "currency")
    return Step(
        at=entry.at,
        kind="dispute",
        title="Dispute",
        word=words.DISPUTES.get(_text(entry, "status"), NO_WORD),
        amount=(amount, currency),
        lead=f"The customer's bank takes back {digits(amount, currency)} {currency}, or asks about it.",
        due_by=cast("str | None", entry.details.get("dueBy")),
        facts=_facts(entry, {"Reason": "reason", "Processor's id": "processorDisputeId", "Dispute": "disputeId"}),
    )


def _event(entry: Entry) -> Step:
    title = words.EVENTS.get(entry.title, entry.title)
    return Step(
        at=entry.at,
        kind="event",
        title=title,
        word=NO_WORD,
        event_type=entry.title,
        event_id=_text(entry, "eventId"),
    )


def _sent(entry: Entry, addresses: Mapping[str, str]) -> Sent:
    endpoint_id = _text(entry, "endpointId")
    tries, code, error = (entry.details.get(name) for name in ("attempts", "statusCode", "error"))
    outcome = f"HTTP {code}" if code is not None else str(error or "")
    return Sent(
        endpoint_id=endpoint_id,
        address=addresses.get(endpoint_id, "an endpoint that was removed"),
        word=words.DELIVERIES.get(_text(entry, "status"), NO_WORD),
        outcome=", ".join(each for each in (outcome, f"{tries} {'try' if tries == 1 else 'tries'}") if each),
    )


def _facts(entry: Entry, names: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((label, _text(entry, name)) for label, name in names.items() if entry.details.get(name) is not None)


def _text(entry: Entry, name: str) -> str:
    return str(entry.details[name])
