"""The dashboard's processors: connected, tested, changed and removed; credentials go in and never come out."""

from collections.abc import AsyncIterator
from datetime import timedelta
from html import unescape
from pathlib import Path

import aiohttp
import pytest

from loop.domain.attempts import Unknown
from loop.domain.breakers import MIN_CALLS
from loop.domain.ids import PREFIX_PROCESSOR_EVENT, make_id
from loop.processors.base import CredentialField
from loop.runtime import Running
from loop.storage import audit, processor_events
from loop.storage.processor_events import ProcessorEvent
from loop.testing.stub_psp import StubProcessor
from loop.workflows import processor_configs
from tests.api.client import Shop, open_shop
from tests.api.dashboard_desk import Desk, Seen, new_desk

HERE = "/dashboard/processors"
KEY = "sk_test_a_canary_at_stripe"
HOOK = "whsec_a_canary_of_webhooks"


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[StubProcessor]:
    async with StubProcessor(ledger_path=tmp_path / "ledger") as running_stub:
        yield running_stub


@pytest.fixture
def flags(stub: StubProcessor) -> dict[str, object]:
    return {"stripe_api_base": stub.url, "razorpay_api_base": stub.url}


@pytest.fixture
async def desk(bare_shop: Shop) -> AsyncIterator[Desk]:
    async with new_desk(bare_shop) as signed_in:
        yield signed_in


async def send(desk: Desk, name: str, action: str, **fields: str) -> Seen:
    """Open a processor's page and send one of its forms; credentials are named without their prefix."""
    form = (await desk.get(f"{HERE}/{name}")).form(f"/{action}")
    named = {key if key == "priority" else f"credentials.{key}": value for key, value in fields.items()}
    return await desk.post(f"{HERE}/{name}/{action}", {**form, **named})


async def credentials_of(served: Running, shop: Shop, name: str, *, is_test: bool = True) -> dict[str, str]:
    """Return what is stored of an account's credentials."""
    found = await processor_configs.list_all(served.context, shop.merchant.id)
    (config,) = [each for each in found if (each.processor, each.is_test_mode) == (name, is_test)]
    return dict(processor_configs.account_of(served.context, config).credentials)


async def test_an_empty_place_offers_what_can_be_connected(desk: Desk) -> None:
    page = await desk.get(HERE)
    assert "No test account yet" in page.text
    assert (await desk.told(f"{HERE}.json")) == {"data": [], "connectable": ["razorpay", "sandbox", "stripe"]}


async def test_the_form_asks_for_what_the_processor_names(desk: Desk, served: Running) -> None:
    for name in served.context.processors.names():
        page = (await desk.get(f"{HERE}/{name}")).text
        for each in served.context.processors.credentials_schema(name):
            assert f'name="credentials.{each.name}"' in page
            assert each.label in unescape(page)
    asked = (await desk.told(f"{HERE}/razorpay.json"))["credentials"]
    assert asked[0] == {"name": "keyId", "label": "Key id", "required": True, "secret": False}
    assert (await desk.get(f"{HERE}/nobody")).status == 404


async def test_an_account_is_connected_and_its_secrets_never_shown(
    desk: Desk, served: Running, bare_shop: Shop
) -> None:
    made = await send(
        desk, "stripe", "connect", secretKey=KEY, publishableKey="pk_test_1", webhookSecret=HOOK, priority="3"
    )
    assert made.location == f"{HERE}/stripe?notice=connected"
    assert await credentials_of(served, bare_shop, "stripe") == {
        "secretKey": KEY, "publishableKey": "pk_test_1", "webhookSecret": HOOK
    }  # fmt: skip
    shown = await desk.told(f"{HERE}/stripe.json")
    assert (shown["enabled"], shown["priority"], shown["testMode"], shown["lately"]["state"]) == (
        True,
        3,
        True,
        "taking",
    )
    for path in (HERE, f"{HERE}.json", made.location, f"{HERE}/stripe.json"):
        text = (await desk.get(path)).text
        assert KEY not in text
        assert HOOK not in text
    page = unescape((await desk.get(f"{HERE}/stripe")).text)
    assert f"/webhooks/stripe/{shown['id']}" in page
    assert "Developers → Webhooks" in page
    assert "First choice" in (await desk.get(HERE)).text


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ({"secretKey": "", "publishableKey": "pk_kept", "priority": "1"}, "Required."),
        ({"secretKey": KEY, "publishableKey": "pk_kept", "priority": "0"}, "from 1 to 100"),
        ({"secretKey": KEY, "publishableKey": "pk_kept", "priority": "first"}, "from 1 to 100"),
    ],
)
async def test_a_refused_form_keeps_all_but_secrets(desk: Desk, typed: dict[str, str], said: str) -> None:
    refused = await send(desk, "stripe", "connect", **typed)
    assert refused.status == 400
    assert said in refused.text
    assert 'value="pk_kept"' in refused.text
    assert f'value="{typed["priority"]}"' in refused.text
    assert KEY not in refused.text
    assert (await desk.told(f"{HERE}.json"))["data"] == []


async def test_replaced_credentials_leave_the_others(desk: Desk, served: Running, bare_shop: Shop) -> None:
    await send(desk, "stripe", "connect", secretKey="sk_test_old", webhookSecret=HOOK, priority="4")
    await send(desk, "stripe", "disable")
    renewed = await send(desk, "stripe", "credentials", secretKey=KEY)
    assert renewed.location == f"{HERE}/stripe?notice=renewed"
    assert await credentials_of(served, bare_shop, "stripe") == {"secretKey": KEY, "webhookSecret": HOOK}
    shown = await desk.told(f"{HERE}/stripe.json")
    assert (shown["enabled"], shown["priority"]) == (False, 4)
    refused = await send(desk, "stripe", "credentials", secretKey="  ")
    assert (refused.status, "at least one of them" in refused.text) == (400, True)
    async with served.context.database.reading() as reader:
        entries = await audit.newest_of_all(reader, 1)
    assert entries[0].after is not None
    assert entries[0].after["given"] == ["secretKey"]


async def test_the_credentials_are_tried_at_the_processor(desk: Desk, stub: StubProcessor) -> None:
    for name, typed in (
        ("stripe", {"secretKey": "sk_test_loop"}),
        ("razorpay", {"keyId": "rzp_test_loop", "keySecret": "a-key-secret"}),
        ("sandbox", {}),
    ):
        await send(desk, name, "connect", priority="1", **typed)
        works = await send(desk, name, "test")
        assert (works.status, "The credentials work." in works.text) == (200, True), name
    await send(desk, "stripe", "credentials", secretKey="not a key of theirs")
    wrong = await send(desk, "stripe", "test")
    assert "Stripe refused:" in wrong.text
    assert "not a key of theirs" not in wrong.text
    assert stub.ledger() == []


async def test_an_adapter_that_raises_says_so(desk: Desk, served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    await send(desk, "sandbox", "connect", priority="1")

    async def stumble(_account: object) -> None:
        raise RuntimeError("sk_test_in_the_message")

    monkeypatch.setattr(served.context.processors.get("sandbox"), "check", stumble)
    page = await send(desk, "sandbox", "test")
    assert "raised RuntimeError" in unescape(page.text)
    assert "sk_test_in_the_message" not in page.text


async def test_an_account_is_switched_moved_and_removed(desk: Desk) -> None:
    await send(desk, "sandbox", "connect", priority="1")
    await send(desk, "stripe", "connect", secretKey=KEY, priority="2")
    assert (await send(desk, "sandbox", "disable")).location == f"{HERE}/sandbox?notice=disabled"
    rows = {each["processor"]: each for each in (await desk.told(f"{HERE}.json"))["data"]}
    assert rows["sandbox"]["lately"]["state"] == "off"
    assert (await send(desk, "sandbox", "enable")).location == f"{HERE}/sandbox?notice=enabled"
    assert (await send(desk, "sandbox", "priority", priority="9")).location == f"{HERE}/sandbox?notice=moved"
    assert [each["processor"] for each in (await desk.told(f"{HERE}.json"))["data"]] == ["stripe", "sandbox"]
    assert (await send(desk, "sandbox", "priority", priority="101")).status == 400
    assert (await send(desk, "sandbox", "remove")).location == f"{HERE}?notice=removed"
    assert (await desk.told(f"{HERE}.json"))["connectable"] == ["razorpay", "sandbox"]


async def test_how_an_account_fares_is_what_happened_to_it(
    desk: Desk, served: Running, bare_shop: Shop, stub: StubProcessor
) -> None:
    await send(desk, "sandbox", "connect", priority="1")
    for card in ("tok_approve", "tok_approve", "tok_decline_declined"):
        await bare_shop.paid_order(card)
    shown = await desk.told(f"{HERE}/sandbox.json")
    assert (shown["lately"]["succeeded"], shown["lately"]["declined"], shown["lately"]["successRate"]) == (2, 1, 66.7)
    assert shown["lately"]["lastWebhookAt"] is None
    context = served.context
    for _ in range(MIN_CALLS):
        context.breakers.hear(shown["id"], Unknown("it hung"), now=context.now())
    assert (await desk.told(f"{HERE}/sandbox.json"))["lately"]["state"] == "resting"
    page = await desk.get(f"{HERE}/sandbox")
    assert "Payments go elsewhere for now." in page.text
    assert "Rests: calls fail" in (await desk.get(HERE)).text
    del stub


async def test_each_mode_has_its_own_accounts(desk: Desk, served: Running, bare_shop: Shop) -> None:
    await send(desk, "stripe", "connect", secretKey="sk_test_mine", priority="1")
    await desk.post("/dashboard/mode", {**(await desk.get(HERE)).form("/mode"), "mode": "live"})
    live = await desk.told(f"{HERE}.json")
    assert live == {"data": [], "connectable": ["razorpay", "stripe"]}  # the sandbox is for tests only
    assert (await desk.get(f"{HERE}/sandbox")).status == 404
    await send(desk, "stripe", "connect", secretKey="sk_live_mine", priority="1")
    await send(desk, "stripe", "remove")
    assert await credentials_of(served, bare_shop, "stripe") == {"secretKey": "sk_test_mine"}


async def test_one_whose_plug_in_is_gone_can_be_removed(
    desk: Desk, served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await send(desk, "stripe", "connect", secretKey=KEY, priority="1")
    monkeypatch.setattr(type(served.context.processors), "names", lambda _self: ("sandbox",))
    page = await desk.get(f"{HERE}/stripe")
    assert page.status == 200
    assert not page.offers("/credentials")
    assert (await send(desk, "stripe", "remove")).status == 303


async def test_a_field_of_a_plug_in_is_named_as_it_says(
    desk: Desk, served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = CredentialField("apiToken", '"><script>alert(1)</script>')
    monkeypatch.setattr(served.context.processors.get("sandbox"), "credentials_schema", (odd,))
    page = (await desk.get(f"{HERE}/sandbox")).text
    assert "<script>alert" not in page
    assert 'name="credentials.apiToken"' in page


async def test_anothers_accounts_are_as_if_they_were_not_there(
    desk: Desk, served: Running, session: aiohttp.ClientSession
) -> None:
    await send(desk, "stripe", "connect", secretKey=KEY, priority="1")
    other = await open_shop(session, served.url, served.context, name="other")
    async with new_desk(other) as stranger:
        form = (await stranger.get(f"{HERE}/stripe")).form("/connect")
        for action in ("test", "credentials", "enable", "disable", "priority", "remove"):
            sent = {**form, "priority": "1", "credentials.secretKey": "sk_test_theirs"}
            assert (await stranger.post(f"{HERE}/stripe/{action}", sent)).status == 404, action
    assert (await desk.told(f"{HERE}/stripe.json"))["enabled"]


async def test_forms_count_only_from_our_own_pages(desk: Desk) -> None:
    form = {**(await desk.get(f"{HERE}/sandbox")).form("/connect"), "priority": "1"}
    foreign = {"Sec-Fetch-Site": "cross-site"}
    assert (await desk.post(f"{HERE}/sandbox/connect", form, headers=foreign)).status == 403
    assert (await desk.post(f"{HERE}/sandbox/connect", {**form, "csrf": ""})).status == 403
    assert (await desk.told(f"{HERE}.json"))["data"] == []


async def test_a_webhook_that_came_is_told(desk: Desk, served: Running, bare_shop: Shop) -> None:
    context = served.context
    await send(desk, "sandbox", "connect", priority="1")
    shown = await desk.told(f"{HERE}/sandbox.json")
    await stored_event(served, bare_shop, shown["id"], days_ago=40)
    assert (await desk.told(f"{HERE}/sandbox.json"))["lately"]["lastWebhookAt"] is None
    await stored_event(served, bare_shop, shown["id"], days_ago=2)
    at = (await desk.told(f"{HERE}/sandbox.json"))["lately"]["lastWebhookAt"]
    assert at.startswith(f"{context.now() - timedelta(days=2):%Y-%m-%dT%H}")


async def stored_event(served: Running, shop: Shop, account_id: str, *, days_ago: int) -> None:
    """Store an inbound event as if it had come some days ago."""
    at = served.context.now() - timedelta(days=days_ago)
    event_id = make_id(PREFIX_PROCESSOR_EVENT, at, random_bytes=served.context.random_bytes)
    row = ProcessorEvent(
        id=event_id, merchant_id=shop.merchant.id, processor_config_id=account_id, processor="sandbox",
        event_id=event_id, event_type="payment.captured", body_hash=event_id, payment_reference=None, attempt_id=None,
        refund_reference=None, dispute_reference=None, amount_minor=None, currency=None, secret_ordinal=0,
        is_quarantined=False, outcome=None, processed_at=None, created_at=at,
    )  # fmt: skip
    async with served.context.database.transaction() as session:
        assert await processor_events.add(session, row)


async def test_a_credential_may_be_as_long_as_the_api_takes_it(desk: Desk, served: Running, bare_shop: Shop) -> None:
    longest = "+" * 4_096  # three bytes each, as a form is sent
    assert (await send(desk, "stripe", "connect", secretKey=longest, priority="1")).status == 303
    assert (await credentials_of(served, bare_shop, "stripe"))["secretKey"] == longest
    refused = await send(desk, "stripe", "credentials", secretKey=f"{longest}+")
    assert (refused.status, "at most 4096 characters" in refused.text) == (400, True)
