"""Circuit breakers: when a processor account gets no new payments because its latest calls went unanswered."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from loop.domain.attempts import NotSent, Outcome, Unknown
from loop.domain.declines import DECLINES, DeclineClass

WINDOW: Final = timedelta(seconds=60)
SLICE_S: Final = 5
"""The window slides by this many seconds at a time."""

MIN_CALLS: Final = 10
"""Fewer calls in the window say nothing of the processor."""

FIRST_PAUSE: Final = timedelta(seconds=30)
MAX_PAUSE: Final = timedelta(minutes=10)
"""A pause doubles up to this one, each time the probe after it fails as well."""

PROBE_WITHIN: Final = timedelta(seconds=60)
"""A probe that tells nothing for so long, longer than any call takes, is lost: another one may go."""

_SLICES: Final = int(WINDOW.total_seconds()) // SLICE_S


class BreakerState(StrEnum):
    """Closed lets every payment through, open none, half open has one on its way as a probe."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class Slice:
    """The calls of one part of the window; `number` counts parts since 1970."""

    number: int
    calls: int
    troubles: int


@dataclass(frozen=True, slots=True)
class Breaker:
    """One account's breaker. `since` is when it opened, or when its probe left."""

    state: BreakerState = BreakerState.CLOSED
    slices: tuple[Slice, ...] = ()
    since: datetime | None = None
    pause: timedelta = FIRST_PAUSE

    def is_shut(self, now: datetime) -> bool:
        """Tell whether a new payment must go elsewhere."""
        if self.since is None:
            return False
        lasts = self.pause if self.state is BreakerState.OPEN else PROBE_WITHIN
        return self.since <= now < self.since + lasts  # a clock that was turned back holds nobody off

    def let_through(self, now: datetime) -> "Breaker":
        """Return the breaker after a new payment was let through; the first one after a pause is its probe."""
        if self.state is BreakerState.CLOSED:
            return self
        return replace(self, state=BreakerState.HALF_OPEN, since=now)

    def after(self, outcome: Outcome, now: datetime) -> "Breaker":
        """Return the breaker after a call was answered, or was not."""
        is_bad = is_trouble(outcome)
        if self.state is BreakerState.OPEN:  # the call began before that
            return self
        if self.state is BreakerState.HALF_OPEN:
            return _opened(now, min(self.pause * 2, MAX_PAUSE)) if is_bad else Breaker()
        slices = _counted(self.slices, int(now.timestamp()) // SLICE_S, is_bad=is_bad)
        calls, troubles = sum(each.calls for each in slices), sum(each.troubles for each in slices)
        if calls >= MIN_CALLS and troubles * 2 >= calls:
            return _opened(now, FIRST_PAUSE)
        return Breaker(slices=slices)


def is_trouble(outcome: Outcome) -> bool:
    """Tell whether an outcome speaks of a processor in trouble: unclear, or not sent for technical reasons.

    A decline is an answer, and so is the refusal of a request that is wrong.
    """
    if isinstance(outcome, NotSent):
        known = DECLINES.get(outcome.code)
        return known is None or known.decline_class is DeclineClass.TECH
    return isinstance(outcome, Unknown)


def _opened(now: datetime, pause: timedelta) -> Breaker:
    return Breaker(BreakerState.OPEN, since=now, pause=pause)


def _counted(slices: tuple[Slice, ...], number: int, *, is_bad: bool) -> tuple[Slice, ...]:
    kept = [each for each in slices if number - _SLICES < each.number < number]
    current = next((each for each in slices if each.number == number), Slice(number, 0, 0))
    return (*kept, Slice(number, current.calls + 1, current.troubles + is_bad))
