"""Lanes: how many of a process's places for jobs one processor account may take, so that others get theirs."""

from collections import Counter
from typing import Final

SHARE: Final = (3, 4)
"""The part of the places which the other lanes have left that one lane may take; the rest stays free for those."""


class Lanes:
    """The places for jobs of one process, by the lanes of those that have them.

    A lane may always have one place. The more are taken by others, the less it may have, so that something is left for
    a lane that has none yet, for as long as there is anything.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._taken: Counter[str] = Counter()

    @property
    def room(self) -> int:
        """How many places are free."""
        return self._places - self._taken.total()

    @property
    def full(self) -> frozenset[str]:
        """The lanes that may have no more places."""
        return frozenset(lane for lane in self._taken if self._left_to(lane) <= 0)

    @property
    def left(self) -> int:
        """How many jobs may begin at once when they may all be of one lane, any of those that are not full."""
        open_lanes = (self._left_to(lane) for lane in ("", *self._taken))  # no lane has no name: "" stands for new ones
        return min(self.room, *(left for left in open_lanes if left > 0)) if self.room > 0 else 0

    def take(self, lane: str) -> None:
        """Give a lane one more place."""
        self._taken[lane] += 1

    def give_back(self, lane: str) -> None:
        """Have one place less taken by a lane."""
        self._taken[lane] -= 1
        if self._taken[lane] == 0:
            del self._taken[lane]

    def _left_to(self, lane: str) -> int:
        """Return how many more places a lane may have; less than none when others have taken places since."""
        part, whole = SHARE
        has = self._taken[lane]
        return max(1, (self.room + has) * part // whole) - has
