"""`loop serve --only`: an API, a worker and a dashboard in processes of their own, which share only rows."""

import asyncio
import signal
from pathlib import Path
from statistics import median
from time import monotonic

import pytest

from loop.cli import EXIT_CODES
from loop.domain.errors import ErrorKind
from loop.storage.jobs import LEASE
from tests.e2e.roles import Estate
from tests.merchant_server import MerchantServer

ENDED_WITHIN_S = 10.0
ORDERS = 40
P50_S = 0.25
"""From an answer that says that an order is there, to the request that tells its merchant: half of what it would be
without wake-ups. On an idle machine it is some 20 ms."""


async def told(server: MerchantServer, *, of: str, count: int = 1, within_s: float = 20) -> None:
    """Wait until the merchant has been told so often of an event."""
    async with asyncio.timeout(within_s):
        while sum(each.event_type == of for each in server.received) < count:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.001)


async def test_an_order_goes_through_three_processes_which_end_when_they_are_told_to(
    here: Estate, server: MerchantServer
) -> None:
    api, worker, dashboard = await asyncio.gather(
        *(here.begin("--only", role) for role in ("api", "worker", "dashboard"))
    )
    token = await here.open_shop(api, server.url)
    order = await here.call(api, token, "POST", "/v1/orders", {"amount": 4999, "currency": "EUR"})
    card = {"paymentMethod": {"type": "card", "token": "tok_approve"}}
    paid = await here.call(api, token, "POST", f"/v1/orders/{order['id']}/pay", card)
    assert paid["status"] == "captured"
    await told(server, of="payment.captured")

    paths = ("/v1/orders", "/dashboard/sign-in", "/health", "/health/ready")
    answered = [[await here.status(part, path) for path in paths] for part in (api, worker, dashboard)]
    assert answered == [[401, 404, 200, 200], [404, 404, 200, 200], [404, 200, 200, 200]]
    async with here.session.get(f"{worker.url}/health/ready") as ready:
        assert (await ready.json())["checks"] == {"database": "ok", "redis": "ok"}
    port = worker.url.rpartition(":")[2]
    assert await here.run("health", LOOP_PORT=port) == (0, "ready\n", "")

    began = monotonic()
    codes = await asyncio.gather(*(part.end(within_s=ENDED_WITHIN_S) for part in (api, worker, dashboard)))
    assert (codes, monotonic() - began < ENDED_WITHIN_S) == ([0, 0, 0], True)
    logs = "".join(part.said() for part in (api, worker, dashboard))
    assert [line for line in logs.splitlines() if '"level":"error"' in line or "Traceback" in line] == []


async def test_a_commit_here_is_a_start_there_sooner_than_by_looking(here: Estate, server: MerchantServer) -> None:
    api, _ = await asyncio.gather(here.begin("--only", "api"), here.begin("--only", "worker"))
    token = await here.open_shop(api, server.url)
    waits = []
    for number in range(1, ORDERS + 1):
        await here.call(api, token, "POST", "/v1/orders", {"amount": 100, "currency": "EUR"})
        committed_at = monotonic()
        await told(server, of="order.created", count=number)
        waits.append(monotonic() - committed_at)
    assert median(waits) <= P50_S, sorted(waits)


@pytest.mark.slow
async def test_what_a_killed_worker_held_is_another_s_when_its_lease_ends(here: Estate, server: MerchantServer) -> None:
    api, worker = await asyncio.gather(here.begin("--only", "api"), here.begin("--only", "worker"))
    token = await here.open_shop(api, server.url)
    server.hang = asyncio.Event()
    await here.call(api, token, "POST", "/v1/orders", {"amount": 100, "currency": "EUR"})
    await told(server, of="order.created")
    assert await worker.end(signal.SIGKILL) == -signal.SIGKILL
    server.hang.set()
    await here.begin("--only", "worker")
    await told(server, of="order.created", count=2, within_s=LEASE.total_seconds() + 10)
    assert len({each.event_id for each in server.received}) == 1


@pytest.mark.slow
async def test_a_worker_that_stops_hands_on_at_once_what_it_was_in_the_middle_of(
    here: Estate, server: MerchantServer
) -> None:
    settings = {"LOOP_WEBHOOK_TIMEOUT_S": "29"}
    api, worker = await asyncio.gather(here.begin("--only", "api"), here.begin("--only", "worker", **settings))
    token = await here.open_shop(api, server.url)
    server.hang = asyncio.Event()
    await here.call(api, token, "POST", "/v1/orders", {"amount": 100, "currency": "EUR"})
    await told(server, of="order.created")
    ending = asyncio.create_task(worker.end())  # which takes longer than its successor takes to start
    successor = await here.begin("--only", "worker", **settings)
    assert await ending == 0
    await told(server, of="order.created", count=2, within_s=5)
    server.hang.set()
    assert await successor.end(within_s=ENDED_WITHIN_S) == 0


async def test_sqlite_is_one_process_s_that_does_everything(tmp_path: Path, here: Estate) -> None:
    on_sqlite = {"DATABASE_URL": f"sqlite:///{tmp_path}/loop.db", "REDIS_URL": ""}
    code, _, said = await here.run("serve", "--only", "worker", "--only", "api", **on_sqlite)
    assert code == EXIT_CODES[ErrorKind.CONFIGURATION]
    assert said.startswith("roles_need_postgres: One process does everything on ")
