"""Checkout sessions and their pages: create, read, expire, pay in a browser without script, come back."""

import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

from loop.domain.money import Money
from loop.server.request import FORM_MAX_BYTES
from loop.workflows.checkout import told
from loop.workflows.orders import NewOrder, creating
from tests.api.client import Answer, Shop

SESSION = {
    "amount": 4999,
    "currency": "EUR",
    "successUrl": "https://shop.example/thanks?s={SESSION_ID}",
    "cancelUrl": "https://shop.example/basket?s={SESSION_ID}",
    "customerId": "c-1",
    "customerEmail": "zoe@example.com",
    "metadata": {"basket": 7},
    "lineItems": [{"name": "Tea <b>& cake", "amount": 2500, "quantity": 2}],
}
SCRIPT = "<script>alert(1)</script>"


async def new_session(shop: Shop, **changed: object) -> dict[str, Any]:
    answer = await shop.post("/v1/checkout/sessions", {**SESSION, **changed})
    assert answer.status == 201, answer.text
    created: dict[str, Any] = answer.body
    return created


async def browse(shop: Shop, method: str, url: str, form: str = "") -> Answer:
    """Go to a page as a browser does: no key, and forms are sent as forms."""
    url = url if url.startswith("http") else shop.url + url
    headers = {"Content-Type": "application/x-www-form-urlencoded"} if form else {}
    return await shop.call(method, url, raw=form.encode() if form else None, headers=headers, auth={})


async def follow(shop: Shop, answer: Answer) -> Answer:
    """Follow redirects as long as they stay with us."""
    while answer.status == 303 and (answer.headers["Location"].startswith((shop.url, "/"))):
        answer = await browse(shop, "GET", answer.headers["Location"])
    return answer


async def pay_on_page(shop: Shop, url: str, result: str = "approved") -> Answer:
    """Press Pay, pick a result on the sandbox's page, and go where that leads."""
    at_sandbox = await browse(shop, "POST", url)
    assert at_sandbox.status == 303
    sandbox_url = at_sandbox.headers["Location"]
    assert sandbox_url.startswith(f"{shop.url}/sandbox/payments/")
    assert (await browse(shop, "GET", sandbox_url)).status == 200
    return await follow(shop, await browse(shop, "POST", sandbox_url, f"result={result}"))


async def test_a_session_is_created_as_the_contract_says(shop: Shop) -> None:
    created = await new_session(shop)
    assert set(created) == {"id", "url", "expiresAt"}
    assert created["id"].startswith("cs_")
    assert created["url"] == f"{shop.url}/checkout/{created['id']}"
    read = (await shop.get(f"/v1/checkout/sessions/{created['id']}")).body
    assert set(read) == {
        "id", "url", "amount", "currency", "status", "orderId", "customerId", "customerEmail", "metadata",
        "lineItems", "expiresAt", "completedAt", "createdAt",
    }  # fmt: skip
    assert (read["url"], read["expiresAt"]) == (created["url"], created["expiresAt"])
    assert (read["status"], read["completedAt"]) == ("open", None)
    for name in ("amount", "currency", "customerId", "customerEmail", "metadata", "lineItems"):
        assert read[name] == SESSION[name]
    order = (await shop.get(f"/v1/orders/{read['orderId']}")).body
    assert (order["amount"], order["status"], order["expiresAt"]) == (4999, "pending", read["expiresAt"])


async def test_a_session_needs_little(shop: Shop) -> None:
    created = await shop.post("/v1/checkout/sessions", {"amount": 1, "successUrl": "https://shop.example"})
    read = (await shop.get(f"/v1/checkout/sessions/{created.body['id']}")).body
    assert (read["currency"], read["lineItems"], read["metadata"]) == ("USD", [], {})


NO_SESSIONS: list[dict[str, Any]] = [
    {"amount": None}, {"amount": 0}, {"successUrl": None}, {"successUrl": "javascript:alert(1)"},
    {"cancelUrl": "ftp://x"}, {"expiresIn": 59}, {"expiresIn": 31 * 86_400}, {"expiresIn": "60"},
    {"lineItems": [{"name": "x"}]}, {"lineItems": [{"name": "", "amount": 1, "quantity": 1}]},
    {"lineItems": [{"name": "x", "amount": -1, "quantity": 1}]}, {"lineItems": {}},
    {"lineItems": [{"name": "x", "amount": 1, "quantity": 0}]}, {"lineItems": [{"name": "x", "amount": 1}] * 101},
    {"status": "completed"}, {"orderId": "ord_x"},
]  # fmt: skip


async def test_a_bad_session_is_refused(shop: Shop) -> None:
    for changed in NO_SESSIONS:
        answer = await shop.post("/v1/checkout/sessions", {**SESSION, **changed})
        assert (answer.status, answer.code) == (400, "validation_failed"), changed
    assert (await shop.get("/v1/orders")).body["data"] == []


async def test_a_session_is_its_merchants_own(shop: Shop, bare_shop: Shop) -> None:
    session = await new_session(shop)
    for answer in (
        await bare_shop.get(f"/v1/checkout/sessions/{session['id']}"),
        await bare_shop.post(f"/v1/checkout/sessions/{session['id']}/expire"),
        await shop.get("/v1/checkout/sessions/cs_nothing"),
    ):
        assert (answer.status, answer.code) == (404, "not_found")
    order = await shop.order()
    foreign = {"orderId": order["id"], "successUrl": "https://shop.example"}
    assert (await bare_shop.post("/v1/checkout/sessions", foreign)).code == "not_found"


async def test_a_session_for_an_order_that_is_there(shop: Shop) -> None:
    order = await shop.order(amount=777, returnUrl="https://shop.example/order")
    created = await shop.post(
        "/v1/checkout/sessions", {"orderId": order["id"], "successUrl": "https://shop.example/thanks"}
    )
    read = (await shop.get(f"/v1/checkout/sessions/{created.body['id']}")).body
    assert (read["orderId"], read["amount"]) == (order["id"], 777)
    done = await pay_on_page(shop, created.body["url"])
    assert done.headers["Location"] == "https://shop.example/thanks"
    again = await shop.post("/v1/checkout/sessions", {"orderId": order["id"], "successUrl": "https://shop.example"})
    assert (again.status, again.code) == (400, "invalid_status")


async def test_a_customer_pays_without_script(shop: Shop) -> None:
    session = await new_session(shop)
    page = await browse(shop, "GET", session["url"])
    assert page.status == 200
    assert "€49.99" in page.text
    assert "Tea &lt;b&gt;&amp; cake" in page.text
    assert f"https://shop.example/basket?s={session['id']}" in page.text
    done = await pay_on_page(shop, session["url"])
    assert (done.status, done.headers["Location"]) == (303, f"https://shop.example/thanks?s={session['id']}")
    read = (await shop.get(f"/v1/checkout/sessions/{session['id']}")).body
    assert read["status"] == "completed"
    assert read["completedAt"]
    assert (await shop.get(f"/v1/orders/{read['orderId']}")).body["status"] == "captured"
    types = [event["eventType"] for event in (await shop.get("/v1/events")).body["data"]]
    assert types.count("checkout.completed") == 1


async def test_a_paid_page_says_so_and_pays_no_more(shop: Shop) -> None:
    session = await new_session(shop)
    await pay_on_page(shop, session["url"])
    page = await browse(shop, "GET", session["url"])
    assert "This is paid" in page.text
    assert f"https://shop.example/thanks?s={session['id']}" in page.text
    assert "<form" not in page.text
    again = await browse(shop, "POST", session["url"])
    assert (again.status, again.headers["Location"]) == (303, f"/checkout/{session['id']}")
    order_id = (await shop.get(f"/v1/checkout/sessions/{session['id']}")).body["orderId"]
    assert len((await shop.get(f"/v1/orders/{order_id}/transactions")).body) == 1


async def test_a_declined_customer_tries_again_until_the_tries_are_used_up(shop: Shop) -> None:
    session = await new_session(shop)
    for number in (1, 2, 3):
        page = await pay_on_page(shop, session["url"], "declined")
        assert page.status == 200
        assert "declined" in page.text
        assert ("Try again" in page.text) is (number < 3)
        assert ("as often as it can be" in page.text) is (number == 3)
    assert (await browse(shop, "POST", session["url"])).headers["Location"] == f"/checkout/{session['id']}"
    other = await new_session(shop)
    await pay_on_page(shop, other["url"], "failed")
    done = await pay_on_page(shop, other["url"])
    assert done.headers["Location"].startswith("https://shop.example/thanks")


async def test_a_second_click_finds_the_first_payment(shop: Shop) -> None:
    session = await new_session(shop)
    first = await browse(shop, "POST", session["url"])
    second = await browse(shop, "POST", session["url"])
    assert second.headers["Location"] == first.headers["Location"]
    page = await browse(shop, "GET", session["url"])
    assert f'href="{first.headers["Location"]}"' in page.text


async def test_an_expired_page_says_so(shop: Shop) -> None:
    session = await new_session(shop)
    path = f"/v1/checkout/sessions/{session['id']}/expire"
    expired, again = await shop.post(path), await shop.post(path)
    assert (expired.status, expired.body["status"]) == (200, "expired")
    assert (again.status, again.text) == (200, expired.text)
    page = await browse(shop, "GET", session["url"])
    assert "expired" in page.text
    assert "<form" not in page.text
    assert (await browse(shop, "POST", session["url"])).headers["Location"] == f"/checkout/{session['id']}"
    order = (await shop.get(f"/v1/orders/{expired.body['orderId']}")).body
    assert (order["status"], order["attemptCount"]) == ("pending", 0)
    types = [event["eventType"] for event in (await shop.get("/v1/events")).body["data"]]
    assert types.count("checkout.expired") == 1
    paid = await new_session(shop)
    await pay_on_page(shop, paid["url"])
    assert (await shop.post(f"/v1/checkout/sessions/{paid['id']}/expire")).code == "invalid_status"


async def test_a_cancelled_page_says_so(shop: Shop) -> None:
    session = await new_session(shop)
    order_id = (await shop.get(f"/v1/checkout/sessions/{session['id']}")).body["orderId"]
    await shop.post(f"/v1/orders/{order_id}/cancel")
    page = await browse(shop, "GET", session["url"])
    assert "cancelled" in page.text
    assert "<form" not in page.text
    assert (await shop.get(f"/v1/checkout/sessions/{session['id']}")).body["status"] == "expired"


async def test_pages_answer_errors_as_pages(shop: Shop, bare_shop: Shop) -> None:
    for path in ("/checkout/cs_nothing", "/checkout/%00", "/return/att_nothing", "/sandbox/payments/sbx_a_page",
                 "/sandbox/challenge/x", "/sandbox/payments/%3Cscript%3E"):  # fmt: skip
        page = await browse(shop, "GET", path)
        assert page.status == 404, path
        assert page.headers["Content-Type"].startswith("text/html")
        assert "<script" not in page.text
        assert "There is no such page" in page.text
    session = await new_session(bare_shop)
    refused = await browse(shop, "POST", session["url"])
    assert refused.status == 400
    assert "The shop cannot take this payment at the moment." in refused.text
    assert "/api/processors" not in refused.text
    assert "<form" in refused.text


async def test_pages_hold_to_a_strict_policy_and_escape_what_merchants_write(shop: Shop) -> None:
    session = await new_session(shop, lineItems=[{"name": SCRIPT, "amount": 1, "quantity": 1}],
                                successUrl=f"https://shop.example/{SCRIPT.replace(' ', '')}?\"'")  # fmt: skip
    policy = (await browse(shop, "GET", session["url"])).headers["Content-Security-Policy"]
    assert policy.endswith(f"form-action 'self' {shop.url}")
    at_sandbox = (await browse(shop, "POST", session["url"])).headers["Location"]
    for url, may_lead_to_shop in ((session["url"], False), (at_sandbox, True)):
        page = await browse(shop, "GET", url)
        policy = page.headers["Content-Security-Policy"]
        assert "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; base-uri 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert ("https://shop.example" in policy) is may_lead_to_shop
        assert page.headers["Referrer-Policy"] == "no-referrer"
        assert "payment=()" in page.headers["Permissions-Policy"]
        assert SCRIPT not in page.text
        assert not re.search(r"style=|<style|\son\w+=|<script(?! src=)", page.text)
    style = await browse(shop, "GET", "/assets/pages.css")
    assert (style.status, style.headers["Content-Type"]) == (200, "text/css; charset=utf-8")
    assert style.headers["Cache-Control"] == "public, max-age=3600"


async def test_a_challenge_leads_back_to_the_address_of_pay(shop: Shop) -> None:
    order = await shop.order(returnUrl="https://shop.example/order")
    content = {"paymentMethod": {"type": "card", "token": "tok_3ds"}, "returnUrl": "https://shop.example/pay?a=1#end"}
    paid = (await shop.post(f"/v1/orders/{order['id']}/pay", content)).body
    assert paid["status"] == "requires_action"
    assert paid["redirectUrl"].startswith(f"{shop.url}/sandbox/challenge/")
    page = await browse(shop, "GET", paid["redirectUrl"])
    assert 'value="approved"' in page.text
    assert 'value="declined"' not in page.text
    done = await follow(shop, await browse(shop, "POST", paid["redirectUrl"], "result=approved"))
    url = urlsplit(done.headers["Location"])
    assert (url.netloc, url.path, url.fragment) == ("shop.example", "/pay", "end")
    assert parse_qs(url.query) == {"a": ["1"], "orderId": [order["id"]], "status": ["captured"]}
    assert (await shop.get(f"/v1/orders/{order['id']}")).body["status"] == "captured"
    over = await browse(shop, "GET", paid["redirectUrl"])
    assert "does not wait" in over.text


async def test_coming_back_leads_to_the_orders_address_or_to_a_plain_page(shop: Shop) -> None:
    for fields, expected in (({"returnUrl": "https://shop.example/order"}, 303), ({}, 200)):
        order = await shop.order(**fields)
        paid = (await shop.post(f"/v1/orders/{order['id']}/pay", {})).body
        done = await follow(shop, await browse(shop, "POST", paid["redirectUrl"], "result=failed"))
        assert done.status == expected
        if expected == 303:
            assert done.headers["Location"] == f"https://shop.example/order?orderId={order['id']}&status=failed"
        else:
            assert "not made" in done.text
        read = (await shop.get(f"/v1/orders/{order['id']}")).body
        assert read["lastError"]["code"] == "authentication_failed"


async def test_a_result_that_the_page_did_not_sign_changes_nothing(shop: Shop) -> None:
    order = await shop.order()
    paid = (await shop.post(f"/v1/orders/{order['id']}/pay", {})).body
    assert (await browse(shop, "POST", paid["redirectUrl"], "result=free")).status == 400
    assert (await browse(shop, "POST", paid["redirectUrl"], "result=" + "x" * FORM_MAX_BYTES)).status == 413
    signed = (await browse(shop, "POST", paid["redirectUrl"], "result=declined")).headers["Location"]
    forged = signed.replace("sandbox_result=declined", "sandbox_result=approved")
    for url in (forged, signed.split("?")[0], signed.split("?")[0] + "?sandbox_result=approved&sandbox_signature=é"):
        assert (await browse(shop, "GET", url)).status == 200
        assert (await shop.get(f"/v1/orders/{order['id']}")).body["status"] == "requires_action"
    for _ in range(2):
        assert (await browse(shop, "GET", signed)).status == 200
    assert (await shop.get(f"/v1/orders/{order['id']}")).body["status"] == "failed"


def test_an_address_is_told_id_and_status_beside_what_it_has(shop: Shop) -> None:
    order, _ = creating(shop.context, "mer_x", NewOrder(Money(1, "USD")))
    added = f"orderId={order.id}&status=pending"
    assert told("https://a.example", order) == f"https://a.example?{added}"
    assert told("https://a.example/?b=%20&b=2#c", order) == f"https://a.example/?b=%20&b=2&{added}#c"
