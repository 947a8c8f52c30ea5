"""Rule sets: a merchant's routing rules as a whole, their order, and what they would have made of past orders."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from loop.domain.orders import Order
from loop.domain.routing import Candidate, RoutingDecision, explain
from loop.domain.routing_rules import Rule, in_order, require_sound, warnings_about
from loop.storage import routing as rules_stored
from loop.storage import tried_orders
from loop.workflows.attempts import traits_of
from loop.workflows.context import Context
from loop.workflows.routing import SavedRule, candidates_of, locked, no_such_rule, record_saved

STEP: Final = 10
"""How far apart priorities are when rules that share one get their own."""

MAX_PRIORITY: Final = 10_000
REPLAYED_ORDERS: Final = 50
"""How many past orders are looked at anew."""


@dataclass(frozen=True, slots=True)
class RuleSet:
    """All rules in the order in which they are tried, each with what is odd about it, and the merchant's accounts."""

    rules: tuple[SavedRule, ...]
    candidates: tuple[Candidate, ...]

    @property
    def configured(self) -> list[str]:
        """The processors that the merchant has an account at."""
        return sorted({each.processor for each in self.candidates})


@dataclass(frozen=True, slots=True)
class Replayed:
    """A past order: which processor it went to first, and what the rules would choose for it now."""

    order: Order
    went_to: str
    decision: RoutingDecision

    @property
    def would_go_to(self) -> str | None:
        """The processor that would be chosen now; None for nobody."""
        return self.decision.candidate.processor if self.decision.candidates else None

    @property
    def is_same(self) -> bool:
        """Whether it would go where it went."""
        return self.would_go_to == self.went_to


async def of_merchant(context: Context, merchant_id: str) -> RuleSet:
    """Return a merchant's rules as a whole. A warning about two of them stands with the one that comes later."""
    async with context.database.reading() as reader:
        stored = await rules_stored.of_merchant(reader, merchant_id)
        candidates = await candidates_of(context, reader, merchant_id)
    configured = {each.processor for each in candidates}
    rules = [each.rule for each in stored]
    told: set[str] = set()
    found: list[SavedRule] = []
    for each in sorted(stored, key=lambda kept: (kept.rule.priority, kept.rule.id), reverse=True):
        warnings = [text for text in warnings_about(each.rule, rules, configured=configured) if text not in told]
        told |= {text for text in warnings if "never be reached" in text}
        found.append(SavedRule(each, tuple(warnings)))
    return RuleSet(tuple(reversed(found)), tuple(candidates))


async def priority_at_end(context: Context, merchant_id: str) -> int:
    """Return the priority with which a new rule comes after all others."""
    async with context.database.reading() as reader:
        stored = await rules_stored.of_merchant(reader, merchant_id)
    return min(MAX_PRIORITY, max((each.rule.priority for each in stored), default=0) + STEP)


async def move(context: Context, merchant_id: str, rule_id: str, *, direction: Literal["up", "down"]) -> None:
    """Have a rule tried one place earlier or later; at the end of the list it stays. Raises `not_found`.

    The two swap their priorities. Where rules share one, all of them get their own first, since of equal ones the
    oldest goes first whatever anybody wants.
    """
    now = context.now()
    async with context.database.transaction() as session:
        stored, _ = await locked(session, merchant_id)
        by_id = {each.rule.id: each for each in stored}
        if rule_id not in by_id:
            raise no_such_rule()
        ordered = in_order(each.rule for each in stored)
        place = next(at for at, rule in enumerate(ordered) if rule.id == rule_id)
        other = place + (-1 if direction == "up" else 1)
        if not 0 <= other < len(ordered):
            return
        priorities = _own_priorities(ordered)
        ordered[place], ordered[other] = ordered[other], ordered[place]
        moved = [
            (by_id[rule.id], replace(rule, priority=priority))
            for rule, priority in zip(ordered, priorities, strict=True)
            if rule.priority != priority
        ]
        changed = [(before, replace(before, rule=rule, updated_at=now)) for before, rule in moved]
        for _, after in changed:
            await rules_stored.replace_rule(session, after)
        for before, after in changed:
            await record_saved(context, session, before, after)


def _own_priorities(ordered: Sequence[Rule]) -> list[int]:
    """Return the priorities there are, or evenly spaced ones where some are shared."""
    priorities = [rule.priority for rule in ordered]
    if len(set(priorities)) == len(priorities):
        return priorities
    return [STEP * number for number in range(1, len(priorities) + 1)]


async def replay(
    context: Context, merchant_id: str, *, is_test: bool, edited: Rule | None = None, limit: int = REPLAYED_ORDERS
) -> list[Replayed]:
    """Return what the rules would choose for a merchant's latest orders, against where they went first.

    With an edited rule in place of the saved one, or beside the others if it is new; raises `invalid_rule` for one
    that cannot work. Accounts count as they are now, their circuits as closed.
    """
    async with context.database.reading() as reader:
        stored = await rules_stored.of_merchant(reader, merchant_id)
        candidates = await candidates_of(context, reader, merchant_id)
        tried = await tried_orders.latest(reader, merchant_id, is_test=is_test, limit=limit)
    rules = [each.rule for each in stored]
    if edited is not None:
        configured = {each.processor for each in candidates}
        require_sound(edited, installed=context.processors.names(), configured=configured)
        rules = [*(rule for rule in rules if rule.id != edited.id), edited]
    able = [replace(each, is_circuit_open=False) for each in candidates]
    return [
        Replayed(
            order,
            attempt.processor,
            explain(
                traits_of(order, attempt.request),
                able,
                rules=rules,
                forced_processor=_forced(attempt.request.get("forcedProcessor")),
            ),
        )
        for order, attempt in tried
    ]


def _forced(name: object) -> str | None:
    return None if name is None else str(name)
