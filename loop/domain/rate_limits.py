"""Rate limits: how many requests somebody may make, by the generic cell rate algorithm, in tables of bounded size."""

import math
from typing import Final, NamedTuple

BURST_S: Final = 10
"""A rate is an average over this time: whoever was quiet may make so many seconds' requests at once."""

MAX_ENTRIES: Final = 50_000
"""How many callers a table remembers."""


SLACK: Final = 0.001
"""The part of one request that sums of intervals may be off by."""


class Taken(NamedTuple):
    """What came of asking for one request's room; times are in whole seconds."""

    limit: int
    """How many requests there are in `BURST_S`."""
    remaining: int
    reset_s: int
    """When all of the limit will be there again, if nothing is asked for meanwhile."""
    retry_after_s: int
    """0 for a request that may go on; else when to try again."""


def taken(per_s: int, ahead_s: float) -> Taken:
    """Return what it means that a caller, with this request, is so far ahead of its rate of `per_s` a second."""
    limit = per_s * BURST_S
    remaining = math.floor((BURST_S - ahead_s) * per_s + SLACK)
    if remaining < 0:
        return Taken(limit, 0, BURST_S, max(1, math.ceil(ahead_s - BURST_S)))
    return Taken(limit, remaining, math.ceil(ahead_s), 0)


class Buckets:
    """Who has asked how often, for one rate: only when each will have paid for its requests has to be kept."""

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s
        self._interval_s = 1 / per_s
        self._paid_at: dict[str, float] = {}

    def take(self, who: str, now_s: float) -> Taken:
        """Take one request's room at a time that never goes back; what is refused costs nothing."""
        paid_at = max(self._paid_at.get(who, 0.0), now_s) + self._interval_s
        room = taken(self._per_s, paid_at - now_s)
        if not room.retry_after_s:
            self._paid_at[who] = paid_at
            if len(self._paid_at) > MAX_ENTRIES:
                self._make_room(now_s)
        return room

    def _make_room(self, now_s: float) -> None:
        """Forget who has paid, and of the others those known longest until half of the table is free."""
        owing = [(who, paid_at) for who, paid_at in self._paid_at.items() if paid_at > now_s]
        self._paid_at = dict(owing[-MAX_ENTRIES // 2 :])
