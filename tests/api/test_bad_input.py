"""Bad input over HTTP: a clear 4xx in the contract's shape, nothing stored, never a 500."""

import asyncio
import json
import socket
from contextlib import suppress
from typing import Any

import pytest

from loop.server import request
from loop.server.request import BODY_MAX_BYTES
from tests.api.client import Shop

CARD = "4242 4242 4242 4242"
CARD_AS_NUMBER = 4242424242424242


async def stored(shop: Shop) -> int:
    return len((await shop.get("/v1/orders?limit=100")).body["data"])


UNSOUND: list[bytes] = [
    b"x", b"{", b'{"amount":1', b"[]", b"[1]", b'"text"', b"1", b"null", b"true", b'{"amount":1}{}', b"{'a':1}",
    b'\xef\xbb\xbf{"amount":1}', b'{"amount":NaN}', b'{"amount":Infinity}', b'{"amount":-Infinity}',
    b'{"amount":1,"metadata":{"a":NaN}}', b'{"amount":1,"amount":2}', b'{"amount":1,"metadata":{"a":1,"a":1}}',
    b'{"amount":1,"metadata":{"a":1e400}}', b'{"amount":1,"metadata":{"a":9223372036854775808}}',
    b'{"amount":1' + b"0" * 300 + b"}", b'{"amount":-1' + b"0" * 300 + b"}",
    b'{"amount":1,"metadata":{"a":' + b"9" * 5000 + b"}}", b'{"amount":1,"description":"\xff\xfe"}',
    b'{"amount":1,"description":"\xed\xa0\x80"}', b'{"amount":1,"description":"\\ud800"}',
    b'{"amount":1,"description":"\\udc00\\ud800"}', b'{"amount":1,"metadata":{"\\udfff":1}}',
    b'{"amount":1,"description":"\\u0000"}', b'{"amount":1,"metadata":{"a\\u0000":1}}',
    b'{"amount":1,"metadata":{"a":["b",{"c":"\\u0000"}]}}', b'{"amount":1,"description":"\x00"}',
    b'{"amount":1,"metadata":' + b'{"a":' * 40 + b"1" + b"}" * 41,
    b'{"amount":1,"metadata":{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}}",
    b"[" * 60_000, b'{"a":' * 10_000,
    json.dumps({"amount": 1, "metadata": {str(n): n for n in range(1001)}}).encode(),
]  # fmt: skip


async def test_what_is_no_sound_json_is_refused(shop: Shop) -> None:
    for raw in UNSOUND:
        answer = await shop.post("/v1/orders", raw=raw)
        assert (answer.status, answer.code) == (400, "invalid_json"), raw[:48]
    assert await stored(shop) == 0


NO_ORDERS: list[dict[str, Any]] = [
    {}, {"amount": None}, {"amount": 0}, {"amount": -1}, {"amount": 1.5}, {"amount": 1.0}, {"amount": "1"},
    {"amount": True}, {"amount": [1]}, {"amount": {}}, {"amount": 10**12 + 1}, {"amount": 2**63 - 1},
    {"amount": 1e300}, {"amount": False}, {"amount": -(2**63)},
    {"amount": 1, "currency": 5}, {"amount": 1, "currency": None}, {"amount": 1, "externalId": ""},
    {"amount": 1, "externalId": "x" * 256}, {"amount": 1, "externalId": 5}, {"amount": 1, "customerId": "x" * 256},
    {"amount": 1, "customerEmail": "nobody"}, {"amount": 1, "customerEmail": "a" * 320 + "@b"},
    {"amount": 1, "description": "x" * 1001}, {"amount": 1, "metadata": []}, {"amount": 1, "metadata": "{}"},
    {"amount": 1, "returnUrl": "javascript:alert(1)"}, {"amount": 1, "returnUrl": "https://"},
    {"amount": 1, "returnUrl": "//shop.example"}, {"amount": 1, "returnUrl": "https://a@shop.example"},
    {"amount": 1, "returnUrl": "https://shop.example/\r\nSet-Cookie: a=b"},
    {"amount": 1, "returnUrl": "https://shop.example/" + "x" * 2048}, {"amount": 1, "returnUrl": "https://[::1"},
    {"amount": 1, "cancelUrl": "https://shop.example:99999/"}, {"amount": 1, "captureMethod": "later"},
    {"amount": 1, "country": "deu"}, {"amount": 1, "expiresAt": 1900000000},
    {"amount": 1, "expiresAt": "2030-01-01T00:00:00"}, {"amount": 1, "expiresAt": "soon"},
    {"amount": 1, "expiresAt": "2020-01-01T00:00:00Z"}, {"amount": 1, "expiresAt": "9999-12-31T23:59:59-14:00"},
    {"amount": 1, "status": "captured"}, {"amount": 1, "merchantId": "mer_1"}, {"amount": 1, "amountCaptured": 1},
    {"amount": 1, "external_id": "x"}, {"amount": 1, "id": "ord_1"}, {"amount": 1, "<script>": 1},
]  # fmt: skip


async def test_what_no_order_may_be_is_refused(shop: Shop) -> None:
    for fields in NO_ORDERS:
        answer = await shop.post("/v1/orders", fields)
        assert (answer.status, answer.code) == (400, "validation_failed"), fields
        assert answer.body["details"]
        for problem in answer.body["details"]:
            assert set(problem) == {"field", "message"}
        wrong = answer.body["details"][0]
        assert wrong["field"] in fields or wrong["field"] == "amount"
        assert answer.body["message"].startswith(wrong["field"])
    assert await stored(shop) == 0


NO_CURRENCIES: list[str] = ["XXX", "US", "DOLLAR", "", "U$D", "usdx", "\u0000", "İNR"]


async def test_an_unknown_currency_is_refused(shop: Shop) -> None:
    for currency in NO_CURRENCIES:
        answer = await shop.post("/v1/orders", {"amount": 1, "currency": currency})
        assert (answer.status, answer.code) == (400, "invalid_json" if currency == "\0" else "invalid_currency"), (
            currency
        )


def test_problems_are_named_without_what_was_sent() -> None:
    class Sent(request.Body):
        some_number: request.Amount

    with pytest.raises(Exception, match="someNumber: must be a valid integer") as caught:
        request.parse(Sent, {"someNumber": "hunter2"})
    assert "hunter2" not in repr(caught.value.__dict__)


CARDS: list[dict[str, Any]] = [
    {"description": CARD}, {"description": f"paid with {CARD.replace(' ', '')}!"}, {"externalId": CARD},
    {"metadata": {"a": [{"b": CARD.replace(" ", "-")}]}}, {"metadata": {CARD: 1}},
    {"metadata": {"n": CARD_AS_NUMBER}}, {"metadata": {"n": -CARD_AS_NUMBER}},
    {"metadata": {"n": CARD.replace(" ", "\u00a0")}},
    {"unknown": CARD}, {"amount": CARD}, {"amount": CARD_AS_NUMBER},
    {"returnUrl": f"https://shop.example/?card={CARD_AS_NUMBER}"},
]  # fmt: skip


async def test_a_card_number_anywhere_is_refused(shop: Shop) -> None:
    for fields in CARDS:
        for text in (json.dumps({"amount": 1, **fields}), json.dumps({"amount": 1, **fields}, ensure_ascii=False)):
            answer = await shop.post("/v1/orders", raw=text.encode())
            assert (answer.status, answer.code) == (400, "raw_card_data"), text
            assert "4242" not in answer.text.replace(answer.body["requestId"], "")
    assert await stored(shop) == 0


async def test_a_card_number_behind_escapes_is_refused(shop: Shop) -> None:
    hidden = "".join(f"\\u{ord(digit):04x}" for digit in str(CARD_AS_NUMBER))
    answer = await shop.post("/v1/orders", raw=f'{{"amount":1,"description":"{hidden}"}}'.encode())
    assert answer.code == "raw_card_data"
    order = await shop.order()
    paid = {"paymentMethod": {"type": "card", "token": str(CARD_AS_NUMBER)}}
    assert (await shop.post(f"/v1/orders/{order['id']}/pay", paid)).code == "raw_card_data"
    assert (await shop.get(f"/v1/orders/{order['id']}")).body["status"] == "pending"


async def test_a_long_number_that_is_no_card_is_fine(shop: Shop) -> None:
    order = await shop.order(externalId="4242424242424243", metadata={"n": 1234567890123456})
    assert order["externalId"] == "4242424242424243"


async def test_bad_payment_methods_are_refused(shop: Shop) -> None:
    order = await shop.order()
    wrong: tuple[dict[str, object], ...] = (
        {"paymentMethod": {"type": "cash"}}, {"paymentMethod": {}}, {"paymentMethod": "card"}, {"retry": 1},
        {"paymentMethod": {"type": "card", "number": "1"}}, {"paymentMethod": {"type": "card", "token": ""}},
        {"processor": ""}, {"processor": 5}, {"processor": "x" * 41}, {"returnUrl": "ftp://shop.example"},
    )  # fmt: skip
    for content in wrong:
        answer = await shop.post(f"/v1/orders/{order['id']}/pay", content)
        assert (answer.status, answer.code) == (400, "validation_failed"), content
    assert (await shop.get(f"/v1/orders/{order['id']}")).body["status"] == "pending"


async def test_an_absent_body_is_an_empty_one(shop: Shop) -> None:
    for raw in (b"", b"  \n", b"{}"):
        answer = await shop.post("/v1/orders", raw=raw)
        assert (answer.status, answer.code) == (400, "validation_failed")
        assert answer.body["details"] == [{"field": "amount", "message": "is required"}]


async def test_a_large_body_is_refused(shop: Shop) -> None:
    room = BODY_MAX_BYTES - len('{"amount":1,"metadata":{"a":""}}')
    fits = b'{"amount":1,"metadata":{"a":"' + b"x" * room + b'"}}'
    assert (await shop.post("/v1/orders", raw=fits)).status == 201
    for size in (BODY_MAX_BYTES + 1, 10_000_000):
        answer = await shop.post("/v1/orders", raw=b'{"a":"' + b"x" * size)
        assert (answer.status, answer.code) == (413, "body_too_large")
    assert await stored(shop) == 1


def ask(shop: Shop, head: str, *parts: bytes) -> bytes:
    """Send raw bytes and return all that comes back until the connection ends."""
    host, port = shop.url.removeprefix("http://").split(":")
    key = f"Host: x\r\nX-API-Key: {shop.key}\r\n"
    with socket.create_connection((host, int(port)), timeout=15) as connection:
        connection.sendall(f"POST /v1/orders HTTP/1.1\r\n{key}{head}\r\n\r\n".encode())
        answer = b""
        with suppress(OSError):  # the server has closed: what it said is still to be read
            for part in parts:
                connection.sendall(part)
        with suppress(ConnectionResetError):  # it closes while we still send
            while chunk := connection.recv(65536):
                answer += chunk
        return answer


async def test_a_body_without_end_is_refused(shop: Shop) -> None:
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    answer = await asyncio.to_thread(ask, shop, "Transfer-Encoding: chunked", *([chunk] * 260))
    assert b" 413 " in answer.splitlines()[0]
    assert b"body_too_large" in answer
    assert b"connection: close" in answer.lower()


async def test_a_body_that_stops_is_refused(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "BODY_DEADLINE_S", 0.2)
    answer = await asyncio.to_thread(ask, shop, "Content-Length: 100", b"{")
    assert b" 400 " in answer.splitlines()[0]
    assert b"body_too_slow" in answer


FRAMINGS = {
    "two lengths": "Content-Length: 2\r\nContent-Length: 3",
    "a length and chunks": "Content-Length: 2\r\nTransfer-Encoding: chunked",
    "a negative length": "Content-Length: -1",
    "a length in words": "Content-Length: two",
    "a length in hex": "Content-Length: 0x2",
    "an unknown coding": "Transfer-Encoding: gzip",
    "a space before the colon": "Content-Length : 2",
    "a folded header": "X-Folded: a\r\n b",
}


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_a_request_whose_end_two_readers_could_see_differently_is_refused(shop: Shop, framing: str) -> None:
    answer = await asyncio.to_thread(ask, shop, f"{FRAMINGS[framing]}\r\nConnection: close", b"{}\r\n")
    assert answer.splitlines()[0].startswith(b"HTTP/1.1 400 "), answer
    assert b"Server" not in answer
    assert await stored(shop) == 0


async def test_too_many_headers_and_too_long_a_query_are_refused(shop: Shop) -> None:
    many = await shop.get("/health", headers={f"X-{n}": "1" for n in range(110)})
    assert (many.status, many.code) == (400, "too_many_headers")
    large = await shop.get("/health", headers={f"X-{n}": "x" * 8_000 for n in range(5)})
    assert (large.status, large.code) == (400, "headers_too_large")
    long = await shop.get(f"/v1/orders?externalId={'x' * 9000}")
    assert (long.status, long.code) == (400, "query_too_long")
