"""Fault tables: which fault hit where, how often, and by hand, which can hit where at all."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from loop.testing.stub_faults import Fault
from tests.e2e.standings import STATES

CALL_S = 2
"""How long a Loop under test waits for a processor, in seconds."""

FAULTS: Mapping[str, Fault] = {
    "slow": Fault(kind="slow", delay_s=0.2),
    "too slow": Fault(kind="slow", delay_s=CALL_S + 0.5),
    "lost before": Fault(kind="drop_before"),
    "lost after": Fault(kind="drop_after"),
    "cut": Fault(kind="cut_body"),
    "409": Fault(kind="status", status=409),
    "429": Fault(kind="status", status=429),
    "500": Fault(kind="status", status=500),
    "502 page": Fault(kind="status", status=502, html=True),
    "503 page": Fault(kind="status", status=503, html=True),
    "kept 500": Fault(kind="status", status=500, stored=True),
    "kept 500, done": Fault(kind="status", status=500, stored=True, executes=True),
}
"""What a processor, or the network before it, does to one request."""

HELD = "held"
"""Keeps a request from the processor until Loop, which sent it, has been killed."""

UNDONE = "kept 500"
KEPT = (UNDONE, "kept 500, done")
"""Answers that a processor gives for ever to one idempotency key; requests without a key cannot have them."""

NEVER_CLEAR = ("stripe POST payment_intents", "stripe POST refunds", "razorpay POST payments/*/refund")
"""What was never done, and is answered with an error for ever, is never heard of again: a person must look at it."""

ANY_CALL = tuple(name for name in FAULTS if name not in KEPT)
ARRIVALS = ("twice", "late", "out of order")
"""What can be wrong with a processor's webhook as it comes in."""

REFUSALS = ("refused", "dropped", "hung")
"""What a merchant's server does with a webhook that it does not take."""

KILL = "killed"

_ASKED = "an event about it came in, its customer came back, or it is asked about by itself"
_PARKED = ("authorized", "captured", "partially_refunded", "refunded", "cancelled")
_KEYED: Mapping[str, str] = {
    "stripe POST payment_intents @ submitting": "the first call",
    "stripe POST payment_intents @ unknown": "the same call again, since the first was not answered",
    "stripe POST payment_intents/*/capture @ authorized": "only held money can be taken",
    "stripe POST payment_intents/*/cancel @ authorized": "held money is released",
    "stripe POST payment_intents/*/cancel @ requires_action": "a payment that nobody finishes is ended",
    "stripe POST payment_intents/*/cancel @ failed": "what was declined is ended before another processor is asked",
    "stripe POST refunds @ captured": "the first refund",
    "stripe POST refunds @ partially_refunded": "a further one",
    "razorpay POST payments/*/refund @ captured": "the first refund",
    "razorpay POST payments/*/refund @ partially_refunded": "a further one",
}
_UNKEYED: Mapping[str, str] = {
    "stripe GET payment_intents @ submitting": "the event overtook the answer, so the id is not known yet",
    "stripe GET payment_intents @ unknown": "the id was in the answer that was lost, and the key brings no other",
    **{
        f"stripe GET payment_intents/* @ {state}": _ASKED for state in (*_PARKED, "requires_action", "failed", "voided")
    },
    "stripe GET refunds @ captured": "the answer to the first refund was lost, and the key brings no other",
    "stripe GET refunds @ partially_refunded": "so with a further one",
    **{
        f"stripe GET refunds/* @ {state}": "a refund that the bank has not settled, or has settled otherwise"
        for state in ("captured", "partially_refunded", "refunded")
    },
    **{
        f"{processor} GET disputes/* @ {state}": "the customer's bank takes the money back, whole or what is left of it"
        for processor in ("stripe", "razorpay")
        for state in ("captured", "partially_refunded")
    },
    "razorpay POST orders @ submitting": "the first call; the receipt does the work of a key",
    "razorpay POST orders @ unknown": "the same call again",
    "razorpay GET orders @ unknown": "a day later an order is looked for, and not made any more",
    "razorpay GET orders/*/payments @ unknown": "what was tried on the order that was found so",
    **{
        f"razorpay GET orders/*/payments @ {state}": _ASKED
        for state in (*_PARKED, "requires_action", "pending", "voided")
    },
    **{
        f"razorpay GET payments/* @ {state}": "the customer comes back with a signed payment, or reloads that page"
        for state in (*_PARKED, "requires_action", "pending", "voided")
    },
    "razorpay POST payments/*/capture @ authorized": "Razorpay has no keys for it",
    **{
        f"razorpay GET payments/*/refunds @ {state}": "whether the refund is there already is looked up"
        for state in ("captured", "partially_refunded")
    },
    **{
        f"razorpay GET refunds/* @ {state}": "as with Stripe"
        for state in ("captured", "partially_refunded", "refunded")
    },
}
_TOLD = ("unknown", "requires_action", "pending", "failed", "voided", *_PARKED)
_AT_WORK: Mapping[str, str] = {
    **{f"advance_payment @ {state}": "it is charged, or asked about" for state in ("submitting", "unknown", "pending")},
    "fail_over_payment @ failed": "the next processor is asked",
    "capture_payment @ authorized": "only held money can be taken",
    "void_payment @ authorized": "held money is released",
    "void_payment @ requires_action": "a payment that nobody finishes is ended",
    **{f"send_refund @ {state}": "money is given back" for state in ("captured", "partially_refunded")},
    "ask_dispute @ captured": "a dispute is asked about daily until it is decided",
    **{f"process_processor_event @ {state}": "events come at any time" for state in ("submitting", *_TOLD)},
    **{f"deliver_webhooks @ {state}": "so do deliveries, for days" for state in ("new", "submitting", *_TOLD)},
}

REACHABLE: Mapping[tuple[str, str], str] = {
    **{(fault, where): reason for where, reason in _KEYED.items() for fault in FAULTS},
    **{(fault, where): reason for where, reason in _UNKEYED.items() for fault in ANY_CALL},
    **{(fault, f"webhook @ {state}"): "it names the attempt" for state in ("submitting", *_TOLD) for fault in ARRIVALS},
    **{
        (fault, f"delivery @ {state}"): "it goes on for days, whatever happens to the order"
        for state in ("new", "submitting", *_TOLD)
        for fault in REFUSALS
    },
    **{(KILL, where): reason for where, reason in _AT_WORK.items()},
}
"""(fault, where it hits) -> how that comes about.

The lists that a day's books are compared with are left out: they are of no order. Left out, since it cannot be:
- Stripe's payments that are `pending`: the stand-in's cards are decided at once. `Razorpay's` are in its place.
- Razorpay's attempts that `failed`: they fail before there is an order at Razorpay, so nothing is asked about them.
- A payment at Stripe that is `submitting` or `unknown` and looked up by its id: whoever hears the id hears the rest.
- Webhooks about an order that is `new`: processors have not heard of it.
- Disputes of what was `refunded`: there is nothing left to take back.
- Events about a Razorpay order whose id Loop has not heard: its customer hears it from Loop.
"""


def may_be(fault: str, where: str) -> bool:
    """Tell whether a fault can hit at a place, be it in a race.

    An event, or a customer who comes back, may be recorded while a call about the same order is on its way, and
    orders only go on: so a call may find its order further on than where it began, never further back.
    """
    what, _, state = where.partition(" @ ")
    return any((fault, f"{what} @ {earlier}") in REACHABLE for earlier in STATES[: STATES.index(state) + 1])


@dataclass
class FaultTable:
    """How often each fault has hit where."""

    hits: Counter[tuple[str, str]] = field(default_factory=Counter)

    def note(self, fault: str, where: str) -> None:
        self.hits[fault, where] += 1

    def text(self, reachable: Iterable[tuple[str, str]] = ()) -> str:
        """Return the table as text, a block for each kind of fault; `!` marks what was to be hit and was not."""
        wanted = set(reachable)
        blocks = []
        for columns in (tuple(FAULTS), ARRIVALS, REFUSALS, (KILL,)):
            wheres = sorted({where for fault, where in wanted | set(self.hits) if fault in columns})
            if wheres:
                blocks.append(self._block(columns, wheres, wanted))
        return "\n\n".join(blocks)

    def _block(self, columns: tuple[str, ...], wheres: list[str], wanted: set[tuple[str, str]]) -> str:
        width = max(map(len, wheres))
        lines = [f"{'':{width}}  {'  '.join(columns)}"]
        for where in wheres:
            cells = [
                f"{self.hits[name, where] or ('!' if (name, where) in wanted else '-'):>{len(name)}}"
                for name in columns
            ]
            lines.append(f"{where:{width}}  {'  '.join(cells)}")
        return "\n".join(lines)
