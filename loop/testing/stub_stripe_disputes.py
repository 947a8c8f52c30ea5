"""Disputes at the stand-in's Stripe face: a bank takes money back, then decides."""

from loop.testing.stub_ledger import JsonObject, Work
from loop.testing.stub_stripe_objects import book, emit

DISPUTE_FEE_MINOR = 1_500
"""What a dispute costs the merchant, in minor units of the charge's currency."""


def open_dispute(
    work: Work, charge: JsonObject, *, amount_minor: int | None = None, reason: str = "fraudulent"
) -> JsonObject:
    """Dispute a captured charge: all of it that is not refunded, when no amount is given."""
    undisputed: int = charge["amount_captured"] - charge["amount_refunded"]
    dispute = {
        "id": work.new_id("du"),
        "object": "dispute",
        "amount": undisputed if amount_minor is None else amount_minor,
        "balance_transactions": [],
        "charge": charge["id"],
        "created": work.now_s,
        "currency": charge["currency"],
        "is_charge_refundable": False,
        "livemode": work.livemode,
        "metadata": {},
        "payment_intent": charge["payment_intent"],
        "reason": reason,
        "status": "needs_response",
    }
    _move(work, dispute, amount_minor=-dispute["amount"], kind="dispute", fee_minor=DISPUTE_FEE_MINOR)
    charge |= {"disputed": True, "_dispute": dispute["id"]}
    work.put("disputes", dispute)
    work.put("charges", charge)
    work.enter("dispute", dispute["amount"], charge=charge, object_id=dispute["id"])
    emit(work, "charge.dispute.created", about=dispute)
    emit(work, "charge.dispute.funds_withdrawn", about=dispute)
    return dispute


def close_dispute(work: Work, dispute: JsonObject, *, status: str) -> JsonObject:
    """End an open dispute as `won` (the money comes back) or `lost`."""
    charge = work.must("charges", dispute["charge"])
    dispute["status"] = status
    if status == "won":
        _move(work, dispute, amount_minor=dispute["amount"], kind="dispute_reversal", fee_minor=-DISPUTE_FEE_MINOR)
        work.enter("dispute_reversal", dispute["amount"], charge=charge, object_id=dispute["id"])
    work.put("disputes", dispute)
    emit(work, "charge.dispute.closed", about=dispute)
    if status == "won":
        emit(work, "charge.dispute.funds_reinstated", about=dispute)
    return dispute


def _move(work: Work, dispute: JsonObject, *, amount_minor: int, kind: str, fee_minor: int) -> None:
    transaction = book(work, amount_minor, kind=kind, fee_minor=fee_minor, source=dispute)
    dispute["balance_transactions"].append(work.must("balance_transactions", transaction))
