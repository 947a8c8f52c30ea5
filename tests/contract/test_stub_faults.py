"""The stand-in processor misbehaves as told, and its ledger still tells the truth."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import stripe

from loop.testing.stub_psp import StubProcessor
from tests.contract.stub_clients import API_KEY, charges, control, payment, sdk

CREATE = {"method": "POST", "path": "/v1/payment_intents"}


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[StubProcessor]:
    async with StubProcessor(ledger_path=tmp_path / "ledger.jsonl") as running:
        yield running


@pytest.fixture
async def client(stub: StubProcessor) -> AsyncIterator[stripe.StripeClient]:
    async with sdk(stub.url) as made:
        yield made


async def pay(client: stripe.StripeClient, card: str = "pm_card_visa", key: str = "key-1") -> stripe.PaymentIntent:
    """Charge once under a key."""
    return await client.v1.payment_intents.create_async(payment(card), {"idempotency_key": key})


async def arrival(stub: StubProcessor) -> None:
    """Wait until the stub has a request, at most five seconds."""
    for _ in range(500):
        if stub.requests.seen:
            return
        await asyncio.sleep(0.01)
    pytest.fail("no request came")


@pytest.mark.parametrize(("kind", "before"), [("drop_before", 0), ("drop_after", 1), ("cut_body", 1)])
async def test_lost_answer_is_settled_by_repeating(
    stub: StubProcessor, client: stripe.StripeClient, kind: str, before: int
) -> None:
    await control(stub, "faults", {"match": CREATE, "kind": kind})
    # The SDK lets aiohttp's own error through when an answer breaks off.
    with pytest.raises((stripe.APIConnectionError, aiohttp.ClientPayloadError)):
        await pay(client)
    assert len(charges(stub)) == before
    assert (await pay(client)).status == "succeeded"
    assert charges(stub) == [("charge", 1000)]


async def test_fault_hits_only_what_it_matches_and_as_often_as_told(
    stub: StubProcessor, client: stripe.StripeClient
) -> None:
    await control(stub, "faults", {"match": {"method": "GET", "path": "/v1/refunds"}, "kind": "drop_before"})
    await control(stub, "faults", {"match": CREATE, "kind": "status", "status": 429, "times": 2})
    for _ in range(2):
        with pytest.raises(stripe.RateLimitError):
            await pay(client)
    assert (await pay(client)).status == "succeeded"
    async with aiohttp.ClientSession() as session, session.delete(f"{stub.url}/_control/faults") as cleared:
        assert cleared.status == 200
    assert (await client.v1.refunds.list_async()).data == []


@pytest.mark.parametrize(("status", "should_retry"), [(409, "true"), (500, None), (502, None), (503, "true")])
async def test_refusal_that_is_not_stored_passes(
    stub: StubProcessor, client: stripe.StripeClient, status: int, should_retry: str | None
) -> None:
    await control(stub, "faults", {"match": CREATE, "kind": "status", "status": status})
    with pytest.raises(stripe.APIError) as caught:
        await pay(client)
    assert caught.value.http_status == status
    assert caught.value.headers is not None
    assert caught.value.headers.get("Stripe-Should-Retry") == should_retry
    assert charges(stub) == []
    assert (await pay(client)).status == "succeeded"


@pytest.mark.parametrize("status", [500, 502])
async def test_refusal_may_be_a_page(stub: StubProcessor, client: stripe.StripeClient, status: int) -> None:
    await control(stub, "faults", {"match": CREATE, "kind": "status", "status": status, "html": True})
    with pytest.raises(stripe.APIError) as caught:
        await pay(client)
    assert caught.value.http_status == status
    assert "<html>" in str(caught.value.http_body)


@pytest.mark.parametrize("executes", [False, True])
async def test_stored_refusal_is_repeated_for_ever(
    stub: StubProcessor, client: stripe.StripeClient, executes: bool
) -> None:
    await control(
        stub, "faults", {"match": CREATE, "kind": "status", "status": 500, "stored": True, "executes": executes}
    )
    for _ in range(3):
        with pytest.raises(stripe.APIError) as caught:
            await pay(client)
        assert caught.value.http_status == 500
    assert charges(stub) == ([("charge", 1000)] if executes else [])
    found = [
        (intent.status, intent.metadata["loop_attempt_id"])
        for intent in (await client.v1.payment_intents.list_async()).data
    ]
    assert found == ([("succeeded", "att_1")] if executes else [])


async def test_same_key_in_flight_is_refused(stub: StubProcessor, client: stripe.StripeClient) -> None:
    await control(stub, "faults", {"match": CREATE, "kind": "slow", "delay_s": 0.5})
    first = asyncio.create_task(pay(client))
    await arrival(stub)
    with pytest.raises(stripe.APIError) as caught:
        await pay(client)
    assert caught.value.http_status == 409
    assert caught.value.error is not None
    assert caught.value.error.code == "idempotency_key_in_use"
    assert caught.value.headers is not None
    assert caught.value.headers["Stripe-Should-Retry"] == "true"
    assert (await first).id == (await pay(client)).id
    assert charges(stub) == [("charge", 1000)]


async def test_client_that_gave_up_was_charged(stub: StubProcessor, client: stripe.StripeClient) -> None:
    await control(stub, "faults", {"match": CREATE, "kind": "slow", "delay_s": 0.3})
    impatient = asyncio.create_task(pay(client))
    await arrival(stub)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    assert charges(stub) == []
    await asyncio.sleep(0.5)
    assert charges(stub) == [("charge", 1000)]


@pytest.mark.parametrize(("name", "lost"), [("timeoutThenCharged", 1), ("timeoutThenNothing", 0)])
@pytest.mark.parametrize("confirms", [False, True])
async def test_token_loses_the_first_answer(
    stub: StubProcessor, client: stripe.StripeClient, name: str, lost: int, confirms: bool
) -> None:
    async def once() -> stripe.PaymentIntent:
        if not confirms:
            return await pay(client, f"pm_card_{name}")
        return await client.v1.payment_intents.confirm_async(
            held.id, {"payment_method": f"pm_card_{name}"}, {"idempotency_key": "key-2"}
        )

    held = await client.v1.payment_intents.create_async(
        {"amount": 1000, "currency": "usd", "automatic_payment_methods": {"enabled": True, "allow_redirects": "never"}}
    )
    with pytest.raises(stripe.APIConnectionError):
        await once()
    assert len(charges(stub)) == lost
    for _ in range(2):
        assert (await once()).status == "succeeded"
    assert charges(stub) == [("charge", 1000)]


async def test_token_drops_once_per_key_even_after_a_restart(tmp_path: Path) -> None:
    for round_ in range(2):
        async with StubProcessor(ledger_path=tmp_path / "l.jsonl") as stub, sdk(stub.url) as client:
            if round_ == 0:
                with pytest.raises(stripe.APIConnectionError):
                    await pay(client, "pm_card_timeoutThenNothing")
            else:
                assert (await pay(client, "pm_card_timeoutThenNothing")).status == "succeeded"


async def test_token_fails_without_charging(stub: StubProcessor, client: stripe.StripeClient) -> None:
    for _ in range(2):
        with pytest.raises(stripe.APIError) as caught:
            await pay(client, "pm_card_serverError")
        assert caught.value.http_status == 500
        assert caught.value.headers is not None
        assert caught.value.headers["Stripe-Should-Retry"] == "false"
    assert charges(stub) == []
    assert (await client.v1.payment_intents.list_async()).data == []


async def test_token_answers_late(stub: StubProcessor, client: stripe.StripeClient) -> None:
    began = asyncio.get_running_loop().time()
    assert (await pay(client, "pm_card_slow")).status == "succeeded"
    assert asyncio.get_running_loop().time() - began >= 2
    assert charges(stub) == [("charge", 1000)]


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "explode"},
        {"kind": "status", "status": 418},
        {"kind": "slow", "delay_s": 1e9},
        {"kind": "slow", "times": 0},
        {"kind": "status", "executes": True},
        {"kind": "slow", "colour": "red"},
        ["slow"],
    ],
)
async def test_fault_that_means_nothing_is_refused(stub: StubProcessor, fault: object) -> None:
    async with aiohttp.ClientSession() as session, session.post(f"{stub.url}/_control/faults", json=fault) as answer:
        assert answer.status == 400
        assert json.loads(await answer.text())["error"]
    assert stub.faults.armed == []


async def test_concurrent_charges_are_all_in_the_ledger(stub: StubProcessor, client: stripe.StripeClient) -> None:
    paid = await asyncio.gather(*(pay(client, key=f"key-{number}") for number in range(50)))
    assert {entry.intent for entry in stub.ledger()} == {intent.id for intent in paid}
    assert API_KEY not in stub.ledger_path.read_text()
