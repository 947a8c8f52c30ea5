"""Patterns: every component of the pages in each of its states, to look at while building with them."""

from typing import Final

from starlette.requests import Request
from starlette.routing import Route

from loop.domain.errors import invalid
from loop.server.dashboard.frames import Page, page_routes
from loop.server.dashboard.viewers import Viewer
from loop.server.request import context_of


async def show(request: Request, _viewer: Viewer) -> Page:
    """Show the components."""
    values = {
        "now": context_of(request).now(),
        "problem": invalid("refund_exceeds_captured", "Only 20.00 EUR can still be refunded; ask for that or less."),
    }
    return Page("patterns.html", "patterns", values, {"components": "These are only to be looked at."})


routes: Final[list[Route]] = page_routes("/dashboard/patterns", show)
