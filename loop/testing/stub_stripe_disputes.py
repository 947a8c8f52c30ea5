"""Disputes at the stand-in's Stripe face: a bank inquires or takes money back, then decides, and may think again."""

from collections.abc import Mapping

from loop.testing.stub_ledger import JsonObject, Work
from loop.testing.stub_stripe_objects import book, emit

DISPUTE_FEE_MINOR = 1_500
"""What a dispute costs the merchant, in minor units of the charge's currency."""

RESPONSE_S = 9 * 24 * 3600
"""How long the merchant has to answer, in seconds."""

STEPS: Mapping[str, tuple[str, ...]] = {
    "warning_needs_response": ("warning_under_review", "warning_closed", "needs_response"),
    "warning_under_review": ("warning_closed", "needs_response"),
    "warning_closed": (),
    "needs_response": ("under_review", "won", "lost"),
    "under_review": ("won", "lost"),
    "won": (),
    "lost": ("appeal_needs_response",),
    "appeal_needs_response": ("appeal_under_review", "won", "lost"),
    "appeal_under_review": ("won", "lost"),
}
"""status -> what may follow."""

_ENDS = frozenset({"won", "lost", "warning_closed"})


def open_dispute(
    work: Work,
    charge: JsonObject,
    *,
    amount_minor: int | None = None,
    reason: str = "fraudulent",
    is_inquiry: bool = False,
) -> JsonObject:
    """Dispute a captured charge: all of it that is not refunded, when no amount is given. An inquiry takes nothing."""
    undisputed: int = charge["amount_captured"] - charge["amount_refunded"]
    card = charge["payment_method_details"]["card"]
    dispute = {
        "id": work.new_id("du"),
        "object": "dispute",
        "amount": undisputed if amount_minor is None else amount_minor,
        "balance_transactions": [],
        "charge": charge["id"],
        "created": work.now_s,
        "currency": charge["currency"],
        "enhanced_eligibility_types": [],
        "evidence": {},
        "evidence_details": {
            "due_by": work.now_s + RESPONSE_S,
            "enhanced_eligibility": {},
            "has_evidence": False,
            "past_due": False,
            "submission_count": 0,
        },
        "is_charge_refundable": is_inquiry,
        "livemode": work.livemode,
        "metadata": {},
        "network_reason_code": "10",
        "payment_intent": charge["payment_intent"],
        "payment_method_details": {
            "card": {
                "brand": card["brand"],
                "case_type": "inquiry" if is_inquiry else "chargeback",
                "network_reason_code": "10",
            },
            "type": "card",
        },
        "reason": reason,
        "status": "warning_needs_response" if is_inquiry else "needs_response",
    }
    charge |= {"disputed": True, "_dispute": dispute["id"]}
    work.put("charges", charge)
    if not is_inquiry:
        _withdraw(work, dispute, charge=charge)
    work.put("disputes", dispute)
    emit(work, "charge.dispute.created", about=dispute)
    if not is_inquiry:
        emit(work, "charge.dispute.funds_withdrawn", about=dispute)
    return dispute


def move_dispute(work: Work, dispute: JsonObject, *, status: str) -> JsonObject:
    """Let the merchant answer, or the bank go on; ValueError for a step that Stripe does not take."""
    before = dispute["status"]
    if status not in STEPS[before]:
        raise ValueError(f"a dispute that is {before} cannot become {status}")
    charge = work.must("charges", dispute["charge"])
    is_taken, is_returned = before.startswith("warning_") and status == "needs_response", status == "won"
    dispute["status"] = status
    if status.endswith("under_review"):
        dispute["evidence_details"] |= {"has_evidence": True, "submission_count": 1}
    if is_taken:
        dispute["payment_method_details"]["card"]["case_type"] = "chargeback"
        dispute["is_charge_refundable"] = False
        _withdraw(work, dispute, charge=charge)
    if is_returned:
        dispute["is_charge_refundable"] = True
        _move(work, dispute, amount_minor=dispute["amount"], kind="dispute_reversal", fee_minor=-DISPUTE_FEE_MINOR)
        work.enter("dispute_reversal", dispute["amount"], charge=charge, object_id=dispute["id"])
    work.put("disputes", dispute)
    emit(work, f"charge.dispute.{'closed' if status in _ENDS else 'updated'}", about=dispute)
    if is_taken:
        emit(work, "charge.dispute.funds_withdrawn", about=dispute)
    if is_returned:
        emit(work, "charge.dispute.funds_reinstated", about=dispute)
    return dispute


def _withdraw(work: Work, dispute: JsonObject, *, charge: JsonObject) -> None:
    _move(work, dispute, amount_minor=-dispute["amount"], kind="dispute", fee_minor=DISPUTE_FEE_MINOR)
    work.enter("dispute", dispute["amount"], charge=charge, object_id=dispute["id"])


def _move(work: Work, dispute: JsonObject, *, amount_minor: int, kind: str, fee_minor: int) -> None:
    transaction = book(work, amount_minor, kind=kind, fee_minor=fee_minor, source=dispute)
    dispute["balance_transactions"].append(work.must("balance_transactions", transaction))
