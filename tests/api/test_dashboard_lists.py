"""The overview and the lists of refunds, disputes and compared days: their figures, and what they say when empty."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from loop.domain.money import Money
from loop.domain.movements import MovementKind
from loop.domain.reconciliation import CurrencyTotals, Finding, FindingKind
from loop.runtime import Running
from loop.storage import reconciliation
from loop.storage.reconciliation import Run
from tests.api.client import Shop
from tests.api.dashboard_desk import Desk, new_desk


@pytest.fixture
async def desk(shop: Shop) -> AsyncIterator[Desk]:
    async with new_desk(shop) as signed_in:
        yield signed_in


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("", "No payments yet"),
        ("/orders", "No orders yet"),
        ("/refunds", "No refunds yet"),
        ("/disputes", "No disputes"),
        ("/reconciliation", "Nothing compared yet"),
    ],
)
async def test_an_empty_place_says_how_it_fills(desk: Desk, page: str, words: str) -> None:
    assert words in (await desk.get(f"/dashboard{page}")).text


async def test_the_overview_adds_up_one_currency_at_a_time(desk: Desk, shop: Shop) -> None:
    for amount in (1_000, 3_000):
        await shop.paid_order(amount=amount, currency="EUR")
    await shop.paid_order("tok_decline_insufficient_funds", amount=500, currency="EUR")
    await shop.paid_order(amount=7_000, currency="USD")
    content = await desk.told("/dashboard/overview.json")
    now = content["now"]
    assert isinstance(now, dict)
    assert (content["currency"], content["currencies"]) == ("EUR", ["EUR", "USD"])
    assert (now["totalVolume"], now["totalTransactions"], now["averageTicket"]) == (4_000, 3, 2_000)
    assert now["successRate"] == 66.67
    assert content["declines"] == [{"code": "insufficient_funds", "count": 1}]
    dollars = await desk.told("/dashboard/overview.json?currency=USD")
    assert isinstance(dollars["now"], dict)
    assert (dollars["now"]["totalVolume"], dollars["declines"]) == (7_000, [])
    page = (await desk.get("/dashboard")).text
    assert "Insufficient funds" in page
    assert "Day by day" in page


@pytest.mark.parametrize("query", ["days=1", "days=x", "days=", "currency=XXX", "currency=<b>"])
async def test_a_period_or_currency_that_is_none(desk: Desk, query: str) -> None:
    answer = await desk.get(f"/dashboard?{query}")
    assert answer.status == (200 if query == "days=" else 400)
    assert "<b>" not in answer.text.replace("<b>", "", 0) or query != "currency=<b>"


async def test_refunds_are_listed_with_their_order(desk: Desk, shop: Shop) -> None:
    order = await shop.paid_order(externalId="basket-3")
    await shop.post(f"/v1/orders/{order['id']}/refund", {"amount": 100, "reason": "scratched"})
    page = await desk.get("/dashboard/refunds")
    assert "basket-3" in page.text
    assert "scratched" in page.text
    content = await desk.told("/dashboard/refunds.json?status=succeeded")
    rows = content["data"]
    assert isinstance(rows, list)
    assert [(row["amount"], row["externalId"]) for row in rows] == [(100, "basket-3")]
    assert (await desk.told("/dashboard/refunds.json?status=failed"))["data"] == []
    assert (await desk.get("/dashboard/refunds?status=gone")).status == 400


async def test_lists_are_of_one_merchant(desk: Desk, shop: Shop, bare_shop: Shop) -> None:
    order = await shop.paid_order(externalId="mine-alone")
    await shop.post(f"/v1/orders/{order['id']}/refund", {"amount": 100})
    async with new_desk(bare_shop) as other:
        for page in ("", "/orders", "/refunds", "/disputes", "/reconciliation"):
            assert "mine-alone" not in (await other.get(f"/dashboard{page}")).text
    assert "mine-alone" in (await desk.get("/dashboard/refunds")).text


async def test_a_compared_day_shows_what_differs(desk: Desk, shop: Shop, served: Running) -> None:
    order = await shop.paid_order(externalId="basket-9")
    context = served.context
    config_id = await shop.use_sandbox()
    day = context.now().date() - timedelta(days=1)
    totals = (CurrencyTotals("USD", 4_999, 3_000, 0, 0, 120),)
    run = Run("rec_1", shop.merchant.id, config_id, "sandbox", day, 3, 0, 0, 0, 1, totals, context.now())
    finding = Finding(
        FindingKind.AMOUNT_DIFFERS, MovementKind.CHARGE, "sbx_1", order["id"], None, Money(4_999, "USD"),
        Money(3_000, "USD"), context.now(),
    )  # fmt: skip
    async with context.database.transaction() as session:
        await reconciliation.put(session, run, [finding])
    assert "Differs" in (await desk.get("/dashboard/reconciliation")).text
    page = (await desk.get("/dashboard/reconciliation/rec_1")).text
    assert "The amounts differ" in page
    assert order["id"] in page
    assert "30.00" in page
    content = await desk.told("/dashboard/reconciliation/rec_1.json")
    assert content["amountDiffers"] == 1
    assert (await desk.get("/dashboard/reconciliation/rec_0")).status == 404
