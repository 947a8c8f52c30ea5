"""Who acts in a simulation beside Loop: shoppers, their customers, the processors' post, and trouble."""

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Literal
from urllib.parse import urlencode

from loop.domain.attempts import ActionRequired, Declined
from loop.domain.orders import Command
from tests.canaries import aviary
from tests.workflow.order_books import REFUSALS
from tests.workflow.order_processors import ELSEWHERE, FINALITIES, TOKENS, Bank
from tests.workflow.order_world import Standing
from tests.workflow.simulation import Answer, SimulatedLife, SimulatedWorld

TRIES_MAX: Final = 14
"""How often a client asks before it gives up: for longer than a request may hold its key."""

LOST: Final = 0.04
"""The share of answers that are lost on their way to the client."""

TWICE: Final = 0.12
"""The share of requests that are sent twice at the same moment."""

NOT_NOW: Final = frozenset({"idempotency_in_progress", "database_unavailable", "rate_limited"})
"""Refusals that pass: a client asks again."""

TOO_LATE: Final = frozenset({"validation_failed"})
"""How an order is refused whose time to be paid was up before anybody heard of it."""

Noun = Literal["create"] | Command

PATHS: Final[Mapping[Command, str]] = {
    Command.PAY: "pay", Command.RETRY: "pay", Command.CAPTURE: "capture", Command.CANCEL: "cancel",
    Command.REFUND: "refund",
}  # fmt: skip

NEXT: Final[Mapping[str, Command]] = {
    "pending": Command.PAY, "failed": Command.RETRY, "authorized": Command.CAPTURE, "captured": Command.REFUND,
    "partially_refunded": Command.REFUND,
}  # fmt: skip
"""What a shop mostly does with an order."""

CANCELLABLE: Final = frozenset({"pending", "failed", "requires_action", "authorized"})


@dataclass(frozen=True, slots=True)
class Ask:
    """A request for a change. Without a key it is not repeated after silence: who asks looks at the order first."""

    noun: Noun
    target: str
    content: Mapping[str, Any]
    key: str | None


@dataclass(slots=True)
class Promise:
    """What was answered under one key."""

    ask: Ask
    effects: set[str] = field(default_factory=set)
    """The ids of what was made, as accepting answers name them."""
    replayed: set[str] = field(default_factory=set)
    is_accepted: bool = False


class Street:
    """Everybody around a simulated Loop, who outlive its processes."""

    def __init__(self, world: SimulatedWorld, api_key: str) -> None:
        self.world, self.api_key = world, api_key
        self.promises: dict[str, Promise] = {}
        self.letters: list[Letter] = []
        self.shoppers: list[Shopper] = []
        self._written: dict[str, int] = defaultdict(int)
        world.on_bank_news = self.write_letters

    @property
    def is_empty(self) -> bool:
        """Whether all shoppers have left."""
        return all(each.has_left for each in self.shoppers)

    def open(self, count: int) -> None:
        """Let so many shoppers come, each with an order; some bring somebody who works on the same one."""
        for _ in range(count):
            shopper = Shopper(self, len(self.shoppers))
            self.shoppers.append(shopper)
            if self.world.chance.random() < 0.3:
                self.shoppers.append(Shopper(self, len(self.shoppers), beside=shopper))

    def left(self) -> None:
        """Hear that a shopper has left; with the last one the day ends."""
        if self.is_empty:
            self.world.life.ending.set()

    # The API.

    async def ask(
        self, life: SimulatedLife, ask: Ask, *, patience_s: float, copies: int = 1
    ) -> Sequence[Answer | None]:
        """Send a request, once or several times at once; return what was heard of it."""
        headers = {"x-api-key": self.api_key, "content-type": "application/json"}
        if ask.key is not None:
            headers["idempotency-key"] = ask.key
        body = json.dumps(ask.content).encode()
        futures = [life.ask("POST", ask.target, headers=headers, body=body) for _ in range(copies)]
        await asyncio.wait(futures, timeout=patience_s)
        answers = [each.result() if each.done() else None for each in futures]
        for answer in answers:
            if answer is not None:
                self._check(ask, answer)
        return [None if self.world.chance.random() < LOST else each for each in answers]

    def _check(self, ask: Ask, answer: Answer) -> None:
        """Check that an answer is one that the contract knows, and the same as was given under its key before."""
        aviary.require_none_in_answer(answer.text, where=f"the answer to {ask.noun}")
        code = "accepted" if answer.status < 300 else answer.body["code"]
        self.world.tally[f"{ask.noun}: {code}"] += 1
        self.world.note(f"{ask.noun} {ask.target} {ask.key}: {answer.status} {code}")
        if answer.status >= 300:
            allowed = NOT_NOW | (REFUSALS[ask.noun] if isinstance(ask.noun, Command) else TOO_LATE)
            assert code in allowed, f"{ask.noun} was answered with {answer.status} {answer.text}"
            assert (answer.status == 503) == (code == "database_unavailable")
            return
        if ask.key is None:
            return
        promise = self.promises.setdefault(ask.key, Promise(ask))
        promise.is_accepted = True
        promise.effects.add(answer.body.get("refundId") or answer.body.get("orderId") or answer.body["id"])
        assert len(promise.effects) == 1, f"{ask.noun} was done as {promise.effects} under one key"
        if "idempotent-replayed" in answer.headers:
            self.world.tally["answers replayed"] += 1
            promise.replayed.add(answer.text)
            assert len(promise.replayed) == 1, f"one key, two answers: {promise.replayed}"

    async def look(self, life: SimulatedLife, order_id: str) -> Mapping[str, Any] | None:
        """Read an order, None if nobody answers."""
        answer = await life.ask("GET", f"/v1/orders/{order_id}", headers={"x-api-key": self.api_key})
        if answer is None or answer.status == 503:
            return None
        assert answer.status == 200, answer.text
        order: Mapping[str, Any] = answer.body
        return order

    def check_promises(self) -> None:
        """Check that each key had one effect, and had it if anybody was told so.

        Who asks again to pay, because the process has died, may be told of a payment that another request has begun;
        who asks again to cancel, cancels again what was paid late meanwhile.
        """
        books = self.world.books
        made: dict[str, int] = defaultdict(int)
        for order in books.orders.values():
            made[order["external_id"]] += 1
            for refund in books.refunds.get(order["id"], []):
                made[str(refund["reason"])] += 1
            for attempt in books.attempts.get(order["id"], []):
                if not json.loads(attempt["routing_reasons"])[0].startswith("after "):
                    made[str(json.loads(attempt["request"])["merchantReturnUrl"]).rpartition("/")[2]] += 1
            told = books.told(order["id"])
            cancelled = Counter(
                each["payload"].get("reason") for each in told if each["eventType"] == "payment.cancelled"
            )
            late = sum(each["eventType"] == "payment.late_success" for each in told)
            for reason, count in cancelled.items():
                made[str(reason)] += count - min(late, count - 1)
        for key, promise in self.promises.items():
            is_counted = promise.ask.noun in ("create", Command.REFUND)
            is_payment = promise.ask.noun in (Command.PAY, Command.RETRY)
            has_other = is_payment and any(order_id in books.attempts for order_id in promise.effects)
            assert made[key] <= 1, f"{promise.ask.noun} was done {made[key]} times under {key}"
            assert made[key] == 1 or has_other or not (is_counted or is_payment), f"{promise.ask} was not done"

    # The processors' post.

    def write_letters(self, bank: str, reference: str, about: Mapping[str, str]) -> None:
        """Have a processor write of what has changed: once or more, soon or late, in any order."""
        self._written[reference] += 1
        body, headers = self.world.signed_webhook(reference, number=self._written[reference], about=about)
        path = f"/webhooks/{bank}/{self.world.template.accounts[bank]}"
        for _ in range(self.world.chance.choice((1, 1, 2, 3))):
            in_s = self.world.chance.choice((0.0, 0.1, 1.0, 10.0, 60.0, 600.0, 7_200.0))
            self.letters.append(Letter(path, body, headers, self.world.clock_s + in_s))
            self.world.tally["letters written"] += 1

    async def carry_letters(self, life: SimulatedLife) -> None:
        """Bring the post as it becomes due, until cancelled."""
        while True:
            await self.bring_due(life)
            await asyncio.sleep(0.5)

    async def bring_due(self, life: SimulatedLife) -> None:
        """Bring what is due; what is not taken comes again later."""
        for letter in [each for each in self.letters if each.due_s <= life.loop.time()]:
            answer = await life.ask("POST", letter.path, headers=letter.headers, body=letter.body)
            if answer is not None and answer.status == 200:
                self.letters.remove(letter)
                self.world.tally["letters taken"] += 1
                continue
            assert answer is None or answer.status == 503, f"{letter} was answered with {answer}"
            letter.tries += 1
            letter.due_s = life.loop.time() + 5.0 * 2 ** min(letter.tries, 8)

    # Trouble.

    async def make_trouble(self) -> None:
        """Let things go wrong from time to time, until cancelled."""
        world, chance = self.world, self.world.chance
        while True:
            await asyncio.sleep(chance.expovariate(1 / 6))
            match chance.choice(TROUBLES):
                case "shop":
                    world.shop.standing = chance.choice(list(Standing))
                    world.tally[f"shop {world.shop.standing}"] += 1
                case "weather":
                    world.storminess = chance.choice((0.0, 0.15, 0.5))
                case "paid late":
                    self.pay_late()
                case "disk full":
                    await self._for_a_while(world.full_disk(), (0.2, 1.0, 4.0))
                case "outside writer":
                    await self._for_a_while(world.outside_writer(), (0.05, 0.5, 3.0, 12.0))

    async def _for_a_while(self, trouble: AbstractContextManager[None], lengths_s: Sequence[float]) -> None:
        with trouble:
            await asyncio.sleep(self.world.chance.choice(lengths_s))

    def pay_late(self) -> None:
        """Have a customer pay what was declined after all, where a processor lets them."""
        declined = [
            (bank, reference)
            for bank in list(self.world.banks.values())[1:]
            for reference, known in bank.payments()
            if isinstance(known.outcome, Declined) and known.outcome.reference is not None
        ]
        if declined:
            bank, reference = self.world.chance.choice(declined)
            bank.pay_late(reference)
            self.world.tally["paid late"] += 1
            self.world.look_at_banks()


TROUBLES: Final = (*["shop"] * 4, *["weather"] * 4, *["paid late"] * 3, "disk full", "outside writer")


@dataclass(slots=True)
class Letter:
    """A processor's webhook on its way; `due_s` by the event loop's clock."""

    path: str
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    due_s: float
    tries: int = 0


class Shopper:
    """Sells an order and works on it, or works on somebody else's; asks again whenever nobody has answered."""

    def __init__(self, street: Street, number: int, *, beside: "Shopper | None" = None) -> None:
        self.street, self.world, self.chance = street, street.world, street.world.chance
        self.number, self.beside = number, beside
        self.left = self.chance.randint(2, 8)
        self.has_left = False
        self._order_id: str | None = None
        self._pending: Ask | None = None
        self._asked = 0

    @property
    def order_id(self) -> str | None:
        """The order, once its creation was answered."""
        return self._order_id if self.beside is None else self.beside.order_id

    async def shop(self, life: SimulatedLife) -> None:
        """Go on where the last process of Loop has left the shopper."""
        while self._pending is not None or self.left > 0:
            if self._pending is None:
                await asyncio.sleep(self.chance.choice((0.0, 0.3, 2.0, 8.0)))
                self.left -= 1
                await self._decide(life)
            if self._pending is not None:
                await self._settle(life, self._pending)
                self._pending = None
        self.has_left = True
        self.street.left()

    async def _settle(self, life: SimulatedLife, ask: Ask) -> None:
        for each in range(TRIES_MAX):
            copies = 2 if self.chance.random() < TWICE else 1
            answers = await self.street.ask(life, ask, patience_s=self.chance.choice((2.0, 35.0, 35.0)), copies=copies)
            heard = [answer for answer in answers if answer is not None and _is_final(answer)]
            if ask.noun == "create" and heard and heard[0].status == 201:
                self._order_id = str(heard[0].body["id"])
            if heard or (ask.key is None and ask.noun != "create"):
                return
            self.world.tally["asked again"] += 1
            await asyncio.sleep(min(20.0, 0.5 * 2**each))
        self.world.tally["given up asking"] += 1

    async def _decide(self, life: SimulatedLife) -> None:
        """Look at the order, and decide what comes next to it."""
        if self.order_id is None:
            if self.beside is None:
                self._pending = self._ask("create", "/v1/orders", self._new_order())
            return
        order = await self.street.look(life, self.order_id)
        if order is None:
            return
        status, mood = order["status"], self.chance.random()
        if mood < 0.12:
            self._command(order, self.chance.choice((*PATHS, Command.CAPTURE)))
        elif mood < 0.3 and status in CANCELLABLE:
            self._command(order, Command.CANCEL)
        elif status == "requires_action":
            await self._be_the_customer(life, order["id"])
        elif status in NEXT:
            self._command(order, NEXT[status])

    def _ask(self, noun: Noun, target: str, content: Mapping[str, Any]) -> Ask:
        self._asked += 1
        key = f"shopper-{self.number}-{self._asked}"
        return Ask(noun, target, content, key if noun == "create" or self.chance.random() < 0.85 else None)

    def _new_order(self) -> dict[str, Any]:
        chance, now = self.chance, self.world.clock.at
        new: dict[str, Any] = {
            "amount": 1_000,
            "currency": chance.choice(("EUR", "EUR", "USD", "INR", "JPY")),
            "externalId": f"shopper-{self.number}-{self._asked + 1}",
        }
        if chance.random() < 0.45:
            new["captureMethod"] = "manual"
        if chance.random() < 0.2:
            new["expiresAt"] = (now + timedelta(seconds=chance.choice((30, 90, 72_000)))).isoformat()
        return new

    def _command(self, order: Mapping[str, Any], command: Command) -> None:
        chance, key = self.chance, f"shopper-{self.number}-{self._asked + 1}"
        content: dict[str, Any] = {}
        if command in (Command.PAY, Command.RETRY):
            content = self._payment()
            content |= {"retry": command is Command.RETRY, "returnUrl": f"https://shop.test/{key}"}
        elif command is Command.CANCEL:
            content = {"reason": key}
        else:
            total = order["amountAuthorized" if command is Command.CAPTURE else "amountCaptured"] or 1_000
            share = chance.choice((None, None, 2, 3, 0))
            if share is not None:
                content = {"amount": total + 1 if share == 0 else max(1, total // share)}
            if command is Command.REFUND:
                content["reason"] = key
        self._pending = self._ask(command, f"/v1/orders/{order['id']}/{PATHS[command]}", content)

    def _payment(self) -> dict[str, Any]:
        """Return how an order is paid: on a page, with a token for any processor or a certain one, or one for each."""
        chance, names = self.chance, list(FINALITIES)
        content: dict[str, Any] = {"wait": chance.choice((0, 10, 10))}
        kind = chance.choice(("any", "any", "each", "in turn", "in turn", "certain", "page"))
        if kind == "page":
            return content
        method: dict[str, Any] = {"type": "card"}
        if kind == "each":
            named = [name for name in names if chance.random() < 0.6] or names
            method["tokens"] = {name: self._token() for name in named}
        elif kind == "in turn":
            first, *others = chance.choice((("sandbox", "second", "third"), ("second", "third")))
            method["tokens"] = {first: chance.choice(ELSEWHERE), **{name: self._token() for name in others}}
        else:
            method["token"] = self._token()
        if kind == "certain":
            content["processor"] = chance.choice(names)
        return {**content, "paymentMethod": method}

    def _token(self) -> str:
        return "tok_3ds" if self.chance.random() < 0.15 else self.chance.choice(TOKENS)

    async def _be_the_customer(self, life: SimulatedLife, order_id: str) -> None:
        """Choose on the processor's page, and come back from it or not."""
        waiting = [
            (bank, reference, known.request.attempt_id)
            for bank in self.world.banks.values()
            for reference, known in bank.payments()
            if known.request.order_id == order_id and isinstance(known.outcome, ActionRequired)
        ]
        if not waiting:
            return
        bank, reference, attempt_id = waiting[-1]
        result = self.chance.choice(("approved", "approved", "declined", "failed", "nothing"))
        if self.chance.random() < 0.25 and result != "nothing":
            bank.decide(reference, result)
            self.world.look_at_banks()
            self.world.tally["customer stays away"] += 1
            return
        self.world.tally[f"customer comes back: {result}"] += 1
        await self._come_back(life, bank, reference, attempt_id, result)

    async def _come_back(self, life: SimulatedLife, bank: Bank, reference: str, attempt_id: str, result: str) -> None:
        target = f"/return/{attempt_id}?{urlencode(bank.signed(reference, result))}"
        for _ in range(self.chance.choice((1, 1, 2))):
            answer = await life.ask("GET", target, headers={"accept": "text/html"})
            assert answer is None or answer.status in (200, 303, 503), f"a customer was shown {answer}"
            if answer is not None:
                aviary.require_none_in(answer.text, where="the page that a customer comes back to")


def _is_final(answer: Answer) -> bool:
    return answer.status < 300 or answer.body["code"] not in NOT_NOW
