"""What processors serve to browsers: stand-ins for Stripe's and Razorpay's scripts and frames, which pay at the stub.

A browser test sends what the page asks of a processor's host here: `https://js.stripe.com/endive/stripe.js` is at
`<stub>/_browser/js.stripe.com/endive/stripe.js`.
"""

from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from loop.testing import stub_stripe_intents as intents
from loop.testing.stub_control import Handler
from loop.testing.stub_razorpay_customer import RazorpayCustomer
from loop.testing.stub_stripe_customer import StripeCustomer

PREFIX: Final = "/_browser"
HOSTS: Final = frozenset({"js.stripe.com", "api.stripe.com", "checkout.razorpay.com", "api.razorpay.com"})
"""The hosts that the stub stands in for, in a browser."""

_FILES: Final = Path(__file__).parent / "browser"
_SERVED: Final = {
    "/js.stripe.com/endive/stripe.js": "stripe.js",
    "/js.stripe.com/fields.html": "fields.html",
    "/checkout.razorpay.com/v1/checkout.js": "razorpay.js",
    "/api.razorpay.com/v1/checkout/public": "checkout.html",
}
_ANY_ORIGIN: Final = {"Access-Control-Allow-Origin": "*"}


def at_stub(stub_url: str, url: str) -> str | None:
    """Return where the stub serves an address of a processor's host, or None for any other address."""
    parts = urlsplit(url)
    if parts.scheme != "https" or parts.netloc not in HOSTS:
        return None
    query = f"?{parts.query}" if parts.query else ""
    return f"{stub_url}{PREFIX}/{parts.netloc}{parts.path}{query}"


class BrowserFace:
    """The routes of the scripts and frames, and of what they call."""

    def __init__(self, stripe: StripeCustomer, razorpay: RazorpayCustomer) -> None:
        self._stripe = stripe
        self._razorpay = razorpay

    def add_to(self, app: web.Application) -> None:
        """Register the routes."""
        for path, name in _SERVED.items():
            app.router.add_get(f"{PREFIX}{path}", _serving(_FILES / name))
        confirm = f"{PREFIX}/api.stripe.com/v1/payment_intents/{{id}}/confirm"
        app.router.add_post(confirm, self._confirm)
        app.router.add_post(f"{PREFIX}/api.razorpay.com/v1/checkout/pay", self._pay)

    async def _confirm(self, request: web.Request) -> web.StreamResponse:
        """Confirm an intent as Stripe.js does: with the publishable key and the intent's own secret."""
        form = {name: str(value) for name, value in (await request.post()).items()}
        if not form.pop("key", "").startswith("pk_"):
            return _refused(401, "Invalid API Key provided")
        sent = {name: form[name] for name in intents.CONFIRM if name in form}
        status, body = await self._stripe.confirm_in_browser(request, sent, client_secret=form.get("client_secret", ""))
        return web.json_response(body, status=status, headers=_ANY_ORIGIN)

    async def _pay(self, request: web.Request) -> web.StreamResponse:
        """Try to pay an order in Checkout's frame; answer what Checkout hands to the page's handler."""
        form = {name: str(value) for name, value in (await request.post()).items()}
        told = await self._razorpay.pay_in_browser(
            request, form.get("order", ""), instrument=form.get("instrument", "")
        )
        return web.json_response(told or {}, status=400 if told is None else 200)


def _serving(path: Path) -> Handler:
    async def serve(_: web.Request) -> web.StreamResponse:
        return web.FileResponse(path)

    return serve


def _refused(status: int, message: str) -> web.Response:
    error = {"type": "invalid_request_error", "message": message}
    return web.json_response({"error": error}, status=status, headers=_ANY_ORIGIN)
