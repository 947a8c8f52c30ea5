"""Clients for the stand-in processor's tests: Stripe's official SDK, and plain HTTP for what the SDK cannot say."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import aiohttp
import stripe
from stripe.params import PaymentIntentCreateParams

from loop.testing.stub_psp import StubProcessor

API_KEY = "sk_test_first"
METADATA = {"loop_attempt_id": "att_1"}

stripe.enable_telemetry = False


@asynccontextmanager
async def sdk(url: str, api_key: str = API_KEY) -> AsyncIterator[stripe.StripeClient]:
    """Yield Stripe's own client, pointed at the stub by base URL alone."""
    http = stripe.AIOHTTPClient(timeout=5)
    try:
        yield stripe.StripeClient(api_key, base_addresses={"api": url}, http_client=http, max_network_retries=0)
    finally:
        await http.close_async()  # type: ignore[no-untyped-call] # the SDK left this one out


def payment(card: str = "pm_card_visa", **more: object) -> PaymentIntentCreateParams:
    """Return the parameters of a charge in one call, without redirects."""
    params = {
        "amount": 1000,
        "currency": "usd",
        "confirm": True,
        "payment_method": card,
        "automatic_payment_methods": {"enabled": True, "allow_redirects": "never"},
        "metadata": METADATA,
        **more,
    }
    return cast("PaymentIntentCreateParams", params)


async def control(stub: StubProcessor, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
    """Call the control plane (GET without a body, POST with one) and return its answer."""
    method = "GET" if body is None else "POST"
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"{stub.url}/_control/{path}", json=body) as answer,
    ):
        answer.raise_for_status()
        told: dict[str, Any] = await answer.json()
        return told


def charges(stub: StubProcessor) -> list[tuple[str, int]]:
    """Return the ledger as (kind, amount in minor units), oldest first."""
    return [(entry.kind, entry.amount_minor) for entry in stub.ledger()]
