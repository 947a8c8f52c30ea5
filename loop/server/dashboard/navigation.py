"""The navigation: the dashboard's places, in groups."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Place:
    """One entry: `name` is what pages call it, `icon` a drawing of `icons.html`."""

    name: str
    label: str
    address: str
    icon: str


NAVIGATION: Final[tuple[tuple[str, tuple[Place, ...]], ...]] = (
    (
        "Payments",
        (
            Place("overview", "Overview", "/dashboard", "overview"),
            Place("orders", "Orders", "/dashboard/orders", "orders"),
            Place("links", "Checkout links", "/dashboard/links", "links"),
            Place("refunds", "Refunds", "/dashboard/refunds", "refunds"),
            Place("disputes", "Disputes", "/dashboard/disputes", "disputes"),
            Place("reconciliation", "Reconciliation", "/dashboard/reconciliation", "reconciliation"),
        ),
    ),
    (
        "Set-up",
        (
            Place("processors", "Processors", "/dashboard/processors", "processors"),
            Place("routing", "Routing", "/dashboard/routing", "routing"),
            Place("webhooks", "Webhooks", "/dashboard/webhooks", "webhooks"),
            Place("api-keys", "API keys", "/dashboard/api-keys", "api-keys"),
        ),
    ),
    (
        "Account",
        (
            Place("audit", "Audit log", "/dashboard/audit", "audit"),
            Place("settings", "Settings", "/dashboard/settings", "settings"),
        ),
    ),
)
"""(group, places), as they are shown."""
