"""What is not the merchant at the stand-in's Stripe face: the customer's browser, the bank, the card network."""

from html import escape
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from aiohttp import web

from loop.testing import stub_stripe_intents as intents
from loop.testing import stub_stripe_refunds as refunds
from loop.testing.stub_control import CONTROL, control, json_body
from loop.testing.stub_ledger import JsonObject, Store, Work
from loop.testing.stub_stripe_disputes import move_dispute, open_dispute
from loop.testing.stub_stripe_errors import StripeError
from loop.testing.stub_stripe_forms import check
from loop.testing.stub_stripe_objects import public
from loop.testing.stub_webhooks import Webhooks

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Test bank</title></head>
<body><main><h1>Test bank</h1><p>{question}</p>{form}</main></body></html>
"""
_FORM = """<form method="post">
<button id="authenticate" name="outcome" value="authenticate">Complete authentication</button>
<button id="fail" name="outcome" value="fail">Fail authentication</button>
</form>"""


class StripeCustomer:
    """The bank's page of 3-D Secure, and the control calls that stand for customers, banks and networks."""

    def __init__(self, store: Store, webhooks: Webhooks) -> None:
        self._store = store
        self._webhooks = webhooks

    def add_to(self, app: web.Application) -> None:
        """Register the routes."""
        page = f"{intents.CHALLENGE_PATH}{{challenge}}"
        app.router.add_get(page, self._show_challenge)
        app.router.add_post(page, self._answer_challenge)
        app.router.add_post(f"{CONTROL}/intents/{{id}}/pay", control(self._pay))
        app.router.add_post(f"{CONTROL}/intents/{{id}}/decide", control(self._decide))
        app.router.add_post(f"{CONTROL}/refunds/{{id}}/settle", control(self._settle_refund))
        app.router.add_post(f"{CONTROL}/disputes", control(self._open_dispute))
        app.router.add_post(f"{CONTROL}/disputes/{{id}}/move", control(self._move_dispute))

    async def _show_challenge(self, request: web.Request) -> web.StreamResponse:
        found = self._challenged(request)
        if found is None:
            return _page("This payment is no longer waiting for you.", "", status=404)
        intent = found[1]
        return _page(escape(f"Pay {intent['amount']} {intent['currency'].upper()} (minor units)?"), _FORM)

    async def _answer_challenge(self, request: web.Request) -> web.StreamResponse:
        # The form is read first: nothing may run between reading the intent and keeping it.
        outcome = (await request.post()).get("outcome")
        found = self._challenged(request)
        if found is None:
            return _page("This payment is no longer waiting for you.", "", status=404)
        if outcome not in ("authenticate", "fail"):
            return _page("Choose one of the two buttons.", _FORM, status=400)
        work, intent = found
        self._authenticate(work, intent, has_passed=outcome == "authenticate")
        await self._keep(work)
        is_paid = intent["status"] in ("succeeded", "requires_capture")
        if intent["_return_url"] is None:
            return _page("Paid." if is_paid else "Not paid.", "")
        told = {
            "payment_intent": intent["id"],
            "payment_intent_client_secret": intent["client_secret"],
            "redirect_status": "succeeded" if is_paid else "failed",
        }
        raise web.HTTPSeeOther(_with_query(intent["_return_url"], told))

    async def _pay(self, request: web.Request) -> web.StreamResponse:
        """Confirm an intent as its customer would: {payment_method: token, authenticate: bool or absent}."""
        body = await json_body(request)
        passes = body.pop("authenticate", None)
        work, intent = self._found(request, "payment_intents", object_id=request.match_info["id"])
        if intent["_return_url"] is None:
            body.setdefault("return_url", f"{work.origin}/")
        refusal = _confirmed(work, body)
        if refusal is not None and refusal.status != 402:
            return web.json_response({"error": refusal.body["error"]}, status=409)
        intent = work.must("payment_intents", intent["id"])
        if passes is not None and intent["status"] == "requires_action":
            self._authenticate(work, intent, has_passed=bool(passes))
        await self._keep(work)
        return web.json_response({"intent": public(intent), "error": intent["last_payment_error"]})

    async def _decide(self, request: web.Request) -> web.StreamResponse:
        """Let the bank answer a debit, days after it was sent: by success or failure, as the test account says."""
        work, intent = self._found(request, "payment_intents", object_id=request.match_info["id"])
        intents.decide(work, intent)
        await self._keep(work)
        return web.json_response({"intent": public(intent), "error": intent["last_payment_error"]})

    async def confirm_in_browser(
        self, request: web.Request, sent: JsonObject, *, client_secret: str
    ) -> tuple[int, JsonObject]:
        """Confirm an intent for whoever holds its secret; return the status and body of Stripe's answer."""
        try:
            work, intent = self._found(request, "payment_intents", object_id=request.match_info["id"])
        except LookupError:
            return 404, {"error": {"type": "invalid_request_error", "message": "No such payment_intent"}}
        if intent["client_secret"] != client_secret:
            return 401, {"error": {"type": "invalid_request_error", "message": "The client_secret does not match."}}
        refusal = _confirmed(work, sent)
        if refusal is None or refusal.status == 402:
            await self._keep(work)
        if refusal is not None:
            return refusal.status, refusal.body
        return 200, public(work.must("payment_intents", intent["id"]))

    async def _settle_refund(self, request: web.Request) -> web.StreamResponse:
        """Finish a refund: {status: succeeded | failed}."""
        body = await json_body(request)
        work, refund = self._found(request, "refunds", object_id=request.match_info["id"])
        settled = refunds.settle(work, refund, status=str(body["status"]))
        await self._keep(work)
        return web.json_response(public(settled))

    async def _open_dispute(self, request: web.Request) -> web.StreamResponse:
        """Dispute, or inquire about, {charge | payment_intent, amount?, reason?, inquiry?}."""
        body = await json_body(request)
        charge_id = body.get("charge")
        if charge_id is None:
            _, intent = self._found(request, "payment_intents", object_id=str(body["payment_intent"]))
            charge_id = intent["latest_charge"]
        work, charge = self._found(request, "charges", object_id=str(charge_id))
        if charge["disputed"] or not charge["captured"]:
            raise ValueError("only a captured charge that was never disputed can be disputed")
        dispute = open_dispute(
            work,
            charge,
            amount_minor=body.get("amount"),
            reason=body.get("reason", "fraudulent"),
            is_inquiry=bool(body.get("inquiry")),
        )
        await self._keep(work)
        return web.json_response(public(dispute), status=201)

    async def _move_dispute(self, request: web.Request) -> web.StreamResponse:
        """Let a dispute go on: {status: needs_response | under_review | won | lost | warning_closed | …}."""
        body = await json_body(request)
        work, dispute = self._found(request, "disputes", object_id=request.match_info["id"])
        moved = move_dispute(work, dispute, status=str(body["status"]))
        await self._keep(work)
        return web.json_response(public(moved))

    def _challenged(self, request: web.Request) -> tuple[Work, JsonObject] | None:
        challenge = request.match_info["challenge"]
        owner = self._store.owner_of("challenges", challenge)
        if owner is None:
            return None
        work = Work(self._store, owner, str(request.url.origin()))
        intent = work.must("payment_intents", work.must("challenges", challenge)["intent"])
        return (work, intent) if intent["_challenge"] == challenge else None

    def _found(self, request: web.Request, kind: str, *, object_id: str) -> tuple[Work, JsonObject]:
        owner = self._store.owner_of(kind, object_id)
        if owner is None:
            raise LookupError(f"no {kind} {object_id}")
        work = Work(self._store, owner, str(request.url.origin()), target=object_id)
        return work, work.must(kind, object_id)

    def _authenticate(self, work: Work, intent: JsonObject, *, has_passed: bool) -> None:
        try:
            intents.authenticate(work, intent, has_passed=has_passed)
        except StripeError as declined:
            if declined.status != 402:
                raise

    async def _keep(self, work: Work) -> None:
        self._store.commit(work)
        self._webhooks.publish(work.account, work.events)
        await self._store.sync()


def _confirmed(work: Work, sent: JsonObject) -> StripeError | None:
    """Confirm the intent that a work is about; return how Stripe refuses, if it does.

    Stripe's form shows the mandate of a debit, and whoever confirms there has accepted it.
    """
    accepted = {"customer_acceptance": {"type": "online"}}
    try:
        intents.confirm(work, {"mandate_data": accepted, **check(sent, intents.CONFIRM)})
    except StripeError as refusal:
        return refusal
    return None


def _page(question: str, form: str, *, status: int = 200) -> web.Response:
    return web.Response(text=_PAGE.format(question=question, form=form), content_type="text/html", status=status)


def _with_query(url: str, told: dict[str, str]) -> str:
    parts = urlsplit(url)
    query = urlencode([*parse_qsl(parts.query, keep_blank_values=True), *told.items()])
    return urlunsplit(parts._replace(query=query))
