"""Strict reading of the parameters of the stand-in's Razorpay face: known names only, values of their own types."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from loop.testing.stub_ledger import JsonObject
from loop.testing.stub_razorpay_objects import RazorpayError

NOTES_MAX = 15
NOTE_CHARS_MAX = 256

Kind: TypeAlias = Literal["string", "integer", "boolean", "notes", "object"]

_INTEGER = re.compile(r"[0-9]{1,15}")


@dataclass(frozen=True, slots=True)
class Param:
    """What one parameter may hold; `fields` are an object's own parameters."""

    kind: Kind = "string"
    is_required: bool = False
    choices: tuple[str, ...] = ()
    chars_max: int = 255
    fields: Mapping[str, "Param"] = field(default_factory=dict)


PAGE: Mapping[str, Param] = {name: Param("integer") for name in ("count", "skip", "from", "to")}

CREATE_ORDER: Mapping[str, Param] = {
    "amount": Param("integer", is_required=True),
    "currency": Param(is_required=True),
    "receipt": Param(chars_max=40),
    "unique_receipt": Param("boolean"),
    "notes": Param("notes"),
    "payment": Param(
        "object",
        fields={
            "capture": Param(is_required=True, choices=("automatic", "manual")),
            "capture_options": Param(
                "object",
                is_required=True,
                fields={
                    "automatic_expiry_period": Param("integer"),
                    "manual_expiry_period": Param("integer"),
                    "refund_speed": Param(is_required=True, choices=("normal", "optimum")),
                },
            ),
        },
    ),
}
CAPTURE: Mapping[str, Param] = {
    "amount": Param("integer", is_required=True),
    "currency": Param(is_required=True),
}
REFUND: Mapping[str, Param] = {
    "amount": Param("integer"),
    "speed": Param(choices=("normal", "optimum")),
    "notes": Param("notes"),
    "receipt": Param(chars_max=40),
}


def parse_body(text: str) -> JsonObject:
    """Return a request's JSON object; an absent body is an empty one."""
    try:
        body: object = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise RazorpayError(400, "The request body is not valid JSON.") from error
    if not isinstance(body, dict):
        raise RazorpayError(400, "The request body is not a JSON object.")
    return body


def parse_query(query: Mapping[str, str], params: Mapping[str, Param]) -> JsonObject:
    """Return a query's values, those of integer parameters as integers."""
    return {
        name: int(value) if name in params and params[name].kind == "integer" and _INTEGER.fullmatch(value) else value
        for name, value in query.items()
    }


def check(given: JsonObject, params: Mapping[str, Param]) -> JsonObject:
    """Return the given values, checked; RazorpayError (400) for the first thing wrong with them."""
    unknown = [name for name in given if name not in params]
    if unknown:
        raise RazorpayError(400, f"{', '.join(unknown)} is/are not required and should not be sent", field=unknown[0])
    for name, param in params.items():
        if given.get(name) is None and param.is_required:
            raise RazorpayError(400, f"The {name} field is required.", field=name)
    return {name: _value(value, params[name], name) for name, value in given.items() if value is not None}


def _value(value: object, param: Param, name: str) -> object:
    if param.kind == "object":
        if not isinstance(value, dict):
            raise RazorpayError(400, f"The {name} must be an object.", field=name)
        return check(value, param.fields)
    if param.kind == "notes":
        return _notes(value, name)
    kind = {"string": str, "integer": int, "boolean": bool}[param.kind]
    if type(value) is not kind:
        raise RazorpayError(400, f"The {name} must be of type {param.kind}.", field=name)
    if isinstance(value, str) and len(value) > param.chars_max:
        raise RazorpayError(400, f"The {name} may not be greater than {param.chars_max} characters.", field=name)
    if param.choices and value not in param.choices:
        raise RazorpayError(400, f"The selected {name} is invalid.", field=name)
    return value


def _notes(value: object, name: str) -> JsonObject:
    if value == []:
        return {}
    if not isinstance(value, dict) or len(value) > NOTES_MAX:
        raise RazorpayError(400, f"The {name} must be an object of up to {NOTES_MAX} pairs.", field=name)
    for note in value.values():
        if not isinstance(note, str | int) or len(str(note)) > NOTE_CHARS_MAX:
            raise RazorpayError(400, f"A note may have up to {NOTE_CHARS_MAX} characters.", field=name)
    return value
