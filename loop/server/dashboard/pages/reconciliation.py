"""Reconciliation: the days that were compared with the processors' own lists, and what needs a person."""

from typing import Final

from starlette.requests import Request
from starlette.routing import Route

from loop.domain.errors import not_found
from loop.server.api.reconciliation import run_json
from loop.server.dashboard.frames import Page, page_routes
from loop.server.dashboard.listing import PAGE_ROWS
from loop.server.dashboard.viewers import Viewer
from loop.server.request import context_of, page_of, path_id
from loop.server.shapes import order_json
from loop.storage import orders, reconciliation
from loop.storage.orders import OrderFilter
from loop.storage.reconciliation import Run
from loop.workflows.reconciliation import told

REVIEWED_ROWS: Final = 10


def outcome_of(run: Run) -> str:
    """Return how a day came out: a key of `words.RUNS`."""
    return "mismatch" if run.mismatch_count else "awaiting" if run.awaited_count else "matched"


async def show(request: Request, viewer: Viewer) -> Page:
    """Show the orders that need a person, and a page of the days that were compared."""
    number = page_of(request).page
    async with context_of(request).database.reading() as reader:
        runs = await reconciliation.listed(
            reader, viewer.merchant_id, offset=(number - 1) * PAGE_ROWS, limit=PAGE_ROWS + 1, is_test=viewer.is_test
        )
        in_review = await orders.list_after(
            reader,
            viewer.merchant_id,
            OrderFilter(needs_review=True, is_test=viewer.is_test),
            before_id=None,
            limit=REVIEWED_ROWS + 1,
        )
    shown = runs[:PAGE_ROWS]
    values = {
        "runs": [(run, outcome_of(run)) for run in shown],
        "number": number,
        "has_more": len(runs) > PAGE_ROWS,
        "in_review": in_review[:REVIEWED_ROWS],
        "has_more_in_review": len(in_review) > REVIEWED_ROWS,
    }
    json = {"needsReview": [order_json(each) for each in in_review], "data": [run_json(run) for run in shown]}
    return Page("reconciliation.html", "reconciliation", values, json)


async def show_run(request: Request, viewer: Viewer) -> Page:
    """Show one day with what differs."""
    run_id = path_id(request, "run_id", noun="reconciliation")
    async with context_of(request).database.reading() as reader:
        run = await reconciliation.get(reader, viewer.merchant_id, run_id, is_test=viewer.is_test)
        if run is None:
            raise not_found("reconciliation")
        findings = await reconciliation.findings_of(reader, run_id)
    values = {"run": run, "outcome": outcome_of(run), "findings": findings}
    json = {**run_json(run), "findings": [told(each) for each in findings]}
    return Page("reconciliation_run.html", "reconciliation", values, json)


routes: Final[list[Route]] = [
    *page_routes("/dashboard/reconciliation", show),
    *page_routes("/dashboard/reconciliation/{run_id}", show_run),
]
