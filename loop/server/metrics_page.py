"""The metrics' address: what a Prometheus that holds the token reads."""

import asyncio
import hmac

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loop import metrics
from loop.domain.errors import not_found, unauthenticated
from loop.server.request import context_of, header


async def show(request: Request) -> Response:
    """Answer every figure of this process; without `metrics_token` there is nothing here."""
    context = context_of(request)
    token = context.settings.metrics_token
    if token is None:
        raise not_found("page")
    scheme, _, given = (header(request, b"authorization") or "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.reveal().encode()):
        raise unauthenticated("metrics_token_needed", "Send the configured metrics_token as Authorization: Bearer.")
    await context.vitals.refresh(context)
    text = await asyncio.to_thread(metrics.exposition)  # there may be thousands of lines
    return Response(text, media_type=metrics.CONTENT_TYPE_LATEST)


routes = [Route("/metrics", show, methods=["GET"])]
