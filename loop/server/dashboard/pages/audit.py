"""The audit log: who changed what, found by kind, person, subject and day, and whether the chain is whole."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Final
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.routing import Route

from loop.domain.audit import ActorKind, AuditAction, AuditEntry
from loop.server.api.audit_log import MAX_SEQ, entry_json
from loop.server.dashboard.frames import Page, page_routes
from loop.server.dashboard.listing import PAGE_ROWS
from loop.server.dashboard.viewers import Viewer
from loop.server.request import context_of, moment, query_of, validation_failed, whole_number
from loop.server.shapes import MAX_FILTER_CHARACTERS
from loop.storage import audit as audit_rows
from loop.storage.audit import AuditFilter
from loop.workflows import audit
from loop.workflows.audit import ChainReport

HERE: Final = "/dashboard/audit"
CHECKED_MAX: Final = 20_000
"""How many entries one look at the page verifies; `loop audit verify` follows a longer chain to its end."""

FILTERS: Final = ("action", "actor", "subject", "from", "to")
_PAGES_OF: Final = {"ord_": "/dashboard/orders/", "rul_": "/dashboard/routing/"}
"""How a subject's id begins -> where its page is."""


async def show(request: Request, viewer: Viewer) -> Page:
    """Show a page of entries, newest first; when asked to, whether their chain is whole."""
    query = query_of(request)
    given: dict[str, str] = {name: query[name] for name in FILTERS if name in query}
    before_seq = whole_number(query, "cursor", low=1, high=MAX_SEQ)
    wanted = _filter(given)
    async with context_of(request).database.reading() as reader:
        found = await audit_rows.found(reader, viewer.merchant_id, wanted, before_seq=before_seq, limit=PAGE_ROWS + 1)
    rows = found[:PAGE_ROWS]
    cursor = str(rows[-1].seq) if len(found) > PAGE_ROWS else None
    report = None
    if "check" in query:
        report = await audit.verify_start(context_of(request), viewer.merchant_id, entries_max=CHECKED_MAX)
    values = {
        "rows": [(each, _changes(each)) for each in rows],
        "given": given,
        "pager": {
            "is_first": before_seq is None,
            "first": urlencode(given),
            "next": None if cursor is None else urlencode({**given, "cursor": cursor}),
        },
        "actions": [each.value for each in AuditAction],
        "actors": [each.value for each in ActorKind],
        "report": report,
        "check": urlencode({**given, "check": "1"}),
        "page_of": page_of_subject,
    }
    json = {
        "data": [entry_json(each) for each in rows],
        "hasMore": cursor is not None,
        "nextCursor": cursor,
        "chain": None if report is None else _report_json(report),
    }
    return Page("audit.html", "audit", values, json)


def _filter(given: Mapping[str, str]) -> AuditFilter:
    if too_long := next((name for name, value in given.items() if len(value) > MAX_FILTER_CHARACTERS), None):
        raise validation_failed((too_long, f"must have at most {MAX_FILTER_CHARACTERS} characters"))
    last_day = moment(given, "to")
    return AuditFilter(
        action=given.get("action"),
        actor_kind=given.get("actor"),
        subject=given.get("subject", "").strip() or None,
        created_from=moment(given, "from"),
        created_to=None if last_day is None else last_day + timedelta(days=1),
    )


def _changes(entry: AuditEntry) -> list[tuple[str, object, object]]:
    """Return each field that an entry tells of, with what it was and is; of what was made only what it has."""
    was, now_is = entry.before or {}, entry.after or {}
    pairs = [(name, was.get(name), now_is.get(name)) for name in dict.fromkeys([*was, *now_is])]
    return pairs if entry.before is not None else [each for each in pairs if each[2] not in (None, "", [], {})]


def page_of_subject(subject: str) -> str | None:
    """Return where a subject has a page of its own, or None."""
    return next((f"{page}{subject}" for prefix, page in _PAGES_OF.items() if subject.startswith(prefix)), None)


def _report_json(report: ChainReport) -> dict[str, object]:
    return {
        "isWhole": not report.fault,
        "isComplete": report.is_complete,
        "entries": report.entries,
        "hash": report.hash,
        "fault": report.fault or None,
        "brokenId": report.broken_id,
    }


routes: Final[list[Route]] = page_routes(HERE, show)
