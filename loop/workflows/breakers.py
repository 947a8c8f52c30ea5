"""Breakers: this process's circuit breakers, one for each processor account, in a table of bounded size."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from loop.domain.attempts import Outcome
from loop.domain.breakers import Breaker, BreakerState
from loop.telemetry import get_logger

log = get_logger(__name__)

MAX_ACCOUNTS: Final = 10_000
"""How many accounts are remembered; the one that was called longest ago is forgotten, and so is closed."""


@dataclass(frozen=True, slots=True)
class Turn:
    """How an account's breaker stood after it opened, let its probe through or closed, and when it did."""

    config_id: str
    breaker: Breaker
    at: datetime


class Breakers:
    """Hears how calls ended, and says which accounts get no new payments for now.

    Processes that share a Redis tell each other of their turns (`untold`, `hear_of`); calls each counts for itself.
    """

    def __init__(self) -> None:
        self._breakers: OrderedDict[str, Breaker] = OrderedDict()
        self._turns: dict[str, Turn] = {}
        self._untold: set[str] = set()

    def is_shut(self, config_id: str, now: datetime) -> bool:
        """Tell whether an account's new payments must go elsewhere."""
        breaker = self._breakers.get(config_id)
        return breaker is not None and breaker.is_shut(now)

    def of_account(self, config_id: str) -> Breaker:
        """Return an account's breaker as it stands."""
        return self._breakers.get(config_id, Breaker())

    def not_closed(self) -> list[str]:
        """Return the accounts whose breaker is open or half open."""
        return [each for each, breaker in self._breakers.items() if breaker.state is not BreakerState.CLOSED]

    def let_through(self, config_id: str, now: datetime) -> None:
        """Note that a new payment goes to an account: the first one after a pause is the probe."""
        breaker = self._breakers.get(config_id)
        if breaker is not None and breaker.state is not BreakerState.CLOSED:
            self._turn(Turn(config_id, breaker.let_through(now), now))

    def hear(self, config_id: str, outcome: Outcome, *, now: datetime) -> None:
        """Note how a call to an account ended."""
        before = self.of_account(config_id)
        after = before.after(outcome, now)
        self._keep(config_id, after)
        if after.state is before.state:
            return
        self._turn(Turn(config_id, after, now))
        if after.state is BreakerState.OPEN:
            log.error("processor.circuit_opened", config_id=config_id, pause_s=after.pause.total_seconds())
        else:
            log.info("processor.circuit_closed", config_id=config_id)

    def _keep(self, config_id: str, breaker: Breaker) -> None:
        self._breakers[config_id] = breaker
        self._breakers.move_to_end(config_id)
        if len(self._breakers) > MAX_ACCOUNTS:
            forgotten, _ = self._breakers.popitem(last=False)
            self._turns.pop(forgotten, None)
            self._untold.discard(forgotten)

    def _turn(self, turn: Turn) -> None:
        self._keep(turn.config_id, turn.breaker)
        self._turns[turn.config_id] = turn
        self._untold.add(turn.config_id)

    def untold(self) -> list[Turn]:
        """Return the latest turns of its own that were not handed out yet, one for each account."""
        told, self._untold = self._untold, set()
        return [self._turns[config_id] for config_id in told]

    def tell_again(self, config_ids: Iterable[str] | None = None) -> None:
        """Have these accounts' turns handed out again, or all that are not closed: who was told has forgotten them."""
        again = self.not_closed() if config_ids is None else config_ids
        self._untold.update(config_id for config_id in again if config_id in self._turns)

    def hear_of(self, turn: Turn) -> None:
        """Take over another process's turn, unless a later one is known."""
        known = self._turns.get(turn.config_id)
        if known is not None and known.at >= turn.at:
            return
        before = self.of_account(turn.config_id)
        is_closed = before.state is BreakerState.CLOSED is turn.breaker.state
        self._keep(turn.config_id, before if is_closed else turn.breaker)  # what was counted here goes on counting
        self._turns[turn.config_id] = turn
        self._untold.discard(turn.config_id)
        if before.state is not turn.breaker.state:
            log.info("processor.circuit_followed", config_id=turn.config_id, state=turn.breaker.state)
