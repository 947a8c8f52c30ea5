"""The audit log as a merchant reads it: who changed what of its account, newest first."""

from collections.abc import Mapping
from typing import Final

from pydantic.alias_generators import to_camel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from loop.domain.audit import AuditEntry
from loop.server.auth import authenticate
from loop.server.operations import CURSOR, Operation, describes
from loop.server.request import DEFAULT_LIMIT, MAX_LIMIT, context_of, json_response, query_of, time_text, whole_number
from loop.storage import audit

MAX_SEQ: Final = 2**53


class ActorJson(TypedDict):
    """Who acted, and from where."""

    kind: str
    id: str | None
    address: str | None


class AuditEntryJson(TypedDict):
    """One change: what of the subject was and is, and the hash that chains it to the entry before."""

    id: str
    seq: int
    action: str
    subject: str
    actor: ActorJson
    before: Mapping[str, object] | None
    after: Mapping[str, object] | None
    correlationId: str | None
    createdAt: str
    hash: str


class AuditLogJson(TypedDict):
    """Entries, newest first, from a cursor on."""

    data: list[AuditEntryJson]
    hasMore: bool
    nextCursor: str | None


_QUERY: Final = {
    **CURSOR,
    "cursor": {"type": "integer", "minimum": 1, "maximum": MAX_SEQ, "description": "A nextCursor of this list."},
}


@describes(Operation("listAuditLog", answer=AuditLogJson, query=_QUERY))
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
            "data": [entry_json(entry) for entry in page],
            "hasMore": has_more,
            "nextCursor": str(page[-1].seq) if has_more else None,
        }
    )


def entry_json(entry: AuditEntry) -> AuditEntryJson:
    """Return an entry as the API tells it."""
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
