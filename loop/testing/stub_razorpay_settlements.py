"""The settlement report of the stand-in's Razorpay face: what was settled on a day, some days after it moved."""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone

from loop.testing.stub_ledger import JsonObject, Work
from loop.testing.stub_razorpay_forms import Param
from loop.testing.stub_razorpay_objects import KEYS, PAGE_SIZE, PAYMENTS, REFUNDS, RazorpayError, listed

SETTLED_AFTER_S = 2 * 24 * 3600
"""How long after it moved money is settled, in seconds; the real one counts working days."""

INDIA = timezone(timedelta(hours=5, minutes=30))
"""Whose days the report counts by."""

REPORT: Mapping[str, Param] = {
    "year": Param("integer", is_required=True),
    "month": Param("integer", is_required=True),
    "day": Param("integer"),
    "count": Param("integer"),
    "skip": Param("integer"),
}


def combined(work: Work, params: JsonObject) -> JsonObject:
    """Return a page of what was settled in a month, or on a day of it. A test key's payments never are."""
    wanted = (params.pop("year"), params.pop("month"), params.pop("day", None))
    if not 1 <= wanted[1] <= 12 or not 1 <= (wanted[2] or 1) <= 31:
        raise RazorpayError(400, "The month or the day is not one.", field="month")
    key_id = next(work.store.newest_first(work.account, KEYS))["id"]
    rows = [] if key_id.startswith("rzp_test_") else [row for row in _settled(work) if _is_of(row, *wanted)]
    return listed(rows, {"count": PAGE_SIZE, **params})


def _settled(work: Work) -> Iterator[JsonObject]:
    for item in (*work.store.newest_first(work.account, PAYMENTS), *work.store.newest_first(work.account, REFUNDS)):
        row = _row(work, item)
        if row is not None and row["settled_at"] <= work.now_s and not item.get("_is_gone"):
            yield row


def _is_of(row: JsonObject, year: int, month: int, day: int | None) -> bool:
    at = datetime.fromtimestamp(row["settled_at"], INDIA)
    return (at.year, at.month) == (year, month) and day in (None, at.day)


def _row(work: Work, item: JsonObject) -> JsonObject | None:
    """Return what the report says of a payment or refund; None for one that no money was settled for."""
    is_payment = item["entity"] == "payment"
    payment = item if is_payment else work.must(PAYMENTS, item["payment_id"])
    if not payment["captured"] or item["status"] == "failed":
        return None
    amount: int = item["_settled_amount"] if "_settled_amount" in item else item["amount"]
    fee: int = item["fee"] if is_payment else 0
    settled_at = item["created_at"] + SETTLED_AFTER_S
    return {
        "entity_id": item["id"],
        "type": item["entity"],
        "debit": 0 if is_payment else amount,
        "credit": amount - fee if is_payment else 0,
        "amount": amount,
        "currency": item.get("_settled_currency", item["currency"]),
        "fee": fee,
        "tax": item["tax"] if is_payment else 0,
        "on_hold": False,
        "settled": True,
        "created_at": item["created_at"],
        "settled_at": settled_at,
        "settlement_id": f"setl_{settled_at // 86_400}",
        "posted_at": None,
        "credit_type": "default",
        "description": None,
        "notes": item["notes"],
        "payment_id": None if is_payment else payment["id"],
        "settlement_utr": f"{settled_at}stub",
        "order_id": payment["order_id"],
        "order_receipt": None,
        "method": payment["method"],
        "card_network": None,
        "card_issuer": None,
        "card_type": None,
        "dispute_id": None,
    }
