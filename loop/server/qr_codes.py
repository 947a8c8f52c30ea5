"""QR codes of checkout pages: an address that a phone's camera opens, as an image for other pages."""

from io import BytesIO

import segno
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loop.server.request import context_of, path_id
from loop.workflows import checkout

MODULE_PX = 8
"""How large one square of the code is by itself; the image scales without loss."""


def svg_of(url: str) -> bytes:
    """Return a QR code of an address: black on white in every theme, since cameras want that, with its quiet margin."""
    out = BytesIO()
    segno.make(url, error="m", micro=False).save(
        out, kind="svg", scale=MODULE_PX, dark="#000", light="#fff", omitsize=True, xmldecl=False, title=url
    )
    return out.getvalue()


async def show(request: Request) -> Response:
    """Answer the code of a session's page to whoever knows the session; raises `not_found`."""
    found = await checkout.find(context_of(request), path_id(request, "session_id", noun="checkout session"))
    return Response(svg_of(found.session.url), media_type="image/svg+xml")


routes = [Route("/checkout/{session_id}/qr.svg", show, methods=["GET"])]
