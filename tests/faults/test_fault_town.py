"""Loop in several processes sells a thousand orders while everything around it fails: the books agree in the end."""

import asyncio
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import monotonic

import pytest

from tests.canaries import aviary
from tests.conftest import REPORT
from tests.e2e.audits import Moved, assert_all_done, assert_all_moved, assert_all_was_told, of_stubs
from tests.e2e.mischief import chance_of
from tests.faults.cities import City, Use, city
from tests.faults.databases import MortalPostgres, mortal_postgres
from tests.faults.injections import run_all
from tests.faults.sales import ImpatientShop, Sale, story_of
from tests.servers import rows_of

SEED_VARIABLE, ORDERS_VARIABLE, HOURS_VARIABLE = "LOOP_FAULT_SEED", "LOOP_FAULT_ORDERS", "LOOP_SOAK_HOURS"
"""A seed of an earlier run plans the same orders and faults again; how they fall together stays chance."""

ORDERS = 1_000
SPAN_S = 90.0
"""For how long customers come, in a round: about as long as the faults take."""

REST_WITHIN_S = 180.0
"""How long after the last customer everything may take to be done: a lease, and the fourth question to a processor."""

PASS_TIME = """UPDATE jobs SET run_at = now()
WHERE NOT is_leased AND NOT is_dead AND run_at > now() + interval '30 s' RETURNING id"""
"""Some payment may have gone unanswered so often that the next question is ten minutes away."""

ROUND_WITHIN_S = 600.0
"""How long the sale and the faults may take where other tests run beside them; alone it is a fourth of that."""

LOOK_EVERY_S = 0.25

TOLD_MAX = 3
"""Of how many orders that did not end the story is told."""

ALARMS = ("job.dead", "payment.rescued", "http.failed")
"""What stands in no log: a job that was given up, an order that lost its job, an answer of 500."""

REROUTED = "SELECT id FROM payment_attempts WHERE routing_reasons::text LIKE '%circuit is open%'"
"""Payments that went to another processor, since calls to the first one were not answered."""

MANY_ROUNDS = 8
"""From how many rounds on a process that needs more and more shows."""

GROWTH_MAX, SLACK_MIB, SLACK_FILES = 1.15, 16, 8
"""By how much the last rounds' use may be above that of the rounds before them."""


@pytest.fixture
def postgres() -> Iterator[MortalPostgres]:
    with mortal_postgres() as server:
        yield server


def sandbox_as_told(here: City) -> Iterator[Moved]:
    """Return the sandbox's money as Loop tells it: it is in its process's memory alone, and gone with that."""
    query = "SELECT * FROM transactions WHERE processor = 'sandbox' AND status = 'success'"
    for row in here.rows(query):
        order_id, attempt_id = row["order_id"], row["attempt_id"]
        yield Moved("sandbox", order_id, attempt_id, row["type"], row["amount_minor"], row["currency"])


async def come_to_rest(here: City) -> None:
    """Wait until nothing is left to do; who would wait for minutes has them pass at once."""
    await here.carrier.settled()
    until = monotonic() + REST_WITHIN_S
    while left := await here.table.fetch("SELECT * FROM jobs") or await here.table.fetch(
        "SELECT * FROM webhook_deliveries WHERE status = 'pending'"
    ):
        assert monotonic() < until, [(each.get("kind"), each) for each in left[:5]]
        await here.table.fetch(PASS_TIME)
        await asyncio.sleep(LOOK_EVERY_S)
    await here.recoveries.settled()


async def play_round(here: City, shop: ImpatientShop, seed: str, count: int) -> int:
    """Sell at least so many orders while every fault happens, wait until all is done; return how many they were."""
    here.chance.seed(f"{seed} faults")
    sale, is_over = Sale(shop, here.table), asyncio.Event()
    try:
        async with asyncio.timeout(ROUND_WITHIN_S), asyncio.TaskGroup() as group:
            group.create_task(sale.run(seed, count, span_s=SPAN_S, until=is_over), name="sale")
            await run_all(here)
            is_over.set()
    except TimeoutError as error:
        for story in list(sale.left.values())[:TOLD_MAX]:
            error.add_note(await story_of(here.table, story))
        raise
    await come_to_rest(here)
    return sale.sold


def audit(here: City) -> None:
    """Hold what must hold whatever happened."""
    assert_all_done(here)
    assert_all_moved(here, [*of_stubs(here.stub.ledger_path), *sandbox_as_told(here)])
    assert_all_was_told(here, here.merchant)
    assert not here.carrier.refused
    assert [fault for fault, tally in here.recoveries.tallies.items() if not tally.times] == []
    said = here.said()
    assert [line for line in said.splitlines() if any(alarm in line for alarm in ALARMS)] == []
    aviary.keep(here.key)
    aviary.require_none_in(said, where="the log")
    aviary.require_none_in_rows(rows_of(here.table.url))


def report(here: City, shop: ImpatientShop, uses: list[Use], *, orders: int, took_s: float) -> str:
    """Return what was done to Loop, and how it took it."""
    return (
        f"{here.recoveries.text()}\n{orders} orders in {took_s:.0f} s; {shop.impatient} payments tried elsewhere while "
        f"unclear, {len(here.rows(REROUTED))} led around an open circuit; "
        f"memory of a steady api and worker: {uses[0]} -> {uses[-1]}"
    )


def assert_no_growth(uses: list[Use]) -> None:
    """Hold that processes which live through many rounds need no more in the last ones than in those in the middle."""
    if len(uses) < MANY_ROUNDS:
        return
    quarter = len(uses) // 4
    middle, last = uses[quarter : 2 * quarter], uses[-quarter:]
    for name in ("api_mib", "worker_mib", "api_files", "worker_files"):
        before, after = (median(getattr(use, name) for use in some) for some in (middle, last))
        slack = SLACK_MIB if name.endswith("mib") else SLACK_FILES
        assert after <= before * GROWTH_MAX + slack, (name, uses)


@pytest.mark.slow
async def test_everything_around_it_fails(
    tmp_path: Path, postgres: MortalPostgres, record_property: Callable[[str, object], None]
) -> None:
    seed = os.environ.get(SEED_VARIABLE) or str(secrets.randbelow(2**32))
    count = int(os.environ.get(ORDERS_VARIABLE) or ORDERS)
    until = monotonic() + 3_600 * float(os.environ.get(HOURS_VARIABLE) or 0)
    sys.stdout.write(f"{SEED_VARIABLE}={seed} {ORDERS_VARIABLE}={count}, logs in {tmp_path}\n")
    begun, rounds, sold, told = monotonic(), 0, 0, ""
    async with city(tmp_path, postgres, chance_of(seed)) as (here, shop):
        uses = [here.use()]
        while rounds == 0 or monotonic() < until:
            rounds += 1
            sold += await play_round(here, shop, f"{seed}r{rounds}", count)
            uses.append(here.use())
            told = report(here, shop, uses, orders=sold, took_s=monotonic() - begun)
            sys.stdout.write(f"{told}\n")
            audit(here)
            assert shop.impatient, told
            assert here.rows(REROUTED), told
        record_property(REPORT, f"{SEED_VARIABLE}={seed}\n{told}")
        assert_no_growth(uses)
        for part in (*here.apis, *here.workers):
            assert await part.end() == 0, part.said()[-5_000:]
