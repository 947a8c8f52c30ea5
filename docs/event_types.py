"""Event types: the page that lists what merchants are told, each with an example of its body."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from loop.domain.events import NO_ORDER, EventSubject, EventType, body_of

_AT: Final = datetime(2030, 1, 31, 9, 30, tzinfo=UTC)
_ORDER: Final = EventSubject(
    "ord_01m8ct4qmm6snkysgtvdz2n7qa", "order-1001", 4999, "USD", "captured", "stripe", seq=7, is_test=False
)
_OF_ORDER: Final[Mapping[str, object]] = {
    "customerId": None,
    "metadata": {"cart": "c-17"},
    "processorOrderId": "pi_3QExample",
    "amountAuthorized": 4999,
    "amountCaptured": 4999,
    "amountRefunded": 0,
    "amountDisputed": 0,
    "errorCode": None,
    "errorMessage": None,
}
"""What the payload of every event about an order has."""

_ATTEMPT: Final = {"attempt": 1, "declineCategory": None}
_REFUND: Final = {
    "refundId": "ref_01m8ct4t3w24f7ynwkrwvgzxf2",
    "refundAmount": 1000,
    "reason": "damaged",
    "isSecondPayment": False,
}
_DISPUTE: Final = {
    "disputeId": "dsp_01m8ct4sv1n7k3ndg4qp7zfe0q",
    "disputeStatus": "opened",
    "amount": 4999,
    "currency": "USD",
    "reason": "fraudulent",
    "dueBy": "2030-02-07T00:00:00.000Z",
    "processorDisputeId": "dp_1QExample",
}
_PAGE: Final = {"checkoutSessionId": "cs_01m8ct4sm0edda7580yq5shj62"}
_ENDPOINT: Final = {"endpointId": "ep_01m8ct4sv09a1kw7458ekbcnv5", "url": "https://shop.example/webhooks"}

TYPES: Final[Mapping[EventType, tuple[str, str, Mapping[str, object]]]] = {
    EventType.ORDER_CREATED: ("An order was created.", "pending", {}),
    EventType.PAYMENT_PROCESSING: ("An attempt to pay began, or its outcome is awaited.", "processing", _ATTEMPT),
    EventType.PAYMENT_REQUIRES_ACTION: ("The customer must do something first.", "requires_action", _ATTEMPT),
    EventType.PAYMENT_AUTHORIZED: ("The money is set aside, and can be captured.", "authorized", _ATTEMPT),
    EventType.PAYMENT_CAPTURED: ("The money is taken: deliver.", "captured", _ATTEMPT),
    EventType.PAYMENT_FAILED: ("The payment failed; `errorCode` says why.", "failed", _ATTEMPT),
    EventType.PAYMENT_CANCELLED: ("The order was cancelled.", "cancelled", {"reason": "out of stock"}),
    EventType.PAYMENT_LATE_SUCCESS: ("Money arrived after the order had been given up.", "captured", _ATTEMPT),
    EventType.REFUND_CREATED: ("A refund was asked for.", "captured", _REFUND),
    EventType.REFUND_PROCESSED: ("The refund went through.", "partially_refunded", _REFUND),
    EventType.REFUND_FAILED: ("The refund failed; the money is still the merchant's.", "captured", _REFUND),
    EventType.DISPUTE_OPENED: ("The customer's bank asks about a payment, or takes it back.", "captured", _DISPUTE),
    EventType.DISPUTE_WON: ("The merchant keeps the money.", "captured", {**_DISPUTE, "disputeStatus": "won"}),
    EventType.DISPUTE_LOST: ("The customer keeps the money.", "captured", {**_DISPUTE, "disputeStatus": "lost"}),
    EventType.CHECKOUT_COMPLETED: ("A checkout session's order is paid, or its money held.", "captured", _PAGE),
    EventType.CHECKOUT_EXPIRED: ("A checkout session's time is up, or it was closed.", "pending", _PAGE),
    EventType.ENDPOINT_DISABLED: ("An endpoint failed for too long.", "", {**_ENDPOINT, "reason": "gone"}),
    EventType.ENDPOINT_TESTED: ("Sent on request, to one endpoint only.", "", _ENDPOINT),
    EventType.RECONCILIATION_MISMATCH: (
        "A day's payments differ from the processor's list.",
        "",
        {
            "runId": "rec_01m8ct4qt6yxtyvq3g4wd9e530",
            "processor": "stripe",
            "day": "2030-01-30",
            "missingHere": 0,
            "missingThere": 1,
            "amountDiffers": 0,
            "findings": [],
        },
    ),
}
"""What each type means, the order's status in its example (empty: it is about no order), and what its payload adds."""


def example(event_type: EventType) -> dict[str, object]:
    """Return the body of an event of a type."""
    _, status, added = TYPES[event_type]
    subject = replace(_ORDER, status=status) if status else NO_ORDER
    payload = {**(_OF_ORDER if status else {}), **added}
    return body_of("evt_01m8ct4t3w24f7ynwkrwvgzxf2", event_type, subject=subject, created_at=_AT, payload=payload)


def markdown() -> str:
    """Return the page."""
    lines = [
        "# Events",
        "",
        "<!-- Made by docs/generate.py. -->",
        "",
        "What Loop tells merchants' endpoints, and what `GET /v1/events` lists; how to verify and answer it is in the",
        "[guide to webhooks](../guides/webhooks.md). Amounts are in minor units; what is about no order has null in",
        "the order's fields. Of two events of one order the one with the higher `seq` is newer.",
        "",
        "| Type | Meaning |",
        "|---|---|",
        *(f"| [`{each}`](#{each.replace('.', '')}) | {TYPES[each][0]} |" for each in EventType),
        "",
    ]
    for each in EventType:
        body = json.dumps(example(each), indent=2)
        lines += [f"## {each}", "", TYPES[each][0], "", "```json", body, "```", ""]
    return "\n".join(lines)
