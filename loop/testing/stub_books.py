"""Wrong books on demand: the stand-in lists another amount, a charge that nobody knows, or not what it took."""

from aiohttp import web

from loop.testing import stub_razorpay_payments as razorpay
from loop.testing import stub_stripe_intents as stripe
from loop.testing.stub_control import CONTROL, control, json_body
from loop.testing.stub_ledger import JsonObject, Store, Work
from loop.testing.stub_razorpay_objects import ORDERS, PAYMENTS

CARD = "pm_card_visa"


class Books:
    """The control call that makes an account's list of movements differ from what merchants were told.

    It changes what is listed (`GET /v1/balance_transactions`, `GET /v1/settlements/recon/combined`) and nothing else.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def add_to(self, app: web.Application) -> None:
        """Register the route."""
        app.router.add_post(f"{CONTROL}/books/{{id}}", control(self._change))

    async def _change(self, request: web.Request) -> web.StreamResponse:
        """Change how a captured payment (`pi_…`, or the order `order_…`) is listed.

        {amount?, currency?: as which it is listed, is_gone?: whether it is left out, extra?: the amount of another
        charge on the same account, which has nothing to do with the payment}.
        """
        body = await json_body(request)
        reference = request.match_info["id"]
        kind = ORDERS if reference.startswith("order_") else "payment_intents"
        owner = self._store.owner_of(kind, reference)
        if owner is None:
            raise LookupError(f"no payment {reference}")
        work = Work(self._store, owner, str(request.url.origin()))
        if kind == ORDERS:
            made = _change_in_razorpay(work, work.must(ORDERS, reference), body)
        else:
            made = _change_in_stripe(work, work.must("payment_intents", reference), body)
        self._store.commit(work)
        await self._store.sync()
        return web.json_response({"made": made})


def _change_in_stripe(work: Work, intent: JsonObject, body: JsonObject) -> str | None:
    charge = work.must("charges", intent["latest_charge"])
    row = work.must("balance_transactions", charge["balance_transaction"])
    row["amount"] = body.get("amount", row["amount"])
    row["currency"] = body.get("currency", row["currency"])
    row["net"] = row["amount"] - row["fee"]
    row["_is_gone"] = body.get("is_gone", False)
    work.put("balance_transactions", row)
    if "extra" not in body:
        return None
    params = {
        "amount": body["extra"],
        "currency": intent["currency"],
        "confirm": True,
        "payment_method": CARD,
        "automatic_payment_methods": {"enabled": True, "allow_redirects": "never"},
    }
    return str(stripe.create(work, params)["id"])


def _change_in_razorpay(work: Work, order: JsonObject, body: JsonObject) -> str | None:
    for payment_id in order["_payments"]:
        payment = work.must(PAYMENTS, payment_id)
        payment["_settled_amount"] = body.get("amount", payment["amount"])
        payment["_settled_currency"] = body.get("currency", payment["currency"])
        payment["_is_gone"] = body.get("is_gone", False)
        work.put(PAYMENTS, payment)
    if "extra" not in body:
        return None
    made = razorpay.create_order(work, {"amount": body["extra"], "currency": order["currency"]})
    paid = work.must(ORDERS, made["id"])
    razorpay.go_on(work, razorpay.begin(work, paid, instrument="success@razorpay"), outcome="paid")
    return str(made["id"])
