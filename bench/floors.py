"""The bare floors: one insert and one select by the database's own driver, behind bare Starlette, and nothing else.

`python -m bench.floors DATABASE_URL PORT` serves one, over a database that Loop has migrated and where `MERCHANT` is.
"""

import asyncio
import json
import queue
import secrets
import sqlite3
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import aiosqlite
import asyncpg
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

MERCHANT = "mer_floor"
COLUMNS = (
    "id", "merchant_id", "external_id", "amount_minor", "currency", "status", "processor", "processor_order_id",
    "is_manual_capture", "country", "customer_id", "customer_email", "description", "metadata", "return_url",
    "cancel_url", "amount_authorized_minor", "amount_captured_minor", "amount_refunded_minor",
    "amount_refund_reserved_minor", "attempt_count", "last_error_code", "last_error_message", "needs_review",
    "expires_at", "created_at", "updated_at",
)  # fmt: skip
POOL_SIZE = 16
"""As Loop's `database_pool_size` by default."""
MAX_GROUP = 1_000
"""The most inserts that one commit of SQLite makes durable."""
BACKLOG = 2_048

_NAMES = ", ".join(COLUMNS)
_QUESTION_MARKS = ", ".join("?" for _ in COLUMNS)
_NUMBERED = ", ".join(f"${number}" for number in range(1, len(COLUMNS) + 1))

Row = Sequence[Any]


class Floor(Protocol):
    """The two statements on one database."""

    async def insert(self, row: Row) -> None:
        """Insert an order, durably."""
        ...

    async def select(self, order_id: str) -> Row | None:
        """Return an order's row, or None."""
        ...


class PostgresFloor:
    """asyncpg's own pool."""

    _INSERT = f"INSERT INTO orders ({_NAMES}) VALUES ({_NUMBERED})"  # noqa: S608 - names of our own
    _SELECT = f"SELECT {_NAMES} FROM orders WHERE id = $1"  # noqa: S608 - names of our own

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool

    async def insert(self, row: Row) -> None:
        """See `Floor.insert`."""
        await self._pool.execute(self._INSERT, *row)

    async def select(self, order_id: str) -> Row | None:
        """See `Floor.select`."""
        record = await self._pool.fetchrow(self._SELECT, order_id)
        return None if record is None else tuple(record)


async def _open_postgres(url: str) -> PostgresFloor:
    return PostgresFloor(await asyncpg.create_pool(url, min_size=1, max_size=POOL_SIZE))


class SqliteFloor:
    """A thread that commits whatever waits together, WAL and synchronous=FULL; reads through aiosqlite."""

    _INSERT = f"INSERT INTO orders ({_NAMES}) VALUES ({_QUESTION_MARKS})"  # noqa: S608 - names of our own
    _SELECT = f"SELECT {_NAMES} FROM orders WHERE id = ?"  # noqa: S608 - names of our own

    def __init__(self, path: str, reader: aiosqlite.Connection) -> None:
        self._path = path
        self._reader = reader
        self._loop = asyncio.get_running_loop()
        self._waiting: queue.SimpleQueue[tuple[Row, asyncio.Future[None]]] = queue.SimpleQueue()
        threading.Thread(target=self._write, daemon=True).start()

    def _write(self) -> None:
        connection = sqlite3.connect(self._path, isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")
        while True:  # ends with the process, as a thread that is a daemon
            group = [self._waiting.get()]
            while len(group) < MAX_GROUP and not self._waiting.empty():
                group.append(self._waiting.get())
            connection.execute("BEGIN IMMEDIATE")
            for row, _ in group:
                connection.execute(self._INSERT, row)
            connection.execute("COMMIT")
            self._loop.call_soon_threadsafe(_tell, group)

    async def insert(self, row: Row) -> None:
        """See `Floor.insert`."""
        committed: asyncio.Future[None] = self._loop.create_future()
        self._waiting.put(([each.isoformat() if isinstance(each, datetime) else each for each in row], committed))
        await committed

    async def select(self, order_id: str) -> Row | None:
        """See `Floor.select`."""
        for row in await self._reader.execute_fetchall(self._SELECT, (order_id,)):
            return tuple(row)
        return None


async def _open_sqlite(path: str) -> SqliteFloor:
    return SqliteFloor(path, await aiosqlite.connect(path, isolation_level=None))


def _tell(group: Sequence[tuple[Row, "asyncio.Future[None]"]]) -> None:
    for _, committed in group:
        if not committed.cancelled():
            committed.set_result(None)


def _row(wanted: dict[str, Any]) -> Row:
    now = datetime.now(UTC)  # noqa: TID251 - a floor has no context that could hand it a clock
    order_id = f"ord_{time.time_ns() >> 20:x}{secrets.token_hex(8)}"
    return (
        order_id, MERCHANT, order_id, wanted["amount"], wanted["currency"], "pending", None, None,
        False, None, wanted["customerId"], wanted["customerEmail"], wanted["description"],
        json.dumps(wanted["metadata"]), None, None, 0, 0, 0, 0, 0, None, None, False, None, now, now,
    )  # fmt: skip


def _shown(row: Row) -> dict[str, object]:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in zip(COLUMNS, row, strict=True)
    }


def make_app(floor: Floor) -> Starlette:
    """Return the app: a create and a get that check nothing."""

    async def create(request: Request) -> Response:
        row = _row(await request.json())
        await floor.insert(row)
        return JSONResponse(_shown(row), 201)

    async def get(request: Request) -> Response:
        row = await floor.select(request.path_params["order_id"])
        return Response(status_code=404) if row is None else JSONResponse(_shown(row))

    return Starlette(
        routes=[
            Route("/v1/orders", create, methods=["POST"]),
            Route("/v1/orders/{order_id}", get, methods=["GET"]),
        ]
    )


async def _serve(database_url: str, port: int) -> None:
    is_sqlite = database_url.startswith("sqlite")
    path = database_url.removeprefix("sqlite:///")
    floor: Floor = await (_open_sqlite(path) if is_sqlite else _open_postgres(database_url))
    config = uvicorn.Config(
        make_app(floor), port=port, http="httptools", ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, backlog=BACKLOG,
    )  # fmt: skip
    await uvicorn.Server(config).serve()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1], int(sys.argv[2])))
