"""Days of accounts compared with the stand-ins' own books, over both databases and real sockets."""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest

from loop.domain.attempts import AttemptStatus, Unknown
from loop.domain.errors import LoopError
from loop.domain.events import Event
from loop.domain.money import Money
from loop.domain.orders import OrderStatus
from loop.domain.reconciliation import CATCH_UP_DAYS, CurrencyTotals, Finding
from loop.processors import stripe_movements
from loop.processors.base import Account, MovementPage, MovementQuery
from loop.processors.sandbox import SandboxProcessor
from loop.runtime import Chance, opened
from loop.storage import jobs, reconciliation, webhooks
from loop.storage.jobs import Job, LeaseLostError
from loop.storage.orders import OrderInHand
from loop.storage.reconciliation import Run
from loop.testing.stub_faults import Fault
from loop.testing.stub_psp import StubProcessor
from loop.workflows import payments, processor_configs
from loop.workflows import reconciliation as workflow
from loop.workflows.context import Context
from loop.workflows.processor_configs import ConfigChange
from loop.workflows.reconciliation import LIVE_MAX, RECONCILE, Report, reconcile, schedule_due
from tests.builders import Clock, Shop, open_shop, settings_for, work_off
from tests.contract.stub_clients import control

FIRST = date(2026, 3, 1)
SECOND = date(2026, 3, 2)
LIST = "/v1/balance_transactions"
RAZORPAY = {"keyId": "rzp_live_1", "keySecret": "a-key-secret"}


@pytest.fixture
async def context(database_url: str, tmp_path: Path, clock: Clock, stub: StubProcessor) -> AsyncIterator[Context]:
    """Yield a Loop whose Stripe and Razorpay are the stand-in's, on the same clock."""
    settings = settings_for(database_url, tmp_path, stripe_api_base=stub.url, razorpay_api_base=stub.url)
    async with opened(settings, Chance(now=clock.now)) as context:
        yield context


@pytest.fixture
async def shop(context: Context, clock: Clock) -> Shop:
    """Return a merchant with a Stripe account, at noon of the first day."""
    shop = await open_shop(context, clock)
    await connect(shop, "stripe", {"secretKey": "sk_test_1"})
    clock.forward(hours=12)
    return shop


async def connect(shop: Shop, processor: str, credentials: Mapping[str, str]) -> str:
    config = await processor_configs.put(
        shop.context, shop.merchant_id, processor, credentials=credentials, change=ConfigChange()
    )
    return config.id


async def config_id(shop: Shop, processor: str = "stripe") -> str:
    for config in await processor_configs.list_all(shop.context, shop.merchant_id):
        if config.processor == processor:
            return config.id
    raise AssertionError(f"no account at {processor}")


async def take(shop: Shop, card: str = "pm_card_visa", **changes: object) -> OrderInHand:
    """Take a payment of 10.00 EUR by Stripe."""
    return await shop.pay((await shop.order(1_000, **changes)).id, card, processor="stripe")


def reference(paid: OrderInHand) -> str:
    assert paid.attempt is not None
    return str(paid.attempt.processor_reference)


async def compare(shop: Shop, day: date = FIRST, processor: str = "stripe") -> Report:
    return await reconcile(shop.context, await config_id(shop, processor), day)


def kinds(report: Report) -> list[tuple[str, str, str | None]]:
    return [(each.kind, each.movement_kind, each.order_id) for each in report.findings]


async def kept(shop: Shop, report: Report) -> tuple[Run | None, list[Finding]]:
    """Read a run and its findings from the database."""
    async with shop.context.database.reading() as reader:
        run = await reconciliation.get(reader, shop.merchant_id, report.run.id)
        return run, await reconciliation.findings_of(reader, report.run.id)


async def runs(shop: Shop) -> list[Run]:
    async with shop.context.database.reading() as reader:
        return (await reconciliation.list_page(reader, shop.merchant_id, offset=0, limit=100))[0]


async def alerts(shop: Shop) -> list[Event]:
    """Return what the merchant was told of mismatches, oldest first."""
    async with shop.context.database.reading() as reader:
        events = await webhooks.events_after(reader, shop.merchant_id, before_id=None, limit=100)
    mismatches = [each for each in events if each.event_type == "reconciliation.mismatch"]
    return sorted(mismatches, key=lambda each: each.created_at)


async def live_jobs(shop: Shop) -> list[Job]:
    async with shop.context.database.reading() as reader:
        return await jobs.of_subject(reader, await config_id(shop))


async def test_a_day_on_which_both_sides_agree(shop: Shop, clock: Clock) -> None:
    first = await take(shop)
    await take(shop, "pm_card_chargeDeclined")
    held = await take(shop, is_manual_capture=True)
    await take(shop, is_manual_capture=True)  # never captured
    clock.forward(hours=1)
    await shop.capture(held.order.id, 600)
    await shop.refund(first.order.id, 300)
    clock.forward(days=1)
    report = await compare(shop)
    assert (report.run.matched_count, report.run.awaited_count, report.run.mismatch_count) == (3, 0, 0)
    # 2.9 % and 0.30 of each charge
    assert report.run.totals == (CurrencyTotals("EUR", 1_600, 1_600, 300, 300, 59 + 47),)
    assert await kept(shop, report) == (report.run, [])
    assert await alerts(shop) == []
    assert not (await shop.now(first.order.id)).order.needs_review


async def test_a_charge_that_loop_does_not_know(shop: Shop, stub: StubProcessor, clock: Clock) -> None:
    paid = await take(shop)
    await control(stub, f"books/{reference(paid)}", {"extra": 777})
    clock.forward(days=1)
    report = await compare(shop)
    assert kinds(report) == [("missing_here", "charge", None)]
    assert (report.findings[0].here, report.findings[0].there) == (None, Money(777, "EUR"))
    assert (report.run.matched_count, report.run.missing_here_count) == (1, 1)
    assert await kept(shop, report) == (report.run, list(report.findings))
    [alert] = await alerts(shop)
    body = json.loads(alert.body)
    assert (alert.order_id, body["orderId"], body["amount"]) == (None, None, None)
    payload = body["payload"]
    assert (payload["runId"], payload["processor"], payload["day"]) == (report.run.id, "stripe", "2026-03-01")
    assert (payload["missingHere"], payload["missingThere"], payload["amountDiffers"]) == (1, 0, 0)
    assert [(each["amountThere"], each["currencyThere"], each["amountHere"]) for each in payload["findings"]] == [
        (777, "EUR", None)
    ]
    assert not (await shop.now(paid.order.id)).order.needs_review


@pytest.mark.parametrize(
    ("change", "expected"), [({"amount": 900}, "amount_differs"), ({"is_gone": True}, "missing_there")]
)
async def test_an_order_that_differs_needs_a_person(
    shop: Shop, stub: StubProcessor, clock: Clock, change: dict[str, object], expected: str
) -> None:
    paid, other = await take(shop), await take(shop)
    await control(stub, f"books/{reference(paid)}", change)
    before = (await shop.now(paid.order.id)).order
    clock.forward(days=1)
    report = await compare(shop)
    assert kinds(report) == [(expected, "charge", paid.order.id)]
    after = (await shop.now(paid.order.id)).order
    assert replace(after, updated_at=before.updated_at) == replace(before, needs_review=True)
    assert after.revision == before.revision + 1
    assert not (await shop.now(other.order.id)).order.needs_review
    assert [json.loads(each.body)["payload"]["findings"][0]["orderId"] for each in await alerts(shop)] == [
        paid.order.id
    ]


async def test_a_refund_that_was_made_elsewhere_names_its_order(shop: Shop, stub: StubProcessor, clock: Clock) -> None:
    paid = await take(shop)
    clock.forward(days=3)
    await refund_by_hand(stub, reference(paid))
    clock.forward(days=1)
    report = await compare(shop, FIRST + timedelta(days=3))
    assert kinds(report) == [("missing_here", "refund", paid.order.id)]
    assert (await shop.now(paid.order.id)).order.needs_review


async def refund_by_hand(stub: StubProcessor, intent: str) -> None:
    """Refund a payment in Stripe's own dashboard."""
    import stripe  # noqa: PLC0415 - only here

    http = stripe.AIOHTTPClient(timeout=5)
    client = stripe.StripeClient("sk_test_1", base_addresses={"api": stub.url}, http_client=http)
    await client.v1.refunds.create_async({"payment_intent": intent, "amount": 250})
    await http.close_async()  # type: ignore[no-untyped-call] # the SDK left this one out


async def test_a_refund_that_came_back_agrees_on_both_days(shop: Shop, stub: StubProcessor, clock: Clock) -> None:
    paid = await take(shop)
    refund = await shop.refund(paid.order.id, 400)
    clock.forward(days=1)
    await control(stub, f"refunds/{refund.processor_reference}/settle", {"status": "failed"})
    assert kinds(await compare(shop)) == []
    clock.forward(days=1)
    unheard = await compare(shop, SECOND)
    assert kinds(unheard) == [("missing_here", "refund_reversal", paid.order.id)]


async def test_the_same_day_again_replaces_what_was_found(shop: Shop, stub: StubProcessor, clock: Clock) -> None:
    first, second = await take(shop), await take(shop)
    await control(stub, f"books/{reference(first)}", {"amount": 900})
    clock.forward(days=1)
    once = await compare(shop)
    again = await compare(shop)
    assert (again.run.id, kinds(again)) == (once.run.id, kinds(once))
    assert await kept(shop, again) == (again.run, list(again.findings))
    assert (len(await runs(shop)), len(await alerts(shop))) == (1, 1)
    await control(stub, f"books/{reference(second)}", {"is_gone": True})
    more = await compare(shop)
    assert sorted(kinds(more)) == [
        ("amount_differs", "charge", first.order.id), ("missing_there", "charge", second.order.id),
    ]  # fmt: skip
    told = [json.loads(each.body)["payload"] for each in await alerts(shop)]
    assert [[found["orderId"] for found in each["findings"]] for each in told] == [[first.order.id], [second.order.id]]
    for paid in (first, second):
        await control(stub, f"books/{reference(paid)}", {"amount": 1_000})
    repaired = await compare(shop)
    assert (repaired.run.mismatch_count, await kept(shop, repaired)) == (0, (repaired.run, []))
    assert len(await alerts(shop)) == 2


async def test_a_payment_at_midnight_is_no_mismatch(shop: Shop, clock: Clock) -> None:
    clock.forward(hours=11, minutes=59, seconds=59)
    paid = await take(shop, "pm_card_timeoutThenCharged")
    assert paid.attempt is not None
    assert paid.attempt.status is AttemptStatus.UNKNOWN
    clock.forward(seconds=10)
    await work_off(shop.context)  # Loop hears of it on the second day
    assert (await shop.now(paid.order.id)).order.status is OrderStatus.CAPTURED
    clock.forward(days=2)
    first, second = await compare(shop), await compare(shop, SECOND)
    assert (first.run.matched_count, first.findings) == (1, ())
    assert (second.run.matched_count, second.findings) == (0, ())


async def test_what_loop_heard_of_days_later_is_searched_where_it_happened(
    shop: Shop, stub: StubProcessor, clock: Clock
) -> None:
    paid = await take(shop, "pm_card_timeoutThenCharged")
    clock.forward(days=3)
    await work_off(shop.context)
    assert (await shop.now(paid.order.id)).order.status is OrderStatus.CAPTURED
    clock.forward(days=1)
    stub.requests.seen.clear()
    fourth = await compare(shop, FIRST + timedelta(days=3))
    assert (fourth.run.matched_count, fourth.findings) == (0, ())
    assert len(stub.requests.seen) == 2
    assert (await compare(shop)).run.matched_count == 1


async def test_money_that_loop_never_heard_of_is_found(shop: Shop, stub: StubProcessor, clock: Clock) -> None:
    waiting = await take(shop, "pm_card_authenticationRequired")
    assert waiting.order.status is OrderStatus.REQUIRES_ACTION
    assert waiting.attempt is not None
    assert waiting.attempt.action is not None
    await authenticate(str(waiting.attempt.action["redirectUrl"]))  # and the customer never comes back
    clock.forward(days=1)
    report = await compare(shop)
    assert kinds(report) == [("missing_here", "charge", waiting.order.id)]
    assert (await shop.now(waiting.order.id)).order.needs_review
    assert [entry.kind for entry in stub.ledger()] == ["charge"]


async def authenticate(url: str) -> None:
    import aiohttp  # noqa: PLC0415 - only here

    async with (
        aiohttp.ClientSession() as browser,
        browser.post(url, data={"outcome": "authenticate"}, allow_redirects=False) as answer,
    ):
        assert answer.status == 303


@pytest.mark.parametrize("fault", ["drop_before", "status"])
async def test_a_processor_that_does_not_answer_leaves_no_trace(
    shop: Shop, stub: StubProcessor, clock: Clock, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(stripe_movements, "PAGE_SIZE", 1)
    paid, _ = await take(shop), await take(shop)
    await control(stub, f"books/{reference(paid)}", {"amount": 900})
    clock.forward(days=1)
    stub.faults.arm(Fault(kind="slow", path=LIST))  # the first page comes
    stub.faults.arm(Fault(kind=fault, path=LIST, times=2))  # type: ignore[arg-type] # one of its kinds
    with pytest.raises(LoopError, match="processor_unavailable"):
        await compare(shop)
    assert (await runs(shop), await alerts(shop)) == ([], [])
    assert not (await shop.now(paid.order.id)).order.needs_review
    stub.faults.armed.clear()
    assert (await compare(shop)).run.amount_differs_count == 1


class Raising(SandboxProcessor):
    """A sandbox that says it lists what moved."""

    def listed_within(self, account: Account) -> timedelta | None:
        del account
        return timedelta(0)

    async def movements(self, account: Account, query: MovementQuery) -> MovementPage | Unknown:
        raise ZeroDivisionError(account.config_id, query.cursor)


async def test_an_adapter_that_raises_is_one_that_does_not_answer(shop: Shop, clock: Clock) -> None:
    made = shop.context.processors._made
    made["sandbox"] = Raising(shop.sandbox._setup)
    clock.forward(hours=15)
    with pytest.raises(LoopError, match="processor_unavailable"):
        await compare(shop, FIRST, "sandbox")
    assert await runs(shop) == []


async def test_a_day_that_has_too_much_for_its_bound_is_not_cut_short(
    shop: Shop, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stripe_movements, "PAGE_SIZE", 1)
    monkeypatch.setattr(reconciliation, "ROWS_PER_PAGE", 1)
    for _ in range(3):
        await take(shop)
    clock.forward(days=1)
    for bound, ends in ((2, True), (3, False)):
        monkeypatch.setattr(workflow, "PAGES_MAX", bound)
        if ends:
            with pytest.raises(LoopError, match="too_many"):
                await compare(shop)
    assert await runs(shop) == []


async def test_what_cannot_be_compared_is_refused(shop: Shop, clock: Clock) -> None:
    await connect(shop, "razorpay", {**RAZORPAY, "keyId": "rzp_test_1"})
    for processor in ("sandbox", "razorpay"):
        with pytest.raises(LoopError, match="movements_not_listed"):
            await compare(shop, FIRST - timedelta(days=1), processor)
    with pytest.raises(LoopError, match="day_not_over"):
        await compare(shop)
    with pytest.raises(LoopError, match="not_found"):
        await reconcile(shop.context, "pcf_of_nobody", FIRST)
    clock.forward(hours=12)
    assert (await compare(shop)).run.mismatch_count == 0


async def test_each_account_is_compared_with_its_own_list(shop: Shop, clock: Clock) -> None:
    other = await open_shop(shop.context, clock, number=2)
    await connect(other, "stripe", {"secretKey": "sk_test_2"})
    await take(shop)
    for _ in range(2):
        await take(other)
    clock.forward(days=1)
    assert [(await compare(each)).run.matched_count for each in (shop, other)] == [1, 2]
    [mine] = await runs(shop)
    async with shop.context.database.reading() as reader:
        assert await reconciliation.get(reader, other.merchant_id, mine.id) is None


async def test_the_schedule_compares_each_day_once(shop: Shop, stub: StubProcessor, clock: Clock) -> None:
    await take(shop)
    assert await schedule_due(shop.context) == 0
    clock.forward(hours=13, minutes=59)
    assert await schedule_due(shop.context) == 0  # the border is not past
    clock.forward(minutes=1)
    assert await schedule_due(shop.context) == 1
    assert await schedule_due(shop.context) == 0  # its job is live
    [job] = await live_jobs(shop)
    assert (job.kind, job.arguments) == (RECONCILE, {"day": "2026-03-01"})
    assert await work_off(shop.context) == 1
    assert [(run.day, run.matched_count) for run in await runs(shop)] == [(FIRST, 1)]
    assert (await schedule_due(shop.context), await live_jobs(shop)) == (0, [])
    clock.forward(days=1)
    assert await schedule_due(shop.context) == 1
    assert len([each for each in stub.requests.seen if each["path"] == LIST]) == 1


async def test_days_that_were_missed_are_caught_up_with_to_a_bound(shop: Shop, clock: Clock) -> None:
    clock.forward(days=40)
    compared = 0
    for _ in range(20):
        inserted = await schedule_due(shop.context)
        assert inserted <= LIVE_MAX
        compared += await work_off(shop.context)
    days = sorted(run.day for run in await runs(shop))
    assert compared == len(days) == CATCH_UP_DAYS
    assert days == [FIRST + timedelta(days=39 - back) for back in range(CATCH_UP_DAYS)][::-1]


async def test_days_before_the_account_and_after_its_end_are_left_alone(shop: Shop, clock: Clock) -> None:
    clock.forward(days=1)
    change = ConfigChange(is_enabled=False)
    await processor_configs.update(shop.context, shop.merchant_id, "stripe", change=change)
    clock.forward(days=10)
    for _ in range(3):
        await schedule_due(shop.context)
        await work_off(shop.context)
    assert sorted(run.day for run in await runs(shop)) == [FIRST, SECOND]


async def test_many_accounts_take_turns(shop: Shop, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow, "ACCOUNTS_PER_PAGE", 2)
    monkeypatch.setattr(workflow, "LIVE_MAX", 2)
    shops = [shop, *[await open_shop(shop.context, clock, number=number) for number in range(2, 6)]]
    for number, each in enumerate(shops[1:]):
        await connect(each, "stripe", {"secretKey": f"sk_test_more_{number}"})
    clock.forward(hours=15)
    turns = []
    while inserted := await schedule_due(shop.context):
        turns.append(inserted)
        assert await schedule_due(shop.context) == 0
        await work_off(shop.context)
    assert turns == [2, 2, 1]
    assert [len(await runs(each)) for each in shops] == [1] * 5


async def test_a_job_whose_processor_is_away_is_tried_again(shop: Shop, stub: StubProcessor, clock: Clock) -> None:
    await take(shop)
    clock.forward(hours=15)
    await schedule_due(shop.context)
    stub.faults.arm(Fault(kind="status", path=LIST, status=500))
    await work_off(shop.context)
    [job] = await live_jobs(shop)
    assert (job.failures, job.is_dead, await runs(shop)) == (1, False, [])
    assert "processor_unavailable" in str(job.last_error)
    clock.forward(minutes=10)
    await work_off(shop.context)
    assert ([run.matched_count for run in await runs(shop)], await live_jobs(shop)) == ([1], [])


async def test_who_has_lost_the_lease_writes_nothing(shop: Shop, stub: StubProcessor, clock: Clock) -> None:
    paid = await take(shop)
    await control(stub, f"books/{reference(paid)}", {"is_gone": True})
    clock.forward(hours=15)
    await schedule_due(shop.context)
    [job] = await live_jobs(shop)
    with pytest.raises(LeaseLostError):
        await workflow.run(shop.context, replace(job, fence=job.fence + 1))
    assert (await runs(shop), await alerts(shop)) == ([], [])
    assert not (await shop.now(paid.order.id)).order.needs_review


async def test_a_job_of_an_account_that_lists_nothing_any_more_ends(shop: Shop, clock: Clock) -> None:
    razorpay = await connect(shop, "razorpay", RAZORPAY)
    clock.forward(hours=15)
    assert await schedule_due(shop.context) == 2
    await connect(shop, "razorpay", {**RAZORPAY, "keyId": "rzp_test_1"})
    await work_off(shop.context)
    assert [run.processor for run in await runs(shop)] == ["stripe"]
    async with shop.context.database.reading() as reader:
        assert await jobs.of_subject(reader, razorpay) == []
    assert await schedule_due(shop.context) == 0


async def buy_in_inr(shop: Shop, stub: StubProcessor) -> OrderInHand:
    """Take 500.00 INR by Razorpay."""
    order = await shop.order(amount=Money(50_000, "INR"))
    waiting = await shop.pay(order.id, None, processor="razorpay")
    paid = await control(stub, f"razorpay/orders/{reference(waiting)}/pay", {})
    assert waiting.attempt is not None
    return await payments.complete_action(shop.context, waiting.attempt.id, paid["callback"])


async def schedule_until(shop: Shop, clock: Clock, *, days: int) -> None:
    """Let the schedule and its jobs run, twice a day."""
    for _ in range(days * 2):
        clock.forward(hours=12)
        while await schedule_due(shop.context):
            await work_off(shop.context)


async def test_razorpay_s_money_is_awaited_until_it_is_settled(shop: Shop, stub: StubProcessor, clock: Clock) -> None:
    await connect(shop, "razorpay", RAZORPAY)
    paid = await buy_in_inr(shop, stub)
    refund = await shop.refund(paid.order.id, 20_000)
    assert refund.status == "succeeded"
    clock.forward(hours=12)
    report = await compare(shop, FIRST, "razorpay")
    assert (report.run.matched_count, report.run.awaited_count, report.run.mismatch_count) == (0, 2, 0)
    await schedule_until(shop, clock, days=6)
    [run] = [each for each in await runs(shop) if each.processor == "razorpay" and each.day == FIRST]
    assert (run.matched_count, run.awaited_count, run.mismatch_count) == (2, 0, 0)
    assert run.totals == (CurrencyTotals("INR", 50_000, 50_000, 20_000, 20_000, 1_180),)
    assert await alerts(shop) == []


async def test_what_is_never_settled_is_missing_after_the_grace(shop: Shop, stub: StubProcessor, clock: Clock) -> None:
    await connect(shop, "razorpay", RAZORPAY)
    paid = await buy_in_inr(shop, stub)
    await control(stub, f"books/{reference(paid)}", {"is_gone": True})
    await schedule_until(shop, clock, days=13)
    assert await alerts(shop) == []
    await schedule_until(shop, clock, days=3)
    [alert] = await alerts(shop)
    found = json.loads(alert.body)["payload"]["findings"]
    assert [(each["kind"], each["orderId"]) for each in found] == [("missing_there", paid.order.id)]
    assert (await shop.now(paid.order.id)).order.needs_review
    await schedule_until(shop, clock, days=5)
    assert len(await alerts(shop)) == 1


@pytest.mark.parametrize(("currency", "is_found"), [("INR", True), ("USD", False)])
async def test_razorpay_s_amount_differs_only_where_it_was_not_exchanged(
    shop: Shop, stub: StubProcessor, clock: Clock, currency: str, is_found: bool
) -> None:
    await connect(shop, "razorpay", RAZORPAY)
    paid = await buy_in_inr(shop, stub)
    await control(stub, f"books/{reference(paid)}", {"amount": 590, "currency": currency})
    clock.forward(days=4)
    assert (await compare(shop, FIRST, "razorpay")).run.amount_differs_count == int(is_found)
