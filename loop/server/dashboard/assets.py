"""Assets: the dashboard's own files and the vendored ones, read once and served under the hash of what they hold."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loop.domain.errors import not_found

STATIC: Final = Path(__file__).parent / "static"
PREFIX: Final = "/dashboard/static"

_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_HASH_CHARACTERS: Final = 12
_FOREVER: Final = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class _Asset:
    content: bytes
    media_type: str
    version: str


def _read(path: Path) -> _Asset:
    content = path.read_bytes()
    return _Asset(content, _TYPES[path.suffix], hashlib.sha256(content).hexdigest()[:_HASH_CHARACTERS])


_ASSETS: Final = {
    path.relative_to(STATIC).as_posix(): _read(path) for path in sorted(STATIC.rglob("*")) if path.suffix in _TYPES
}


def address_of(name: str) -> str:
    """Return where browsers find a file of `static/`; the address changes with the file, so they keep it for good."""
    return f"{PREFIX}/{_ASSETS[name].version}/{name}"


async def _serve(request: Request) -> Response:
    asset = _ASSETS.get(request.path_params["name"])
    if asset is None:
        raise not_found("file")
    is_current = request.path_params["version"] == asset.version  # else another release's page asks for it
    headers = {"Cache-Control": _FOREVER} if is_current else {}
    return Response(asset.content, media_type=asset.media_type, headers=headers)


routes: Final = [Route(f"{PREFIX}/{{version}}/{{name:path}}", _serve, methods=["GET"])]
