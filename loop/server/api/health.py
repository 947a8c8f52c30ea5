"""Health: whether this process runs, and whether it can serve."""

import asyncio
from typing import Final, Literal, NotRequired

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from loop.domain.errors import LoopError, unavailable
from loop.server.operations import Operation, describes
from loop.server.rate_limits import limiter_of
from loop.server.request import context_of, json_response, time_text
from loop.storage import jobs
from loop.telemetry import correlation_id, get_logger

log = get_logger(__name__)

READY_WITHIN_S: Final = 2.0


class HealthJson(TypedDict):
    """This process runs."""

    status: Literal["ok"]
    timestamp: str
    correlationId: str | None


class ChecksJson(TypedDict):
    """What serving needs; and Redis, where it is configured, without which all is done, but some of it later."""

    database: Literal["ok"]
    redis: NotRequired[Literal["ok", "down"]]


class ReadyJson(HealthJson):
    """This process can serve."""

    checks: ChecksJson


@describes(Operation("getHealth", answer=HealthJson))
async def health(request: Request) -> Response:
    """Say that this process answers; it looks at nothing else."""
    return json_response(_alive(request))


@describes(Operation("getReadiness", answer=ReadyJson, errors=("not_ready",)))
async def ready(request: Request) -> Response:
    """Say whether the database answers in time; else 503. That Redis does not is said, and no reason to leave."""
    try:
        async with asyncio.timeout(READY_WITHIN_S), context_of(request).database.reading() as reader:
            await jobs.next_due(reader)
    except (LoopError, TimeoutError) as error:
        log.warning("health.not_ready", error=repr(error))
        raise unavailable("not_ready", f"The database did not answer within {READY_WITHIN_S:g} seconds.") from error
    checks: ChecksJson = {"database": "ok"}
    redis_answers = await limiter_of(request).redis_answers()
    if redis_answers is not None:
        checks["redis"] = "ok" if redis_answers else "down"
    return json_response({**_alive(request), "checks": checks})


def _alive(request: Request) -> HealthJson:
    return {"status": "ok", "timestamp": time_text(context_of(request).now()), "correlationId": correlation_id()}


routes = [
    Route("/health", health, methods=["GET"]),
    Route("/health/ready", ready, methods=["GET"]),
]
