"""Requests that are refused when they are sent again: that alone says nothing of the first, and yet they end."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from loop.domain.attempts import Approved, Declined, NotSent, Outcome, Unknown
from loop.domain.declines import DeclineClass
from loop.domain.errors import LoopError
from loop.domain.orders import Order, OrderStatus
from loop.runtime import Chance, opened
from loop.storage.jobs import LEASE
from loop.testing.stub_faults import Fault
from loop.testing.stub_psp import StubProcessor
from loop.workflows import processor_configs
from loop.workflows.processor_configs import ConfigChange
from tests.builders import Clock, Shop, open_shop, settings_for, work_off
from tests.workflow.test_dead_captures import let_its_job_die

SILENCE = Unknown("no answer")
REFUSED = NotSent("invalid_request", "The processor answered 400 (amount_too_small).")
REFUSALS = [REFUSED, Declined("capture_failed", DeclineClass.TECH, REFUSED.message)]


async def left_behind(shop: Shop, clock: Clock, amount_minor: int) -> Order:
    """Return an order whose capture began in a process that died before it was sent; its lease has ended."""
    order = (await shop.paid(is_manual_capture=True)).order
    shop.wait_s = 0
    shop.hang_next("capture")
    await shop.capture(order.id, amount_minor)
    await shop.until_called("capture")
    await shop.lose_process()
    clock.forward(seconds=LEASE.total_seconds())
    shop.wait_s = 10.0
    return order


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: type(refusal).__name__)
async def test_a_capture_that_is_refused_for_good_leaves_the_money_held(
    shop: Shop, clock: Clock, refusal: Outcome
) -> None:
    order = await left_behind(shop, clock, 10)
    shop.next_answers("capture", refusal)
    await work_off(shop.context)
    now = (await shop.now(order.id)).order
    assert (now.status, now.needs_review) == (OrderStatus.AUTHORIZED, True)
    assert (now.last_error_code, now.last_error_message) == ("capture_failed", REFUSED.message)
    assert await shop.jobs(order.id) == []
    taken = await shop.capture(order.id, 600)
    assert (taken.status, taken.amount_captured_minor, taken.last_error_code) == (OrderStatus.CAPTURED, 600, None)
    assert shop.moved("capture") == [600]


async def test_a_hold_whose_capture_was_refused_for_good_can_be_let_go(shop: Shop, clock: Clock) -> None:
    order = await left_behind(shop, clock, 10)
    shop.next_answers("capture", REFUSED)
    await work_off(shop.context)
    assert (await shop.cancel(order.id)).status is OrderStatus.CANCELLED
    assert shop.moved("void") == [1_000]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: type(refusal).__name__)
async def test_a_refused_repeat_says_nothing_of_a_capture_that_was_heard(
    shop: Shop, clock: Clock, refusal: Outcome
) -> None:
    order = (await shop.paid(is_manual_capture=True)).order
    shop.next_answers("capture", SILENCE, is_done=True)
    await shop.capture(order.id, 600)
    shop.next_answers("capture", refusal, refusal)
    shop.next_answers("fetch", SILENCE)
    clock.forward(seconds=2)
    await work_off(shop.context)
    unclear = (await shop.now(order.id)).order
    assert (unclear.status, unclear.last_error_code) == (OrderStatus.AUTHORIZED, None)
    assert await shop.jobs(order.id) != []
    clock.forward(seconds=10)
    await work_off(shop.context)
    now = (await shop.now(order.id)).order
    assert (now.status, now.amount_captured_minor, now.last_error_code) == (OrderStatus.CAPTURED, 600, None)
    assert shop.moved("capture") == [600]


async def test_who_asks_for_the_capture_of_a_dead_job_again_is_told(shop: Shop) -> None:
    order = (await shop.paid(is_manual_capture=True)).order
    shop.next_answers("capture", SILENCE, is_done=True)
    await shop.capture(order.id, 600)
    await let_its_job_die(shop, order)
    shop.next_answers("capture", REFUSED)
    taken = await shop.capture(order.id, 600)
    assert (taken.status, taken.amount_captured_minor) == (OrderStatus.CAPTURED, 600)  # the first one was heard

    other = (await shop.paid(is_manual_capture=True)).order
    shop.next_answers("capture", SILENCE)
    await shop.capture(other.id, 10)
    await let_its_job_die(shop, other)
    shop.next_answers("capture", REFUSED)
    with pytest.raises(LoopError, match="capture_failed: The processor answered 400"):
        await shop.capture(other.id, 10)
    assert (await shop.capture(other.id, 600)).amount_captured_minor == 600


ABSENT = Unknown("nothing is listed", is_absent=True)


async def lost(shop: Shop, clock: Clock, *, is_heard: bool) -> Order:
    """Return an order whose payment has a request without an answer, which the processor has heard or not."""
    order = await shop.order()
    shop.next_answers("authorize", SILENCE, is_done=is_heard)
    await shop.pay(order.id)
    clock.forward(seconds=2)
    return order


async def test_a_payment_that_is_refused_for_good_and_nowhere_listed_has_failed(shop: Shop, clock: Clock) -> None:
    order = await shop.order()
    shop.wait_s = 0
    shop.hang_next("authorize")
    await shop.pay(order.id)
    await shop.until_called("authorize")
    await shop.lose_process()
    clock.forward(seconds=LEASE.total_seconds())
    shop.next_answers("authorize", REFUSED)
    shop.next_answers("fetch", ABSENT)
    await work_off(shop.context)
    now = (await shop.now(order.id)).order
    assert (now.status, now.last_error_code) == (OrderStatus.FAILED, "invalid_request")
    assert (await shop.event_types(order.id))[-1] == "payment.failed"
    assert await shop.jobs(order.id) == []
    shop.wait_s = 10.0
    assert (await shop.pay(order.id, is_retry=True)).order.status is OrderStatus.CAPTURED
    assert shop.moved("charge") == [1_000]


async def test_a_payment_that_was_heard_is_found_though_its_repeat_is_refused(shop: Shop, clock: Clock) -> None:
    order = await lost(shop, clock, is_heard=True)
    shop.next_answers("authorize", REFUSED)
    shop.next_answers("fetch", Approved("sbx_1", is_captured=True, amount_minor=1_000))
    await work_off(shop.context)
    assert (await shop.now(order.id)).order.status is OrderStatus.CAPTURED
    assert shop.moved("charge") == [1_000]


@pytest.mark.parametrize(
    ("refusal", "found"),
    [(REFUSED, SILENCE), (REFUSED, Unknown("too many are listed")), (NotSent("rate_limited", "Slow down."), ABSENT)],
)
async def test_less_than_both_is_no_proof(shop: Shop, clock: Clock, refusal: Outcome, found: Outcome) -> None:
    order = await lost(shop, clock, is_heard=True)
    shop.next_answers("authorize", refusal)
    shop.next_answers("fetch", found)
    await work_off(shop.context)
    assert (await shop.now(order.id)).order.status is OrderStatus.PROCESSING
    clock.forward(seconds=10)
    await work_off(shop.context)
    assert (await shop.now(order.id)).order.status is OrderStatus.CAPTURED
    assert shop.moved("charge") == [1_000]


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[StubProcessor]:
    async with StubProcessor(ledger_path=tmp_path / "ledger") as running:
        yield running


@pytest.fixture
async def stripe_shop(database_url: str, tmp_path: Path, clock: Clock, stub: StubProcessor) -> AsyncIterator[Shop]:
    """Yield a merchant who sells through the stand-in Stripe."""
    settings = settings_for(database_url, tmp_path, stripe_api_base=stub.url)
    async with opened(settings, Chance(now=clock.now)) as context:
        made = await open_shop(context, clock)
        await processor_configs.remove(context, made.merchant_id, "sandbox")
        await connect(made, "sk_test_first")
        clock.forward(seconds=1)
        yield made


async def connect(shop: Shop, key: str, **more: str) -> None:
    """Set the shop's account at Stripe: each key is another account."""
    credentials = {"secretKey": key, **more}
    await processor_configs.put(
        shop.context, shop.merchant_id, "stripe", credentials=credentials, change=ConfigChange()
    )


async def ask(shop: Shop, clock: Clock, hours: int) -> None:
    """Let so many hours go by."""
    for _ in range(hours):
        clock.forward(hours=1)
        await work_off(shop.context)


async def test_at_stripe_a_token_that_is_refused_fails_the_payment(
    stripe_shop: Shop, clock: Clock, stub: StubProcessor
) -> None:
    stub.faults.arm(Fault(kind="drop_before", method="POST"))
    order = (await stripe_shop.paid("pm_card_unheardOf")).order
    assert order.status is OrderStatus.PROCESSING
    await connect(stripe_shop, "sk_test_first", webhookSecret="whsec_new")
    await ask(stripe_shop, clock, 1)
    now = (await stripe_shop.now(order.id)).order
    assert (now.status, now.last_error_code) == (OrderStatus.FAILED, "invalid_request")
    paid = await stripe_shop.pay(order.id, "pm_card_visa", is_retry=True)
    assert paid.order.status is OrderStatus.CAPTURED
    assert [entry.kind for entry in stub.ledger()] == ["charge"]


@pytest.mark.parametrize("token", ["pm_card_visa", "pm_card_unheardOf"])
async def test_another_account_is_not_asked_to_pay_and_proves_nothing(
    stripe_shop: Shop, clock: Clock, stub: StubProcessor, token: str
) -> None:
    """It knows neither the key nor the payment: it would take the money once more, or refuse what the first took."""
    is_paid = token == "pm_card_visa"
    stub.faults.arm(Fault(kind="drop_after" if is_paid else "drop_before", method="POST"))
    order = (await stripe_shop.paid(token)).order
    await connect(stripe_shop, "sk_test_second")
    await ask(stripe_shop, clock, 30)
    now = (await stripe_shop.now(order.id)).order
    assert (now.status, now.needs_review) == (OrderStatus.PROCESSING, True)
    assert [entry.kind for entry in stub.ledger()] == ["charge"] * is_paid
    assert len([each for each in stub.requests.seen if each["method"] == "POST"]) == 1

    await connect(stripe_shop, "sk_test_first")
    await ask(stripe_shop, clock, 1)
    found = OrderStatus.CAPTURED if is_paid else OrderStatus.PROCESSING
    assert (await stripe_shop.now(order.id)).order.status is found
