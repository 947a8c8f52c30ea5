"""Reconciliation: the days that were compared with the processors' own lists, and what needs a person."""

from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loop.domain.errors import LoopError, not_found
from loop.server.api.reconciliation import run_json
from loop.server.dashboard.frames import Page, acts, page_routes, render
from loop.server.dashboard.listing import PAGE_ROWS
from loop.server.dashboard.viewers import Sent, Viewer, acting_as
from loop.server.errors import STATUS_OF
from loop.server.pages import see_other
from loop.server.request import context_of, page_of, path_id, query_of
from loop.server.shapes import order_json
from loop.storage import orders, reconciliation
from loop.storage.orders import OrderFilter
from loop.storage.reconciliation import Run
from loop.workflows import reviews
from loop.workflows.reconciliation import told

REVIEWED_ROWS: Final = 10
REVIEWED: Final = "The order is off the list of those that need a person."


@dataclass(frozen=True, slots=True)
class Refused:
    """A review that was refused: of which order, with which note, and why."""

    order_id: str
    note: str
    problem: LoopError


def outcome_of(run: Run) -> str:
    """Return how a day came out: a key of `words.RUNS`."""
    return "mismatch" if run.mismatch_count else "awaiting" if run.awaited_count else "matched"


async def show(request: Request, viewer: Viewer, *, refused: Refused | None = None) -> Page:
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
        "notice": REVIEWED if refused is None and query_of(request).get("notice") == "reviewed" else None,
        "problem": None if refused is None else refused.problem,
        "problem_of": None if refused is None else refused.order_id,
        "note": "" if refused is None else refused.note,
    }
    json = {"needsReview": [order_json(each) for each in in_review], "data": [run_json(run) for run in shown]}
    status = 200 if refused is None else STATUS_OF[refused.problem.kind]
    return Page("reconciliation.html", "reconciliation", values, json, status)


async def review(request: Request, sent: Sent) -> Response:
    """Take an order off the list of those that need a person."""
    viewer, note = sent.viewer, sent.fields.get("note", "")
    order_id = path_id(request, "order_id", noun="order")
    try:
        await reviews.mark_reviewed(acting_as(request, viewer), viewer.merchant_id, order_id, note=note)
    except LoopError as error:
        return render(await show(request, viewer, refused=Refused(order_id, note, error)), viewer)
    return see_other("/dashboard/reconciliation?notice=reviewed")


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
    Route("/dashboard/reconciliation/orders/{order_id}/review", acts(review), methods=["POST"]),
]
