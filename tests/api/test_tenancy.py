"""Tenancy: to merchant B an id of merchant A is an id that does not exist, at every address, and A loses nothing."""

import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import aiohttp
import pytest
from sqlalchemy import Table, bindparam, select
from sqlmodel import SQLModel
from starlette.routing import Route, Router

from loop.domain.disputes import DisputeStatus
from loop.domain.money import Money
from loop.domain.movements import MovementKind
from loop.domain.reconciliation import CurrencyTotals, Finding, FindingKind
from loop.runtime import Running
from loop.server.app import create_app
from loop.server.middleware import Edge
from loop.storage import disputes, reconciliation
from loop.storage.reconciliation import Run
from loop.storage.statements import Statement
from loop.workflows import merchants
from loop.workflows.merchants import NewApiKey
from tests.api.client import Shop, open_shop
from tests.api.dashboard_desk import Desk, new_desk
from tests.builders import dispute

SECRET_WORDS = "only-a-may-read-this"
"""Stands in every text of A's: no answer to B may hold it."""

RULE = {"name": "Mine", "processors": ["sandbox"]}
REPLAY = {"from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z"}
OFFER = {"amount": 100, "currency": "USD", "lineItems": [{"name": "Tea", "amount": 100, "quantity": 1}],
         "successUrl": "https://b.example.com/", "cancelUrl": "https://b.example.com/"}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """How B tries one address: the names of A's ids stand in braces, in the path, the query and the body."""

    path: str
    content: object = None
    has_own_answer: bool = False
    """B is answered about B's own things, or makes new ones: nothing of A's may be in the answer, but two differ."""


def _of(path: str, content: object = None) -> Case:
    return Case(path, content)


def _own(path: str, content: object = None) -> Case:
    return Case(path, content, has_own_answer=True)


RULE_FORM = {"name": "of b", "enabled": "1", "way": "order", "target_1": "sandbox", "do": "save"}
ORDER, SESSION, RUN = "/v1/orders/{order}", "/v1/checkout/sessions/{session}", "/api/reconciliation/{run}"
ENDPOINT, EVENT, KEY = "/api/webhook-endpoints/{endpoint}", "/api/webhooks/{event}", "/api/api-keys/{key}"
RULES = "/api/routing-rules/{rule}"

CASES: Mapping[tuple[str, str], Sequence[Case]] = {
    ("POST", "/v1/orders"): [
        _own("/v1/orders", {"amount": 100, "currency": "USD"}),
        _of("/v1/orders", {"amount": 100, "currency": "USD", "merchantId": "{merchant}"}),
    ],
    ("GET", "/v1/orders"): [
        _own("/v1/orders?cursor={order}"), _of("/v1/orders?externalId={external}"), _of("/v1/orders?email={email}"),
    ],
    ("GET", "/v1/orders/{order_id}"): [_of(ORDER)],
    ("POST", "/v1/orders/{order_id}/pay"): [
        _of(f"{ORDER}/pay", {"paymentMethod": {"type": "card", "token": "tok_approve"}}),
    ],
    ("POST", "/v1/orders/{order_id}/capture"): [_of(f"{ORDER}/capture", {})],
    ("POST", "/v1/orders/{order_id}/cancel"): [_of(f"{ORDER}/cancel", {})],
    ("GET", "/v1/orders/{order_id}/transactions"): [_of(f"{ORDER}/transactions")],
    ("GET", "/v1/orders/{order_id}/timeline"): [_of(f"{ORDER}/timeline")],
    ("POST", "/v1/orders/{order_id}/refund"): [_of(f"{ORDER}/refund", {"amount": 1})],
    ("GET", "/v1/orders/{order_id}/refunds"): [_of(f"{ORDER}/refunds")],
    ("GET", "/v1/orders/{order_id}/disputes"): [_of(f"{ORDER}/disputes")],
    ("POST", "/v1/checkout/sessions"): [
        _own("/v1/checkout/sessions", OFFER),
        _of("/v1/checkout/sessions", {"orderId": "{order}", "successUrl": OFFER["successUrl"],
                                      "cancelUrl": OFFER["cancelUrl"]}),
    ],
    ("GET", "/v1/checkout/sessions/{session_id}"): [_of(SESSION)],
    ("POST", "/v1/checkout/sessions/{session_id}/expire"): [_of(f"{SESSION}/expire", {})],
    ("GET", "/v1/events"): [_own("/v1/events?cursor={event}"), _own("/v1/events?limit=100")],
    ("GET", "/v1/events/{event_id}"): [_of("/v1/events/{event}")],
    ("POST", "/api/auth/refresh"): [_of("/api/auth/refresh", {"refreshToken": "{sign_in}"})],
    ("POST", "/api/auth/logout"): [_of("/api/auth/logout", {"refreshToken": "{sign_in}"})],
    ("GET", "/api/sessions"): [_own("/api/sessions")],
    ("DELETE", "/api/sessions/{session_id}"): [_of("/api/sessions/{sign_in}")],
    ("GET", "/api/merchants/me"): [_own("/api/merchants/me?id={merchant}")],
    ("PUT", "/api/merchants/me"): [
        _own("/api/merchants/me", {"name": "B and Co"}), _of("/api/merchants/me", {"id": "{merchant}"}),
    ],
    ("GET", "/api/me"): [_own("/api/me")],
    ("PUT", "/api/me"): [_own("/api/me", {"name": "B and Co"}), _of("/api/me", {"merchantId": "{merchant}"})],
    ("GET", "/api/api-keys"): [_own("/api/api-keys")],
    ("POST", "/api/api-keys"): [
        _own("/api/api-keys", {"name": "another"}), _of("/api/api-keys", {"name": "x", "merchantId": "{merchant}"}),
    ],
    ("DELETE", "/api/api-keys/{key_id}"): [_of(KEY)],
    ("POST", "/api/api-keys/{key_id}/rotate"): [_of(f"{KEY}/rotate", {"overlapHours": 0})],
    ("GET", "/api/processors"): [_own("/api/processors")],
    ("POST", "/api/processors/{name}"): [
        _own("/api/processors/sandbox", {"credentials": {}}),
        _of("/api/processors/{account}", {"credentials": {}}),
    ],
    ("PATCH", "/api/processors/{name}"): [
        _own("/api/processors/stripe", {"enabled": False}), _of("/api/processors/{account}", {}),
    ],
    ("DELETE", "/api/processors/{name}"): [_own("/api/processors/sandbox"), _of("/api/processors/{account}")],
    ("GET", "/api/routing-rules"): [_own("/api/routing-rules")],
    ("POST", "/api/routing-rules"): [
        _own("/api/routing-rules", RULE), _of("/api/routing-rules", {**RULE, "merchantId": "{merchant}"}),
    ],
    ("POST", "/api/routing-rules/test"): [
        _own("/api/routing-rules/test", {"amount": 100, "currency": "USD"}),
    ],
    ("GET", "/api/routing-rules/{rule_id}"): [_of(RULES)],
    ("PUT", "/api/routing-rules/{rule_id}"): [_of(RULES, RULE)],
    ("DELETE", "/api/routing-rules/{rule_id}"): [_of(RULES)],
    ("GET", "/api/audit-log"): [_own("/api/audit-log?limit=100"), _own("/api/audit-log?cursor={audit}")],
    ("GET", "/api/webhooks"): [_own("/api/webhooks?limit=100")],
    ("GET", "/api/webhooks/{event_id}/attempts"): [_of(f"{EVENT}/attempts")],
    ("POST", "/api/webhooks/{event_id}/retry"): [_of(f"{EVENT}/retry", {})],
    ("GET", "/api/webhook-endpoints"): [_own("/api/webhook-endpoints")],
    ("POST", "/api/webhook-endpoints"): [
        _own("/api/webhook-endpoints", {"url": "https://b.example.com/hooks", "enabled": False}),
        _of("/api/webhook-endpoints", {"url": "https://b.example.com/", "merchantId": "{merchant}"}),
    ],
    ("GET", "/api/webhook-endpoints/{endpoint_id}"): [_of(ENDPOINT)],
    ("PUT", "/api/webhook-endpoints/{endpoint_id}"): [_of(ENDPOINT, {"url": "https://b.example.com/"})],
    ("PATCH", "/api/webhook-endpoints/{endpoint_id}"): [_of(ENDPOINT, {"enabled": False})],
    ("DELETE", "/api/webhook-endpoints/{endpoint_id}"): [_of(ENDPOINT)],
    ("POST", "/api/webhook-endpoints/{endpoint_id}/rotate-secret"): [_of(f"{ENDPOINT}/rotate-secret", {})],
    ("POST", "/api/webhook-endpoints/{endpoint_id}/promote-secret"): [_of(f"{ENDPOINT}/promote-secret", {})],
    ("POST", "/api/webhook-endpoints/{endpoint_id}/test"): [_of(f"{ENDPOINT}/test", {})],
    ("POST", "/api/webhook-endpoints/{endpoint_id}/replay"): [_of(f"{ENDPOINT}/replay", REPLAY)],
    ("GET", "/api/reconciliation"): [_own("/api/reconciliation")],
    ("GET", "/api/reconciliation/{run_id}"): [_of(RUN)],
    ("GET", "/api/orders"): [
        _of("/api/orders?search={order}"), _of("/api/orders?externalId={external}"), _own("/api/orders"),
    ],
    ("GET", "/api/dashboard/stats"): [_own("/api/dashboard/stats?merchantId={merchant}")],
    ("GET", "/dashboard/overview.json"): [_own("/dashboard/overview.json")],
    ("GET", "/dashboard/overview"): [_own("/dashboard/overview")],
    ("GET", "/dashboard.json"): [_own("/dashboard.json")],
    ("GET", "/dashboard"): [_own("/dashboard")],
    ("GET", "/dashboard/orders.csv"): [_own("/dashboard/orders.csv")],
    ("GET", "/dashboard/orders.json"): [_own("/dashboard/orders.json?q={order}")],
    ("GET", "/dashboard/orders"): [_own("/dashboard/orders?q={external}")],
    ("GET", "/dashboard/orders/{order_id}.json"): [_of("/dashboard/orders/{order}.json")],
    ("GET", "/dashboard/orders/{order_id}"): [_of("/dashboard/orders/{order}")],
    ("POST", "/dashboard/orders/{order_id}/capture"): [_of("/dashboard/orders/{order}/capture", {})],
    ("POST", "/dashboard/orders/{order_id}/cancel"): [_of("/dashboard/orders/{order}/cancel", {})],
    ("POST", "/dashboard/orders/{order_id}/refund"): [_of("/dashboard/orders/{order}/refund", {"amount": "0.01"})],
    ("POST", "/dashboard/orders/{order_id}/retry"): [_of("/dashboard/orders/{order}/retry", {})],
    ("POST", "/dashboard/orders/{order_id}/resend"): [_of("/dashboard/orders/{order}/resend", {"event": "{event}"})],
    ("GET", "/dashboard/refunds.json"): [_own("/dashboard/refunds.json")],
    ("GET", "/dashboard/refunds"): [_own("/dashboard/refunds")],
    ("GET", "/dashboard/disputes.json"): [_own("/dashboard/disputes.json")],
    ("GET", "/dashboard/disputes"): [_own("/dashboard/disputes")],
    ("GET", "/dashboard/reconciliation.json"): [_own("/dashboard/reconciliation.json")],
    ("GET", "/dashboard/reconciliation"): [_own("/dashboard/reconciliation")],
    ("GET", "/dashboard/reconciliation/{run_id}.json"): [_of("/dashboard/reconciliation/{run}.json")],
    ("GET", "/dashboard/reconciliation/{run_id}"): [_of("/dashboard/reconciliation/{run}")],
    ("POST", "/dashboard/orders/{order_id}/review"): [_of("/dashboard/orders/{order}/review", {"note": "settled"})],
    ("POST", "/dashboard/reconciliation/orders/{order_id}/review"): [
        _of("/dashboard/reconciliation/orders/{order}/review", {"note": "settled"}),
    ],
    ("GET", "/dashboard/links.json"): [_own("/dashboard/links.json?cursor={session}")],
    ("GET", "/dashboard/links"): [_own("/dashboard/links?cursor={session}")],
    ("GET", "/dashboard/links/new.json"): [_own("/dashboard/links/new.json")],
    ("GET", "/dashboard/links/new"): [_own("/dashboard/links/new")],
    ("POST", "/dashboard/links/new"): [_own("/dashboard/links/new", {"amount": "1", "currency": "USD", "hours": "1"})],
    ("GET", "/dashboard/links/{session_id}.json"): [_of("/dashboard/links/{session}.json")],
    ("GET", "/dashboard/links/{session_id}"): [_of("/dashboard/links/{session}")],
    ("POST", "/dashboard/links/{session_id}/close"): [_of("/dashboard/links/{session}/close", {})],
    ("GET", "/dashboard/routing.json"): [_own("/dashboard/routing.json")],
    ("GET", "/dashboard/routing"): [_own("/dashboard/routing?amount=1")],
    ("GET", "/dashboard/routing/new.json"): [_own("/dashboard/routing/new.json")],
    ("GET", "/dashboard/routing/new"): [_own("/dashboard/routing/new")],
    ("POST", "/dashboard/routing/new"): [_own("/dashboard/routing/new", RULE_FORM)],
    ("GET", "/dashboard/routing/{rule_id}.json"): [_of("/dashboard/routing/{rule}.json")],
    ("GET", "/dashboard/routing/{rule_id}"): [_of("/dashboard/routing/{rule}")],
    ("POST", "/dashboard/routing/{rule_id}"): [
        _of("/dashboard/routing/{rule}", RULE_FORM), _of("/dashboard/routing/{rule}", {**RULE_FORM, "do": "try"}),
    ],
    **{
        ("POST", f"/dashboard/routing/{{rule_id}}/{name}"): [_of(f"/dashboard/routing/{{rule}}/{name}", {})]
        for name in ("up", "down", "on", "off", "remove")
    },
    ("GET", "/dashboard/audit.json"): [
        _own("/dashboard/audit.json?check=1"), _own("/dashboard/audit.json?subject={merchant}"),
    ],
    ("GET", "/dashboard/audit"): [_own("/dashboard/audit?cursor={audit}")],
    ("GET", "/dashboard/settings.json"): [_own("/dashboard/settings.json")],
    ("GET", "/dashboard/settings"): [_own("/dashboard/settings")],
    ("POST", "/dashboard/settings"): [_own("/dashboard/settings", {"name": "B", "lateSuccess": "accept"})],
    ("POST", "/dashboard/settings/password"): [_own("/dashboard/settings/password", {"current": "a guess"})],
    ("POST", "/dashboard/settings/sessions/others/end"): [_own("/dashboard/settings/sessions/others/end", {})],
    ("POST", "/dashboard/settings/sessions/{session_id}/end"): [
        _of("/dashboard/settings/sessions/{sign_in}/end", {}),
    ],
    **{
        ("POST", f"/dashboard/first-steps/{name}"): [_own(f"/dashboard/first-steps/{name}", {"url": "nowhere"})]
        for name in ("processor", "payment", "webhook", "dismiss")
    },
    ("GET", "/dashboard/processors.json"): [_own("/dashboard/processors.json")],
    ("GET", "/dashboard/processors"): [_own("/dashboard/processors")],
    ("GET", "/dashboard/webhooks.json"): [_own("/dashboard/webhooks.json")],
    ("GET", "/dashboard/webhooks"): [_own("/dashboard/webhooks")],
    ("GET", "/dashboard/api-keys.json"): [_own("/dashboard/api-keys.json")],
    ("GET", "/dashboard/api-keys"): [_own("/dashboard/api-keys")],
    ("GET", "/dashboard/processors/{name}.json"): [_own("/dashboard/processors/sandbox.json")],
    ("GET", "/dashboard/processors/{name}"): [_own("/dashboard/processors/sandbox")],
    ("POST", "/dashboard/processors/{name}/connect"): [
        _own("/dashboard/processors/sandbox/connect", {"priority": "1"}),
    ],
    ("POST", "/dashboard/processors/{name}/credentials"): [
        _own("/dashboard/processors/sandbox/credentials", {"credentials.webhookSecret": "of-b"}),
    ],
    ("POST", "/dashboard/processors/{name}/priority"): [
        _own("/dashboard/processors/sandbox/priority", {"priority": "2"}),
    ],
    ("POST", "/dashboard/processors/{name}/disable"): [_own("/dashboard/processors/sandbox/disable", {})],
    ("POST", "/dashboard/processors/{name}/enable"): [_own("/dashboard/processors/sandbox/enable", {})],
    ("POST", "/dashboard/processors/{name}/test"): [_own("/dashboard/processors/sandbox/test", {})],
    ("POST", "/dashboard/processors/{name}/remove"): [_own("/dashboard/processors/stripe/remove", {})],
    ("GET", "/dashboard/webhooks/new.json"): [_own("/dashboard/webhooks/new.json")],
    ("GET", "/dashboard/webhooks/new"): [_own("/dashboard/webhooks/new")],
    ("POST", "/dashboard/webhooks/new"): [_own("/dashboard/webhooks/new", {"url": "nowhere", "hears": "all"})],
    ("GET", "/dashboard/webhooks/deliveries.json"): [_own("/dashboard/webhooks/deliveries.json?endpoint={endpoint}")],
    ("GET", "/dashboard/webhooks/deliveries"): [_own("/dashboard/webhooks/deliveries?endpoint={endpoint}")],
    ("GET", "/dashboard/webhooks/deliveries/{event_id}/{endpoint_id}.json"): [
        _of("/dashboard/webhooks/deliveries/{event}/{endpoint}.json"),
    ],
    ("GET", "/dashboard/webhooks/deliveries/{event_id}/{endpoint_id}"): [
        _of("/dashboard/webhooks/deliveries/{event}/{endpoint}"),
    ],
    ("POST", "/dashboard/webhooks/deliveries/{event_id}/{endpoint_id}/resend"): [
        _of("/dashboard/webhooks/deliveries/{event}/{endpoint}/resend", {}),
    ],
    ("GET", "/dashboard/webhooks/{endpoint_id}.json"): [_of("/dashboard/webhooks/{endpoint}.json")],
    ("GET", "/dashboard/webhooks/{endpoint_id}"): [_of("/dashboard/webhooks/{endpoint}")],
    ("POST", "/dashboard/webhooks/{endpoint_id}/save"): [
        _of("/dashboard/webhooks/{endpoint}/save", {"url": "https://b.example.com/", "hears": "all"}),
    ],
    ("POST", "/dashboard/webhooks/{endpoint_id}/enable"): [_of("/dashboard/webhooks/{endpoint}/enable", {})],
    ("POST", "/dashboard/webhooks/{endpoint_id}/disable"): [_of("/dashboard/webhooks/{endpoint}/disable", {})],
    ("POST", "/dashboard/webhooks/{endpoint_id}/test"): [_of("/dashboard/webhooks/{endpoint}/test", {})],
    ("POST", "/dashboard/webhooks/{endpoint_id}/replay"): [
        _of("/dashboard/webhooks/{endpoint}/replay", {"since": "2026-01-01T00:00"}),
    ],
    ("POST", "/dashboard/webhooks/{endpoint_id}/promote"): [_of("/dashboard/webhooks/{endpoint}/promote", {})],
    ("POST", "/dashboard/webhooks/{endpoint_id}/remove"): [_of("/dashboard/webhooks/{endpoint}/remove", {})],
    ("POST", "/dashboard/webhooks/{endpoint_id}/rotate"): [_of("/dashboard/webhooks/{endpoint}/rotate", {})],
    ("GET", "/dashboard/api-keys/new.json"): [_own("/dashboard/api-keys/new.json")],
    ("GET", "/dashboard/api-keys/new"): [_own("/dashboard/api-keys/new")],
    ("POST", "/dashboard/api-keys/new"): [_own("/dashboard/api-keys/new", {"name": "", "may": "all"})],
    ("GET", "/dashboard/api-keys/{key_id}.json"): [_of("/dashboard/api-keys/{key}.json")],
    ("GET", "/dashboard/api-keys/{key_id}"): [_of("/dashboard/api-keys/{key}")],
    ("POST", "/dashboard/api-keys/{key_id}/rotate"): [_of("/dashboard/api-keys/{key}/rotate", {"overlap": "0"})],
    ("POST", "/dashboard/api-keys/{key_id}/revoke"): [_of("/dashboard/api-keys/{key}/revoke", {})],
    ("GET", "/dashboard/patterns.json"): [_own("/dashboard/patterns.json")],
    ("GET", "/dashboard/patterns"): [_own("/dashboard/patterns")],
}  # fmt: skip
"""What B tries at each address of a merchant's. A new route has no case here, and that fails."""

FOR_ANYBODY = {
    ("POST", "/api/auth/register"): "nobody has signed in; an address that is taken is told to whoever asks",
    ("POST", "/api/auth/login"): "nobody has signed in; the audit log of the account hears of a guess",
    ("GET", "/health"): "is no merchant's",
    ("GET", "/health/ready"): "is no merchant's",
    ("GET", "/metrics"): "is no merchant's, and the operator's token opens it",
    ("GET", "/assets/{name}"): "is no merchant's",
    ("GET", "/openapi.json"): "is no merchant's",
    ("GET", "/docs"): "is no merchant's",
    ("GET", "/docs/{name}"): "is no merchant's",
    ("GET", "/dashboard/static/{version}/{name:path}"): "is no merchant's",
    ("GET", "/dashboard/sign-in"): "is no merchant's",
    ("POST", "/dashboard/sign-in"): "signs in by a password",
    ("POST", "/dashboard/sign-out"): "ends the session of its own cookie",
    ("POST", "/dashboard/mode"): "sets a cookie",
    ("GET", "/dashboard/welcome"): "there is no merchant yet",
    ("POST", "/dashboard/welcome"): "there is no merchant yet",
    ("GET", "/dashboard/live"): "does not end: test_dashboard_live.py says that it tells of one's own alone",
    ("POST", "/webhooks/{processor}"): "is let in by the signature of an account's secret",
    ("POST", "/webhooks/{processor}/{account_id}"): "is let in by the signature of the account's secret",
    ("GET", "/checkout/{session_id}"): "the address is the customer's own",
    ("POST", "/checkout/{session_id}"): "the address is the customer's own",
    ("GET", "/checkout/{session_id}/state"): "the address is the customer's own",
    ("GET", "/checkout/{session_id}/qr.svg"): "the address is the customer's own",
    ("GET", "/return/{attempt_id}"): "the address is the customer's own",
    ("POST", "/return/{attempt_id}"): "the address is the customer's own",
    ("GET", "/sandbox/challenge/{reference}"): "the address is the test customer's own",
    ("POST", "/sandbox/challenge/{reference}"): "the address is the test customer's own",
    ("GET", "/sandbox/payments/{reference}"): "the address is the test customer's own",
    ("POST", "/sandbox/payments/{reference}"): "the address is the test customer's own",
}
"""Addresses where it does not matter which merchant calls, with the reason."""


@dataclass(frozen=True)
class World:
    """Two merchants with accounts at the sandbox, and A's ids by the names that the cases use."""

    a: Shop
    b: Shop
    ids: Mapping[str, str]


@pytest.fixture
async def world(served: Running, shop: Shop, session: aiohttp.ClientSession) -> World:
    """Return two merchants of whom A has one of everything."""
    other = await open_shop(session, served.url, served.context, name="other")
    await other.use_sandbox()
    return World(shop, other, await _one_of_everything(shop, served))


@pytest.fixture
async def desk(world: World) -> AsyncIterator[Desk]:
    async with new_desk(world.b) as signed_in:
        yield signed_in


async def _made(shop: Shop, path: str, content: object, *, is_person: bool = False) -> dict[str, Any]:
    auth = {"Authorization": f"Bearer {shop.token}"} if is_person else None
    answer = await shop.call("POST", path, content, auth=auth)
    assert answer.status in (200, 201), answer.text
    made: dict[str, Any] = answer.body
    return made


async def _one_of_everything(a: Shop, served: Running) -> dict[str, str]:
    words, context = SECRET_WORDS, served.context
    account = await a.use_sandbox()
    session = await _made(a, "/v1/checkout/sessions", {**OFFER, "customerEmail": f"{words}@example.com"})
    order = await a.paid_order(
        externalId=words, description=words, metadata={"note": words}, customerEmail=f"{words}@example.com"
    )
    refund = await _made(a, f"/v1/orders/{order['id']}/refund", {"amount": 100, "reason": words})
    rule = await _made(a, "/api/routing-rules", {**RULE, "name": words})
    key = await _made(a, "/api/api-keys", {"name": words}, is_person=True)
    timeline = (await a.get(f"/v1/orders/{order['id']}/timeline")).text
    attempt = cast("re.Match[str]", re.search(r"att_[0-9a-z]+", timeline)).group()
    day = context.now().date() - timedelta(days=1)
    finding = Finding(FindingKind.AMOUNT_DIFFERS, MovementKind.CHARGE, words, order["id"], None, Money(4_999, "USD"),
                      Money(3_000, "USD"), context.now())  # fmt: skip
    run = Run(context.new_id("rec"), a.merchant.id, account, "sandbox", day, 3, 0, 0, 0, 1,
              (CurrencyTotals("USD", 4_999, 3_000, 0, 0, 120),), context.now())  # fmt: skip
    opened = dispute(
        id=context.new_id("dsp"), merchant_id=a.merchant.id, order_id=order["id"], attempt_id=attempt,
        processor_config_id=account, processor_reference=words, currency="USD", status=DisputeStatus.OPENED,
    )  # fmt: skip
    async with context.database.transaction() as writing:
        await reconciliation.put(writing, run, [finding])
        await writing.run_together([disputes.insertion(opened)])
    # Last, and switched off: nothing of A's moves by itself from here on.
    endpoint = await _made(
        a, "/api/webhook-endpoints", {"url": f"https://example.com/{words}", "description": words, "enabled": False}
    )
    person = {"Authorization": f"Bearer {a.token}"}
    return {
        "merchant": a.merchant.id, "email": a.merchant.email, "order": order["id"], "external": words,
        "session": session["id"], "refund": refund["refundId"], "attempt": attempt, "rule": rule["id"],
        "key": key["apiKey"]["id"], "account": account, "run": run.id, "dispute": opened.id,
        "endpoint": endpoint["id"], "event": (await a.get("/v1/events")).body["data"][0]["id"],
        "audit": str((await a.get("/api/audit-log")).body["data"][0]["seq"]),
        "sign_in": (await a.get("/api/sessions", auth=person)).body[0]["id"],
    }  # fmt: skip


def _absent(name: str, value: str) -> str:
    """Return a value of the same kind that nobody has."""
    if name == "email":
        return f"nobody-{value}"
    return f"{value[:-4]}{'zzzz' if not value.endswith('zzzz') else 'yyyy'}" if len(value) > 8 else "999999"


def _filled(text: str, ids: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: ids[found.group(1)], text)


def _comparable(text: str, ids: Mapping[str, str]) -> str:
    """Return an answer's text without what differs from one request to the next, and without the ids that were sent."""
    for value in sorted((each for each in ids.values() if len(each) > 8), key=len, reverse=True):
        text = text.replace(value, "<id>")
    text = re.sub(r'"requestId": ?"[^"]*"', "", text)
    return re.sub(r'name="(key|csrf)" value="[^"]*"', "", text)


async def _rows_of(shop: Shop) -> dict[str, list[tuple[object, ...]]]:
    """Read all that a merchant has, from every table."""
    found: dict[str, list[tuple[object, ...]]] = {}
    async with shop.context.database.reading() as reader:
        for table in SQLModel.metadata.sorted_tables:
            owner = table.c.get("merchant_id", table.c.id if table.name == "merchants" else None)
            if owner is not None:
                found[table.name] = await reader.all(_all_of(table, owner.name), {"owner": shop.merchant.id})
    return found


def _all_of(table: Table, owner: str) -> Statement[tuple[object, ...]]:
    kept = [column for column in table.c if column.name != "last_used_at"]  # written down in batches
    return Statement(
        select(*kept).where(table.c[owner] == bindparam("owner")).order_by(*table.primary_key.columns),
        lambda *row: row,
    )


def _routes(served: Running) -> set[tuple[str, str]]:
    app = create_app(served.context)
    assert isinstance(app, Edge)
    router = app._app
    assert isinstance(router, Router)
    # Whatever is mounted or not a plain route would go unseen.
    assert all(isinstance(each, Route) for each in router.routes)
    routes = [each for each in router.routes if isinstance(each, Route)]
    return {(method, each.path) for each in routes for method in (each.methods or ()) if method != "HEAD"}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_every_address_has_a_case(served: Running) -> None:
    assert _routes(served) == {*CASES, *FOR_ANYBODY}
    assert not {*CASES} & {*FOR_ANYBODY}


CALLERS = ("test key", "live key", "person")


async def _auth_of(world: World, caller: str) -> dict[str, str]:
    if caller == "person":
        return {"Authorization": f"Bearer {world.b.token}"}
    if caller == "test key":
        return {"X-API-Key": world.b.key}
    _, secret = await merchants.create_api_key(world.b.context, world.b.merchant.id, NewApiKey("live", mode="live"))
    return {"X-API-Key": secret}


def _require_nothing_of_a(text: str, *, where: object, sent: str, ids: Mapping[str, str]) -> None:
    """Require that an answer holds neither A's words nor ids, apart from what B has sent itself."""
    for name, value in {**ids, "words": SECRET_WORDS}.items():
        if value not in sent and len(value) > 8:
            assert value not in text, f"{where} told B A's {name}"


@pytest.mark.parametrize("caller", CALLERS)
async def test_to_another_merchant_an_id_of_the_api_does_not_exist(world: World, caller: str) -> None:
    auth, before = await _auth_of(world, caller), await _rows_of(world.a)
    assert all(before[name] for name in ("orders", "refunds", "disputes", "webhook_events", "webhook_endpoints"))
    absent = {name: _absent(name, value) for name, value in world.ids.items()}
    for (method, _), cases in CASES.items():
        for case in cases:
            if case.path.startswith("/dashboard"):
                continue
            told = []
            for ids in (world.ids, absent):
                content = json.loads(_filled(json.dumps(case.content), ids))
                path = _filled(case.path, ids)
                answer = await world.b.call(method, path, content, auth=auth)
                assert answer.status < 500, (method, path, answer.text)
                _require_nothing_of_a(answer.text, where=(method, path), sent=f"{path}{content}", ids=world.ids)
                told.append((answer.status, _comparable(answer.text, ids), answer.headers.get("Content-Type")))
            assert case.has_own_answer or told[0] == told[1], (method, case.path)
            assert case.has_own_answer or "{" not in case.path.split("?")[0] or told[0][0] in (400, 403, 404), told
    assert await _rows_of(world.a) == before


async def test_to_another_merchant_an_id_of_the_dashboard_does_not_exist(world: World, desk: Desk) -> None:
    before = await _rows_of(world.a)
    absent = {name: _absent(name, value) for name, value in world.ids.items()}
    own = await world.b.paid_order()
    forms = (await desk.get(f"/dashboard/orders/{own['id']}")).form("/refund")
    for (method, _), cases in CASES.items():
        for case in cases:
            if not case.path.startswith("/dashboard"):
                continue
            told = []
            for ids in (world.ids, absent):
                path = _filled(case.path, ids)
                fields = {
                    name: _filled(value, ids) for name, value in cast("dict[str, str]", case.content or {}).items()
                }
                seen = await (desk.get(path) if method == "GET" else desk.post(path, {**forms, **fields}))
                assert seen.status < 500, (method, path, seen.text)
                _require_nothing_of_a(seen.text, where=(method, path), sent=f"{path}{fields}", ids=world.ids)
                told.append((seen.status, _comparable(seen.text, ids), seen.headers.get("Content-Type")))
            assert case.has_own_answer or told[0] == told[1], (method, case.path)
            assert case.has_own_answer or told[0][0] == 404, (method, case.path, told[0])
    assert await _rows_of(world.a) == before


async def test_the_comparison_would_see_what_is_told(world: World) -> None:
    """A's own answers hold what no answer to B may: the search finds it."""
    answer = await world.a.get(f"/v1/orders/{world.ids['order']}")
    with pytest.raises(AssertionError, match="told B"):
        _require_nothing_of_a(answer.text, where="A", sent=world.ids["order"], ids=world.ids)
    before = await _rows_of(world.a)
    await world.a.call("PUT", "/api/me", {"name": "Changed"})
    assert await _rows_of(world.a) != before


NOT_TO_BE_SET = (
    "merchantId", "merchant_id", "id", "status", "amountCaptured", "amount_captured", "testMode", "is_test",
    "createdAt", "__proto__",
)  # fmt: skip


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/v1/orders", {"amount": 100, "currency": "USD"}),
        ("/v1/checkout/sessions", OFFER),
        ("/api/routing-rules", RULE),
        ("/api/webhook-endpoints", {"url": "https://b.example.com/"}),
    ],
)
async def test_what_is_not_a_caller_s_to_set_is_refused(bare_shop: Shop, path: str, content: dict[str, object]) -> None:
    before = await _rows_of(bare_shop)
    for extra in NOT_TO_BE_SET:
        answer = await bare_shop.post(path, {**content, extra: "mer_1"})
        assert (answer.status, answer.code) == (400, "validation_failed"), extra
    assert await _rows_of(bare_shop) == before
