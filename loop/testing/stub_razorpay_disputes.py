"""Disputes at the stand-in's Razorpay face: a bank asks, or takes money back, then decides."""

from collections.abc import Mapping

from loop.testing.stub_ledger import JsonObject, Work
from loop.testing.stub_razorpay_objects import DISPUTES, PAYMENTS, emit, enter, listed, must_have, public

PHASES = ("fraud", "retrieval", "chargeback", "pre_arbitration", "arbitration")
ASKING = frozenset({"fraud", "retrieval"})
"""Phases in which a bank only asks; what it then takes back is another dispute."""

RESPONSE_S = 3 * 24 * 3600
"""How long the merchant has to answer, in seconds."""

STEPS: Mapping[str, tuple[str, ...]] = {
    "open": ("under_review", "won", "lost", "closed"),
    "under_review": ("open", "won", "lost", "closed"),
    "won": (),
    "lost": (),
    "closed": (),
}
"""status -> what may follow; back to open when the merchant's evidence does not suffice."""


def open_dispute(
    work: Work, payment: JsonObject, *, phase: str, amount_minor: int | None = None, reason: str | None = None
) -> JsonObject:
    """Dispute a captured payment: all of it that is not refunded, when no amount is given; else ValueError.

    A payment has one undecided dispute at a time.
    """
    earlier = [work.must(DISPUTES, each) for each in payment["_disputes"]]
    if phase not in PHASES or not payment["captured"] or any(STEPS[each["status"]] for each in earlier):
        raise ValueError(f"a captured payment that is not being disputed can be, in a phase of {', '.join(PHASES)}")
    dispute = {
        "id": work.new_id("disp"),
        "entity": "dispute",
        "payment_id": payment["id"],
        "amount": payment["amount"] - payment["amount_refunded"] if amount_minor is None else amount_minor,
        "currency": payment["currency"],
        "amount_deducted": 0,
        "reason_code": reason or "goods_or_services_not_received",
        "respond_by": work.now_s + RESPONSE_S,
        "status": "open",
        "phase": phase,
        "created_at": work.now_s,
        "evidence": {"amount": 0, "summary": None, "submitted_at": None},
    }
    payment["_disputes"] = [*payment["_disputes"], dispute["id"]]
    work.put(PAYMENTS, payment)
    work.put(DISPUTES, dispute)
    if phase not in ASKING:
        enter(work, "dispute", amount_minor=dispute["amount"], payment=payment, source=dispute)
    emit(work, "payment.dispute.created", payment=payment, dispute=dispute)
    return public(dispute)


def move_dispute(work: Work, dispute: JsonObject, *, status: str) -> JsonObject:
    """Let the merchant answer, or the bank go on; ValueError for a step that Razorpay does not take."""
    before, is_asking = dispute["status"], dispute["phase"] in ASKING
    if status not in STEPS[before] or (status == "closed" and dispute["phase"] != "fraud"):
        raise ValueError(f"a dispute that is {before} cannot become {status} in its phase {dispute['phase']}")
    payment = work.must(PAYMENTS, dispute["payment_id"])
    dispute["status"] = status
    if status == "under_review":
        dispute["evidence"]["submitted_at"] = work.now_s
    if status == "lost" and not is_asking:
        dispute["amount_deducted"] = dispute["amount"]
    if status == "won" and not is_asking:
        enter(work, "dispute_reversal", amount_minor=dispute["amount"], payment=payment, source=dispute)
    work.put(DISPUTES, dispute)
    emit(work, f"payment.dispute.{'action_required' if status == 'open' else status}", payment=payment, dispute=dispute)
    return public(dispute)


def fetch_dispute(work: Work, _: JsonObject) -> JsonObject:
    """Return one dispute."""
    return public(must_have(work, DISPUTES, object_id=work.target))


def list_disputes(work: Work, params: JsonObject) -> JsonObject:
    """Return a page of the account's disputes, newest first."""
    return listed(work.store.newest_first(work.account, DISPUTES), params)
