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
            Place("refunds", "Refunds", "/dashboard/refunds", "refunds"),
            Place("disputes", "Disputes", "/dashboard/disputes", "disputes"),
            Place("reconciliation", "Reconciliation", "/dashboard/reconciliation", "reconciliation"),
        ),
    ),
)
"""(group, places), as they are shown."""
