"""Metrics of what happens out of a request's sight: each is seen to change, by as much as happened, and no more."""

import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Mapping
from datetime import date, timedelta
from pathlib import Path

import pytest

from loop.domain.attempts import Unknown
from loop.domain.errors import LoopError
from loop.domain.refunds import RefundOutcome, RefundStatus
from loop.metrics import DECLARED, REGISTRY
from loop.processors.sandbox import SIGNATURE_HEADER
from loop.runtime import Chance, opened
from loop.testing.stub_psp import StubProcessor
from loop.workflows import processor_configs, reviews, vitals
from loop.workflows.context import Context
from loop.workflows.processor_configs import ConfigChange
from loop.workflows.processor_events import receive
from loop.workflows.reconciliation import reconcile
from tests.builders import Clock, Shop, open_shop, settings_for, work_off
from tests.contract.stub_clients import control
from tests.merchant_server import MerchantServer, merchant_server

HERE = Path(__file__).resolve().parent
MODULES = (HERE / "test_metrics.py", HERE.parent / "api/test_metrics.py", HERE.parent / "api/test_redis_away.py")
SILENCE = Unknown("no answer")
ASKED_MAX = 40


@pytest.fixture
async def server() -> AsyncIterator[MerchantServer]:
    async with merchant_server() as server:
        yield server


@pytest.fixture
async def context(database_url: str, tmp_path: Path, clock: Clock, stub: StubProcessor) -> AsyncIterator[Context]:
    settings = settings_for(database_url, tmp_path, stripe_api_base=stub.url)
    async with opened(settings, Chance(now=clock.now)) as context:
        yield context


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every look see what is true then."""
    monkeypatch.setattr(vitals, "KEPT_S", 0.0)


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def gauge(context: Context, name: str, **labels: str) -> float:
    await context.vitals.refresh(context)
    return value(name, **labels)


class Counted:
    """How much a figure has grown since this was made."""

    def __init__(self, name: str, **labels: str) -> None:
        self._name, self._labels = name, labels
        self._before = value(name, **labels)

    @property
    def more(self) -> float:
        return value(self._name, **self._labels) - self._before


async def ask_until_reviewed(shop: Shop, order_id: str, subject: str) -> None:
    """Let the processor say nothing of something until a person is to look at its order."""
    for _ in range(ASKED_MAX):
        if (await shop.now(order_id)).order.needs_review:
            return
        (asking,) = await shop.jobs(subject)
        shop.clock.at = asking.run_at
        await work_off(shop.context)
    raise AssertionError("nobody is to look at it")


async def test_a_payment_that_stays_unclear_is_counted_once_and_waits_for_a_person(shop: Shop) -> None:
    payments = Counted("loop_unclear_outcomes_total", kind="payment")
    refunds = Counted("loop_unclear_outcomes_total", kind="refund")
    shop.next_answers("authorize", *[SILENCE] * ASKED_MAX)
    order_id = (await shop.paid()).order.id
    assert (payments.more, await gauge(shop.context, "loop_orders_in_review")) == (0, 0)
    await ask_until_reviewed(shop, order_id, order_id)
    shop.clock.forward(hours=1)
    await work_off(shop.context)  # asked again
    assert (payments.more, refunds.more) == (1, 0)
    assert await gauge(shop.context, "loop_orders_in_review") == 1
    shop.sandbox.moods.clear()
    shop.clock.forward(hours=1)
    await work_off(shop.context)
    await reviews.mark_reviewed(shop.context, shop.merchant_id, order_id, note="looked at")
    assert await gauge(shop.context, "loop_orders_in_review") == 0


async def test_a_refund_that_stays_unclear_is_counted_once(shop: Shop) -> None:
    refunds = Counted("loop_unclear_outcomes_total", kind="refund")
    order_id = (await shop.paid()).order.id
    shop.next_answers("refund", *[RefundOutcome(RefundStatus.UNKNOWN, None)] * ASKED_MAX)
    refund = await shop.refund(order_id)
    assert refunds.more == 0
    await ask_until_reviewed(shop, order_id, refund.id)
    shop.clock.forward(hours=1)
    await work_off(shop.context)
    assert refunds.more == 1


async def test_a_delivery_is_counted_by_its_tries_and_the_time_that_they_took(
    context: Context, clock: Clock, server: MerchantServer
) -> None:
    shop = await open_shop(context, clock, webhook_url=f"{server.url}/hook")
    seconds, arrived = Counted("loop_webhook_delivery_seconds_sum"), Counted("loop_webhook_delivery_seconds_count")
    tries, once = Counted("loop_webhook_delivery_tries_sum"), Counted("loop_webhook_delivery_tries_count")
    results = {each: Counted("loop_webhook_tries_total", result=each) for each in ("delivered", "retried", "given_up")}
    server.next_statuses = [500]
    await shop.order()
    assert await gauge(context, "loop_webhook_deliveries_waiting") == 1
    await work_off(context)
    assert await gauge(context, "loop_webhook_deliveries_waiting") == 1
    assert (arrived.more, results["retried"].more, results["delivered"].more) == (0, 1, 0)
    clock.forward(hours=1)
    await work_off(context)
    assert await gauge(context, "loop_webhook_deliveries_waiting") == 0
    assert (arrived.more, once.more, tries.more) == (1, 1, 2)
    assert 3_600 < seconds.more < 3_610
    assert {name: each.more for name, each in results.items()} == {"delivered": 1, "retried": 1, "given_up": 0}


async def test_a_processor_s_webhook_is_counted_by_what_became_of_it(shop: Shop) -> None:
    results = {
        each: Counted("loop_processor_events_total", processor="sandbox", result=each)
        for each in ("new", "repeat", "refused")
    }
    seconds = Counted("loop_processor_event_seconds_sum", processor="sandbox")
    acted_on = Counted("loop_processor_event_seconds_count", processor="sandbox")
    waiting = await shop.paid("tok_pending")
    assert waiting.attempt is not None
    content = {"id": "evt_1", "type": "payment.changed", "payment": waiting.attempt.processor_reference}
    body = json.dumps(content).encode()

    async def tell(secret: str) -> None:
        signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
        await receive(shop.context, "sandbox", None, body=body, headers={SIGNATURE_HEADER: signature})

    def counted() -> Mapping[str, float]:
        return {name: each.more for name, each in results.items() if each.more}

    await tell(shop.webhook_secret)
    assert counted() == {"new": 1}
    await tell(shop.webhook_secret)
    await tell(shop.webhook_secret)
    assert counted() == {"new": 1, "repeat": 2}
    with pytest.raises(LoopError, match="sign"):
        await tell("nobody's secret")
    assert counted() == {"new": 1, "repeat": 2, "refused": 1}
    assert acted_on.more == 0
    shop.clock.forward(seconds=30)
    await work_off(shop.context)
    assert acted_on.more == 1
    assert 30 <= seconds.more < 31


async def test_a_compared_day_is_counted_and_what_it_found_for_the_first_time(shop: Shop, stub: StubProcessor) -> None:
    days = Counted("loop_reconciliations_total", processor="stripe")
    differences = Counted("loop_reconciliation_mismatches_total", processor="stripe")
    account = await processor_configs.put(
        shop.context, shop.merchant_id, "stripe", credentials={"secretKey": "sk_test_1"}, change=ConfigChange()
    )
    shop.clock.forward(hours=12)
    paid = await shop.pay((await shop.order()).id, "pm_card_visa", processor="stripe")
    assert paid.attempt is not None
    shop.clock.forward(days=1)
    day = date(2026, 3, 1)
    assert (await reconcile(shop.context, account.id, day)).findings == ()
    assert (days.more, differences.more) == (1, 0)
    await control(stub, f"books/{paid.attempt.processor_reference}", {"amount": 900})
    for times in (2, 3):
        shop.clock.at += timedelta(minutes=1)
        assert len((await reconcile(shop.context, account.id, day)).findings) == 1
        assert (days.more, differences.more) == (times, 1)


def test_every_metric_is_looked_at_by_one_of_these_modules() -> None:
    text = "".join(each.read_text("utf-8") for each in MODULES)
    assert [each.name for each in DECLARED if f'"{each.name}' not in text] == []
