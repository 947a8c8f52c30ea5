"""Webhook secrets: which of an account's secrets count, and for how long one that was replaced still does."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

OVERLAP = timedelta(hours=48)
"""How long a secret still counts after it was replaced.

Razorpay goes on signing an event's retries, 24 hours of them, with the secret of when it happened, and Stripe lets a
secret that was rolled live on for up to 24 hours. The other day is for the person who changes it here and there at
different times.
"""

EARLIER_MAX = 4
"""How many replaced secrets of one account count at the same time; the oldest goes first."""


@dataclass(frozen=True, slots=True)
class EarlierSecret:
    """A secret that was replaced, and until when it counts."""

    secret: str = field(repr=False)
    valid_until: datetime


def after_change(
    earlier: Sequence[EarlierSecret], *, before: str | None, after: str | None, now: datetime
) -> tuple[EarlierSecret, ...]:
    """Return the earlier secrets, newest first, once `after` has taken the place of `before`."""
    if before is not None and before != after:
        earlier = (EarlierSecret(before, now + OVERLAP), *(each for each in earlier if each.secret != before))
    return tuple(each for each in earlier if each.secret != after and each.valid_until > now)[:EARLIER_MAX]


def accepted(current: str | None, earlier: Sequence[EarlierSecret], *, now: datetime) -> tuple[str, ...]:
    """Return the secrets that count, the current one first; none at all where there is no current one."""
    if current is None:
        return ()
    return (current, *(each.secret for each in earlier if each.valid_until > now))
