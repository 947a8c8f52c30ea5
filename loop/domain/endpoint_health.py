"""Endpoint health: how many tries failed in a row, how long an endpoint is left alone, and when it is given up."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from loop.domain.deliveries import MAX_TRIES

IN_FLIGHT_MAX: Final = 4
"""Events that are on their way to one endpoint at the same time."""

FAILURES_MAX: Final = 5
"""So many failed tries in a row open an endpoint's breaker: it is left alone for a while, then gets one probe."""

FIRST_PAUSE: Final = timedelta(seconds=60)
MAX_PAUSE: Final = timedelta(hours=1)
"""A pause doubles up to this one, each time the probe after it fails as well."""

GIVEN_UP_AFTER: Final = timedelta(days=5)
"""An endpoint that has taken nothing for so long, and was tried `MAX_TRIES` times or more, is disabled."""

GONE: Final = "the endpoint answered 410 Gone"
HOPELESS: Final = f"the endpoint took nothing for {GIVEN_UP_AFTER.days} days"


@dataclass(frozen=True, slots=True)
class EndpointHealth:
    """What an endpoint's latest tries tell of it; `pause` is the latest one, nothing since it took an event."""

    failure_streak: int = 0
    failing_since: datetime | None = None
    pause: timedelta = timedelta()
    paused_until: datetime | None = None

    @property
    def is_sick(self) -> bool:
        """Whether the endpoint gets one probe at a time."""
        return self.failure_streak >= FAILURES_MAX

    def after_try(self, now: datetime, *, is_success: bool) -> "EndpointHealth":
        """Return the health after one more try."""
        if is_success:
            return EndpointHealth()
        return replace(self, failure_streak=self.failure_streak + 1, failing_since=self.failing_since or now)

    def paused(self, now: datetime) -> "EndpointHealth":
        """Return the health of a sick endpoint that is left alone from now on."""
        pause = min(max(self.pause * 2, FIRST_PAUSE), MAX_PAUSE)
        return replace(self, pause=pause, paused_until=now + pause)

    def is_hopeless(self, now: datetime) -> bool:
        """Tell whether the endpoint is to be disabled."""
        is_long = self.failing_since is not None and now - self.failing_since >= GIVEN_UP_AFTER
        return is_long and self.failure_streak >= MAX_TRIES
