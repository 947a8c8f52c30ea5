"""The API's document has every route and every error code, and its examples are what it says of them."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from starlette.routing import Route

import loop
from loop.domain.errors import ErrorKind
from loop.server import checkout_page, pages, qr_codes, sandbox_pages
from loop.server.app import API_ROUTES
from loop.server.dashboard.routes import routes as dashboard_routes
from loop.server.error_codes import ERROR_CODES
from loop.server.errors import STATUS_OF
from loop.server.operations import OPERATIONS
from tests.api.contract import api_document, require_documented

ROOT = Path(loop.__file__).parent
RAISED_BY = {
    "invalid": ErrorKind.INVALID,
    "unauthenticated": ErrorKind.UNAUTHENTICATED,
    "conflict": ErrorKind.CONFLICT,
    "unavailable": ErrorKind.UNAVAILABLE,
    "configuration": ErrorKind.CONFIGURATION,
}
HANDED_ON = {"capture_failed", "cancel_failed", "missing_signature"}
"""Codes that are a variable where they are raised."""

ANSWERED_AT_THE_EDGE = {"internal_error", "method_not_allowed", "invalid_http", "head_too_slow", "head_too_large"}
"""Codes of what nobody raises as an error of Loop's."""

PAGES = [*pages.routes, *checkout_page.routes, *qr_codes.routes, *sandbox_pages.routes, *dashboard_routes]


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in api_document()["paths"].items():
        for method, operation in methods.items():
            yield path, method.upper(), operation


def test_every_route_of_the_api_is_in_the_document() -> None:
    routed = {
        (route.path, method)
        for route in API_ROUTES
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert {(path, method) for path, method, _ in operations()} == routed


def test_no_page_is_described_as_a_part_of_the_api() -> None:
    assert not [route for route in PAGES if route.endpoint in OPERATIONS]


def test_operations_have_names_of_their_own_and_links_lead_to_them() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(names)) == len(names)
    linked = {
        link["operationId"]
        for _, _, operation in operations()
        for response in operation["responses"].values()
        for link in response.get("links", {}).values()
    }
    assert linked <= set(names)


def test_it_is_openapi_3_1() -> None:
    read = api_document()
    assert read["openapi"].startswith("3.1.")
    for name, schema in read["components"]["schemas"].items():
        assert jsonschema_rs.meta.is_valid(schema), name


@pytest.mark.parametrize(("path", "method", "operation"), list(operations()))
def test_examples_are_as_their_schemas_say(path: str, method: str, operation: dict[str, Any]) -> None:
    contents = [operation.get("requestBody", {}), *operation["responses"].values()]
    for content in (each["content"]["application/json"] for each in contents if "content" in each):
        components = api_document()["components"]
        validator = jsonschema_rs.Draft202012Validator({**content["schema"], "components": components})
        shared, examples = components["examples"], content.get("examples", {}).values()
        for example in examples:
            found = shared[example["$ref"].rpartition("/")[2]] if "$ref" in example else example
            validator.validate(found["value"])
    assert any("example" in str(each) for each in contents) or operation["responses"].keys() >= {"204"}, (path, method)


def raised_codes() -> dict[str, set[int | None]]:
    """Return every code that is written where an error is raised, with the statuses it answers."""
    found: dict[str, set[int | None]] = defaultdict(set)
    for path in ROOT.rglob("*.py"):
        if "testing" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            called = node.func.id if isinstance(node.func, ast.Name) else ""
            if called in RAISED_BY:
                kind, code = RAISED_BY[called], node.args[0]
            elif called == "LoopError" and isinstance(node.args[0], ast.Attribute):
                kind, code = ErrorKind[node.args[0].attr], node.args[1]
            else:
                continue
            if isinstance(code, ast.Constant):
                found[str(code.value)].add(None if kind is ErrorKind.CONFIGURATION else STATUS_OF[kind])
    return found


def test_the_list_of_error_codes_is_what_is_raised() -> None:
    raised = raised_codes()
    assert set(ERROR_CODES) == set(raised) | HANDED_ON | ANSWERED_AT_THE_EDGE
    assert {code: {ERROR_CODES[code].status} for code in raised} == raised


@pytest.mark.parametrize(
    ("status", "text", "problem"),
    [
        (
            200,
            '{"status":"ok","timestamp":"2030-01-31T09:30:00.000Z","correlationId":"a","more":1}',
            "not as documented",
        ),
        (200, '{"status":"ok","timestamp":"2030-01-31T09:30:00.000Z"}', "not as documented"),
        (400, '{"code":"no_processor","message":"No.","requestId":"a"}', "not as documented"),
        (418, "{}", "which its document does not have"),
    ],
)
def test_what_the_document_does_not_have_is_noticed(status: int, text: str, problem: str) -> None:
    headers = {"X-Correlation-ID": "a", "Content-Type": "application/json"}
    with pytest.raises(AssertionError, match=problem):
        require_documented("GET", "/health", status=status, headers=headers, text=text)
