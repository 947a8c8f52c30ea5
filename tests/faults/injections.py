"""Injections: every fault that a city is put through, each from its beginning to its end, and the plan of a round."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from time import monotonic

import asyncpg

from loop.config import JOB_LEASE_S
from loop.storage.tables import DELIVER
from loop.testing.stub_faults import Fault
from loop.testing.stub_webhooks import WebhookFaults
from loop.workers.arq_runner import LOOK, QUEUE
from tests.faults.cities import CALL_S, STEADY, City
from tests.faults.proxies import Proxy, Spoil

SPOILT_WITHIN_S = 15.0
"""How long there may be nothing for a fault to hit."""

LOOK_EVERY_S = 0.1
STOPS_MAX = 20
"""How often a worker is stopped while a merchant hesitates, until it is the one that the merchant keeps waiting."""

HELD_S = 3.0
"""After so long a job that nobody went on with is the stopped worker's."""

HEAD_START_S = 5.0
"""How long customers have come when the first fault does."""

PAUSE_S = 0.5
"""How long everything goes well between two faults."""

HITS = 8
"""How many requests to a processor a fault hits."""

DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
PATIENT = "SET LOCAL deadlock_timeout = '10s'; SET LOCAL lock_timeout = '3s'"
"""Who waits for a second looks whether it is in a deadlock, and is the one that is turned away."""
LOCK_ORDERS = "SELECT FROM orders WHERE id IN (SELECT subject FROM jobs WHERE is_leased) FOR UPDATE"
LOCK_JOBS = "SELECT FROM jobs WHERE is_leased FOR UPDATE"

SPOILS: tuple[Spoil, ...] = ("drop before", "drop after", "cut")

Injection = Callable[[City], Awaitable[None]]


# -- processes


async def kill_a_worker(here: City) -> None:
    await here.kill("worker")


async def kill_an_api(here: City) -> None:
    await here.kill("api")


async def replace_all(here: City) -> None:
    await here.replace("worker")
    await here.replace("api")


async def stop_a_worker(here: City) -> None:
    """Freeze a worker in the middle of a job until another has taken that over, and let it go on as if nothing was."""
    worker = here.workers[STEADY].process
    for _ in range(STOPS_MAX):
        async with here.merchant.hesitating():
            worker.send_signal(signal.SIGSTOP)
            before = await here.recoveries.held()
        await asyncio.sleep(HELD_S)
        after = await here.recoveries.held()
        held = [key for key in before if before[key] == after.get(key) and before[key]["kind"] == DELIVER]
        if held:
            break
        worker.send_signal(signal.SIGCONT)
        await asyncio.sleep(LOOK_EVERY_S)
    else:
        raise AssertionError(f"the worker held nothing when it was stopped, {STOPS_MAX} times")
    here.recoveries.ended("SIGSTOP of a worker past its leases, SIGCONT", surely=held)
    await asyncio.sleep(JOB_LEASE_S + 3)
    worker.send_signal(signal.SIGCONT)


async def stop_an_api(here: City) -> None:
    here.apis[STEADY].process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(5)
    here.apis[STEADY].process.send_signal(signal.SIGCONT)
    here.recoveries.ended("SIGSTOP of an api for 5 s")


# -- the database


async def crash_postgres(here: City) -> None:
    async with here.interrupting():
        await asyncio.to_thread(here.postgres.crash)
        held = await here.recoveries.held()
    here.recoveries.ended("PostgreSQL crashes and begins anew", surely=held)


async def crash_postgres_in_the_sweep(here: City) -> None:
    """Kill a worker, and PostgreSQL at the moment in which the others take over what it held."""
    killed_at = monotonic()
    await here.kill("worker")
    await asyncio.sleep(max(0.0, JOB_LEASE_S - 0.3 - (monotonic() - killed_at)))
    async with here.interrupting():
        await asyncio.to_thread(here.postgres.crash)
        held = await here.recoveries.held()
    here.recoveries.ended("PostgreSQL crashes while leases are taken over", surely=held)


async def lock_tables(here: City) -> None:
    """Hold what everybody needs until statements, and who waits for a connection, give up."""
    async with here.interrupting():
        connection = await asyncpg.connect(here.postgres.url)
        try:
            async with connection.transaction():
                await connection.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
                await asyncio.sleep(7)
        finally:
            await connection.close()
    here.recoveries.ended("a locked table: lock timeouts, pool exhausted")


async def lock_crosswise(here: City) -> None:
    """Lock jobs, and then orders that others have changed while they wait for the jobs, until one is turned away."""
    async with here.interrupting():
        connection = await asyncpg.connect(here.postgres.url)
        try:
            before, until = await connection.fetchval(DEADLOCKS), monotonic() + SPOILT_WITHIN_S
            while (deadlocks := await connection.fetchval(DEADLOCKS) - before) == 0 and monotonic() < until:
                with suppress(asyncpg.LockNotAvailableError):
                    async with connection.transaction():
                        await connection.execute(PATIENT)
                        await connection.execute(LOCK_JOBS)
                        await asyncio.sleep(LOOK_EVERY_S)
                        await connection.execute(LOCK_ORDERS)
        finally:
            await connection.close()
    here.recoveries.ended("deadlocks", deadlocks)


async def refuse_database(here: City) -> None:
    async with here.interrupting():
        await _refused(here.ways.database, 4)
    here.recoveries.ended("database refuses for 4 s")


async def freeze_database(here: City) -> None:
    async with here.interrupting():
        await _frozen(here.ways.database, 7)
    here.recoveries.ended("database says nothing for 7 s")


async def slow_database(here: City) -> None:
    async with here.interrupting():
        await _slow(here.ways.database, 0.3, for_s=5)
    here.recoveries.ended("database slow, 0.6 s for each statement")


async def reset_database(here: City) -> None:
    here.ways.database.reset()
    here.recoveries.ended("database connections reset")


def spoil_database(how: Spoil) -> Injection:
    async def inject(here: City) -> None:
        async with here.interrupting():
            hits = await _spoilt(here.ways.database, how, HITS)
        here.recoveries.ended(f"database {_words(how)}", hits)

    return inject


# -- Redis


async def flush_redis(here: City) -> None:
    await here.redis.told("FLUSHALL")
    here.recoveries.ended("FLUSHALL")


async def crash_redis(here: City) -> None:
    await asyncio.to_thread(here.redis.crash)
    here.recoveries.ended("Redis crashes and has forgotten everything")


async def refuse_redis(here: City) -> None:
    await _refused(here.ways.redis, 8)
    here.recoveries.ended("Redis down for 8 s")


async def slow_redis(here: City) -> None:
    await _slow(here.ways.redis, 5, for_s=8)
    here.recoveries.ended("Redis slow, 5 s for each answer")


async def freeze_redis(here: City) -> None:
    await _frozen(here.ways.redis, 4)
    here.recoveries.ended("Redis says nothing for 4 s")


async def fill_redis(here: City) -> None:
    await here.redis.told("CONFIG", "SET", "maxmemory-policy", "noeviction")
    await here.redis.told("CONFIG", "SET", "maxmemory", 1)
    await asyncio.sleep(5)
    await here.redis.told("CONFIG", "SET", "maxmemory", 0)
    here.recoveries.ended("Redis full, noeviction")


async def wake_again(here: City) -> None:
    """Push wake-ups again and in any order, some of them of nobody's making."""
    at_ms = [int(score) for score in range(200)]
    here.chance.shuffle(at_ms)
    for number in at_ms:
        await here.redis.told("ZADD", QUEUE, number, f"{LOOK}-{number % 50}")
    here.recoveries.ended("wake-ups twice, out of order, and of nothing", len(at_ms))


# -- the processors


def spoil_calls(name: str, fault: Fault) -> Injection:
    """Return an injection that spoils the next calls which pay, capture or refund at Stripe."""

    async def inject(here: City) -> None:
        armed = replace(fault, method="POST", times=HITS)
        here.stub.faults.arm(armed)
        until = monotonic() + SPOILT_WITHIN_S
        while armed in here.stub.faults.armed and monotonic() < until:  # noqa: ASYNC110 - the stand-in has no event
            await asyncio.sleep(LOOK_EVERY_S)
        hits = HITS
        if armed in here.stub.faults.armed:
            hits -= armed.times
            here.stub.faults.armed.remove(armed)
        here.recoveries.ended(f"processor {name}", hits)

    return inject


def spoil_processors(how: Spoil) -> Injection:
    async def inject(here: City) -> None:
        hits = await _spoilt(here.ways.processors, how, HITS)
        here.recoveries.ended(f"processors' connections: {_words(how)}", hits)

    return inject


async def storm(here: City) -> None:
    """Have every call to Stripe refused for a while, until circuits open."""
    hits = 0
    for status in (429, 503):
        armed = Fault(kind="status", status=status, html=status == 503, path="/v1/payment_intents", times=1_000)
        here.stub.faults.arm(armed)
        await asyncio.sleep(4)
        here.stub.faults.armed.remove(armed)
        hits += 1_000 - armed.times
    here.recoveries.ended("processor answers 429, then 503, to everything", hits)


async def refuse_processors(here: City) -> None:
    await _refused(here.ways.processors, 3)
    here.recoveries.ended("processors refuse for 3 s")


async def freeze_processors(here: City) -> None:
    await _frozen(here.ways.processors, CALL_S + 1.5)
    here.recoveries.ended("processors say nothing, longer than Loop waits")


async def slow_processors(here: City) -> None:
    """Slow answers down, so that webhooks come before them."""
    await _slow(here.ways.processors, 1.2, for_s=5)
    here.recoveries.ended("webhooks before the answers")


async def reset_processors(here: City) -> None:
    here.ways.processors.reset()
    here.recoveries.ended("processors' connections reset")


# -- the processors' webhooks


async def webhooks_again(here: City) -> None:
    here.stub.webhooks.faults = WebhookFaults(copies=10)
    await asyncio.sleep(2)
    here.stub.webhooks.faults = WebhookFaults()
    here.recoveries.ended("webhooks ten times each")


async def webhooks_shuffled(here: City) -> None:
    here.carrier.is_holding = True
    await asyncio.sleep(6)
    here.recoveries.ended("webhooks 6 s late, in any order", here.carrier.release(here.chance))


# -- how a way fails


async def _refused(way: Proxy, for_s: float) -> None:
    way.refuse()
    await asyncio.sleep(for_s)
    await way.accept()


async def _frozen(way: Proxy, for_s: float) -> None:
    way.freeze()
    await asyncio.sleep(for_s)
    way.thaw()


async def _slow(way: Proxy, delay_s: float, *, for_s: float) -> None:
    way.delay_s = delay_s
    await asyncio.sleep(for_s)
    way.delay_s = 0.0


async def _spoilt(way: Proxy, how: Spoil, times: int) -> int:
    way.spoil(how, times)
    until = monotonic() + SPOILT_WITHIN_S
    while way.is_spoiling and monotonic() < until:  # noqa: ASYNC110 - bounded, and short
        await asyncio.sleep(LOOK_EVERY_S)
    return times - way.unspoil()


def _words(how: Spoil) -> str:
    return {"drop before": "lost before", "drop after": "lost after", "cut": "cut in an answer"}[how]


STORED = Fault(kind="status", status=500, stored=True, executes=True, path="/v1/payment_intents")

Trouble = tuple[frozenset[int], Injection]
"""An injection, and the rows of `tests/architecture/test_fault_rows.py` that it is there for."""


def _of(row: int, *injections: Injection) -> tuple[Trouble, ...]:
    return tuple((frozenset({row}), inject) for inject in injections)


LEASES: tuple[Trouble, ...] = ((frozenset({4, 38}), stop_a_worker), *_of(8, crash_postgres_in_the_sweep))
"""What takes as long as a lease."""

KILLS: tuple[Trouble, ...] = (*_of(2, kill_an_api), *_of(1, kill_a_worker)) * 2
"""What takes long to recover from, and comes before what else happens to processes and the database."""

DATABASE: tuple[Trouble, ...] = (
    *_of(6, replace_all),
    *_of(38, stop_an_api),
    *_of(7, crash_postgres),
    *_of(9, lock_tables, lock_crosswise, refuse_database, freeze_database, slow_database, reset_database),
    *_of(9, *(spoil_database(how) for how in SPOILS)),
)
REDIS: tuple[Trouble, ...] = (
    *_of(10, flush_redis),
    (frozenset({10, 39}), crash_redis),
    *_of(10, refuse_redis, freeze_redis),
    *_of(11, slow_redis, fill_redis),
    (frozenset({5, 11}), wake_again),
)
PROCESSORS: tuple[Trouble, ...] = (
    *_of(
        12,
        spoil_calls("charges and does not answer", Fault(kind="drop_after", path="/v1/")),
        spoil_calls("answers are cut", Fault(kind="cut_body", path="/v1/")),
        spoil_calls("is slower than Loop waits", Fault(kind="slow", delay_s=CALL_S + 1, path="/v1/")),
        *(spoil_processors(how) for how in SPOILS),
        freeze_processors,
        reset_processors,
    ),
    *_of(13, spoil_calls("loses requests", Fault(kind="drop_before", path="/v1/")), refuse_processors),
    *_of(14, spoil_calls("charges and keeps a 500 for the key", STORED)),
    *_of(15, storm),
    *_of(18, slow_processors),
    *_of(19, webhooks_again, webhooks_shuffled),
)
ROWS: frozenset[int] = frozenset(row for rows, _ in (*LEASES, *KILLS, *DATABASE, *REDIS, *PROCESSORS) for row in rows)
"""What a round puts a city through, beside what its merchant does."""


async def run_all(here: City) -> None:
    """Let every fault happen, in an order that chance has made; different ways fail at the same time."""
    tracks = ([*LEASES], [*KILLS, *_shuffled(here, DATABASE)], _shuffled(here, REDIS), _shuffled(here, PROCESSORS))
    await asyncio.sleep(HEAD_START_S)
    async with asyncio.TaskGroup() as group:
        for track in tracks:
            group.create_task(_in_turn(here, track))


def _shuffled(here: City, troubles: tuple[Trouble, ...]) -> list[Trouble]:
    return here.chance.sample(troubles, len(troubles))


async def _in_turn(here: City, troubles: list[Trouble]) -> None:
    for _, inject in troubles:
        await asyncio.sleep(PAUSE_S)
        await inject(here)
