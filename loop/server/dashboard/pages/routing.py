"""Routing: the rules in their order, an example tried on them, and what they would make of recent orders."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loop.domain.errors import LoopError
from loop.domain.ids import PREFIX_ORDER
from loop.domain.money import CURRENCY_EXPONENTS, Money
from loop.domain.routing import RoutingDecision
from loop.domain.routing_rules import PaymentTraits
from loop.server.api.routing_rules import decision_json, rule_json
from loop.server.dashboard import rule_forms
from loop.server.dashboard.amounts import parse_amount
from loop.server.dashboard.frames import Page, acts, page_routes, render
from loop.server.dashboard.viewers import Action, Sent, Viewer, acting_as
from loop.server.errors import STATUS_OF
from loop.server.pages import see_other
from loop.server.request import path_id, query_of, validation_failed
from loop.workflows import routing, rule_sets
from loop.workflows.context import Context
from loop.workflows.routing import SavedRule
from loop.workflows.rule_sets import Replayed

HERE: Final = "/dashboard/routing"
NOTICES: Final = {
    "saved": "The rule was saved. It counts from the next payment on.",
    "moved": "The order of the rules was changed. It counts from the next payment on.",
    "on": "The rule counts again.",
    "off": "The rule is off: payments pass it by.",
    "removed": "The rule was removed.",
}
_RULE_ID: Final = re.compile(r" \(rul_[0-9a-z]+\)")
_EXAMPLE: Final = ("amount", "currency", "brand", "country", "method")


@dataclass(frozen=True, slots=True)
class Example:
    """A payment that is not made: what was typed of it, and what routing says, or what is wrong with it."""

    typed: Mapping[str, str]
    decision: RoutingDecision | None = None
    problem: LoopError | None = None


async def show(request: Request, viewer: Viewer, *, problem: LoopError | None = None) -> Page:
    """Show the rules; after an action that was refused, with what was wrong."""
    context = acting_as(request, viewer)
    query = query_of(request) if problem is None else {}
    found = await rule_sets.of_merchant(context, viewer.merchant_id)
    replayed = await rule_sets.replay(context, viewer.merchant_id, is_test=viewer.is_test)
    example = await _tried(context, viewer, {name: query.get(name, "") for name in _EXAMPLE})
    values = {
        "rules": [(each, _shown(each)) for each in found.rules],
        "candidates": found.candidates,
        "example": example,
        "reasons": [] if example.decision is None else [without_ids(text) for text in example.decision.reasons],
        "methods": tuple(rule_forms.METHODS.items()),
        "comparison": compared(replayed),
        "notice": NOTICES.get(query.get("notice", "")),
        "problem": problem,
    }
    json = {
        "rules": [{**rule_json(each.stored), "warnings": list(each.warnings)} for each in found.rules],
        "recentOrders": [replayed_json(each) for each in replayed],
        "example": None if example.decision is None else decision_json(example.decision),
    }
    return Page("routing.html", "routing", values, json, 200 if problem is None else STATUS_OF[problem.kind])


def _shown(saved: SavedRule) -> dict[str, object]:
    rule = saved.stored.rule
    return {
        "warnings": [without_ids(text) for text in saved.warnings],
        "conditions": rule_forms.conditions_in_words(rule.conditions),
        "outcome": rule_forms.outcome_in_words(rule),
        "is_split": bool(rule.weights),
    }


def without_ids(text: str) -> str:
    """Return what routing says of rules without their ids, since a page shows them by name."""
    return _RULE_ID.sub("", text)


def compared(replayed: Sequence[Replayed]) -> dict[str, object]:
    """Return past orders as pages show them: all, and those that would go elsewhere."""
    return {"all": replayed, "differing": [each for each in replayed if not each.is_same]}


def replayed_json(each: Replayed) -> dict[str, object]:
    """Return one past order with where it went and would go."""
    rule = each.decision.rule
    return {
        "orderId": each.order.id,
        "wentTo": each.went_to,
        "wouldGoTo": each.would_go_to,
        "rule": None if rule is None else {"id": rule.id, "name": rule.name},
        "reasons": list(each.decision.reasons),
    }


async def _tried(context: Context, viewer: Viewer, typed: Mapping[str, str]) -> Example:
    if not typed["amount"]:
        return Example(typed)
    try:
        payment = _payment(context, viewer, typed)
        decision = await routing.try_out(context, viewer.merchant_id, payment, forced_processor=None)
    except LoopError as error:
        return Example(typed, problem=error)
    return Example(typed, decision)


def _payment(context: Context, viewer: Viewer, typed: Mapping[str, str]) -> PaymentTraits:
    currency = typed["currency"].strip().upper() or "USD"
    if currency not in CURRENCY_EXPONENTS:
        raise validation_failed(("currency", f"{currency[:10]} is none; write a code such as EUR"))
    method = typed["method"] or "card"
    if method not in rule_forms.METHODS:
        raise validation_failed(("method", f"must be one of {', '.join(rule_forms.METHODS)}"))
    return PaymentTraits(
        order_id=context.new_id(PREFIX_ORDER),
        amount=Money(parse_amount(typed["amount"], currency, field="amount"), currency),
        payment_method=method,
        brand=typed["brand"].strip().lower() or None,
        country=typed["country"].strip().upper() or None,
        is_test=viewer.is_test,
    )


def _changes(name: str, notice: str) -> Action:
    """Return the action that changes one rule and shows all of them again."""

    async def act(request: Request, sent: Sent) -> Response:
        viewer, context = sent.viewer, acting_as(request, sent.viewer)
        try:
            await _change(context, viewer.merchant_id, path_id(request, "rule_id", noun="routing rule"), name=name)
        except LoopError as error:
            return render(await show(request, viewer, problem=error), viewer)
        return see_other(f"{HERE}?notice={notice}")

    return act


async def _change(context: Context, merchant_id: str, rule_id: str, *, name: str) -> None:
    if name == "up":
        await rule_sets.move(context, merchant_id, rule_id, direction="up")
    elif name == "down":
        await rule_sets.move(context, merchant_id, rule_id, direction="down")
    elif name == "remove":
        await routing.remove_rule(context, merchant_id, rule_id)
    else:
        rule = (await routing.get_rule(context, merchant_id, rule_id)).rule
        await routing.save_rule(context, merchant_id, replace(rule, is_enabled=name == "on"), is_new=False)


ACTIONS: Final = {"up": "moved", "down": "moved", "on": "on", "off": "off", "remove": "removed"}
"""What can be done with a rule -> what the page then says."""

routes: Final[list[Route]] = [
    *page_routes(HERE, show),
    *(
        Route(f"{HERE}/{{rule_id}}/{name}", acts(_changes(name, notice)), methods=["POST"])
        for name, notice in ACTIONS.items()
    ),
]
