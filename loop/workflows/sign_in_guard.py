"""The sign-in guard: slows the guessing of passwords down, per account and per network address."""

from datetime import datetime
from typing import Final
from weakref import WeakKeyDictionary

from loop.domain.errors import ErrorKind, LoopError
from loop.domain.throttling import Throttle, address_key
from loop.storage.database import Database
from loop.workflows.context import Context

FREE_TRIES_PER_ACCOUNT: Final = 10
FREE_TRIES_PER_ADDRESS: Final = 50
"""More than an account's, because a whole office may share one address."""


class SignInGuard:
    """Remembers failed sign-ins of one process, in tables of bounded size."""

    def __init__(self) -> None:
        self._accounts = Throttle(FREE_TRIES_PER_ACCOUNT)
        self._addresses = Throttle(FREE_TRIES_PER_ADDRESS)

    def begin(self, email: str, address: str, *, now: datetime) -> None:
        """Count a try; raises `too_many_attempts` when it comes too soon after failed ones."""
        source = address_key(address)
        wait_s = max(self._accounts.wait_s(email, now), self._addresses.wait_s(source, now))
        if wait_s:
            raise LoopError(
                ErrorKind.RATE_LIMITED,
                "too_many_attempts",
                f"There were too many failed sign-ins; wait {wait_s} seconds.",
                retry_after_s=wait_s,
            )
        self._accounts.begin(email, now)
        self._addresses.begin(source, now)

    def tell_once(self, email: str, address: str, *, now: datetime) -> bool:
        """Tell whether a wait is news: once after each counted try, so that who floods us fills no log."""
        is_news_of_account = self._accounts.tell_once(email, now)
        is_news_of_address = self._addresses.tell_once(address_key(address), now)
        return is_news_of_account or is_news_of_address

    def succeed(self, email: str, address: str) -> None:
        """Forget the account's failures. The address keeps its own, or one account of one's own would clear them."""
        self._accounts.forget(email)
        self._addresses.take_back(address_key(address))


# One guard for each open database: an account of one is none in another.
_guards: WeakKeyDictionary[Database, SignInGuard] = WeakKeyDictionary()


def guard_of(context: Context) -> SignInGuard:
    """Return the guard of the accounts in a context's database."""
    guard = _guards.get(context.database)
    if guard is None:
        guard = _guards[context.database] = SignInGuard()
    return guard
