"""Polling: when an unclear outcome is asked about again, and when a person is told."""

from datetime import timedelta

STEPS_S = (2, 10, 30, 120, 600, 3600)
"""Seconds from each question to the next; after the last, hourly until the processor answers."""

ALERT_AFTER = timedelta(minutes=15)
"""An outcome that is unclear for longer needs a person's eye."""

KEY_HORIZON = timedelta(hours=23)
"""Processors forget idempotency keys after 24 h: from then on a payment is only looked up, never sent again."""


def delay(asked_count: int) -> timedelta:
    """Return how long to wait before asking again, after having asked so often."""
    return timedelta(seconds=STEPS_S[min(asked_count, len(STEPS_S) - 1)])
