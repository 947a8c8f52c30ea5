"""The checkout page with real processors' forms: what it may reach, what it says after a decline, who is tried next."""

from collections.abc import AsyncIterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from loop.storage import attempts
from loop.testing.stub_faults import Fault
from loop.testing.stub_psp import StubProcessor
from tests.api.client import Answer, Shop

STRIPE = {"secretKey": "sk_test_loop", "publishableKey": "pk_test_loop", "webhookSecret": "whsec_loop"}
RAZORPAY = {"keyId": "rzp_test_loop", "keySecret": "a-key-secret", "webhookSecret": "a-webhook-secret"}


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[StubProcessor]:
    async with StubProcessor(ledger_path=tmp_path / "ledger") as running_stub:
        yield running_stub


@pytest.fixture
def flags(stub: StubProcessor) -> dict[str, object]:
    return {"stripe_api_base": stub.url, "razorpay_api_base": stub.url}


async def connect(shop: Shop, **processors: dict[str, str]) -> None:
    """Connect processors, and have them tried in this order."""
    auth = {"Authorization": f"Bearer {shop.token}"}
    for name, credentials in processors.items():
        answer = await shop.call("POST", f"/api/processors/{name}", {"credentials": credentials}, auth=auth)
        assert answer.status == 200, answer.text
    rule = {"name": "in order", "priority": 1, "conditions": {}, "processors": list(processors)}
    assert (await shop.call("POST", "/api/routing-rules", rule, auth=auth)).status == 201


async def new_session(shop: Shop, **changed: object) -> dict[str, Any]:
    wanted = {"amount": 4999, "currency": "EUR", "successUrl": "https://shop.example/thanks", **changed}
    answer = await shop.post("/v1/checkout/sessions", wanted)
    assert answer.status == 201, answer.text
    created: dict[str, Any] = answer.body
    return created


async def browse(shop: Shop, method: str, url: str, *, accepted: str = "") -> Answer:
    url = url if url.startswith("http") else shop.url + url
    return await shop.call(method, url, auth={}, headers={"Accept-Language": accepted} if accepted else {})


async def begun(shop: Shop, session: dict[str, Any]) -> Answer:
    """Press Pay, and return the page that this leads to."""
    pressed = await browse(shop, "POST", session["url"])
    assert (pressed.status, pressed.headers["Location"]) == (303, f"/checkout/{session['id']}")
    return await browse(shop, "GET", session["url"])


async def order_of(shop: Shop, session: dict[str, Any]) -> dict[str, Any]:
    read = (await shop.get(f"/v1/checkout/sessions/{session['id']}")).body
    order: dict[str, Any] = (await shop.get(f"/v1/orders/{read['orderId']}")).body
    return order


async def confirm(shop: Shop, stub: StubProcessor, session: dict[str, Any], card: str) -> Answer:
    """Let the customer confirm with a card at Stripe; return the answer that they come back to."""
    intent = (await order_of(shop, session))["processorOrderId"]
    await shop.call("POST", f"{stub.url}/_control/intents/{intent}/pay", {"payment_method": card}, auth={})
    attempt = (await browse(shop, "GET", f"/checkout/{session['id']}/state")).body["attempt"]
    return await browse(shop, "GET", f"/return/{attempt}")


def directives(page: Answer) -> dict[str, str]:
    policy = page.headers["Content-Security-Policy"]
    return {name: sources for name, _, sources in (each.partition(" ") for each in policy.split("; "))}


BASIC = {
    "default-src": "'none'",
    "style-src": "'self'",
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
}


async def test_the_page_that_stripe_is_on_may_reach_stripe(bare_shop: Shop) -> None:
    await connect(bare_shop, stripe=STRIPE)
    session = await new_session(bare_shop)
    before = await browse(bare_shop, "GET", session["url"])
    assert "stripe" not in before.text.lower()
    assert directives(before) == {
        **BASIC, "script-src": "'self'", "connect-src": "'self'", "form-action": f"'self' {bare_shop.url}",
    }  # fmt: skip
    page = await begun(bare_shop, session)
    assert directives(page) == {
        **BASIC,
        "script-src": "'self' https://js.stripe.com https://*.js.stripe.com",
        "connect-src": "'self' https://api.stripe.com",
        "frame-src": "https://js.stripe.com https://*.js.stripe.com https://hooks.stripe.com",
        "form-action": "'self'",
    }
    assert page.headers["Referrer-Policy"] == "strict-origin"
    assert 'payment=(self "https://js.stripe.com")' in page.headers["Permissions-Policy"]
    assert page.headers["Cache-Control"] == "no-store"
    assert '<script src="https://js.stripe.com/endive/stripe.js" defer>' in page.text
    assert STRIPE["secretKey"] not in page.text


async def test_the_page_that_razorpay_is_on_may_reach_razorpay(bare_shop: Shop, stub: StubProcessor) -> None:
    await connect(bare_shop, razorpay=RAZORPAY)
    page = await begun(bare_shop, await new_session(bare_shop, currency="INR", customerEmail="zoe@example.com"))
    assert directives(page) == {
        **BASIC,
        "script-src": "'self' https://checkout.razorpay.com https://cdn.razorpay.com",
        "connect-src": "'self' https://api.razorpay.com https://lumberjack.razorpay.com",
        "frame-src": "https://api.razorpay.com https://checkout.razorpay.com",
        "img-src": "https://cdn.razorpay.com",
        "form-action": f"'self' {stub.url}",  # which stands in for api.razorpay.com
    }
    assert '<script src="https://checkout.razorpay.com/v1/checkout.js" defer>' in page.text
    assert 'name="prefill[email]" value="zoe@example.com"' in page.text
    assert RAZORPAY["keySecret"] not in page.text
    assert "stripe" not in page.text.lower()


async def test_a_card_s_own_decline_is_said_and_the_payment_waits_for_another(
    bare_shop: Shop, stub: StubProcessor
) -> None:
    await connect(bare_shop, stripe=STRIPE, sandbox={})
    session = await new_session(bare_shop)
    await begun(bare_shop, session)
    back = await confirm(bare_shop, stub, session, "pm_card_chargeDeclinedInsufficientFunds")
    assert (back.status, back.headers["Location"]) == (303, session["url"])
    page = await browse(bare_shop, "GET", session["url"])
    assert "There is not enough money available." in page.text
    assert 'id="stripe"' in page.text
    order = await order_of(bare_shop, session)
    assert (order["status"], order["attemptCount"]) == ("requires_action", 1)
    assert (await confirm(bare_shop, stub, session, "pm_card_visa")).headers["Location"].startswith("https://shop")
    assert [entry.amount_minor for entry in stub.ledger()] == [4999]


async def test_a_lost_card_reads_like_any_other_decline(bare_shop: Shop, stub: StubProcessor) -> None:
    await connect(bare_shop, stripe=STRIPE)
    session = await new_session(bare_shop)
    await begun(bare_shop, session)
    await confirm(bare_shop, stub, session, "pm_card_chargeDeclinedLostCard")
    page = await browse(bare_shop, "GET", session["url"])
    assert "The payment was declined. Please try another card" in page.text
    assert "lost" not in page.text.lower()


async def test_the_next_processor_is_tried_once_the_first_has_confirmed_that_it_is_over(
    bare_shop: Shop, stub: StubProcessor
) -> None:
    await connect(bare_shop, stripe=STRIPE, sandbox={})
    session = await new_session(bare_shop)
    await begun(bare_shop, session)
    intent = (await order_of(bare_shop, session))["processorOrderId"]
    await confirm(bare_shop, stub, session, "pm_card_chargeDeclined")
    page = await browse(bare_shop, "GET", session["url"])
    assert "Try again: pay €49.99" in page.text
    assert (await order_of(bare_shop, session))["status"] == "failed"
    stub.faults.arm(Fault(kind="status", method="POST", path=f"/v1/payment_intents/{intent}/cancel", status=503))
    refused = await browse(bare_shop, "POST", session["url"])
    assert refused.status == 409
    assert "Your last try is still being closed." in refused.text
    assert (await order_of(bare_shop, session))["attemptCount"] == 1
    pressed = await browse(bare_shop, "POST", session["url"])
    assert "/sandbox/payments/" in pressed.headers["Location"]
    order = await order_of(bare_shop, session)
    assert (order["processor"], order["attemptCount"]) == ("sandbox", 2)
    tried = (await bare_shop.get(f"/v1/orders/{order['id']}/timeline")).text
    assert "after stripe failed: declined" in tried


async def test_a_payment_that_went_well_at_the_fence_is_the_order_s(bare_shop: Shop, stub: StubProcessor) -> None:
    await connect(bare_shop, stripe=STRIPE, sandbox={})
    session = await new_session(bare_shop)
    await begun(bare_shop, session)
    intent = (await order_of(bare_shop, session))["processorOrderId"]
    await confirm(bare_shop, stub, session, "pm_card_chargeDeclined")
    # Another tab still has Stripe's form, and pays by it.
    sent = {"payment_method": "pm_card_visa"}
    await bare_shop.call("POST", f"{stub.url}/_control/intents/{intent}/pay", sent, auth={})
    pressed = await browse(bare_shop, "POST", session["url"])
    assert pressed.headers["Location"] == f"/checkout/{session['id']}"
    assert "This is paid." in (await browse(bare_shop, "GET", session["url"])).text
    order = await order_of(bare_shop, session)
    assert (order["status"], order["attemptCount"]) == ("captured", 1)
    assert [entry.amount_minor for entry in stub.ledger()] == [4999]


async def test_a_shop_s_own_form_is_not_ended_by_a_decline(bare_shop: Shop, stub: StubProcessor) -> None:
    await connect(bare_shop, stripe=STRIPE, sandbox={})
    order = await bare_shop.order()
    paid = (await bare_shop.post(f"/v1/orders/{order['id']}/pay", {})).body
    intent = (await bare_shop.get(f"/v1/orders/{order['id']}")).body["processorOrderId"]
    sent = {"payment_method": "pm_card_chargeDeclined"}
    await bare_shop.call("POST", f"{stub.url}/_control/intents/{intent}/pay", sent, auth={})
    async with bare_shop.context.database.reading() as reader:
        ((attempt, _),) = await attempts.of_order(reader, bare_shop.merchant.id, order["id"])
    await browse(bare_shop, "GET", f"/return/{attempt.id}")
    now = (await bare_shop.get(f"/v1/orders/{order['id']}")).body
    async with bare_shop.context.database.reading() as reader:
        ((attempt, _),) = await attempts.of_order(reader, bare_shop.merchant.id, order["id"])
    assert attempt.error_code == "declined"
    assert (paid["status"], now["status"], now["attemptCount"]) == ("requires_action", "requires_action", 1)


async def test_without_a_publishable_key_the_page_says_that_it_cannot_go_on(bare_shop: Shop) -> None:
    await connect(bare_shop, stripe={"secretKey": "sk_test_loop"})
    page = await begun(bare_shop, await new_session(bare_shop))
    assert "Your payment goes on in the shop." in page.text
    assert "js.stripe.com" not in page.text + page.headers["Content-Security-Policy"]


async def test_a_page_tells_whether_it_has_moved_on(shop: Shop) -> None:
    session = await new_session(shop)
    state = f"/checkout/{session['id']}/state"
    assert (await browse(shop, "GET", state)).body == {"face": "payable", "attempt": ""}
    await browse(shop, "POST", session["url"])
    now = (await browse(shop, "GET", state)).body
    assert (now["face"], now["attempt"][:4]) == ("waiting", "att_")
    page = (await browse(shop, "GET", session["url"])).text
    assert f'data-face="waiting" data-attempt="{now["attempt"]}"' in page
    assert (await browse(shop, "GET", "/checkout/cs_nothing/state")).status == 404


async def test_the_customer_s_language_stays_with_them(shop: Shop) -> None:
    session = await new_session(shop)
    page = await browse(shop, "GET", session["url"], accepted="de-DE,en;q=0.5")
    assert '<html lang="de" dir="ltr">' in page.text
    assert "49,99\xa0€ bezahlen" in unescape(page.text)
    assert page.headers["Content-Language"] == "de"
    assert page.headers["Vary"] == "Accept-Language"
    asked = await browse(shop, "GET", f"{session['url']}?lang=hi", accepted="de")
    assert '<html lang="hi"' in asked.text
    at_sandbox = (await browse(shop, "POST", f"{session['url']}?lang=hi")).headers["Location"]
    assert at_sandbox.endswith("?lang=hi")
    signed = await shop.call(
        "POST", at_sandbox, raw=b"result=insufficient_funds", auth={},
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )  # fmt: skip
    back = await browse(shop, "GET", signed.headers["Location"])
    assert back.headers["Location"] == f"{session['url']}?lang=hi"
    assert "पर्याप्त राशि उपलब्ध नहीं है।" in (await browse(shop, "GET", back.headers["Location"])).text


async def test_a_page_has_a_code_for_a_phone_s_camera(shop: Shop) -> None:
    session = await new_session(shop)
    code = await browse(shop, "GET", f"/checkout/{session['id']}/qr.svg")
    assert (code.status, code.headers["Content-Type"]) == (200, "image/svg+xml")
    assert code.text.startswith("<svg")
    assert f"<title>{session['url']}</title>" in code.text
    assert (await browse(shop, "GET", "/checkout/cs_nothing/qr.svg")).status == 404
