"""Documentation: the API's document, and the page that shows it, made of vendored files only."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from loop.domain.errors import not_found
from loop.server.openapi import PATH, document

KEPT_S: Final = 300
STATIC: Final = Path(__file__).parent / "docs_static"
"""The page's files; `vendored.json` lists where each of those that are not Loop's own is from."""

_HEADERS: Final = {"Cache-Control": f"public, max-age={KEPT_S}"}
_POLICY: Final = (
    # The viewer writes styles into its markup; scripts are the one vendored file, which needs no eval.
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def documentation_routes(described: Sequence[BaseRoute]) -> list[Route]:
    """Return the routes that tell of the others; the document is made when it is first asked for."""

    @cache
    def text() -> bytes:
        return orjson.dumps(document(described))

    async def show_document(_: Request) -> Response:
        return Response(text(), headers=_HEADERS, media_type="application/json")

    return [
        Route(PATH, show_document, methods=["GET"]),
        Route("/docs", _show_page, methods=["GET"]),
        Route("/docs/{name}", _show_file, methods=["GET"]),
    ]


@cache
def _content(name: str) -> bytes:
    return (STATIC / name).read_bytes()


async def _show_page(_: Request) -> Response:
    headers = {**_HEADERS, "Content-Security-Policy": _POLICY}
    return Response(_content("docs.html"), headers=headers, media_type="text/html")


async def _show_file(request: Request) -> Response:
    name: str = request.path_params["name"]
    if name != "rapidoc-min.js":
        raise not_found("file")
    return Response(_content(name), headers=_HEADERS, media_type="text/javascript")
