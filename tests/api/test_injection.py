"""Text that wants to be code: SQL, HTML, templates and headers, in every place that takes text; it stays text."""

import asyncio
import html
import re
import socket
from urllib.parse import quote, urlencode

import pytest

from tests.api.client import Answer, Shop

SQL = (
    "' OR '1'='1", "'; DROP TABLE orders; --", "1) UNION SELECT id, email FROM merchants --", "\" OR \"\"=\"",
    "%' AND (SELECT 1 FROM pg_sleep(5))::text='1", "\\'; --", "/**/", "%_\\",
)  # fmt: skip
MARKUP = (
    "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "' onmouseover='alert(1)", "</title><svg onload=x>",
    "{{7*7}}", "${7*7}", "{% include 'base.html' %}", "#{7*7}", "<!--", "javascript:alert(1)", "&lt;b&gt;",
)  # fmt: skip
NAMES = (
    "\u05d3\u05d5\u05d3 \u05db\u05d4\u05df", "\u0645\u062d\u0645\u062f", "\u202eevil\u202c",
    "\U0001f469\u200d\U0001f4bb", "\U0001f1e9\U0001f1ea", "Zoe\u0301", "Zo\u00e9", "\u200b", "\ufeff",
    "\u0928\u092e\u0938\u094d\u0924\u0947", "\U0010ffff",
    "İstanbul", "a\u0300\u0301\u0302\u0303" * 20, "line\nbreak\ttab", "\x7f\x1b[31m",
)  # fmt: skip


@pytest.mark.parametrize("texts", [SQL, MARKUP, NAMES], ids=["sql", "markup", "names"])
async def test_text_comes_back_exactly_and_finds_only_itself(shop: Shop, texts: tuple[str, ...]) -> None:
    for text in texts:
        order = await shop.order(
            externalId=text, customerId=text, description=text, metadata={text: [text, {"a": text}]}
        )
        read = (await shop.get(f"/v1/orders/{order['id']}")).body
        for field in ("externalId", "customerId", "description"):
            assert read[field] == text
        assert read["metadata"] == {text: [text, {"a": text}]}
        found = await shop.get("/v1/orders?" + urlencode({"externalId": text}))
        assert [each["id"] for each in found.body["data"]] == [order["id"]], text
    assert len((await shop.get("/v1/orders?limit=100")).body["data"]) == len(texts)


FILTERS = {
    "/v1/orders": (
        "status", "processor", "currency", "externalId", "createdFrom", "createdTo", "createdAfter", "createdBefore",
        "amountFrom", "amountTo", "minAmount", "maxAmount", "cursor", "limit", "sort", "order",
    ),
    "/v1/events": ("cursor", "limit", "type", "orderId"),
    "/api/orders": ("page", "limit", "status", "processor", "currency", "externalId", "sort", "order"),
    "/api/webhooks": ("page", "limit", "status", "sort"),
    "/api/dashboard/stats": ("from", "to", "currency"),
    "/api/audit-log": ("cursor", "limit"),
    "/api/reconciliation": ("cursor", "limit", "page"),
}  # fmt: skip


async def test_sql_in_a_filter_a_sort_or_a_path_finds_nothing_and_breaks_nothing(shop: Shop) -> None:
    await shop.order()
    person = {"Authorization": f"Bearer {shop.token}"}
    for path, names in FILTERS.items():
        for name in names:
            for text in SQL[:4]:
                answer = await shop.get(f"{path}?{urlencode({name: text})}", auth=person)
                assert answer.status in (200, 400), (path, name, text)
                if answer.status == 200 and path == "/v1/orders" and name == "externalId":
                    assert answer.body["data"] == []
    for text in SQL:
        for path in (
            "/v1/orders/",
            "/v1/events/",
            "/checkout/",
            "/return/",
            "/webhooks/sandbox/",
            "/sandbox/payments/",
        ):
            answer = await shop.get(path + quote(text, safe=""))
            assert answer.status in (404, 405), (path, text)
    assert len((await shop.get("/v1/orders")).body["data"]) == 1


async def test_sql_in_a_header_breaks_nothing(shop: Shop) -> None:
    for text in SQL:
        for name in ("X-API-Key", "Authorization", "X-Correlation-ID", "User-Agent", "Accept-Language", "X-Loop-Mode"):
            answer = await shop.get("/v1/orders", auth={}, headers={name: text})
            assert (answer.status, answer.code) == (
                401,
                "missing_credentials" if name != "X-API-Key" else "invalid_api_key",
            )
        answer = await shop.post("/v1/orders", {"amount": 1}, headers={"Idempotency-Key": text})
        assert answer.status == 201
        again = await shop.post("/v1/orders", {"amount": 1}, headers={"Idempotency-Key": text})
        assert again.body["id"] == answer.body["id"]
    assert len((await shop.get("/v1/orders?limit=100")).body["data"]) == len(SQL)


def say(shop: Shop, head: bytes) -> bytes:
    """Send a head as it is and return all that comes back until the connection ends."""
    host, port = shop.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=15) as connection:
        connection.sendall(head)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        return answer


async def test_line_breaks_in_a_value_make_no_header(shop: Shop) -> None:
    evil = "x\r\nSet-Cookie: a=b\r\n\r\n<script>"
    for path in (f"/{quote(evil)}", f"/v1/orders/{quote(evil)}", f"/checkout/{quote(evil)}", f"/return/{quote(evil)}"):
        answer = await shop.get(path, auth={})
        assert "Set-Cookie" not in answer.headers
        assert answer.status in (401, 404)
    for raw in (b"x\rSet-Cookie: a=b", b"x\nSet-Cookie: a=b", b"x\x00y"):
        head = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Correlation-ID: " + raw + b"\r\n\r\n"
        answered = await asyncio.to_thread(say, shop, head)
        assert b"set-cookie" not in answered.lower(), raw
    order = await shop.post("/v1/orders", {"amount": 1, "returnUrl": f"https://shop.example/{evil}"})
    assert (order.status, order.code) == (400, "validation_failed")


def require_inert(page: Answer, texts: tuple[str, ...], template_result: str = "49") -> None:
    """Require that a page shows texts as text: as many tags as before, no attribute of theirs."""
    assert page.status == 200, page.text
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "unsafe" not in page.headers["Content-Security-Policy"]
    for text in texts:
        if "<" in text or '"' in text:
            assert text not in page.text, text
    assert not re.search(r"<[^>]*\s(onerror|onload|onmouseover)\s*=", page.text)
    assert "alert(1)" not in "".join(re.findall(r"<script.*?</script>", page.text, re.DOTALL))
    assert template_result not in html.unescape(re.sub(r"<[^>]*>", "", page.text)).split()


async def test_markup_and_templates_are_inert_on_the_checkout_page(shop: Shop) -> None:
    for text in MARKUP:
        content = {
            "amount": 1234, "currency": "USD", "successUrl": "https://shop.example/?a=<b>", "customerId": text,
            "cancelUrl": "https://shop.example/'><b>", "metadata": {text: text},
            "lineItems": [{"name": text, "amount": 1234, "quantity": 1}],
        }  # fmt: skip
        session = await shop.post("/v1/checkout/sessions", content)
        assert session.status == 201, session.text
        page = await shop.get(session.body["url"], auth={})
        require_inert(page, MARKUP)
        assert text in html.unescape(page.text)


async def test_markup_in_a_merchants_name_is_inert_on_its_pages(shop: Shop) -> None:
    person = {"Authorization": f"Bearer {shop.token}"}
    for text in MARKUP[:5]:
        assert (await shop.call("PUT", "/api/merchants/me", {"name": text}, auth=person)).status == 200
        order = await shop.order(description=text)
        content = {"orderId": order["id"], "successUrl": "https://shop.example/",
                   "cancelUrl": "https://shop.example/"}  # fmt: skip
        session = await shop.post("/v1/checkout/sessions", content)
        assert session.status == 201, session.text
        page = await shop.get(session.body["url"], auth={})
        require_inert(page, MARKUP)
        assert html.unescape(page.text).count(text) >= 2  # the name and the description are shown


async def test_the_sandboxs_pages_show_nothing_that_was_sent(shop: Shop) -> None:
    order = await shop.order(description=MARKUP[0], externalId=MARKUP[1])
    paid = await shop.post(
        f"/v1/orders/{order['id']}/pay",
        {
            "paymentMethod": {"type": "card", "token": "tok_3ds"},
            "returnUrl": f"https://shop.example/?{MARKUP[0]}".replace("<", "%3C"),
        },
    )
    page = await shop.get(paid.body["redirectUrl"], auth={})
    require_inert(page, MARKUP)
    for text in MARKUP:
        unknown = await shop.get(f"/sandbox/challenge/{quote(text, safe='')}", auth={})
        assert unknown.status == 404
        assert text not in unknown.text
