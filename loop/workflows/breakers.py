"""Breakers: this process's circuit breakers, one for each processor account, in a table of bounded size."""

from collections import OrderedDict
from datetime import datetime
from typing import Final

from loop.domain.attempts import Outcome
from loop.domain.breakers import Breaker, BreakerState
from loop.telemetry import get_logger

log = get_logger(__name__)

MAX_ACCOUNTS: Final = 10_000
"""How many accounts are remembered; the one that was called longest ago is forgotten, and so is closed."""


class Breakers:
    """Hears how calls ended, and says which accounts get no new payments for now."""

    def __init__(self) -> None:
        self._breakers: OrderedDict[str, Breaker] = OrderedDict()

    def is_shut(self, config_id: str, now: datetime) -> bool:
        """Tell whether an account's new payments must go elsewhere."""
        breaker = self._breakers.get(config_id)
        return breaker is not None and breaker.is_shut(now)

    def let_through(self, config_id: str, now: datetime) -> None:
        """Note that a new payment goes to an account: the first one after a pause is the probe."""
        breaker = self._breakers.get(config_id)
        if breaker is not None:
            self._breakers[config_id] = breaker.let_through(now)

    def hear(self, config_id: str, outcome: Outcome, *, now: datetime) -> None:
        """Note how a call to an account ended."""
        before = self._breakers.pop(config_id, Breaker())
        after = self._breakers[config_id] = before.after(outcome, now)
        if len(self._breakers) > MAX_ACCOUNTS:
            self._breakers.popitem(last=False)
        if after.state is before.state:
            return
        if after.state is BreakerState.OPEN:
            log.error("processor.circuit_opened", config_id=config_id, pause_s=after.pause.total_seconds())
        else:
            log.info("processor.circuit_closed", config_id=config_id)
