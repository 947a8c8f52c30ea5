"""A SQLite file that somebody else writes to: requests wait or are to come again, and what was answered is there."""

import asyncio
import sqlite3
from contextlib import closing

import pytest

from loop.config import Settings
from tests.api.client import Shop

LOCKED_S = 10.0
ORDERS = 20


@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_ten_seconds_of_somebody_else_s_writing_lose_nothing(shop: Shop, settings: Settings) -> None:
    before = await shop.order()
    with closing(sqlite3.connect(settings.database_url.removeprefix("sqlite:///"), isolation_level=None)) as outsider:
        outsider.execute("BEGIN IMMEDIATE")
        asked = [asyncio.create_task(shop.post("/v1/orders", {"amount": number})) for number in range(1, ORDERS + 1)]
        await asyncio.sleep(LOCKED_S / 2)
        assert (await shop.get(f"/v1/orders/{before['id']}")).status == 200  # reading goes on
        await asyncio.sleep(LOCKED_S / 2)
        outsider.execute("COMMIT")
    answers = await asyncio.gather(*asked)
    assert {answer.status for answer in answers} <= {201, 503}
    assert all(answer.code == "database_unavailable" for answer in answers if answer.status == 503)
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers if answer.status == 503)
    made = {answer.body["id"] for answer in answers if answer.status == 201}
    there = {order["id"] for order in (await shop.get("/v1/orders?limit=100")).body["data"]}
    assert there == made | {before["id"]}
    assert (await shop.post("/v1/orders", {"amount": 1})).status == 201
