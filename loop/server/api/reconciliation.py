"""Reconciliation: the days of a merchant's accounts that were compared with the processors' lists, and what differs."""

from typing import Final, Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from loop.domain.errors import not_found
from loop.domain.reconciliation import CurrencyTotals
from loop.server.auth import authenticate
from loop.server.dashboard_shapes import PaginationJson, pagination_json
from loop.server.operations import PAGE, Operation, describes
from loop.server.request import context_of, json_response, page_of, path_id, time_text
from loop.storage import reconciliation as rows
from loop.storage.reconciliation import Run
from loop.workflows.reconciliation import told


class TotalsJson(TypedDict):
    """What moved in one currency, in its minor units."""

    currency: str
    chargedHere: int
    chargedThere: int
    refundedHere: int
    refundedThere: int
    fees: int


class RunJson(TypedDict):
    """A day of an account that was compared with the processor's list."""

    id: str
    processor: str
    day: str
    status: Literal["mismatch", "awaiting", "matched"]
    matched: int
    awaited: int
    missingHere: int
    missingThere: int
    amountDiffers: int
    totals: list[TotalsJson]
    ranAt: str


class RunPageJson(TypedDict):
    """A page of days, newest first."""

    data: list[RunJson]
    pagination: PaginationJson


class FindingJson(TypedDict):
    """One difference; amounts in minor units, null on the side that has nothing."""

    kind: str
    movement: str
    reference: str
    orderId: str | None
    refundId: str | None
    amountHere: int | None
    currencyHere: str | None
    amountThere: int | None
    currencyThere: str | None
    occurredAt: str


class ShownRunJson(RunJson):
    """A day with what differs."""

    findings: list[FindingJson]


@describes(Operation("listReconciliations", answer=RunPageJson, query=PAGE))
async def list_page(request: Request) -> Response:
    """Answer a page of the days that were compared, newest first."""
    caller = await authenticate(request)
    page = page_of(request)
    async with context_of(request).database.reading() as reader:
        found, total = await rows.list_page(
            reader, caller.merchant_id, offset=page.offset, limit=page.limit, is_test=caller.is_test
        )
    return json_response({"data": [run_json(run) for run in found], "pagination": pagination_json(page, total)})


@describes(Operation("getReconciliation", answer=ShownRunJson))
async def show(request: Request) -> Response:
    """Answer one day with what differs."""
    caller = await authenticate(request)
    run_id = path_id(request, "run_id", noun="reconciliation")
    async with context_of(request).database.reading() as reader:
        run = await rows.get(reader, caller.merchant_id, run_id, is_test=caller.is_test)
        if run is None:
            raise not_found("reconciliation")
        findings = await rows.findings_of(reader, run_id)
    return json_response({**run_json(run), "findings": [told(each) for each in findings]})


def run_json(run: Run) -> RunJson:
    """Return a compared day as the API and the commands show it."""
    return {
        "id": run.id,
        "processor": run.processor,
        "day": str(run.day),
        "status": "mismatch" if run.mismatch_count else "awaiting" if run.awaited_count else "matched",
        "matched": run.matched_count,
        "awaited": run.awaited_count,
        "missingHere": run.missing_here_count,
        "missingThere": run.missing_there_count,
        "amountDiffers": run.amount_differs_count,
        "totals": [_totals_json(each) for each in run.totals],
        "ranAt": time_text(run.ran_at),
    }


def _totals_json(totals: CurrencyTotals) -> TotalsJson:
    return {
        "currency": totals.currency,
        "chargedHere": totals.charged_here,
        "chargedThere": totals.charged_there,
        "refundedHere": totals.refunded_here,
        "refundedThere": totals.refunded_there,
        "fees": totals.fees,
    }


routes: Final = [
    Route("/api/reconciliation", list_page, methods=["GET"]),
    Route("/api/reconciliation/{run_id}", show, methods=["GET"]),
]
