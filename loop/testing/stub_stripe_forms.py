"""Strict reading of Stripe's form-encoded parameters: nested names, known names only, checked values."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias
from urllib.parse import parse_qsl

from loop.testing.stub_ledger import JsonObject
from loop.testing.stub_stripe_errors import StripeError

FIELDS_MAX = 500
"""Most parameters one request may carry."""

METADATA_KEYS_MAX = 50
METADATA_KEY_CHARS_MAX = 40
METADATA_VALUE_CHARS_MAX = 500

Kind: TypeAlias = Literal["string", "integer", "boolean", "enum", "strings", "metadata", "object"]

_NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
_INTEGER = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Param:
    """What one parameter may hold; `fields` are an object's own parameters."""

    kind: Kind = "string"
    is_required: bool = False
    choices: tuple[str, ...] = ()
    fields: Mapping[str, "Param"] = field(default_factory=dict)


def parse_form(text: str) -> JsonObject:
    """Return a form or query as nested dicts of strings; `a[]=x` and `a[0]=x` both become `{"a": {"0": "x"}}`."""
    form: JsonObject = {}
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=FIELDS_MAX, errors="strict")
    except ValueError as error:
        raise StripeError(400, "Invalid request body: it is not a form.") from error
    for name, value in pairs:
        matched = _NAME.fullmatch(name)
        if matched is None:
            raise _unknown(name)
        keys = [matched[1], *re.findall(r"\[([^\[\]]*)\]", matched[2])]
        inner = form
        for key in keys[:-1]:
            inner = inner.setdefault(key or str(len(inner)), {})
            if not isinstance(inner, dict):
                raise _unknown(name)
        last = keys[-1] or str(len(inner))
        if last in inner:
            raise StripeError(400, f"Duplicate parameter: {name}", param=_plain(name))
        inner[last] = value
    return form


def check(form: JsonObject, params: Mapping[str, Param], *, within: str = "") -> JsonObject:
    """Return the form's values in their own types; StripeError (400) for the first thing wrong with it."""
    for name in form:
        if name not in params:
            raise _unknown(_path(within, name))
    values: JsonObject = {}
    for name, param in params.items():
        path = _path(within, name)
        if name in form:
            values[name] = _value(form[name], param, path=path)
        elif param.is_required:
            raise StripeError(400, f"Missing required param: {path}.", code="parameter_missing", param=path)
    return values


def _value(raw: object, param: Param, *, path: str) -> object:
    if param.kind == "metadata":
        return _metadata(raw, path)
    if isinstance(raw, dict):
        if param.kind == "object":
            return check(raw, param.fields, within=path)
        if param.kind == "strings" and all(isinstance(item, str) for item in raw.values()):
            return list(raw.values())
        raise StripeError(400, f"Invalid {param.kind}: {path} may not be nested.", param=path)
    if param.kind == "object":
        raise StripeError(400, "Invalid object", param=path)
    if param.kind == "strings":
        raise StripeError(400, "Invalid array", param=path)
    return _scalar(str(raw), param, path=path)


def _scalar(text: str, param: Param, *, path: str) -> object:
    if text == "":
        raise StripeError(
            400,
            f"You passed an empty string for '{path}'. We assume empty values are an attempt to unset a parameter; "
            f"however '{path}' cannot be unset.",
            code="parameter_invalid_empty",
            param=path,
        )
    if param.kind == "integer":
        if not _INTEGER.fullmatch(text):
            raise invalid_integer(f"Invalid integer: {text}", path)
        return int(text)
    if param.kind == "boolean":
        if text not in ("true", "false"):
            raise StripeError(400, f"Invalid boolean: {text}", param=path)
        return text == "true"
    if param.kind == "enum" and text not in param.choices:
        raise StripeError(400, f"Invalid {path}: must be one of {', '.join(param.choices)}", param=path)
    return text


def _metadata(raw: object, path: str) -> dict[str, str]:
    if not isinstance(raw, dict):
        if raw == "":
            return {}
        raise StripeError(400, "Invalid metadata: must be a set of key-value pairs", param=path)
    if len(raw) > METADATA_KEYS_MAX:
        raise StripeError(400, f"Metadata may have up to {METADATA_KEYS_MAX} keys", param=path)
    for key, value in raw.items():
        where = f"{path}[{key}]"
        if not isinstance(value, str):
            raise StripeError(400, "Metadata values must be strings", param=where)
        if len(key) > METADATA_KEY_CHARS_MAX:
            raise StripeError(400, f"Metadata keys can be at most {METADATA_KEY_CHARS_MAX} characters", param=where)
        if len(value) > METADATA_VALUE_CHARS_MAX:
            raise StripeError(400, f"Metadata values can have up to {METADATA_VALUE_CHARS_MAX} characters", param=where)
    return {key: value for key, value in raw.items() if value != ""}


def invalid_integer(message: str, param: str) -> StripeError:
    """Return the refusal of a number that is not one, or not one allowed here."""
    return StripeError(400, message, code="parameter_invalid_integer", param=param)


def _unknown(name: str) -> StripeError:
    return StripeError(400, f"Received unknown parameter: {name}", code="parameter_unknown", param=_plain(name))


def _plain(name: str) -> str:
    return name.removesuffix("[]")


def _path(within: str, name: str) -> str:
    return f"{within}[{name}]" if within else name
