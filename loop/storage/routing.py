"""Routing rules: a merchant's rows, each with its conditions and targets as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, insert, select, update

from loop.domain.routing_rules import MAX_RULES, Conditions, Rule
from loop.storage.database import Reader, Session
from loop.storage.statements import Parameters, Statement, Write, parameters_for
from loop.storage.tables import RoutingRules, table

_rules = table(RoutingRules)
_CONTENT = ["name", "priority", "is_enabled", "conditions", "processors", "weights"]
_COLUMNS = ["id", *_CONTENT, "merchant_id", "created_at", "updated_at"]
_LISTS = ("currencies", "brands", "countries", "payment_methods")


@dataclass(frozen=True, slots=True)
class StoredRule:
    """One row of routing_rules."""

    rule: Rule
    merchant_id: str
    created_at: datetime
    updated_at: datetime


def _stored(*row: Any) -> StoredRule:  # noqa: ANN401 - one row of the table
    rule_id, name, priority, is_enabled, conditions, processors, weights, *rest = row
    rule = Rule(rule_id, name, priority, is_enabled, _conditions(conditions), tuple(processors), tuple(weights))
    return StoredRule(rule, *rest)


def _conditions(document: Mapping[str, Any]) -> Conditions:
    lists: dict[str, Any] = {name: tuple(document[name]) for name in _LISTS if name in document}
    return Conditions(**{**document, **lists})


def _document(conditions: Conditions) -> dict[str, object]:
    named: dict[str, object] = {name: list(getattr(conditions, name)) for name in _LISTS}
    named["amount_min_minor"] = conditions.amount_min_minor
    named["amount_max_minor"] = conditions.amount_max_minor
    named["metadata"] = dict(conditions.metadata)
    return {name: value for name, value in named.items() if value not in (None, [], {})}


_SELECT = select(*(_rules.c[name] for name in _COLUMNS))
_OWNED = (_rules.c.id == bindparam("rule_id"), _rules.c.merchant_id == bindparam("owner_id"))

_OF_MERCHANT = Statement(
    _SELECT.where(_rules.c.merchant_id == bindparam("owner_id"))
    .order_by(_rules.c.priority, _rules.c.id)
    .limit(MAX_RULES),
    _stored,
)
_GET = Statement(_SELECT.where(*_OWNED), _stored)
_INSERT = Write(insert(_rules).values(parameters_for(_rules, _COLUMNS)))
_UPDATE = Write(update(_rules).where(*_OWNED).values(parameters_for(_rules, [*_CONTENT, "updated_at"])))
_DELETE = Write(delete(_rules).where(*_OWNED))


async def of_merchant(reader: Reader, merchant_id: str) -> list[StoredRule]:
    """Return a merchant's rules in the order in which they are tried."""
    return await reader.all(_OF_MERCHANT, {"owner_id": merchant_id})


async def get(reader: Reader, merchant_id: str, rule_id: str) -> StoredRule | None:
    """Return a merchant's rule, or None."""
    return await reader.first(_GET, {"owner_id": merchant_id, "rule_id": rule_id})


async def insert_rule(session: Session, stored: StoredRule) -> None:
    """Insert a rule."""
    await session.run(
        _INSERT,
        {
            "id": stored.rule.id,
            "merchant_id": stored.merchant_id,
            "created_at": stored.created_at,
            **_content(stored),
        },
    )


async def replace_rule(session: Session, stored: StoredRule) -> bool:
    """Store a rule's new content; tell whether the merchant has it."""
    owned = {"owner_id": stored.merchant_id, "rule_id": stored.rule.id}
    return await session.run(_UPDATE, {**owned, **_content(stored)}) == 1


def _content(stored: StoredRule) -> Parameters:
    rule = stored.rule
    return {
        "name": rule.name,
        "priority": rule.priority,
        "is_enabled": rule.is_enabled,
        "conditions": _document(rule.conditions),
        "processors": list(rule.processors),
        "weights": list(rule.weights),
        "updated_at": stored.updated_at,
    }


async def remove(session: Session, merchant_id: str, rule_id: str) -> bool:
    """Remove a rule; tell whether the merchant had it."""
    return await session.run(_DELETE, {"owner_id": merchant_id, "rule_id": rule_id}) == 1
