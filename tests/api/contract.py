"""The contract: holds every answer that a test gets to the API's document, with no field more or less."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import jsonschema_rs
from starlette.routing import Match, Route

from loop.server.app import API_ROUTES
from loop.server.openapi import document

ALWAYS_WITH = {401: ["WWW-Authenticate"], 429: ["Retry-After"], 503: ["Retry-After"]}
"""Headers that every answer with a status has."""


@cache
def api_document() -> dict[str, Any]:
    """Return the document as a client reads it."""
    read: dict[str, Any] = json.loads(json.dumps(document(API_ROUTES)))
    return read


def require_documented(method: str, path: str, *, status: int, headers: Mapping[str, str], text: str) -> None:
    """Require that the document has this answer, if it comes from a route that is in it."""
    template = _template_of(method, path)
    if template is None or status == 405:
        return
    where = f"{method} {template} answered {status}"
    answers = api_document()["paths"][template][method.lower()]["responses"]
    assert str(status) in answers, f"{where}, which its document does not have: {text[:300]}"
    answer = answers[str(status)]
    missing = [name for name in ("X-Correlation-ID", *ALWAYS_WITH.get(status, ())) if name not in headers]
    assert not missing, f"{where} without {missing}"
    if "content" not in answer:
        assert not text, f"{where} with a body"
        return
    assert headers["Content-Type"] == "application/json", where
    schema = answer["content"]["application/json"]["schema"]
    problems = [
        f"{each.message} at {each.instance_path}"
        for each in _validator(json.dumps(schema)).iter_errors(json.loads(text))
    ]
    assert not problems, f"{where}, not as documented: {problems[:5]} in {text[:500]}"


@cache
def _validator(schema: str) -> jsonschema_rs.Validator:
    components = {"schemas": {name: _closed(each) for name, each in api_document()["components"]["schemas"].items()}}
    return jsonschema_rs.Draft202012Validator({**_closed(json.loads(schema)), "components": components})


def _closed(schema: Any) -> Any:
    """Return a schema that allows no field that it does not name: the document leaves room for later ones."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(each) for name, each in schema.items()}
    if schema.get("type") == "object" and "properties" in schema:
        closed.setdefault("additionalProperties", False)
    return closed


def _template_of(method: str, path: str) -> str | None:
    scope = {"type": "http", "method": method, "path": path, "root_path": ""}
    for route in API_ROUTES:
        if isinstance(route, Route) and route.matches(scope)[0] is Match.FULL:
            return route.path
    return None
