"""A whole Loop in one process where one seed decides everything, and any await may be the last."""

import asyncio
import json
import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Mapping
from contextlib import closing, contextmanager
from contextvars import Context as Variables
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar, TypeVarTuple

from loop.domain.errors import LoopError
from loop.processors.sandbox_disputes import dispute_reference_of, is_disputed
from loop.server.app import create_app
from loop.server.auth import KeyCache, _caches
from loop.server.middleware import Edge
from loop.server.rate_limits import LocalLimiter, rates_of
from loop.workers.schedule import run_schedule
from tests.e2e.mischief import chance_of
from tests.workflow.order_books import FOLLOWING, Books
from tests.workflow.order_processors import FINE, Fate, Weather, captured
from tests.workflow.order_world import LOOP_POINTS, Crash, Life, NumberedTask, Template, VirtualLoop, World

Happening: TypeAlias = tuple[datetime, str]
"""When something happened, and what."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

HANG_S: Final = 90.0
"""No request takes longer while the process lives and gets its turns: it waits for two calls and some commits."""

DRAIN_S: Final = 20.0
"""How long a stop waits for requests that run, as the server does."""

BOOKS_EVERY: Final = 40
"""Commits from one look at all the books to the next; what an order's row says is looked at after each."""

POINT_SHARE: Final = 0.02
"""How likely an accident is at a point that Loop names, beside those that are counted down to."""

ENOUGH_PAGES: Final = 1_000_000
"""Of a SQLite file: so many that none is ever refused."""

UNAVAILABLE: Final = "database_unavailable"

COUNTS: Final[Mapping[str, float]] = {
    "InlineRunner.run": 0.15, "_repeat": 0.15, "_renew": 0.3, "SqliteDatabase._commit": 0.3, "commit.begun": 0.5,
    "commit.done": 0.5,
}  # fmt: skip
"""What takes many steps in which little happens -> how much each counts on the way to the next accident."""


class WrongError(SystemExit):
    """Something does not hold. It ends the run at once, where Loop's own handlers would swallow an `Exception`."""


@contextmanager
def held_true() -> Generator[None]:
    """Have whatever is asserted in the block end the run."""
    try:
        yield
    except AssertionError as error:
        raise WrongError(str(error)) from error


def place_of(coroutine: Any) -> str:
    """Return where in Loop's own code a coroutine waits, as `module.function:line`; `-` when it has not begun."""
    place = "-"
    while coroutine is not None:
        code = getattr(coroutine, "cr_code", None)
        frame = getattr(coroutine, "cr_frame", None)
        if code is not None and frame is not None and "/loop/" in code.co_filename:
            place = f"{Path(code.co_filename).stem}.{code.co_qualname}:{frame.f_lineno}"
        coroutine = getattr(coroutine, "cr_await", None)
    return place


class Steps(Coroutine[Any, Any, Any]):
    """A task's coroutine, each step of which the world hears of before it is taken."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], world: "SimulatedWorld") -> None:
        self.coroutine, self._world = coroutine, world
        self.__qualname__ = self.__name__ = getattr(coroutine, "__qualname__", "?")
        self.number = 0

    def send(self, value: Any) -> Any:
        self._world.step(self)
        return self.coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        self._world.step(self)
        return self.coroutine.throw(*error)

    def close(self) -> None:
        self.coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.coroutine.__await__()


class SimulatedLoop(VirtualLoop):
    """The event loop of a process of Loop, whose steps are counted, and of those around it, whose are not."""

    def __init__(self, world: "SimulatedWorld") -> None:
        super().__init__(world)
        self.world = world
        self._is_outside = False
        self.inside: list[NumberedTask] = []
        """The tasks that are Loop's own."""

    def outside(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Make a task of somebody who is not a part of Loop: a shopper, a processor, trouble."""
        self._is_outside = True
        try:
            return self.create_task(coroutine)
        finally:
            self._is_outside = False

    def _make_task(self, _: asyncio.AbstractEventLoop, coroutine: Any, **named: Any) -> NumberedTask:
        if self._is_outside:
            return super()._make_task(self, coroutine, **named)
        steps = Steps(coroutine, self.world)
        task = super()._make_task(self, steps, **named)
        steps.number = task.number
        self.inside.append(task)
        return task

    def run_in_executor(self, executor: Any, func: Callable[[*Ts], T], *args: *Ts) -> "asyncio.Future[T]":
        """Commit, which takes as long as the disk pleases while everybody else goes on."""
        del executor
        done: asyncio.Future[T] = self.create_future()

        def commit() -> None:
            self.world.reached("commit.begun")
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001 - whoever waits hears of it
                if not done.done():
                    done.set_exception(error)
                return
            self.world.committed()
            self.world.reached("commit.done")
            if not done.done():
                done.set_result(result)

        self.call_later(self.world.commit_s(), commit, context=Variables())
        return done


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client heard."""

    status: int
    text: str
    headers: Mapping[str, str]

    @property
    def body(self) -> Any:
        """Its JSON."""
        return json.loads(self.text)


class SimulatedLife(Life):
    """One process of Loop that serves: its API over a wire in memory, its runner and its schedule."""

    loop: SimulatedLoop

    def __init__(self, world: "SimulatedWorld") -> None:
        super().__init__(world)
        self.world = world
        self.is_open = True
        self.requests: dict[asyncio.Task[None], float] = {}
        """Those that run, and since when."""
        self.ending = asyncio.Event()
        _caches[self.database] = KeyCache(clock=self.loop.time)
        limiter = LocalLimiter(rates_of(self.context.settings), clock=self.loop.time)
        if world.router is None:
            world.router = create_app(self.context, limiter)._app  # type: ignore[attr-defined] # of the edge
        self.app = Edge(world.router, self.context, limiter)

    def ask(
        self, method: str, target: str, *, headers: Mapping[str, str], body: bytes = b""
    ) -> "asyncio.Future[Answer | None]":
        """Send a request; its future holds the answer, None when the connection ends without one."""
        answered: asyncio.Future[Answer | None] = self.loop.create_future()
        if not self.is_open:
            answered.set_result(None)
            return answered
        path, _, query = target.partition("?")
        sent = {"host": "loop.test", "content-length": str(len(body)), **headers}
        scope = {
            "type": "http", "http_version": "1.1", "method": method, "scheme": "http", "path": path, "root_path": "",
            "raw_path": path.encode(), "query_string": query.encode(), "client": ("203.0.113.7", 50_000),
            "server": ("loop.test", 80), "headers": [(name.encode(), each.encode()) for name, each in sent.items()],
        }  # fmt: skip
        task = self.loop.create_task(self._serve(scope, body, answered), context=Variables())
        self.requests[task] = self.loop.time()
        freezes = self.world.freezes

        def ended(_: "asyncio.Task[None]") -> None:
            took_s = self.loop.time() - self.requests.pop(task)
            if not answered.done():
                answered.set_result(None)
            with held_true():
                assert task.cancelled() or task.exception() is None
                assert took_s < HANG_S or self.world.freezes > freezes, f"{method} {path} took {took_s:.0f} s"

        task.add_done_callback(ended, context=Variables())
        return answered

    async def _serve(self, scope: dict[str, Any], body: bytes, answered: "asyncio.Future[Answer | None]") -> None:
        arriving = [{"type": "http.request", "body": body}]
        start: dict[str, Any] = {}

        async def receive() -> dict[str, Any]:
            return arriving.pop() if arriving else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            elif not answered.done():
                headers = {name.decode(): value.decode() for name, value in start["headers"]}
                answered.set_result(Answer(start["status"], message["body"].decode(), headers))

        await self.app(scope, receive, send)

    async def live(self, people: Mapping[str, Coroutine[Any, Any, None]], until_s: float) -> None:
        """Serve while people come and go, until somebody says that it ends; then end in good order."""
        background = [self.loop.create_task(self.runner.run(self.context))]
        background.append(self.loop.create_task(run_schedule(self.context)))
        around = [self.loop.outside(_minding(coroutine)) for coroutine in people.values()]
        try:
            async with asyncio.timeout_at(until_s):
                await self.ending.wait()
        except TimeoutError:
            pass
        self.is_open = False
        self.runner.stop_claiming()
        if not self.world.is_patient:
            await self.cancel_jobs()
        if self.requests and self.world.is_patient:
            await asyncio.wait(list(self.requests), timeout=DRAIN_S)
        late = [*self.requests, *around]
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        await self.runner.stop()
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await self.end()
        self._check_nothing_runs()

    def _check_nothing_runs(self) -> None:
        with held_true():
            left = [each for each in self.loop.inside if not each.done()]
            assert not left, f"a stop has left behind {left}"


async def _minding(coroutine: Coroutine[Any, Any, None]) -> None:
    with held_true():
        await coroutine


@lru_cache(maxsize=1_000)
def leads_to(before: str, after: str, steps: int) -> bool:
    """Tell whether so many steps of the domain's table, or fewer, lead from one status to another."""
    if before == after:
        return True
    return steps > 0 and any(leads_to(each, after, steps - 1) for each in FOLLOWING[before])


class SimulatedWorld(World):
    """The world in which one seed decides what everybody does, and what goes wrong."""

    life: SimulatedLife

    def __init__(self, template: Template, path: Path, seed: int, *, router: Any = None) -> None:
        self.seed, self.router = seed, router
        self.chance = chance_of(f"simulation {seed}")
        self.tally: Counter[str] = Counter()
        self.places: Counter[str] = Counter()
        """Where the process has died."""
        self.course: list[Happening] = []
        """Everything that happened, in order."""
        self.commits = self.freezes = 0
        self.is_armed = self.is_dying = False
        self.is_patient = True
        self.storminess = 0.0
        self.accidents_left = 0
        self._pause_left = 0
        self._orders: dict[str, tuple[str, int]] = {}
        self._banks: dict[tuple[str, str, str], object] = {}
        self.on_bank_news: Callable[[str, str, Mapping[str, str]], None] = lambda _bank, _reference, _about: None
        super().__init__(template, path, Counter())
        self.books = Books(self)

    def new_loop(self) -> VirtualLoop:
        return SimulatedLoop(self)

    def new_life(self) -> Life:
        was_armed, self.is_armed = self.is_armed, False
        try:
            return SimulatedLife(self)
        finally:
            self.is_armed = was_armed

    def random_bytes(self, size: int) -> bytes:
        return self.chance.randbytes(size)

    def note(self, what: str) -> None:
        """Write down what happens."""
        self.course.append((self.clock.at, what))

    # Accidents.

    def expect_accidents(self, count: int) -> None:
        """Have so many happen from now on."""
        self.is_armed, self.accidents_left = count > 0, count
        self._pause_left = self._pause()

    def _pause(self) -> int:
        return int(10 ** self.chance.uniform(0.4, 2.8))

    def step(self, steps: Steps) -> None:
        """Hear that a task of Loop takes a step, which may be prevented."""
        if self.is_dying:
            return
        self.note(f"{steps.number} {steps.__qualname__}")
        if self._is_due(steps.__qualname__):
            self._happen(lambda: place_of(steps.coroutine))

    def reached(self, point: str) -> None:
        if self.is_dying:
            return
        self.note(point)
        is_named = self.is_armed and point in LOOP_POINTS and self.chance.random() < POINT_SHARE
        if self._is_due(point) or is_named:
            self._happen(lambda: point)

    def _is_due(self, what: str) -> bool:
        if not self.is_armed or (what in COUNTS and self.chance.random() >= COUNTS[what]):
            return False
        self._pause_left -= 1
        return self._pause_left <= 0

    def _happen(self, place: Callable[[], str]) -> None:
        self.accidents_left -= 1
        self.is_armed = self.accidents_left > 0
        self._pause_left = self._pause()
        self.disturbances += 1
        kind = self.chance.choices(list(ACCIDENTS), list(ACCIDENTS.values()))[0]
        self.tally[kind] += 1
        self.note(kind)
        life = self.life
        if kind == "crash":
            self._frees_leases = self.chance.random() < 0.6
            self.places[place()] += 1
            raise Crash(place())
        if kind == "cancelled":
            running = [*life.runner._running, *life.requests]
            if running:
                self.chance.choice(running).cancel()
                self.tally["a job or request is cancelled"] += 1
        elif kind == "frozen":
            for_s = self.chance.choice((1.0, 5.0, 40.0, 40.0, 1_000.0))
            life.loop.call_soon(self.freeze, for_s, context=Variables())
        else:
            self.is_patient = kind == "stopped"
            life.ending.set()

    def freeze(self, for_s: float) -> None:
        self.freezes += 1
        self.note(f"frozen for {for_s} s")
        super().freeze(for_s)

    def kill(self, *, frees_leases: bool) -> None:
        self.look_at_books()
        self.is_dying = True
        self.disturbances += 1
        self.life.die()
        self.is_dying = False
        self.note("dead")
        self._begin(frees_leases=frees_leases)

    def abandon(self) -> None:
        """Leave everything as it is, since something has gone wrong, but for what would stay open."""
        self.is_dying = True
        self.rows.close()
        logging.getLogger("loop").removeHandler(self.ears)
        self.life.die()

    def excuses(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        is_away = isinstance(error, LoopError) and error.code == UNAVAILABLE
        has_been_away = self.tally["disk full"] + self.tally["outside writer"] > 0
        return super().excuses(record) or record.getMessage() in KNOWN_HERE or (is_away and has_been_away)

    # The processors.

    def weather_of(self, operation: str) -> Weather:
        back_s, there_s = self.chance.choice((0.0, 0.05, 0.3)), self.chance.choice((0.0, 0.05, 0.3))
        if self.chance.random() >= self.storminess:
            return Weather(FINE.fate, there_s, back_s)
        self.disturbances += 1
        fate = self.chance.choice(list(Fate))
        self.tally[f"{operation}: {fate}"] += 1
        self.tally[f"call {fate}"] += 1
        return Weather(fate, self.chance.choice((0.0, 3.0, 15.0, 25.0)), self.chance.choice((0.0, 3.0, 15.0)))

    def post(self, in_s: float, arrive: Callable[[], None]) -> None:
        def land() -> None:
            Variables().run(arrive)
            self.look_at_banks()

        super().post(in_s, land)

    def look_at_banks(self) -> None:
        """Have the processors write of whatever has changed with them."""
        for name, bank in self.banks.items():
            for reference, known in bank.payments():
                self._see(name, reference, {}, known.outcome)
                for each in known.refunds.values():
                    if each.reference:
                        self._see(name, reference, {"refund": each.reference}, each.status)
                if is_disputed(known.request) and captured(known) > 0:
                    about = {"dispute": dispute_reference_of(known.request.attempt_id)}
                    self._see(name, reference, about, str(known.dispute))

    def _see(self, bank: str, reference: str, about: Mapping[str, str], state: object) -> None:
        subject = (bank, reference, next(iter(about.values()), ""))
        if self._banks.get(subject) != state:
            self._banks[subject] = state
            self.note(f"{bank} has {reference} {about}: {state}")
            self.on_bank_news(bank, reference, about)

    @property
    def clock_s(self) -> float:
        """The time by the event loops' clocks, in seconds."""
        return self.life.loop.time()

    # What holds.

    def commit_s(self) -> float:
        """Return how long a commit takes, in seconds."""
        return self.chance.choice((0.0, 0.0, 0.001, 0.005, 0.03)) if self.is_armed else 0.0

    def committed(self) -> None:
        """Look at what is committed just now: each order as far as one row tells, and everything now and then."""
        self.commits += 1
        with held_true():
            for row in self.rows.execute(_ORDERS):
                before, revision = self._orders.get(row["id"], ("pending", 1))
                steps = row["revision"] - revision
                assert steps >= 0, f"{row['id']} went back to revision {row['revision']}"
                if steps or before != row["status"]:
                    assert leads_to(before, row["status"], min(steps, 8)), f"{before} became {row['status']}"
                    self._orders[row["id"]] = (row["status"], row["revision"])
                    self.note(f"{row['id']} is {row['status']}, revision {row['revision']}")
        if self.commits % BOOKS_EVERY == 0:
            self.look_at_books()

    def look_at_books(self) -> None:
        """Compare everything that is committed with the world around."""
        with held_true():
            self.books.read()
            self.books.check()
            assert not self.troubles, self.troubles

    # Trouble with the disk.

    @contextmanager
    def full_disk(self) -> Generator[None]:
        """Have the file grow no further, for the process that lives now."""
        writer = self.life.database._writer
        self.tally["disk full"] += 1
        self.disturbances += 1
        (pages,) = writer.execute("PRAGMA page_count").fetchone()
        writer.execute(f"PRAGMA max_page_count = {pages}")
        try:
            yield
        finally:
            if not self.is_dying:  # else the next process opens the file anew
                writer.execute(f"PRAGMA max_page_count = {ENOUGH_PAGES}")

    @contextmanager
    def outside_writer(self) -> Generator[None]:
        """Have another process write to the file, if it gets its turn."""
        with closing(sqlite3.connect(self.path, isolation_level=None, timeout=0)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                yield
                return
            self.tally["outside writer"] += 1
            self.disturbances += 1
            try:
                yield
            finally:
                connection.execute("ROLLBACK")


_ORDERS: Final = "SELECT id, status, revision FROM orders ORDER BY rowid"

ACCIDENTS: Final[Mapping[str, int]] = {"crash": 10, "cancelled": 5, "stopped": 2, "stopped at once": 2, "frozen": 3}
"""What may happen at any await -> how often it does."""

KNOWN_HERE: Final = frozenset({"idempotency.taken_over"})
"""What Loop warns of when a process has died in the middle of a request."""
