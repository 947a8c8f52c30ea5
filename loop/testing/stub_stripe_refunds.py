"""Refunds at the stand-in's Stripe face: never more than was captured, sometimes settled later."""

from collections.abc import Mapping

from loop.testing.stub_ledger import JsonObject, Work
from loop.testing.stub_stripe_amounts import checked_part
from loop.testing.stub_stripe_errors import StripeError, missing_object, unexpected_state
from loop.testing.stub_stripe_forms import Param
from loop.testing.stub_stripe_objects import behaviour_of, book, emit, public

CREATE: Mapping[str, Param] = {
    "payment_intent": Param(),
    "charge": Param(),
    "amount": Param("integer"),
    "metadata": Param("metadata"),
    "reason": Param("enum", choices=("duplicate", "fraudulent", "requested_by_customer")),
    "expand": Param("strings"),
}


def create(work: Work, params: JsonObject) -> JsonObject:
    """Give back all or part of what a charge captured."""
    charge = _refunded_charge(work, params)
    left = charge["amount_captured"] - charge["amount_refunded"]
    amount = checked_part(params.get("amount", max(left, 1)), "amount")
    if charge["disputed"] and not work.must("disputes", charge["_dispute"])["is_charge_refundable"]:
        raise StripeError(
            400,
            f"Charge {charge['id']} has been charged back; cannot issue a refund.",
            code="charge_disputed",
            executed=True,
        )
    if left == 0:
        raise StripeError(
            400,
            f"Charge {charge['id']} has already been refunded.",
            code="charge_already_refunded",
            executed=True,
        )
    if amount > left:
        # Stripe names the parameter here but gives no code.
        raise StripeError(
            400,
            f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left})",
            param="amount",
            executed=True,
        )
    return public(_refund(work, charge, amount=amount, params=params))


def settle(work: Work, refund: JsonObject, *, status: str) -> JsonObject:
    """Let the bank finish a refund: pending to succeeded, pending or succeeded to failed; ValueError otherwise."""
    before = refund["status"]
    if (before, status) not in (("pending", "succeeded"), ("pending", "failed"), ("succeeded", "failed")):
        raise ValueError(f"a refund that is {before} cannot become {status}")
    refund |= {"status": status}
    refund.pop("pending_reason", None)
    if status == "failed":
        charge = work.must("charges", refund["charge"])
        charge |= {"amount_refunded": charge["amount_refunded"] - refund["amount"], "refunded": False}
        work.put("charges", charge)
        refund["failure_reason"] = "lost_or_stolen_card"
        refund["failure_balance_transaction"] = book(work, refund["amount"], kind="refund_failure", source=refund)
        work.enter("refund_reversal", refund["amount"], charge=_as_told(charge, refund), object_id=refund["id"])
    work.put("refunds", refund)
    emit(work, "refund.updated", about=refund)
    emit(work, "charge.refund.updated", about=refund)
    if status == "failed":
        emit(work, "refund.failed", about=refund)
    return refund


def _refunded_charge(work: Work, params: JsonObject) -> JsonObject:
    given = [name for name in ("payment_intent", "charge") if name in params]
    if not given:
        raise StripeError(
            400,
            "One of the following params should be provided for this request: payment_intent or charge.",
            code="parameter_missing",
            param="payment_intent",
        )
    if len(given) == 2:
        raise StripeError(400, "You may only specify one of these parameters: charge, payment_intent.")
    if given == ["charge"]:
        charge = work.get("charges", params["charge"])
        if charge is None or not charge["captured"]:
            raise missing_object("charge", params["charge"], param="charge", status=400)
        return charge
    intent = work.get("payment_intents", params["payment_intent"])
    if intent is None:
        raise missing_object("payment_intent", params["payment_intent"], param="payment_intent", status=400)
    if intent["status"] != "succeeded":
        raise unexpected_state(
            f"This PaymentIntent ({intent['id']}) does not have a successful charge to refund.", public(intent)
        )
    return work.must("charges", intent["latest_charge"])


def _refund(work: Work, charge: JsonObject, *, amount: int, params: JsonObject) -> JsonObject:
    is_pending = behaviour_of(work.must("payment_methods", charge["payment_method"])).is_refund_pending
    refund: JsonObject = {
        "id": work.new_id("re"),
        "object": "refund",
        "amount": amount,
        "balance_transaction": None,
        "charge": charge["id"],
        "created": work.now_s,
        "currency": charge["currency"],
        "destination_details": {"card": {"reference_status": "pending", "type": "refund"}, "type": "card"},
        "metadata": params.get("metadata", {}),
        "payment_intent": charge["payment_intent"],
        "reason": params.get("reason"),
        "receipt_number": None,
        "source_transfer_reversal": None,
        "status": "pending" if is_pending else "succeeded",
        "transfer_reversal": None,
    }
    if is_pending:
        refund["pending_reason"] = "processing"
    refund["balance_transaction"] = book(work, -amount, kind="refund", source=refund)
    charge["amount_refunded"] += amount
    charge["refunded"] = charge["amount_refunded"] == charge["amount_captured"]
    work.put("refunds", refund)
    work.put("charges", charge)
    work.enter("refund", amount, charge=_as_told(charge, refund), object_id=refund["id"])
    emit(work, "refund.created", about=refund)
    emit(work, "charge.refunded", about=charge)
    return refund


def _as_told(charge: JsonObject, refund: JsonObject) -> JsonObject:
    return charge | {"metadata": charge["metadata"] | refund["metadata"]}
