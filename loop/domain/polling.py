"""Polling: when an unclear outcome is asked about again, and when a person is told."""

from datetime import timedelta

STEPS_S = (2, 10, 30, 120, 600, 3600)
"""Seconds from each question to the next; after the last, hourly until the processor answers."""

PENDING_STEPS_S = (*STEPS_S, 6 * 3600, 24 * 3600)
"""The same of what the processor says is pending: a bank debit takes days, and its webhook tells of the end."""

ALERT_AFTER = timedelta(minutes=15)
"""An outcome that is unclear for longer needs a person's eye."""

PENDING_ALERT_AFTER = timedelta(days=21)
"""So does one that is pending for longer than the slowest bank takes."""

KEY_HORIZON = timedelta(hours=23)
"""Processors forget idempotency keys after 24 h: from then on a payment is only looked up, never sent again."""


def delay(asked_count: int, *, is_pending: bool = False) -> timedelta:
    """Return how long to wait before asking again, after having asked so often."""
    steps = PENDING_STEPS_S if is_pending else STEPS_S
    return timedelta(seconds=steps[min(asked_count, len(steps) - 1)])
