"""The audit log's rules: who acts, what is recorded, and how each entry's hash chains it to the one before."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

GENESIS: Final = "0" * 64
"""The hash before a chain's first entry."""

OPERATOR_CHAIN: Final = "operator"
"""The chain of what concerns no merchant. Each merchant's chain is named by its id."""

ADDRESS_CHARACTERS: Final = 64
"""How much of a network address is kept."""


class ActorKind(StrEnum):
    """Who acts."""

    USER = "user"
    """A person who signed in; the id is the merchant's, whose one account it is."""
    API_KEY = "api_key"
    OPERATOR = "operator"
    """Whoever runs the command line; the id is the name of the system's user."""
    SYSTEM = "system"
    """Loop itself, by its schedule or for a processor's webhook."""
    ANONYMOUS = "anonymous"
    """Somebody who has not signed in."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, and from which network address."""

    kind: ActorKind
    id: str | None = None
    address: str | None = None


SYSTEM: Final = Actor(ActorKind.SYSTEM)


class AuditAction(StrEnum):
    """Everything that is recorded, as `noun.past`."""

    MERCHANT_CREATED = "merchant.created"
    PROFILE_CHANGED = "profile.changed"
    SIGN_IN_SUCCEEDED = "sign_in.succeeded"
    SIGN_IN_REFUSED = "sign_in.refused"
    SIGN_IN_THROTTLED = "sign_in.throttled"
    REFRESH_TOKEN_REUSED = "refresh_token.reused"  # noqa: S105 - a name
    SESSION_ENDED = "session.ended"
    PASSWORD_RESET = "password.reset"  # noqa: S105 - a name
    API_KEY_CREATED = "api_key.created"
    API_KEY_ROTATED = "api_key.rotated"
    API_KEY_REVOKED = "api_key.revoked"
    PROCESSOR_CONFIG_CREATED = "processor_config.created"
    PROCESSOR_CONFIG_REPLACED = "processor_config.replaced"
    PROCESSOR_CONFIG_CHANGED = "processor_config.changed"
    PROCESSOR_CONFIG_REMOVED = "processor_config.removed"
    ROUTING_RULE_CREATED = "routing_rule.created"
    ROUTING_RULE_CHANGED = "routing_rule.changed"
    ROUTING_RULE_REMOVED = "routing_rule.removed"
    ENDPOINT_CREATED = "webhook_endpoint.created"
    ENDPOINT_CHANGED = "webhook_endpoint.changed"
    ENDPOINT_REMOVED = "webhook_endpoint.removed"
    ENDPOINT_SECRET_ROTATED = "webhook_endpoint.secret_rotated"  # noqa: S105 - a name
    CAPTURE_REQUESTED = "capture.requested"
    CANCELLATION_REQUESTED = "cancellation.requested"
    REFUND_REQUESTED = "refund.requested"
    ORDER_REVIEWED = "order.reviewed"
    JOB_REVIVED = "job.revived"
    KEY_ROTATION_STARTED = "key_rotation.started"
    KEY_ROTATION_FINISHED = "key_rotation.finished"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One row of the audit log; `seq` counts a chain's entries from 1.

    `before` and `after` hold what of the subject was and is, never a secret. `action` is text, since a database that
    a newer version has written to must stay verifiable.
    """

    id: str
    seq: int
    merchant_id: str | None
    actor_kind: str
    actor_id: str | None
    address: str | None
    action: str
    subject: str
    before: Mapping[str, object] | None
    after: Mapping[str, object] | None
    correlation_id: str | None
    created_at: datetime
    prev_hash: str
    hash: str = ""


@dataclass(frozen=True, slots=True)
class Head:
    """Where a chain ends: its last entry's number and hash; 0 and `GENESIS` for an empty one."""

    seq: int = 0
    hash: str = GENESIS


def chain_of(merchant_id: str | None) -> str:
    """Return the name of the chain that an entry belongs to."""
    return OPERATOR_CHAIN if merchant_id is None else merchant_id


def hash_of(entry: AuditEntry) -> str:
    """Return the SHA-256, in hex, of everything in an entry but its own hash."""
    parts = {
        "id": entry.id,
        "seq": entry.seq,
        "merchant_id": entry.merchant_id,
        "actor": [entry.actor_kind, entry.actor_id],
        "address": entry.address,
        "action": entry.action,
        "subject": entry.subject,
        "before": entry.before,
        "after": entry.after,
        "correlation_id": entry.correlation_id,
        "created_at": entry.created_at.astimezone(UTC).isoformat(timespec="microseconds"),
        "prev_hash": entry.prev_hash,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def find_fault(entry: AuditEntry, before: Head) -> str:
    """Return what is wrong with an entry that must follow `before`, in words; empty when nothing is."""
    if entry.seq != before.seq + 1:
        missing = before.seq + 1
        return f"entry {missing} is missing" if entry.seq > missing else f"entry {entry.seq} is there twice"
    if entry.hash != hash_of(entry):
        return "it was changed"
    if entry.prev_hash != before.hash:
        return "it does not follow the entry before it"
    return ""
