"""One simulated run: a storm, hours of bad weather, a calm, and days of rest, after which all books agree."""

import asyncio
import hashlib
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from loop.domain.orders import Command
from loop.workflows import merchants
from loop.workflows.merchants import NewApiKey
from tests.canaries import aviary, listening
from tests.workflow.order_processors import MERCHANT
from tests.workflow.order_world import Crash, Standing, Template, World, live
from tests.workflow.simulation import Happening, SimulatedLife, SimulatedWorld, WrongError, held_true
from tests.workflow.simulation_people import Ask, Street

STORM_S: Final = 900.0
"""How long a storm lasts at most; it ends when the last shopper leaves."""

LIVES_MAX: Final = 60
"""More processes than any storm needs."""

RECOVERED_S: Final = 60.0
"""How long after the last fault a new order may take to be paid, in seconds."""

DAY_S: Final = 86_400.0
REST_DAYS_MAX: Final = 7
"""Longer than anything takes but what is hopeless; an endpoint that refuses everything is disabled after five days."""

TAIL: Final = 25
"""How much of its course a failing run shows."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What each run begins with: a database, and the key to the API of the merchant in it."""

    template: Template
    api_key: str

    @classmethod
    def prepare(cls, template: Template) -> "Ground":
        """Give the template's merchant an API key."""
        world = World(template, template.path, Counter())
        try:
            call = merchants.create_api_key(world.life.context, MERCHANT, NewApiKey("till", mode="test"))
            _, secret = world.life.run(call)
        finally:
            world.close()
        return cls(template, secret)


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that has ended well."""

    course: Sequence[Happening]
    tally: Counter[str]
    places: Counter[str]

    @property
    def digest(self) -> str:
        """The course in short."""
        return hashlib.sha256("\n".join(_told(self.course)).encode()).hexdigest()


def _told(course: Sequence[Happening]) -> list[str]:
    return [f"{at:%d %H:%M:%S.%f} {what}" for at, what in course]


class Run:
    """One seed's course."""

    def __init__(self, world: SimulatedWorld, api_key: str) -> None:
        self.world, self.chance = world, world.chance
        self.street = Street(world, api_key)

    def play(self) -> None:
        """Go through all of it."""
        self._storm()
        self._bad_weather()
        self._calm()
        self._rest()

    def _storm(self) -> None:
        """Serve shoppers while everything goes wrong, one process of Loop after the other."""
        world, until_s = self.world, self.world.life.loop.time() + STORM_S
        world.storminess = self.chance.choice((0.0, 0.15, 0.5))
        self.street.open(self.chance.randint(3, 8))
        world.expect_accidents(self.chance.randint(4, 14))
        for _ in range(LIVES_MAX):
            self._serve(until_s)
            if self.street.is_empty or world.clock_s >= until_s:
                return
            world.clock.forward(seconds=self.chance.choice((0.0, 0.5, 5.0, 40.0)))
        raise AssertionError(f"{LIVES_MAX} processes were not enough")

    def _serve(self, until_s: float) -> None:
        """Have one process serve until it dies or ends."""
        life, street = self.world.life, self.street
        people = {f"shopper {each.number}": each.shop(life) for each in street.shoppers if not each.has_left}
        people |= {"post": street.carry_letters(life), "trouble": street.make_trouble()}
        self._outlive(life, life.live(people, until_s))

    def _outlive(self, life: SimulatedLife, coroutine: Any) -> None:
        self.world.is_patient = True
        main = life.loop.outside(coroutine)
        frees_leases = True
        try:
            life.loop.run_until_complete(main)
        except Crash:
            frees_leases = self.world._frees_leases
        self.world.kill(frees_leases=frees_leases)

    def _bad_weather(self) -> None:
        """Let hours pass in which processes die over polls, retries and the schedule, not at every nap of a runner."""
        world = self.world
        if self.chance.random() < 0.5:
            return
        world.expect_accidents(self.chance.randint(1, 5))
        world.storminess = 0.3
        until_s = world.clock_s + self.chance.choice((1.0, 5.0, 26.0)) * 3_600.0
        while world.clock_s < until_s:
            world.do(live(world.life.context, self.chance.choice((30.0, 600.0, 7_200.0))), "bad weather")
            world.do(self.street.bring_due(world.life), "the post")
            world.shop.standing = self.chance.choice(list(Standing))
            if world.life.ending.is_set():
                world.restart(serves_for_s=None, is_patient=world.is_patient)

    def _calm(self) -> None:
        """End all trouble, and see a new order paid soon after."""
        world = self.world
        world.expect_accidents(0)
        world.storminess = 0.0
        world.life.ending.clear()  # the last accident may have been a stop
        # An endpoint that refuses may do so for good.
        if world.shop.standing is not Standing.REFUSING or self.chance.random() < 0.7:
            world.shop.standing = Standing.UP
        self._outlive(world.life, world.life.live({"last": self._last_order(world.life)}, world.clock_s + RECOVERED_S))
        with held_true():
            assert world.tally["last order paid"] == 1, f"Loop has not recovered within {RECOVERED_S} s"

    async def _last_order(self, life: SimulatedLife) -> None:
        number = 0
        while True:  # until it is paid, or the time is up
            number += 1
            create = Ask("create", "/v1/orders", {"amount": 500, "externalId": f"last-{number}"}, f"last-{number}")
            answers = await self.street.ask(life, create, patience_s=30.0)
            if answers[0] is not None and answers[0].status == 201:
                content = {"paymentMethod": {"type": "card", "token": "tok_approve"}}
                pay = Ask(Command.PAY, f"/v1/orders/{answers[0].body['id']}/pay", content, None)
                paid = (await self.street.ask(life, pay, patience_s=30.0))[0]
                if paid is not None and paid.status == 200 and paid.body["status"] == "captured":
                    self.world.tally["last order paid"] += 1
                    life.ending.set()
                    return
            await asyncio.sleep(1.0)

    def _rest(self) -> None:
        """Let days pass until nothing goes on any more, and compare all books."""
        world, street = self.world, self.street
        for _ in range(REST_DAYS_MAX):
            world.do(live(world.life.context, DAY_S, schedule_every_s=DAY_S / 4), "rest")
            for letter in street.letters:
                letter.due_s = 0.0
            world.do(street.bring_due(world.life), "the post")
            world.do(live(world.life.context, 60.0), "rest")
            world.look_at_books()
            if not street.letters and not world.books.unfinished():
                break
        world.books.check_rest()
        street.check_promises()
        for order in world.books.orders.values():
            world.tally[f"order ended {order['status']}"] += 1


def _cause_of(error: BaseException) -> str:
    """Return what did not hold, and where that is said."""
    while error.__cause__ is not None:
        error = error.__cause__
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{place.filename.rpartition('/')[2]}:{place.lineno} {place.line}: {error}"


def simulate(ground: Ground, seed: int) -> Ended:
    """Run one seed; raises AssertionError, with how to see it again, if anything does not hold."""
    with TemporaryDirectory(dir=ground.template.path.parent) as folder, listening(is_alone=True) as log:
        path = Path(folder) / "loop.db"
        world = SimulatedWorld(ground.template, path, seed)
        aviary.keep(ground.api_key)
        try:
            Run(world, ground.api_key).play()
            world.close()
            aviary.require_none_in_file(path)
            aviary.require_none_in("\n".join(log), where="the log")
        except (AssertionError, WrongError) as error:
            world.abandon()
            raise AssertionError(
                f"seed {seed} fails after {len(world.course)} steps: {_cause_of(error)}\n"
                f"again: LOOP_SIMULATION_SEED={seed} pytest -n0 tests/workflow/test_simulation.py\n"
                + "\n".join(_told(world.course[-TAIL:]))
            ) from error
    return Ended(world.course, world.tally, world.places)
