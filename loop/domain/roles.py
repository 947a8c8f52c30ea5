"""Roles: the parts of Loop that one process may run."""

from enum import StrEnum
from typing import Final


class Role(StrEnum):
    """One part; `loop serve` runs all of them unless it is told which."""

    API = "api"
    """The HTTP API, the processors' webhooks and the checkout page."""
    WORKER = "worker"
    """Jobs, and what is done by the clock."""
    DASHBOARD = "dashboard"
    """The merchants' pages."""


ALL: Final = frozenset(Role)
