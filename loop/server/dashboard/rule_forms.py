"""Rule forms: a routing rule as the fields of its editor, what was typed as a rule, and a rule in words."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Final

from loop.domain.errors import LoopError
from loop.domain.money import CURRENCY_EXPONENTS
from loop.domain.routing_rules import MAX_TARGETS, MAX_WEIGHT, Conditions, Rule
from loop.server.api.routing_rules import RuleBody, rule_of
from loop.server.dashboard.amounts import digits, exponent_of, parse_amount
from loop.server.request import parse, validation_failed

METHODS: Final = {"card": "Card", "upi": "UPI", "netbanking": "Netbanking", "wallet": "Wallet"}
ORDERED: Final = "order"
SPLIT: Final = "split"
MIN_TARGET_ROWS: Final = 2

_SEPARATOR: Final = re.compile(r"[,;\s]+")
_COUNTRY: Final = re.compile(r"[A-Za-z]{2}")
_BRAND: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")
_WEIGHT: Final = re.compile(r"[0-9]{1,4}")
_FIELD_OF: Final = {
    "name": "name",
    "conditions.currencies": "currencies",
    "conditions.amountMin": "amount_min",
    "conditions.amountMax": "amount_max",
    "conditions.brands": "brands",
    "conditions.countries": "countries",
    "conditions.metadata": "metadata",
    "processors": "targets",
    "split": "targets",
}
"""What the API calls a field -> what the form calls it."""


def target_rows(configured: Iterable[str], rule: Rule | None) -> int:
    """Return how many processors the form has room for."""
    named = 0 if rule is None else len(rule.processors)
    return min(MAX_TARGETS, max(MIN_TARGET_ROWS, len(list(configured)), named))


def fields_of(rule: Rule) -> dict[str, str]:
    """Return a rule as its form holds it."""
    asked = rule.conditions
    fields = {
        "name": rule.name,
        "enabled": "1" if rule.is_enabled else "",
        "currencies": ", ".join(asked.currencies),
        "amount_min": _amount_text(asked.amount_min_minor, asked.currencies),
        "amount_max": _amount_text(asked.amount_max_minor, asked.currencies),
        "brands": ", ".join(asked.brands),
        "countries": ", ".join(asked.countries),
        "metadata": "\n".join(f"{name} = {_typed(value)}" for name, value in asked.metadata.items()),
        "way": SPLIT if rule.weights else ORDERED,
        **{f"method_{each}": "1" for each in asked.payment_methods},
    }
    for number, processor in enumerate(rule.processors, start=1):
        fields[f"target_{number}"] = processor
    for number, weight in enumerate(rule.weights, start=1):
        fields[f"weight_{number}"] = str(weight)
    return fields


def _places(currencies: Iterable[str]) -> int | None:
    """Return the decimal places that currencies share; None when they share none, and amounts are in minor units."""
    found = {exponent_of(each) for each in currencies}
    return found.pop() if len(found) == 1 else None


def _amount_text(amount_minor: int | None, currencies: tuple[str, ...]) -> str:
    if amount_minor is None:
        return ""
    if _places(currencies) is None:
        return str(amount_minor)
    return digits(amount_minor, currencies[0], is_grouped=False)


def _typed(value: object) -> str:
    """Return a value so that it is read back as what it is: text that looks like a number is quoted."""
    return value if isinstance(value, str) and _read(value) == value else json.dumps(value, ensure_ascii=False)


def _read(text: str) -> object:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float | str) else text


def rule_from(fields: Mapping[str, str], rule_id: str, *, priority: int) -> Rule:
    """Return the rule that was typed; raises `validation_failed` naming the form's own fields."""
    content = {
        "name": fields.get("name", "").strip(),
        "priority": priority,
        "enabled": bool(fields.get("enabled")),
        "conditions": _conditions(fields),
        **_outcome(fields),
    }
    if not content["name"]:
        raise validation_failed(("name", "is how people will know the rule; type one"))
    return rule_of(parse(RuleBody, content), rule_id)


def _conditions(fields: Mapping[str, str]) -> dict[str, object]:
    currencies = [each.upper() for each in _list(fields, "currencies")]
    for each in currencies:
        if each not in CURRENCY_EXPONENTS:
            raise validation_failed(("currencies", f"{each} is no currency; write codes such as EUR, USD"))
    for name, form, sample in (("countries", _COUNTRY, "DE, IN"), ("brands", _BRAND, "visa, mastercard")):
        if wrong := next((each for each in _list(fields, name) if not form.fullmatch(each)), None):
            raise validation_failed((name, f"{wrong} is none; write {name} such as {sample}"))
    asked = {
        "currencies": currencies,
        "amountMin": _amount(fields, "amount_min", currencies),
        "amountMax": _amount(fields, "amount_max", currencies),
        "brands": _list(fields, "brands"),
        "countries": _list(fields, "countries"),
        "paymentMethods": [each for each in METHODS if fields.get(f"method_{each}")],
        "metadata": _metadata(fields.get("metadata", "")),
    }
    return {name: value for name, value in asked.items() if value not in (None, [], {})}


def _list(fields: Mapping[str, str], name: str) -> list[str]:
    return [each for each in _SEPARATOR.split(fields.get(name, "")) if each]


def _amount(fields: Mapping[str, str], name: str, currencies: list[str]) -> int | None:
    text = fields.get(name, "").strip()
    if not text:
        return None
    if not currencies:
        raise validation_failed(("currencies", "an amount alone says nothing; name its currency"))
    if _places(currencies) is not None:
        return parse_amount(text, currencies[0], field=name)
    if not text.isascii() or not text.isdigit():
        raise validation_failed((name, "must be in minor units, without a point: these currencies have different ones"))
    return int(text[:16])


def _metadata(text: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, sign, value = (each.strip() for each in line.partition("="))
        if not sign or not name:
            raise validation_failed(("metadata", f"must have one `name = value` on each line; {line[:40]!r} is none"))
        found[name] = _read(value)
    return found


def _outcome(fields: Mapping[str, str]) -> dict[str, object]:
    numbers = [number for number in range(1, MAX_TARGETS + 1) if fields.get(f"target_{number}")]
    named = [fields[f"target_{number}"] for number in numbers]
    if not named:
        raise validation_failed(("targets", "choose at least one processor"))
    if repeated := next((each for each in named if named.count(each) > 1), None):
        raise validation_failed(("targets", f"{repeated} is named twice"))
    if fields.get("way") != SPLIT:
        return {"processors": named}
    weights = [fields.get(f"weight_{number}", "").strip() for number in numbers]
    for name, weight in zip(named, weights, strict=True):
        if not _WEIGHT.fullmatch(weight):
            raise validation_failed(("targets", f"{name} needs a weight, a whole number from 1 to {MAX_WEIGHT}"))
    return {"split": {name: int(weight) for name, weight in zip(named, weights, strict=True)}}


def problems_of(error: LoopError) -> dict[str, str]:
    """Return what is wrong with which field of the form; what is wrong with none of them under an empty name."""
    found: dict[str, str] = {}
    for field, problem in error.details or (("", error.message),):
        known = next((form for api, form in _FIELD_OF.items() if field == api or field.startswith(f"{api}.")), None)
        is_own = field in _FIELD_OF.values()
        found.setdefault(known or (field if is_own else ""), problem)
    return found


# In words.


def conditions_in_words(asked: Conditions) -> list[tuple[str, str]]:
    """Return what a rule asks of a payment, as a label and a text each; nothing for a rule that takes every payment."""
    low, high = (_amount_text(each, asked.currencies) for each in (asked.amount_min_minor, asked.amount_max_minor))
    amount = f"{low} to {high}" if low and high else f"{low} or more" if low else f"up to {high}" if high else ""
    if amount and _places(asked.currencies) is None:
        amount += " (minor units)"
    pairs = [
        ("Currency", _any_of(asked.currencies)),
        ("Amount", amount),
        ("Card", _any_of(asked.brands)),
        ("Country", _any_of(asked.countries)),
        ("Paid by", _any_of([METHODS.get(each, each) for each in asked.payment_methods])),
        ("Metadata", ", ".join(f"{name} = {_typed(value)}" for name, value in asked.metadata.items())),
    ]
    return [(label, text) for label, text in pairs if text]


def _any_of(names: Iterable[str]) -> str:
    *most, last = [*names] or [""]
    return f"{', '.join(most)} or {last}" if most else last


def outcome_in_words(rule: Rule) -> str:
    """Return where a rule sends payments."""
    if not rule.weights:
        return ", then ".join(rule.processors)
    whole = sum(rule.weights)
    shares = zip(rule.processors, rule.weights, strict=True)
    return ", ".join(f"{name} {100 * weight / whole:.4g}%" for name, weight in shares)
