"""The money of the stand-in's Razorpay face: orders, what is paid on them, captures, refunds."""

from collections.abc import Mapping

from loop.testing.stub_ledger import JsonObject, Work
from loop.testing.stub_razorpay_objects import (
    DESCRIPTIONS,
    ORDERS,
    PAYMENTS,
    REFUNDS,
    RazorpayError,
    card_of,
    emit,
    enter,
    listed,
    must_have,
    new_order,
    new_payment,
    new_refund,
    public,
)

OUTCOMES = ("paid", "authorized", "failed", "created")
"""How a customer's try may go; `paid` is captured at once where the order's capture is automatic."""

AMOUNT_LEAST: Mapping[str, int] = {"INR": 100}
AMOUNT_MAX = 50_000_000_00
"""Largest order in minor units."""

_TENS_ONLY = frozenset(("BHD", "IQD", "JOD", "KWD", "OMR", "TND"))
_WINDOW_LEAST_MIN, _WINDOW_MAX_MIN = 12, 7_200


def create_order(work: Work, params: JsonObject) -> JsonObject:
    """Make an order, or return the one that a unique receipt has already made."""
    _check_amount(params["amount"], params["currency"])
    _check_capture(params.get("payment"))
    is_unique = params.get("unique_receipt", False)
    receipt = params.get("receipt")
    if is_unique and receipt is None:
        raise RazorpayError(400, "The receipt field is required when unique receipt is present.", field="receipt")
    known = work.get("rzp_receipts", receipt) if is_unique and receipt is not None else None
    if known is not None:
        order = work.must(ORDERS, known["order"])
        if (order["amount"], order["currency"]) != (params["amount"], params["currency"]):
            raise RazorpayError(400, "The receipt has been used for another order.", field="receipt")
        return public(order)
    order = new_order(work, params)
    work.put(ORDERS, order)
    if is_unique:
        work.put("rzp_receipts", {"id": receipt, "order": order["id"]})
    return public(order)


def _check_amount(amount: int, currency: str) -> None:
    least = AMOUNT_LEAST.get(currency, 1)
    if amount < least:
        raise RazorpayError(
            400, f"Order amount less than minimum amount allowed ({least})", reason="amount_less_than_minimum_amount",
            field="amount",
        )  # fmt: skip
    if amount > AMOUNT_MAX:
        raise RazorpayError(400, "Amount exceeds maximum amount allowed.", field="amount")
    if len(currency) != 3 or not (currency.isascii() and currency.isalpha() and currency.isupper()):
        raise RazorpayError(400, "Currency is not supported", reason="invalid_currency", field="currency")
    if currency in _TENS_ONLY and amount % 10:
        raise RazorpayError(400, f"Amounts in {currency} must end in 0.", reason="invalid_amount", field="amount")


def _check_capture(payment: JsonObject | None) -> None:
    if payment is None:
        return
    options = payment["capture_options"]
    automatic = options.get("automatic_expiry_period")
    manual = options.get("manual_expiry_period", _WINDOW_MAX_MIN)
    if payment["capture"] == "automatic" and automatic is None:
        raise RazorpayError(400, "The automatic expiry period field is required.", field="automatic_expiry_period")
    if automatic is not None and automatic < _WINDOW_LEAST_MIN:
        raise RazorpayError(
            400, f"The automatic expiry period must be at least {_WINDOW_LEAST_MIN}.", field="automatic_expiry_period"
        )
    if not (automatic or _WINDOW_LEAST_MIN) <= manual <= _WINDOW_MAX_MIN:
        raise RazorpayError(400, "The manual expiry period is out of bounds.", field="manual_expiry_period")


def list_orders(work: Work, params: JsonObject) -> JsonObject:
    """Return a page of the account's orders, newest first."""
    receipt = params.get("receipt")
    every = work.store.newest_first(work.account, ORDERS)
    return listed((order for order in every if receipt in (None, order["receipt"])), params)


def fetch_order(work: Work, _: JsonObject) -> JsonObject:
    """Return one order."""
    return public(must_have(work, ORDERS, object_id=work.target))


def list_order_payments(work: Work, params: JsonObject) -> JsonObject:
    """Return every payment tried on an order, newest first."""
    order = must_have(work, ORDERS, object_id=work.target)
    return listed(_payments(work, order), {"count": 100, **params})


def fetch_payment(work: Work, params: JsonObject) -> JsonObject:
    """Return one payment, with its card when `expand[]` asks for it."""
    payment = must_have(work, PAYMENTS, object_id=work.target)
    shown = public(payment)
    if params.get("expand[]") == "card" and payment["card_id"] is not None:
        shown["card"] = card_of(payment)
    return shown


def _payments(work: Work, order: JsonObject) -> list[JsonObject]:
    return [work.must(PAYMENTS, payment_id) for payment_id in reversed(order["_payments"])]


def begin(work: Work, order: JsonObject, *, instrument: str, refund_status: str = "processed") -> JsonObject:
    """Let the customer begin a payment; refused while one on the order is authorized or captured.

    In Malaysia an order takes one try only.
    """
    if any(each["captured"] or each["status"] == "authorized" for each in _payments(work, order)):
        raise RazorpayError(400, "Payment already done for this order.", reason="order_already_paid")
    if order["currency"] == "MYR" and order["_payments"]:
        raise RazorpayError(400, "A new order is needed for each payment.", reason="invalid_order_id")
    payment = new_payment(work, order, instrument=instrument) | {"_refund_status": refund_status}
    order |= {
        "status": "attempted",
        "attempts": order["attempts"] + 1,
        "_payments": [*order["_payments"], payment["id"]],
    }
    work.put(ORDERS, order)
    work.put(PAYMENTS, payment)
    return payment


def go_on(work: Work, payment: JsonObject, *, outcome: str, reason: str | None = None) -> JsonObject:
    """Let a begun payment go as a customer's try may; ValueError for an outcome that there is not."""
    if outcome not in OUTCOMES:
        raise ValueError(f"outcome must be one of {', '.join(OUTCOMES)}")
    is_automatic = work.must(ORDERS, payment["order_id"])["_capture"] == "automatic"
    if outcome == "failed":
        _fail(work, payment, reason=reason or "payment_failed")
    elif outcome == "paid" and is_automatic:
        _authorize(work, payment)
        _take(work, payment)
        enter(work, "charge", amount_minor=payment["amount"], payment=payment)
    elif outcome != "created":
        _authorize(work, payment)
        enter(work, "authorization", amount_minor=payment["amount"], payment=payment)
    return payment


def move(work: Work, payment: JsonObject, *, status: str, reason: str | None = None) -> JsonObject:
    """Let a payment change later: a late answer of the bank, the automatic capture, the end of a hold.

    ValueError for a step that Razorpay does not take.
    """
    match payment["status"], status:
        case (("created" | "failed"), "authorized"):
            _authorize(work, payment)
            enter(work, "authorization", amount_minor=payment["amount"], payment=payment)
        case "created", "failed":
            _fail(work, payment, reason=reason or "payment_timed_out")
        case "authorized", "captured":
            _take(work, payment)
            enter(work, "capture", amount_minor=payment["amount"], payment=payment)
        case "authorized", "released":
            _release(work, payment)
        case before, _:
            raise ValueError(f"a payment that is {before} cannot become {status}")
    return payment


def _fail(work: Work, payment: JsonObject, *, reason: str) -> None:
    payment |= {
        "status": "failed",
        "error_code": "GATEWAY_ERROR" if "technical" in reason else "BAD_REQUEST_ERROR",
        "error_description": DESCRIPTIONS.get(reason, DESCRIPTIONS["payment_failed"]),
        "error_source": "customer" if reason == "payment_cancelled" else "issuer_bank",
        "error_step": "payment_authorization",
        "error_reason": reason,
    }
    work.put(PAYMENTS, payment)
    emit(work, "payment.failed", payment=payment)


def _authorize(work: Work, payment: JsonObject) -> None:
    errors = ("error_code", "error_description", "error_source", "error_step", "error_reason")
    payment |= {"status": "authorized", **dict.fromkeys(errors)}
    work.put(PAYMENTS, payment)
    emit(work, "payment.authorized", payment=payment)


def _take(work: Work, payment: JsonObject) -> None:
    tax = payment["amount"] * 36 // 10_000
    payment |= {"status": "captured", "captured": True, "fee": payment["amount"] * 2 // 100 + tax, "tax": tax}
    order = work.must(ORDERS, payment["order_id"])
    order |= {"status": "paid", "amount_paid": payment["amount"], "amount_due": 0}
    work.put(PAYMENTS, payment)
    work.put(ORDERS, order)
    emit(work, "payment.captured", payment=payment)
    emit(work, "order.paid", payment=payment, order=order)


def _release(work: Work, payment: JsonObject) -> None:
    """Give an authorized payment back by Razorpay's own doing, which it calls a refund."""
    refund = new_refund(work, payment, params={"amount": payment["amount"]}, status="processed")
    payment |= {"status": "refunded", "amount_refunded": payment["amount"], "refund_status": "full"}
    payment["_refunds"] = [*payment["_refunds"], refund["id"]]
    work.put(PAYMENTS, payment)
    work.put(REFUNDS, refund)
    enter(work, "void", amount_minor=payment["amount"], payment=payment)
    emit(work, "refund.created", refund=refund, payment=payment)
    emit(work, "refund.processed", refund=refund, payment=payment)


def capture(work: Work, params: JsonObject) -> JsonObject:
    """Take an authorized payment, whole."""
    payment = must_have(work, PAYMENTS, object_id=work.target)
    if payment["captured"]:
        raise RazorpayError(400, "This payment has already been captured")
    if payment["status"] != "authorized":
        raise RazorpayError(400, "Only payments which have been authorized and not yet captured can be captured")
    if params["currency"] != payment["currency"]:
        raise RazorpayError(400, "The currency does not match the payment's.", field="currency")
    if params["amount"] != payment["amount"]:
        raise RazorpayError(400, "Capture amount must be equal to the amount authorized", field="amount")
    return public(move(work, payment, status="captured"))


def refund(work: Work, params: JsonObject) -> JsonObject:
    """Give back all of a captured payment, or a part."""
    payment = must_have(work, PAYMENTS, object_id=work.target)
    left = payment["amount"] - payment["amount_refunded"]
    if not payment["captured"]:
        raise RazorpayError(400, "The payment status should be captured for action to be taken")
    if left == 0:
        raise RazorpayError(400, "The payment has been fully refunded already")
    params.setdefault("amount", left)
    if params["amount"] < 1:
        raise RazorpayError(400, "The amount must be at least 1.", field="amount")
    if params["amount"] > left:
        raise RazorpayError(400, "The total refund amount is greater than the refund payment amount", field="amount")
    made = new_refund(work, payment, params=params, status=payment["_refund_status"])
    payment["_refunds"] = [*payment["_refunds"], made["id"]]
    _count_refund(work, payment, by=made["amount"])
    work.put(REFUNDS, made)
    enter(work, "refund", amount_minor=made["amount"], payment=payment, source=made)
    emit(work, "refund.created", refund=made, payment=payment)
    if made["status"] == "processed":
        emit(work, "refund.processed", refund=made, payment=payment)
    return public(made)


def settle(work: Work, made: JsonObject, *, status: str) -> JsonObject:
    """Let the bank finish a refund: pending to processed, pending or processed to failed; ValueError otherwise."""
    before = made["status"]
    if (before, status) not in (("pending", "processed"), ("pending", "failed"), ("processed", "failed")):
        raise ValueError(f"a refund that is {before} cannot become {status}")
    payment = work.must(PAYMENTS, made["payment_id"])
    made["status"] = status
    work.put(REFUNDS, made)
    if status == "failed":
        _count_refund(work, payment, by=-made["amount"])
        enter(work, "refund_reversal", amount_minor=made["amount"], payment=payment, source=made)
    emit(work, f"refund.{status}", refund=made, payment=payment)
    return public(made)


def _count_refund(work: Work, payment: JsonObject, *, by: int) -> None:
    refunded = payment["amount_refunded"] + by
    is_full = refunded == payment["amount"]
    payment |= {
        "amount_refunded": refunded,
        "refund_status": "full" if is_full else "partial" if refunded else None,
        "status": "refunded" if is_full else "captured",
    }
    work.put(PAYMENTS, payment)


def fetch_refund(work: Work, _: JsonObject) -> JsonObject:
    """Return one refund."""
    return public(must_have(work, REFUNDS, object_id=work.target))


def list_refunds(work: Work, params: JsonObject) -> JsonObject:
    """Return a page of the account's refunds, newest first."""
    return listed(work.store.newest_first(work.account, REFUNDS), params)


def list_payment_refunds(work: Work, params: JsonObject) -> JsonObject:
    """Return a page of one payment's refunds, newest first."""
    payment = must_have(work, PAYMENTS, object_id=work.target)
    return listed((work.must(REFUNDS, each) for each in reversed(payment["_refunds"])), params)
