"""Routing: which of a merchant's processors may take a payment, in which order, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from loop.domain.errors import LoopError, invalid
from loop.domain.money import Money
from loop.domain.routing_rules import PaymentTraits, Rule, first_match

DEFAULT_PROCESSOR_BY_CURRENCY = {"INR": "razorpay", "USD": "stripe", "EUR": "stripe"}
DEFAULT_PROCESSOR = "stripe"
"""Takes every currency that the table does not name."""


class Obstacle(StrEnum):
    """Why a candidate cannot take a payment."""

    DISABLED = "disabled"
    NOT_INSTALLED = "not_installed"
    MODE = "mode"
    CURRENCY = "currency"
    PAYMENT_METHOD = "payment_method"
    MINIMUM = "minimum"
    NO_TOKEN = "no_token"  # noqa: S105 - a reason, not a secret
    CAPABILITY = "capability"
    CIRCUIT_OPEN = "circuit_open"
    TRIED = "tried"


@dataclass(frozen=True, slots=True)
class Abilities:
    """What of a processor's capabilities decides; None: any. `minimums` in minor units by ISO currency."""

    currencies: frozenset[str] | None = None
    payment_methods: frozenset[str] | None = None
    minimums: Mapping[str, int] = field(default_factory=dict)
    can_capture_manually: bool = True
    is_test_only: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """A merchant's processor config that might take the order; a lower `priority` comes first.

    `abilities` is None when the processor is not installed any more.
    """

    config_id: str
    processor: str
    is_enabled: bool
    priority: int
    is_test_mode: bool = True
    is_circuit_open: bool = False
    is_tried: bool = False
    """Whether an earlier attempt of the same order went there."""
    abilities: Abilities | None = Abilities()


@dataclass(frozen=True, slots=True)
class Assessment:
    """A candidate with what stands against it, each with its explanation; it is eligible when nothing does."""

    candidate: Candidate
    obstacles: Mapping[Obstacle, str]


@dataclass(frozen=True, slots=True)
class RoutingDecision:
    """The eligible candidates in the order in which they are to be tried, and the reasons in that of their finding.

    `rule` is the one that matched, even where none of its processors could take the payment.
    """

    candidates: tuple[Candidate, ...]
    reasons: tuple[str, ...]
    rule: Rule | None = None
    assessments: tuple[Assessment, ...] = ()

    @property
    def candidate(self) -> Candidate:
        """The chosen one; IndexError when nobody is eligible."""
        return self.candidates[0]


def assess(candidate: Candidate, payment: PaymentTraits) -> Assessment:
    """Return everything that stands against a candidate."""
    found: dict[Obstacle, str] = {}
    if not candidate.is_enabled:
        found[Obstacle.DISABLED] = "disabled"
    if candidate.abilities is None:
        found[Obstacle.NOT_INSTALLED] = "it is not installed"
    else:
        found.update(_inabilities(candidate, candidate.abilities, payment))
    if candidate.is_test_mode is not payment.is_test:
        kinds = ("a live account", "a test order") if payment.is_test else ("a test account", "a live order")
        found[Obstacle.MODE] = f"it is {kinds[0]}, and this is {kinds[1]}"
    if payment.tokens_for is not None and candidate.processor not in payment.tokens_for:
        found[Obstacle.NO_TOKEN] = "no token for it was given"
    if candidate.is_circuit_open:
        found[Obstacle.CIRCUIT_OPEN] = "its circuit is open: too many of its latest calls were not answered"
    if candidate.is_tried:
        found[Obstacle.TRIED] = "it was tried for this order already"
    return Assessment(candidate, found)


def _inabilities(candidate: Candidate, abilities: Abilities, payment: PaymentTraits) -> dict[Obstacle, str]:
    found: dict[Obstacle, str] = {}
    amount, method = payment.amount, payment.payment_method
    minimum_minor = abilities.minimums.get(amount.currency, 0)
    if abilities.is_test_only and not candidate.is_test_mode:
        found[Obstacle.MODE] = "it works in test mode only, and the account is live"
    if abilities.currencies is not None and amount.currency not in abilities.currencies:
        found[Obstacle.CURRENCY] = f"it does not take {amount.currency}"
    if abilities.payment_methods is not None and method not in abilities.payment_methods:
        found[Obstacle.PAYMENT_METHOD] = f"it does not take {method} payments"
    if amount.amount_minor < minimum_minor:
        found[Obstacle.MINIMUM] = f"{amount} is below its minimum of {Money(minimum_minor, amount.currency)}"
    if payment.is_manual_capture and not abilities.can_capture_manually:
        found[Obstacle.CAPABILITY] = "it cannot hold money for a later capture"
    return found


def explain(
    payment: PaymentTraits,
    candidates: Sequence[Candidate],
    *,
    rules: Sequence[Rule] = (),
    forced_processor: str | None = None,
) -> RoutingDecision:
    """Return who can take a payment, perhaps nobody, best first, and everything that was found on the way.

    The ineligible go first. Then come the processors of the first matching rule, the default for the currency, and
    the rest by priority. A forced processor leaves no other choice.
    """
    by_priority = sorted(candidates, key=lambda c: (c.priority, c.processor))
    assessments = tuple(assess(candidate, payment) for candidate in by_priority)
    eligible = {each.candidate.processor: each.candidate for each in assessments if not each.obstacles}
    reasons = [
        f"{each.candidate.processor} left out: {'; '.join(each.obstacles.values())}"
        for each in assessments
        if each.obstacles
    ]
    rule = None
    if forced_processor is not None:
        names = [forced_processor]
        reasons += [f"{forced_processor} was asked for"] if forced_processor in eligible else []
    else:
        rule = first_match(rules, payment)
        named = () if rule is None else rule.targets(payment.order_id)
        wanted = DEFAULT_PROCESSOR_BY_CURRENCY.get(payment.amount.currency, DEFAULT_PROCESSOR)
        names = list(dict.fromkeys([*named, wanted, *eligible]))
        if rule is not None:
            reasons += _reasons_of(rule, [name for name in named if name in eligible], by_priority)
        if eligible and not any(name in eligible for name in named):
            reasons += _reasons_of_default(wanted, list(eligible.values()), payment.amount.currency)
    chosen = tuple(eligible[name] for name in names if name in eligible)
    return RoutingDecision(chosen, tuple(reasons), rule, assessments)


def _reasons_of(rule: Rule, able: Sequence[str], candidates: Sequence[Candidate]) -> list[str]:
    configured = {candidate.processor for candidate in candidates}
    reasons = [f"{name} left out: not configured" for name in rule.processors if name not in configured]
    called = f"rule {rule.name!r} ({rule.id})"
    if not able:
        return [*reasons, f"{called} matches, but none of its processors can take the payment"]
    shares = zip(rule.processors, rule.weights, strict=False)
    split = f", which splits {', '.join(f'{name} {weight}' for name, weight in shares)}," if rule.weights else ""
    return [*reasons, f"{called}{split} chose {', then '.join(able)}"]


def _reasons_of_default(wanted: str, eligible: Sequence[Candidate], currency: str) -> list[str]:
    if any(candidate.processor == wanted for candidate in eligible):
        return [f"{wanted} is the default for {currency}"]
    first = eligible[0]
    why = "it is the only one" if len(eligible) == 1 else f"it has the first priority ({first.priority})"
    return [f"{wanted}, the default for {currency}, is not available", f"{first.processor}: {why}"]


def route(
    payment: PaymentTraits,
    candidates: Sequence[Candidate],
    *,
    rules: Sequence[Rule] = (),
    forced_processor: str | None = None,
) -> RoutingDecision:
    """Return who takes a payment and who is next should that fail; see `explain`.

    Raises `no_processor` when none is configured and enabled, or when the forced one is not, and
    `no_eligible_processor`, whose details name what stands against each, when none of them can take this payment.
    """
    decision = explain(payment, candidates, rules=rules, forced_processor=forced_processor)
    if not decision.candidates:
        raise _refusal(decision, forced_processor)
    return decision


def _refusal(decision: RoutingDecision, forced_processor: str | None) -> LoopError:
    enabled = [
        each
        for each in decision.assessments
        if each.candidate.is_enabled and forced_processor in (None, each.candidate.processor)
    ]
    # Those of the other mode are worth a word only where there are no others.
    possible = [each for each in enabled if Obstacle.MODE not in each.obstacles] or enabled
    if not possible and forced_processor is not None:
        return invalid(
            "no_processor", f"The processor {forced_processor!r} is not configured and enabled for this merchant."
        )
    if not possible:
        return invalid("no_processor", "No processor is configured and enabled; add one under /api/processors.")
    details = tuple(
        (each.candidate.processor, explanation) for each in possible for explanation in each.obstacles.values()
    )
    named = "; ".join(f"{processor}: {explanation}" for processor, explanation in details)
    return invalid("no_eligible_processor", f"No processor can take this payment. {named}.", details=details)
