"""Reconciliation: the days of a merchant's accounts that were compared with the processors' lists, and what differs."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loop.domain.errors import not_found
from loop.domain.reconciliation import CurrencyTotals
from loop.server.auth import authenticate
from loop.server.dashboard_shapes import pagination_json
from loop.server.request import context_of, json_response, page_of, path_id, time_text
from loop.storage import reconciliation as rows
from loop.storage.reconciliation import Run
from loop.workflows.reconciliation import told


async def list_page(request: Request) -> Response:
    """Answer a page of the days that were compared, newest first."""
    caller = await authenticate(request)
    page = page_of(request)
    async with context_of(request).database.reading() as reader:
        found, total = await rows.list_page(
            reader, caller.merchant_id, offset=page.offset, limit=page.limit, is_test=caller.is_test
        )
    return json_response({"data": [run_json(run) for run in found], "pagination": pagination_json(page, total)})


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


def run_json(run: Run) -> dict[str, object]:
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


def _totals_json(totals: CurrencyTotals) -> dict[str, object]:
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
