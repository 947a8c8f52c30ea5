"""The audit log as a merchant reads it: who changed what of its account, newest first."""

from collections.abc import Mapping
from typing import Final

from pydantic.alias_generators import to_camel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loop.domain.audit import AuditEntry
from loop.server.auth import authenticate
from loop.server.request import DEFAULT_LIMIT, MAX_LIMIT, context_of, json_response, query_of, time_text, whole_number
from loop.storage import audit

MAX_SEQ: Final = 2**53


async def list_entries(request: Request) -> Response:
    """List the merchant's entries from a cursor on."""
    caller = await authenticate(request)
    query = query_of(request)
    before_seq = whole_number(query, "cursor", low=1, high=MAX_SEQ)
    limit = whole_number(query, "limit", low=1, high=MAX_LIMIT) or DEFAULT_LIMIT
    async with context_of(request).database.reading() as reader:
        found = await audit.newest(reader, caller.merchant_id, before_seq=before_seq, limit=limit + 1)
    page = found[:limit]
    has_more = len(found) > len(page)
    return json_response(
        {
            "data": [_entry_json(entry) for entry in page],
            "hasMore": has_more,
            "nextCursor": str(page[-1].seq) if has_more else None,
        }
    )


def _entry_json(entry: AuditEntry) -> dict[str, object]:
    return {
        "id": entry.id,
        "seq": entry.seq,
        "action": entry.action,
        "subject": entry.subject,
        "actor": {"kind": entry.actor_kind, "id": entry.actor_id, "address": entry.address},
        "before": _facts_json(entry.before),
        "after": _facts_json(entry.after),
        "correlationId": entry.correlation_id,
        "createdAt": time_text(entry.created_at),
        "hash": entry.hash,
    }


def _facts_json(facts: Mapping[str, object] | None) -> dict[str, object] | None:
    return None if facts is None else {to_camel(name): value for name, value in facts.items()}


routes: Final = [Route("/api/audit-log", list_entries, methods=["GET"])]
