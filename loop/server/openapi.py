"""OpenAPI: the document of the API, made from the routes, their request and answer models and what is declared."""

import inspect
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pydantic import TypeAdapter
from starlette.routing import BaseRoute, Route

import loop
from loop.server.api.events import EventJson
from loop.server.error_codes import ERROR_CODES
from loop.server.examples import example_of
from loop.server.operations import OPERATIONS, Handler, JsonSchema, Link, Operation
from loop.server.scopes import SCOPES

PATH: Final = "/openapi.json"

_SCHEMAS: Final = "#/components/schemas/"
_REQUEST_ID: Final = "6f1c0b7e2a9d4c58b3e07f61"
_ID: Final[JsonSchema] = {"type": "string", "pattern": "^[A-Za-z0-9_]{1,60}$"}

_EVERYWHERE: Final = ("query_too_long", "too_many_headers", "headers_too_large", "internal_error")
_SERVED: Final = ("rate_limited", "database_unavailable")
_SECURED: Final = ("missing_credentials", "invalid_api_key", "expired_api_key", "invalid_token", "invalid_mode")
_BODY: Final = ("invalid_json", "raw_card_data", "validation_failed", "body_too_large", "body_too_slow")
_QUERY: Final = ("validation_failed", "raw_card_data")
_KEYED: Final = ("invalid_idempotency_key", "raw_card_data", "idempotency_key_reuse", "idempotency_in_progress")

_ERROR: Final[JsonSchema] = {
    "type": "object",
    "required": ["code", "message", "requestId"],
    "properties": {
        "code": {"type": "string", "description": "Stable; the message may change."},
        "message": {"type": "string", "description": "What to do about it."},
        "requestId": {"type": "string", "description": "The answer's X-Correlation-ID."},
        "details": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "message"],
                "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
}
_INTEGER: Final[JsonSchema] = {"type": "integer", "minimum": 0}
_HEADERS: Final[Mapping[str, JsonSchema]] = {
    "X-Correlation-ID": {
        "description": "Names this request in logs, traces and webhooks: the caller's own if it is sane.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
    },
    "RateLimit-Limit": {"description": "How many requests may come at once.", "schema": _INTEGER},
    "RateLimit-Remaining": {"description": "How many are left.", "schema": _INTEGER},
    "RateLimit-Reset": {"description": "In how many seconds all are there again.", "schema": _INTEGER},
    "Retry-After": {"description": "When to try again, in whole seconds.", "schema": _INTEGER},
    "Idempotent-Replayed": {
        "description": "`true` when this is the stored answer to an earlier request with the same key.",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "WWW-Authenticate": {"description": "How to authenticate.", "schema": {"type": "string"}},
}
_ALWAYS: Final = ("X-Correlation-ID", "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")
_PARAMETERS: Final[Mapping[str, JsonSchema]] = {
    "Idempotency-Key": {
        "description": "The same request under the same key is made once; its answer is kept for at least 24 hours.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    },
    "X-Correlation-ID": {"description": "Names the request, up to 128 sane characters.", "schema": {"type": "string"}},
    "X-Loop-Mode": {
        "description": "For a person: work with test or live orders. A key has its own mode.",
        "schema": {"type": "string", "enum": ["test", "live"]},
    },
}
_SCHEMES: Final[JsonSchema] = {
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "bearerKey": {"type": "http", "scheme": "bearer", "bearerFormat": "sk_live_… or sk_test_…"},
    "accessToken": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
}
_ABOUT: Final = (
    "Money is an integer in minor units with its currency; times are ISO 8601 in UTC; ids are opaque. "
    "Every error has a stable `code`. An id that is absent, malformed or another merchant's answers the same 404."
)


def document(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """Return the document of those routes that are described; see `loop.server.operations`."""
    described = [
        (route, OPERATIONS[route.endpoint])
        for route in routes
        if isinstance(route, Route) and route.endpoint in OPERATIONS
    ]
    schemas = _Schemas([operation for _, operation in described])
    paths: dict[str, dict[str, Any]] = {}
    seen: Counter[str] = Counter()
    for route, operation in described:
        for method in sorted((route.methods or set()) - {"HEAD"}):
            seen[operation.operation_id] += 1
            number = seen[operation.operation_id]
            name = operation.operation_id if number == 1 else f"{operation.operation_id}_{number}"
            described_here = _operation(route, method, operation, schemas=schemas)
            paths.setdefault(route.path, {})[method.lower()] = {"operationId": name, **described_here}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Loop", "version": loop.__version__, "description": _ABOUT},
        "servers": [{"url": "/"}],
        "paths": paths,
        "webhooks": {"event": {"post": _told(schemas)}},
        "components": {
            "schemas": {**schemas.components, "Error": _ERROR},
            "headers": _HEADERS,
            "examples": _error_examples(),
            "parameters": {
                name: {"name": name, "in": "header", "required": False, **given} for name, given in _PARAMETERS.items()
            },
            "securitySchemes": _SCHEMES,
        },
    }


class _Schemas:
    """The JSON schemas of all models, with what they share as components."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        types = {id(kind): kind for each in operations for kind in (each.answer, each.body) if kind is not None}
        types[id(EventJson)] = EventJson
        adapters = [(str(key), "validation", TypeAdapter(kind)) for key, kind in types.items()]
        found, shared = TypeAdapter.json_schemas(adapters, ref_template=_SCHEMAS + "{model}")  # type: ignore[arg-type]
        self._by_type = {key: schema for (key, _), schema in found.items()}
        self.components: dict[str, Any] = shared.get("$defs", {})

    def of(self, kind: object) -> dict[str, Any]:
        """Return the schema of a model, mostly a reference."""
        return self._by_type[str(id(kind))]


def _operation(route: Route, method: str, operation: Operation, *, schemas: _Schemas) -> dict[str, Any]:
    handler: Handler = route.endpoint
    is_secured = route.path in SCOPES
    about = inspect.getdoc(handler) or ""
    said: dict[str, Any] = {
        "summary": about.split("\n")[0].split(". ")[0].rstrip("."),
        "tags": [handler.__module__.rpartition(".")[2].replace("_", " ")],
        "parameters": _parameters(route, operation, is_secured=is_secured),
        "responses": _responses(route, method, operation, schemas=schemas),
        "security": _security(route, method) if is_secured else [],
    }
    if is_secured:
        scope = SCOPES[route.path].get(method)
        needed = "a person" if scope is None else f"the scope `{scope}`, or a person"
        said["description"] = f"{about}\n\nNeeds {needed}."
    if operation.body is not None:
        has_required = any(field.is_required() for field in operation.body.model_fields.values())
        said["requestBody"] = {
            "required": has_required,
            "content": _content(schemas.of(operation.body), operation.example),
        }
    elif method == "POST" and not is_secured:
        said["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": {"description": "What the processor sends."}}},
        }
    return said


def _security(route: Route, method: str) -> list[dict[str, list[str]]]:
    schemes = ("accessToken",) if SCOPES[route.path].get(method) is None else tuple(_SCHEMES)
    return [{scheme: []} for scheme in schemes]


def _parameters(route: Route, operation: Operation, *, is_secured: bool) -> list[JsonSchema]:
    headers = ["X-Correlation-ID"]
    if is_secured:
        headers.append("X-Loop-Mode")
    if operation.is_keyed:
        headers.append("Idempotency-Key")
    return [
        *({"name": name, "in": "path", "required": True, "schema": _ID} for name in route.param_convertors),
        *(
            {"name": name, "in": "query", "required": False, "allowEmptyValue": True, "schema": schema}
            for name, schema in operation.query.items()
        ),
        *({"$ref": f"#/components/parameters/{name}"} for name in headers),
    ]


def _codes_of(route: Route, method: str, operation: Operation) -> list[str]:
    """Return every code that an operation may answer."""
    codes = [*_EVERYWHERE, *operation.errors]
    if not route.path.startswith("/health"):
        codes += _SERVED
    if route.path in SCOPES:
        scope = SCOPES[route.path].get(method)
        codes += [*_SECURED, "person_required" if scope is None else "insufficient_scope"]
    if route.param_convertors:
        codes.append("not_found")
    if operation.body is not None:
        codes += _BODY
    if operation.query:
        codes += _QUERY
    if operation.is_keyed:
        codes += _KEYED
    return sorted(set(codes))


def _responses(route: Route, method: str, operation: Operation, *, schemas: _Schemas) -> dict[str, Any]:
    succeeded: dict[str, Any] = {
        "description": "Done.",
        "headers": _headers(*_ALWAYS, *(["Idempotent-Replayed"] if operation.is_keyed else [])),
    }
    if operation.answer is not None:
        schema = schemas.of(operation.answer)
        succeeded["content"] = _content(schema, example_of(schema, schemas.components))
    if operation.links:
        succeeded["links"] = {link.operation_id: _link(link) for link in operation.links}
    by_status: dict[int, list[str]] = {}
    for code in _codes_of(route, method, operation):
        status = ERROR_CODES[code].status
        if status is not None:
            by_status.setdefault(status, []).append(code)
    return {
        str(operation.status): succeeded,
        **{str(status): _refusal(status, codes) for status, codes in sorted(by_status.items())},
    }


def _refusal(status: int, codes: Sequence[str]) -> dict[str, Any]:
    waits = ["Retry-After"] if status in (409, 429, 503) else []
    asks = ["WWW-Authenticate"] if status == 401 else []
    return {
        "description": f"One of: {', '.join(codes)}.",
        "headers": _headers(*_ALWAYS, *waits, *asks),
        "content": {
            "application/json": {
                "schema": {"allOf": [{"$ref": f"{_SCHEMAS}Error"}, {"properties": {"code": {"enum": list(codes)}}}]},
                "examples": {code: {"$ref": f"#/components/examples/{code}"} for code in codes},
            }
        },
    }


def _content(schema: JsonSchema, example: object) -> dict[str, Any]:
    return {"application/json": {"schema": schema, "examples": {"usual": {"value": example}}}}


def _error_examples() -> dict[str, JsonSchema]:
    return {
        code: {"value": {"code": code, "message": known.advice, "requestId": _REQUEST_ID}}
        for code, known in ERROR_CODES.items()
        if known.status is not None
    }


def _headers(*names: str) -> dict[str, JsonSchema]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _link(link: Link) -> dict[str, Any]:
    parameters = {name: f"$response.body#{pointer}" for name, pointer in link.parameters.items()}
    return {"operationId": link.operation_id, "parameters": parameters}


def _told(schemas: _Schemas) -> dict[str, Any]:
    schema = schemas.of(EventJson)
    return {
        "operationId": "event",
        "summary": "What Loop sends to merchants' endpoints, signed",
        "requestBody": {
            "content": _content(schema, example_of(schema, schemas.components)),
        },
        "responses": {"2XX": {"description": "Taken; any other answer means that it is sent again."}},
    }
