"""Documentation: the API's document, served as it is."""

from collections.abc import Sequence
from functools import cache
from typing import Final

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from loop.server.openapi import PATH, document

KEPT_S: Final = 300


def documentation_routes(described: Sequence[BaseRoute]) -> list[Route]:
    """Return the routes that tell of the others; the document is made when it is first asked for."""

    @cache
    def text() -> bytes:
        return orjson.dumps(document(described))

    async def show_document(_: Request) -> Response:
        headers = {"Cache-Control": f"public, max-age={KEPT_S}"}
        return Response(text(), headers=headers, media_type="application/json")

    return [Route(PATH, show_document, methods=["GET"])]
