"""One routing rule: its editor, tried on recent orders before it is saved."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loop.domain.errors import LoopError
from loop.domain.ids import PREFIX_ROUTING_RULE
from loop.domain.routing_rules import MAX_TARGETS, Rule
from loop.server.api.routing_rules import rule_json
from loop.server.dashboard import rule_forms
from loop.server.dashboard.frames import Page, acts, page_routes, render
from loop.server.dashboard.keyed_forms import keyed
from loop.server.dashboard.pages.routing import HERE, compared
from loop.server.dashboard.viewers import Sent, Viewer, acting_as, new_form_key
from loop.server.errors import STATUS_OF
from loop.server.idempotency import once_under
from loop.server.pages import see_other
from loop.server.request import path_id
from loop.storage.routing import StoredRule
from loop.workflows import routing, rule_sets
from loop.workflows.context import Context
from loop.workflows.idempotency import Claim

NEW: Final = "new"
_BLANK: Final[Mapping[str, str]] = {"enabled": "1", "way": rule_forms.ORDERED}


@dataclass(frozen=True, slots=True)
class Draft:
    """What the editor holds: the fields as typed, and what came of trying or saving them."""

    fields: Mapping[str, str]
    problem: LoopError | None = None
    comparison: Mapping[str, object] | None = None


async def show(request: Request, viewer: Viewer) -> Page:
    """Show the editor with a rule as it was saved."""
    rule_id = path_id(request, "rule_id", noun="routing rule")
    stored = await routing.get_rule(acting_as(request, viewer), viewer.merchant_id, rule_id)
    return await _page(request, viewer, stored=stored, draft=Draft(rule_forms.fields_of(stored.rule)))


async def show_new(request: Request, viewer: Viewer) -> Page:
    """Show the editor of a rule that is not there yet."""
    return await _page(request, viewer, stored=None, draft=Draft(_BLANK))


async def _page(request: Request, viewer: Viewer, *, stored: StoredRule | None, draft: Draft) -> Page:
    context = acting_as(request, viewer)
    found = await rule_sets.of_merchant(context, viewer.merchant_id)
    rule, error = None if stored is None else stored.rule, draft.problem
    named = () if rule is None else rule.processors
    rows = rule_forms.target_rows(found.configured, rule)
    kept_rows = [number for number in range(1, MAX_TARGETS + 1) if draft.fields.get(f"target_{number}")]
    values = {
        "rule": rule,
        "action": f"{HERE}/{NEW if rule is None else rule.id}",
        "fields": draft.fields,
        "problem": error,
        "problems": {} if error is None else rule_forms.problems_of(error),
        "comparison": draft.comparison,
        "choices": sorted({*found.configured, *named}),
        "configured": found.configured,
        "rows": max([rows, *kept_rows]),
        "methods": tuple(rule_forms.METHODS.items()),
        "key": new_form_key(context),
    }
    json = None if stored is None else rule_json(stored)
    return Page("routing_rule.html", "routing", values, json, 200 if error is None else STATUS_OF[error.kind])


async def save(request: Request, sent: Sent) -> Response:
    """Save a rule's new content, or only try it on recent orders."""
    viewer, context = sent.viewer, acting_as(request, sent.viewer)
    stored = await routing.get_rule(context, viewer.merchant_id, path_id(request, "rule_id", noun="routing rule"))
    try:
        rule = rule_forms.rule_from(sent.fields, stored.rule.id, priority=stored.rule.priority)
        if sent.fields.get("do") == "try":
            return await _tried(request, sent, rule=rule, stored=stored)
        await routing.save_rule(context, viewer.merchant_id, rule, is_new=False)
    except LoopError as error:
        draft = Draft(sent.fields, error)
        return render(await _page(request, viewer, stored=stored, draft=draft), viewer)
    return see_other(f"{HERE}?notice=saved")


async def create(request: Request, sent: Sent) -> Response:
    """Save a new rule after all others, once for each form, or only try it on recent orders."""
    viewer, context = sent.viewer, acting_as(request, sent.viewer)
    new_id = context.new_id(PREFIX_ROUTING_RULE)
    try:
        priority = await rule_sets.priority_at_end(context, viewer.merchant_id)
        rule = rule_forms.rule_from(sent.fields, new_id, priority=priority)
        if sent.fields.get("do") == "try":
            return await _tried(request, sent, rule=rule, stored=None)

        async def run(claim: Claim | None) -> Response:
            rule_id = new_id if claim is None else claim.row.subject_id or new_id
            return await _created(context, sent, rule_id=rule_id, priority=priority)

        await once_under(context, keyed(request, sent), operation=run, subject_id=new_id)
    except LoopError as error:
        draft = Draft(sent.fields, error)
        return render(await _page(request, viewer, stored=None, draft=draft), viewer)
    return see_other(f"{HERE}?notice=saved")


async def _created(context: Context, sent: Sent, *, rule_id: str, priority: int) -> Response:
    rule = rule_forms.rule_from(sent.fields, rule_id, priority=priority)
    await routing.save_rule(context, sent.viewer.merchant_id, rule, is_new=True)
    return Response(rule_id)


async def _tried(request: Request, sent: Sent, *, rule: Rule, stored: StoredRule | None) -> Response:
    viewer, context = sent.viewer, acting_as(request, sent.viewer)
    replayed = await rule_sets.replay(context, viewer.merchant_id, is_test=viewer.is_test, edited=rule)
    draft = Draft(sent.fields, comparison=compared(replayed))
    return render(await _page(request, viewer, stored=stored, draft=draft), viewer)


routes: Final[list[Route]] = [
    *page_routes(f"{HERE}/{NEW}", show_new),
    Route(f"{HERE}/{NEW}", acts(create), methods=["POST"]),
    *page_routes(f"{HERE}/{{rule_id}}", show),
    Route(f"{HERE}/{{rule_id}}", acts(save), methods=["POST"]),
]
