"""Misbehaviour on demand: which requests to the stand-in processor are slowed, dropped, cut or refused."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from aiohttp import web

FaultKind: TypeAlias = Literal["slow", "drop_before", "drop_after", "cut_body", "status"]

DELAY_MAX_S = 120.0
"""Longest a fault may hold a request, in seconds."""

FAULTS_MAX = 1_000
"""Most faults that may be armed at once."""

REFUSALS = (409, 429, 500, 502, 503)
"""HTTP statuses a `status` fault may answer with."""


@dataclass(slots=True, kw_only=True)
class Fault:
    """One kind of misbehaviour for requests whose method and path match, `times` times.

    `stored` statuses are kept under the request's idempotency key and replayed for ever; with `executes` the
    request takes effect all the same. Statuses that are not stored never execute.
    """

    kind: FaultKind
    method: str | None = None
    path: str = "/"
    times: int = 1
    delay_s: float = 0.0
    status: int = 500
    html: bool = False
    stored: bool = False
    executes: bool = False

    def __post_init__(self) -> None:
        """Refuse a fault that could never do anything; ValueError says why."""
        if self.kind not in get_args(FaultKind):
            raise ValueError(f"kind must be one of {', '.join(get_args(FaultKind))}")
        if not 0 <= self.delay_s <= DELAY_MAX_S:
            raise ValueError(f"delay_s must be between 0 and {DELAY_MAX_S:g}")
        if self.kind == "status" and self.status not in REFUSALS:
            raise ValueError(f"status must be one of {', '.join(map(str, REFUSALS))}")
        if self.times < 1:
            raise ValueError("times must be at least 1")
        if self.executes and not self.stored:
            raise ValueError("executes needs stored")

    def matches(self, method: str, path: str) -> bool:
        """Say whether this fault is meant for a request."""
        return self.method in (None, method) and path.startswith(self.path)


@dataclass(slots=True)
class FaultPlan:
    """The faults that are armed, first armed first used."""

    armed: list[Fault] = field(default_factory=list)

    def arm(self, fault: Fault) -> None:
        """Add a fault; ValueError when FAULTS_MAX are armed already."""
        if len(self.armed) >= FAULTS_MAX:
            raise ValueError(f"{FAULTS_MAX} faults are armed already")
        self.armed.append(fault)

    def take(self, method: str, path: str) -> Fault | None:
        """Use up one time of the first fault that matches, or return None."""
        for fault in self.armed:
            if fault.matches(method, path):
                fault.times -= 1
                if fault.times == 0:
                    self.armed.remove(fault)
                return fault
        return None


def html_refusal(status: int) -> str:
    """Return the page a proxy in front of a processor answers with when the processor is away."""
    return f"<html><head><title>{status}</title></head><body><h1>{status} Server Error</h1></body></html>\n"


def drop(request: web.Request) -> web.Response:
    """Close the request's socket at once; the response returned is never sent."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def send(
    request: web.Request, *, status: int, body: str, headers: Mapping[str, str], fault: Fault | None = None
) -> web.StreamResponse:
    """Answer a request, or do to the answer what a `drop_after` or `cut_body` fault asks."""
    if fault is not None and fault.kind == "drop_after":
        return drop(request)
    raw = body.encode()
    if fault is None or fault.kind != "cut_body":
        return web.Response(status=status, body=raw, headers=headers)
    cut = web.StreamResponse(status=status, headers=headers)
    cut.content_length = len(raw)
    with suppress(ConnectionResetError):  # the client may have gone already
        await cut.prepare(request)
        await cut.write(raw[: len(raw) // 2])
    if request.transport is not None:
        request.transport.close()
    return cut


async def hold(fault: Fault | None) -> None:
    """Wait as long as a `slow` fault asks."""
    if fault is not None and fault.kind == "slow":
        await asyncio.sleep(fault.delay_s)
