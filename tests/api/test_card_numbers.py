"""Card numbers, wherever a stranger, a merchant or a customer may put one: refused or dropped, kept nowhere."""

import json
from collections.abc import Mapping

import pytest

from tests.api.client import PASSWORD, Shop
from tests.api.dashboard_desk import new_desk

CARD = "4242424242424242"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}

REFUSED = (
    ("GET", f"/v1/orders?externalId={CARD}", None),
    ("GET", f"/api/orders?search={CARD[:4]}%20{CARD[4:8]}%20{CARD[8:12]}%20{CARD[12:]}", None),
    ("POST", "/v1/orders", {"amount": 1, "metadata": {CARD: "a"}}),
    ("POST", "/v1/checkout/sessions", {"amount": 1, "currency": "USD", "successUrl": f"https://shop.example/{CARD}"}),
    ("POST", "/api/routing-rules", {"name": CARD, "processors": ["sandbox"]}),
    ("POST", "/api/webhook-endpoints", {"url": f"https://shop.example/?c={CARD}"}),
    ("POST", "/api/processors/stripe", {"credentials": {"secretKey": CARD}}),
    ("PUT", "/api/me", {"name": CARD}),
    ("POST", "/api/auth/login", {"email": f"{CARD}@example.com", "password": "a password"}),
    ("POST", "/api/auth/refresh", {"refreshToken": CARD}),
)


@pytest.mark.parametrize(("method", "path", "content"), REFUSED)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_card_number_in_a_request_is_refused(
    shop: Shop, method: str, path: str, content: Mapping[str, object] | None
) -> None:
    answer = await shop.call(method, path, content)
    assert (answer.status, answer.code) == (400, "raw_card_data")


async def test_a_card_number_is_kept_and_answered_nowhere(shop: Shop, database_url: str) -> None:
    """Headers, addresses, webhooks and forms: the fixtures search the log, and SQLite's file, for it afterwards."""
    assert database_url
    session = await shop.post(
        "/v1/checkout/sessions", {"amount": 100, "currency": "USD", "successUrl": "https://a.example"}
    )
    answers = [
        await shop.get(f"/v1/orders/{CARD}"),
        await shop.get(f"/{CARD}"),
        await shop.get(f"/checkout/{CARD}"),
        *[
            await shop.post("/v1/orders", {"amount": 1}, headers={name: CARD})
            for name in ("X-Correlation-ID", "X-Request-ID", "User-Agent", "Origin", "X-Forwarded-For")
        ],
        await shop.post("/v1/orders", {"amount": 1}, headers={"Idempotency-Key": CARD}),
        await shop.post("/v1/orders", {"amount": 1}, auth={"X-API-Key": CARD}),
        await shop.post("/webhooks/sandbox", {"card": CARD}, headers={"X-Sandbox-Signature": CARD}),
        await shop.call("POST", f"/checkout/{session.body['id']}", raw=f"card={CARD}".encode(), headers=FORM),
        await shop.call("POST", f"/return/{CARD}", raw=f"card={CARD}".encode(), headers=FORM),
    ]
    async with new_desk(shop) as desk:
        pages = [
            await desk.get(f"/dashboard/orders?q={CARD}"),
            await desk.post("/dashboard/sign-in", {"email": f"{CARD}@a.example", "password": CARD}),
        ]
        login = {"email": shop.merchant.email, "password": PASSWORD}
        told = await shop.post("/api/auth/login", login, auth={}, headers={"User-Agent": f"till {CARD}"})
        person = {"Authorization": f"Bearer {told.body['token']}"}
        answers += [told, await shop.get("/api/sessions", auth=person), await shop.get("/api/audit-log")]
        assert told.status == 200
    texts = [each.text for each in answers] + [each.text for each in pages]
    headers = [each.headers for each in answers] + [each.headers for each in pages]
    for told_in in (*texts, *(json.dumps(dict(each)) for each in headers)):
        assert CARD not in told_in
