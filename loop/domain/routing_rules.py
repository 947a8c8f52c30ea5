"""Routing rules: what a merchant's rule asks of a payment, whom it names, and what is wrong with it."""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

from loop.domain.errors import invalid
from loop.domain.money import Money

MAX_RULES: Final = 100
"""The most rules that one merchant may have."""

MAX_TARGETS: Final = 10
"""The most processors that one rule may name."""

MAX_WEIGHT: Final = 1_000

MetadataValue = str | int | float | bool


@dataclass(frozen=True, slots=True)
class PaymentTraits:
    """What routing looks at of a payment. `brand` is in lower case, `country` in upper case; None: not known.

    Only accounts of its mode take it. `tokens_for` names the only processors that there is a token for; see `tied_to`.
    """

    order_id: str
    amount: Money
    payment_method: str = "card"
    is_manual_capture: bool = False
    brand: str | None = None
    country: str | None = None
    metadata: Mapping[str, object] = field(default_factory=dict, repr=False)
    tokens_for: frozenset[str] | None = None
    is_test: bool = True


def tied_to(token: str | None, tokens: Mapping[str, str]) -> frozenset[str] | None:
    """Return the processors that a payment's tokens are for; None when any may use its token, or it has none."""
    return frozenset(tokens) if tokens and token is None else None


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a payment must be for a rule to match: all that is named, any of each list; nothing named matches all.

    The bounds of the amount are in minor units, and both may be met.
    """

    currencies: tuple[str, ...] = ()
    amount_min_minor: int | None = None
    amount_max_minor: int | None = None
    brands: tuple[str, ...] = ()
    countries: tuple[str, ...] = ()
    payment_methods: tuple[str, ...] = ()
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)

    def match(self, payment: PaymentTraits) -> bool:
        """Tell whether a payment is all that is asked for; what is not known of it matches no condition."""
        amount_minor = payment.amount.amount_minor
        return (
            _is_any_of(payment.amount.currency, self.currencies)
            and (self.amount_min_minor is None or self.amount_min_minor <= amount_minor)
            and (self.amount_max_minor is None or amount_minor <= self.amount_max_minor)
            and _is_any_of(payment.brand, self.brands)
            and _is_any_of(payment.country, self.countries)
            and _is_any_of(payment.payment_method, self.payment_methods)
            and _holds(payment.metadata, self.metadata)
        )

    def cover(self, others: "Conditions") -> bool:
        """Tell whether these match every payment that the others match."""
        pairs = (
            (self.currencies, others.currencies),
            (self.brands, others.brands),
            (self.countries, others.countries),
            (self.payment_methods, others.payment_methods),
        )
        return (
            all(not mine or (theirs and set(theirs) <= set(mine)) for mine, theirs in pairs)
            and (self.amount_min_minor or 0) <= (others.amount_min_minor or 0)
            and _is_at_most(others.amount_max_minor, self.amount_max_minor)
            and _holds(others.metadata, self.metadata)
        )


def _is_any_of(value: str | None, wanted: Collection[str]) -> bool:
    return not wanted or value in wanted


def _is_at_most(maximum: int | None, bound: int | None) -> bool:
    return bound is None or (maximum is not None and maximum <= bound)


def _holds(metadata: Mapping[str, object], wanted: Mapping[str, MetadataValue]) -> bool:
    return all(name in metadata and _is_same(metadata[name], value) for name, value in wanted.items())


def _is_same(value: object, wanted: MetadataValue) -> bool:
    return value == wanted and isinstance(value, bool) is isinstance(wanted, bool)  # to Python, True is 1


@dataclass(frozen=True, slots=True)
class Rule:
    """Where payments go that meet the conditions; a rule with a lower `priority` is tried first.

    Without weights the processors are taken in their order; with them (one for each) orders are shared out.
    """

    id: str
    name: str
    priority: int
    is_enabled: bool
    conditions: Conditions
    processors: tuple[str, ...]
    weights: tuple[int, ...] = ()

    def targets(self, order_id: str) -> tuple[str, ...]:
        """Return the processors in the order in which they are to be tried for this order."""
        if not self.weights:
            return self.processors
        return share_out(order_id, dict(zip(self.processors, self.weights, strict=True)))


def share_out(order_id: str, weights: Mapping[str, int]) -> tuple[str, ...]:
    """Return all the processors, the first drawn by weight, the next from those that are left, and so on.

    The draw is a hash of the order's id: the same order always gets the same answer, and a processor that drops out
    hands on its own orders without moving those of the others.
    """
    left = dict(sorted(weights.items()))
    drawn: list[str] = []
    while len(left) > 1:  # ends: each round takes one out
        digest = hashlib.sha256(f"{order_id}\x1f{len(drawn)}".encode()).digest()
        point = int.from_bytes(digest[:8], "big") % sum(left.values())
        bounds = zip(left, accumulate(left.values()), strict=True)
        drawn.append(next(processor for processor, bound in bounds if point < bound))
        del left[drawn[-1]]
    return (*drawn, *left)


def in_order(rules: Iterable[Rule]) -> list[Rule]:
    """Return rules in the order in which they are tried: by priority, of equal ones the oldest first."""
    return sorted(rules, key=lambda rule: (rule.priority, rule.id))


def first_match(rules: Iterable[Rule], payment: PaymentTraits) -> Rule | None:
    """Return the first enabled rule that matches, or None."""
    return next((rule for rule in in_order(rules) if rule.is_enabled and rule.conditions.match(payment)), None)


def require_sound(rule: Rule, *, installed: Collection[str], configured: Collection[str]) -> None:
    """Raise `invalid_rule`, naming each problem, for a rule that contradicts itself or can route to nobody."""
    problems = [*_condition_problems(rule.conditions), *_target_problems(rule, installed, configured)]
    if problems:
        field_name, problem = problems[0]
        raise invalid("invalid_rule", f"The rule cannot work: {field_name} {problem}.", details=tuple(problems))


def _condition_problems(conditions: Conditions) -> list[tuple[str, str]]:
    low, high = conditions.amount_min_minor, conditions.amount_max_minor
    problems = []
    if low is not None and high is not None and low > high:
        problems.append(("conditions.amountMax", "is below amountMin: no amount is in between"))
    if (low is not None or high is not None) and not conditions.currencies:
        problems.append(("conditions.currencies", "must be named where amounts are: minor units alone say nothing"))
    return problems


def _target_problems(rule: Rule, installed: Collection[str], configured: Collection[str]) -> list[tuple[str, str]]:
    name = "split" if rule.weights else "processors"
    if not rule.processors:
        return [(name, "must name a processor")]
    problems = [
        (f"{name}.{processor}", f"is no installed processor; those are: {', '.join(sorted(installed))}")
        for processor in rule.processors
        if processor not in installed
    ]
    if len(rule.processors) > MAX_TARGETS:
        problems.append((name, f"must name at most {MAX_TARGETS} processors"))
    if len(set(rule.processors)) < len(rule.processors):
        problems.append((name, "must not name a processor twice"))
    problems += [
        (f"{name}.{processor}", f"must have a weight from 1 to {MAX_WEIGHT}")
        for processor, weight in zip(rule.processors, rule.weights, strict=False)
        if not 1 <= weight <= MAX_WEIGHT
    ]
    if not problems and not set(rule.processors) & set(configured):
        problems.append((name, "must name a processor that is configured; add one under /api/processors"))
    return problems


def warnings_about(rule: Rule, rules: Sequence[Rule], *, configured: Collection[str]) -> list[str]:
    """Return what is odd about a rule among all of the merchant's: who is never reached, who is not configured."""
    warnings = [
        f"{_called(hidden)} will never be reached: {_called(before)} comes first and matches all that it does."
        for hidden, before in _hidden(rules)
        if rule.id in (hidden.id, before.id)
    ]
    missing = [processor for processor in rule.processors if processor not in configured]
    return [*warnings, *(f"{processor} is not configured; the rule passes it over." for processor in missing)]


def _hidden(rules: Sequence[Rule]) -> list[tuple[Rule, Rule]]:
    """Return each enabled rule that can never be the first match, with the first one that comes before it always."""
    enabled = [rule for rule in in_order(rules) if rule.is_enabled]
    found = []
    for position, rule in enumerate(enabled):
        before = next((each for each in enabled[:position] if each.conditions.cover(rule.conditions)), None)
        if before is not None:
            found.append((rule, before))
    return found


def _called(rule: Rule) -> str:
    return f"The rule {rule.name!r} ({rule.id})"
