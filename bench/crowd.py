"""A crowd of orders: the rows of a few real ones, copied over a year until there are as many as a large shop has."""

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, TypeAlias

import aiohttp
import asyncpg

from bench.servers import Server
from loop.domain.ids import make_id

SPREAD = timedelta(days=365)
"""How long ago the oldest order of a crowd was made."""

BATCH = 20_000
"""How many orders are copied at once."""

TABLES = ("orders", "payment_attempts", "refunds", "transactions", "webhook_events")
"""What an order has rows in, each table after those that it points to."""

TEMPLATES = 60
"""How many real orders the crowd is copied from."""

OUTCOMES = ("tok_approve",) * 7 + ("tok_decline_insufficient_funds", "tok_decline_lost_card", "tok_3ds")

Row: TypeAlias = Mapping[str, Any]
Family: TypeAlias = Mapping[str, Sequence[Row]]
"""Table -> the rows of one order."""


async def make_templates(server: Server, session: aiohttp.ClientSession) -> None:
    """Make the orders that a crowd is copied from: paid, declined, half way, some refunded in part."""

    async def post(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        async with session.post(server.url + path, json=body, headers={"X-API-Key": server.key}) as answer:
            made: dict[str, Any] = await answer.json()
            return made

    for number in range(TEMPLATES):
        wanted = {
            "amount": 1_000 + 137 * number,
            "currency": ("USD", "EUR")[number % 3 == 0],
            "customerEmail": f"shopper{number}@example.com",
            "description": "Two shirts and a hat",
        }
        order = await post("/v1/orders", wanted)
        token = OUTCOMES[number % len(OUTCOMES)]
        paid = await post(f"/v1/orders/{order['id']}/pay", {"paymentMethod": {"type": "card", "token": token}})
        if paid.get("status") == "captured" and number % 5 == 0:
            await post(f"/v1/orders/{order['id']}/refund", {"amount": 500})


def gather(database_url: str, count: int, *, now: datetime) -> tuple[int, str]:
    """Copy the orders that a database holds `count` times; return how many, and the id of one in the middle."""
    if database_url.startswith("sqlite"):
        return _gather_sqlite(database_url.removeprefix("sqlite:///"), count, now)
    return asyncio.run(_gather_postgres(database_url, count, now))


def _gather_sqlite(path: str, count: int, now: datetime) -> tuple[int, str]:
    with closing(sqlite3.connect(path, timeout=60)) as connection:
        connection.row_factory = sqlite3.Row
        rows = {table: [dict(row) for row in connection.execute(f"SELECT * FROM {table}")] for table in TABLES}  # noqa: S608 - ours
        crowd = _crowd(_families(rows), count, now=now, read=datetime.fromisoformat, write=_text)
        made: list[str] = []
        while batch := list(islice(crowd, BATCH)):
            for table in TABLES:
                copies = [row for family in batch for row in family[table]]
                if copies:
                    names = ", ".join(f'"{name}"' for name in copies[0])
                    marks = ", ".join("?" * len(copies[0]))
                    connection.executemany(
                        f"INSERT INTO {table} ({names}) VALUES ({marks})",  # noqa: S608 - ours
                        [tuple(row.values()) for row in copies],
                    )
            made += [family["orders"][0]["id"] for family in batch]
            connection.commit()
        connection.execute("ANALYZE")
        connection.commit()
        return len(made), made[len(made) // 2]


async def _gather_postgres(url: str, count: int, now: datetime) -> tuple[int, str]:
    connection = await asyncpg.connect(url)
    try:
        rows = {table: [dict(row) for row in await connection.fetch(f"SELECT * FROM {table}")] for table in TABLES}  # noqa: S608 - ours
        crowd = _crowd(_families(rows), count, now=now, read=lambda value: value, write=lambda value: value)
        made: list[str] = []
        while batch := list(islice(crowd, BATCH)):
            for table in TABLES:
                copies = [row for family in batch for row in family[table]]
                if copies:
                    await connection.copy_records_to_table(
                        table, records=[tuple(row.values()) for row in copies], columns=list(copies[0])
                    )
            made += [family["orders"][0]["id"] for family in batch]
        await connection.execute("VACUUM ANALYZE")
        return len(made), made[len(made) // 2]
    finally:
        await connection.close()


def _text(moment: datetime) -> str:
    """Return a time as Loop's SQLite tables have it."""
    return f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z"


def _families(rows: Mapping[str, Iterable[Row]]) -> list[Family]:
    families: dict[str, dict[str, list[Row]]] = {
        row["id"]: {"orders": [row], **{table: [] for table in TABLES[1:]}} for row in rows["orders"]
    }
    for table in TABLES[1:]:
        for row in rows[table]:
            if row["order_id"] in families:
                families[row["order_id"]][table].append(row)
    return list(families.values())


def _crowd(
    families: Sequence[Family],
    count: int,
    *,
    now: datetime,
    read: Callable[[Any], datetime],
    write: Callable[[datetime], Any],
) -> Iterator[Family]:
    """Yield copies of the families in turn, evenly over `SPREAD`, oldest first."""
    step = SPREAD / count
    for number in range(count):
        family = families[number % len(families)]
        made_at = now - SPREAD + step * number
        shift = made_at - read(family["orders"][0]["created_at"])
        ids = {
            row["id"]: make_id(row["id"].partition("_")[0], made_at, random_bytes=os.urandom)
            for table in TABLES
            for row in family[table]
        }
        copy = {table: [_copied(row, ids, shift, read, write) for row in family[table]] for table in TABLES}
        copy["orders"][0] |= {"external_id": f"cart-{number}", "customer_email": f"shopper{number}@example.com"}
        yield copy


def _copied(
    row: Row,
    ids: Mapping[str, str],
    shift: timedelta,
    read: Callable[[Any], datetime],
    write: Callable[[datetime], Any],
) -> dict[str, Any]:
    return {
        name: write(read(value) + shift)
        if value is not None and (name.endswith("_at") or name == "unclear_since")
        else ids.get(value, value)
        if isinstance(value, str)
        else value
        for name, value in row.items()
    }
