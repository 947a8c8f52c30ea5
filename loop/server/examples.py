"""Examples: a JSON value that fits a schema, with the words that Loop's fields usually hold."""

from collections.abc import Mapping
from typing import Any, Final

_TIME: Final = "2030-01-31T09:30:00.000Z"
_ORDER_ID: Final = "ord_01jk5b3v0q8z6m4t2r9w7x1y5a"
_USUAL: Final[Mapping[str, object]] = {
    "id": _ORDER_ID,
    "orderId": _ORDER_ID,
    "externalId": "order-1001",
    "amount": 4999,
    "currency": "USD",
    "status": "captured",
    "processor": "stripe",
    "processorOrderId": "pi_3QExample",
    "workflowId": f"payment-{_ORDER_ID}",
    "refundId": "ref_01jk5b3v0q8z6m4t2r9w7x1y5b",
    "eventType": "payment.captured",
    "email": "ada@shop.example",
    "customerEmail": "grace@example.com",
    "webhookUrl": "https://shop.example/webhooks",
    "url": "https://pay.example/checkout/cs_01jk5b3v0q8z6m4t2r9w7x1y5c",
    "nextCursor": None,
    "day": "2030-01-30",
    "date": "2030-01-30",
    "timestamp": _TIME,
    "at": _TIME,
    "from": "2030-01-01T00:00:00.000Z",
    "to": _TIME,
    "dueBy": _TIME,
    "pausedUntil": None,
    "failingSince": None,
    "pendingSecretUntil": None,
    "metadata": {"cart": "c-17"},
    "events": ["*"],
    "scopes": ["*"],
    "errorCode": None,
    "errorMessage": None,
    "lastError": None,
    "disabledReason": None,
    "error": None,
    "seq": 7,
}
_MAX_DEPTH: Final = 10


def example_of(schema: Mapping[str, Any], components: Mapping[str, Any], *, name: str = "", depth: int = 0) -> object:
    """Return a value for a schema as pydantic writes it; `name` is the field that it is for."""
    if "$ref" in schema:
        return example_of(components[schema["$ref"].rpartition("/")[2]], components, name=name, depth=depth + 1)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return _USUAL[name] if _USUAL.get(name) in schema["enum"] else schema["enum"][0]
    branches: list[Mapping[str, Any]] = schema.get("anyOf", [])
    if name in _USUAL and (_USUAL[name] is not None or any(each.get("type") == "null" for each in branches)):
        return _USUAL[name]
    if branches:
        return example_of(branches[0], components, name=name, depth=depth + 1)
    if depth > _MAX_DEPTH:
        return None
    return _of_type(schema, components, name=name, depth=depth)


def _of_type(schema: Mapping[str, Any], components: Mapping[str, Any], *, name: str, depth: int) -> object:
    kind = schema.get("type")
    if kind == "object":
        required = schema.get("required", [])
        fields: Mapping[str, Any] = schema.get("properties", {})
        return {
            each: example_of(fields[each], components, name=each, depth=depth + 1)
            for each in fields
            if each in required
        }
    if kind == "array":
        return [example_of(schema.get("items", {}), components, depth=depth + 1)]
    plain = {"integer": 0, "number": 97.5, "boolean": False, "null": None}
    return plain.get(str(kind), _TIME if name.endswith("At") else f"{name or 'text'}")
