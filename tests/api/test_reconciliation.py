"""The compared days over HTTP: whose they are, in what order, and what each one says."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import aiohttp
import pytest

from loop.domain.money import Money
from loop.domain.movements import MovementKind
from loop.domain.reconciliation import CurrencyTotals, Finding, FindingKind
from loop.storage import reconciliation
from loop.storage.reconciliation import Run
from tests.api.client import Shop, open_shop

FIRST = date(2026, 3, 1)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
LOST = Finding(FindingKind.MISSING_THERE, MovementKind.REFUND, "re_1", "ord_1", "ref_1", Money(400, "EUR"), None, NOON)
STRANGE = Finding(FindingKind.MISSING_HERE, MovementKind.CHARGE, "ch_9", None, None, None, Money(777, "INR"), NOON)


async def keep(shop: Shop, number: int, *findings: Finding, **changes: object) -> str:
    """Keep a compared day, as many days after the first as its number says; return its id."""
    run = Run(
        f"rec_{shop.merchant.name}{number}", shop.merchant.id, f"pcf_{shop.merchant.name}", "stripe",
        FIRST + timedelta(days=number), 3, 0, 0, 0, 0,
        (CurrencyTotals("EUR", 2_000, 2_000, 400, 0, 88),), NOON + timedelta(days=number + 1),
    )  # fmt: skip
    kept = replace(run, **changes)  # type: ignore[arg-type] # any field
    async with shop.context.database.transaction() as session:
        run_id, _ = await reconciliation.put(session, kept, findings)
    return run_id


async def test_a_day_is_shown_with_what_differs(bare_shop: Shop) -> None:
    run_id = await keep(bare_shop, 0, LOST, STRANGE, missing_here_count=1, missing_there_count=1)
    answer = await bare_shop.get(f"/api/reconciliation/{run_id}")
    assert answer.status == 200
    summary = {
        "id": run_id,
        "processor": "stripe",
        "day": "2026-03-01",
        "status": "mismatch",
        "matched": 3,
        "awaited": 0,
        "missingHere": 1,
        "missingThere": 1,
        "amountDiffers": 0,
        "totals": [
            {
                "currency": "EUR",
                "chargedHere": 2_000,
                "chargedThere": 2_000,
                "refundedHere": 400,
                "refundedThere": 0,
                "fees": 88,
            }
        ],
        "ranAt": "2026-03-02T12:00:00.000Z",
    }
    lost = {
        "kind": "missing_there",
        "movement": "refund",
        "reference": "re_1",
        "orderId": "ord_1",
        "refundId": "ref_1",
        "amountHere": 400,
        "currencyHere": "EUR",
        "amountThere": None,
        "currencyThere": None,
        "occurredAt": "2026-03-01T12:00:00.000Z",
    }
    strange = lost | {
        "kind": "missing_here", "movement": "charge", "reference": "ch_9", "orderId": None, "refundId": None,
        "amountHere": None, "currencyHere": None, "amountThere": 777, "currencyThere": "INR",
    }  # fmt: skip
    assert answer.body == summary | {"findings": [lost, strange]}
    listed = (await bare_shop.get("/api/reconciliation")).body
    assert listed == {"data": [summary], "pagination": {"page": 1, "limit": 20, "total": 1, "totalPages": 1}}


@pytest.mark.parametrize(
    ("counts", "status"),
    [
        ({}, "matched"),
        ({"awaited_count": 2}, "awaiting"),
        ({"awaited_count": 2, "amount_differs_count": 1}, "mismatch"),
    ],
)
async def test_a_day_s_status_is_its_worst(bare_shop: Shop, counts: dict[str, Any], status: str) -> None:
    run_id = await keep(bare_shop, 0, **counts)
    assert (await bare_shop.get(f"/api/reconciliation/{run_id}")).body["status"] == status


async def test_days_come_newest_first_in_pages(bare_shop: Shop) -> None:
    for number in (1, 3, 0, 2):
        await keep(bare_shop, number)
    pages = [(await bare_shop.get(f"/api/reconciliation?page={page}&limit=3")).body for page in (1, 2)]
    assert [[each["day"] for each in page["data"]] for page in pages] == [
        ["2026-03-04", "2026-03-03", "2026-03-02"], ["2026-03-01"],
    ]  # fmt: skip
    assert pages[1]["pagination"] == {"page": 2, "limit": 3, "total": 4, "totalPages": 2}
    assert (await bare_shop.get("/api/reconciliation?limit=101")).code == "validation_failed"


async def test_another_merchant_s_days_are_not_there(bare_shop: Shop, session: aiohttp.ClientSession) -> None:
    other = await open_shop(session, bare_shop.url, bare_shop.context, name="other")
    run_id = await keep(bare_shop, 0, LOST)
    assert (await other.get("/api/reconciliation")).body["data"] == []
    answers = [await other.get(f"/api/reconciliation/{each}") for each in (run_id, "rec_of_nobody", "'; --")]
    assert {(answer.status, answer.code) for answer in answers} == {(404, "not_found")}
    for path in ("/api/reconciliation", f"/api/reconciliation/{run_id}"):
        assert (await other.get(path, auth={})).status == 401
