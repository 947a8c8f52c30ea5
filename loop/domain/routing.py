"""Routing: which processor gets an order, and why."""

from collections.abc import Sequence
from dataclasses import dataclass

from loop.domain.errors import invalid

DEFAULT_PROCESSOR_BY_CURRENCY = {"INR": "razorpay", "USD": "stripe", "EUR": "stripe"}
DEFAULT_PROCESSOR = "stripe"
"""Takes every currency that the table does not name."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A merchant's processor config that might take the order; a lower `priority` comes first."""

    config_id: str
    processor: str
    is_enabled: bool
    priority: int


@dataclass(frozen=True, slots=True)
class RoutingDecision:
    """The chosen candidate and the reasons, in the order in which they were found."""

    candidate: Candidate
    reasons: tuple[str, ...]


def route(currency: str, candidates: Sequence[Candidate], *, forced_processor: str | None) -> RoutingDecision:
    """Choose a candidate: the forced one, else the default for the currency, else by priority.

    Raises `no_processor` when none is configured and enabled, or when the forced one is not.
    """
    reasons = [f"{c.processor} left out: disabled" for c in candidates if not c.is_enabled]
    eligible = sorted((c for c in candidates if c.is_enabled), key=lambda c: (c.priority, c.processor))
    if forced_processor is not None:
        forced = next((c for c in eligible if c.processor == forced_processor), None)
        if forced is None:
            raise invalid(
                "no_processor",
                f"The processor {forced_processor!r} is not configured and enabled for this merchant.",
            )
        return RoutingDecision(forced, (*reasons, f"{forced_processor} was asked for"))
    if not eligible:
        raise invalid("no_processor", "No processor is configured and enabled; add one under /api/processors.")
    wanted = DEFAULT_PROCESSOR_BY_CURRENCY.get(currency, DEFAULT_PROCESSOR)
    default = next((c for c in eligible if c.processor == wanted), None)
    if default is not None:
        return RoutingDecision(default, (*reasons, f"{wanted} is the default for {currency}"))
    first = eligible[0]
    why = "it is the only one" if len(eligible) == 1 else f"it has the first priority ({first.priority})"
    return RoutingDecision(
        first,
        (*reasons, f"{wanted}, the default for {currency}, is not available", f"{first.processor}: {why}"),
    )
