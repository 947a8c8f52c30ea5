"""The stand-in in a browser's eyes: it serves what stands in for the scripts, and pays for whoever holds the secret."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import stripe

from loop.processors.razorpay_session import DEFAULT_API_BASE
from loop.server.checkout_forms import RAZORPAY_SCRIPT, STRIPE_SCRIPT
from loop.testing.stub_browser import at_stub
from loop.testing.stub_psp import StubProcessor
from tests.contract.stub_clients import sdk

KEY = "pk_test_loop"


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[StubProcessor]:
    async with StubProcessor(ledger_path=tmp_path / "ledger.jsonl") as running:
        yield running


@pytest.fixture
async def intent(stub: StubProcessor) -> AsyncIterator[stripe.PaymentIntent]:
    """Yield an intent that waits for its customer."""
    async with sdk(stub.url) as client:
        yield await client.v1.payment_intents.create_async(
            {"amount": 4999, "currency": "eur", "automatic_payment_methods": {"enabled": True}}
        )


async def confirm(stub: StubProcessor, intent: stripe.PaymentIntent, **changed: str) -> tuple[int, dict[str, object]]:
    """Confirm an intent as Stripe.js does."""
    form = {"key": KEY, "client_secret": str(intent.client_secret), "payment_method": "pm_card_visa",
            "return_url": "http://127.0.0.1/back", **changed}  # fmt: skip
    url = at_stub(stub.url, f"https://api.stripe.com/v1/payment_intents/{intent.id}/confirm")
    async with aiohttp.ClientSession() as session, session.post(str(url), data=form) as answer:
        return answer.status, await answer.json()


@pytest.mark.parametrize(
    "url", [STRIPE_SCRIPT, RAZORPAY_SCRIPT, "https://js.stripe.com/fields.html",
            f"{DEFAULT_API_BASE}/v1/checkout/public?order=order_1"],
)  # fmt: skip
async def test_what_a_page_loads_of_a_processor_is_there(stub: StubProcessor, url: str) -> None:
    async with aiohttp.ClientSession() as session, session.get(str(at_stub(stub.url, url))) as answer:
        assert answer.status == 200
        assert await answer.text()


@pytest.mark.parametrize(
    "url", ["http://js.stripe.com/x", "https://stripe.com/x", "https://evil.example/js.stripe.com"]
)
def test_nothing_else_is_sent_to_the_stand_in(url: str) -> None:
    assert at_stub("http://127.0.0.1:1", url) is None


async def test_the_holder_of_the_secret_pays(stub: StubProcessor, intent: stripe.PaymentIntent) -> None:
    status, body = await confirm(stub, intent)
    assert (status, body["status"]) == (200, "succeeded")
    assert [entry.amount_minor for entry in stub.ledger()] == [4999]
    status, body = await confirm(stub, intent)
    assert status == 400


async def test_a_decline_is_told_and_kept(stub: StubProcessor, intent: stripe.PaymentIntent) -> None:
    status, body = await confirm(stub, intent, payment_method="pm_card_chargeDeclined")
    assert status == 402
    assert isinstance(body["error"], dict)
    assert body["error"]["type"] == "card_error"
    async with sdk(stub.url) as client:
        found = await client.v1.payment_intents.retrieve_async(intent.id)
    assert (found.status, found.last_payment_error is not None) == ("requires_payment_method", True)


@pytest.mark.parametrize("changed", [{"key": "sk_test_x"}, {"client_secret": "pi_x_secret_y"}])
async def test_nobody_else_pays(stub: StubProcessor, intent: stripe.PaymentIntent, changed: dict[str, str]) -> None:
    assert (await confirm(stub, intent, **changed))[0] == 401
    assert stub.ledger() == []
