"""Sales: the orders of a fault run, drawn by chance, and the merchant's program that sees each through, impatiently."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from tests.e2e.mischief import Chance, chance_of
from tests.e2e.shops import Customer, Shop, Story
from tests.faults.databases import Rows

ROW = 16
"""Of `tests/architecture/test_fault_rows.py`: what merchants do to themselves when they cannot wait."""

AT_ONCE = 150
"""How many customers are in the shop at once."""

FEW, SLOWLY_S, ORDERS_MAX = 15, 0.3, 10_000
"""How many customers are there when there were enough, how long the next takes, in seconds; and the most of all."""

KINDS = (*("card",) * 9, *("bank page",) * 2, *("either",) * 3, *("rupees",) * 4, *("pounds",) * 2)
"""What orders are: paid at Stripe, or there by its page, or by a token that the sandbox takes as well, …"""

CARDS = (*("pm_card_visa",) * 12, "pm_card_chargeDeclined", "pm_card_timeoutThenCharged", "pm_card_timeoutThenNothing")
CUSTOMERS: tuple[Customer, ...] = ("pays", "pays", "pays", "tries twice", "pays and leaves")


def draw_story(chance: Chance, name: str) -> Story:
    """Return an order as chance will have it."""
    kind, amount = chance.choice(KINDS), chance.randrange(1_000, 100_000)
    if kind in ("either", "pounds"):  # the sandbox's make-believe money is its process's own: nothing follows
        tokens = {"stripe": chance.choice(CARDS)} if kind == "either" else {}
        currency = "EUR" if kind == "either" else "GBP"
        return Story(name, currency, amount, {**tokens, "sandbox": "tok_approve"}, wait_s=chance.choice((0, 5)))
    is_manual = chance.random() < 0.3
    is_released = is_manual and kind == "card" and chance.random() < 0.2
    captured = chance.randrange(amount // 2, amount) if is_manual and kind == "card" else amount
    parts = chance.choice((0, 0, 0, 1, 1, 2))
    return Story(
        name,
        currency="INR" if kind == "rupees" else "EUR",
        amount=amount,
        tokens=_tokens(chance, kind),
        processor="razorpay" if kind == "rupees" else None,
        is_manual=is_manual,
        customer="pays" if kind == "card" else chance.choice(CUSTOMERS),
        ending="cancelled" if is_released else "kept",
        captured=captured if captured != amount else None,
        refunds=tuple(captured // (parts + 1) for _ in range(parts)),
        wait_s=chance.choice((0, 5)),
    )


def _tokens(chance: Chance, kind: str) -> dict[str, str]:
    if kind == "rupees":
        return {}
    return {"stripe": "pm_card_threeDSecureRequired" if kind == "bank page" else chance.choice(CARDS)}


@dataclass
class ImpatientShop(Shop):
    """A merchant's program that pays again, by another processor and under another key, what is not clear at once."""

    table: Rows = field(kw_only=True)
    stub_through: str = field(kw_only=True)
    """Where Loop reaches the stand-in processors, and would send customers: their own way has no faults on it."""
    impatient: int = 0
    """How often it could not wait."""

    async def pay(self, order_id: str, story: Story, attempt: int = 1) -> None:
        """Start a payment; who is not told at once what became of it tries to pay at another processor."""
        await super().pay(order_id, story, attempt)
        if (
            "sandbox" not in story.tokens
            or (await self.call("GET", f"/v1/orders/{order_id}"))["status"] != "processing"
        ):
            return
        self.impatient += 1
        tokens = {"sandbox": story.tokens["sandbox"]}
        wanted = {"paymentMethod": {"type": "card", "tokens": tokens}, "processor": "sandbox", "retry": True}
        await self.call("POST", f"/v1/orders/{order_id}/pay", wanted, key=f"{story.name}-pay-elsewhere-{attempt}")

    async def shown(self, order_id: str) -> tuple[str, dict[str, Any] | None]:
        """See `Shop.shown`."""
        query = "SELECT processor, action FROM payment_attempts WHERE order_id = $1 ORDER BY number DESC LIMIT 1"
        (attempt,) = await self.table.fetch(query, order_id)
        return attempt["processor"], json.loads((attempt["action"] or "null").replace(self.stub_through, self.stub_url))


@dataclass
class Sale:
    """All the orders of a round on their way."""

    shop: ImpatientShop
    rows: Rows
    sold: int = 0
    left: dict[str, Story] = field(default_factory=dict)
    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    async def run(self, seed: str, count: int, *, span_s: float, until: asyncio.Event) -> None:
        """Let customers in over a span of time, and some more until told to stop; see every order through."""
        async with asyncio.TaskGroup() as group:
            for number in range(ORDERS_MAX):
                while number >= count and len(self.left) > FEW and not until.is_set():  # noqa: ASYNC110 - bounded by it
                    await asyncio.sleep(SLOWLY_S)
                if number >= count and until.is_set():
                    return
                # A letter in the seed: digits with nothing but dashes between them may pass for a card number.
                story = draw_story(chance_of(f"{seed} {number}"), f"basket-{seed}-{number}")
                self.left[story.name] = story
                group.create_task(self._sell(story), name=story.name)
                self.sold += 1
                await asyncio.sleep(span_s / count if number < count else SLOWLY_S)

    async def _sell(self, story: Story) -> None:
        async with self.room:
            try:
                await self.shop.live(story)
            except Exception as error:
                error.add_note(await story_of(self.rows, story))
                raise
        del self.left[story.name]


async def story_of(rows: Rows, story: Story) -> str:
    """Return all that is known of an order."""
    lines = [str(story)]
    for query in (
        "SELECT * FROM orders WHERE external_id = $1",
        *(
            f"SELECT {table}.* FROM {table} JOIN orders ON orders.id = {table}.{column} WHERE external_id = $1"  # noqa: S608 - ours
            for table, column in (
                ("payment_attempts", "order_id"),
                ("transactions", "order_id"),
                ("refunds", "order_id"),
                ("webhook_events", "order_id"),
                ("jobs", "subject"),
            )
        ),
    ):
        lines += [str(row) for row in await rows.fetch(query, story.name)]
    return "\n".join(lines)
