"""What is not the merchant at the stand-in's Razorpay face: the checkout page, the bank, the passing of time."""

import hashlib
import hmac
import json
from collections.abc import Mapping
from html import escape

from aiohttp import web

from loop.testing import stub_razorpay_disputes as disputes
from loop.testing import stub_razorpay_payments as payments
from loop.testing.stub_control import CONTROL, control, json_body
from loop.testing.stub_ledger import JsonObject, Store, Work
from loop.testing.stub_razorpay import account_id
from loop.testing.stub_razorpay_objects import (
    DISPUTES,
    KEYS,
    ORDERS,
    PAYMENTS,
    REFUNDS,
    RazorpayError,
    pack_webhook,
    public,
)
from loop.testing.stub_webhooks import Webhooks

CHECKOUT_PATH = "/v1/checkout/embedded"
"""Where a merchant's page sends its customer, by a form with the order and the address to come back to."""

INSTRUMENTS: Mapping[str, str | None] = {
    "success@razorpay": None,
    "failure@razorpay": "payment_failed",
    "4100280000001007": None,
    "5500670000001002": None,
    "6527658900001005": None,
    "4100280000090000": "payment_timed_out",
    "4100280000080001": "insufficient_funds",
    "4100280000070002": "payment_cancelled",
    "4100280000060003": "card_declined",
    "4100280000020007": "gateway_technical_error",
    "4100280000010008": "card_number_invalid",
}
"""Razorpay's test UPI addresses and cards -> the reason of their failure, None for a success."""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Test checkout</title></head>
<body><main><h1>Test checkout</h1>{content}</main></body></html>
"""


class RazorpayCustomer:
    """The page on which a browser pays, and the control calls that stand for customers, banks and time."""

    def __init__(self, store: Store, webhooks: Webhooks) -> None:
        self._store = store
        self._webhooks = webhooks

    def add_to(self, app: web.Application) -> None:
        """Register the routes."""
        app.router.add_post(CHECKOUT_PATH, self._show_checkout)
        app.router.add_post("/_page/razorpay/{id}", self._answer_checkout)
        for path, handle in (
            ("orders/{id}/pay", self._pay),
            ("payments/{id}/move", self._move),
            ("payments/{id}/dispute", self._dispute),
            ("disputes/{id}/move", self._move_dispute),
            ("refunds/{id}/settle", self._settle),
        ):
            app.router.add_post(f"{CONTROL}/razorpay/{path}", control(handle))

    async def _show_checkout(self, request: web.Request) -> web.StreamResponse:
        form = {name: str(value) for name, value in (await request.post()).items()}
        owner = self._store.owner_of(ORDERS, form.get("order_id", ""))
        if owner is None or owner != account_id(form.get("key_id", "")):
            return _page("<p>There is no such order.</p>", status=400)
        order = Work(self._store, owner, "").must(ORDERS, form["order_id"])
        wanted = {"amount": str(order["amount"]), "currency": order["currency"]}
        if any(form.get(name, value) != value for name, value in wanted.items()):
            return _page("<p>The order is of another amount.</p>", status=400)
        back, buttons = form.get("callback_url", ""), "\n".join(
            f'<p><button name="instrument" value="{name}">{escape(name)}: {reason or "pays"}</button></p>'
            for name, reason in INSTRUMENTS.items()
        )  # fmt: skip
        return _page(
            f"<p>Pay {order['amount']} {order['currency']} (minor units) with:</p>\n"
            f'<form method="post" action="/_page/razorpay/{order["id"]}">'
            f'<input type="hidden" name="callback_url" value="{escape(back)}">\n{buttons}</form>'
        )

    async def _answer_checkout(self, request: web.Request) -> web.StreamResponse:
        # The form is read first: nothing may run between reading the order and keeping it.
        form = {name: str(value) for name, value in (await request.post()).items()}
        told = await self.pay_in_browser(request, request.match_info["id"], instrument=form.get("instrument", ""))
        if told is None:
            return _page("<p>This order is no longer waiting for you.</p>", status=400)
        fields = "".join(
            f'<input type="hidden" name="{escape(name)}" value="{escape(value)}">' for name, value in told.items()
        )
        back = escape(form.get("callback_url", ""))
        return _page(
            f'<form method="post" action="{back}">{fields}<button id="continue">Back to the shop</button></form>'
            "<script>document.forms[0].submit()</script>"
        )

    async def pay_in_browser(self, request: web.Request, order_id: str, *, instrument: str) -> dict[str, str] | None:
        """Try to pay an order with a test instrument; return what Checkout tells the page, or None if it cannot be."""
        try:
            work, order = self._found(request, ORDERS, object_id=order_id)
            reason = INSTRUMENTS[instrument]
            payment = payments.begin(work, order, instrument=instrument)
        except (LookupError, RazorpayError):
            return None
        payments.go_on(work, payment, outcome="paid" if reason is None else "failed", reason=reason)
        await self._keep(work)
        return self._callback(work, payment)

    async def _pay(self, request: web.Request) -> web.StreamResponse:
        """Try to pay an order: {instrument?, outcome: paid | authorized | failed | created, reason?, refunds?}.

        `refunds: pending` makes the payment's refunds wait to be settled. The answer's `callback` is what Checkout
        posts to the merchant's page, or hands to its script.
        """
        body = await json_body(request)
        instrument = str(body.get("instrument", "success@razorpay"))
        reason = body.get("reason", INSTRUMENTS.get(instrument))
        outcome = str(body.get("outcome", "paid" if reason is None else "failed"))
        work, order = self._found(request, ORDERS)
        try:
            refund_status = str(body.get("refunds", "processed"))
            payment = payments.begin(work, order, instrument=instrument, refund_status=refund_status)
        except RazorpayError as refusal:
            return web.json_response(refusal.body, status=409)
        payments.go_on(work, payment, outcome=outcome, reason=reason)
        await self._keep(work)
        return web.json_response({"payment": public(payment), "callback": self._callback(work, payment)})

    async def _move(self, request: web.Request) -> web.StreamResponse:
        """Change a payment later: {status: authorized | captured | failed | released, reason?}."""
        body = await json_body(request)
        work, payment = self._found(request, PAYMENTS)
        payments.move(work, payment, status=str(body["status"]), reason=body.get("reason"))
        await self._keep(work)
        return web.json_response({"payment": public(payment), "callback": self._callback(work, payment)})

    async def _dispute(self, request: web.Request) -> web.StreamResponse:
        """Dispute a payment: {phase: chargeback | fraud | retrieval | pre_arbitration | arbitration, amount?, reason?}.

        In the phases fraud and retrieval the bank only asks.
        """
        body = await json_body(request)
        work, payment = self._found(request, PAYMENTS)
        phase, amount = str(body.get("phase", "chargeback")), body.get("amount")
        opened = disputes.open_dispute(work, payment, phase=phase, amount_minor=amount, reason=body.get("reason"))
        await self._keep(work)
        return web.json_response(opened)

    async def _move_dispute(self, request: web.Request) -> web.StreamResponse:
        """Let a dispute go on: {status: under_review | open (more evidence is wanted) | won | lost | closed}."""
        body = await json_body(request)
        work, dispute = self._found(request, DISPUTES)
        moved = disputes.move_dispute(work, dispute, status=str(body["status"]))
        await self._keep(work)
        return web.json_response(moved)

    async def _settle(self, request: web.Request) -> web.StreamResponse:
        """Finish a refund: {status: processed | failed}."""
        body = await json_body(request)
        work, refund = self._found(request, REFUNDS)
        settled = payments.settle(work, refund, status=str(body["status"]))
        await self._keep(work)
        return web.json_response(settled)

    def _callback(self, work: Work, payment: JsonObject) -> dict[str, str]:
        order_id, payment_id = payment["order_id"], payment["id"]
        if payment["status"] == "failed":
            names = ("code", "description", "source", "step", "reason")
            metadata = json.dumps({"payment_id": payment_id, "order_id": order_id})
            return {**{f"error[{name}]": payment[f"error_{name}"] for name in names}, "error[metadata]": metadata}
        secret = next(self._store.newest_first(work.account, KEYS))["secret"]
        digest = hmac.new(secret.encode(), f"{order_id}|{payment_id}".encode(), hashlib.sha256).hexdigest()
        return {
            "razorpay_payment_id": payment_id,
            "razorpay_order_id": order_id,
            "razorpay_signature": digest,
        }

    def _found(self, request: web.Request, kind: str, *, object_id: str | None = None) -> tuple[Work, JsonObject]:
        object_id = object_id or request.match_info.get("id", "")
        owner = self._store.owner_of(kind, object_id)
        if owner is None:
            raise LookupError(f"no {kind} {object_id}")
        work = Work(self._store, owner, str(request.url.origin()), target=object_id)
        return work, work.must(kind, object_id)

    async def _keep(self, work: Work) -> None:
        self._store.commit(work)
        self._webhooks.publish(work.account, work.events, pack=pack_webhook)
        await self._store.sync()


def _page(content: str, *, status: int = 200) -> web.Response:
    return web.Response(text=_PAGE.format(content=content), content_type="text/html", status=status)
