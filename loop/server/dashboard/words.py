"""Words: what the pages call statuses, events and declines, and the tone in which each is shown."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from loop.domain.attempts import AttemptStatus
from loop.domain.audit import ActorKind
from loop.domain.declines import DeclineClass
from loop.domain.disputes import DisputeStatus
from loop.domain.events import EventType
from loop.domain.orders import OrderStatus
from loop.domain.reconciliation import FindingKind
from loop.domain.refunds import RefundStatus
from loop.domain.scopes import Scope

Tone = Literal["good", "held", "open", "bad", "quiet", "back"]
"""How a status is coloured: money came, is held, is under way, was refused, nothing happened, went back."""


@dataclass(frozen=True, slots=True)
class Word:
    """What a status is called, and its tone."""

    label: str
    tone: Tone


ORDERS: Final[Mapping[str, Word]] = {
    OrderStatus.PENDING: Word("Not paid yet", "quiet"),
    OrderStatus.PROCESSING: Word("Processing", "open"),
    OrderStatus.REQUIRES_ACTION: Word("Waits for customer", "open"),
    OrderStatus.AUTHORIZED: Word("Authorized", "held"),
    OrderStatus.CAPTURED: Word("Captured", "good"),
    OrderStatus.FAILED: Word("Failed", "bad"),
    OrderStatus.CANCELLED: Word("Cancelled", "quiet"),
    OrderStatus.REFUNDED: Word("Refunded", "back"),
    OrderStatus.PARTIALLY_REFUNDED: Word("Partly refunded", "back"),
}
ATTEMPTS: Final[Mapping[str, Word]] = {
    AttemptStatus.SUBMITTING: Word("Being sent", "open"),
    AttemptStatus.UNKNOWN: Word("No clear answer yet", "open"),
    AttemptStatus.REQUIRES_ACTION: Word("Waits for customer", "open"),
    AttemptStatus.PENDING: Word("Pending", "open"),
    AttemptStatus.FAILED: Word("Declined", "bad"),
    AttemptStatus.CANCELLED: Word("Cancelled", "quiet"),
    AttemptStatus.AUTHORIZED: Word("Authorized", "held"),
    AttemptStatus.CAPTURED: Word("Captured", "good"),
    AttemptStatus.VOIDED: Word("Released", "quiet"),
}
REFUNDS: Final[Mapping[str, Word]] = {
    RefundStatus.SUBMITTING: Word("Being sent", "open"),
    RefundStatus.UNKNOWN: Word("No clear answer yet", "open"),
    RefundStatus.PENDING: Word("Pending", "open"),
    RefundStatus.SUCCEEDED: Word("Refunded", "good"),
    RefundStatus.FAILED: Word("Failed", "bad"),
}
DISPUTES: Final[Mapping[str, Word]] = {
    DisputeStatus.INQUIRY: Word("Inquiry", "open"),
    DisputeStatus.OPENED: Word("Needs an answer", "bad"),
    DisputeStatus.WON: Word("Won", "good"),
    DisputeStatus.LOST: Word("Lost", "back"),
    DisputeStatus.CLOSED: Word("Closed", "quiet"),
}
CHECKOUTS: Final[Mapping[str, Word]] = {
    "open": Word("Open", "open"),
    "completed": Word("Paid", "good"),
    "expired": Word("Closed", "quiet"),
}
RUNS: Final[Mapping[str, Word]] = {
    "matched": Word("Matches", "good"),
    "awaiting": Word("Waits for list", "open"),
    "mismatch": Word("Differs", "bad"),
}
DELIVERIES: Final[Mapping[str, Word]] = {
    "pending": Word("On its way", "open"),
    "delivered": Word("Delivered", "good"),
    "failed": Word("Not delivered", "bad"),
}
ENDPOINTS: Final[Mapping[str, Word]] = {
    "listening": Word("Takes events", "good"),
    "failing": Word("Latest try failed", "open"),
    "paused": Word("Paused: tries fail", "bad"),
    "given_up": Word("Given up", "bad"),
    "off": Word("Off", "quiet"),
}
ACCOUNTS: Final[Mapping[str, Word]] = {
    "taking": Word("Takes payments", "good"),
    "probed": Word("Is tried again", "open"),
    "resting": Word("Rests: calls fail", "bad"),
    "unreadable": Word("Set up anew", "bad"),
    "off": Word("Off", "quiet"),
}
KEYS: Final[Mapping[str, Word]] = {
    "good": Word("Good", "good"),
    "ending": Word("Ends soon", "open"),
    "expired": Word("Expired", "quiet"),
}
SCOPES: Final[Mapping[str, str]] = {
    Scope.ORDERS_READ: "Read orders, payments, refunds, events and figures",
    Scope.ORDERS_WRITE: "Create orders",
    Scope.PAYMENTS_WRITE: "Pay, capture and cancel, and make checkout pages",
    Scope.REFUNDS_WRITE: "Refund",
    Scope.WEBHOOKS_MANAGE: "Manage webhooks and their secrets",
    Scope.PROCESSORS_MANAGE: "Manage processor accounts",
    Scope.ROUTING_MANAGE: "Manage routing rules",
    Scope.ACCOUNT_MANAGE: "Change the profile, and list API keys",
    Scope.AUDIT_READ: "Read the audit log",
}
"""Scope -> what a key with it may do."""

PROCESSORS: Final[Mapping[str, str]] = {"razorpay": "Razorpay", "sandbox": "Sandbox", "stripe": "Stripe"}
"""How processors are written; one that is not here is a plug-in's, and is called by its own name."""

TRANSACTIONS: Final[Mapping[tuple[str, str], Word]] = {
    ("authorization", "success"): Word("Money held", "held"),
    ("capture", "success"): Word("Money captured", "good"),
    ("refund", "success"): Word("Money refunded", "back"),
    ("void", "success"): Word("Hold released", "quiet"),
    ("authorization", "failed"): Word("Nothing was held", "bad"),
    ("capture", "failed"): Word("Nothing was charged", "bad"),
    ("refund", "failed"): Word("Refund failed", "bad"),
    ("void", "failed"): Word("Hold was not released", "bad"),
}
EVENTS: Final[Mapping[str, str]] = {
    EventType.ORDER_CREATED: "Order created",
    EventType.PAYMENT_PROCESSING: "Payment is processing",
    EventType.PAYMENT_REQUIRES_ACTION: "Customer is asked to confirm (3-D Secure)",
    EventType.PAYMENT_AUTHORIZED: "Payment authorized",
    EventType.PAYMENT_CAPTURED: "Payment captured",
    EventType.PAYMENT_FAILED: "Payment failed",
    EventType.PAYMENT_CANCELLED: "Payment cancelled",
    EventType.PAYMENT_LATE_SUCCESS: "Money arrived late",
    EventType.REFUND_CREATED: "Refund created",
    EventType.REFUND_PROCESSED: "Refund went through",
    EventType.REFUND_FAILED: "Refund failed",
    EventType.DISPUTE_OPENED: "Dispute opened",
    EventType.DISPUTE_WON: "Dispute won",
    EventType.DISPUTE_LOST: "Dispute lost",
    EventType.CHECKOUT_COMPLETED: "Checkout completed",
    EventType.CHECKOUT_EXPIRED: "Checkout expired",
    EventType.ENDPOINT_DISABLED: "Webhook endpoint given up",
    EventType.ENDPOINT_TESTED: "Test of an endpoint",
    EventType.RECONCILIATION_MISMATCH: "Books differ from the processor's",
}
FINDINGS: Final[Mapping[str, str]] = {
    FindingKind.MISSING_HERE: "The processor lists it, Loop does not",
    FindingKind.MISSING_THERE: "Loop has it, the processor does not list it",
    FindingKind.AMOUNT_DIFFERS: "The amounts differ",
}
ADVICE: Final[Mapping[str, str]] = {
    DeclineClass.HARD: "This card must not be tried again, anywhere.",
    DeclineClass.CUSTOMER: "The customer can mend this, or pay in another way.",
    DeclineClass.LATER: "The same card may work another day.",
    DeclineClass.CASCADE: "Another processor may accept it.",
    DeclineClass.STEP_UP: "The bank wants the customer to confirm the payment.",
    DeclineClass.CONFIG: "The processor account is not set up for this payment.",
    DeclineClass.TECH: "The processor or the bank stumbled before deciding.",
    DeclineClass.AMBIGUOUS: "What became of it has to be asked first.",
}
"""Decline class -> what the merchant can make of it."""

ACTORS: Final[Mapping[str, str]] = {
    ActorKind.USER: "Signed-in person",
    ActorKind.API_KEY: "API key",
    ActorKind.OPERATOR: "Operator",
    ActorKind.SYSTEM: "Loop itself",
    ActorKind.ANONYMOUS: "Not signed in",
}

_BROWSERS: Final[Mapping[str, str]] = {
    "Edg/": "Edge",
    "OPR/": "Opera",
    "Firefox/": "Firefox",
    "Chrome/": "Chrome",
    "Safari/": "Safari",
}
"""What a user agent holds -> the browser; those that also call themselves others come first."""

_SYSTEMS: Final[Mapping[str, str]] = {
    "Windows": "Windows",
    "iPhone": "iOS",
    "iPad": "iOS",
    "Android": "Android",
    "Mac OS X": "macOS",
    "Linux": "Linux",
}

NO_WORD: Final = Word("Unknown", "quiet")


def in_words(code: str) -> str:
    """Return a code such as `insufficient_funds` as text: `Insufficient funds`."""
    return code.replace("_", " ").capitalize()


def action_in_words(action: str) -> str:
    """Return what the audit log calls an action as text: `routing_rule.changed` is `Routing rule changed`."""
    return in_words(action.replace(".", " ")).replace("Api key", "API key")


def program_in_words(user_agent: str | None) -> str:
    """Return which browser calls itself so, and on what; any other program by its own words."""
    text = user_agent or ""
    browser = next((name for mark, name in _BROWSERS.items() if mark in text), None)
    system = next((name for mark, name in _SYSTEMS.items() if mark in text), None)
    if browser is None:
        return text or "An unnamed program"
    return browser if system is None else f"{browser} on {system}"


def plain_text(value: object) -> str:
    """Return a value of JSON as a line of text; nothing for an empty one."""
    if isinstance(value, Mapping):
        return "; ".join(f"{in_words(str(name)).lower()}: {plain_text(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(plain_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)
