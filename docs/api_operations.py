"""API operations: the page that lists every call of the API, made from its OpenAPI document."""

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, Final, TypeAlias

from loop.server.app import API_ROUTES
from loop.server.openapi import document

Json: TypeAlias = Mapping[str, Any]

_HEAD: Final = """\
# API

<!-- Made by docs/generate.py. -->

Every call, by resource. The same is machine-readable at `/openapi.json`, which `/docs` shows, in each running Loop.

- **Who calls.** An API key as `X-API-Key: sk_test_…` or `Authorization: Bearer sk_test_…`, or a person's access token
  as `Authorization: Bearer eyJ…`. Each call names the [scope](../guides/security.md#api-keys) that a key needs for it;
  some want a person.
- **Bodies** are JSON objects in UTF-8. A field that is not known is refused. Money is an integer in minor units.
- **Headers.** `X-Correlation-ID` may name a request, and every answer has one. `Idempotency-Key`, where it is named,
  makes a [repeat harmless](../concepts/idempotency.md). `X-Loop-Mode` is for people: `test` or `live`.
- **Answers** below are examples with every field that is always there; later versions may add fields.

## Errors of every call

What each code asks for is in the [list of errors](errors.md). Besides those that a call names:

| Where | Codes |
|---|---|
"""
_METHODS: Final = ("get", "post", "put", "patch", "delete")
_MAX_DEPTH: Final = 3
_LINE: Final = 110


@cache
def _document() -> Json:
    read: Json = json.loads(json.dumps(document(API_ROUTES)))
    return read


def markdown() -> str:
    """Return the page."""
    operations = list(_operations())
    common = _common_codes(operations)
    parts = [_HEAD]
    parts += [f"| {where} | {_coded(codes)} |\n" for where, codes in common.items()]
    expected = frozenset(code for codes in common.values() for code in codes)
    resource = ""
    for method, path, operation in operations:
        if operation["tags"][0] != resource:
            resource = operation["tags"][0]
            parts.append(f"\n## {resource.capitalize()}\n")
        parts += _described(method, path, operation, expected=expected)
    return "".join(parts)


def _operations() -> Iterator[tuple[str, str, Json]]:
    """Yield the operations by resource, each resource where its first one is."""
    found = [
        (method.upper(), path, methods[method])
        for path, methods in _document()["paths"].items()
        for method in _METHODS
        if method in methods
    ]
    order = list(dict.fromkeys(operation["tags"][0] for _, _, operation in found))
    yield from sorted(found, key=lambda each: order.index(each[2]["tags"][0]))


def _codes_of(operation: Json) -> frozenset[str]:
    codes: set[str] = set()
    for status, answer in operation["responses"].items():
        if not status.startswith("2"):
            codes |= set(answer["content"]["application/json"]["schema"]["allOf"][1]["properties"]["code"]["enum"])
    return frozenset(codes)


def _common_codes(operations: Iterable[tuple[str, str, Json]]) -> dict[str, list[str]]:
    """Return what all calls of a kind may be refused with, by the kind; each code where it is first shared."""
    every = [operation for _, _, operation in operations]
    kinds = {
        "every call": every,
        "with authentication": [each for each in every if each["security"]],
        "with an id in the path": [each for each in every if "path" in _places(each)],
        "with a query": [each for each in every if "query" in _places(each)],
        "with a body": [each for each in every if "requestBody" in each and each["security"]],
        "with an `Idempotency-Key`": [each for each in every if _is_keyed(each)],
    }
    told: set[str] = set()
    common: dict[str, list[str]] = {}
    for kind, those in kinds.items():
        shared = frozenset.intersection(*map(_codes_of, those)) - told
        if shared:
            common[kind] = sorted(shared)
            told |= shared
    return common


def _places(operation: Json) -> set[str]:
    return {each["in"] for each in operation["parameters"] if "in" in each}


def _is_keyed(operation: Json) -> bool:
    return any(each.get("$ref", "").endswith("/Idempotency-Key") for each in operation["parameters"])


def _described(method: str, path: str, operation: Json, *, expected: frozenset[str]) -> Iterator[str]:
    yield f"\n### {method} {path}\n\n{operation['summary']}. {_needs(operation)}\n"
    rows = [
        (f"`{each['name']}`", "query", _kind(each["schema"]), each.get("description", ""))
        for each in operation["parameters"]
        if each.get("in") == "query"
    ]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    rows += [(f"`{name}`", where, kind, "") for name, where, kind in _fields(body.get("schema", {}))]
    if rows:
        yield "\n| Field | Where | What it is |\n|---|---|---|\n"
        yield from (
            f"| {name} | {where} | {kind}{'. ' + about if about else ''} |\n" for name, where, kind, about in rows
        )
    if "examples" in body:
        yield f"\nA body:\n\n{_shown(body)}"
    ((status, answer),) = [each for each in operation["responses"].items() if each[0].startswith("2")]
    content = answer.get("content", {}).get("application/json")
    yield f"\nAnswers {status}:\n\n{_shown(content)}" if content else f"\nAnswers {status} without a body.\n"
    if codes := _codes_of(operation) - expected:
        yield f"\nRefused with {_coded(sorted(codes))}.\n"


def _needs(operation: Json) -> str:
    said = operation.get("description", "")
    needed = said.rpartition("Needs ")[2] if "Needs " in said else "nothing: it is open to anybody."
    key = " Takes an `Idempotency-Key`." if _is_keyed(operation) else ""
    return f"Needs {needed}{key}"


def _shown(content: Json) -> str:
    return f"```json\n{_packed(content['examples']['usual']['value'])}\n```\n"


def _packed(value: object, indent: str = "") -> str:
    """Return JSON with as many fields in a line as there is room for."""
    flat = json.dumps(value, ensure_ascii=False)
    if len(indent + flat) <= _LINE or not isinstance(value, dict | list):
        return flat
    inner = indent + "  "
    if isinstance(value, dict):
        items = [f"{json.dumps(name)}: {_packed(each, inner)}" for name, each in value.items()]
    else:
        items = [_packed(each, inner) for each in value]
    lines = [inner]
    for item in items:
        if lines[-1] != inner and len(f"{lines[-1]} {item},") > _LINE:
            lines.append(inner)
        lines[-1] += item + "," if lines[-1] == inner else f" {item},"
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return "\n".join([opening, *lines]).removesuffix(",") + f"\n{indent}{closing}"


def _coded(codes: Iterable[str]) -> str:
    return ", ".join(f"`{code}`" for code in codes)


def _resolved(schema: Json) -> Json:
    """Follow references, and leave out that a value may be null."""
    while True:
        if "$ref" in schema:
            schema = _document()["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
            continue
        branches = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
        if len(branches) != 1:
            return schema
        schema = branches[0]


def _fields(schema: Json, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, str, str]]:
    """Yield the fields of a body with what each is, those of an object in it under its name and a dot."""
    resolved = _resolved(schema)
    required = resolved.get("required", ())
    for name, each in resolved.get("properties", {}).items():
        inside = _resolved(each)
        where = "body, required" if name in required else "body"
        yield f"{prefix}{name}", where, _kind(each)
        if depth < _MAX_DEPTH:
            nested = _resolved(inside.get("items", {})) if inside.get("type") == "array" else inside
            dot = "[]." if inside.get("type") == "array" else "."
            yield from _fields(nested, f"{prefix}{name}{dot}", depth + 1)


def _kind(schema: Json) -> str:
    """Return in words what a value is."""
    resolved = _resolved(schema)
    if "const" in resolved:
        return f"`{resolved['const']}`"
    if "enum" in resolved:
        values = resolved["enum"]
        return "one of " + _coded(map(str, values)) if len(values) <= 20 else f"one of {len(values)} codes"
    if branches := resolved.get("anyOf"):
        return " or ".join(_kind(each) for each in branches if each.get("type") != "null")
    kind = str(resolved.get("type", "any value"))
    if kind == "array":
        kind = f"a list, each {_kind(resolved.get('items', {}))}"
    bounds = [_BETWEEN.format(low, high, what) for low, high, what in _bounds_of(resolved)]
    bounds += [f"as {resolved['format']}"] if "format" in resolved else []
    given = schema.get("default", resolved.get("default"))
    bounds += [f"`{json.dumps(given)}` if left out"] if given is not None else []
    return ", ".join([kind, *bounds])


_BETWEEN: Final = "{} to {}{}"
_LIMITS: Final = (
    ("minimum", "maximum", ""),
    ("minLength", "maxLength", " characters"),
    ("minItems", "maxItems", " items"),
)


def _bounds_of(schema: Json) -> Iterator[tuple[int, int, str]]:
    for low, high, what in _LIMITS:
        if high in schema:
            yield schema.get(low, 0), schema[high], what
