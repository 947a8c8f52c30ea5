"""A rolling upgrade: two versions side by side on one database while orders are sold, and nothing is lost."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from loop.cli import EXIT_CODES
from loop.domain.errors import ErrorKind
from tests.e2e.houses import GONE
from tests.e2e.roles import Estate, Part
from tests.merchant_server import MerchantServer
from tests.next_versions import CONTRACTING, EXPANDING, next_version
from tests.servers import rows_of

SELLERS = 3
BETWEEN_S = 0.05
"""Between two orders of a seller: processes that begin meanwhile need the machine too."""
FEW = 10
"""Orders that are sold before the next step of the upgrade."""
STOPPED_WITHIN_S = 20.0
WITHIN_S = 30.0
PAUSE_S = 0.02
TRIES = 100
"""How often a call is made again that found its process gone."""
CARD = {"paymentMethod": {"type": "card", "token": "tok_approve"}}


@dataclass
class Till:
    """Sells one order after the other, at the processes that a load balancer knows."""

    here: Estate
    token: str
    apis: list[Part]
    sold: list[str] = field(default_factory=list)
    faults: list[tuple[int, Any]] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)
    """How often each process has answered."""
    _asked: Counter[str] = field(default_factory=Counter)
    """How many calls are at each process just now."""
    _numbers: "count[int]" = field(default_factory=count)
    _closing: asyncio.Event = field(default_factory=asyncio.Event)

    async def call(self, path: str, content: object, key: str) -> Any:
        """Return what is answered; who finds a process gone asks another one, under the same key."""
        headers = {"Authorization": f"Bearer {self.token}", "Idempotency-Key": key}
        for _ in range(TRIES):
            url = self.apis[next(self._numbers) % len(self.apis)].url
            self._asked[url] += 1
            try:
                async with self.here.session.post(f"{url}{path}", json=content, headers=headers) as answer:
                    body = await answer.json()
                    self.answered[url] += 1
                    if answer.status >= 300:
                        self.faults.append((answer.status, body))
                    return body
            except GONE:
                await asyncio.sleep(PAUSE_S)
            finally:
                self._asked[url] -= 1
        raise AssertionError("nobody answers")

    async def _sell(self) -> None:
        while not self._closing.is_set():
            name = f"basket-{next(self._numbers)}"
            new = {"amount": 4999, "currency": "EUR", "externalId": name}
            order = await self.call("/v1/orders", new, name)
            await self.call(f"/v1/orders/{order['id']}/pay", CARD, f"{name}-pay")
            self.sold.append(order["id"])
            await asyncio.sleep(BETWEEN_S)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Sell inside the block, and see every order through."""
        async with asyncio.TaskGroup() as sellers:
            for _ in range(SELLERS):
                sellers.create_task(self._sell())
            yield
            self._closing.set()

    async def sell_on(self) -> None:
        """Wait until some more orders are sold."""
        goal = len(self.sold) + FEW
        async with asyncio.timeout(WITHIN_S):
            while len(self.sold) < goal:  # noqa: ASYNC110 - of the sellers, which do not look at each other
                await asyncio.sleep(PAUSE_S)

    async def leave(self, part: Part) -> None:
        """Ask a process no more, and wait until it has answered."""
        self.apis.remove(part)
        async with asyncio.timeout(WITHIN_S):
            while self._asked[part.url]:  # noqa: ASYNC110 - as above
                await asyncio.sleep(PAUSE_S)


async def undone(database: "asyncpg.Connection[asyncpg.Record]") -> list[str]:
    """Return what is still to be done at once, or was given up."""
    rows = await database.fetch(
        "SELECT kind || ' ' || subject FROM jobs WHERE is_dead OR is_leased OR run_at <= now() "
        "UNION ALL SELECT status || ' ' || event_id FROM webhook_deliveries WHERE status <> 'delivered'"
    )
    return [str(row[0]) for row in rows]


@pytest.mark.slow
async def test_two_versions_side_by_side_lose_nothing_while_one_takes_over_from_the_other(
    here: Estate, server: MerchantServer, postgres_database_url: str, tmp_path: Path
) -> None:
    ahead = next_version(tmp_path / "next", (EXPANDING, True))
    old, killed, worker = await asyncio.gather(*(here.begin("--only", role) for role in ("api", "api", "worker")))
    till = Till(here, await here.open_shop(old, server.url), [old, killed])
    async with till.open():
        await till.sell_on()
        assert await here.run("migrate", **ahead) == (0, "The schema is 2999_01_01_next.\n", "")
        await till.sell_on()
        await till.leave(killed)
        assert await killed.end(signal.SIGKILL) == -signal.SIGKILL
        both = ("--only", "api", "--only", "worker")
        begun_again, new = await asyncio.gather(here.begin(*both), here.begin(*both, **ahead))
        till.apis += [begun_again, new]
        await till.sell_on()
        past = (old, begun_again, worker)
        assert await asyncio.gather(*(part.end(within_s=STOPPED_WITHIN_S) for part in past)) == [0, 0, 0]
        till.apis[:] = [new]
        await till.sell_on()

    assert till.faults == []
    assert all(till.answered[part.url] for part in (old, killed, begun_again, new)), till.answered
    database = await asyncpg.connect(postgres_database_url)
    async with asyncio.timeout(WITHIN_S):
        while await undone(database):  # noqa: ASYNC110 - of another process
            await asyncio.sleep(PAUSE_S)
    orders = await database.fetch(
        "SELECT id, status, (SELECT count(*) FROM transactions t WHERE t.order_id = orders.id AND t.type = 'capture')"
        " FROM orders"
    )
    assert sorted(map(tuple, orders)) == sorted((order_id, "captured", 1) for order_id in till.sold)
    events = await database.fetch("SELECT id, order_id, event_type FROM webhook_events")
    await database.close()
    assert {row["id"] for row in events} == {each.event_id for each in server.received}
    assert {tuple(row)[1:] for row in events} >= {
        (order_id, event_type) for order_id in till.sold for event_type in ("order.created", "payment.captured")
    }
    assert await new.end(within_s=STOPPED_WITHIN_S) == 0
    logs = "".join(part.said() for part in here.parts)
    assert [line for line in logs.splitlines() if '"level":"error"' in line or "Traceback" in line] == []


async def test_the_version_before_does_not_start_on_a_schema_that_it_may_not_run_on_and_changes_nothing(
    here: Estate, postgres_database_url: str, tmp_path: Path
) -> None:
    ahead = next_version(tmp_path / "next", (CONTRACTING, False))
    assert (await here.run("migrate", **ahead))[0] == 0
    before = rows_of(postgres_database_url)
    for command in (("serve", "--only", "api"), ("migrate",)):
        code, _, said = await here.run(*command)
        assert (code, said.partition(":")[0]) == (EXIT_CODES[ErrorKind.CONFIGURATION], "schema_newer")
    assert rows_of(postgres_database_url) == before
