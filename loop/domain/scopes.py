"""Scopes: what an API key may be allowed to do."""

from collections.abc import Collection
from enum import StrEnum
from typing import Final

ALL: Final = "*"
"""Stands for every scope, those that later versions add among them."""


class Scope(StrEnum):
    """One thing that a key may be allowed; none includes another."""

    ORDERS_READ = "orders:read"
    """Orders and all that belongs to them, checkout sessions, events, statistics and reconciliation."""
    ORDERS_WRITE = "orders:write"
    """Create orders."""
    PAYMENTS_WRITE = "payments:write"
    """Pay, capture, cancel, and the hosted checkout."""
    REFUNDS_WRITE = "refunds:write"
    WEBHOOKS_MANAGE = "webhooks:manage"
    """Endpoints, their secrets, deliveries, and sending again."""
    PROCESSORS_MANAGE = "processors:manage"
    ROUTING_MANAGE = "routing:manage"
    ACCOUNT_MANAGE = "account:manage"
    """The merchant's profile with its webhookUrl, and the list of API keys."""
    AUDIT_READ = "audit:read"


def is_granted(scopes: Collection[str], needed: Scope) -> bool:
    """Tell whether a key with these scopes may do what needs one."""
    return ALL in scopes or needed in scopes


def find_problem(scopes: Collection[str]) -> str:
    """Return what is wrong with the scopes that a key is to have, in words; empty when nothing is."""
    if not scopes:
        return 'must name at least one scope; ["*"] stands for all'
    unknown = sorted(set(scopes) - {ALL, *Scope})
    if unknown:
        return f"must be of {ALL}, {', '.join(Scope)}"
    return ""
